"""One run of image classification as data.

The setting is that of Badrinarayanan, Mishra and Cipolla, "Symmetry-invariant optimization in deep
networks", Sections 2-4. What the paper leaves open is a field with a documented default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from manifoldnet.experiments.configuration import (
    Bounds,
    Configuration,
    check_choice,
    check_integer,
    checked_real,
)
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.updates import UPDATES

ARCHITECTURES = ("arch1", "arch2")
SCHEDULES = ("exponential", "bold-driver")
MEASURES = ("loss", "error")
SELECTION_SCHEDULES = ("constant", "own")


_COUNTS = (
    *("depth", "features", "batch_size", "epochs", "threads"),
    *("selection_epochs", "selection_train_size", "selection_validation_size"),
    "stop_validation_epochs",
)
_BOUNDS: Mapping[str, Bounds] = {
    "lr": (0.0, False, math.inf, False),
    "momentum": (0.0, True, 1.0, False),
    "decay": (0.0, False, 1.0, True),
    "grow": (1.0, True, math.inf, False),
    "shrink": (0.0, False, 1.0, False),
    "stop_train_error": (0.0, True, math.inf, False),
    "stop_validation_change": (0.0, True, math.inf, False),
    "diverged_above": (0.0, False, 1.0, True),
}
_DATASET_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Configuration):
    """One run of image classification.

    Attributes:
        dataset: ``"digits"`` (embedded), ``"mnist"``, ``"cifar10"``, or any image-classification
            set of the Hugging Face hub or of the data folder.
        architecture: ``"arch1"``, or ``"arch2"`` (with batch normalization).
        depth: hidden layers.
        features: filters per hidden layer (64 in the paper); even, since pooling pairs them.
        update: a key of `UPDATES`.
        schedule: ``"exponential"`` (the rate times `decay` after each epoch) or ``"bold-driver"``.
        lr: base learning rate λ, for the loss *summed* over a minibatch. None chooses one of
            `lr_candidates` for each run, as the paper does (`selection`).
        momentum: 0, plain SGD, in the paper.
        batch_size: images per minibatch. A smaller last minibatch is used as it is.
        epochs: passes through the training images; the most of them when rules may end the run.
        seed: decides the split into training and validation images, the start and the order of the
            images.
        train_size: training images; None takes all that the validation images leave.
        validation_size: images held out of the training set; None takes a sixth of it, which gives
            MNIST the paper's 50,000 and 10,000.
        decay: factor per epoch of the exponential schedule (0.95 in the paper).
        grow: factor of the bold driver while the mean training loss falls. Not given in the paper;
            "a few per cent" in the lecture notes that it cites.
        shrink: factor of the bold driver when the loss rises. Not given in the paper either; 0.5 in
            those notes.
        threads: torch's threads during the run. One serves networks of this size well; the
            number is kept with the run because sums are rounded in another order when it changes.
        lr_candidates: base rates to choose from; of equals the first is taken (the paper does not
            say; listed from large to small, it is the one that learns faster).
        selection_epochs: passes through the images of the choice.
        selection_train_size: images to train on for the choice, drawn from the run's training
            images, so that its validation images stay unseen.
        selection_validation_size: other training images whose error decides.
        selection_schedule: ``"constant"`` trains with each candidate as it is, which is what the
            paper's words say; ``"own"`` lets the run's schedule change it.
        min_epochs: the rules of `stopping` may end a run with the bold driver from this epoch on
            (25 in the paper); None never asks them.
        stop_train_error: a run ends when its training error falls below this.
        stop_validation_epochs: it ends when the validation error is above that of so many epochs
            earlier.
        stop_validation_change: it ends when two successive validation errors differ by less.
        training_measure: the "training error" of the rules, as it came up during the epoch: the
            ``"error"`` rate (1e-5 of 50,000 images means none wrong), or the mean ``"loss"``.
        validation_measure: the "validation error" of the rules: the mean ``"loss"``, or the
            ``"error"`` rate. The paper does not say. A rate over 10,000 images moves in steps of
            1e-4, for which a bound of 1e-5 makes little sense, so it is the loss.
        diverged_above: a run that ends with a validation error rate above this counts as diverged.
            The paper ignores "a small proportion of runs where the validation error diverged" and
            does not say what that means.
    """

    experiment: ClassVar[str] = "classification"

    dataset: str = "digits"
    architecture: str = "arch2"
    depth: int = 2
    features: int = 64
    update: str = "b-sgd"
    schedule: str = "exponential"
    lr: float | None = 1e-2
    momentum: float = 0.0
    batch_size: int = 100
    epochs: int = 30
    seed: int = 0
    train_size: int | None = None
    validation_size: int | None = None
    decay: float = 0.95
    grow: float = 1.05
    shrink: float = 0.5
    threads: int = 1
    lr_candidates: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    selection_epochs: int = 50
    selection_train_size: int = 1000
    selection_validation_size: int = 500
    selection_schedule: str = "constant"
    min_epochs: int | None = None
    stop_train_error: float = 1e-5
    stop_validation_epochs: int = 5
    stop_validation_change: float = 1e-5
    training_measure: str = "error"
    validation_measure: str = "loss"
    diverged_above: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not _DATASET_NAME.fullmatch(self.dataset):
            raise ConfigError(
                f"dataset is {self.dataset!r}; give a name such as 'digits', 'mnist', or "
                "'owner/name' on the hub"
            )
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("update", self.update, tuple(UPDATES))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("selection_schedule", self.selection_schedule, SELECTION_SCHEDULES)
        check_choice("training_measure", self.training_measure, MEASURES)
        check_choice("validation_measure", self.validation_measure, MEASURES)
        for name in _COUNTS:
            check_integer(name, getattr(self, name), at_least=1)
        check_integer("seed", self.seed, at_least=0)
        for name in ("train_size", "validation_size", "min_epochs"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)
        if self.features % 2:
            raise ConfigError(
                f"features is {self.features}; it must be even, because 2x1 max-pooling pairs "
                "features"
            )
        for name, bounds in _BOUNDS.items():
            if name != "lr" or self.lr is not None:
                value = checked_real(name, getattr(self, name), bounds)
                object.__setattr__(self, name, value)
        self._check_candidates()
        if self.min_epochs is not None and self.min_epochs > self.epochs:
            raise ConfigError(
                f"min_epochs is {self.min_epochs}; it must not exceed epochs, which is "
                f"{self.epochs}"
            )
        if self.architecture == "arch2" and self.batch_size == 1:
            raise ConfigError(
                "batch_size is 1; arch2 normalizes over the minibatch and needs 2 or more"
            )

    @property
    def label(self) -> str:
        """The cell of Table 2 that a run is of: ``arch1-2-b-sgd-exponential``."""
        return f"{self.architecture}-{self.depth}-{self.update}-{self.schedule}"

    def _check_candidates(self) -> None:
        if isinstance(self.lr_candidates, str) or not isinstance(self.lr_candidates, Sequence):
            raise ConfigError(f"lr_candidates is {self.lr_candidates!r}; it must be a tuple")
        rates = tuple(checked_real("lr_candidates", r, _BOUNDS["lr"]) for r in self.lr_candidates)
        if not rates or len(set(rates)) < len(rates):
            raise ConfigError(f"lr_candidates is {rates}; it must name different rates")
        object.__setattr__(self, "lr_candidates", rates)
