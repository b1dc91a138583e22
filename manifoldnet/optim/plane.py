"""Steps in few passes over memory, without a compiler.

A direction v at x is v = s x + t with t ⊥ x, and a step u = −σ v stays, with the buffer v that it
carries along, in the plane of x and t of its slice: with r = ‖x‖, q = ‖t‖,

    x′ = a x + b t        v′ = c x + d t

    sphere, projective    R = √(r² + σ²q²):  a = ρ/R, b = −σ ρ/R, c = σ q²/(r R), d = r/R
    sphere, geodesic      θ = |σ| q/ρ:  a = cos θ, b = −σ sinc θ, c = σ (q/ρ)² sinc θ, d = cos θ
    scaled, geodesic      θ = |σ| q/r:  a = e cos θ, b = −σ e sinc θ with e = exp(−σ s),
                          c = e (s cos θ + σ (q/r)² sinc θ), d = e (cos θ − σ s sinc θ)
    scaled, additive      x′ = x − σ v, v′ = v

with sinc θ = sin θ/θ; on spheres s is left out, and a and b bring x′ to norm ρ from r as measured.
q² is a difference, ‖v‖² − s²r², where that is exact; else v is divided by its largest entry, whose
square might overflow, t is formed as a vector and x′ is measured once more. Slices that are zero,
and on spheres those with t = 0, stay as they are. So a step is two or three sweeps, one operator
after the other on blocks that stay in the cache: for inner products, for the buffer, for writing.
Slices that lie in one block are through with it at once. Small weights of one shape and manifold
are stepped together. Nesterov's step leaves the plane: it takes the reference path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import Slices, slices
from manifoldnet.optim.kind import Kind
from manifoldnet.optim.work import Rates, Work

__all__ = ["step"]

# Numbers of a block; some blocks of this size fit into the cache of a processor.
_BLOCK = 1 << 18
# Numbers of a weight that is worth being copied to be stepped together with others.
_SMALL = 1 << 14

# Numbers of a slice whose norm torch sums well enough; `sum` adds pairwise, `vector_norm` in a row.
_SHORT = 1 << 13

_Over = tuple[int, ...]


def step(works: Sequence[Work], rates: Rates) -> list[bool]:
    """Step weights in place.

    Returns:
        For each weight, whether it may have a zero slice; only processors are asked.
    """
    zero = [False] * len(works)
    for places in _batches(works):
        batch = [works[place] for place in places]
        found = _step_one(batch[0], rates) if len(batch) == 1 else _step_together(batch, rates)
        for place in places:
            zero[place] = found
    return zero


def _batches(works: Sequence[Work]) -> Iterator[list[int]]:
    """Batches of small weights of equal type, shape and geometry; single weights otherwise."""
    groups: dict[object, list[int]] = {}
    for place, work in enumerate(works):
        x = work.x
        if x.numel() > _SMALL or torch.compiler.is_compiling():
            yield [place]
        else:
            alike = x.shape, x.stride(), x.dtype, x.device, work.kind, work.first, work.unbias
            groups.setdefault(alike, []).append(place)
    yield from groups.values()


def _step_together(works: Sequence[Work], rates: Rates) -> bool:
    first = works[0]
    dim = first.kind.dim
    apart = {0} if dim is None else {0, int(dim) + 1}
    over = tuple(d for d in range(first.x.ndim + 1) if d not in apart)

    def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
        there = [t for t in tensors if t is not None]
        return torch.stack(there) if there else None

    x, g, v, s, top = (
        stacked(tensors)
        for tensors in zip(*[(w.x, w.g, w.v, w.s, w.top) for w in works], strict=True)
    )
    assert x is not None
    assert g is not None
    zero = _advance(first._replace(x=x, g=g, v=v, s=s, top=top), rates, over, [_Piece(x, g, v)])
    for stack, name in ((x, "x"), (v, "v"), (s, "s"), (top, "top")):
        if stack is not None:
            torch._foreach_copy_([getattr(w, name) for w in works], list(stack.unbind()))
    return zero


def _step_one(work: Work, rates: Rates) -> bool:
    x, dim = work.x, work.kind.dim
    over = Slices(dim).over(x.ndim)
    if x.numel() <= _BLOCK or torch.compiler.is_compiling():
        return _advance(work, rates, over, [_Piece(work.x, work.g, work.v)])
    along = max(range(x.ndim), key=lambda d: (x.stride(d), x.shape[d]))  # the slowest in memory
    long = max(1, _BLOCK * x.shape[along] // x.numel())
    # One place for what is computed on the way: memory that is asked for anew costs more than that.
    (like,) = slices.promote(x.narrow(along, 0, long))
    space = torch.empty_like(like), torch.empty_like(like)
    parts = [_divided(t, along, long) for t in (work.x, work.g, work.v, work.s, work.top)]
    pieces = [
        _Piece(x_, g, v, *(place.narrow(along, 0, x_.shape[along]) for place in space))
        for x_, g, v in zip_longest(*parts[:3])
    ]
    if along != dim:
        return _advance(work, rates, over, pieces)
    # Whole slices are in each piece: it does not leave the cache until it has been stepped.
    zero = False
    for i, piece in enumerate(pieces):
        s, top = (part[i] if part else None for part in parts[3:])
        zero |= _advance(work._replace(x=piece.x, s=s, top=top), rates, over, [piece])
    return zero


def _divided(tensor: Tensor | None, along: int, long: int) -> Sequence[Tensor]:
    return () if tensor is None else tensor.split(long, along)


class _Piece(NamedTuple):
    """A piece of a weight, its gradient and buffer, with two scratch tensors."""

    x: Tensor
    g: Tensor
    v: Tensor | None
    near: Tensor | None = None
    far: Tensor | None = None

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """Weight and gradient in the type of the arithmetic."""
        x, g = slices.promote(self.x, self.g)
        return x, g

    @property
    def direction(self) -> Tensor:
        """The direction of the step: the buffer, or the gradient."""
        return self.values[1] if self.v is None else self.v

    def put(self, x: Tensor) -> None:
        """Store the computed weight, in the type of the parameter."""
        if x is not self.x:
            self.x.copy_(x)


def _advance(work: Work, rates: Rates, over: _Over, pieces: Sequence[_Piece]) -> bool:
    """One step of slices, which may extend over several pieces.

    Returns:
        Whether a slice is known to be zero.
    """
    kind, sigma = work.kind, rates.lr
    radius = kind.radius
    scaled, turns = radius is None, kind.way != "additive"
    carries, adam = work.v is not None, rates.beta2 is not None
    of_g = 2 if turns and not carries else 1 if adam and not scaled else 0
    rr, *found = _sum([_look(piece, over, of_g) for piece in pieces])
    zero = False
    if not turns and carries and _asked(rr) and not float(rr.min()) > 0:
        zero = True
        for piece in pieces:  # a buffer that does not know that its slice was set to zero
            piece.v.mul_(rr > 0)  # type: ignore[union-attr]
    if carries:
        # Of a zero slice nothing is along x.
        along = found[0] / _positive(rr) if found else None
        found = _sum([_mix(piece, work, rates, over, rr, along, turns) for piece in pieces])
        if adam:
            sigma = _adapted(work, rates, found.pop(), rr)
    else:
        sigma = sigma * rates.sign * rr if scaled else sigma * rates.sign
    if not turns:
        for piece in pieces:
            x, v = piece.values[0], piece.direction
            if isinstance(sigma, Tensor):
                piece.put(x.addcmul_(v, sigma, value=-1))
            else:
                piece.put(x.sub_(v, alpha=sigma))
        return zero
    xv, vv = found
    share = xv / rr
    tt = torch.addcmul(vv, share, xv, value=-1)
    if not _lost(tt, vv, rates.lr):
        turn = _turn(kind, sigma, rr, tt, share, carries)
        for piece in pieces:
            _write(piece, *turn)
        return False
    return _advance_carefully(kind, sigma, rr, over, pieces, carries)


def _advance_carefully(
    kind: Kind,
    sigma: float | Tensor,
    rr: Tensor,
    over: _Over,
    pieces: Sequence[_Piece],
    carries: bool,
) -> bool:
    """The end of a step with cancellation in ‖t‖², or with slices that do not move."""
    zero = rr == 0
    rr = _positive(rr)
    size = torch.stack([_largest(piece, over) for piece in pieces]).amax(0)
    size = torch.where((size > 0) & size.isfinite(), size, 1.0)  # NaN goes its way
    (xv,) = _sum([(_per_size(piece, size, over),) for piece in pieces])
    share = xv / rr
    (tt,) = _sum([(_tangent_square(piece, size, share, over),) for piece in pieces])
    most = torch.finfo(rr.dtype).max ** 0.75
    sigma = (sigma * size).clamp(-most, most)
    x1, x2, *carried = _turn(kind, sigma, rr, tt, share, carries)
    still = zero if kind.radius is None else zero | (tt == 0) | (sigma == 0)
    x1, x2 = torch.where(still, 1.0, x1), torch.where(still, 0.0, x2 / size)
    if carried:
        v1, v2 = carried
        carried = [torch.where(zero, 0.0, v1 * size), torch.where(zero, 0.0, v2)]
    for piece in pieces:
        _write(piece, x1, x2, *carried)
    if kind.radius is not None:
        # x′ has rounding errors of what v had along x, and that may have been much.
        (xx,) = _sum([_look(piece, over, 0) for piece in pieces])
        mend = torch.where(still, 1.0, kind.radius / xx.sqrt())
        for piece in pieces:
            piece.x.mul_(mend)
    return _asked(rr) and bool(zero.any())


def _sum(found: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The inner products of slices, summed over pieces."""
    if len(found) == 1:
        return list(found[0])
    return [torch.stack(parts).sum(0) for parts in zip(*found, strict=True)]


