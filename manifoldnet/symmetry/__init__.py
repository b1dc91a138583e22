"""Scaling and linear symmetries of a loss: discovery, errors of invariance, rules."""

from manifoldnet.symmetry import invariance_error
from manifoldnet.symmetry.comparison import Explanation, explain
from manifoldnet.symmetry.discovery import (
    Discovery,
    FalseSymmetryError,
    NoGapError,
    discover,
)
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.invariance_error import Deviation
from manifoldnet.symmetry.linear import (
    LinearBlock,
    LinearElement,
    LinearGenerator,
    LinearGroup,
)
from manifoldnet.symmetry.reparameterize import reparameterize
from manifoldnet.symmetry.rule import rule
from manifoldnet.symmetry.scaling import ScalingElement, Slice
from manifoldnet.symmetry.working_copy import without_eps

__all__ = [
    "Deviation",
    "Discovery",
    "Explanation",
    "FalseSymmetryError",
    "Generator",
    "LinearBlock",
    "LinearElement",
    "LinearGenerator",
    "LinearGroup",
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
