"""The scaled metric: steps are measured relative to the weight that they move (SM).

    set         x ≠ 0
    metric      ⟨u, v⟩ / ‖x‖²                gradient ‖x‖² g
    geodesics   eᵃ (cos θ · x + r sin θ · t/‖t‖),  a = ⟨x, u⟩/r², t = u − a x, r = ‖x‖, θ = ‖t‖/r
    retraction  the geodesic ("geodesic"), or x + u ("additive")

With x = eˢ x̂ the metric is ds² + dθ², that of the cylinder ℝ × Sⁿ⁻¹ over the unit sphere: a moves
along the axis, θ around it. It is conformal to the Euclidean metric, and flat for n = 2 alone: the
sphere of the other cylinders is curved. The formulas act slice by slice; their derivatives at u = 0
and x = y are exact. The metric is (8) of [badrinarayanan2015symmetry], its geodesics are our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from manifoldnet.geometry.euclidean import NoProjection
from manifoldnet.geometry.manifold import (
    Manifold,
    Projective,
    Retraction,
    register_manifold,
    resolve_retraction,
)
from manifoldnet.geometry.oblique import angle, log_unit, parallel_transport, transport_along
from manifoldnet.geometry.parts import Frame, Geodesics, Metric
from manifoldnet.geometry.slices import Slices, cos_sinc

__all__ = ["CylinderGeodesics", "ScaledEuclidean", "ScaledMetric"]


@final
@dataclass(frozen=True)
class ScaledMetric(Metric):
    """`⟨u, v⟩ / ‖x‖²` of each slice: the length of a step relative to the weight it moves."""

    slices: Slices

    scale_invariant: ClassVar[bool] = True

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨u, v⟩ / ‖x‖²` of each slice."""
        return self.slices.inner(u, v) / self.slices.norm(x).square()

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`‖x‖² g`."""
        return self.slices.norm(x).square() * g

    def frame(self, x: Tensor) -> Frame:
        """q = ‖x‖ of each slice; scaling a slice scales it, so that coordinates stay the same."""
        return Frame(self.slices.norm(x))


@final
@dataclass(frozen=True)
class CylinderGeodesics(Geodesics):
    """Geodesics of the scaled metric on the slices ≠ 0: helices of the cylinder ℝ × Sⁿ⁻¹.

    They never reach zero, and scaling a slice by any α ≠ 0 maps them to each other.
    """

    slices: Slices

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`eᵃ (cos θ · x + r sin θ · t/‖t‖)` with a = ⟨x, u⟩/r², t = u − a x, θ = ‖t‖/r."""
        squared = self.slices.inner(x, x)
        return self._helix(x, squared, *self._polar_components(x, squared, u))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The end point y, and `b y + ‖y‖ (parallel transport of τ)` for v = b x + r τ, τ ⊥ x."""
        squared = self.slices.inner(x, x)
        a, t = self._polar_components(x, squared, u)
        b, tau = self._polar_components(x, squared, v)
        y = self._helix(x, squared, a, t)
        r = squared.sqrt()
        around = transport_along(self.slices, x / r, t / r, tau)
        return y, torch.addcmul(a.exp() * around, b, y)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`ln(‖y‖/‖x‖) x + ‖x‖ φ p/‖p‖`."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        return r_x * ((r_y / r_x).log() * unit_x + log_unit(self.slices, unit_x, unit_y))

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`√(ln²(‖y‖/‖x‖) + φ²)` of each slice."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        sides = torch.stack(((r_y / r_x).log(), angle(self.slices, unit_x, unit_y)))
        return torch.linalg.vector_norm(sides, dim=0)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`a y + (‖y‖/‖x‖) (t − ⟨ŷ, t⟩/(1 + ⟨x̂, ŷ⟩) (x̂ + ŷ))` for v = a x + t, t ⊥ x."""
        (unit_x, r_x), (unit_y, r_y) = self._polar(x), self._polar(y)
        a, t = self._polar_components(x, r_x.square(), v)
        return torch.addcmul(r_y / r_x * parallel_transport(self.slices, unit_x, unit_y, t), a, y)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`r² h + ⟨x, u⟩ g − ⟨x, g⟩ u + ⟨u, g⟩ x`."""
        inner = self.slices.inner
        result = torch.addcmul(inner(x, u) * g, inner(x, x), h)
        result = torch.addcmul(result, inner(x, g), u, value=-1)
        return torch.addcmul(result, inner(u, g), x)

    def _polar(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self.slices.norm(x)
        return x / r, r

    def _polar_components(self, x: Tensor, squared: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A vector as (a, t): u = a x + t, with a x along the axis and t around it."""
        a = self.slices.inner(x, u) / squared
        return a, torch.addcmul(u, a, x, value=-1)

    def _helix(self, x: Tensor, squared: Tensor, a: Tensor, t: Tensor) -> Tensor:
        cos, sinc = cos_sinc(self.slices.inner(t, t) / squared)
        stretch = a.exp()
        return torch.addcmul(stretch * cos * x, stretch * sinc, t)


@final
@dataclass(frozen=True, init=False)
class ScaledEuclidean(Manifold):
    """Slices ≠ 0 with the metric `⟨u, v⟩ / ‖x‖²`, which `x → αx` leaves unchanged.

    Riemannian gradient `‖x‖² g`; with the additive retraction the update (7) of
    [badrinarayanan2015symmetry], `x − λ ‖x‖² g`. That step makes norms grow without bound where
    the loss does not depend on them (under batch normalization), so the default is the exact
    geodesic, which keeps them. (An additive step can also end exactly at zero, and stay there.)

    Args:
        dim: the dimension that indexes the slices: 0 for rows and filters, 1 for columns, None
            for the whole tensor as one.
        retraction: "geodesic" (on the cylinder ℝ × Sⁿ⁻¹) or "additive" (as in the paper).
        zero_slices: slices that are exactly zero and stay so, such as the padding row of an
            embedding, by their numbers; every other zero slice is refused.

    Raises:
        TypeError: for a `dim` or `zero_slices` that are no whole numbers.
        ValueError: for a negative `dim`, a retraction that needs a constraint, or `zero_slices`
            that are negative or of a whole tensor.
    """

    dim: int | None
    retraction: Retraction
    zero_slices: tuple[int, ...]

    def __init__(
        self,
        dim: int | None = 0,
        retraction: Retraction | str = "geodesic",
        zero_slices: Iterable[int] = (),
    ) -> None:
        slices = Slices.of_vectors(dim)
        super().__init__(
            slices,
            ScaledMetric(slices),
            NoProjection(slices, nonzero=True),
            resolve_retraction(retraction, refused=Projective, owner="ScaledEuclidean"),
            CylinderGeodesics(slices),
            zero_slices,
            dim=dim,
        )

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """π for each slice, all together as in Pythagoras' theorem."""
        count = self.slices.count(torch.Size(shape)) - len(self.zero_slices)
        return math.pi * math.sqrt(count)


register_manifold("ScaledEuclidean", ScaledEuclidean)
