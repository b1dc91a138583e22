"""The sphere: the whole tensor, flattened, has norm ρ (Frobenius)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from manifoldnet.geometry import slices
from manifoldnet.geometry.geodesics import SphereGeodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold, resolve_retraction
from manifoldnet.geometry.metric import EuclideanMetric
from manifoldnet.geometry.projection import Normalization
from manifoldnet.geometry.retraction import Additive, Retraction

__all__ = ["Sphere"]


@final
@dataclass(frozen=True, init=False)
class Sphere(Manifold):
    """The whole tensor as one vector of norm ρ: `‖W‖_F = ρ`.

    The classification stage of [tygert2015scale] uses ρ = √rows.

    Args:
        radius: ρ > 0.
        retraction: "projective" (add, then normalize) or "geodesic" (the great circle).

    Raises:
        ValueError: for a radius that is not positive and finite, or a retraction that leaves the
            sphere.
    """

    radius: float
    retraction: Retraction

    min_slice: ClassVar[int] = 2

    def __init__(self, radius: float = 1.0, retraction: Retraction | str = "projective") -> None:
        radius = slices.check_radius(radius)
        self._compose(
            dim=None,
            radius=radius,
            metric=EuclideanMetric(None),
            projection=Normalization(None, radius),
            retraction=resolve_retraction(retraction, refused=Additive, owner="Sphere"),
            geodesics=SphereGeodesics(None, radius),
        )

    def _fields(self) -> dict[str, Any]:
        return {"radius": self.radius, "retraction": self.retraction.name}


register_manifold("Sphere", Sphere)
