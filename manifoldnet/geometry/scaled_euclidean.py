"""Flat space under the scaled metric: steps are measured relative to the weight they move (SM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from manifoldnet.geometry import slices
from manifoldnet.geometry.geodesics import CylinderGeodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold, resolve_retraction
from manifoldnet.geometry.metric import ScaledMetric
from manifoldnet.geometry.projection import NoProjection
from manifoldnet.geometry.retraction import Projective, Retraction

__all__ = ["ScaledEuclidean"]


@final
@dataclass(frozen=True, init=False)
class ScaledEuclidean(Manifold):
    """Slices ≠ 0 with the metric `⟨u, v⟩ / ‖w‖²`, which `w → αw` leaves unchanged.

    Riemannian gradient `‖w‖² g`; with the additive retraction the update (7) of
    [badrinarayanan2015symmetry], `w − λ ‖w‖² g`. That step makes norms grow without bound where
    the loss does not depend on them (under batch normalization), so the default is the exact
    geodesic, which keeps them. (An additive step can also end exactly at zero, and stay there.)

    Args:
        dim: the dimension that indexes the slices: 0 for rows and filters, 1 for columns, None
            for the whole tensor as one.
        retraction: "geodesic" (along the cylinder ℝ × Sⁿ⁻¹) or "additive" (as in the paper).

    Raises:
        ValueError: for a negative `dim`, or a retraction that needs a constraint.
    """

    dim: int | None
    retraction: Retraction

    def __init__(self, dim: int | None = 0, retraction: Retraction | str = "geodesic") -> None:
        slices.check_dim(dim)
        self._compose(
            dim=dim,
            metric=ScaledMetric(dim),
            projection=NoProjection(dim, nonzero=True),
            retraction=resolve_retraction(retraction, refused=Projective, owner="ScaledEuclidean"),
            geodesics=CylinderGeodesics(dim),
        )

    def _fields(self) -> dict[str, Any]:
        return {"dim": self.dim, "retraction": self.retraction.name}


register_manifold("ScaledEuclidean", ScaledEuclidean)