def _asked(x: Tensor) -> bool:
    """Test whether values can be read without waiting: on a processor."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _positive(rr: Tensor) -> Tensor:
    """‖x‖² as a divisor: positive for zero slices too."""
    return rr.clamp(min=torch.finfo(rr.dtype).tiny)


def _lost(tt: Tensor, vv: Tensor, lr: float | Tensor) -> bool:
    """Test for cancellation in ‖t‖² (v nearly parallel to x), a step of 0, or overflow."""
    if not _asked(tt) or lr == 0:
        return True
    return not float((tt / vv).min()) > 0.5  # NaN where there is no step, or no finite square


def _look(piece: _Piece, over: _Over, of_g: int) -> tuple[Tensor, ...]:
    """⟨x, x⟩, and ⟨x, g⟩ and ⟨g, g⟩ where they are needed."""
    x, g = piece.values
    found = [_squared(x, over, piece.far)]
    if of_g > 0:
        found.append(_inner(x, g, over, piece.far))
    if of_g > 1:
        found.append(_squared(g, over, piece.far))
    return tuple(found)


def _mix(
    piece: _Piece,
    work: Work,
    rates: Rates,
    over: _Over,
    rr: Tensor,
    along: Tensor | None,
    turns: bool,
) -> tuple[Tensor, ...]:
    """Update the buffer by the gradient; return ⟨x, v⟩, ⟨v, v⟩ and, for Adam, ‖g‖²."""
    x, d = piece.values
    v, keep = piece.v, 0.0 if work.first else rates.keep
    assert v is not None
    weight = rates.sign * (1.0 if work.first else rates.fresh)
    if along is not None:
        d = torch.addcmul(d, along, x, value=-1, out=piece.near)
    squares = () if rates.beta2 is None else (_squared(d, over, piece.far),)
    if work.kind.radius is None:
        v.mul_(keep).addcmul_(rr, d, value=weight) if keep else torch.mul(d, weight * rr, out=v)
    elif not keep:
        torch.mul(d, weight, out=v)
    elif weight == 1:
        torch.add(d, v, alpha=keep, out=v)
    elif weight == 1 - keep:
        v.lerp_(d, weight)
    else:
        v.mul_(keep).add_(d, alpha=weight)
    if not turns:
        return squares
    return _inner(x, v, over, piece.far), _squared(v, over, piece.far), *squares


def _adapted(work: Work, rates: Rates, squared: Tensor, rr: Tensor) -> Tensor:
    """Adam's σ of each slice from ‖d‖² (‖g‖² under the scaled metric); updates the moments."""
    assert work.s is not None
    assert rates.beta2 is not None
    if work.kind.radius is None:
        squared = squared * rr
    if rates.rms:
        squared = squared * (squared.numel() / work.x.numel())
    s = work.s
    s.mul_(rates.beta2).add_(squared, alpha=1 - rates.beta2)  # not lerp: ∞ is to stay ∞
    if work.top is not None:
        s = torch.maximum(work.top, s, out=work.top)
    unbias1, unbias2 = work.unbias
    sigma: Tensor = rates.lr / ((s / unbias2).sqrt_().add_(rates.eps) * unbias1)
    # Without eps: where there never was a gradient there is no step.
    return sigma if rates.eps else torch.where(s == 0, 0.0, sigma)


