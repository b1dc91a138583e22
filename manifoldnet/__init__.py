"""manifoldnet: weights on manifolds for PyTorch, with explicit geometry and proven invariance."""

from manifoldnet import nn, optim, rules, symmetry
from manifoldnet.foreign import ForeignOptimizerWarning
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
    NothingDeclaredWarning,
    declare,
    declare_all,
    declare_from,
    load_state_dict,
    manifolds,
    param_groups,
    project_,
    spec,
    undeclare,
    verify,
    violations,
)

__version__ = "0.1.0"

__all__ = [
    "Additive",
    "Euclidean",
    "ForeignOptimizerWarning",
    "Geodesic",
    "Manifold",
    "ManifoldParameter",
    "NothingDeclaredWarning",
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
    "declare_from",
    "from_geoopt",
    "from_spec",
    "load_state_dict",
    "manifolds",
    "nn",
    "optim",
    "param_groups",
    "project_",
    "rules",
    "spec",
    "symmetry",
    "undeclare",
    "verify",
    "violations",
]
