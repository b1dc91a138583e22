"""Weights, gradients and state that change their form in memory between steps.

Each state × form × path either goes on as the same training in one form does, or is refused by name
before anything has moved. What the kernel would read wrongly it must never be given.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import apart
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim import memory

PATHS: dict[str, dict[str, Any]] = {
    "specification": {"foreach": False},
    "few passes": {},
    "kernel": {"fused": True},
}
MANIFOLDS = [mn.Oblique(), mn.Oblique(1, retraction="geodesic"), mn.ScaledEuclidean(1), None]
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "adam": (mn.RiemannianAdam, {"amsgrad": True}),
}
SHAPE = (6, 4, 3, 3)

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


def _with_holes(x: Tensor) -> Tensor:
    """The same numbers in memory with holes between them."""
    return x.repeat_interleave(2, -1)[..., ::2]


def _last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _reversed(x: Tensor) -> Tensor:
    """The same numbers with the slowest dimension in memory the fastest."""
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": _last,
    "reversed": _reversed,
    "with holes": _with_holes,
    "double": Tensor.double,
}


class Training:
    """A weight with its optimizer, and gradients that are the same in every run."""

    def __init__(
        self,
        manifold: mn.Manifold | None,
        algorithm: str,
        path: dict[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        source = torch.Generator().manual_seed(0)
        x = torch.randn(SHAPE, generator=source, dtype=torch.float64)
        if manifold is not None:
            x = manifold.projx(x)
        self.module = nn.Module()
        self.module.weight = nn.Parameter(x.to(dtype))
        if manifold is not None:
            mn.declare(self.module, "weight", manifold)
        make, options = ALGORITHMS[algorithm]
        self.optimizer = make(self.module.named_parameters(), lr=0.05, **options, **path)
        self.source = source

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.weight]

    def step(self, count: int = 1, form: Callable[[Tensor], Tensor] = lambda g: g) -> Training:
        for _ in range(count):
            g = torch.randn(SHAPE, generator=self.source, dtype=torch.float64)
            self.weight.grad = form((0.3 * g).to(self.weight.dtype))
            self.optimizer.step()
        return self


def _off(one: Training, other: Training, manifold: mn.Manifold | None) -> float:
    a, b = one.weight.detach().double(), other.weight.detach().double()
    return float((a - b).abs().max()) if manifold is None else apart(a, b, manifold.dim)


@each_path
@each_algorithm
@each_manifold
@pytest.mark.parametrize("form", FORMS)
def test_state_in_another_form(
    manifold: mn.Manifold | None, algorithm: str, form: str, path: dict[str, Any]
) -> None:
    plain = Training(manifold, algorithm, path).step(6)
    run = Training(manifold, algorithm, path).step(3)
    for key, value in run.state.items():
        if isinstance(value, Tensor) and value.ndim:
            run.state[key] = FORMS[form](value)
    run.step(3)
    assert _off(run, plain, manifold) < 1e-5


@each_path
@each_algorithm
@each_manifold
@pytest.mark.parametrize("form", ["channels_last", "reversed", "with holes"])
def test_gradients_in_another_form(
    manifold: mn.Manifold | None, algorithm: str, form: str, path: dict[str, Any]
) -> None:
    plain = Training(manifold, algorithm, path).step(4)
    run = Training(manifold, algorithm, path).step(1).step(3, FORMS[form])
    assert _off(run, plain, manifold) < 1e-5


@each_path
@each_algorithm
@each_manifold
@pytest.mark.parametrize("form", ["channels_last", "reversed", "with holes"])
def test_weights_in_another_form(
    manifold: mn.Manifold | None, algorithm: str, form: str, path: dict[str, Any]
) -> None:
    """As `.to(memory_format=…)` in mid-training does it."""
    plain = Training(manifold, algorithm, path).step(6)
    run = Training(manifold, algorithm, path).step(3)
    memory_around = run.weight.data = FORMS[form](run.weight.data)
    assert run.step(3).weight.data_ptr() == memory_around.data_ptr()
    assert _off(run, plain, manifold) < 1e-5


def test_torchs_fused_step_leaves_memory_between_strides() -> None:
    """Of an undeclared weight with holes in its memory; torch's own writes into them."""
    run = Training(None, "momentum", {"fused": True})
    around = torch.full((*SHAPE[:-1], 2 * SHAPE[-1]), 7.0)
    around[..., ::2] = run.weight.data
    run.weight.data = around[..., ::2]
    run.step(3)
    assert bool((around[..., 1::2] == 7).all())


