"""Spheres: the oblique manifold, each slice of norm ρ (unit norm, UN), and the sphere, one slice.

    set         ‖x‖ = ρ                    x → ρ x/‖x‖                (Normalization)
    tangent     ⟨x, u⟩ = 0                 u → u − ⟨x, u⟩ x/⟨x, x⟩
    metric      ⟨u, v⟩                     gradient g, projected
    geodesics   great circles              cos θ · x + ρ sin θ · u/‖u‖,  θ = ‖u‖/ρ
    retraction  ρ (x + u)/‖x + u‖ ("projective"), or the geodesic ("geodesic")

Tangent projections divide by the *measured* ⟨x, x⟩ instead of ρ²: in float32 a point is never
exactly on its sphere, and the error would otherwise feed itself from step to step. The formulas act
slice by slice; their derivatives at u = 0 and x = y are exact. Source: [absil2008optimization].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from manifoldnet.geometry.manifold import (
    Additive,
    EuclideanMetric,
    Manifold,
    Retraction,
    register_manifold,
    resolve_retraction,
)
from manifoldnet.geometry.parts import Geodesics, Projection
from manifoldnet.geometry.slices import (
    Slices,
    check_radius,
    computed_in,
    cos_sinc,
    one_minus_cos_over_sq,
    promote,
)

__all__ = ["Normalization", "Oblique", "Sphere", "SphereGeodesics"]


@final
@dataclass(frozen=True)
class Normalization(Projection):
    """The projection of each slice to the sphere of radius ρ."""

    slices: Slices
    radius: float = 1.0

    def to_set(self, x: Tensor) -> Tensor:
        """`ρ x/‖x‖` of each slice."""
        return self.slices.normalize(x, self.radius)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """`u − ⟨x, u⟩ x/⟨x, x⟩` of each slice."""
        share = self.slices.inner(x, u) / self.slices.norm(x).square()
        return torch.addcmul(u, share, x, value=-1)

    def violation(self, x: Tensor) -> Tensor:
        """`|‖x‖ − ρ| / ρ` of each slice."""
        (x,) = promote(x)
        largest = self.slices.largest(x)
        # The largest entry stands apart so that squares of large ones do not overflow.
        off = (self.slices.norm(x / largest) * (largest / self.radius) - 1).abs()
        # Zero and non-finite slices have given 0/0 and ∞/∞.
        return off.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """`|⟨x, u⟩| / (‖x‖‖u‖)` of each slice."""
        x, u = promote(x, u)
        length = self.slices.norm(x) * self.slices.norm(u)
        share = self.slices.inner(x, u).abs() / torch.where(length > 0, length, 1.0)
        return share.nan_to_num(nan=torch.inf)

    def misfit(self, dtype: torch.dtype) -> str | None:
        """ρ², by which steps divide, must be a number of the type that is computed in."""
        own, used = torch.finfo(dtype), torch.finfo(computed_in(dtype))
        least = max(math.sqrt(used.tiny), own.tiny)
        most = min(math.sqrt(used.max), own.max)
        if least <= self.radius <= most:
            return None
        return (
            f"in which the square of radius={self.radius:.3g} cannot be computed: use a radius "
            f"from {least:.2g} to {most:.2g}, or a type with a wider range"
        )

    def codimension(self, shape: torch.Size) -> int:
        """One for each slice."""
        return self.slices.count(shape)


# --- unit slices: great circles -------------------------------------------------------------------


def angle(slices: Slices, x: Tensor, y: Tensor) -> Tensor:
    """The angle between unit slices, accurate from 0 to π (`acos` loses half the digits)."""
    return 2 * torch.atan2(slices.norm(y - x), slices.norm(y + x))


def log_unit(slices: Slices, x: Tensor, y: Tensor) -> Tensor:
    """The logarithm on unit spheres: the tangent vector at x of length φ, the angle to y."""
    # From the nearer of x and −x: next to antipodes y − x would lose what is tangent to rounding.
    p = torch.addcmul(y, slices.inner(x, y).detach().sign(), x, value=-1)
    p = torch.addcmul(p, slices.inner(x, p), x, value=-1)
    length = slices.norm(p)
    apart = length > 0
    rate = angle(slices, x, y) / torch.where(apart, length, 1.0)
    # x = y: the rate is 1. Antipodes: p vanishes but φ = π, and there is no direction to name.
    at_zero = torch.where(slices.inner(x, y) > 0, 1.0, torch.nan)
    return torch.where(apart, rate, at_zero) * p


def transport_along(slices: Slices, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Parallel transport of tangent `v` at unit `x` along the geodesic with velocity `u`.

    v + ⟨û, v⟩ ((cos θ − 1) û − sin θ x), written with the smooth (1 − cos θ)/θ² and sin θ/θ.
    """
    squared = slices.inner(u, u)
    cos, sinc = cos_sinc(squared)
    inner = slices.inner(u, v)
    v = torch.addcmul(v, inner * one_minus_cos_over_sq(squared, cos), u, value=-1)
    return torch.addcmul(v, inner * sinc, x, value=-1)


