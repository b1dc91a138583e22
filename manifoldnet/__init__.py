"""manifoldnet: weights on manifolds for PyTorch, with explicit geometry and proven invariance."""

from manifoldnet import nn, optim, rules, symmetry
from manifoldnet.geometry import (
    Additive,
    Euclidean,
    Geodesic,
    Manifold,
    Oblique,
    Product,
    Projective,
    ScaledEuclidean,
    Sphere,
    from_geoopt,
    from_spec,
)
from manifoldnet.optim import RiemannianAdam, RiemannianSGD
from manifoldnet.parameter import (
    ManifoldParameter,
    declare,
    declare_all,
    load_state_dict,
    manifolds,
    param_groups,
    project_,
    undeclare,
    verify,
    violations,
)

__version__ = "0.1.0"

__all__ = [
    "Additive",
    "Euclidean",
    "Geodesic",
    "Manifold",
    "ManifoldParameter",
    "Oblique",
    "Product",
    "Projective",
    "RiemannianAdam",
    "RiemannianSGD",
    "ScaledEuclidean",
    "Sphere",
    "__version__",
    "declare",
    "declare_all",
    "from_geoopt",
    "from_spec",
    "load_state_dict",
    "manifolds",
    "nn",
    "optim",
    "param_groups",
    "project_",
    "rules",
    "symmetry",
    "undeclare",
    "verify",
    "violations",
]
