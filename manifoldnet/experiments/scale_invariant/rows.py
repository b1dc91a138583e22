"""What a record of the scale-invariant paper's experiments tells."""

from __future__ import annotations

from dataclasses import dataclass

from manifoldnet.experiments.records import EpochRow, Kind, ResultRow, RunRecord
from manifoldnet.experiments.scale_invariant.config import StageConfig


@dataclass(frozen=True, kw_only=True)
class StageEpoch(EpochRow):
    """One epoch. Errors are rates in [0, 1]; the loss is the method's own.

    Attributes:
        train_error: on the training images as they came up, with the labels that they came with.
        test_error: after the epoch, on the test images, or on the validation images if the run has
            some.
        gradient_norm: Euclidean norm of the gradient of all weights, mean over steps.
        largest_gradient_norm: the largest over steps.
        step_ratio: ‖ΔA‖/‖A‖ of the stage's matrix, mean over steps; 0 if it has none to train.
        largest_step_ratio: the largest over steps.
    """

    train_error: float
    test_error: float
    gradient_norm: float
    largest_gradient_norm: float
    step_ratio: float
    largest_step_ratio: float


@dataclass(frozen=True, kw_only=True)
class StageResult(ResultRow):
    """How a run ended.

    Attributes:
        test_error: as in the last epoch.
    """

    test_error: float


SCALE_INVARIANT = Kind(StageConfig, StageEpoch, StageResult)
StageRecord = RunRecord[StageConfig, StageEpoch, StageResult]
"""A run of a convnet and a classification stage."""
