"""Manifolds as explicit compositions of a metric, a projection, a retraction and geodesics."""

from manifoldnet.geometry.euclidean import (
    Euclidean,
    FlatGeodesics,
    NoProjection,
)
from manifoldnet.geometry.from_geoopt import from_geoopt, to_geoopt
from manifoldnet.geometry.manifold import (
    Additive,
    EuclideanMetric,
    Geodesic,
    Manifold,
    Projective,
    Retraction,
    from_spec,
    register_manifold,
    register_retraction,
    resolve_retraction,
)
from manifoldnet.geometry.oblique import Normalization, Oblique, Sphere, SphereGeodesics
from manifoldnet.geometry.pair import FactorFrame, FactorMetric, Pair, PairFactor, PairFactorBeside
from manifoldnet.geometry.parts import Frame, Geodesics, Metric, Projection
from manifoldnet.geometry.polar import Polar, PolarGeodesics, PolarMetric
from manifoldnet.geometry.product import Product
from manifoldnet.geometry.scaled_euclidean import CylinderGeodesics, ScaledEuclidean, ScaledMetric
from manifoldnet.geometry.slices import Slices
from manifoldnet.geometry.stiefel import (
    MatrixForm,
    MatrixRetraction,
    NewtonSchulz,
    PolarFactor,
    PolarProjection,
    QFactor,
    Stiefel,
    StiefelGeodesics,
)
from manifoldnet.geometry.validation import (
    NotOnManifoldError,
    NotTangentError,
    WrongTensorError,
    tolerance,
)

__all__ = [
    "Additive",
    "CylinderGeodesics",
    "Euclidean",
    "EuclideanMetric",
    "FactorFrame",
    "FactorMetric",
    "FlatGeodesics",
    "Frame",
    "Geodesic",
    "Geodesics",
    "Manifold",
    "MatrixForm",
    "MatrixRetraction",
    "Metric",
    "NewtonSchulz",
    "NoProjection",
    "Normalization",
    "NotOnManifoldError",
    "NotTangentError",
    "Oblique",
    "Pair",
    "PairFactor",
    "PairFactorBeside",
    "Polar",
    "PolarFactor",
    "PolarGeodesics",
    "PolarMetric",
    "PolarProjection",
    "Product",
    "Projection",
    "Projective",
    "QFactor",
    "Retraction",
    "ScaledEuclidean",
    "ScaledMetric",
    "Slices",
    "Sphere",
    "SphereGeodesics",
    "Stiefel",
    "StiefelGeodesics",
    "WrongTensorError",
    "from_geoopt",
    "from_spec",
    "register_manifold",
    "register_retraction",
    "resolve_retraction",
    "to_geoopt",
    "tolerance",
]
