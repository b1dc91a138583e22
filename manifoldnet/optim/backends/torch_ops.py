"""Steps by operators of torch, on any device: small weights of one shape stacked, few sweeps.

On a processor a large weight goes in blocks that stay in its cache, one operator after the other:
whole slices, products to update, where a block holds them; else the products of all blocks first.
Elsewhere a weight is one block. Values are read on a processor only: ordinary slices take the short
way through the formulas, and where something cancels, tangent parts are formed and measured, in
double precision, and the weight is measured once more after its step. An accelerator does the
latter always, in the weight's own type, and nothing waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import Slices
from manifoldnet.geometry.slices import LONG, computed_in
from manifoldnet.optim.overflow import growing
from manifoldnet.optim.step import (
    Coefficients,
    Gram,
    HyperParameters,
    StepInput,
    coefficients,
    is_zero,
    moments,
)

__all__ = ["Batch", "Kernel", "Piece", "advance", "gram", "step", "step_across", "update"]

# Numbers of a block; some blocks of this size fit into the cache of a processor.
_BLOCK = 1 << 18
# Numbers of a weight that is worth being copied to be stepped together with others.
_SMALL = 1 << 14

Over = tuple[int, ...]
Sum = Callable[[list[Tensor]], list[Tensor]]


class Piece(NamedTuple):
    """A piece of a weight, its gradient and its buffer, with two scratch tensors if it has any."""

    x: Tensor
    g: Tensor
    b: Tensor | None
    near: Tensor | None = None
    far: Tensor | None = None


class Batch(NamedTuple):
    """Slices that are stepped at once: of one weight, of stacked ones, or of one block.

    Attributes:
        work: the geometry, and what is one number per slice.
        over: the dimensions that a slice extends over.
        pieces: of the slices, whose products add up.
    """

    work: StepInput
    over: Over
    pieces: Sequence[Piece]


def step(works: Sequence[StepInput], hyper: HyperParameters) -> list[bool]:
    """Step weights in place.

    Returns:
        For each weight, whether it may have a zero slice or a norm near overflow; only processors
        are asked.
    """
    zero = [False] * len(works)
    for places in _alike(works):
        chosen = [works[place] for place in places]
        if len(chosen) == 1:
            batches = batches_of(chosen[0])
            found = max([advance([batch], hyper)[0] for batch in batches])
        else:
            found = _step_together(chosen, hyper)
        for place in places:
            zero[place] = found
    return zero


class Kernel(NamedTuple):
    """Products and update of numbered weights by another backend.

    Attributes:
        gram: the products of some of them, with those of the first look if this is the second.
        update: writes all of them.
    """

    gram: Callable[[Sequence[int], Sequence[Gram] | None], list[Gram]]
    update: Callable[[Sequence[Coefficients]], None]


def step_across(
    works: Sequence[StepInput], hyper: HyperParameters, add: Sum, kernel: Kernel | None = None
) -> None:
    """Step weights whose slices have other pieces elsewhere, in place.

    Args:
        works: the pieces that are here, of one device.
        hyper: the numbers of their group.
        add: adds up products of all pieces of slices.
        kernel: for products and update, if there is one.
    """
    advance([next(batches_of(work, one=True)) for work in works], hyper, add, kernel)


def advance(
    batches: Sequence[Batch],
    hyper: HyperParameters,
    add: Sum | None = None,
    kernel: Kernel | None = None,
) -> list[bool]:
    """Step batches in place: products, coefficients, update.

    Args:
        batches: to step, all of one device.
        hyper: the numbers of their group.
        add: adds up products that slices have in other places, all at once.
        kernel: for products and update, if there is one.

    Returns:
        For each batch, whether it may have a zero slice or a norm near overflow; only processors
        are asked.
    """
    mixtures = [
        _mixed(batch, hyper) if add is None and not hyper.nesterov else Mixture(batch)
        for batch in batches
    ]
    batches = [mixture.batch for mixture in mixtures]

    def products(places: Sequence[int], first: Sequence[Gram] | None) -> list[Gram]:
        if kernel is not None:
            return added(kernel.gram(places, first), add)
        known = [None] * len(places) if first is None else first
        return added(
            [_gram(mixtures[p], hyper, gram) for p, gram in zip(places, known, strict=True)], add
        )

    grams = products(range(len(batches)), None)
    ask = _may_ask(grams[0].xx)

    def solve(place: int, ask: bool) -> Any:
        work, rate = batches[place].work, mixtures[place].rate
        return coefficients(grams[place], work, hyper, rate=rate, ask=ask)

    found: list[Any] = [solve(place, ask) if ask else None for place in range(len(batches))]
    exact = [place for place, ordinary in enumerate(found) if ordinary is None]
    curved = [place for place in exact if batches[place].work.geometry.retraction != "additive"]
    if curved:
        parts = products(curved, [grams[place] for place in curved])
        for place, part in zip(curved, parts, strict=True):
            grams[place] = grams[place].refined(part)
    for place in exact:
        found[place] = solve(place, False)
    if kernel is not None:
        kernel.update(found)
    else:
        for place, batch in enumerate(batches):
            update(batch, found[place], exact=place in exact)
    rounded = [place for place in curved if _is_rounded(batches[place])]
    if rounded:
        _mend([batches[place] for place in rounded], [found[place] for place in rounded], add)
    if not ask:
        return [False] * len(batches)
    return [
        (place in exact and bool((gram.xx == 0).any())) or _is_growing(batch, gram.xx)
        for place, (batch, gram) in enumerate(zip(batches, grams, strict=True))
    ]


def _is_growing(batch: Batch, xx: Tensor) -> bool:
    """Test for a norm near overflow, which only the scaled metric lets grow."""
    if batch.work.geometry.radius is not None:
        return False
    return growing(float(xx.max()), batch.work.x.dtype)


class Mixture(NamedTuple):
    """Slices before their products.

    Attributes:
        batch: the slices; where gradient and buffer have been made one new buffer, that is both.
        rate: of such slices.
        xx: ⟨x, x⟩, if that has been needed.
    """

    batch: Batch
    rate: Any = None
    xx: Tensor | None = None


def _mixed(batch: Batch, hyper: HyperParameters) -> Mixture:
    """Make gradient and buffer one new buffer, and write second moments.

    So two vectors and three products are left of three and six.
    """
    work = batch.work
    if work.b is None:
        return Mixture(batch)
    sphere, adam = work.geometry.radius is not None, hyper.beta2 is not None
    names = (("xx", "xg") if sphere else ("xx", "gg")) if adam else () if sphere else ("xx",)
    sums = _sums(batch, names, {}, False) if names else []
    known: dict[str, Any] = dict(zip(names, sums, strict=True))
    rr = known.get("xx")
    keep = 0.0 if work.first else hyper.keep
    weight: Any = hyper.sign * (1.0 if work.first else hyper.fresh)
    if not sphere and rr is not None:
        weight = weight * rr
    along = None
    if "xg" in known and rr is not None:  # of a zero slice nothing is along x
        along = known["xg"] / rr.clamp(min=torch.finfo(rr.dtype).tiny)
    squares = []
    for piece in batch.pieces:
        dtype = computed_in(piece.x.dtype)
        d = _in(dtype, piece.g)
        if along is not None:
            near = _scratch(piece.near, dtype)
            d = torch.addcmul(d, along, _in(dtype, piece.x), value=-1, out=near)
            squares.append(_squared(d, batch.over, _scratch(piece.far, dtype)))
        if piece.b is not None:
            _mix(piece.b, d, keep, weight)
    rate: Any = hyper.lr
    if adam:
        squared = known["xx"] * known["gg"] if along is None else sum(squares[1:], squares[0])
        rate, s, max_s = moments(squared, work, hyper)
        _keep(work, s, max_s)
    pieces = [piece._replace(g=piece.g if piece.b is None else piece.b) for piece in batch.pieces]
    return Mixture(Batch(work._replace(s=None, max_s=None), batch.over, pieces), rate, rr)


def _mix(b: Tensor, d: Tensor, keep: Any, weight: Any) -> None:
    """b ← keep · b + weight · d; with keep zero, b may have no value yet."""
    if isinstance(weight, Tensor):
        torch.mul(d, weight, out=b) if is_zero(keep) else b.mul_(keep).addcmul_(weight, d)
    elif is_zero(keep):
        torch.mul(d, weight, out=b)
    elif isinstance(keep, Tensor):
        b.mul_(keep).add_(d, alpha=weight)
    elif weight == 1:
        torch.add(d, b, alpha=keep, out=b)
    elif weight == 1 - keep:
        b.lerp_(d, weight)
    else:
        b.mul_(keep).add_(d, alpha=weight)


def _gram(mixture: Mixture, hyper: HyperParameters, first: Gram | None = None) -> Gram:
    """The products of slices, mixed or not."""
    batch, rate, xx = mixture
    if rate is None:
        return gram(batch, batch.work.products(hyper), first)
    names = ("xx",) if batch.work.geometry.retraction == "additive" else ("xx", "xg", "gg")
    return gram(batch, names, first, xx)


def batches_of(work: StepInput, *, one: bool = False) -> Iterator[Batch]:
    """The batches of one weight: its blocks, if whole slices lie in them.

    Args:
        work: the weight.
        one: whether to put all slices into one batch.
    """
    x, dim = work.x, work.geometry.dim
    over = Slices(dim).over(x.ndim)
    along = -1
    if x.numel() > _BLOCK and _may_ask(x):
        along = max(range(x.ndim), key=lambda d: (x.stride(d), x.shape[d]))  # the slowest
    if along == -1 or (one and along == dim):
        yield Batch(work, over, [Piece(work.x, work.g, work.b)])
        return
    long = max(1, _BLOCK * x.shape[along] // x.numel())
    # One place for what is computed on the way: memory that is asked for anew costs more than that.
    like = torch.empty_like(x.narrow(along, 0, long), dtype=computed_in(x.dtype))
    space = like, torch.empty_like(like)
    parts = [_divided(t, along, long) for t in (work.x, work.g, work.b, work.s, work.max_s)]
    pieces = [
        Piece(x_, g, b, *(place.narrow(along, 0, x_.shape[along]) for place in space))
        for x_, g, b in zip_longest(*parts[:3])
    ]
    if along != dim:
        yield Batch(work, over, pieces)
        return
    for i, piece in enumerate(pieces):
        s, max_s = (part[i] if part else None for part in parts[3:])
        yield Batch(work._replace(s=s, max_s=max_s), over, [piece])


def _alike(works: Sequence[StepInput]) -> Iterator[list[int]]:
    """Small weights of equal type, shape and geometry; single weights otherwise.

    On an accelerator no weight is too large: what counts is the number of launches.
    """
    groups: dict[object, list[int]] = {}
    for place, work in enumerate(works):
        x = work.x
        if x.device.type == "cpu" and (x.numel() > _SMALL or torch.compiler.is_compiling()):
            yield [place]
            continue
        unbias = None if isinstance(work.unbias[0], Tensor) else work.unbias
        form = x.shape, x.stride(), x.dtype, x.device
        groups.setdefault((*form, work.geometry, work.first, work.s_factor, unbias), []).append(
            place
        )
    yield from groups.values()


def _step_together(works: Sequence[StepInput], hyper: HyperParameters) -> bool:
    first = works[0]
    dim = first.geometry.dim
    apart = {0} if dim is None else {0, int(dim) + 1}
    over = tuple(d for d in range(first.x.ndim + 1) if d not in apart)

    def stacked(name: str) -> Any:
        tensors = [getattr(work, name) for work in works]
        return None if tensors[0] is None else torch.stack(tensors)

    x, g, b, s, max_s = map(stacked, ("x", "g", "b", "s", "max_s"))
    unbias: Any = first.unbias
    if isinstance(unbias[0], Tensor):
        shape = [len(works)] + [1] * first.x.ndim
        corrections: Any = zip(*(work.unbias for work in works), strict=True)
        unbias = tuple(torch.stack(some).view(shape) for some in corrections)
    work = first._replace(x=x, g=g, b=b, s=s, max_s=max_s, unbias=unbias)
    batch = Batch(work, over, [Piece(x, g, b)])
    (zero,) = advance([batch], hyper)
    for stack, name in ((x, "x"), (b, "b"), (s, "s"), (max_s, "max_s")):
        if stack is not None:
            torch._foreach_copy_([getattr(work, name) for work in works], list(stack.unbind()))
    return zero


def _divided(tensor: Tensor | None, along: int, long: int) -> Sequence[Tensor]:
    return () if tensor is None else tensor.split(long, along)


def _may_ask(x: Tensor) -> bool:
    """Test whether values can be read without waiting: on a processor."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


