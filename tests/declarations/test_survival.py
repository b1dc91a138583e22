"""A declaration is not lost: after each event the manifolds and the training are as before.

Each event gets a network that has been trained a little; its twin was left alone. Afterwards both
must have the same manifolds and, trained on with new optimizers, the same losses.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import refused
from declared_net import (
    HANDED,
    MANIFOLDS,
    Handed,
    Net,
    batch,
    declared,
    fit,
    optimizer_of,
    tied,
    train,
    values,
)
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

import manifoldnet as mn
from manifoldnet.geometry import NotOnManifoldError

EVERY_MANIFOLD = pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
EVERY_WAY = pytest.mark.parametrize("way", ["declared", "assigned"])
EVERY_HANDED = pytest.mark.parametrize("handed", HANDED.values(), ids=HANDED)

Event = Callable[[nn.Module], nn.Module]


@contextlib.contextmanager
def conversion(*, swap: bool = False, overwrite: bool = False) -> Iterator[None]:
    """torch's flags for what `.to` and `load_state_dict` do with a parameter."""
    flags = torch.__future__
    before = (
        flags.get_swap_module_params_on_conversion(),
        flags.get_overwrite_module_params_on_conversion(),
    )
    flags.set_swap_module_params_on_conversion(swap)
    flags.set_overwrite_module_params_on_conversion(overwrite)
    try:
        yield
    finally:
        flags.set_swap_module_params_on_conversion(before[0])
        flags.set_overwrite_module_params_on_conversion(before[1])


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def safetensors_state(model: nn.Module) -> dict[str, torch.Tensor]:
    from safetensors.torch import load, save

    return load(save(model.state_dict()))