def _largest(piece: _Piece, over: _Over) -> Tensor:
    """The largest entry of v in each slice."""
    return torch.abs(piece.direction, out=piece.far).amax(over, keepdim=True)


def _per_size(piece: _Piece, size: Tensor, over: _Over) -> Tensor:
    """⟨x, v⟩ for v divided by its size."""
    v = torch.div(piece.direction, size, out=piece.near)
    return _inner(piece.values[0], v, over, piece.far)


def _tangent_square(piece: _Piece, size: Tensor, share: Tensor, over: _Over) -> Tensor:
    """‖t‖² for v divided by its size, from the vector t itself."""
    v = torch.div(piece.direction, size, out=piece.near)
    t = torch.addcmul(v, share, piece.values[0], value=-1, out=piece.near)
    return _squared(t, over, piece.far)


def _turn(
    kind: Kind, sigma: float | Tensor, rr: Tensor, tt: Tensor, share: Tensor, carries: bool
) -> tuple[Tensor, ...]:
    """The step as x′ = x₁ x + x₂ v and v′ = v₁ x + v₂ v, from a to d of the module's docstring."""
    c = d = rr
    if kind.way == "projective":
        assert kind.radius is not None
        r = rr.sqrt()
        per_end = torch.hypot(r, tt.sqrt() * sigma).reciprocal_()
        a = per_end if kind.radius == 1 else per_end * kind.radius
        b = a * -sigma
        if carries:
            c, d = sigma * tt * per_end / r, r * per_end
    else:
        qq = tt / (rr if kind.radius is None else kind.radius**2)
        cos, sinc = slices.cos_sinc((qq.sqrt() * sigma).square())
        sine = sigma * sinc
        if kind.radius is None:
            stretch = (-sigma * share).exp()
            a, b = stretch * cos, -stretch * sine
            c, d = stretch * (share * cos + sine * qq), stretch * (cos - sine * share)
        else:
            size = kind.radius / (cos.square() * rr + sine.square() * tt).sqrt_()
            a, b = size * cos, -size * sine
            c, d = sine * qq, cos
    x = torch.addcmul(a, b, share, value=-1), b
    return (*x, torch.addcmul(c, d, share, value=-1), d) if carries else x


