"""The step without momentum in few passes over memory, for this library's own manifolds.

    sphere              x ← ρ (x + λ' d)/‖x + λ' d‖,  d = g − ⟨x, g⟩/⟨x, x⟩ x
    scaled, additive    x ← x + λ' ‖x‖² g
    scaled, geodesic    x ← eᵃ (cos θ · x + sin θ/θ · λ' ‖x‖² t),  t = g − ⟨x, g⟩/⟨x, x⟩ x,
                        a = λ' ⟨x, g⟩,  θ = |λ'| ‖x‖ ‖t‖

with λ' = −λ (or λ, to maximize). These are `egrad2rgrad` and `retr` written together, in place:
what a small network pays for a step is the number of calls, and a large one the number of passes.
The path in `manifoldnet.optim.sgd` is the specification; the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from manifoldnet.geometry import (
    Additive,
    EuclideanMetric,
    Geodesic,
    Manifold,
    Normalization,
    Projective,
    ScaledMetric,
    slices,
)
from manifoldnet.geometry.slices import Dim

__all__ = ["Step", "lean_step"]

#: Moves a weight in place along its gradient: (x, gradient, λ').
Step = Callable[[Tensor, Tensor, float], None]

# Before a square is taken: steps may be absurdly long, but are never shorter than the radius.
_TOWARDS_ONE = 2.0**-40


@cache
def lean_step(manifold: Manifold) -> Step | None:
    """The step in few passes on a manifold; None where only the specification knows it."""
    metric, projection = manifold.metric, manifold.projection
    match metric, projection, manifold.retraction:
        case EuclideanMetric(), Normalization(), Projective():
            return partial(_sphere, projection.dim, projection.radius)
        case ScaledMetric(), _, Additive():
            return partial(_scaled_additive, metric.dim)
        case ScaledMetric(), _, Geodesic():
            return partial(_scaled_geodesic, metric.dim)
    return None


def _sphere(dim: Dim, radius: float, x: Tensor, g: Tensor, rate: float) -> None:
    share = slices.inner(x, g, dim) / slices.norm(x, dim).square_()
    y = torch.addcmul(g, share, x, value=-1)
    torch.add(x, y, alpha=rate, out=y).mul_(_TOWARDS_ONE)
    torch.mul(y, radius / slices.norm(y, dim), out=x)


def _scaled_additive(dim: Dim, x: Tensor, g: Tensor, rate: float) -> None:
    x.addcmul_(slices.norm(x, dim).square_(), g, value=rate)


def _scaled_geodesic(dim: Dim, x: Tensor, g: Tensor, rate: float) -> None:
    r = slices.norm(x, dim)
    squared = r * r
    along = slices.inner(x, g, dim)
    t = torch.addcmul(g, along / squared, x, value=-1)
    # θ = 0 becomes the smallest number: its cosine and sin θ/θ are 1 there.
    angle = slices.norm(t, dim).mul_(r).mul_(abs(rate)).clamp_(min=torch.finfo(x.dtype).tiny)
    stretch = along.mul_(rate).exp_()
    sinc = angle.sin().div_(angle)
    x.mul_(angle.cos_().mul_(stretch)).addcmul_(sinc.mul_(stretch).mul_(squared), t, value=rate)