# --- products ---------------------------------------------------------------------------------


def gram(
    batch: Batch, names: Sequence[str], first: Gram | None = None, xx: Tensor | None = None
) -> Gram:
    """Inner products of slices.

    Args:
        batch: the slices.
        names: of the products.
        first: the same products, to take what they have along x from the gradient and the buffer
            before these are multiplied (`Gram.refined`).
        xx: ⟨x, x⟩, if it is known.
    """
    along: dict[str, Tensor] = {}
    if first is not None:
        wide = _wide(first.xx)
        found = zip("gb", first.along(first.xx == 0), strict=True)
        along = {name: factor.to(wide) for name, factor in found if factor is not None}
    elif xx is not None:
        names = [name for name in names if name != "xx"]
    sums = _sums(batch, names, along, first is not None) if names else []
    products: dict[str, Any] = dict(zip(names, sums, strict=True))
    return Gram(**{"xx": xx, **products})


def _sums(
    batch: Batch, names: Sequence[str], along: dict[str, Tensor], exact: bool
) -> Sequence[Tensor]:
    found = [_products(piece, names, along, batch.over, exact) for piece in batch.pieces]
    return (
        found[0] if len(found) == 1 else [torch.stack(p).sum(0) for p in zip(*found, strict=True)]
    )


def _wide(x: Tensor) -> torch.dtype:
    """The type of exact arithmetic: double precision on a processor."""
    return torch.float64 if _may_ask(x) else computed_in(x.dtype)


