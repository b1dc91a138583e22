"""Directions and gains: a weight W = Diag(r) U in one tensor, with slices x = r û, ‖û‖ = 1.

    set         every slice, with r = ‖x‖ ≥ 0 as stored
    tangent     v = a û + t, t ⊥ x: the gain changes by a, the direction turns by t/r
    metric      a² + ‖t‖²/r²                 gradient ⟨g, û⟩ û + r² (g − ⟨g, û⟩ û)
    geodesics   (r + a)(cos θ û + sin θ t/‖t‖),  θ = ‖t‖/r
    retraction  the geodesic

This is dr² + dθ², the metric of the product ℝ × Sⁿ⁻¹ of gains and directions, for weights whose
length and direction are to be learned at rates of their own. A gain may cross zero: −r û is the
slice with the gain r and the direction −û. So two geodesics lead from x to y, one to (‖y‖, ŷ) and
one through zero to (−‖y‖, −ŷ). Logarithm, distance and transport are those of the shorter, which
crosses zero where 4 ‖x‖‖y‖ < π (2φ − π), φ the angle between x and y. The logarithm inverts the
exponential map up to the lesser of π and √(r² + π²/4).

At r = 0 no direction is stored, and none can be turned: every v is radial there, and the formulas
are Euclidean, with the metric ⟨u, v⟩, the gradient g and the geodesic x + u. So the first step of
a slice that starts at zero takes the direction −ĝ from its gradient, along which dL/dr = −‖g‖. What
is transported from there has kept its part along the step alone.

The formulas act slice by slice and are our own; the product metric is in [absil2008optimization].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from manifoldnet.geometry.euclidean import NoProjection
from manifoldnet.geometry.manifold import Geodesic, Manifold, register_manifold
from manifoldnet.geometry.oblique import angle, log_unit, parallel_transport, transport_along
from manifoldnet.geometry.parts import Frame, Geodesics, Metric
from manifoldnet.geometry.slices import Slices, cos_sinc, promote

__all__ = ["Polar", "PolarGeodesics", "PolarMetric"]


def _polar(slices: Slices, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, directions, and the slices that are zero, with the gain 1 and the direction 0.

    So every vector is wholly tangent to its direction there, and turns by itself.
    """
    r = slices.norm(x)
    zero = r == 0
    r = torch.where(zero, 1.0, r)
    return r, torch.where(zero, 0.0, x / r), zero


