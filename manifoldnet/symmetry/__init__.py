"""Scaling and linear symmetries of a loss: discovery, errors of invariance, rules."""

from manifoldnet.symmetry import invariance_error
from manifoldnet.symmetry.balance import balance_, balanced
from manifoldnet.symmetry.comparison import Explanation, explain
from manifoldnet.symmetry.conservation import Conserved, DriftLog, conserved, watch
from manifoldnet.symmetry.discovery import (
    Discovery,
    NoGapError,
    discover,
)
from manifoldnet.symmetry.group import FalseSymmetryError, Generator, ScalingGroup
from manifoldnet.symmetry.invariance_error import Deviation
from manifoldnet.symmetry.linear import (
    LinearBlock,
    LinearElement,
    LinearGenerator,
    LinearGroup,
)
from manifoldnet.symmetry.make_invariant import make_invariant
from manifoldnet.symmetry.reparameterize import reparameterize
from manifoldnet.symmetry.report import Widening
from manifoldnet.symmetry.rule import rule
from manifoldnet.symmetry.scaling import ScalingElement, Slice
from manifoldnet.symmetry.working_copy import without_eps

__all__ = [
    "Conserved",
    "Deviation",
    "Discovery",
    "DriftLog",
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
    "Widening",
    "balance_",
    "balanced",
    "conserved",
    "discover",
    "explain",
    "invariance_error",
    "make_invariant",
    "reparameterize",
    "rule",
    "watch",
    "without_eps",
]
