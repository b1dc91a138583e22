"""Geodesics: the exact curves of one metric on one set.

    FlatGeodesics       x + u
    SphereGeodesics     cos θ · x + ρ sin θ · u/‖u‖,  θ = ‖u‖/ρ
    CylinderGeodesics   eᵃ (cos θ · x + r sin θ · t/‖t‖),  the scaled metric: with x = eˢ x̂ it is
                        ds² + dθ², a flat cylinder ℝ × Sⁿ⁻¹; a moves along it, θ around it

Each offers the exponential map, its inverse, the distance, and parallel transport both between
two points (not defined at antipodes, where no geodesic is singled out: NaN there) and along a
given geodesic (always defined), and the Hessian, the second derivative along geodesics. The
formulas act slice by slice; the derivatives at u = 0 and x = y are exact. Sources:
[absil2008optimization] for the sphere; the cylinder is our own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.geometry.slices import Dim

__all__ = ["CylinderGeodesics", "FlatGeodesics", "Geodesics", "SphereGeodesics"]


class Geodesics(ABC):
    """Exponential map, logarithm, distance and parallel transport."""

    @abstractmethod
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Where the geodesic from `x` with velocity `u` is after unit time."""

    @abstractmethod
    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`exp(x, u)`, and `v` transported in parallel along the way there."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest velocity at `x` whose geodesic is at `y` after unit time."""

    @abstractmethod
    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the shortest geodesic from `x` to `y`, one number per slice."""

    @abstractmethod
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` at `x` transported in parallel to `y` along the shortest geodesic."""

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The Riemannian Hessian along `u`: how the gradient changes, to be tangent at `x` again.

        Args:
            x: point.
            g: Euclidean gradient of a function at `x`.
            h: its Euclidean Hessian times `u`.
            u: tangent vector at `x`.

        Raises:
            NotImplementedError: where nobody has written the formula.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no Hessian: use a solver that needs none, such as "
            "conjugate gradients, or add the method"
        )


