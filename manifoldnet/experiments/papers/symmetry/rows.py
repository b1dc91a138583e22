"""What a record of image classification tells."""

from __future__ import annotations

from dataclasses import dataclass

from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.records import EpochRow, Kind, ResultRow, RunRecord


@dataclass(frozen=True, kw_only=True)
class Epoch(EpochRow):
    """One epoch of image classification. The loss is the cross-entropy in nats.

    Attributes:
        train_error: error rate on the training images, in [0, 1], as they came up.
        validation_error: error rate on the validation images after the epoch.
        test_error: error rate on the test images after the epoch.
        validation_loss: mean loss of a validation image after the epoch; None in records of
            format 1.
    """

    train_error: float
    validation_error: float
    test_error: float
    validation_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result(ResultRow):
    """How a run of image classification ended.

    Attributes:
        test_error: error rate on the test images after the last epoch.
        validation_error: the same for the validation images.
    """

    test_error: float
    validation_error: float


CLASSIFICATION = Kind(TrainConfig, Epoch, Result)
Record = RunRecord[TrainConfig, Epoch, Result]
"""A run of image classification."""