@each_path
@each_algorithm
@pytest.mark.parametrize("manifold", MANIFOLDS[:3], ids=str)
def test_a_model_converted_to_double(
    manifold: mn.Manifold, algorithm: str, path: dict[str, Any]
) -> None:
    run = Training(manifold, algorithm, path).step(3)
    run.module.double()
    run.weight.grad = None
    run.step(3)
    assert all(v.dtype == torch.float64 for k, v in run.state.items() if k != "step")
    assert mn.violations(run.module)["weight"] < 1e-12
    plain = Training(manifold, algorithm, {"foreach": False}, torch.float64).step(6)
    assert _off(run, plain, manifold) < 1e-4


@each_path
@each_algorithm
@pytest.mark.parametrize("manifold", MANIFOLDS[:3], ids=str)
def test_moments_rounded_to_bfloat16(
    manifold: mn.Manifold, algorithm: str, path: dict[str, Any]
) -> None:
    """Moments kept in bfloat16 between steps count as what they say."""
    ends = []
    for way in (path, {"foreach": False}):
        run = Training(manifold, algorithm, way)
        for _ in range(4):
            run.step()
            for key in ("momentum_buffer", "exp_avg"):
                if key in run.state:
                    run.state[key] = run.state[key].bfloat16()
        ends.append(run)
    assert _off(*ends, manifold) < 1e-5


@each_path
@each_algorithm
@each_manifold
@pytest.mark.parametrize("rows", [4, 9], ids=["pruned", "grown"])
def test_a_resized_weight_is_refused_by_name(
    manifold: mn.Manifold | None, algorithm: str, rows: int, path: dict[str, Any]
) -> None:
    run = Training(manifold, algorithm, path).step(2)
    weight = run.weight
    x = torch.randn(9, *SHAPE[1:])
    weight.grad = None
    # Pruned, it is a view of the same memory.
    weight.data = weight.data[:rows] if rows < SHAPE[0] else x
    if manifold is not None:
        mn.project_(run.module)
    weight.grad = torch.randn_like(weight)
    before = copy.deepcopy((weight.detach(), run.state))
    with pytest.raises(RuntimeError, match=r"weight.*del optimizer.state") as caught:
        run.optimizer.step()
    assert str(tuple(weight.shape)) in str(caught.value) or "needs" in str(caught.value)
    _unchanged(before, (weight.detach(), run.state))
    del run.optimizer.state[weight]
    run.optimizer.step()
    assert not torch.equal(weight, before[0])


def _unchanged(before: Any, now: Any) -> None:
    assert torch.equal(before[0], now[0])
    assert before[1].keys() == now[1].keys()
    for key, value in before[1].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(now[1][key])), key