def wiped(model: nn.Module) -> nn.Module:
    """A copy with the same declarations and other values."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3.0)
    return model


def loaded(
    state: Callable[[nn.Module], dict[str, torch.Tensor]], *, assign: bool, ours: bool = False
) -> Event:
    def event(model: nn.Module) -> nn.Module:
        fresh = wiped(model)
        if ours:
            mn.load_state_dict(fresh, state(model), assign=assign)
        else:
            fresh.load_state_dict(state(model), assign=assign)
        return fresh

    return event


def to_and_back(*, swap: bool = False, overwrite: bool = False) -> Event:
    def event(model: nn.Module) -> nn.Module:
        with conversion(swap=swap, overwrite=overwrite):
            model.double()
            assert model.hidden.weight.dtype == torch.float64
            assert list(mn.manifolds(model)) == ["hidden.weight"]
            return model.float()

    return event


def through_meta(*, swap: bool = False, overwrite: bool = False) -> Event:
    def event(model: nn.Module) -> nn.Module:
        state = values(model)
        with conversion(swap=swap, overwrite=overwrite):
            model.to("meta")
            assert list(mn.manifolds(model)) == ["hidden.weight"]
            mn.verify(model)  # no values, nothing to complain of
            model.to_empty(device="cpu")
            mn.load_state_dict(model, state)
        return model

    return event


def loaded_under_swap(model: nn.Module) -> nn.Module:
    with conversion(swap=True):
        return loaded(saved_state, assign=False)(model)


def averaged(model: nn.Module) -> nn.Module:
    average = AveragedModel(model)
    average.update_parameters(model)  # of one model: its own weights
    return average


def called_by_functional_call(model: nn.Module) -> nn.Module:
    parameters = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    out = torch.func.functional_call(model, parameters, batch(model.head.weight)[0])
    assert not out.any()  # the zeros were used
    return model


def moved_between_parents(model: nn.Module) -> nn.Module:
    first = nn.Module()
    first.inner = model
    second = nn.Module()
    second.inner = first.inner
    del first.inner
    return nn.Sequential(second.inner)


def in_shared_memory(model: nn.Module) -> nn.Module:
    model.share_memory()
    assert model.hidden.weight.is_shared()
    return model


def frozen_and_back(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    assert list(mn.manifolds(model)) == ["hidden.weight"]
    return model.requires_grad_(True)


def parametrized_and_back(model: nn.Module) -> nn.Module:
    parametrize.register_parametrization(model.hidden, "weight", nn.Identity())
    parametrize.remove_parametrizations(model.hidden, "weight")
    return model


def pruned_and_back(model: nn.Module) -> nn.Module:
    prune.identity(model.hidden, "weight")
    prune.remove(model.hidden, "weight")
    return model


def copied_with_its_drift(model: nn.Module) -> nn.Module:
    """Weights that are off the manifold can be copied; then both are put back."""
    point = model.hidden.weight.detach().clone()
    with torch.no_grad():
        model.hidden.weight.add_(1.0)
    drifted = model.hidden.weight.detach().clone()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(copied.hidden.weight, drifted)
    with torch.no_grad():
        copied.hidden.weight.copy_(point)
    return copied


EVENTS: dict[str, Event] = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a deepcopy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "deepcopy with drift": copied_with_its_drift,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle protocol 2": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save of the module": saved_whole,
    "AveragedModel": averaged,
    "load_state_dict": loaded(lambda model: model.state_dict(), assign=False),
    "load_state_dict assign": loaded(lambda model: model.state_dict(), assign=True),
    "our load_state_dict": loaded(values, assign=False, ours=True),
    "our load_state_dict assign": loaded(values, assign=True, ours=True),
    "load_state_dict with swap": loaded_under_swap,
    "weights_only": loaded(saved_state, assign=False),
    "weights_only assign": loaded(saved_state, assign=True),
    "safetensors": loaded(safetensors_state, assign=False),
    "safetensors assign": loaded(safetensors_state, assign=True),
    "to float64 and back": to_and_back(),
    "to with swap": to_and_back(swap=True),
    "to with overwrite": to_and_back(overwrite=True),
    "meta": through_meta(),
    "meta with swap": through_meta(swap=True),
    "meta with overwrite": through_meta(overwrite=True),
    "functional_call": called_by_functional_call,
    "in a Sequential": lambda model: nn.Sequential(model),
    "moved between parents": moved_between_parents,
    "share_memory": in_shared_memory,
    "frozen and back": frozen_and_back,
    "parametrized and back": parametrized_and_back,
    "pruned and back": pruned_and_back,
}


@functools.cache
def left_alone(manifold: mn.Manifold, way: str, handed: Handed) -> tuple[list[float], list[float]]:
    """The losses of a network before and after the time of an event that did not happen."""
    twin = declared(manifold, way)
    return train(twin, handed), train(twin, handed)


def assert_same_declarations(model: nn.Module, manifold: mn.Manifold) -> None:
    """Exactly the hidden weight is declared, whatever wraps the network."""
    found = mn.manifolds(model)
    assert [name.split(".")[-2:] for name in found] == [["hidden", "weight"]]
    assert list(found.values()) == [manifold]


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_after_an_event_all_is_as_before(event, manifold, way, handed) -> None:
    before, onward = left_alone(manifold, way, handed)
    model = declared(manifold, way)
    assert train(model, handed) == before
    after = event(model)
    assert_same_declarations(after, manifold)
    assert train(after, handed) == onward
    assert max(mn.violations(after).values()) < 1e-5


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_losses_differ_from_those_in_flat_space(manifold, way, handed) -> None:
    """Without this, the comparison above could not fail."""
    model, flat = declared(manifold, way), declared(manifold, way)
    mn.undeclare(flat, "hidden.weight")
    on_manifold, in_flat_space = train(model, handed), train(flat, handed)
    assert on_manifold[0] == in_flat_space[0]
    assert abs(on_manifold[-1] - in_flat_space[-1]) > 1e-4


@EVERY_MANIFOLD
def test_all_ways_to_declare_and_to_hand_over_train_alike(manifold) -> None:
    losses = [
        train(declared(manifold, way), handed)
        for way in ("declared", "assigned")
        for handed in HANDED.values()
    ]
    assert all(each == losses[0] for each in losses)


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_model_and_optimizer_resume_from_a_checkpoint(manifold, way, handed, tmp_path) -> None:
    model = declared(manifold, way)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    onward = fit(model, optimizer)

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = declared(manifold, way, seed=2)
    mn.load_state_dict(again, state["model"])
    optimizer = optimizer_of(again, handed)
    optimizer.load_state_dict(state["optimizer"])
    assert fit(again, optimizer) == onward


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_model_and_optimizer_are_copied_together(manifold, way, handed) -> None:
    model = declared(manifold, way)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer)
    copied = copy.deepcopy((model, optimizer))
    pickled = pickle.loads(pickle.dumps((model, optimizer)))
    onward = fit(model, optimizer)
    assert fit(*copied) == onward
    assert fit(*pickled) == onward


@EVERY_WAY
@EVERY_MANIFOLD
def test_training_goes_on_with_the_same_optimizer_after_a_conversion(manifold, way) -> None:
    model, twin = declared(manifold, way), declared(manifold, way)
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    assert fit(model, optimizer) == fit(twin, other)
    model.double().float().requires_grad_(False).requires_grad_(True)
    assert fit(model, optimizer) == fit(twin, other)


@EVERY_WAY
def test_training_goes_on_with_the_same_optimizer_after_a_swap(way) -> None:
    model, twin = declared(mn.Oblique(), way), declared(mn.Oblique(), way)
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    assert fit(model, optimizer) == fit(twin, other)
    optimizer.zero_grad()
    with conversion(swap=True):
        model.double().float()
    assert fit(model, optimizer) == fit(twin, other)


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, manifold, way, handed) -> None:
    model = declared(manifold, way).to(dtype)
    assert_same_declarations(model, manifold)
    mn.verify(model)
    losses = train(model, handed)
    assert losses[-1] < losses[0]
    assert model.hidden.weight.dtype == dtype
    mn.verify(model)
    model.float()  # rounded to the half type: near the manifold, not on it
    assert_same_declarations(model, manifold)
    mn.project_(model)
    mn.verify(model)
    assert train(model, handed)[-1] < losses[0]


@EVERY_WAY
@EVERY_MANIFOLD
def test_averages_are_off_the_manifold_until_projected(manifold, way) -> None:
    model = declared(manifold, way)
    average = AveragedModel(model)
    optimizer = optimizer_of(model)
    for _ in range(5):
        fit(model, optimizer, steps=3)
        average.update_parameters(model)
    assert_same_declarations(average, manifold)
    if not isinstance(manifold, mn.ScaledEuclidean):  # every mean of its points is a point
        assert mn.violations(average)["module.hidden.weight"] > 1e-3
        with pytest.raises(ValueError, match=r"module\.hidden\.weight"):
            mn.verify(average)
    copied = copy.deepcopy(average)
    mn.project_(average)
    mn.verify(average)
    mn.verify(model)
    assert mn.violations(copied) != mn.violations(average) or manifold == mn.ScaledEuclidean(dim=1)
    assert train(average)[-1] < 1.0


def test_an_average_that_was_not_projected_is_not_trained() -> None:
    model = declared(mn.Oblique())
    average = AveragedModel(model)
    with torch.no_grad():
        average.module.hidden.weight.mul_(0.9)
    for handed in HANDED.values():
        with refused(NotOnManifoldError, amounts=(pytest.approx(0.1, rel=1e-3),) * 8):
            optimizer_of(average, handed)


# --- another process ------------------------------------------------------------------------------

READER = """
import json, sys, torch
from torch.nn.modules import module
import manifoldnet as mn
hooks = list(module._global_parameter_registration_hooks)
models = torch.load(sys.argv[1], weights_only=False)
from declared_net import HANDED, train
print(json.dumps({"hooks at import": hooks, "models": [
    [mn.manifolds(m)["hidden.weight"].spec(), train(m, HANDED[way]), type(m.hidden.weight).__name__]
    for m, way in models
]}))
"""


@pytest.fixture(scope="module")
def fresh_process(fresh, tmp_path_factory) -> tuple[dict[str, Any], list[Any]]:
    """The findings of another process in saved modules, and the expected ones."""
    models, expected = [], []
    for manifold in MANIFOLDS.values():
        for way in ("declared", "assigned"):
            for name, handed in HANDED.items():
                model = declared(manifold, way)
                models.append((copy.deepcopy(model), name))
                kind = type(model.hidden.weight).__name__
                expected.append([manifold.spec(), train(model, handed), kind])
    file = tmp_path_factory.mktemp("saved") / "models.pt"
    torch.save(models, file)
    done = fresh(READER, str(file), path=(str(Path(__file__).parent),))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), expected


@pytest.mark.thorough
def test_a_saved_module_is_read_in_a_fresh_process(fresh_process) -> None:
    found, expected = fresh_process
    for (spec, losses, kind), (spec_, losses_, kind_) in zip(
        found["models"], expected, strict=True
    ):
        assert (spec, kind) == (spec_, kind_)
        assert losses == pytest.approx(losses_, rel=1e-5)


@pytest.mark.thorough
def test_importing_the_library_changes_nothing_in_torch(fresh_process) -> None:
    assert fresh_process[0]["hooks at import"] == []


# --- torch.func and torch.compile -----------------------------------------------------------------


@EVERY_WAY
@EVERY_MANIFOLD
def test_gradients_through_functional_call(manifold, way) -> None:
    model = declared(manifold, way)
    x, y = batch(model.head.weight)
    parameters = dict(model.named_parameters())

    def loss_of(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, given, x), y)

    grads = torch.func.grad(loss_of)({name: p.detach() for name, p in parameters.items()})
    nn.functional.cross_entropy(model(x), y).backward()
    for name, p in parameters.items():
        torch.testing.assert_close(grads[name], p.grad)
    assert_same_declarations(model, manifold)
    assert model.hidden.weight is parameters["hidden.weight"]
    mn.verify(model)


@EVERY_WAY
@pytest.mark.parametrize("manifold", [MANIFOLDS["oblique"], MANIFOLDS["stiefel"]])
def test_a_compiled_model(manifold, way) -> None:
    torch._dynamo.reset()
    model, twin = declared(manifold, way), declared(manifold, way)
    compiled = torch.compile(model, backend="aot_eager")
    assert list(mn.manifolds(compiled)) == ["_orig_mod.hidden.weight"]
    for handed in HANDED.values():
        assert train(compiled, handed) == pytest.approx(train(twin, handed), rel=1e-5)
    assert_same_declarations(compiled, manifold)
    assert mn.manifolds(model) == {"hidden.weight": manifold}
    assert max(mn.violations(compiled).values()) < 1e-5


def test_declaring_through_a_compiled_model() -> None:
    compiled = torch.compile(Net(), backend="aot_eager")
    mn.declare(compiled, "hidden.weight", mn.Oblique(), project=True)
    assert mn.manifolds(compiled._orig_mod) == {"hidden.weight": mn.Oblique()}


def test_a_traced_model_keeps_parameters_of_its_root() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(mn.Oblique().random(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    model = Root()
    mn.declare(model, "weight", mn.Oblique())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.fx.symbolic_trace(model)
    del model
    assert mn.manifolds(traced) == {"weight": mn.Oblique()}
    assert mn.manifolds(copy.deepcopy(traced)) == {"weight": mn.Oblique()}


# --- weight tying ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_one_declaration_for_a_tied_weight(name) -> None:
    layers = tied(name)
    assert mn.manifolds(layers) == {"0.weight": mn.Oblique()}
    for copied in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert mn.manifolds(copied) == {"0.weight": mn.Oblique()}
        assert copied[0].weight is copied[1].weight
    assert [len(g["params"]) for g in mn.param_groups(layers)] == [1, 2]


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_each_layer_of_a_tie_keeps_the_declaration_alone(name) -> None:
    layers = tied(name)
    for layer in layers:
        assert mn.manifolds(copy.deepcopy(layer)) == {"weight": mn.Oblique()}
    kept = layers[1]
    del layers
    assert mn.manifolds(kept) == {"weight": mn.Oblique()}


@EVERY_WAY
def test_a_tie_after_the_declaration(way) -> None:
    model = declared(mn.Oblique(), way)
    model.second = nn.Linear(5, 8)
    model.second.weight = model.hidden.weight
    copied = copy.deepcopy(model.second)
    assert mn.manifolds(copied) == {"weight": mn.Oblique()}
    del model.hidden
    assert mn.manifolds(model) == {"second.weight": mn.Oblique()}


def test_two_manifolds_for_one_tensor_are_refused_by_both_names() -> None:
    layers = tied(None)
    before = values(layers)

    def rule(name: str, module: nn.Module, parameter: nn.Parameter) -> mn.Manifold | None:
        return {"0.weight": mn.Oblique(), "1.weight": mn.Sphere()}.get(name)

    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight") as error:
        mn.declare_all(layers, rule, project=True)
    assert str(mn.Oblique()) in str(error.value)
    assert str(mn.Sphere()) in str(error.value)
    assert mn.manifolds(layers) == {}
    assert all(torch.equal(layers.state_dict()[k], v) for k, v in before.items())

    mn.declare(layers, "0.weight", mn.Oblique(), project=True)
    with pytest.raises(ValueError, match=r"1\.weight"):
        mn.declare(layers, "1.weight", mn.Sphere(), project=True)
    assert mn.manifolds(layers) == {"0.weight": mn.Oblique()}


def test_tying_weights_of_two_manifolds_is_refused() -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    mn.declare(layers, "0.weight", mn.Oblique(), project=True)
    mn.declare(layers, "1.weight", mn.Sphere(), project=True)
    second = layers[1].weight
    with pytest.raises(ValueError, match="undeclare one"):
        layers[1].weight = layers[0].weight
    assert layers[1].weight is second


def test_silently_tied_weights_are_refused() -> None:
    layers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    mn.declare(layers, "0.weight", mn.Oblique(), project=True)
    mn.declare(layers, "1.weight", mn.Sphere(), project=True)
    layers[1]._parameters["weight"] = layers[0].weight
    for ask in (mn.manifolds, mn.verify, mn.param_groups, mn.project_):
        with pytest.raises(ValueError, match=r"0\.weight and 1\.weight"):
            ask(layers)
    with pytest.raises(ValueError, match="undeclare it"):
        mn.RiemannianSGD(layers.parameters(), lr=0.1)
    mn.undeclare(layers, "0.weight")
    assert mn.manifolds(layers) == {}


# --- what a declaration goes away with ------------------------------------------------------------


@EVERY_WAY
def test_a_replaced_layer_takes_its_declaration_along(way) -> None:
    model = declared(mn.Oblique(), way)
    old, model.hidden = model.hidden, nn.Linear(5, 8)
    assert mn.manifolds(model) == {}
    assert mn.manifolds(old) == {"weight": mn.Oblique()}


@EVERY_WAY
def test_a_new_tensor_under_the_name_is_declared(way) -> None:
    model = declared(mn.Oblique(), way)
    model.hidden.weight = nn.Parameter(torch.randn(8, 5))
    assert mn.manifolds(model) == {"hidden.weight": mn.Oblique()}
    for handed in HANDED.values():
        with refused(NotOnManifoldError, manifold=mn.Oblique(), count=8):
            optimizer_of(model, handed)
    model.hidden.weight = mn.ManifoldParameter(mn.Sphere().random(8, 5), mn.Sphere())
    assert mn.manifolds(model) == {"hidden.weight": mn.Sphere()}


def test_the_layers_of_torch_that_keep_their_weights_in_lists() -> None:
    lstm = nn.LSTM(5, 8)
    mn.declare(lstm, "weight_ih_l0", mn.Oblique(), project=True)
    for after in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm)), lstm.double()):
        assert mn.manifolds(after) == {"weight_ih_l0": mn.Oblique()}
        after(torch.randn(2, 1, 5, dtype=after.weight_ih_l0.dtype))
    listed = nn.ParameterList([torch.randn(4, 3)])
    mn.declare(listed, "0", mn.Oblique(), project=True)
    listed.append(mn.ManifoldParameter(mn.Sphere().random(3, 2), mn.Sphere()))
    assert mn.manifolds(copy.deepcopy(listed)) == {"0": mn.Oblique(), "1": mn.Sphere()}