def _write(piece: _Piece, x1: Tensor, x2: Tensor, *carried: Tensor) -> None:
    x, _ = piece.values
    v = piece.direction
    if carried:
        v1, v2 = carried
        end = torch.mul(x, x1, out=piece.near).addcmul_(x2, v)
        v.mul_(v2).addcmul_(v1, x)
        piece.x.copy_(end)
    else:
        piece.put(x.mul_(x1).addcmul_(x2, v))


def _inner(u: Tensor, v: Tensor, over: _Over, out: Tensor | None) -> Tensor:
    product = torch.mul(u, v, out=out)
    for run in _runs(over):  # torch's sum over dimensions on both sides of another is slow
        product = product.sum(run, keepdim=True)
    return product


def _squared(x: Tensor, over: _Over, out: Tensor | None) -> Tensor:
    short = x.numel() <= _SHORT or math.prod(x.shape[d] for d in over) <= _SHORT
    if short and len(_runs(over)) == 1 and over[-1] == x.ndim - 1 and x.is_contiguous():
        return torch.linalg.vector_norm(x, 2, over, keepdim=True).square_()
    return _inner(x, x, over, out)


@cache
def _runs(over: _Over) -> tuple[_Over, ...]:
    """Dimensions in groups of neighbours."""
    runs: list[list[int]] = []
    for d in over:
        if runs and runs[-1][-1] == d - 1:
            runs[-1].append(d)
        else:
            runs.append([d])
    return tuple(map(tuple, runs))
