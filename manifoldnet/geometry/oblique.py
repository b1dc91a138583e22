"""The oblique manifold: every slice of a weight has norm ρ. The paper's unit-norm update (UN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from manifoldnet.geometry import slices
from manifoldnet.geometry.geodesics import SphereGeodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold, resolve_retraction
from manifoldnet.geometry.metric import EuclideanMetric
from manifoldnet.geometry.projection import Normalization
from manifoldnet.geometry.retraction import Additive, Retraction

__all__ = ["Oblique"]


@final
@dataclass(frozen=True, init=False)
class Oblique(Manifold):
    """Each slice on the sphere of radius ρ: `‖w_i‖ = ρ`.

    Riemannian gradient `g − ⟨w, g⟩ w/ρ²`; with the projective retraction the update (9) of
    [badrinarayanan2015symmetry].

    Args:
        dim: the dimension that indexes the slices: 0 for rows and filters, 1 for columns, None
            for the whole tensor as one.
        radius: ρ > 0.
        retraction: "projective" (add, then normalize) or "geodesic" (the great circle).

    Raises:
        ValueError: for a negative `dim`, a radius that is not positive and finite, or a retraction
            that leaves the sphere.
    """

    dim: int | None
    radius: float
    retraction: Retraction

    min_slice: ClassVar[int] = 2

    def __init__(
        self, dim: int | None = 0, radius: float = 1.0, retraction: Retraction | str = "projective"
    ) -> None:
        slices.check_dim(dim)
        radius = slices.check_radius(radius)
        self._compose(
            dim=dim,
            radius=radius,
            metric=EuclideanMetric(dim),
            projection=Normalization(dim, radius),
            retraction=resolve_retraction(retraction, refused=Additive, owner="Oblique"),
            geodesics=SphereGeodesics(dim, radius),
        )

    def _fields(self) -> dict[str, Any]:
        return {"dim": self.dim, "radius": self.radius, "retraction": self.retraction.name}


register_manifold("Oblique", Oblique)
