"""Gradients in the frame of a weight's metric, and displacements retracted.

For a weight x with gradient g, and with q the frame of its metric (`manifoldnet.geometry.Frame`),

    enter    ĝ = grad f(x)/q            and x̂ = x/q, or 0, in the place of x
    leave    v = q (x̂⁺ − x̂),  x ← R_x(P_x v)

On spheres and under the scaled metric both need no more than inner products of slices, which are
added up over processes in one message for all weights; the retraction is the common step of
`manifoldnet.optim.step`. Other manifolds, and `foreach=False`, take the formulas as they are
written.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import FactorFrame, Frame, Manifold, Oblique, Polar
from manifoldnet.geometry.settled import copy_into, laid_out_as, settle
from manifoldnet.geometry.slices import computed_in, promote
from manifoldnet.optim import backends, memory, pairs, shards
from manifoldnet.optim.groups import Declared
from manifoldnet.optim.motion import Motion
from manifoldnet.optim.step import (
    HyperParameters,
    StepInput,
    is_zero,
    slice_geometry,
)

__all__ = ["Displaced", "Length", "Lengths", "Tangent", "Weight", "enter", "leave"]

Length = Literal["base", "angle"]
"""The length of a step: the optimizer's own, or lr."""

Tangent = bool | Literal["gradient"]
"""Whether gradient and displacement are projected to tangent spaces, or the gradient alone."""

Seen = tuple[Frame, Tensor]
"""A frame and the coordinates of a gradient in it. Steps of the kernel need none: q = 1 there."""

# A step along a given displacement.
_RETRACT = HyperParameters(1.0, sign=-1.0, displacement=True)
# Multiples of the rounding of a type, within which a vector counts as tangent.
_ROUNDINGS = 8


@dataclass(eq=False)
class Weight(Declared):
    """A declared weight in a group of an optimizer of torch.

    Attributes:
        name: in messages.
        group: of the optimizer.
        gain: of a weight on `Polar`, the gains of its slices, with signs: a direction is carried
            on through zero, so that what an optimizer keeps of it needs no change of sign.
        space: memory in the form of the weight, or of its piece here, by what it is for. On a
            processor it is kept from step to step: to ask for it anew costs more than the step.
    """

    name: str = field(kw_only=True)
    group: dict[str, Any] = field(kw_only=True)
    gain: torch.nn.Parameter | None = None
    space: dict[str, Tensor] = field(default_factory=dict)

    def room(self, purpose: str, x: Tensor) -> Tensor:
        """Memory that is laid out as a tensor, with any values."""
        found = self.space.get(purpose)
        if found is None or memory.form(found) != memory.form(x):
            found = torch.empty_like(x)
            if x.device.type == "cpu":
                self.space[purpose] = found
        return found

    def label(self) -> str:
        """The name in messages."""
        return self.name

    @property
    def by_formulas(self) -> bool:
        """True for `foreach=False`, and for manifolds whose steps need more than products."""
        return self.geometry is None or self.group.get("foreach") is False

    @property
    def is_sphere(self) -> bool:
        """True if its slices have a radius."""
        return self.geometry is not None and self.geometry.radius is not None