def _products(
    piece: Piece, names: Sequence[str], along: dict[str, Tensor], over: Over, exact: bool
) -> list[Tensor]:
    dtype = _wide(piece.x) if exact else computed_in(piece.x.dtype)
    vectors = {"x": _in(dtype, piece.x), "g": _in(dtype, piece.g)}
    if piece.b is not None:
        vectors["b"] = _in(dtype, piece.b)
    x, scratch = vectors["x"], None if piece.far is None or piece.far.dtype != dtype else piece.far
    parts = {v: torch.addcmul(vectors[v], a, x, value=-1) for v, a in along.items()}
    found = []
    for name in names:
        first, second = tuple(name)
        u, v = parts.get(first, vectors[first]), parts.get(second, vectors[second])
        found.append(_squared(u, over, scratch) if u is v else _inner(u, v, over, scratch))
    return found


def added(grams: list[Gram], add: Sum | None) -> list[Gram]:
    """Products with those that slices have in other places."""
    if add is None:
        return grams
    names = [
        [name for name in gram._fields[:6] if getattr(gram, name) is not None] for gram in grams
    ]
    sums = iter(add([getattr(g, n) for g, some in zip(grams, names, strict=True) for n in some]))
    added: list[dict[str, Any]] = [{name: next(sums) for name in some} for some in names]
    return [g._replace(**products) for g, products in zip(grams, added, strict=True)]


