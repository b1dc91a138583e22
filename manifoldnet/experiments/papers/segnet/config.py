"""A run of SegNet as data: its configuration, the rows of its record, and their scores.

Section 6 of [badrinarayanan2015symmetry] says little: the CamVid training set of 367 images, 100
epochs, SGD with the unit-norm update. What it leaves open follows [badrinarayanan2017segnet]
(momentum 0.9, median-frequency class weights, one setting for all layers), or is chosen: the rate
and the augmentation of each update, on one whole sequence that is held out of training. Frames of a
sequence resemble each other, so that frames of a sequence that is trained on choose what memorizes
it. The runs that are compared train on all sequences.

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
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldnet.experiments.configuration import Configuration, check_choice, field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.records import EpochRow, ResultRow, RunRecord, Schema

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
        held_out: sequences that are not trained on. If there are any, all their frames are the
            validation images, in the place of the set's own.
        train_images: so many training images, evenly spaced, of those that are left; None takes
            all.
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
    held_out: tuple[str, ...] = field((), later=True)
    train_images: int | None = field(None, later=True, at_least=1)
    standardize: bool = True
    threads: int = field(1, at_least=1)

    @property
    def label(self) -> str:
        """The update."""
        return self.update


_PAPER = SegmentationConfig(
    height=360, width=480, filters=64, batch_size=12, class_balance="median-frequency"
)
_CPU = SegmentationConfig(class_balance="median-frequency")
PRESETS = MappingProxyType({"cpu": _CPU, "paper": _PAPER})
"""``"paper"``: the layout of VGG-16 on whole pictures, for a GPU; ``"cpu"``: the same structure
with a quarter of the filters on small pictures, for a processor."""

COMPARED = ("b-sgd", "sm", "un")
"""The updates of the comparison."""

_FIRST, _WIDEST = range(-3, 0), range(-8, 4)  # rates 10^(k/2), from 0.03 to 0.3

AUGMENTATIONS = ((1.0, 1.0), (1.8, 1.0), (1.0, 2.0), (1.8, 2.0))
"""Zoom and gamma to choose from; of equals the first."""

LIMITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "as chosen": {},
        "48x64 pictures": {"height": 48, "width": 64},
        "180x240 pictures": {"height": 180, "width": 240},
        "8 filters": {"filters": 8},
        "32 filters": {"filters": 32},
        "without 0001TP": {"held_out": ("0001TP",)},
        "305 images of all": {"train_images": 305},
        "without 0006R0": {"held_out": ("0006R0",)},
        "266 images of all": {"train_images": 266},
        "without 0016E5": {"held_out": ("0016E5",)},
        "163 images of all": {"train_images": 163},
        "root of the class weights": {"class_balance": "root-median-frequency"},
    }
)
"""What may limit the result on CamVid, one change at a time. Beside each run without a sequence is
one on as many images of all sequences."""


def rate(k: int) -> float:
    """The rate 10^(k/2), to three digits."""
    return float(f"{10 ** (k / 2):.3g}")


def shortened(config: SegmentationConfig, epochs: int) -> SegmentationConfig:
    """A run of fewer epochs, whose rate falls as far."""
    return replace(config, epochs=epochs, decay=config.decay ** (config.epochs / epochs))


def first_rates(updates: Sequence[str]) -> dict[str, list[int]]:
    """The exponents of rates that every update begins with."""
    if not updates or len(set(updates)) < len(updates):
        raise ConfigError(f"the updates are {', '.join(updates) or 'none'}; name each of them once")
    for update in updates:
        check_choice("update", update, COMPARED)
    return {update: list(_FIRST) for update in updates}


def of_rates(
    base: SegmentationConfig, exponents: Mapping[str, Sequence[int]]
) -> list[SegmentationConfig]:
    """Runs that choose rates: of each update, the rates 10^(k/2) for some k."""
    return [
        replace(base, update=update, lr=rate(k)) for update, own in exponents.items() for k in own
    ]


def of_augmentations(chosen: Sequence[SegmentationConfig]) -> list[SegmentationConfig]:
    """Runs that choose augmentations, at the rates of some runs."""
    return [replace(run, zoom=zoom, gamma=gamma) for run in chosen for zoom, gamma in AUGMENTATIONS]


def judged(record: SegmentationRecord) -> float:
    """The mean IoU on the validation images after the last epoch; −1 for a diverged run."""
    if record.result is None or record.result.diverged:
        return -1.0
    return scores(record.epochs[-1].validation_confusion).mean_iou


def best(records: Sequence[SegmentationRecord]) -> dict[str, SegmentationConfig]:
    """The run of highest mean IoU on the validation images, by update; of equals the first."""
    found: dict[str, SegmentationRecord] = {}
    for record in records:
        known = found.setdefault(record.config.update, record)
        if judged(record) > judged(known):
            found[record.config.update] = record
    return {update: record.config for update, record in found.items()}


def widened(
    exponents: Mapping[str, Sequence[int]], records: Sequence[SegmentationRecord]
) -> dict[str, list[int]]:
    """The exponents, with a neighbour where the best rate of an update is at an edge."""
    wider = {}
    for update, run in best(records).items():
        own = exponents[update]
        (k,) = (k for k in own if rate(k) == run.lr)
        more = [j for j in (k - 1, k + 1) if j not in own and j in _WIDEST]
        wider[update] = sorted([*own, *more])
    return wider


def as_chosen(preset: SegmentationConfig, choice: SegmentationConfig) -> SegmentationConfig:
    """A run of a preset with the rate and augmentation of a run of the choice."""
    names = ("update", "lr", "zoom", "gamma")
    return replace(preset, **{name: getattr(choice, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class SegmentationEpoch(EpochRow):
    """One epoch. The loss is the weighted mean cross-entropy (nats) of labelled pixels.

    Attributes:
        train_accuracy: global accuracy on the training images, in [0, 1], as they came up.
        validation_confusion: confusion matrix of the validation images after the epoch, row after
            row.
        test_confusion: that of the test images, after the last epoch only.
        test_sequences: the sequences of the test images; None in records of earlier versions.
        sequence_confusions: the test images' matrices by sequence, one after the other.
    """

    train_accuracy: float
    validation_confusion: tuple[int, ...]
    test_confusion: tuple[int, ...] | None = None
    test_sequences: tuple[str, ...] | None = None
    sequence_confusions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        size = len(self.validation_confusion)
        by_sequence = len(self.sequence_confusions or ())
        if by_sequence != size * len(self.test_sequences or ()):
            raise ValueError(
                f"confusion matrices by sequence have {by_sequence} entries, not {size} for each "
                f"of {len(self.test_sequences or ())} sequences"
            )
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
