"""Geometries of the fast paths: this library's spheres and scaled metrics.

Every step of SGD or Adam on them stays, slice by slice, in the span of the weight, its gradient and
the optimizer's buffer. A `Kind` is all that the fast paths need to know of a manifold; one that is
composed otherwise has none, and takes the reference path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from manifoldnet.geometry import (
    Additive,
    CylinderGeodesics,
    EuclideanMetric,
    Geodesic,
    Manifold,
    NoProjection,
    Normalization,
    Projective,
    Retraction,
    ScaledMetric,
    SphereGeodesics,
)
from manifoldnet.geometry.slices import Dim

__all__ = ["Kind", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """The geometry of a manifold for the fast paths.

    Attributes:
        dim: the dimension that indexes the slices.
        radius: of the spheres; None under the scaled metric.
        way: the retraction's name.
    """

    dim: Dim
    radius: float | None
    way: str


@cache
def kind_of(manifold: Manifold) -> Kind | None:
    """The geometry of a manifold for the fast paths; None if they do not support it."""
    radius: float | None
    metric, projection, geodesics = manifold.metric, manifold.projection, manifold.geodesics
    match metric, projection, geodesics:
        case EuclideanMetric(dim), Normalization(dim_, radius), SphereGeodesics(dim__, radius_):
            ways: tuple[type[Retraction], ...] = (Projective, Geodesic)
            alike = dim == dim_ == dim__ and radius == radius_
        case ScaledMetric(dim), NoProjection(dim_), CylinderGeodesics(dim__):
            ways, radius = (Additive, Geodesic), None
            alike = dim == dim_ == dim__
        case _:
            return None
    if not alike or type(manifold.retraction) not in ways:
        return None
    return Kind(dim, radius, manifold.retraction.name)