def _inner(u: Tensor, v: Tensor, over: Over, out: Tensor | None) -> Tensor:
    product = torch.mul(u, v, out=out)
    for run in _runs(over):  # torch's sum over dimensions on both sides of another is slow
        product = product.sum(run, keepdim=True)
    return product


def _squared(x: Tensor, over: Over, out: Tensor | None) -> Tensor:
    short = x.numel() <= LONG or math.prod(x.shape[d] for d in over) <= LONG
    if short and len(_runs(over)) == 1 and over[-1] == x.ndim - 1 and x.is_contiguous():
        return torch.linalg.vector_norm(x, 2, over, keepdim=True).square_()
    return _inner(x, x, over, out)


@cache
def _runs(over: Over) -> tuple[Over, ...]:
    """Dimensions in groups of neighbours."""
    runs: list[list[int]] = []
    for d in over:
        if runs and runs[-1][-1] == d - 1:
            runs[-1].append(d)
        else:
            runs.append([d])
    return tuple(map(tuple, runs))


# --- update -----------------------------------------------------------------------------------


def update(batch: Batch, found: Coefficients, *, exact: bool = False) -> None:
    """Write weights, buffers and second moments by the coefficients of their slices."""
    _keep(batch.work, found.s, found.max_s)
    for piece in batch.pieces:
        dtype = _wide(piece.x) if exact else computed_in(piece.x.dtype)
        _write(piece, found, dtype)


