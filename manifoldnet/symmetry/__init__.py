"""Scaling symmetries: reparameterize a model by them, measure what is invariant, discover them."""

from manifoldnet.symmetry import invariance_error
from manifoldnet.symmetry.declaring import rule
from manifoldnet.symmetry.discovery import (
    Discovery,
    FalseSymmetryError,
    NoGapError,
    discover,
)
from manifoldnet.symmetry.evaluation import without_eps
from manifoldnet.symmetry.explanation import Explanation, explain
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.invariance_error import Deviation
from manifoldnet.symmetry.reparameterize import reparameterize
from manifoldnet.symmetry.scaling import ScalingElement, Slice

__all__ = [
    "Deviation",
    "Discovery",
    "Explanation",
    "FalseSymmetryError",
    "Generator",
    "NoGapError",
    "ScalingElement",
    "ScalingGroup",
    "Slice",
    "discover",
    "explain",
    "invariance_error",
    "reparameterize",
    "rule",
    "without_eps",
]
