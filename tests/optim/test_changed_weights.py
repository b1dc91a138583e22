"""Weights changed by hand between steps, and numbers at the ends of their types, on every path."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import SCALED, SPHERES, apart, few, over, point, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import manifoldnet as mn

PATHS: dict[str, dict[str, Any]] = {
    "specification": {"foreach": False},
    "few passes": {},
    "kernel": {"fused": True},
}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "nesterov": (mn.RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (mn.RiemannianAdam, {}),
    "no eps": (mn.RiemannianAdam, {"eps": 0.0, "amsgrad": True}),
}
CURVED = [
    mn.Oblique(),
    mn.Oblique(1),
    mn.Oblique(radius=0.1, retraction="geodesic"),
    mn.Sphere(2.0),
    mn.ScaledEuclidean(),
    mn.ScaledEuclidean(1, retraction="additive"),
]

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def _layer(manifold: mn.Manifold, x: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(x.clone())
    mn.declare(module, "weight", manifold)
    return module


def _optimizer(module: nn.Module, kind: str, path: dict[str, Any], lr: float = 0.1) -> Any:
    make, options = OPTIMIZERS[kind]
    return make(module.parameters(), lr=lr, **options, **path)


def _step(module: nn.Module, optimizer: Any, g: Tensor) -> None:
    module.weight.grad = g.clone()
    optimizer.step()


def _gradient(manifold: mn.Manifold, x: Tensor, source: torch.Generator) -> Tensor:
    """A gradient whose Riemannian one is about one long in each slice."""
    g = torch.randn(x.shape, generator=source, dtype=torch.float64)
    point = x.detach().double()
    length = manifold.component_inner(point, manifold.egrad2rgrad(point, g)).sqrt()
    return (g / length.nan_to_num(1.0).clamp(min=1e-30)).to(x.dtype)


def _slice(x: Tensor, dim: int | None, index: int) -> Tensor:
    return x if dim is None else x.select(dim, index)


def _zeroed(
    manifold: mn.Manifold, kind: str, path: dict[str, Any], steps: int = 3
) -> tuple[Tensor, dict[str, Any]]:
    """A run whose slice number 2 is set to zero after two steps, then on."""
    source = torch.Generator().manual_seed(10**6)
    module = _layer(manifold, point(manifold, (5, 6), 0))
    optimizer = _optimizer(module, kind, path, lr=0.02)
    for step in range(2 + steps):
        if step == 2:
            with torch.no_grad():
                _slice(module.weight, manifold.dim, 2).zero_()
        _step(module, optimizer, _gradient(manifold, module.weight, source))
    return module.weight.detach(), optimizer.state[module.weight]


@each_optimizer
@pytest.mark.parametrize("manifold", CURVED, ids=str)
def test_a_zero_slice_stays_zero_and_is_named(manifold: mn.Manifold, kind: str) -> None:
    ends = []
    for path in PATHS.values():
        with pytest.warns(mn.optim.ZeroSliceWarning, match=r"parameter 0 .*zero") as caught:
            weight, state = _zeroed(manifold, kind, path)
        assert len(caught) == 1
        ends.append(weight)
        assert not bool(_slice(weight, manifold.dim, 2).any())
        for key, value in state.items():
            assert bool(torch.as_tensor(value).isfinite().all()), key
            if key in ("momentum_buffer", "exp_avg"):
                assert not bool(_slice(value, manifold.dim, 2).any())
    assert bool(ends[0].isfinite().all())
    for other in ends[1:]:
        assert float((ends[0] - other).abs().max()) < 1e-12


def test_the_warning_names_the_slice() -> None:
    with pytest.warns(mn.optim.ZeroSliceWarning, match=r"1 of 5 slices .* row 2"):
        _zeroed(mn.Oblique(), "momentum", {})


@each_path
def test_a_zero_slice_that_is_assigned_values_is_trained(path: dict[str, Any]) -> None:
    manifold = mn.Oblique()
    module = _layer(manifold, point(manifold, (5, 6), 0))
    optimizer = _optimizer(module, "momentum", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mn.optim.ZeroSliceWarning)
        for values in (None, 0.0, 1.0):
            if values is not None:
                with torch.no_grad():
                    module.weight[2] = values
            if values:
                mn.project_(module)
            _step(module, optimizer, torch.randn(5, 6, dtype=torch.float64))
    assert mn.violations(module)["weight"] < 1e-12
    assert not torch.equal(module.weight[2], torch.full((6,), 6**-0.5, dtype=torch.float64))


@over([*SPHERES, *SCALED])
@each_path
@given(kind=st.sampled_from(sorted(OPTIMIZERS)), seed=seeds)
@few
def test_restored_weights_continue_the_same_run(
    manifold: mn.Manifold, shape: tuple[int, ...], path: dict[str, Any], kind: str, seed: int
) -> None:
    """The buffer of the weights that were there is made tangent at those that are."""
    ends = []
    for way in (path, {"foreach": False}):
        source = torch.Generator().manual_seed(seed + 10**6)  # not those that made the point
        module = _layer(manifold, point(manifold, shape, seed))
        optimizer = _optimizer(module, kind, way, lr=0.02)
        best = copy.deepcopy(module.state_dict())
        for step in range(6):
            if step == 4:
                module.load_state_dict(best)
            _step(module, optimizer, _gradient(manifold, module.weight, source))
        assert mn.violations(module)["weight"] < 1e-12
        x, state = module.weight.detach(), optimizer.state[module.weight]
        buffer = state.get("momentum_buffer", state.get("exp_avg"))
        if buffer is not None:
            assert float(manifold.tangent_violation(x, buffer).max()) < 1e-12
        ends.append(x)
    assert apart(*ends, manifold.dim) < 1e-11


@each_path
def test_momentum_can_be_switched_off_and_on(path: dict[str, Any]) -> None:
    manifold, ends = mn.Oblique(retraction="geodesic"), []
    for way in (path, {"foreach": False}):
        source = torch.Generator().manual_seed(10**6)
        module = _layer(manifold, point(manifold, (5, 6), 0))
        optimizer = _optimizer(module, "momentum", way)
        for step in range(9):
            optimizer.param_groups[0]["momentum"] = 0.0 if 3 <= step < 6 else 0.9
            _step(module, optimizer, _gradient(manifold, module.weight, source))
        ends.append(module.weight.detach())
    assert apart(*ends, 0) < 1e-12


@over([*SPHERES, *SCALED])
@each_path
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    seed=seeds,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    begun=st.booleans(),
)
@few
def test_steps_of_length_zero_change_no_bit(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    path: dict[str, Any],
    kind: str,
    seed: int,
    dtype: torch.dtype,
    begun: bool,
) -> None:
    """Distributed checkpoints take such a step to make the state that they then fill."""
    x = point(manifold, shape, seed).to(dtype)
    module = _layer(manifold, x)
    optimizer = _optimizer(module, kind, path)
    if begun:
        source = torch.Generator().manual_seed(seed + 10**6)
        _step(module, optimizer, _gradient(manifold, x, source))
        x = module.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    _step(module, optimizer, torch.zeros(shape, dtype=dtype))
    assert torch.equal(module.weight.detach(), x)


@each_path
@each_optimizer
def test_a_slice_without_gradient_keeps_its_bits(kind: str, path: dict[str, Any]) -> None:
    manifold = mn.Oblique()
    module = _layer(manifold, point(manifold, (5, 6), 0, torch.float32))
    before = module.weight.detach().clone()
    optimizer = _optimizer(module, kind, path)
    for _ in range(3):
        g = torch.randn(5, 6)
        g[3] = 0
        _step(module, optimizer, g)
    assert torch.equal(module.weight[3], before[3])
    assert bool(module.weight.isfinite().all())
    assert not torch.equal(module.weight[2], before[2])


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("size", [1e20, 1e30, 1e150])
@pytest.mark.parametrize("manifold", CURVED[:4], ids=str)
def test_training_continues_after_a_gradient_whose_square_overflows(
    manifold: mn.Manifold, size: float, kind: str, path: dict[str, Any]
) -> None:
    """Training goes on from a point of the manifold."""
    dtype = torch.float64 if size > 1e100 else torch.float32
    module = _layer(manifold, point(manifold, (5, 6), 0, dtype))
    optimizer = _optimizer(module, kind, path)
    _step(module, optimizer, size * torch.randn(5, 6, dtype=dtype))
    for _ in range(3):
        _step(module, optimizer, torch.randn(5, 6, dtype=dtype))
    assert bool(module.weight.isfinite().all())
    assert mn.violations(module)["weight"] < (1e-12 if dtype == torch.float64 else 2e-6)


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("lr", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("length", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("manifold", CURVED[:4], ids=str)
def test_normal_gradients_leave_the_weight_on_the_sphere(
    manifold: mn.Manifold,
    dtype: torch.dtype,
    length: float,
    lr: float,
    kind: str,
    path: dict[str, Any],
) -> None:
    """x′ is brought to its radius as measured: in double precision too algebra would not do."""
    shape = (30, 20)
    module = _layer(manifold, point(manifold, shape, 0, dtype))
    optimizer = _optimizer(module, kind, path, lr)
    for _ in range(3):
        x = module.weight.detach()
        noise = torch.randn(shape, dtype=dtype)
        _step(module, optimizer, length * (x + 1e-9 * noise))
        limit = 1e-14 if dtype == torch.float64 else 2e-6
        assert float(manifold.violation(module.weight.detach()).max()) < limit


@each_path
@pytest.mark.parametrize("manifold", CURVED[:4], ids=str)
@pytest.mark.parametrize("kind", ["momentum", "nesterov"])
def test_a_step_that_nearly_cancels_ends_on_the_sphere(
    manifold: mn.Manifold, kind: str, path: dict[str, Any]
) -> None:
    """A gradient that takes back all but a little of the buffer, at a large rate."""
    shape = (8, 6)
    module = _layer(manifold, point(manifold, shape, 0, torch.float32))
    optimizer = _optimizer(module, kind, path, lr=1e-3)
    _step(module, optimizer, torch.randn(shape))
    x = module.weight.detach().clone()
    buffer = optimizer.state[module.weight]["momentum_buffer"]
    optimizer.param_groups[0]["lr"] = 1e3
    share = 0.9 if kind == "momentum" else 0.81 / 1.9
    _step(module, optimizer, -share * buffer + 1e-6 * torch.randn(shape))
    assert not torch.equal(module.weight, x)
    assert float(manifold.violation(module.weight.detach()).max()) < 2e-6


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_a_slice_that_underflows_is_zero_on_every_path(kind: str) -> None:
    """One step of the scaled metric's geodesic; all paths end at zero, and stay there."""
    manifold = mn.ScaledEuclidean()
    ends = []
    for path in PATHS.values():
        module = _layer(manifold, point(manifold, (4, 3), 0, torch.float32))
        optimizer = _optimizer(module, kind, path, lr=1e4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(2):
                x = module.weight.detach()
                _step(module, optimizer, x / (x * x).sum(1, keepdim=True).clamp(min=1e-30))
        ends.append(module.weight.detach())
        assert bool(ends[-1].isfinite().all()), path
    assert not any(bool(end.any()) for end in ends)