@dataclass(eq=False)
class Displaced:
    """A weight that an optimizer is about to step, or has stepped, in the frame.

    Attributes:
        weight: the weight.
        grad: its own gradient.
        start: its values before the step; the piece of a sharded weight that is here.
        frame: at `start`.
        shown: what the optimizer was given in the place of x/q; None for zero.
        direction: of a weight on `Polar`, in the place of which the optimizer steps.
        factor_frame: of a factor of a pair.
    """

    weight: Weight
    grad: Tensor
    start: Tensor
    frame: Frame
    shown: Tensor | None
    direction: Tensor | None = None
    factor_frame: FactorFrame | None = None

    @property
    def decay(self) -> float | Tensor:
        """The share of the weight that decoupled weight decay takes off; none of a length."""
        group = self.weight.group
        if self.shown is not None or self.weight.is_sphere or self.direction is not None:
            return 0.0
        found: float | Tensor = group["lr"] * group.get("weight_decay", 0)
        return found

    def join(self) -> None:
        """Write the weight of its new gain and direction."""
        gain, manifold = self.weight.gain, self.weight.manifold
        if gain is not None and self.direction is not None and isinstance(manifold, Polar):
            copy_into(self.weight.p.detach(), manifold.join(gain.detach(), self.direction))

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight before the step."""
        return self.grad.shape

    def restore(self) -> None:
        """Put weight and gradient back as they were."""
        p = self.weight.p
        if p.shape == self.shape:
            shards.local(p.detach()).copy_(self.start)
        else:
            p.data = self.start.clone()
        p.grad = self.grad


class Lengths(NamedTuple):
    """The changes that are made to displacements.

    Attributes:
        length: "angle" gives each slice a step of Riemannian length lr, in units of the radius.
        tangent: True projects gradient and displacement, "gradient" the first, False neither.
        floor: slices that are shorter than this times the root mean square take shorter steps.
        brake: the share of radial parts that is left out under the scaled metric.
    """

    length: Length = "base"
    tangent: Tangent = True
    floor: float = 0.0
    brake: float = 0.0


# --- into the frame -------------------------------------------------------------------------------


def enter(
    weights: Sequence[Weight],
    blind: bool,
    tangent: Tangent,
    found: list[Displaced],
    scale: Tensor | None = None,
    state: Mapping[Tensor, Mapping[str, Any]] | None = None,
) -> None:
    """Put the frame's coordinates into the places of weights and gradients.

    Args:
        weights: that have gradients.
        blind: whether zero stands for x/q.
        tangent: False leaves the normal part of gradients.
        found: what `leave` needs, and what `Displaced.restore` puts back, is added here.
        scale: that the optimizer will divide gradients by.
        state: of the optimizer, with the bases of factors of pairs.
    """
    factors = [weight for weight in weights if weight.partner is not None]
    frames = pairs.carried(factors, state or {}) if factors else {}
    plain = [weight for weight in weights if not weight.by_formulas]
    seen = _by_kernel(plain) if tangent and blind else {}
    seen |= _by_products([weight for weight in plain if id(weight) not in seen], tangent)
    for weight in weights:
        p, grad = weight.p, weight.grad
        x = shards.local(p.detach())
        if isinstance(weight.manifold, Polar):
            found.append(_as_direction(weight, weight.manifold, grad, blind, scale))
            continue
        if weight.partner is not None:
            found.append(_as_factor(weight, frames[id(p)], grad, blind))
            continue
        known = seen.get(id(weight))
        frame, g = _by_formulas(weight, grad, tangent) if known is None else known
        each = Displaced(weight, grad, weight.room("start", x).copy_(x), frame, None)
        found.append(each)
        p.grad = g
        if blind:
            x.zero_()
            continue
        if isinstance(frame.scale, Tensor):
            point = p.detach() if weight.by_formulas else x
            copy_into(point, frame.enter(*promote(point)))
        each.shown = x.clone()


def _as_direction(
    weight: Weight, polar: Polar, grad: Tensor, blind: bool, scale: Tensor | None
) -> Displaced:
    """Put a weight's directions into its place, and give its gains their values and gradient."""
    x, gain = weight.p.detach(), weight.gain
    assert gain is not None  # of every weight on Polar
    sign = torch.where(gain.detach() < 0, -1.0, 1.0)
    r, u = (sign * part for part in polar.split(x, grad))
    # The gain has more digits than a weight in half precision, unless that was changed.
    near = (r - gain.detach()).abs() <= 2 * torch.finfo(x.dtype).eps * r.abs()
    gain.data.copy_(torch.where(near, gain.detach(), r))
    dr, du = polar.gradients(r, u, *promote(grad))
    gain.grad = dr if scale is None else dr / scale
    start = shards.local(x).clone()
    weight.p.grad = memory.laid_out(du.to(grad.dtype), x)
    copy_into(x, torch.zeros_like(x) if blind else u.to(x.dtype))
    shown = None if blind else shards.local(x).clone()
    return Displaced(weight, grad, start, Frame(), shown, u)


def _as_factor(weight: Weight, frame: FactorFrame, grad: Tensor, blind: bool) -> Displaced:
    """Put the coordinates of a factor of a pair, and of its gradient, into their places."""
    x, factor = weight.p.detach(), pairs.factor_of(weight)
    x_, g = promote(x, grad)
    start = weight.room("start", x).copy_(x)
    seen = factor.join(frame.enter_gradient(factor.split(g)))
    weight.p.grad = memory.laid_out(seen.to(grad.dtype), x)
    x.copy_(torch.zeros_like(x) if blind else factor.join(frame.enter(factor.split(x_))))
    shown = None if blind else x.clone()
    return Displaced(weight, grad, start, Frame(), shown, factor_frame=frame)


