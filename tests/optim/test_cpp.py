"""The compiled backend: products and updates by themselves, pieces of slices, plain memory only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from cases import SCALED, SPHERES, apart, over, point
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

import manifoldnet as mn
from manifoldnet.geometry import Slices
from manifoldnet.optim.backends import Layout, cpp, torch_ops
from manifoldnet.optim.step import (
    Coefficients,
    Gram,
    HyperParameters,
    SliceGeometry,
    StepInput,
    coefficients,
    slice_geometry,
)

# Numbers of a group, and whether its weights have a buffer, one without a value, second moments.
OPTIMIZERS: dict[str, tuple[HyperParameters, set[str]]] = {
    "sgd": (HyperParameters(0.1), set()),
    "sgd-maximize": (HyperParameters(0.1, sign=-1.0), set()),
    "displacement": (HyperParameters(0.1, sign=-1.0, displacement=True), set()),
    "decay": (HyperParameters(0.1, sign=-1.0, displacement=True, decay=0.03), set()),
    "momentum": (HyperParameters(0.1, keep=0.9), {"b"}),
    "first": (HyperParameters(0.1, keep=0.9, fresh=0.5), {"b", "first"}),
    "dampened": (HyperParameters(0.1, sign=-1.0, keep=0.8, fresh=0.7), {"b"}),
    "nesterov": (HyperParameters(0.1, keep=0.9, nesterov=True), {"b"}),
    "adam": (HyperParameters(0.1, keep=0.9, fresh=0.1, beta2=0.99, eps=1e-8), {"b", "s"}),
    "adam-no-memory": (HyperParameters(0.1, beta2=0.99, eps=1e-8), {"b", "s"}),
    "amsgrad": (
        HyperParameters(0.1, keep=0.9, fresh=0.1, beta2=0.9),
        {"b", "s", "max_s"},
    ),
}
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(scope="module", autouse=True)
def _a_kernel_there_is() -> None:
    assert cpp.is_available()


def _work(
    manifold: mn.Manifold, shape: tuple[int, ...], kind: str, dtype: torch.dtype, seed: int = 0
) -> StepInput:
    geometry = slice_geometry(manifold)
    assert geometry is not None
    hyper, has = OPTIMIZERS[kind]
    generator = torch.Generator().manual_seed(seed + 10**6)
    x = point(manifold, shape, seed).to(dtype)
    g, b = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    if geometry.radius is None:  # vectors of the length of the weight
        norm = Slices(geometry.dim).norm(x.double())
        b *= norm
        g = g if hyper.displacement else g / norm
    g, b = g.to(dtype), b.to(dtype)
    if "first" in has:
        b.fill_(float("nan"))  # what is in new memory must not be read
    across = [1 if d in Slices(geometry.dim).over(x.ndim) else n for d, n in enumerate(shape)]
    s, max_s = torch.rand((2, *across), generator=generator, dtype=torch.float64).to(dtype)
    return StepInput(
        x,
        g,
        geometry,
        b if "b" in has else None,
        "first" in has,
        s if "s" in has else None,
        max_s if "max_s" in has else None,
        (0.2, 0.3) if "s" in has else (1.0, 1.0),
        0.5,
    )


def _copy(work: StepInput) -> StepInput:
    return work._replace(
        **{
            name: value.clone(memory_format=torch.preserve_format)
            for name, value in work._asdict().items()
            if isinstance(value, Tensor)
        }
    )


def _layouts(works: Sequence[StepInput]) -> list[Layout]:
    found = [cpp.layout(work.x, work.geometry) for work in works]
    assert None not in found
    return [own for own in found if own is not None]


def _add(one: Gram, other: Gram) -> Gram:
    pairs = zip(one[:6], other[:6], strict=True)
    return Gram(*(None if a is None or b is None else a + b for a, b in pairs))  # type: ignore[arg-type]


def _in_parts(pieces: Sequence[StepInput], hyper: HyperParameters) -> Gram:
    """One step of a weight in pieces of all of its slices; the products of which it is made."""
    layouts = _layouts(pieces)

    def added(first: Gram | None = None) -> Gram:
        given = None if first is None else [first] * len(pieces)
        total, *others = cpp.gram(pieces, hyper, layouts, given)
        for other in others:
            total = _add(total, other)
        return total

    gram = added()
    ordinary = coefficients(gram, pieces[0], hyper, ask=True) is not None
    if pieces[0].geometry.retraction != "additive" and not ordinary:
        gram = gram.refined(added(gram))
    cpp.update(pieces, _found([gram] * len(pieces), pieces, hyper), layouts)
    return gram


def _found(
    grams: Sequence[Gram], works: Sequence[StepInput], hyper: HyperParameters
) -> list[Coefficients]:
    found = [coefficients(g, work, hyper) for g, work in zip(grams, works, strict=True)]
    return [own for own in found if own is not None]


def _by_torch(work: StepInput, hyper: HyperParameters) -> None:
    dims = Slices(work.geometry.dim).over(work.x.ndim)
    torch_ops.advance(
        [torch_ops.Batch(work, dims, [torch_ops.Piece(work.x, work.g, work.b)])], hyper
    )


def _agree(one: StepInput, other: StepInput, limit: float) -> None:
    for name in ("x", "b", "s", "max_s"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) is (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            a, b = a.double(), b.double()
            off = apart(a, b, one.geometry.dim) if name in "xb" else float((a / b - 1).abs().max())
            assert off <= limit, (name, off)


@over([*SPHERES, *SCALED])
@each_optimizer
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_products_coefficients_update_are_the_step(
    manifold: mn.Manifold, shape: tuple[int, ...], kind: str, dtype: torch.dtype
) -> None:
    """Of the operators of torch, and of the kernel in one call."""
    hyper, _ = OPTIMIZERS[kind]
    parts = _work(manifold, shape, kind, dtype)
    fused, plain = _copy(parts), _copy(parts)
    squares = _in_parts([parts], hyper).xx
    _by_torch(plain, hyper)
    ((least, most),) = cpp.step([fused], hyper, _layouts([fused]))
    _agree(parts, plain, LIMITS[dtype])
    _agree(parts, fused, LIMITS[dtype])
    assert [least, most] == pytest.approx([float(squares.min()), float(squares.max())], rel=1e-6)


@over([*SPHERES, *SCALED])
@each_optimizer
def test_products_are_those_of_torch(
    manifold: mn.Manifold, shape: tuple[int, ...], kind: str
) -> None:
    hyper, _ = OPTIMIZERS[kind]
    work = _work(manifold, shape, kind, torch.float64)
    dims = Slices(work.geometry.dim).over(work.x.ndim)
    batch = torch_ops.Batch(work, dims, [torch_ops.Piece(work.x, work.g, work.b)])
    names = work.products(hyper)
    first = torch_ops.gram(batch, names)
    exact = torch_ops.gram(batch, names, first)
    (found,) = cpp.gram([work], hyper, _layouts([work]))
    (again,) = cpp.gram([work], hyper, _layouts([work]), [first])
    for one, other in ((found, first), (again, exact)):
        for name, a, b in zip(Gram._fields, one, other, strict=True):
            if isinstance(b, Tensor):
                assert a.shape == b.shape, name
                assert a.dtype == torch.float64
                u, v = (getattr(first, 2 * letter) for letter in name)
                assert bool(((a - b).abs() <= 1e-13 * (u * v).sqrt()).all()), name
            else:
                assert a == b, name


def _cut(work: StepInput, along: int, sizes: list[int]) -> list[StepInput]:
    """Pieces of memory of their own, each with all that is one number per slice."""
    cut = {
        name: [part.clone() for part in value.split(sizes, along)]
        for name, value in work._asdict().items()
        if name in ("x", "g", "b") and value is not None
    }
    own = [_copy(work) for _ in sizes]
    return [
        piece._replace(**{name: parts[i] for name, parts in cut.items()})
        for i, piece in enumerate(own)
    ]


@each_optimizer
@pytest.mark.parametrize("nearly_parallel", [False, True])
@pytest.mark.parametrize(
    ("manifold", "shape", "sizes"),
    [
        (mn.Oblique(1), (7, 5), [4, 3]),
        (mn.Oblique(1, 1.0, "geodesic"), (7, 5), [6, 0, 1]),  # a process without numbers
        (mn.ScaledEuclidean(1), (7, 5, 2), [0, 7]),
        (mn.ScaledEuclidean(1, "additive"), (7, 5), [2, 5]),
        (mn.Sphere(2.0), (7, 5), [4, 0, 3]),
        (mn.Oblique(1), (1000, 130), [500, 500]),  # large enough for stripes
        (mn.Sphere(), (300_001,), [150_001, 150_000]),  # for chunks
    ],
    ids=str,
)
def test_pieces_of_slices_make_the_step_of_the_whole(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    sizes: list[int],
    nearly_parallel: bool,
    kind: str,
) -> None:
    hyper, _ = OPTIMIZERS[kind]
    whole = _work(manifold, shape, kind, torch.float64)
    if nearly_parallel:
        whole.g.mul_(1e-3).add_(whole.x)
    pieces = _cut(whole, 0, sizes)
    _in_parts(pieces, hyper)
    cpp.step([whole], hyper, _layouts([whole]))
    for name in ("x", "b"):
        if getattr(whole, name) is not None:
            joined = torch.cat([getattr(piece, name) for piece in pieces])
            limit = 1e-10 if nearly_parallel else 1e-12
            assert apart(joined, getattr(whole, name), whole.geometry.dim) <= limit, name
    for name in ("s", "max_s"):
        if getattr(whole, name) is not None:
            for piece in pieces:
                torch.testing.assert_close(
                    getattr(piece, name), getattr(whole, name), rtol=1e-10, atol=0
                )


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_many_weights_in_one_call(dtype: torch.dtype) -> None:
    """Of several shapes, manifolds and orders of memory, and of another type among them."""
    hyper, _ = OPTIMIZERS["adam"]
    works = [_work(*row, "adam", dtype) for row in [*SPHERES, *SCALED]]
    works.insert(3, _work(mn.Oblique(1), (4, 5), "adam", torch.float64, 7))
    last = _work(mn.Oblique(1), (6, 4, 3, 3), "adam", dtype, 8)
    named = {n: getattr(last, n).to(memory_format=torch.channels_last) for n in ("x", "g", "b")}
    works.append(last._replace(**named))
    alone = [_copy(work) for work in works]
    found = cpp.gram(works, hyper, _layouts(works))
    cpp.update(
        works,
        _found(found, works, hyper),
        _layouts(works),
    )
    for work, other in zip(works, alone, strict=True):
        cpp.step([other], hyper, _layouts([other]))
        _agree(work, other, LIMITS[dtype])


# --- nothing but memory is read -------------------------------------------------------------------


class Remote(Tensor):
    """A tensor without memory of its own, as DTensor: its numbers are another tensor's."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Remote:
        made: Remote = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        raise AssertionError("the address of a tensor without memory was asked for")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Remote, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Remote, func(*args, **kwargs))


