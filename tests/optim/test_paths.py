"""Every path takes the step of the specification: few passes, and the compiled kernel."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import MANIFOLDS, SCALED, SPHERES, apart, few, name, over, point, seeds, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim.backends import cpp
from manifoldnet.optim.step import (
    Gram,
    HyperParameters,
    StepInput,
    coefficients,
    slice_geometry,
)

PATHS: dict[str, dict[str, bool]] = {"few passes": {}, "kernel": {"fused": True}}
SPECIFICATION = {"foreach": False}

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "sgd-maximize": (mn.RiemannianSGD, {"maximize": True}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "dampened": (mn.RiemannianSGD, {"momentum": 0.8, "dampening": 0.3, "maximize": True}),
    "nesterov": (mn.RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (mn.RiemannianAdam, {}),
    "amsgrad": (mn.RiemannianAdam, {"amsgrad": True, "slice_scale": "rms", "maximize": True}),
    "capturable": (mn.RiemannianAdam, {"capturable": True}),
}

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


@pytest.fixture(scope="module", autouse=True)
def _a_kernel_there_is() -> None:
    """Without it its tests would hold one other path against another."""
    assert cpp.is_available()


def _layer(manifold: mn.Manifold, x: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(x.clone(memory_format=torch.preserve_format))
    mn.declare(module, "weight", manifold)
    return module


def _gradients(
    manifold: mn.Manifold, x: Tensor, count: int, size: float, seed: int
) -> list[Tensor]:
    """Gradients whose steps are about `size` long, in radians or relative to the weight."""
    generator = torch.Generator().manual_seed(seed + 10**6)  # not those that made the point
    found = []
    for _ in range(count):
        g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        length = manifold.component_inner(x.double(), manifold.egrad2rgrad(x.double(), g)).sqrt()
        found.append((size * g / length.clamp(min=1e-2)).to(x.dtype))
    return found


def _run(
    manifold: mn.Manifold, x: Tensor, gradients: list[Tensor], kind: str, path: dict[str, bool]
) -> dict[str, Tensor]:
    """The weight and the buffers after some steps, which leave the gradients as they are."""
    module = _layer(manifold, x)
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=0.1, **options, **path)
    for g in gradients:
        module.weight.grad = g.clone(memory_format=torch.preserve_format)
        optimizer.step()
        assert torch.equal(module.weight.grad, g)
    return {"weight": module.weight.detach(), **optimizer.state[module.weight]}


def _agree(
    one: dict[str, Tensor],
    other: dict[str, Tensor],
    manifold: mn.Manifold,
    limit: float,
) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype, key
        assert (off := _off(one, other, key, manifold)) <= limit, (key, off)


def _off(
    one: dict[str, Tensor],
    other: dict[str, Tensor],
    key: str,
    manifold: mn.Manifold,
    least: dict[str, Tensor] | None = None,
) -> float:
    a, b = one[key].double(), other[key].double()
    if a.shape != one["weight"].shape:
        return _relative(a, b)
    return apart(a, b, manifold.dim, least[key] if least else None)


def _relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / torch.where(b == 0, 1.0, b.abs())).max())


@over([*SPHERES, *SCALED])
@each_path
@settings(max_examples=5)
@given(kind=st.sampled_from(sorted(OPTIMIZERS)), seed=seeds, size=sizes(1e-3, 1.0))
def test_paths_agree_with_the_reference_step(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    path: dict[str, bool],
    kind: str,
    seed: int,
    size: float,
) -> None:
    exact = point(manifold, shape, seed)
    gradients = _gradients(manifold, exact, 3, size, seed)
    plain = _run(manifold, exact, gradients, kind, SPECIFICATION)
    _agree(_run(manifold, exact, gradients, kind, path), plain, manifold, 1e-12)


@over([*SPHERES, *SCALED])
@each_path
@settings(max_examples=5)
@given(kind=st.sampled_from(sorted(OPTIMIZERS)), seed=seeds, size=sizes(1e-3, 1.0))
def test_paths_are_as_exact_in_float32_as_the_reference_step(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    path: dict[str, bool],
    kind: str,
    seed: int,
    size: float,
) -> None:
    """Against the same steps in float64. Where terms cancel, both lose digits: errors are of the
    size of a buffer after one step, if later gradients leave less of it."""
    x = point(manifold, shape, seed).float()
    gradients = _gradients(manifold, x, 3, size, seed)
    exactly = [g.double() for g in gradients]
    exact = _run(manifold, x.double(), exactly, kind, SPECIFICATION)
    least = _run(manifold, x.double(), exactly[:1], kind, SPECIFICATION)
    plain = _run(manifold, x, gradients, kind, SPECIFICATION)
    found = _run(manifold, x, gradients, kind, path)
    for key, value in found.items():
        assert value.dtype == plain[key].dtype, key
        allowed = 4e-6 + 4 * _off(plain, exact, key, manifold, least)
        assert (off := _off(found, exact, key, manifold, least)) <= allowed, (key, off, allowed)


@each_path
@each_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("manifold", [mn.Oblique(), mn.ScaledEuclidean(1)], ids=str)
def test_half_precision_weights(
    manifold: mn.Manifold, dtype: torch.dtype, kind: str, path: dict[str, bool]
) -> None:
    x = point(manifold, (6, 5), 0).to(dtype)
    gradients = _gradients(manifold, x, 3, 0.3, 1)
    warnings.simplefilter("ignore", mn.optim.NormGrowthWarning)  # float16 ends at 65504
    plain = _run(manifold, x, gradients, kind, SPECIFICATION)
    # Weights may be rounded to the other neighbour; buffers are float32.
    _agree(_run(manifold, x, gradients, kind, path), plain, manifold, 3 * torch.finfo(dtype).eps)


def _big() -> Iterator[tuple[mn.Manifold, tuple[int, ...]]]:
    """Weights so large that they go in blocks, chunks, tiles and stripes, with rests."""
    for manifold in (mn.Oblique(), mn.ScaledEuclidean(retraction="additive")):
        yield manifold, (300, 1001)
    yield mn.Oblique(), (3, 140_001)
    yield mn.Oblique(1), (403, 501)
    yield mn.Oblique(1), (1001, 130)
    yield mn.ScaledEuclidean(1), (131, 37, 3, 3)
    yield mn.ScaledEuclidean(1), (9, 5001)
    yield mn.Sphere(2.0, "geodesic"), (150_001,)


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize(("manifold", "shape"), list(_big()), ids=[name(*row) for row in _big()])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.thorough
def test_large_weights(
    manifold: mn.Manifold, shape: tuple[int, ...], kind: str, path: dict[str, bool], threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = point(manifold, shape, 0)
        gradients = _gradients(manifold, x, 2, 0.1, 1)
        plain = _run(manifold, x, gradients, kind, SPECIFICATION)
        _agree(_run(manifold, x, gradients, kind, path), plain, manifold, 1e-12)
    finally:
        torch.set_num_threads(before)


@each_path
@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("dim", [0, 1])
def test_any_memory_format(dim: int, kind: str, path: dict[str, bool]) -> None:
    """Channels last, gradients and buffers in another order than the weight, and holes."""
    manifold = mn.Oblique(dim)
    x = point(manifold, (6, 4, 3, 3), 0)
    gradients = _gradients(manifold, x, 3, 0.3, 1)
    plain = _run(manifold, x, gradients, kind, SPECIFICATION)
    last = x.to(memory_format=torch.channels_last)
    _agree(_run(manifold, last, gradients, kind, path), plain, manifold, 1e-12)
    for holes in (
        x.repeat_interleave(2, 3)[..., ::2],
        x.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        module = nn.Module()
        module.weight = nn.Parameter(holes)
        mn.declare(module, "weight", manifold)
        make, options = OPTIMIZERS[kind]
        optimizer = make(module.parameters(), lr=0.1, **options, **path)
        for g in gradients:
            module.weight.grad = g.clone()
            optimizer.step()
        _agree({"weight": module.weight.detach()}, {"weight": plain["weight"]}, manifold, 1e-12)


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_many_weights_agree_with_the_reference_step(kind: str, path: dict[str, bool]) -> None:
    """Of several shapes, manifolds and types, some without a gradient, some that begin later."""
    rows = [row for row in MANIFOLDS if not isinstance(row[0], mn.Euclidean)] * 2
    ends = []
    for way in (path, SPECIFICATION):
        model = nn.Module()
        for i, (manifold, shape) in enumerate(rows):
            dtype = torch.float32 if i % 5 == 0 else torch.float64
            part = _layer(manifold, point(manifold, shape, i).to(dtype))
            model.add_module(str(i), part)
        make, options = OPTIMIZERS[kind]
        optimizer = make(mn.param_groups(model, **way), lr=0.05, **options)
        for step in range(4):
            for i, (part, (manifold, _)) in enumerate(zip(model.children(), rows, strict=True)):
                x = part.weight.detach()
                g = _gradients(manifold, x, 1, 0.3, 100 * step + i)[0]
                part.weight.grad = None if (step + i) % 3 == 0 else g
            optimizer.step()
        ends.append([part.weight.detach() for part in model.children()])
    for a, b, (manifold, _) in zip(*ends, rows, strict=True):
        # Adam divides by moments of whatever size.
        limit = 1e-10 if a.dtype == torch.float64 else 1e-4
        assert apart(a.double(), b.double(), manifold.dim) < limit


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("retraction", ["additive", "geodesic"])
@pytest.mark.parametrize("dim", [0, 1, None])
@given(seed=seeds, exponents=st.lists(st.integers(-9, 9), min_size=6, max_size=6))
@few
def test_trajectories_are_equivariant_under_powers_of_two_bit_for_bit(
    dim: int | None,
    retraction: str,
    kind: str,
    path: dict[str, bool],
    seed: int,
    exponents: list[int],
) -> None:
    manifold = mn.ScaledEuclidean(dim, retraction)
    shape = (5, 6) if dim == 1 else (6, 5)
    x = point(manifold, shape, seed, torch.float32)
    across = [6 if d == dim else 1 for d in range(2)]
    factors = 2.0 ** torch.tensor(exponents[:1] if dim is None else exponents).reshape(across)
    gradients = _gradients(manifold, x, 4, 0.3, seed)
    plain = _run(manifold, x, gradients, kind, path)
    scaled = _run(manifold, x * factors, [g / factors for g in gradients], kind, path)
    assert torch.equal(scaled["weight"], plain["weight"] * factors)


@each_path
@pytest.mark.parametrize("lr", [1e-30, 1e12, 1e28])
@pytest.mark.parametrize("kind", ["sgd", "momentum"])
@pytest.mark.parametrize("retraction", ["projective", "geodesic"])
def test_steps_with_huge_rates_end_on_the_sphere(
    lr: float, kind: str, retraction: str, path: dict[str, bool]
) -> None:
    manifold = mn.Oblique(retraction=retraction)
    module = _layer(manifold, point(manifold, (5, 7), 0, torch.float32))
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=lr, **options, **path)
    for _ in range(3):
        module.weight.grad = torch.randn(5, 7)
        optimizer.step()
    assert manifold.violation(module.weight.detach()).max() < 1e-6


@each_path
@pytest.mark.parametrize("length", [1.0, 1e3, 1e5])
@pytest.mark.parametrize(
    ("manifold", "shape", "limit"),
    [
        (mn.Oblique(), (50, 33), 1e-6),
        (mn.Oblique(1), (33, 50), 1e-6),
        (mn.Oblique(1), (3001, 130), 1e-6),
        (mn.Sphere(), (600, 300), 3e-6),  # a norm of 180,000 numbers, summed in float32
    ],
    ids=str,
)
def test_normal_gradients_leave_the_weight_on_the_sphere(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    limit: float,
    length: float,
    path: dict[str, bool],
) -> None:
    """There ‖g‖² − ⟨x, g⟩²/‖x‖² is nothing but rounding, unless it is formed with care."""
    x = point(manifold, shape, 0, torch.float32)
    module = _layer(manifold, x)
    optimizer = mn.RiemannianSGD(module.parameters(), lr=1.0, **path)
    module.weight.grad = length * x + 1e-3 * torch.randn(shape)
    optimizer.step()
    assert manifold.violation(module.weight.detach().double()).max() < limit


def test_a_zero_slice_takes_no_precision_from_the_others() -> None:
    geometry = slice_geometry(mn.ScaledEuclidean(retraction="additive"))
    assert geometry is not None
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    found = coefficients(Gram(x), StepInput(x, x, geometry, x), HyperParameters(0.3, keep=0.9))
    assert found.x3.flatten().tolist() == [-0.3 * 0.9, 0.0]
    assert found.b3.flatten().tolist() == [0.9, 0.0]


@each_path
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_buffers_stay_tangent(kind: str, path: dict[str, bool]) -> None:
    manifold = mn.Oblique()
    module = _layer(manifold, point(manifold, (8, 16), 0, torch.float32))
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=0.05, **options, **path)
    for _ in range(1000):
        module.weight.grad = torch.randn(8, 16)
        optimizer.step()
    x, state = module.weight.detach(), optimizer.state[module.weight]
    buffer = state.get("momentum_buffer", state.get("exp_avg"))
    assert manifold.tangent_violation(x, buffer).max() < 1e-6
    assert manifold.violation(x).max() < 1e-6


@each_path
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_nan_does_not_spread_to_other_slices(kind: str, path: dict[str, bool]) -> None:
    manifold = mn.ScaledEuclidean()
    x = point(manifold, (4, 3), 0, torch.float32)
    g = torch.randn(4, 3)
    g[1, 2] = float("nan")
    after = _run_once(manifold, x, g, kind, path)
    assert after[1].isnan().all()
    assert after[[0, 2, 3]].isfinite().all()


def _run_once(
    manifold: mn.Manifold, x: Tensor, g: Tensor, kind: str, path: dict[str, bool]
) -> Tensor:
    module = _layer(manifold, x)
    make, options = OPTIMIZERS[kind]
    module.weight.grad = g
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mn.optim.NormGrowthWarning)
        make(module.parameters(), lr=0.1, **options, **path).step()
    return module.weight.detach()


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_checkpoints_continue_on_another_path(kind: str) -> None:
    manifold = mn.Oblique(1)
    x = point(manifold, (5, 7), 0)
    gradients = _gradients(manifold, x, 6, 0.3, 1)
    plain = _run(manifold, x, gradients, kind, SPECIFICATION)["weight"]
    module = _layer(manifold, x)
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=0.1, **options)
    for i, g in enumerate(gradients):
        if i in (2, 4):
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = make(module.parameters(), lr=0.1, **options, fused=i == 2)
            optimizer.load_state_dict(state)
            assert optimizer.param_groups[0]["fused"] == (i == 2)
        module.weight.grad = g
        optimizer.step()
    assert apart(module.weight.detach(), plain, 1) < 1e-12


@each_path
@pytest.mark.parametrize("kind", ["sgd", "momentum"])
def test_a_rate_of_zero_in_a_tensor_changes_no_bit(kind: str, path: dict[str, bool]) -> None:
    x = point(mn.Oblique(), (5, 7), 0, torch.float32) * (1 + 3e-7)
    module = _layer(mn.Oblique(), x)
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=torch.tensor(0.0), **options, **path)
    module.weight.grad = torch.randn(5, 7)
    optimizer.step()
    assert torch.equal(module.weight, x)


def test_without_a_kernel_the_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "library", lambda: None)
    manifold = mn.Oblique(1)
    x = point(manifold, (5, 7), 0)
    gradients = _gradients(manifold, x, 3, 0.3, 1)
    plain = _run(manifold, x, gradients, "momentum", SPECIFICATION)
    _agree(_run(manifold, x, gradients, "momentum", {"fused": True}), plain, manifold, 1e-12)


def test_the_kernel_warns_of_growing_norms() -> None:
    manifold = mn.ScaledEuclidean(retraction="additive")
    module = _layer(manifold, point(manifold, (4, 3), 0, torch.float32))
    optimizer = mn.RiemannianSGD(module.parameters(), lr=1.0, fused=True)
    optimizer._steps = 1000  # what is looked at every 100 steps elsewhere
    module.weight.grad = torch.randn(4, 3)
    with torch.no_grad():
        module.weight[2] *= 1e12
    with pytest.warns(mn.optim.NormGrowthWarning, match="row 2"):
        optimizer.step()


def test_spheres_and_the_scaled_metric_have_fast_paths() -> None:
    for manifold, _ in MANIFOLDS:
        others = isinstance(manifold, mn.Euclidean | mn.Polar | mn.Stiefel)
        assert (slice_geometry(manifold) is None) is others


def test_mixed_parts_take_the_reference_step() -> None:
    """A manifold composed of rows' projection and columns' metric takes the specification."""

    class Mixed(mn.Manifold):
        def __init__(self, **parts: object) -> None:
            rows = mn.Oblique()
            names = ("metric", "projection", "retraction", "geodesics")
            own = {name: getattr(rows, name) for name in names}
            super().__init__(rows.slices, **{**own, **parts})

        def _fields(self) -> dict[str, Any]:
            return {}

    columns, larger = mn.Oblique(1), mn.Oblique(radius=2.0)
    assert slice_geometry(Mixed()) is not None
    for part in ("metric", "projection", "geodesics"):
        assert slice_geometry(Mixed(**{part: getattr(columns, part)})) is None, part
    for part in ("projection", "geodesics"):
        assert slice_geometry(Mixed(**{part: getattr(larger, part)})) is None, part
