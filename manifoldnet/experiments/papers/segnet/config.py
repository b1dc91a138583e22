"""A run of SegNet as data: its configuration, the rows of its record, and their scores.

Section 6 of [badrinarayanan2015symmetry] says little: the CamVid training set of 367 images, 100
epochs, SGD with the unit-norm update. What it leaves open follows [badrinarayanan2017segnet]
(momentum 0.9, one setting for all layers), or is a field with a default that validation images
chose: with the full class weights of that paper and images as they are, the small networks of the
`cpu` preset predict many times too many pixels of signs and pedestrians.

Scores are functions of the confusion matrix C, where C_ij counts labelled pixels of class i that
are predicted as j, over all images of a set, as in [badrinarayanan2017segnet]:

    global accuracy         Σ_i C_ii / Σ_ij C_ij
    class accuracy_i        C_ii / Σ_j C_ij                       (class average: the mean over i)
    IoU_i                   C_ii / (Σ_j C_ij + Σ_j C_ji − C_ii)   (mean IoU: the mean over i)

Void pixels count nowhere. A class without labelled pixels has no accuracy (NaN); a class that is
neither labelled nor predicted has no IoU; means are over the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from manifoldnet.experiments.configuration import Configuration, check_choice, field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.records import EpochRow, ResultRow, RunRecord, Schema
from manifoldnet.experiments.study import repeated

CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "camvid": (
            *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence"),
            *("car", "pedestrian", "bicyclist"),
        )
    }
)
"""Names of the classes of the known sets; one number more is void."""

BALANCES = ("median-frequency", "root-median-frequency", "none")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Configuration):
    """One run of SegNet.

    Attributes:
        dataset: a folder with ``image`` and ``mask`` columns: ``"camvid"``.
        height: of the images and masks as the network sees them, in pixels.
        width: likewise.
        filters: of the first stage of SegNet; the last has eight times as many.
        update: a key of `UPDATES`.
        lr: learning rate λ of the first epoch, for the weighted *mean* of the cross-entropy over
            the labelled pixels of a minibatch.
        decay: factor of the rate per epoch.
        momentum: 0.9 in the SegNet paper; the symmetry paper gives none.
        batch_size: images per minibatch. A smaller last minibatch is used as it is.
        epochs: passes through the training images.
        seed: decides the start, the order of the images, and their augmentation.
        class_balance: ``"median-frequency"`` weighs a class by the median of all classes'
            frequencies over its own, a class's frequency being its pixels over the pixels of the
            images it is in; ``"root-median-frequency"`` by the square root of that; ``"none"``
            weighs all the same.
        mirror: mirror every image left to right with probability ½ when it comes up. Neither paper
            says.
        zoom: with probability ½ an image is cut to a random window when it comes up, up to so many
            times smaller, and enlarged again; 1 leaves all.
        gamma: pixels, in [0, 1], are raised to a random power between 1/gamma and gamma; 1 leaves
            them.
        standardize: bring each channel of each image to mean 0 and variance 1 first, in place of
            the local contrast normalization of [badrinarayanan2017segnet].
        threads: torch's threads, on a processor. A GPU is used if torch sees one.
    """

    experiment: ClassVar[str] = "segmentation"

    dataset: str = field("camvid", example="'camvid'")
    height: int = field(96, at_least=32)
    width: int = field(128, at_least=32)
    filters: int = field(16, at_least=1)
    update: str = field("un", choices=UPDATES)
    lr: float = field(0.1, above=0)
    decay: float = field(0.97, above=0, at_most=1)
    momentum: float = field(0.9, at_least=0, below=1)
    batch_size: int = field(6, at_least=1)
    epochs: int = field(100, at_least=1)
    seed: int = field(0, at_least=0)
    class_balance: str = field("root-median-frequency", choices=BALANCES)
    mirror: bool = True
    zoom: float = field(1.0, at_least=1, at_most=8)
    gamma: float = field(1.0, at_least=1, at_most=8)
    standardize: bool = True
    threads: int = field(1, at_least=1)

    @property
    def label(self) -> str:
        """The update."""
        return self.update


RATES: Mapping[str, float] = MappingProxyType({"b-sgd": 0.1, "sm": 0.03, "un": 0.1})
"""Base learning rate of each update, from short runs on the validation images.

The additive scaled-metric step multiplies the classifier's columns, which no batch normalization
follows, by their own squared norms: at 0.1 these grow to thousands within 20 epochs, and all
scores are lost.
"""

_PAPER = SegmentationConfig(height=360, width=480, filters=64, batch_size=12)
PRESETS = MappingProxyType({"cpu": SegmentationConfig(), "paper": _PAPER})
"""``"paper"``: the layout of VGG-16 on whole pictures, for a GPU; ``"cpu"``: the same structure
with a quarter of the filters on small pictures, for a processor."""


def configurations(
    preset: SegmentationConfig, updates: Sequence[str], repetitions: int
) -> list[SegmentationConfig]:
    """The runs of some updates, seed by seed, each with its own rate."""
    if not updates or len(set(updates)) < len(updates):
        raise ConfigError(f"the updates are {', '.join(updates) or 'none'}; name each of them once")
    for update in updates:
        check_choice("update", update, tuple(RATES))
    runs = [replace(preset, update=update, lr=RATES[update]) for update in updates]
    return repeated(runs, repetitions)


@dataclass(frozen=True, kw_only=True)
class SegmentationEpoch(EpochRow):
    """One epoch. The loss is the weighted mean cross-entropy (nats) of labelled pixels.

    Attributes:
        train_accuracy: global accuracy on the training images, in [0, 1], as they came up.
        validation_confusion: confusion matrix of the validation images after the epoch, row after
            row.
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
    """The end of a run, with the scores of the test images after all epochs.

    Attributes:
        global_accuracy: share of the labelled pixels that are right; NaN for a diverged run.
        class_accuracy: mean of the classes' accuracies.
        mean_iou: mean of the classes' intersections over unions.
    """

    global_accuracy: float
    class_accuracy: float
    mean_iou: float


SEGMENTATION = Schema(SegmentationConfig, SegmentationEpoch, SegmentationResult)
SegmentationRecord = RunRecord[SegmentationConfig, SegmentationEpoch, SegmentationResult]
"""A run of SegNet."""


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, in [0, 1]; formulas at the head of this module."""

    global_accuracy: float
    class_accuracy: float
    mean_iou: float
    class_accuracies: tuple[float, ...]
    ious: tuple[float, ...]


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """The confusion matrix (int64) of some pixels; what is not in ``0 … classes - 1`` is void."""
    valid = (labels >= 0) & (labels < classes)
    cells = labels[valid].long() * classes + predicted[valid].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def scores(matrix: Tensor | Sequence[int]) -> Scores:
    """The scores of a confusion matrix, as a square tensor or row after row."""
    counts = torch.as_tensor(matrix, dtype=torch.float64).flatten()
    counts = counts.reshape(math.isqrt(len(counts)), -1)
    right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    accuracies, ious = right / labelled, right / (labelled + predicted - right)  # 0/0 is NaN
    return Scores(
        float(right.sum() / counts.sum()),
        float(accuracies.nanmean()),
        float(ious.nanmean()),
        tuple(accuracies.tolist()),
        tuple(ious.tolist()),
    )
