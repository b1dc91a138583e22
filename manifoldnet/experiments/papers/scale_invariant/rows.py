"""What a record of the scale-invariant paper's experiments tells."""

from __future__ import annotations

from dataclasses import dataclass

from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.experiments.records import EpochRow, Kind, ResultRow, RunRecord


@dataclass(frozen=True, kw_only=True)
class StageEpoch(EpochRow):
    """One epoch. Errors are rates in [0, 1]; the loss is the method's own.

    Attributes:
        train_error: on the training images as they came up, with the labels that they came with.
        validation_error: after the epoch, if the run has validation images.
        test_error: after the epoch; NaN before the last one if the run has validation images.
        gradient_norm: Euclidean norm of the gradient of all weights, mean over steps.
        largest_gradient_norm: the largest over steps.
        step_ratio: ‖ΔA‖/‖A‖ of the stage's matrix, mean over steps; 0 if it has none to train.
        largest_step_ratio: the largest over steps.
        largest_loss: of a minibatch.
        norm_error: the largest |‖z‖ − 1| of a training image; 0 without a z.
        largest_weight: the largest entry of the kernels, in modulus, after the epoch.
        overflow: what was first seen to hold a number that is not finite, and in which minibatch;
            empty when all was finite.
        concentration: κ of the `Confidence` in the scores, fitted on every other test image;
            only after the last epoch of a run, as the following.
        bin_count: of the other test images, how many have a confidence in each of the bins of
            equal width over [0, 1].
        bin_right: how many of these are right.
        bin_sure: the sum of their confidences.
    """

    train_error: float
    test_error: float
    gradient_norm: float
    largest_gradient_norm: float
    step_ratio: float
    largest_step_ratio: float
    largest_loss: float
    norm_error: float
    largest_weight: float
    overflow: str = ""
    validation_error: float | None = None
    concentration: float | None = None
    bin_count: tuple[int, ...] = ()
    bin_right: tuple[int, ...] = ()
    bin_sure: tuple[float, ...] = ()


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
