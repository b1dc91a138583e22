"""Steps of the Triton kernels against the oracle `coefficients` and the reference path.

On a GPU where there is one; without, `test_triton.py` runs this file in Triton's interpreter, which
has to be chosen before Triton is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import MANIFOLDS, SCALED, SPHERES, apart, point
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.geometry import Slices
from manifoldnet.optim.backends import Layout, triton
from manifoldnet.optim.step import (
    Gram,
    HyperParameters,
    SliceGeometry,
    StepInput,
    coefficients,
    slice_geometry,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

pytestmark = [
    # The interpreter computes with NumPy, which warns of what is masked out later.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(not triton.is_available(DEVICE), reason="neither a GPU nor the interpreter"),
]

ADAM: dict[str, Any] = {"keep": 0.9, "fresh": 0.1, "beta2": 0.999, "eps": 1e-8}
ALGORITHMS = {
    "sgd": HyperParameters(0.3),
    "ascent": HyperParameters(0.3, sign=-1.0),
    "momentum": HyperParameters(0.3, keep=0.9),
    "dampened": HyperParameters(0.3, sign=-1.0, keep=0.8, fresh=0.7),
    "nesterov": HyperParameters(0.1, keep=0.9, nesterov=True),
    "adam": HyperParameters(0.1, **ADAM),
    "amsgrad": HyperParameters(0.1, sign=-1.0, **ADAM),  # of Adam, the one with a maximum
    "adam without first moments": HyperParameters(0.1, **{**ADAM, "keep": 0.0, "fresh": 1.0}),
    "displacement": HyperParameters(1.0, sign=-1.0, displacement=True),
}
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> Iterator[None]:
    """A kernel's functions find the language as its launch has left it.

    Half of the interpreter's time goes into preparing it anew for each of their calls.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    plain, prepared = InterpretedFunction.__call__, {f"{triton.__name__}.kernels"}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ in prepared:
            return self.rewrite()(*args, **kwargs)
        prepared.add(self.fn.__module__)
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


def _inner(u: Tensor, v: Tensor, dim: Any) -> Tensor:
    return Slices(dim).inner(u, v)


def _work(
    geometry: SliceGeometry,
    shape: tuple[int, ...],
    hyper: HyperParameters,
    dtype: torch.dtype,
    *,
    first: bool = False,
    form: torch.memory_format = torch.contiguous_format,
) -> StepInput:
    """A weight with everything that its step needs, anything but tangent."""
    x = torch.randn(shape, dtype=torch.float64)
    if geometry.radius is not None:
        x *= geometry.radius / _inner(x, x, geometry.dim).sqrt()
    computed = torch.promote_types(dtype, torch.float32)
    length = _inner(x, x, geometry.dim).sqrt()
    g, b = (0.3 * torch.randn(shape) / length for _ in range(2))
    if geometry.radius is None:
        b = b * length**2
    adam = hyper.beta2 is not None
    s = (0.01 * torch.rand(length.shape)).to(DEVICE, computed) if adam else None
    unbias = (1 - 0.9**3, 1 - 0.999**3) if adam else (1.0, 1.0)
    return StepInput(
        x.to(DEVICE, dtype).contiguous(memory_format=form),
        g.to(DEVICE, dtype).contiguous(memory_format=form),
        geometry,
        b.to(DEVICE, computed).contiguous(memory_format=form) if hyper.keep or adam else None,
        first and hyper.keep != 0 and not adam,
        s,
        1.5 * s if hyper.sign < 0 and s is not None else None,
        unbias,
        s.numel() / x.numel() if s is not None and hyper.sign < 0 else 1.0,
    )


def _copy(work: StepInput) -> StepInput:
    return work._replace(
        **{
            name: None if (t := getattr(work, name)) is None else t.clone()
            for name in ("x", "b", "s", "max_s")
        }
    )


