"""Tests for one's own: assertions of invariance, the laws of a manifold as a class, strategies.

Laws and strategies need hypothesis; they are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from manifoldnet.testing.samples import point, point_with_tangents, tangent, unit

if TYPE_CHECKING:
    from manifoldnet.testing.assertions import (
        assert_loss_invariant,
        assert_metric_invariant,
        assert_trajectory_invariant,
        assert_update_equivariant,
    )
    from manifoldnet.testing.checks import (
        HessianCheck,
        MetricCheck,
        Slope,
        check_gradient,
        check_hessian,
        check_metric,
        check_retraction,
    )
    from manifoldnet.testing.curve_laws import GeodesicLaws, RetractionLaws, TransportLaws
    from manifoldnet.testing.laws import ManifoldLaws, MetricLaws, PointLaws, ValueLaws
    from manifoldnet.testing.strategies import (
        elements,
        points,
        points_with_tangents,
        reparameterized,
        seeds,
        sizes,
        tangents,
    )

# Names that are loaded when they are first used, by the module that defines them.
_NAMES = {
    "assertions": [
        "assert_loss_invariant",
        "assert_metric_invariant",
        "assert_trajectory_invariant",
        "assert_update_equivariant",
    ],
    "checks": [
        *("HessianCheck", "MetricCheck", "Slope"),
        *("check_gradient", "check_hessian", "check_metric", "check_retraction"),
    ],
    "curve_laws": ["GeodesicLaws", "RetractionLaws", "TransportLaws"],
    "laws": ["ManifoldLaws", "MetricLaws", "PointLaws", "ValueLaws"],
    "strategies": [
        *("elements", "points", "points_with_tangents", "reparameterized"),
        *("seeds", "sizes", "tangents"),
    ],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "GeodesicLaws",
    "HessianCheck",
    "ManifoldLaws",
    "MetricCheck",
    "MetricLaws",
    "PointLaws",
    "RetractionLaws",
    "Slope",
    "TransportLaws",
    "ValueLaws",
    "assert_loss_invariant",
    "assert_metric_invariant",
    "assert_trajectory_invariant",
    "assert_update_equivariant",
    "check_gradient",
    "check_hessian",
    "check_metric",
    "check_retraction",
    "elements",
    "point",
    "point_with_tangents",
    "points",
    "points_with_tangents",
    "reparameterized",
    "seeds",
    "sizes",
    "tangent",
    "tangents",
    "unit",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package hypothesis: pip install hypothesis"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value