@each_path
@pytest.mark.parametrize("algorithm", ["momentum", "adam"])
@pytest.mark.parametrize(
    "wrong",
    [
        "a list",
        "a gradient of the old size",
        "a sparse neighbour",
        "no second moment",
        "a rate from nowhere",
        "decay",
        "memory that was freed",
        "no dampening",
        "overlapping numbers",
        "capturable on a processor",
    ],
)
def test_a_step_that_raises_changes_nothing(
    wrong: str, algorithm: str, path: dict[str, Any]
) -> None:
    """Whatever is wrong is in the last group; the first one must not have moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 5), nn.Embedding(7, 3))
    mn.declare(model[0], "weight", mn.Oblique(), project=True)
    mn.declare(model[1], "weight", mn.ScaledEuclidean())
    make, options = ALGORITHMS[algorithm]
    groups = [
        {"params": [("0.weight", model[0].weight), ("0.bias", model[0].bias)]},
        {"params": [("1.weight", model[1].weight)]},
        {"params": [("2.weight", model[2].weight)]},
    ]
    optimizer = make(groups, lr=0.1, **options, **path)

    def gradients() -> None:
        for p in model.parameters():
            p.grad = torch.randn_like(p)

    for _ in range(2):
        gradients()
        optimizer.step()
    gradients()
    weight, group = model[1].weight, optimizer.param_groups[1]
    state = optimizer.state[weight]
    moment = "momentum_buffer" if algorithm == "momentum" else "exp_avg"
    if wrong == "a list":
        state[moment] = state[moment].tolist()
    elif wrong == "a gradient of the old size":
        weight.data = mn.ScaledEuclidean().random(6, 4)
    elif wrong == "a sparse neighbour":
        if algorithm == "momentum" and "fused" not in path:
            pytest.skip("torch's SGD takes it")
        table = model[2].weight
        table.grad = table.grad.to_sparse()
    elif wrong == "no second moment":
        if algorithm == "momentum":
            pytest.skip("SGD has none")
        del state["exp_avg_sq"]
    elif wrong == "a rate from nowhere":
        group["lr"] = None
    elif wrong == "decay":
        group["weight_decay"] = 0.1
    elif wrong == "memory that was freed":
        weight.grad.untyped_storage().resize_(0)
    elif wrong == "no dampening":
        if algorithm == "adam":
            pytest.skip("Adam has none")
        group["dampening"] = "x"
    elif wrong == "overlapping numbers":
        weight.data = weight.data[:1].expand(weight.shape)
    elif wrong == "capturable on a processor":
        if algorithm == "momentum" or "fused" in path:
            pytest.skip("only Adam's plain path refuses it")
        optimizer.param_groups[2]["capturable"] = True
    saved = {name: p.detach().clone() for name, p in model.named_parameters() if name != "1.weight"}
    states = copy.deepcopy({k: optimizer.state[p] for k, p in model.named_parameters()})
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        optimizer.step()
    for name, p in model.named_parameters():
        if name in saved:
            assert torch.equal(p, saved[name]), name
        _unchanged((p, states[name]), (p, optimizer.state[p]))


def _pair(path: dict[str, Any], declared: bool = True) -> tuple[list[nn.Parameter], Any, nn.Module]:
    """Two weights of one form."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 3, bias=False))
    for layer in model if declared else ():
        mn.declare(layer, "weight", mn.Oblique(1), project=True)
    groups = [{"params": [layer.weight], **path} for layer in model]
    return list(model.parameters()), mn.RiemannianSGD(groups, lr=0.1, momentum=0.9), model


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_each_weight_has_its_own_form(path: dict[str, Any], declared: bool) -> None:
    """Forms of one weight say nothing of another, nor of itself in other memory."""
    ends = []
    for way, forms in ((path, True), ({"foreach": False}, False)):
        weights, optimizer, _ = _pair(way, declared)
        source = torch.Generator().manual_seed(1)
        for step, who in enumerate([(0, 1), (0,), (1,), (0, 1), (1,), (0,), (0,), (1,)]):
            if forms and step == 2:
                weights[1].data = _last(weights[1].data)
            if forms and step == 4:
                weights[1].data = _with_holes(weights[1].data)
            if forms and step == 7:
                weights[1].data = weights[1].data.contiguous()
            for i, p in enumerate(weights):
                g = torch.randn(SHAPE, generator=source)
                form = _reversed if forms and step in (1, 2, 5) else Tensor.clone
                p.grad = form(g) if i in who else None
            optimizer.step()
        ends.append([p.detach().contiguous() for p in weights])
    for one, other in zip(*ends, strict=True):
        assert float((one - other).abs().max()) < 1e-5


def test_switching_paths_repeats_the_checks() -> None:
    ends = []
    for switched in (False, True):
        weights, optimizer, _ = _pair({})
        source = torch.Generator().manual_seed(1)
        for step in range(3):
            for group in optimizer.param_groups:
                group["fused"] = True if switched and step else None
            for p in weights:
                p.grad = _reversed(torch.randn(SHAPE, generator=source))
            optimizer.step()
        ends.append([p.detach() for p in weights])
    for one, other in zip(*ends, strict=True):
        assert float((one - other).abs().max()) < 1e-5


def test_a_warning_turned_error_is_raised_after_the_step() -> None:
    weights, optimizer, _ = _pair({})
    for step in range(2):
        if step:
            weights[0].data[:, 2] = 0
        before = [p.detach().clone() for p in weights]
        for p in weights:
            p.grad = torch.randn(SHAPE)
        if not step:
            optimizer.step()
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(mn.optim.ZeroSliceWarning):
                optimizer.step()
    assert not any(torch.equal(p, x) for p, x in zip(weights, before, strict=True))


def test_without_momentum_there_is_no_state() -> None:
    for path in PATHS.values():
        layer = nn.Linear(3, 4)
        mn.declare(layer, "weight", mn.Oblique(), project=True)
        optimizer = mn.RiemannianSGD(layer.parameters(), lr=0.1, **path)
        for _ in range(2):
            for p in layer.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        assert optimizer.state_dict()["state"] == {}