def _oracle(work: StepInput, hyper: HyperParameters) -> dict[str, Tensor]:
    """The weight and its state after a step, in double precision."""
    dim = work.geometry.dim
    x, g = work.x.double(), work.g.double()
    b = torch.zeros_like(x) if work.b is None or work.first else work.b.double()
    found = _grams(x, g, b, dim)
    along_g, along_b = found.along(found.xx == 0)
    refined = found.refined(_grams(x, g - along_g * x, b - along_b * x, dim))
    if work.b is None:
        refined = refined._replace(xb=None, gb=None, bb=None)
    double = {name: None if t is None else t.double() for name, t in _states(work)}
    exact = coefficients(refined, work._replace(**double), hyper)
    if work.geometry.retraction == "additive":
        needed = {"gg": found.gg} if hyper.beta2 is not None else {}
        exact = coefficients(Gram(found.xx, **needed), work._replace(**double), hyper)
    after = {"x": exact.x1 * x + exact.x2 * g + exact.x3 * b}
    if work.b is not None:
        after["b"] = exact.b1 * x + exact.b2 * g + exact.b3 * b
    after |= {n: t for n, t in (("s", exact.s), ("max_s", exact.max_s)) if t is not None}
    return after


def _states(work: StepInput) -> list[tuple[str, Tensor | None]]:
    return [("s", work.s), ("max_s", work.max_s)]


def _grams(x: Tensor, g: Tensor, b: Tensor, dim: Any) -> Gram:
    pairs = ((x, x), (x, g), (g, g), (x, b), (g, b), (b, b))
    return Gram(*(_inner(u, v, dim) for u, v in pairs))


def _layouts(works: list[StepInput]) -> list[Layout]:
    found = [triton.layout(work.x, work.geometry) for work in works]
    assert None not in found
    return found


def _compare(work: StepInput, before: StepInput, hyper: HyperParameters, limit: float) -> None:
    for name, exact in _oracle(before, hyper).items():
        value = getattr(work, name).double()
        assert value.isfinite().all()
        if name in ("s", "max_s"):
            off = float(((value - exact).abs() / exact.abs().clamp(min=1e-300)).max())
        else:
            # Where a step takes most of a buffer away, what is left of it has its rounding.
            least = before.b.double() if name == "b" and not before.first else None
            off = apart(value, exact, work.geometry.dim, least)
        allowed = limit if name == "x" or limit < 1e-6 else 2e-6
        assert off <= allowed, (name, off, work.geometry, tuple(work.x.shape))


