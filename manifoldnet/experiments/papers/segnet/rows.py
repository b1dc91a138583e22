"""What a record of SegNet tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from manifoldnet.experiments.papers.segnet.config import SegmentationConfig
from manifoldnet.experiments.records import EpochRow, Kind, ResultRow, RunRecord


@dataclass(frozen=True, kw_only=True)
class SegmentationEpoch(EpochRow):
    """One epoch. The loss is the weighted mean cross-entropy (nats) of labelled pixels.

    Attributes:
        train_accuracy: global accuracy on the training images, in [0, 1], as they came up.
        validation_confusion: confusion matrix (`scores.confusion`) of the validation images after
            the epoch, row after row.
        test_confusion: that of the test images, after the last epoch only.
    """

    train_accuracy: float
    validation_confusion: tuple[int, ...]
    test_confusion: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        size = len(self.validation_confusion)
        if math.isqrt(size) ** 2 != size or len(self.test_confusion or range(size)) != size:
            raise ValueError(
                f"confusion matrices of {size} and {len(self.test_confusion or ())} entries are "
                "not square and alike"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationResult(ResultRow):
    """How a run ended. Scores (`scores.Scores`) are those of the test images after all epochs.

    Attributes:
        global_accuracy: share of the labelled pixels that are right; NaN for a diverged run.
        class_accuracy: mean of the classes' accuracies.
        mean_iou: mean of the classes' intersections over unions.
    """

    global_accuracy: float
    class_accuracy: float
    mean_iou: float


PREDICTIONS = "segnet_predictions.png"
"""Image, ground truth and predictions; of CamVid, not to be published."""

WITHOUT_PHOTOGRAPHS = "segnet_predictions_only.png"
"""Predictions, and where they are wrong."""

SEGMENTATION = Kind(SegmentationConfig, SegmentationEpoch, SegmentationResult)
SegmentationRecord = RunRecord[SegmentationConfig, SegmentationEpoch, SegmentationResult]
"""A run of SegNet."""