def test_a_model_with_undeclared_weights_converted_to_double() -> None:
    for path in PATHS.values():
        layer = nn.Linear(3, 4)
        mn.declare(layer, "weight", mn.Oblique(), project=True)
        optimizer = mn.RiemannianAdam(layer.parameters(), lr=0.1, **path)
        for double in (False, True):
            if double:
                layer.double()
            for p in layer.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        assert float(optimizer.state[layer.bias]["step"]) == 2


@each_path
def test_amsgrad_may_be_switched_on_later(path: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    mn.declare(layer, "weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianAdam(mn.param_groups(layer, **path), lr=0.1)
    for amsgrad in (False, True, True):
        for group in optimizer.param_groups:
            group["amsgrad"] = amsgrad
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in layer.parameters():
        state = optimizer.state[p]
        assert bool((state["max_exp_avg_sq"] >= state["exp_avg_sq"]).all())


@each_path
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("count", [3, torch.tensor(3), torch.tensor(3.0, dtype=torch.bfloat16)])
@pytest.mark.parametrize("loaded", [True, False])
def test_step_counts_of_other_versions(
    count: Any, declared: bool, loaded: bool, path: dict[str, Any]
) -> None:
    """A plain number is what torch before 1.12 wrote, and geoopt's Adam writes."""
    ends = []
    for wrong in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(5, 4, bias=False)
        if declared:
            mn.declare(layer, "weight", mn.Oblique(), project=True)
        optimizer = mn.RiemannianAdam(layer.parameters(), lr=0.1, **path)
        for i in range(6):
            if i == 3 and wrong:
                if loaded:
                    state = optimizer.state_dict()
                    state["state"][0]["step"] = count
                    optimizer.load_state_dict(state)
                else:
                    optimizer.state[layer.weight]["step"] = count
            layer.weight.grad = torch.randn(4, 5)
            optimizer.step()
        assert float(optimizer.state[layer.weight]["step"]) == 6
        ends.append(layer.weight.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
@each_path
def test_steps_are_counted_in_full_under_any_default_type(
    default: torch.dtype, declared: bool, path: dict[str, Any]
) -> None:
    before = torch.get_default_dtype()
    layer = nn.Linear(3, 2, bias=False)
    if declared:
        mn.declare(layer, "weight", mn.Oblique(), project=True)
    torch.set_default_dtype(default)
    try:
        optimizer = mn.RiemannianAdam(layer.parameters(), lr=1e-3, **path)
        layer.weight.grad = torch.ones(2, 3, dtype=torch.float32)
        for _ in range(300):
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert float(optimizer.state[layer.weight]["step"]) == 300


@pytest.mark.parametrize("guards", [True, False])
def test_seen_forms_differ_by_class_type_shape_order_and_device(
    guards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not guards:
        monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", None)
    x = torch.randn(2, 3, 4, 5)
    seen = memory.Seen([x, x])
    y = torch.randn(2, 3, 4, 5)
    assert seen.addresses([y, x]) == [y.data_ptr(), x.data_ptr()]
    for other in (
        nn.Parameter(x),
        x.double(),
        x[:1],
        x.to(memory_format=torch.channels_last),
        x.to("meta"),
        x.to_sparse(),
        None,
        2.0,
    ):
        assert seen.addresses([x, other]) is None, other
    assert seen.addresses([x]) is None
    assert seen.addresses([x, x, x]) is None


def test_tensor_subclasses_take_the_reference_step() -> None:
    """Of a subclass (a shard, say) an address says nothing."""

    class Wrapped(Tensor):
        pass

    ends = []
    for wrap in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(5, 4, bias=False)
        mn.declare(layer, "weight", mn.Oblique(), project=True)
        if wrap:
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Wrapped))
        optimizer = mn.RiemannianSGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
        for _ in range(3):
            layer.weight.grad = torch.randn(4, 5)
            optimizer.step()
        ends.append(layer.weight.detach().as_subclass(Tensor))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-6


@each_path
@each_algorithm
def test_no_state_is_converted_where_a_gradient_is_not_finite(
    algorithm: str, path: dict[str, Any]
) -> None:
    run = Training(MANIFOLDS[0], algorithm, {**path, "error_if_nonfinite": True}).step(3)
    key = "momentum_buffer" if algorithm == "momentum" else "exp_avg"
    value = run.state[key] = run.state[key].double()
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        run.step(1, lambda g: g / 0)
    assert run.state[key] is value
