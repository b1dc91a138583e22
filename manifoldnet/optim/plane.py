"""Steps in few passes over memory, without a compiler.

A direction v at x is v = s x + t with t ⊥ x, and a step u = −σ v stays, with the buffer v that it
carries along, in the plane of x and t of its slice: with r = ‖x‖, q = ‖t‖,

    x′ = a x + b t        v′ = c x + d t

    sphere, projective    R = √(r² + σ²q²):  a = ρ/R, b = −σ ρ/R, c = σ q²/(r R), d = r/R
    sphere, geodesic      θ = |σ| q/ρ:  a = cos θ, b = −σ sinc θ, c = σ (q/ρ)² sinc θ, d = cos θ
    scaled, geodesic      θ = |σ| q/r:  a = e cos θ, b = −σ e sinc θ with e = exp(−σ s),
                          c = e (s cos θ + σ (q/r)² sinc θ), d = e (cos θ − σ s sinc θ)
    scaled, additive      x′ = x − σ v, v′ = v

with sinc θ = sin θ/θ; on spheres s is left out, and x′ is put to norm ρ as measured. t is formed as
a vector, so that nothing cancels in float32. Rows are stepped in blocks that stay in the cache,
small weights of one shape and manifold together. Nesterov's step leaves the plane: it takes the
reference path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.optim.kind import Kind
from manifoldnet.optim.work import Rates, Work

__all__ = ["step"]

# Numbers of a block; some blocks of this size fit into the cache of a processor.
_BLOCK = 1 << 17
# Numbers of a weight that is worth being copied to be stepped together with others.
_SMALL = 1 << 14

_Over = tuple[int, ...]


def step(works: Sequence[Work], rates: Rates) -> None:
    """Step weights in place."""
    for batch in _batches(works):
        if len(batch) == 1:
            _step_one(batch[0], rates)
        else:
            _step_together(batch, rates)


def _batches(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Small weights that differ in nothing but their numbers, together; all others alone."""
    groups: dict[object, list[Work]] = {}
    for work in works:
        x = work.x
        if x.numel() > _SMALL or torch.compiler.is_compiling():
            yield [work]
        else:
            alike = x.shape, x.stride(), x.dtype, x.device, work.kind, work.first, work.unbias
            groups.setdefault(alike, []).append(work)
    yield from groups.values()


def _step_together(works: Sequence[Work], rates: Rates) -> None:
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
    _advance(first._replace(x=x, g=g, v=v, s=s, top=top), rates, over)
    for stack, name in ((x, "x"), (v, "v"), (s, "s"), (top, "top")):
        if stack is not None:
            torch._foreach_copy_([getattr(w, name) for w in works], list(stack.unbind()))


def _step_one(work: Work, rates: Rates) -> None:
    x, kind = work.x, work.kind
    over = slices.reduced(x.ndim, kind.dim)
    if kind.dim != 0 or x.numel() <= _BLOCK or torch.compiler.is_compiling():
        _advance(work, rates, over)
        return
    rows = max(1, _BLOCK * len(x) // x.numel())
    parts = [
        [None] * -(-len(x) // rows) if t is None else t.split(rows)
        for t in (x, work.g, work.v, work.s, work.top)
    ]
    for x_, g, v, s, top in zip(*parts, strict=True):
        _advance(work._replace(x=x_, g=g, v=v, s=s, top=top), rates, over)


def _advance(work: Work, rates: Rates, over: _Over) -> None:
    """One step of slices that extend over some dimensions."""
    x, g = slices.promote(work.x, work.g)
    kind, v = work.kind, work.v
    on_sphere = kind.radius is not None
    r = _norm(x, over)
    rr = r.square()
    sigma = rates.lr
    if v is not None:
        d, weight = g, 1.0 if work.first and rates.beta2 is None else rates.fresh
        if rates.beta2 is not None:
            if on_sphere:
                d = torch.addcmul(g, _inner(x, g, over) / rr, x, value=-1)
            sigma = _adapted(work, rates, _norm(d, over).square_(), d.numel(), rr)
        _mix(v, 0.0 if work.first else rates.keep, d, rates.sign * weight, kind, rr)
        direction = v
    else:
        direction = g
        sigma = sigma * rates.sign if on_sphere else sigma * rates.sign * rr
    if kind.way == "additive":
        x.sub_(direction * sigma)
    else:
        _turn(x, direction, v is not None, sigma, r, over, kind)
    if x is not work.x:
        work.x.copy_(x)


def _mix(v: Tensor, keep: float, d: Tensor, weight: float, kind: Kind, rr: Tensor) -> None:
    """v ← keep · v + weight · (d, or ‖x‖² d under the scaled metric), in place."""
    if keep == 0:
        torch.mul(d, weight if kind.radius is not None else weight * rr, out=v)
    elif kind.radius is not None:
        v.mul_(keep).add_(d, alpha=weight)
    else:
        v.mul_(keep).addcmul_(rr, d, value=weight)


def _adapted(work: Work, rates: Rates, squared: Tensor, size: int, rr: Tensor) -> Tensor:
    """Adam's σ of each slice, from ‖d‖² (‖g‖² under the scaled metric); moments are updated."""
    assert work.s is not None
    assert rates.beta2 is not None
    if work.kind.radius is None:
        squared = squared * rr
    if rates.rms:
        squared = squared * (squared.numel() / size)
    s = work.s
    if work.first:
        torch.mul(squared, 1 - rates.beta2, out=s)
    else:
        s.mul_(rates.beta2).add_(squared, alpha=1 - rates.beta2)
    if work.top is not None:
        s = torch.maximum(work.top, s, out=work.top)
    unbias1, unbias2 = work.unbias
    return rates.lr / ((s / unbias2).sqrt_().add_(rates.eps) * unbias1)


def _turn(
    x: Tensor,
    direction: Tensor,
    carries: bool,
    sigma: float | Tensor,
    r: Tensor,
    over: _Over,
    kind: Kind,
) -> None:
    """The step of the plane, in place; `direction` is a buffer to carry along, or left as it is."""
    share = _inner(x, direction, over) / r.square()
    out = direction if carries else None
    t = torch.addcmul(direction, share, x, value=-1, out=out)
    q = _norm(t, over)
    if kind.way == "projective":
        assert kind.radius is not None
        end = torch.hypot(r, q * sigma)
        a = kind.radius / end
        b = -sigma * a
        c, d = sigma / end * (q / r) * q, r / end
    else:
        unit = r if kind.radius is None else kind.radius
        q_ = q / unit
        cos, sinc = slices.cos_sinc((q_ * sigma).square())
        a, b = cos, -sigma * sinc
        c, d = sigma * sinc * q_.square(), cos
        if kind.radius is None:
            stretch = (-sigma * share).exp()
            a, b = stretch * a, stretch * b
            c, d = stretch * (share * cos + c), stretch * (cos - sigma * share * sinc)
    if not carries:
        x.mul_(a).addcmul_(b, t)
    else:
        y = torch.mul(x, a).addcmul_(b, t)
        t.mul_(d).addcmul_(c, x)
        x.copy_(y)
    if kind.radius is not None:
        x.mul_(kind.radius / _norm(x, over))


# A slice of one number extends over no dimension, which torch would read as all of them.
def _inner(u: Tensor, v: Tensor, over: _Over) -> Tensor:
    return (u * v).sum(over, keepdim=True) if over else u * v


def _norm(x: Tensor, over: _Over) -> Tensor:
    return torch.linalg.vector_norm(x, 2, over, keepdim=True) if over else x.abs()