def parallel_transport(slices: Slices, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Parallel transport of tangent `v` from unit `x` to unit `y` on the shortest geodesic.

    The reflection v − 2⟨s, v⟩/⟨s, s⟩ s with s = x + y: isometric to rounding wherever s ≠ 0, while
    1 + ⟨x, y⟩ = ⟨s, s⟩/2 would cancel next to antipodes.
    """
    s = x + y
    return torch.addcmul(v, slices.inner(s, v) / slices.inner(s, s), s, value=-2)


@final
@dataclass(frozen=True)
class SphereGeodesics(Geodesics):
    """Great circles of spheres of radius ρ, one per slice."""

    slices: Slices
    radius: float = 1.0

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`cos θ · x + ρ sin θ · u/‖u‖`, put back to norm ρ."""
        cos, sinc = cos_sinc(self.slices.inner(u, u) / self.radius**2)
        y = torch.addcmul(cos * x, sinc, u)
        return y * (self.radius / self.slices.norm(y))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The end point, and `v + ⟨û, v⟩ ((cos θ − 1) û − sin θ x/ρ)`."""
        unit_x, unit_u = x / self.radius, u / self.radius
        return self.exp(x, u), transport_along(self.slices, unit_x, unit_u, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`ρ φ p/‖p‖`: p the part of y that is tangent at x, φ the angle between x and y."""
        return self.radius * log_unit(self.slices, *self._units(x, y))

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`ρ φ` of each slice."""
        return self.radius * angle(self.slices, *self._units(x, y))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v − ⟨y, v⟩/(ρ² + ⟨x, y⟩) (x + y)`."""
        return parallel_transport(self.slices, *self._units(x, y), v)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h − ⟨x, h⟩ x/ρ² − ⟨x, g⟩ u/ρ²`, with the measured ⟨x, x⟩ for ρ²."""
        squared = self.slices.inner(x, x)
        tangent = torch.addcmul(h, self.slices.inner(x, h) / squared, x, value=-1)
        return torch.addcmul(tangent, self.slices.inner(x, g) / squared, u, value=-1)

    def _units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.slices.normalize(x), self.slices.normalize(y)


@dataclass(frozen=True, init=False, eq=False)
class Oblique(Manifold):
    """The oblique manifold: each slice on the sphere of radius ρ, `‖x_i‖ = ρ`.

    Riemannian gradient `g − ⟨x, g⟩ x/ρ²`; with the projection retraction the update (9) of
    [badrinarayanan2015symmetry].

    Args:
        dim: the dimension that indexes the slices: 0 for rows and filters, 1 for columns, None
            for the whole tensor as one.
        radius: ρ > 0.
        retraction: "projective" (add, then normalize) or "geodesic" (the great circle).
        zero_slices: slices that are exactly zero and stay so, such as the padding row of an
            embedding, by their numbers; every other zero slice is refused.

    Raises:
        TypeError: for a `dim` or `zero_slices` that are no whole numbers, and a radius that is no
            number.
        ValueError: for a negative `dim`, a radius that is not positive and finite, a retraction
            that leaves the sphere, or `zero_slices` that are negative or of a whole tensor.
    """

    dim: int | None
    radius: float
    retraction: Retraction
    zero_slices: tuple[int, ...]

    min_slice: ClassVar[int] = 2

    def __init__(
        self,
        dim: int | None = 0,
        radius: float = 1.0,
        retraction: Retraction | str = "projective",
        zero_slices: Iterable[int] = (),
    ) -> None:
        slices, radius = Slices.of_vectors(dim), check_radius(radius)
        super().__init__(
            slices,
            EuclideanMetric(slices),
            Normalization(slices, radius),
            resolve_retraction(retraction, refused=Additive, owner=type(self).__name__),
            SphereGeodesics(slices, radius),
            zero_slices,
            dim=dim,
            radius=radius,
        )

    @property
    def unit(self) -> float:
        """ρ."""
        return self.radius

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """π ρ for each slice, all together as in Pythagoras' theorem."""
        count = self.slices.count(torch.Size(shape)) - len(self.zero_slices)
        return math.pi * self.radius * math.sqrt(count)

    def _value(self) -> tuple[object, ...]:
        # A sphere is the oblique manifold of one slice.
        family = Oblique if type(self) is Sphere else type(self)
        return family, self.dim, self.radius, self.retraction, self.zero_slices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Oblique) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())


@final
@dataclass(frozen=True, init=False, eq=False)
class Sphere(Oblique):
    """The whole tensor as one vector of norm ρ, `‖x‖_F = ρ`: equal to `Oblique(None, ρ)`.

    The classification stage of [tygert2015scale] uses ρ = √rows.

    Args:
        radius: ρ > 0.
        retraction: "projective" (add, then normalize) or "geodesic" (the great circle).

    Raises:
        TypeError: for a radius that is no number.
        ValueError: for a radius that is not positive and finite, or a retraction that leaves the
            sphere.
    """

    dim: int | None = field(repr=False)

    def __init__(self, radius: float = 1.0, retraction: Retraction | str = "projective") -> None:
        super().__init__(None, radius, retraction)


register_manifold("Oblique", Oblique)
register_manifold("Sphere", Sphere)