@final
@dataclass(frozen=True)
class FlatGeodesics(Geodesics):
    """Straight lines."""

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`x + u`."""
        return x + u

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`x + u`, and `v` as it is."""
        return x + u, v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`y − x`."""
        return y - x

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`|y − x|` of each number."""
        return (y - x).abs()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` as it is."""
        return v

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h` as it is."""
        return h


def _angle(x: Tensor, y: Tensor, dim: Dim) -> Tensor:
    """The angle between unit slices, accurate from 0 to π (`acos` loses half the digits)."""
    return 2 * torch.atan2(slices.norm(y - x, dim), slices.norm(y + x, dim))


def _towards(x: Tensor, y: Tensor, dim: Dim) -> Tensor:
    """From unit x to unit y on the sphere: the tangent vector at x of length φ, their angle."""
    # From the nearer of x and −x: next to antipodes y − x would lose what is tangent to rounding.
    p = torch.addcmul(y, slices.inner(x, y, dim).detach().sign(), x, value=-1)
    p = torch.addcmul(p, slices.inner(x, p, dim), x, value=-1)
    length = slices.norm(p, dim)
    apart = length > 0
    rate = _angle(x, y, dim) / torch.where(apart, length, 1.0)
    # x = y: the rate is 1. Antipodes: p vanishes but φ = π, and there is no direction to name.
    at_zero = torch.where(slices.inner(x, y, dim) > 0, 1.0, torch.nan)
    return torch.where(apart, rate, at_zero) * p


def _rotate(x: Tensor, u: Tensor, v: Tensor, dim: Dim) -> Tensor:
    """Tangent `v` at unit `x` carried along the great circle with velocity `u`, |u| the angle.

    v + ⟨û, v⟩ ((cos θ − 1) û − sin θ x), written with the smooth (1 − cos θ)/θ² and sin θ/θ.
    """
    squared = slices.inner(u, u, dim)
    cos, sinc = slices.cos_sinc(squared)
    along = slices.inner(u, v, dim)
    v = torch.addcmul(v, along * slices.versed(squared, cos), u, value=-1)
    return torch.addcmul(v, along * sinc, x, value=-1)


def _swing(x: Tensor, y: Tensor, v: Tensor, dim: Dim) -> Tensor:
    """Tangent `v` at unit `x` carried to unit `y` along the shorter great circle.

    The reflection v − 2⟨s, v⟩/⟨s, s⟩ s with s = x + y: isometric to rounding wherever s ≠ 0, while
    1 + ⟨x, y⟩ = ⟨s, s⟩/2 would cancel next to antipodes.
    """
    s = x + y
    return torch.addcmul(v, slices.inner(s, v, dim) / slices.inner(s, s, dim), s, value=-2)


@final
@dataclass(frozen=True)
class SphereGeodesics(Geodesics):
    """Great circles of spheres of radius ρ, one per slice."""

    dim: Dim = 0
    radius: float = 1.0

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`cos θ · x + ρ sin θ · u/‖u‖`, put back to norm ρ."""
        cos, sinc = slices.cos_sinc(slices.inner(u, u, self.dim) / self.radius**2)
        y = torch.addcmul(cos * x, sinc, u)
        return y * (self.radius / slices.norm(y, self.dim))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The point, and `v + ⟨û, v⟩ ((cos θ − 1) û − sin θ x/ρ)`."""
        return self.exp(x, u), _rotate(x / self.radius, u / self.radius, v, self.dim)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`ρ φ p/‖p‖`: p the part of y that is tangent at x, φ the angle between x and y."""
        return self.radius * _towards(*self._units(x, y), self.dim)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`ρ φ` of each slice."""
        return self.radius * _angle(*self._units(x, y), self.dim)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v − ⟨y, v⟩/(ρ² + ⟨x, y⟩) (x + y)`."""
        return _swing(*self._units(x, y), v, self.dim)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h − ⟨x, h⟩ x/ρ² − ⟨x, g⟩ u/ρ²`, with the measured ⟨x, x⟩ for ρ²."""
        squared = slices.inner(x, x, self.dim)
        tangent = torch.addcmul(h, slices.inner(x, h, self.dim) / squared, x, value=-1)
        return torch.addcmul(tangent, slices.inner(x, g, self.dim) / squared, u, value=-1)

    def _units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return slices.normalize(x, self.dim), slices.normalize(y, self.dim)


@final
@dataclass(frozen=True)
class CylinderGeodesics(Geodesics):
    """Geodesics of the scaled metric on the slices ≠ 0: helices of the cylinder ℝ × Sⁿ⁻¹.

    They never reach zero, and scaling a slice by any α ≠ 0 maps them to each other.
    """

    dim: Dim = 0

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`eᵃ (cos θ · x + r sin θ · t/‖t‖)` with a = ⟨x, u⟩/r², t = u − a x, θ = ‖t‖/r."""
        squared = slices.inner(x, x, self.dim)
        return self._helix(x, squared, *self._split(x, squared, u))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The point y, and `b y + ‖y‖ (τ rotated along the way)` for v = b x + r τ, τ ⊥ x."""
        squared = slices.inner(x, x, self.dim)
        a, t = self._split(x, squared, u)
        b, tau = self._split(x, squared, v)
        y = self._helix(x, squared, a, t)
        r = squared.sqrt()
        return y, torch.addcmul(a.exp() * _rotate(x / r, t / r, tau, self.dim), b, y)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`ln(‖y‖/‖x‖) x + ‖x‖ φ p/‖p‖`."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        return r_x * ((r_y / r_x).log() * unit_x + _towards(unit_x, unit_y, self.dim))

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`√(ln²(‖y‖/‖x‖) + φ²)` of each slice."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        sides = torch.stack(((r_y / r_x).log(), _angle(unit_x, unit_y, self.dim)))
        return torch.linalg.vector_norm(sides, dim=0)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`a y + (‖y‖/‖x‖) (t − ⟨ŷ, t⟩/(1 + ⟨x̂, ŷ⟩) (x̂ + ŷ))` for v = a x + t, t ⊥ x."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        a, t = self._split(x, r_x.square(), v)
        return torch.addcmul(r_y / r_x * _swing(unit_x, unit_y, t, self.dim), a, y)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`r² h + ⟨x, u⟩ g − ⟨x, g⟩ u + ⟨u, g⟩ x`."""
        result = torch.addcmul(slices.inner(x, u, self.dim) * g, slices.inner(x, x, self.dim), h)
        result = torch.addcmul(result, slices.inner(x, g, self.dim), u, value=-1)
        return torch.addcmul(result, slices.inner(u, g, self.dim), x)

    def _polar(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = slices.norm(x, self.dim)
        return x / r, r

    def _split(self, x: Tensor, squared: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A vector as (a, t): u = a x + t, with a x along the cylinder and t around it."""
        a = slices.inner(x, u, self.dim) / squared
        return a, torch.addcmul(u, a, x, value=-1)

    def _helix(self, x: Tensor, squared: Tensor, a: Tensor, t: Tensor) -> Tensor:
        cos, sinc = slices.cos_sinc(slices.inner(t, t, self.dim) / squared)
        stretch = a.exp()
        return torch.addcmul(stretch * cos * x, stretch * sinc, t)