def _by_kernel(weights: Sequence[Weight]) -> dict[int, Seen]:
    """The coordinates of gradients whose weights the kernel for processors reads, by weight."""
    some = [
        (weight, shards.local(weight.p.detach()), weight.layout)
        for weight in weights
        if weight.p.device.type == "cpu" and not shards.is_sharded(weight.p)
    ]
    known: list[Any] = [each for each in some if each[2] is not None]
    if not known:
        return {}
    own, points, layouts = zip(*known, strict=True)
    seen = [weight.room("gradient", x) for weight, x in zip(own, points, strict=True)]
    backends.coordinates(
        points,
        [memory.laid_out(weight.grad, x) for weight, x in zip(own, points, strict=True)],
        [weight.geometry for weight in own],
        layouts,
        seen,
    )
    return {id(weight): (Frame(), g) for weight, g in zip(own, seen, strict=True)}


def _by_products(weights: Sequence[Weight], tangent: Tangent) -> dict[int, Seen]:
    """Frames and coordinates of gradients from products, which are added up over processes."""
    works = [_work(weight, weight.p.detach(), weight.grad) for weight in weights]
    names = [
        (("xx", "xg") if tangent else ()) if weight.is_sphere else ("xx",) for weight in weights
    ]
    found = {}
    for weight, gram in zip(weights, backends.products(works, names), strict=True):
        p, grad = weight.p.detach(), weight.grad
        x, g = shards.local(p), shards.local(grad, like=p)
        frame, seen = Frame(), g
        if gram is not None and not weight.is_sphere:
            frame = Frame(gram.xx.to(computed_in(x.dtype)).sqrt())
            seen = frame.leave(*promote(g))
        elif gram is not None:
            xg: Any = gram.xg
            share = torch.where(gram.xx > 0, xg / gram.xx, 0.0)
            x_, g_ = promote(x, g)
            seen = torch.addcmul(g_, share.to(x_.dtype), x_, value=-1)
        # torch's fused functions read a gradient in the order of memory of its weight.
        seen = memory.laid_out(seen.to(grad.dtype), x)
        found[id(weight)] = frame, shards.wrapped(seen.clone() if seen is g else seen, p)
    return found


def _work(weight: Weight, x: Tensor, g: Any) -> StepInput:
    assert weight.geometry is not None  # of the weights that products are enough for
    return StepInput(x, g, weight.geometry)


def _by_formulas(weight: Weight, grad: Tensor, tangent: Tangent) -> Seen:
    x = weight.p.detach()
    try:
        frame = weight.manifold.frame(x)
    except NotImplementedError:  # the optimizer sees the Riemannian gradient
        frame = Frame()
    if tangent:
        d = Motion(x, weight.manifold, weight.geometry).gradient(grad)
    else:
        d = weight.manifold.sharp(*promote(x, grad))
    return frame, memory.laid_out(laid_out_as(x, frame.enter(d)).to(grad.dtype), x)


# --- out of the frame -----------------------------------------------------------------------------


def leave(
    displaced: Sequence[Displaced],
    how: Lengths,
    plans: backends.Plans,
    state: MutableMapping[Tensor, Any] | None = None,
) -> list[Weight]:
    """Retract weights along their displacements, and put gradients back.

    Args:
        displaced: what `enter` gave.
        how: changes of the displacements.
        plans: of the backends.
        state: of the optimizer, where the bases of factors of pairs are kept.

    Returns:
        Weights that may have a zero slice, or a norm near overflow.
    """
    together: list[Displaced] = []
    factors: list[Displaced] = []
    watched: list[Weight] = []
    for each in displaced:
        each.weight.p.grad = each.grad
        if each.factor_frame is not None:
            factors.append(each)
        elif each.weight.by_formulas or how != Lengths():
            if _leave_by_formulas(each, how):
                watched.append(each.weight)
        else:
            together.append(each)
    if factors:
        _leave_pairs(factors, {} if state is None else state)
    return watched + (_leave_together(together, plans) if together else [])


