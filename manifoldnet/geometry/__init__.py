"""Manifolds as explicit compositions of a metric, a projection, a retraction and geodesics."""

from manifoldnet.geometry.euclidean import Euclidean
from manifoldnet.geometry.from_geoopt import from_geoopt
from manifoldnet.geometry.geodesics import (
    CylinderGeodesics,
    FlatGeodesics,
    Geodesics,
    SphereGeodesics,
)
from manifoldnet.geometry.manifold import Manifold, from_spec, register_manifold, tolerance
from manifoldnet.geometry.metric import EuclideanMetric, Metric, ScaledMetric
from manifoldnet.geometry.oblique import Oblique
from manifoldnet.geometry.product import Product
from manifoldnet.geometry.projection import NoProjection, Normalization, Projection
from manifoldnet.geometry.retraction import (
    Additive,
    Geodesic,
    Projective,
    Retraction,
    register_retraction,
)
from manifoldnet.geometry.scaled_euclidean import ScaledEuclidean
from manifoldnet.geometry.sphere import Sphere
from manifoldnet.geometry.to_geoopt import to_geoopt

__all__ = [
    "Additive",
    "CylinderGeodesics",
    "Euclidean",
    "EuclideanMetric",
    "FlatGeodesics",
    "Geodesic",
    "Geodesics",
    "Manifold",
    "Metric",
    "NoProjection",
    "Normalization",
    "Oblique",
    "Product",
    "Projection",
    "Projective",
    "Retraction",
    "ScaledEuclidean",
    "ScaledMetric",
    "Sphere",
    "SphereGeodesics",
    "from_geoopt",
    "from_spec",
    "register_manifold",
    "register_retraction",
    "to_geoopt",
    "tolerance",
]
