"""Tests for one's own: assertions of invariance, the laws of a manifold as a class, strategies.

What needs hypothesis is loaded when it is first used; the rest works without it.
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
        check_gradient,
        check_hessian,
        check_metric,
        check_retraction,
    )
    from manifoldnet.testing.laws import ManifoldLaws
    from manifoldnet.testing.laws_of_geodesics import GeodesicLaws
    from manifoldnet.testing.laws_of_metrics import MetricLaws
    from manifoldnet.testing.laws_of_points import PointLaws
    from manifoldnet.testing.laws_of_retractions import RetractionLaws
    from manifoldnet.testing.laws_of_transport import TransportLaws
    from manifoldnet.testing.laws_of_values import ValueLaws
    from manifoldnet.testing.scalings import elements, reparameterized
    from manifoldnet.testing.slopes import Slope
    from manifoldnet.testing.strategies import (
        points,
        points_with_tangents,
        seeds,
        sizes,
        tangents,
    )

# What is loaded when it is first used, by the module that defines it.
_HOME = {
    "assertions": [
        "assert_loss_invariant",
        "assert_metric_invariant",
        "assert_trajectory_invariant",
        "assert_update_equivariant",
    ],
    "checks": [
        "HessianCheck",
        "MetricCheck",
        "check_gradient",
        "check_hessian",
        "check_metric",
        "check_retraction",
    ],
    "laws": ["ManifoldLaws"],
    "laws_of_geodesics": ["GeodesicLaws"],
    "laws_of_metrics": ["MetricLaws"],
    "laws_of_points": ["PointLaws"],
    "laws_of_retractions": ["RetractionLaws"],
    "laws_of_transport": ["TransportLaws"],
    "laws_of_values": ["ValueLaws"],
    "scalings": ["elements", "reparameterized"],
    "slopes": ["Slope"],
    "strategies": ["points", "points_with_tangents", "seeds", "sizes", "tangents"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

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
        home = import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package hypothesis: pip install hypothesis"
        ) from error
    value = getattr(home, name)
    globals()[name] = value
    return value
