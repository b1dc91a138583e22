"""Optimizer checkpoints: the run goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manifoldnet as mn

OPTIMIZERS = pytest.mark.parametrize("make", [mn.RiemannianSGD, mn.RiemannianAdam])


def _model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(6, 8))
    model.add_module("act", nn.ReLU())
    model.add_module("head", nn.Linear(8, 3))
    model.to(dtype)
    mn.declare(model.body, "weight", mn.Oblique(), project=True)
    mn.declare(model.head, "weight", mn.ScaledEuclidean(1))
    return model


def _options(make: Any) -> dict[str, Any]:
    return {"momentum": 0.9} if make is mn.RiemannianSGD else {}


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator).to(next(model.parameters()).dtype)
        y = torch.randint(3, (16,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint holds only tensors and plain types."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@OPTIMIZERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_continues_bit_for_bit(make: Any, dtype: torch.dtype) -> None:
    model = _model(dtype)
    optimizer = make(mn.param_groups(model), lr=0.01, **_options(make))
    _train(model, optimizer, 5, seed=0)
    saved = _through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = _train(model, optimizer, 5, seed=1)

    again = _model(dtype)
    resumed = make(mn.param_groups(again), lr=0.5, **_options(make))
    mn.load_state_dict(again, saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == 0.01
    assert _train(again, resumed, 5, seed=1) == expected
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_buffers_of_half_precision_weights_are_float32_before_and_after() -> None:
    model = _model(torch.bfloat16)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    _train(model, optimizer, 3, seed=0)
    buffer = optimizer.state[model.body.weight]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    saved = optimizer.state_dict()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state[model.body.weight]["momentum_buffer"], buffer)
    assert optimizer.state[model.body.weight]["momentum_buffer"].dtype == torch.float32


@OPTIMIZERS
def test_states_find_their_parameters_by_name_across_regrouping(make: Any) -> None:
    model = _model()
    optimizer = make(model.named_parameters(), lr=0.01, **_options(make))
    _train(model, optimizer, 3, seed=0)
    saved = _through_a_file(optimizer.state_dict())
    expected = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}

    regrouped = make(mn.param_groups(model), lr=0.3, **_options(make))
    regrouped.load_state_dict(saved)
    assert [g["lr"] for g in regrouped.param_groups] == [0.01, 0.01]
    for name, p in model.named_parameters():
        for key, value in expected[name].items():
            assert torch.equal(regrouped.state[p][key], value), (name, key)


def test_options_that_differ_between_the_saved_groups_stay_as_they_are_now() -> None:
    model = _model()
    groups = mn.param_groups(model)
    groups[0]["lr"], groups[1]["lr"] = 0.1, 0.2
    saved = mn.RiemannianSGD(groups, momentum=0.5).state_dict()
    merged = mn.RiemannianSGD(model.named_parameters(), lr=0.7, momentum=0.9)
    merged.load_state_dict(saved)
    assert merged.param_groups[0]["lr"] == 0.7
    assert merged.param_groups[0]["momentum"] == 0.5


@OPTIMIZERS
@pytest.mark.parametrize("names", [False, True])
def test_checkpoints_of_torch_optimizers_are_loaded(make: Any, names: bool) -> None:
    """Its buffers become tangent vectors, and one second moment per slice."""
    model = _model()
    plain_make = torch.optim.SGD if make is mn.RiemannianSGD else torch.optim.Adam
    plain = plain_make(
        model.named_parameters() if names else model.parameters(), lr=0.01, **_options(make)
    )
    _train(model, plain, 3, seed=0)
    mn.project_(model)
    buffers = {n: copy.deepcopy(plain.state[p]) for n, p in model.named_parameters()}

    optimizer = make(mn.param_groups(model), lr=0.02, **_options(make))
    optimizer.load_state_dict(_through_a_file(plain.state_dict()))
    first = "momentum_buffer" if make is mn.RiemannianSGD else "exp_avg"
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        manifold = mn.manifolds(model).get(name)
        if manifold is None:
            assert torch.equal(state[first], buffers[name][first])
            continue
        x = p.detach()
        expected = manifold.egrad2rgrad(x, buffers[name][first])
        torch.testing.assert_close(state[first], expected)
        assert manifold.tangent_violation(x, state[first]).max() < 1e-6
        if make is mn.RiemannianAdam:
            v = buffers[name]["exp_avg_sq"]
            square = x.norm(dim=0, keepdim=True).square()
            mean = v.mean(1, keepdim=True)
            if name != "body.weight":
                mean = v.mean(0, keepdim=True) * square
            torch.testing.assert_close(state["exp_avg_sq"], mean)
            assert state["step"] == 3
    _train(model, optimizer, 2, seed=1)


@OPTIMIZERS
def test_a_state_of_other_manifolds_is_refused_and_changes_nothing(make: Any) -> None:
    model = _model()
    optimizer = make(mn.param_groups(model), lr=0.01, **_options(make))
    _train(model, optimizer, 2, seed=0)
    other = _model()
    mn.undeclare(other, "head.weight")
    mn.declare(other, "head.weight", mn.ScaledEuclidean(0))
    target = make(mn.param_groups(other), lr=0.3, **_options(make))
    with pytest.raises(ValueError, match=r"head\.weight was declared on ScaledEuclidean.dim=1"):
        target.load_state_dict(optimizer.state_dict())
    assert target.param_groups[0]["lr"] == 0.3
    assert not target.state


def test_states_that_do_not_fit_are_refused() -> None:
    model = _model()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    _train(model, optimizer, 1, seed=0)
    good = optimizer.state_dict()

    def refused(state: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(state)

    wrong = copy.deepcopy(good)
    wrong["state"][0]["momentum_buffer"] = torch.zeros(3, 3)
    refused(wrong, r"momentum_buffer of body\.weight has shape \(3, 3\)")
    wrong = copy.deepcopy(good)
    wrong["state"][0]["exp_avg"] = torch.zeros(8, 6)
    refused(wrong, "which is not of RiemannianSGD")
    wrong = copy.deepcopy(good)
    wrong["param_groups"][0]["param_names"] = ["body.weight", "tail.weight"]
    refused(wrong, r"lacks head\.weight, and has tail\.weight")
    wrong = copy.deepcopy(good)
    for group in wrong["param_groups"]:
        del group["param_names"]
    wrong["param_groups"].pop()
    refused(wrong, "cannot be matched by name")


def test_points_are_checked_again_after_loading() -> None:
    model = _model()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01)
    _train(model, optimizer, 1, seed=0)
    state = optimizer.state_dict()
    with torch.no_grad():
        model.body.weight.mul_(2)  # what torch's own load_state_dict lets through
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"body\.weight is not on Oblique"):
        _train(model, optimizer, 1, seed=0)


def test_an_optimizer_is_copied_and_pickled_with_its_model() -> None:
    model = _model()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    _train(model, optimizer, 2, seed=0)
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    assert _train(model, optimizer, 3, seed=1) == _train(model2, optimizer2, 3, seed=1)


def test_schedulers_and_gradient_scalers_work() -> None:
    model = _model()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    reference = _model()
    plain = mn.RiemannianSGD(mn.param_groups(reference), lr=0.1)

    def loss(net: nn.Module) -> Tensor:
        return net(torch.ones(2, 6)).square().sum()

    scaler.scale(loss(model)).backward()
    scaler.step(optimizer)
    scheduler.step()
    loss(reference).backward()
    plain.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]
    torch.testing.assert_close(model.body.weight, reference.body.weight)


def test_two_models_with_the_same_names_keep_their_own_state() -> None:
    first, second = _model(), _model()
    groups = mn.param_groups(first) + mn.param_groups(second)
    optimizer = mn.RiemannianSGD(groups, lr=0.01, momentum=0.9)
    _train(first, optimizer, 2, seed=0)
    _train(second, optimizer, 2, seed=1)
    expected = {p: optimizer.state[p]["momentum_buffer"].clone() for p in optimizer.state}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert len(expected) == 8
    for p, buffer in expected.items():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)


def test_unnamed_torch_groups_are_not_matched_by_position_to_groups_in_another_order() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    plain = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    mn.declare(model, "1.weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    with pytest.raises(ValueError, match="cannot be matched by name"):
        optimizer.load_state_dict(plain.state_dict())


def test_a_compiled_models_state_is_the_plain_models() -> None:
    model = _model()
    compiled = torch.compile(model, backend="eager")
    optimizer = mn.RiemannianSGD(mn.param_groups(compiled), lr=0.01, momentum=0.9)
    _train(model, optimizer, 2, seed=0)
    again = mn.RiemannianSGD(mn.param_groups(model), lr=0.3, momentum=0.9)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.01


def test_flags_of_a_torch_checkpoint_do_not_reach_declared_weights() -> None:
    model = _model()
    plain = torch.optim.SGD(model.parameters(), lr=0.01, foreach=True, weight_decay=0.1)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.3)
    optimizer.load_state_dict(plain.state_dict())
    assert [g["foreach"] for g in optimizer.param_groups] == [None, True]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1]
    bad = optimizer.state_dict()
    bad["param_groups"][1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.load_state_dict(bad)
    assert optimizer.param_groups[1]["lr"] == 0.01


# --- names ----------------------------------------------------------------------------------------


def _saved(names: Any = None) -> tuple[nn.Module, dict[str, Any]]:
    """A model and the state of its optimizer, with the names changed."""
    model = _model()
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    _train(model, optimizer, 2, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["param_names"] = [(names or str)(name) for name in group["param_names"]]
    return model, state


def _resumed(model: nn.Module, **options: Any) -> mn.RiemannianSGD:
    return mn.RiemannianSGD(mn.param_groups(model, **options), lr=0.3, momentum=0.9)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace(".", "._checkpoint_wrapped_module."),
        lambda name: "_fsdp_wrapped_module." + name.replace(".", "._fsdp_wrapped_module."),
        lambda name: f"model.{name}",
        lambda name: f"learner.module.model.{name}",
    ],
    ids=["compiled", "DDP", "DDP inside", "checkpoint", "FSDP", "prefix", "prefixes"],
)
@pytest.mark.parametrize("back", [False, True])
def test_names_are_seen_through_wrappers_and_one_prefix(rename: Any, back: bool) -> None:
    model, state = _saved()
    optimizer = _resumed(model)
    renamed = copy.deepcopy(state)
    for group in renamed["param_groups"]:
        group["param_names"] = [rename(name) for name in group["param_names"]][::-1]
        group["params"], group["manifolds"] = group["params"][::-1], group["manifolds"][::-1]
    if back:  # the optimizer is the one with the long names
        for group in optimizer.param_groups:
            group["param_names"] = [rename(name) for name in group["param_names"]]
        renamed = state
    optimizer.load_state_dict(renamed)
    for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        assert torch.equal(
            optimizer.state[p]["momentum_buffer"], state["state"][number]["momentum_buffer"]
        )


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"my{name}",
        lambda name: name.replace("body", "tail"),
        lambda name: f"{name[:4]}.{name}",
        lambda name: name.replace(".", ".submodule."),
    ],
)
def test_states_of_renamed_parameters_are_refused(rename: Any) -> None:
    model, state = _saved(rename)
    optimizer = _resumed(model)
    with pytest.raises(ValueError, match="belongs to other parameters"):
        optimizer.load_state_dict(state)
    assert not optimizer.state


def test_a_submodule_called_module_is_not_stripped_from_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 4, bias=False)
            self.weight = nn.Parameter(mn.Oblique().random(3, 4))

    model = Net()
    mn.declare(model, "weight", mn.Oblique())
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    again = mn.RiemannianSGD(model.named_parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        assert torch.equal(again.state[p]["momentum_buffer"], optimizer.state[p]["momentum_buffer"])


def test_names_reach_an_unnamed_optimizer_as_in_torch() -> None:
    model, state = _saved()
    optimizer = _resumed(model, names=False)
    assert all("param_names" not in g for g in optimizer.param_groups)
    optimizer.load_state_dict(state)
    assert [g["param_names"] for g in optimizer.param_groups] == [
        ["body.weight", "head.weight"],
        ["body.bias", "head.bias"],
    ]
    # In our order, not in that of the saved groups.
    whole = mn.RiemannianSGD(model.named_parameters(), lr=0.3, momentum=0.9)
    optimizer = _resumed(model, names=False)
    optimizer.load_state_dict(whole.state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["body.weight", "head.weight"]


def test_a_group_without_names_joins_groups_with_names() -> None:
    """As a callback adds it that unfreezes a layer in the middle of a training."""
    model = _model()
    groups = [
        {**g, "params": [(n, p) for n, p in g["params"] if "head" in n]}
        for g in mn.param_groups(model)
    ]
    for group in groups:
        del group["model_order"]
    optimizer = mn.RiemannianSGD(groups, lr=0.01, momentum=0.9)
    optimizer.add_param_group({"params": model.body.parameters(), "lr": 0.1})
    assert optimizer.param_groups[2]["param_names"] == ["group2.0", "group2.1"]
    _train(model, optimizer, 2, seed=0)
    mn.verify(model)
    optimizer.load_state_dict(_through_a_file(optimizer.state_dict()))
    assert len(optimizer.state) == 4
    with pytest.raises(ValueError, match="cannot add param group with names"):
        _resumed(model, names=False).add_param_group({"params": [("a", nn.Parameter(Tensor(2)))]})


# --- hooks ----------------------------------------------------------------------------------------


def test_a_hook_converts_a_foreign_state_before_it_is_checked() -> None:
    model, state = _saved()
    old = {"momentum": state["state"], "groups": state["param_groups"]}
    optimizer = _resumed(model)
    with pytest.raises(ValueError, match="'state' and 'param_groups'"):
        optimizer.load_state_dict(old)
    optimizer.register_load_state_dict_pre_hook(
        lambda _, found: {"state": found["momentum"], "param_groups": found["groups"]}
    )
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert len(optimizer.state) == 4
    assert set(old) == {"momentum", "groups"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_by_hooks_are_kept_for_declared_weights(dtype: torch.dtype) -> None:
    model = _model(dtype)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, momentum=0.9)
    _train(model, optimizer, 2, seed=0)
    state = optimizer.state_dict()

    def forget(_: Any, found: dict[str, Any]) -> dict[str, Any]:
        zero = {
            k: {"momentum_buffer": torch.zeros_like(v["momentum_buffer"])}
            for k, v in found["state"].items()
        }
        return {**found, "state": zero}

    order = []
    before = optimizer.register_load_state_dict_pre_hook(forget)
    optimizer.register_load_state_dict_pre_hook(lambda *_: order.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda o: order.append(len(o.state)))
    optimizer.load_state_dict(state)
    assert order == ["before", 4]
    assert all(not s["momentum_buffer"].any() for s in optimizer.state.values())
    before.remove()

    def double(found: torch.optim.Optimizer) -> None:
        for each in found.state.values():
            each["momentum_buffer"].mul_(2)

    optimizer.register_load_state_dict_post_hook(double)
    expected = state["state"][0]["momentum_buffer"] * 2
    optimizer.load_state_dict(state)
    found = optimizer.state[model.body.weight]["momentum_buffer"]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    assert len(optimizer._optimizer_load_state_dict_post_hooks) == 2


def test_an_invalid_state_from_a_hook_is_refused() -> None:
    model, state = _saved()
    optimizer = _resumed(model)

    def spoil(_: Any, found: dict[str, Any]) -> None:
        found["state"] = {**found["state"], 1: {"momentum_buffer": torch.zeros(2, 2)}}

    optimizer.register_load_state_dict_pre_hook(spoil)
    with pytest.raises(ValueError, match=r"momentum_buffer of head\.weight has shape \(2, 2\)"):
        optimizer.load_state_dict(state)
    assert not optimizer.state
    assert [g["lr"] for g in optimizer.param_groups] == [0.3, 0.3]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    assert not optimizer._optimizer_load_state_dict_post_hooks


# --- what is in a state ---------------------------------------------------------------------------


@OPTIMIZERS
@pytest.mark.parametrize("plain", [False, True])
def test_entries_of_a_wrapper_are_kept(make: Any, plain: bool) -> None:
    model = _model()
    kind = getattr(torch.optim, make.__name__.removeprefix("Riemannian")) if plain else make
    optimizer = kind(model.named_parameters(), lr=0.01, **_options(make))
    _train(model, optimizer, 1, seed=0)
    mn.project_(model)
    for p in model.parameters():
        optimizer.state[p]["slow_buffer"] = p.detach().clone()
    optimizer.state["shared"] = {"count": 3}
    again = make(mn.param_groups(model), lr=0.01, **_options(make))
    again.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        assert torch.equal(again.state[p]["slow_buffer"], optimizer.state[p]["slow_buffer"])
        assert again.state[p].keys() == optimizer.state[p].keys()
    assert again.state["shared"] == {"count": 3}


def _put(state: dict[str, Any], key: str, value: Any) -> None:
    state["state"][0][key] = value


JUNK: dict[str, tuple[Any, str]] = {
    "NaN": (lambda s, k: _put(s, k, torch.full((8, 6), torch.nan)), r"48 entries that are NaN"),
    "infinite": (lambda s, k: _put(s, k, torch.full((8, 6), torch.inf)), r"48 entries that are"),
    "list": (lambda s, k: _put(s, k, [[0.0] * 6] * 8), "must be a tensor, not a list"),
    "int": (lambda s, k: _put(s, k, torch.zeros(8, 6, dtype=torch.int64)), "type torch.int64"),
    "no dict": (lambda s, _: s["state"].update({0: torch.zeros(8, 6)}), "is no dictionary"),
    "lr": (lambda s, _: s["param_groups"][0].update(lr="0.1"), "lr must be a number"),
    "spec": (lambda s, _: s["param_groups"][0].update(manifolds=["x", "y"]), "the entry 'x'"),
    "empty spec": (lambda s, _: s["param_groups"][0].update(manifolds=[{}, {}]), "the entry {}"),
    "no specs": (lambda s, _: s["param_groups"][0].update(manifolds=7), "manifolds of group 0"),
    "names": (lambda s, _: s["param_groups"][1].update(param_names=[1, 2]), "param_names of grou"),
    "no groups": (lambda s, _: s.pop("param_groups"), "'state' and 'param_groups'"),
}


@OPTIMIZERS
@pytest.mark.parametrize(("spoil", "words"), JUNK.values(), ids=JUNK)
def test_a_state_that_could_not_be_used_is_refused(make: Any, spoil: Any, words: str) -> None:
    model = _model()
    optimizer = make(mn.param_groups(model), lr=0.01, **_options(make))
    _train(model, optimizer, 1, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    key = "momentum_buffer" if make is mn.RiemannianSGD else "exp_avg"
    spoil(state, key)
    again = make(mn.param_groups(model), lr=0.3, **_options(make))
    with pytest.raises((ValueError, TypeError), match=words):
        again.load_state_dict(state)
    assert not again.state
    assert again.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("lost", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_state_that_lacks_an_entry_is_refused(number: int, lost: str) -> None:
    model = _model()
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=0.01)
    _train(model, optimizer, 1, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    del state["state"][number][lost]
    with pytest.raises(ValueError, match=rf"the state of body\.\w+ lacks {lost}$"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("step", ["3", -1, float("nan"), torch.tensor([1, 2]), None])
def test_a_step_that_is_no_count_is_refused(step: Any) -> None:
    model = _model()
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=0.01)
    _train(model, optimizer, 1, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = step
    with pytest.raises(ValueError, match=r"step of body\.weight must be a number"):
        optimizer.load_state_dict(state)


def test_states_of_undeclared_parameters_are_not_checked() -> None:
    model, state = _saved()
    state["state"][2]["momentum_buffer"] = torch.full((8,), torch.nan)
    state["state"][3]["momentum_buffer"] = torch.ones(3, dtype=torch.int64)
    optimizer = _resumed(model)
    optimizer.load_state_dict(state)
    assert optimizer.state[model.body.bias]["momentum_buffer"].isnan().all()
    assert optimizer.state[model.head.bias]["momentum_buffer"].dtype == torch.float32