def _leave_pairs(displaced: Sequence[Displaced], state: MutableMapping[Tensor, Any]) -> None:
    """Retract the factors of pairs, and keep the bases of their frames."""
    steps = {}
    for each in displaced:
        weight, p, frame = each.weight, each.weight.p.detach(), each.factor_frame
        assert frame is not None  # of factors
        factor, (u, x) = pairs.factor_of(weight), promote(p.clone(), each.start)
        if each.shown is not None:
            u = u - each.shown
        # Decay shrinks the factor itself, beside the step.
        if not is_zero(each.decay):
            u = u - each.decay * factor.join(frame.enter(factor.split(x)))
        steps[id(weight.p)] = weight, frame, factor.split(u)
        # Once an optimizer has made its own state: some look for whether there is any.
        state[weight.p][pairs.BASIS] = frame.q
    for each in displaced:
        each.weight.p.detach().copy_(each.start)
    pairs.move_factors(steps)


def _leave_together(displaced: Sequence[Displaced], plans: backends.Plans) -> list[Weight]:
    """Retract weights by the common step, which makes displacements tangent."""
    groups: dict[int, list[Displaced]] = {}
    for each in displaced:
        groups.setdefault(id(each.weight.group), []).append(each)
    watched = []
    for some in groups.values():
        works, layouts, ends = [], [], []
        for each in some:
            weight, p, v = each.weight, each.weight.p.detach(), _displacement(each)
            works.append(_work(weight, shards.wrapped(each.start, p), shards.wrapped(v, p)))
            layouts.append(weight.layout if v.dtype == p.dtype else None)
            ends.append(shards.local(p))
        # Of a group's weights those on spheres have none, and the step of a sphere asks for none.
        decay = next((each.decay for each in some if not each.weight.is_sphere), 0.0)
        hyper = _RETRACT._replace(decay=decay)
        looks = backends.step(works, hyper, layouts, plans, ends)
        watched += [each.weight for each, look in zip(some, looks, strict=True) if look]
    return watched


def _displacement(each: Displaced) -> Tensor:
    """The displacement of the piece that is here in the frame, in the memory of the weight."""
    p = shards.local(each.weight.p.detach())
    if each.shown is None:
        return p
    (v,) = promote(p)
    return v.sub_(each.shown)


def _leave_by_formulas(each: Displaced, how: Lengths) -> bool:
    """Retract one weight; return whether a slice is known to be zero."""
    weight, p = each.weight, each.weight.p.detach()
    (v,) = promote(p.clone())
    if each.shown is not None:
        v = v - shards.wrapped(each.shown, p)
    v = each.frame.leave(v)
    x, manifold, geometry = p, weight.manifold, weight.geometry
    start = shards.wrapped(each.start, p)
    if isinstance(manifold, Polar) and each.direction is not None:
        x, manifold = each.direction, Oblique(manifold.dim)
        geometry, start = slice_geometry(manifold), x.clone()
    copy_into(x, start)
    motion = Motion(x, manifold, geometry)
    if how.tangent is True:
        t = motion.tangent(v)
        # Of a vector that is tangent to rounding another projection changes the last bits only.
        off, size = (settle(torch.linalg.vector_norm(u)) for u in (v - t, v))
        v = torch.where(off <= _ROUNDINGS * torch.finfo(v.dtype).eps * size, v, t)
    v = _with_length(motion.point, v, manifold, weight.group["lr"], how)
    if not is_zero(each.decay):
        v = v - each.decay * motion.tangent(motion.point)
    if how.tangent is True:
        motion.move(v)
    else:
        motion.shift(v)
    return motion.any_zero


def _with_length(
    x: Tensor, v: Tensor, manifold: Manifold, lr: float | Tensor, how: Lengths
) -> Tensor:
    """A displacement with the brake on its radial part, and of its length."""
    if how.brake and manifold.scale_invariant:
        inner = manifold.slices.inner
        v = v - how.brake * (inner(x, v) / inner(x, x)).nan_to_num(nan=0.0) * x
    if how.length == "base":
        return v
    norms = manifold.component_inner(x, v).clamp(min=0).sqrt()
    if how.floor:
        mean = settle(norms.square()).mean()
        norms = torch.maximum(norms, how.floor * mean.sqrt())
    return v * torch.where(norms > 0, lr * manifold.unit / norms, 0.0)
