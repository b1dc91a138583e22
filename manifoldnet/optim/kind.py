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
    Geodesic,
    Manifold,
    Oblique,
    Projective,
    ScaledEuclidean,
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
    if not manifold.parts or manifold.slices.dim == "elements":
        return None
    dim, retraction = manifold.slices.dim, manifold.retraction
    radius: float | None = getattr(manifold.projection, "radius", None)
    ours = ScaledEuclidean(dim) if radius is None else Oblique(dim, radius)
    ways = (Additive if radius is None else Projective, Geodesic)
    alike = all(
        getattr(manifold, part) == getattr(ours, part)
        for part in ("metric", "projection", "geodesics")
    )
    return Kind(dim, radius, retraction.name) if alike and type(retraction) in ways else None
