"""manifoldnet: weights on manifolds for PyTorch, with explicit geometry and proven invariance."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from manifoldnet import nn, optim, rules, symmetry
from manifoldnet.checkpoints import declare_from, load_state_dict, spec
from manifoldnet.declarations import (
    RimWarning,
    declare,
    declare_all,
    manifolds,
    project_,
    undeclare,
    verify,
    violations,
)
from manifoldnet.foreign import ForeignOptimizerWarning
from manifoldnet.geometry import (
    Additive,
    Euclidean,
    Geodesic,
    Manifold,
    Oblique,
    Pair,
    Polar,
    Product,
    Projective,
    ScaledEuclidean,
    Sphere,
    Stiefel,
    from_geoopt,
    from_spec,
)
from manifoldnet.optim import RiemannianAdam, RiemannianSGD, constrain
from manifoldnet.parameter_groups import NothingDeclaredWarning, param_groups
from manifoldnet.summaries import Summary, summary

if TYPE_CHECKING:
    from manifoldnet.manifold_parameter import ManifoldParameter

__version__ = "0.2.0"

__all__ = [
    "Additive",
    "Euclidean",
    "ForeignOptimizerWarning",
    "Geodesic",
    "Manifold",
    "ManifoldParameter",
    "NothingDeclaredWarning",
    "Oblique",
    "Pair",
    "Polar",
    "Product",
    "Projective",
    "RiemannianAdam",
    "RiemannianSGD",
    "RimWarning",
    "ScaledEuclidean",
    "Sphere",
    "Stiefel",
    "Summary",
    "__version__",
    "constrain",
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
    "summary",
    "symmetry",
    "undeclare",
    "verify",
    "violations",
]


# Manifolds that are looked for here, and are in geoopt.
_OF_GEOOPT = {
    "SPD": "SymmetricPositiveDefinite",
    "Poincare": "PoincareBall",
    "Hyperbolic": "Lorentz",
    **{name: name for name in ("PoincareBall", "Lorentz", "Stereographic", "BirkhoffPolytope")},
    "SymmetricPositiveDefinite": "SymmetricPositiveDefinite",
}


# Loaded when it is first used: ManifoldParameter, because its base class is geoopt's, whose import
# takes longer than all else; and `parameter`, an old name.
def __getattr__(name: str) -> Any:
    if name == "parameter":
        return import_module("manifoldnet.parameter")
    if name != "ManifoldParameter":
        hint = f"; declare geoopt.{_OF_GEOOPT[name]}() as it is" if name in _OF_GEOOPT else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    from manifoldnet.manifold_parameter import ManifoldParameter

    globals()[name] = ManifoldParameter
    return ManifoldParameter


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