def _components(slices: Slices, unit: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A vector as (a, t): v = a û + t, t ⊥ û."""
    a = slices.inner(unit, v)
    return a, torch.addcmul(v, a, unit, value=-1)


@final
@dataclass(frozen=True)
class PolarMetric(Metric):
    """`a² + ‖t‖²/r²` of each slice, for v = a û + t; `‖v‖²` where r = 0."""

    slices: Slices

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨û, u⟩⟨û, v⟩ + ⟨t_u, t_v⟩/r²` of each slice; `⟨u, v⟩` where r = 0."""
        r, unit, _ = _polar(self.slices, x)
        (a, t), (b, tau) = (_components(self.slices, unit, w) for w in (u, v))
        return torch.addcmul(self.slices.inner(t / r, tau / r), a, b)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`⟨g, û⟩ û + r² (g − ⟨g, û⟩ û)`; `g` where r = 0."""
        r, unit, _ = _polar(self.slices, x)
        a, t = _components(self.slices, unit, g)
        return torch.addcmul(r * r * t, a, unit)

    def frame(self, x: Tensor) -> Frame:
        """None: along a slice the metric is another one than across it.

        Raises:
            NotImplementedError: in any case.
        """
        raise NotImplementedError(
            "the metric of Polar scales no slice as a whole: step gains and directions apart, with "
            "Polar.split, gradients and join"
        )


@final
@dataclass(frozen=True)
class PolarGeodesics(Geodesics):
    """Geodesics of the product of gains and directions, on which gains may cross zero."""

    slices: Slices

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`(r + a)(cos θ û + sin θ t/‖t‖)`, θ = ‖t‖/r; `x + u` where r = 0."""
        r, unit, zero = _polar(self.slices, x)
        a, t = _components(self.slices, unit, u)
        cos, sinc = cos_sinc(self.slices.inner(t / r, t / r))
        return torch.where(zero, x + u, (r + a) * torch.addcmul(cos * unit, sinc, t / r))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The end point (r + a) ê, and `b ê + (r + a) (transport of τ/r)` for v = b û + τ.

        Where r = 0, the part of v along u; v itself if u = 0.
        """
        r, unit, zero = _polar(self.slices, x)
        (a, t), (b, tau) = (_components(self.slices, unit, w) for w in (u, v))
        cos, sinc = cos_sinc(self.slices.inner(t / r, t / r))
        end = torch.addcmul(cos * unit, sinc, t / r)
        around = transport_along(self.slices, unit, t / r, tau / r)
        _, along, still = _polar(self.slices, u)
        radial = torch.where(still, v, self.slices.inner(along, v) * along)
        return (
            torch.where(zero, x + u, (r + a) * end),
            torch.where(zero, radial, torch.addcmul(b * end, r + a, around)),
        )

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`(s‖y‖ − r) û + r φ p/‖p‖`, with the angle φ from û to s ŷ; `y − x` at r = 0."""
        r_x, unit_x, r_y, unit_y, _ = self._ends(x, y)
        return torch.addcmul((r_y - r_x) * unit_x, r_x, log_unit(self.slices, unit_x, unit_y))

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`√((s‖y‖ − r)² + φ²)` of each slice, with the angle φ from û to s ŷ."""
        r_x, unit_x, r_y, unit_y, _ = self._ends(x, y)
        sides = torch.stack((r_y - r_x, angle(self.slices, unit_x, unit_y)))
        return torch.linalg.vector_norm(sides, dim=0)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`a s ŷ + s‖y‖ (transport of t/r from û to s ŷ)` for v = a û + t."""
        r_x, unit_x, r_y, unit_y, turns = self._ends(x, y)
        a, t = _components(self.slices, unit_x, v)
        around = parallel_transport(self.slices, unit_x, unit_y, t / torch.where(turns, r_x, 1.0))
        return torch.where(turns, r_y * around, 0.0) + a * unit_y

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`(⟨h, û⟩ + ⟨g, t⟩/r) û + r (a g_t + r h_t − ⟨g, û⟩ t)`; `h` where r = 0."""
        r, unit, zero = _polar(self.slices, x)
        (a, t), (g_r, g_t), (h_r, h_t) = (_components(self.slices, unit, w) for w in (u, g, h))
        around = r * torch.addcmul(torch.addcmul(a * g_t, r, h_t), g_r, t, value=-1)
        found = torch.addcmul(around, h_r + self.slices.inner(g, t / r), unit)
        return torch.where(zero, h, found)

    def _ends(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gains and directions of both ends, those of y negative where that is nearer.

        A zero slice has the direction of the other end: the way there is radial. The last result
        marks slices of which neither end is zero.
        """
        (r_x, unit_x, no_x), (r_y, unit_y, no_y) = (_polar(self.slices, z) for z in (x, y))
        any_unit = torch.full_like(x, self.slices.size(x.shape) ** -0.5)
        unit_x = torch.where(no_x, torch.where(no_y, any_unit, unit_y), unit_x)
        unit_y = torch.where(no_y, unit_x, unit_y)
        r_x, r_y = torch.where(no_x, 0.0, r_x), torch.where(no_y, 0.0, r_y)
        phi = angle(self.slices, unit_x, unit_y).detach()
        crosses = 4 * r_x * r_y < math.pi * (2 * phi - math.pi)
        sign = torch.where(crosses, -1.0, 1.0).to(x.dtype)
        return r_x, unit_x, sign * r_y, sign * unit_y, ~(no_x | no_y)


@final
@dataclass(frozen=True, init=False)
class Polar(Manifold):
    """Slices as gains times directions, x = r û, with the metric `dr² + dθ²`; r = 0 is allowed.

    Riemannian gradient `⟨g, û⟩ û + r² (g − ⟨g, û⟩ û)`. For weights that start at zero (the last
    layer of a residual branch, the second factor of LoRA), and for those whose length is to be
    learned beside their direction. `RiemannianSGD` and `RiemannianAdam` step gains and directions
    with one rate. For two rates `split`, `gradients` and `join` give and take them apart:

        r, u = polar.split(x, g)
        dr, du = polar.gradients(r, u, g)
        …                                   r by one optimizer, u by another one on its sphere
        x = polar.join(r, u)

    A gain that was stepped below zero comes back from `split` as −r, with the direction −u: there
    the caller changes the sign of what it keeps for that gain and that direction (momentum).

    Args:
        dim: the dimension that indexes the slices: 0 for rows and filters, 1 for columns, None
            for the whole tensor as one.

    Raises:
        TypeError: for a `dim` that is no whole number.
        ValueError: for a negative `dim`.
    """

    dim: int | None

    min_slice: ClassVar[int] = 2

    def __init__(self, dim: int | None = 0) -> None:
        slices = Slices.of_vectors(dim)
        super().__init__(
            slices,
            PolarMetric(slices),
            NoProjection(slices),
            Geodesic(),
            PolarGeodesics(slices),
            dim=dim,
        )

    def split(self, x: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gains `r = ‖x‖` and directions `û = x/r`.

        Args:
            x: the weight.
            g: its gradient, from which zero slices take their direction: `−g/‖g‖`.

        Returns:
            The gains, one number per slice in a shape that broadcasts against `x`, and the
            directions, in the shape of `x`; both in the type that `x` is computed in. The
            direction of a zero slice is zero where `g` is, or is not given.
        """
        (x,) = promote(x)
        r = self.slices.norm(x)
        _, unit, zero = _polar(self.slices, x)
        if g is not None:
            _, downhill, _ = _polar(self.slices, -g.to(x.dtype))
            unit = torch.where(zero, downhill, unit)
        return r, unit

    def join(self, r: Tensor, u: Tensor) -> Tensor:
        """The weight `r u` of gains and directions."""
        return r * u

    def gradients(self, r: Tensor, u: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gains and directions: `⟨g, u⟩` and `r (g − ⟨g, u⟩ u)`.

        Args:
            r: gains, of any sign.
            u: directions, of length one.
            g: the gradient of the weight `r u`.
        """
        a, t = _components(self.slices, u, g.to(u.dtype))
        return a, r * t


register_manifold("Polar", Polar)