def _works(
    rows: list[tuple[mn.Manifold, tuple[int, ...]]], hyper: HyperParameters, dtype: torch.dtype
) -> list[StepInput]:
    return [
        _work(slice_geometry(manifold), shape, hyper, dtype, first=i % 3 == 1)
        for i, (manifold, shape) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [(algorithm, torch.float64) for algorithm in ALGORITHMS]
    + [(algorithm, torch.float32) for algorithm in ("sgd", "nesterov", "amsgrad")]
    + [("momentum", torch.bfloat16), ("adam", torch.bfloat16), ("adam", torch.float16)],
    ids=str,
)
def test_steps_of_all_manifolds_in_one_call(algorithm: str, dtype: torch.dtype) -> None:
    hyper = ALGORITHMS[algorithm]
    rows = [*SPHERES, *SCALED]
    if hyper.displacement:
        rows = [row for row in rows if row[1] != (6,)]
    works = _works(rows, hyper, dtype)
    before = [_copy(work) for work in works]
    triton.step(works, hyper, _layouts(works))
    for work, old in zip(works, before, strict=True):
        _compare(work, old, hyper, LIMITS[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("algorithm", ["sgd", "nesterov", "amsgrad"])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_many_shapes_in_one_bucket(dim: int | None, algorithm: str, dtype: torch.dtype) -> None:
    hyper, manifold = ALGORITHMS[algorithm], mn.Oblique(dim, 2.0)
    # Several tiles, programs of a tile, chunks of a row, and rests of each.
    shapes = [(4, 3), (5, 7), (3, 2, 5, 3), (1, 9), (20, 3), (2, 1100)]
    shapes += [(3, 2, 129), (2, 3, 300)] if dim == 0 else [(70, 260), (2, 130, 3), (257, 1, 2)]
    works = _works([(manifold, shape) for shape in shapes], hyper, dtype)
    before = [_copy(work) for work in works]
    triton.step(works, hyper, _layouts(works))
    for work, old in zip(works, before, strict=True):
        _compare(work, old, hyper, LIMITS[dtype])


@pytest.mark.parametrize("shape", [(2, 20_000), (40_000,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_slices(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    manifold = mn.Oblique() if len(shape) > 1 else mn.Sphere()
    hyper = ALGORITHMS["adam"]
    works = _works([(manifold, shape)], hyper, dtype)
    before = _copy(works[0])
    triton.step(works, hyper, _layouts(works))
    _compare(works[0], before, hyper, LIMITS[dtype])


@pytest.mark.parametrize("algorithm", ["momentum", "amsgrad"])
@pytest.mark.parametrize("dim", [0, 1, 3, None])
def test_channels_last(dim: int | None, algorithm: str) -> None:
    hyper, geometry = ALGORITHMS[algorithm], slice_geometry(mn.Oblique(dim))
    work = _work(geometry, (6, 5, 4, 3), hyper, torch.float64, form=torch.channels_last)
    before = _copy(work)
    triton.step([work], hyper, _layouts([work]))
    assert work.x.is_contiguous(memory_format=torch.channels_last)
    _compare(work, before, hyper, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("algorithm", ["sgd", "nesterov", "amsgrad"])
@pytest.mark.parametrize("dim", [0, 1])
def test_pieces_of_slices(dim: int, algorithm: str, dtype: torch.dtype) -> None:
    """Products of halves add up; coefficients and update are those of the whole."""
    hyper = ALGORITHMS[algorithm]
    along = 1 - dim
    for manifold in (mn.Oblique(dim, 2.0), mn.Oblique(dim, retraction="geodesic"),
                     mn.ScaledEuclidean(dim), mn.ScaledEuclidean(dim, "additive")):  # fmt: skip
        works = _works([(manifold, shape) for shape in ((6, 10), (4, 8), (2, 6))], hyper, dtype)
        before = [_copy(work) for work in works]
        halves: list[list[StepInput]] = [[], []]
        for work in works:
            for i, half in enumerate(halves):
                x, g, b = (
                    None if t is None else t.chunk(2, along)[i].contiguous()
                    for t in (work.x, work.g, work.b)
                )
                states = {n: None if t is None else t.clone() for n, t in _states(work)}
                half.append(work._replace(x=x, g=g, b=b, **states))
        sums = _sum([triton.gram(half, hyper, _layouts(half)) for half in halves])
        if dtype == torch.float64 and sums[0].xg is not None:
            parts = [triton.gram(half, hyper, _layouts(half), sums) for half in halves]
            sums = [a.refined(b) for a, b in zip(sums, _sum(parts), strict=True)]
        found = [coefficients(a, work, hyper) for a, work in zip(sums, works, strict=True)]
        for half in halves:
            triton.update(half, found, _layouts(half))
        for work, old, *pieces in zip(works, before, *halves, strict=True):
            joined = {
                name: torch.cat([getattr(piece, name) for piece in pieces], along)
                for name in ("x", "b")
                if getattr(work, name) is not None
            }
            whole = pieces[0]._replace(**joined)
            _compare(whole, old, hyper, LIMITS[dtype])


def _sum(grams: list[list[Gram]]) -> list[Gram]:
    return [
        Gram(*(None if t is None else t + u for t, u in zip(a[:6], b[:6], strict=True)))
        for a, b in zip(*grams, strict=True)
    ]


@pytest.mark.parametrize("algorithm", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("dim", [0, 1])
def test_zero_slices_stay(dim: int, algorithm: str) -> None:
    hyper, plans = ALGORITHMS[algorithm], triton.Plans()
    for manifold in (mn.Oblique(dim), mn.ScaledEuclidean(dim), mn.ScaledEuclidean(dim, "additive")):
        works = _works([(manifold, (6, 6)), (manifold, (6, 5))], hyper, torch.float32)
        work = works[0]
        work.x.select(dim, 2).zero_()
        before = _copy(work)
        triton.step(works, hyper, _layouts(works), plans)
        assert (work.x.select(dim, 2) == 0).all()
        assert work.b is None or (work.b.select(dim, 2) == 0).all()
        assert work.x.isfinite().all()
        others = [i for i in range(6) if i != 2]
        exact = _oracle(before, hyper)["x"]
        chosen = [t.double().index_select(dim, torch.tensor(others, device=DEVICE))
                  for t in (work.x, exact)]  # fmt: skip
        assert apart(*chosen, dim) < 1e-6
        assert plans.alarming() == {work.x.data_ptr()}
        assert plans.alarming() == set()


@pytest.mark.parametrize("dim", [0, 1])
def test_growing_norms_are_marked(dim: int) -> None:
    hyper, plans = HyperParameters(0.1), triton.Plans()
    manifolds = [mn.ScaledEuclidean(dim, "additive"), mn.ScaledEuclidean(dim, "additive")]
    works = _works([(manifold, (4, 5)) for manifold in manifolds], hyper, torch.float32)
    triton.step(works, hyper, _layouts(works), plans)
    assert plans.alarming() == set()
    works[1].x.select(dim, 3).mul_(1e12)
    triton.step(works, hyper, _layouts(works), plans)
    assert plans.alarming() == {works[1].x.data_ptr()}


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("dim", [0, 1])
def test_nan_does_not_spread_to_other_slices(dim: int, kind: str) -> None:
    for manifold in (mn.Oblique(dim), mn.ScaledEuclidean(dim)):
        (work,) = _works([(manifold, (4, 4))], ALGORITHMS[kind], torch.float32)
        work.g.select(dim, 1)[2] = math.nan
        triton.step([work], ALGORITHMS[kind], _layouts([work]))
        assert work.x.select(dim, 1).isnan().all()
        assert int(work.x.isnan().sum()) == 4


@pytest.mark.parametrize("lr", [1e-30, 1e12, 1e28])
@pytest.mark.parametrize("algorithm", ["sgd", "momentum"])
@pytest.mark.parametrize("retraction", ["projective", "geodesic"])
@pytest.mark.parametrize("dim", [0, 1])
def test_steps_with_huge_rates_end_on_the_sphere(
    dim: int, retraction: str, algorithm: str, lr: float
) -> None:
    manifold, hyper = mn.Oblique(dim, 1.0, retraction), ALGORITHMS[algorithm]._replace(lr=lr)
    for dtype in (torch.float32, torch.float64):
        (work,) = _works([(manifold, (5, 7))], hyper, dtype)
        for _ in range(3):
            work.g.normal_()
            triton.step([work], hyper, _layouts([work]))
            assert manifold.violation(work.x).max() < 1e-6


@pytest.mark.parametrize("length", [1.0, 1e3, 1e7])
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 3), (3, 300)], ids=str)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_normal_gradients_leave_the_weight_on_the_sphere(
    dim: int | None, shape: tuple[int, ...], length: float
) -> None:
    for dtype, limit in ((torch.float32, 3e-7), (torch.float64, 1e-14)):
        for hyper in (HyperParameters(1.0), HyperParameters(1.0, keep=0.9)):
            manifold = mn.Oblique(dim)
            (work,) = _works([(manifold, shape)], hyper, dtype)
            work.g.copy_(length * work.x + 1e-3 * torch.randn(shape, device=DEVICE))
            before = _copy(work)
            triton.step([work], hyper, _layouts([work]))
            # What the gradient has along x cancels in the sum of the vectors.
            rounding = 1e-15 * length
            assert manifold.violation(work.x.double()).max() < limit + rounding
            off = apart(work.x.double(), _oracle(before, hyper)["x"], dim)
            assert off < (1e-7 if dtype == torch.float32 else 1e-14) + rounding


def test_rates_and_bias_corrections_may_lie_on_the_device() -> None:
    hyper, manifold = ALGORITHMS["adam"], mn.Oblique(1)
    ends = []
    for how in ("numbers", "float32", "float64", "counts"):
        torch.manual_seed(0)
        works = _works([(manifold, (4, 3)), (mn.Oblique(), (4, 3))], hyper, torch.float64)
        lr: Any = hyper.lr
        counts = None
        if how != "numbers":
            dtype = torch.float32 if how == "float32" else torch.float64
            lr = torch.tensor(lr, dtype=dtype, device=DEVICE)
            unbias = tuple(torch.tensor(u, dtype=dtype, device=DEVICE) for u in works[0].unbias)
            works = [work._replace(unbias=unbias) for work in works]
        if how == "counts":
            works = [work._replace(unbias=(math.nan, math.nan)) for work in works]
            counts = [torch.tensor(3.0, device=DEVICE) for _ in works]
        triton.step(works, hyper._replace(lr=lr), _layouts(works), counts=counts)
        ends.append([t for work in works for t in (work.x, work.b)])
    for end, limit in zip(ends[1:], (1e-6, 1e-15, 1e-14), strict=True):
        for found, exact in zip(end, ends[0], strict=True):
            assert (found - exact).abs().max() <= limit * exact.abs().max()


def test_a_table_is_kept_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no tensor is made, so that a CUDA graph can be captured."""
    hyper = ALGORITHMS["adam"]._replace(lr=torch.tensor(0.1, device=DEVICE))
    works = _works([(mn.Oblique(dim), (4, 3)) for dim in (0, 1)], hyper, torch.float32)
    counts = [torch.tensor(1.0, device=DEVICE) for _ in works]
    plans = triton.Plans()
    written = []
    inner = triton._Plan.write
    monkeypatch.setattr(triton._Plan, "write", lambda *a, **k: written.append(1) or inner(*a, **k))
    for expected in (2, 2, 2):
        triton.step(works, hyper, _layouts(works), plans, counts)
        assert len(written) == expected
        torch._foreach_add_(counts, 1)
        for work in works:
            work.g.normal_()
    works[0] = works[0]._replace(g=works[0].g.clone())
    before = _copy(works[0])
    triton.step(works, hyper, _layouts(works), plans, counts)
    assert len(written) == 3
    unbias = (1 - 0.9**4, 1 - 0.999**4)
    _compare(works[0], before._replace(unbias=unbias), hyper._replace(lr=0.1), 1e-6)


@pytest.mark.parametrize("algorithm", ["momentum", "adam"])
def test_trajectories_are_those_of_the_reference_path(algorithm: str) -> None:
    hyper, lr = ALGORITHMS[algorithm]._replace(lr=0.05), 0.05
    rows = [row for row in MANIFOLDS if slice_geometry(row[0]) is not None]
    model = nn.ParameterList(
        [nn.Parameter(point(m, shape, 9 + i).to(DEVICE)) for i, (m, shape) in enumerate(rows)]
    )
    for i, (manifold, _) in enumerate(rows):
        mn.declare(model, str(i), manifold)
    groups = mn.param_groups(model, foreach=False)
    reference: Any = mn.RiemannianSGD(groups, lr=lr, momentum=0.9)
    if algorithm == "adam":
        reference = mn.RiemannianAdam(groups, lr=lr)
    works = []
    for p, (manifold, _) in zip(model, rows, strict=True):
        x, geometry = p.detach().clone(), slice_geometry(manifold)
        s = torch.zeros_like(_inner(x, x, geometry.dim)) if algorithm == "adam" else None
        works.append(StepInput(x, x, geometry, torch.zeros_like(x), s is None, s))
    plans = triton.Plans()
    for t in range(1, 6):
        for i, p in enumerate(model):
            p.grad = 0.3 * torch.randn_like(p) / p.detach().norm()
            unbias = (1 - 0.9**t, 1 - 0.999**t)
            first = t == 1 and algorithm == "momentum"
            works[i] = works[i]._replace(g=p.grad.clone(), unbias=unbias, first=first)
        reference.step()
        triton.step(works, hyper, _layouts(works), plans)
    for p, work, (manifold, _) in zip(model, works, rows, strict=True):
        assert apart(work.x, p.detach(), manifold.dim) < 1e-11


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("dim", [0, 1])
def test_a_step_in_a_cuda_graph(dim: int) -> None:
    hyper = ALGORITHMS["adam"]._replace(lr=torch.tensor(0.1, device=DEVICE))
    (work,) = _works([(mn.Oblique(dim), (64, 48))], hyper, torch.float32)
    counts, plans = [torch.zeros((), device=DEVICE)], triton.Plans()

    def step() -> None:
        torch._foreach_add_(counts, 1)
        triton.step([work], hyper, _layouts([work]), plans, counts)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for count in range(2, 6):
        work.g.normal_()
        before = _copy(work)
        graph.replay()
        unbias = (1 - 0.9**count, 1 - 0.999**count)
        _compare(work, before._replace(unbias=unbias), hyper._replace(lr=0.1), 1e-6)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_a_capture_with_new_gradients_is_refused() -> None:
    hyper, plans = HyperParameters(0.1), triton.Plans()
    (work,) = _works([(mn.Oblique(), (8, 8))], hyper, torch.float32)
    triton.step([work], hyper, _layouts([work]), plans)
    work = work._replace(g=work.g.clone())
    with pytest.raises(RuntimeError, match="CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        triton.step([work], hyper, _layouts([work]), plans)


def test_slices_have_a_layout_only_in_memory_of_their_own() -> None:
    geometry = slice_geometry(mn.Oblique())
    x = mn.Oblique().projx(torch.randn(4, 3, device=DEVICE))
    assert triton.layout(x, geometry) == (1, 4, 3)
    assert triton.layout(nn.Parameter(x), geometry) == (1, 4, 3)
    assert triton.layout(mn.ManifoldParameter(x, mn.Oblique()), geometry) is not None
    for other in (x[:, ::2], x.to("meta"), x.to(torch.complex64), x[:0], x.to_sparse()):
        assert triton.layout(other, geometry) is None