def _keep(work: StepInput, s: Tensor | None, max_s: Tensor | None) -> None:
    """Write second moments."""
    for state, value in ((work.s, s), (work.max_s, max_s)):
        if state is not None and value is not None:
            state.copy_(value)


def _write(piece: Piece, found: Coefficients, dtype: torch.dtype) -> None:
    x, g = _in(dtype, piece.x), _in(dtype, piece.g)
    x1, x2, x3, b1, b2, b3 = [
        value.to(dtype) if isinstance(value, Tensor) and value.dtype is not dtype else value
        for value in found[:6]
    ]
    if piece.b is None:
        _put(piece.x, _combined([(x1, x), (x2, g)], x))
        return
    b = _in(dtype, piece.b)
    near = x if is_zero(b1) else _scratch(piece.near, dtype)  # b⁺ may need x as it is
    end = _combined([(x1, x), (x2, g), (x3, b)], near)
    _put(piece.b, _combined([(b3, b), (b2, g), (b1, x)], b))
    _put(piece.x, end)


def _combined(terms: Sequence[tuple[Tensor | float, Tensor]], out: Tensor | None) -> Tensor:
    """The sum of factors times vectors, written to `out`, which may be the first vector."""
    total: Tensor | None = None
    ours = False  # in place is cheaper than with `out`
    for factor, v in terms:
        plain = not isinstance(factor, Tensor)
        if plain and factor == 0:
            continue
        if total is None:
            ours = v is out
            if plain and factor == 1:
                total = v
                continue
            total = v.mul_(factor) if ours else torch.mul(v, factor, out=out)
        elif isinstance(factor, Tensor):
            total = total.addcmul_(v, factor) if ours else torch.addcmul(total, v, factor, out=out)
        elif ours:
            total = total.add_(v, alpha=factor)
        else:
            total = torch.add(total, v, alpha=factor, out=out)
        ours = True
    return torch.zeros_like(terms[0][1]) if total is None else total


def _is_rounded(batch: Batch) -> bool:
    """Test for slices of a sphere that no wider type was there for."""
    x = batch.pieces[0].x
    return batch.work.geometry.radius is not None and _wide(x) == x.dtype


def _put(place: Tensor, value: Tensor) -> None:
    if value is not place:
        place.copy_(value)


def _in(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _scratch(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is not None and tensor.dtype == dtype else None


def _mend(batches: Sequence[Batch], found: Sequence[Coefficients], add: Sum | None) -> None:
    """Bring slices that moved back to their radius.

    What a large gradient has along x cancels in x⁺, and leaves its rounding.
    """
    squares = [Gram(xx=_sums(batch, ("xx",), {}, True)[0]) for batch in batches]
    for batch, c, measured in zip(batches, found, added(squares, add), strict=True):
        moved = (measured.xx > 0) & ((c.x1 != 1) | (c.x2 != 0) | (c.x3 != 0))
        radius: Any = batch.work.geometry.radius
        factor = torch.where(moved, radius / measured.xx.sqrt(), 1.0)
        for piece in batch.pieces:
            piece.x.mul_(factor)