def _subclasses(x: Tensor) -> Iterator[Tensor]:
    yield Remote(x)
    yield nn.Parameter(Remote(x))
    yield x.as_subclass(type("Sub", (Tensor,), {}))
    yield x.as_subclass(
        type("Plain", (Tensor,), {"__torch_function__": torch._C._disabled_torch_function_impl})
    )
    with FakeTensorMode() as mode:
        yield mode.from_tensor(x)
    yield x.to("meta")
    yield torch.complex(x, x).conj().imag  # of the other sign in memory


def test_pointers_are_taken_from_plain_memory_only() -> None:
    geometry = SliceGeometry(0, 1.0, "projective")
    x = point(mn.Oblique(), (4, 3), 0)
    for plain in (x, nn.Parameter(x), mn.ManifoldParameter(x, mn.Oblique())):
        assert cpp.layout(plain, geometry) == (1, 4, 3)
    for other in _subclasses(x):
        assert cpp.layout(other, geometry) is None, type(other)
    seen = []

    def wrapped(v: Tensor) -> Tensor:
        seen.append(cpp.layout(v, geometry))
        return v.sum()

    torch.vmap(wrapped)(x[None])
    torch.func.grad(wrapped)(x)
    torch.func.functionalize(wrapped)(x)
    assert seen == [None] * 3


@pytest.mark.parametrize("path", [{}, {"fused": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("make", [mn.RiemannianSGD, mn.RiemannianAdam])
def test_a_weight_without_memory_is_stepped_or_refused(make: Any, path: dict[str, bool]) -> None:
    manifold = mn.Oblique()
    x, g = point(manifold, (4, 3), 0), torch.randn(4, 3, dtype=torch.float64)
    plain = nn.Module()
    plain.weight = nn.Parameter(x.clone())
    module = nn.Module()
    module.weight = nn.Parameter(Remote(x.clone()))
    for part, grad in ((plain, g), (module, Remote(g))):
        mn.declare(part, "weight", manifold)
        part.weight.grad = grad
    make(plain.parameters(), lr=0.1, foreach=False).step()
    make(module.parameters(), lr=0.1, **path).step()
    assert apart(module.weight.detach().inner, plain.weight.detach(), 0) < 1e-12
