"""One training run as data: all that decides its numbers, nothing about where its files are.

Two runs with equal `TrainConfig` on the same data, machine and versions give the same bits. The
weight updates that are compared are data too (`UPDATES`): a row says which rule of
`manifoldnet.rules` declares the weights, with which options; the training loop knows no update by
name.

The setting is that of Badrinarayanan, Mishra and Cipolla, "Symmetry-invariant optimization in deep
networks", Sections 2-4. What the paper leaves open is a field with a documented default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from manifoldnet.experiments.errors import ConfigError

ARCHITECTURES = ("arch1", "arch2")
SCHEDULES = ("exponential", "bold-driver")
MEASURES = ("loss", "error")
SELECTION_SCHEDULES = ("constant", "own")


@dataclass(frozen=True)
class Update:
    """A weight update of the comparison: which weights it declares on which manifolds.

    Attributes:
        rule: name of the factory in `manifoldnet.rules`; None declares nothing (Euclidean weights).
        options: keyword arguments of that factory, besides ``classifier="head"``.
        summary: one line for people.
    """

    summary: str
    rule: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


UPDATES: Mapping[str, Update] = MappingProxyType(
    {
        "b-sgd": Update("balanced SGD: Euclidean updates from a unit-norm start"),
        "sm": Update(
            "scaled metric, additive step (Table 1)",
            "scaled_metric",
            MappingProxyType({"retraction": "additive"}),
        ),
        "sm-geodesic": Update(
            "scaled metric, exact geodesic step",
            "scaled_metric",
            MappingProxyType({"retraction": "geodesic"}),
        ),
        "un": Update(
            "unit-norm filters, projective step (Table 1)",
            "unit_norm",
            MappingProxyType({"retraction": "projective"}),
        ),
    }
)
"""The updates of the comparison, by name."""

_COUNTS = (
    *("depth", "features", "batch_size", "epochs", "threads"),
    *("selection_epochs", "selection_train_size", "selection_validation_size"),
    "stop_validation_epochs",
)
# Every bound is (lower, is it allowed, upper, is it allowed).
_BOUNDS: Mapping[str, tuple[float, bool, float, bool]] = {
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
class TrainConfig:
    """One run. Checked on construction, so a `TrainConfig` that exists can be trained.

    Attributes:
        dataset: ``"digits"`` (embedded), ``"mnist"``, ``"cifar10"``, or any image-classification
            set of the Hugging Face hub or of the data folder.
        architecture: ``"arch1"``, or ``"arch2"`` (with batch normalization).
        depth: hidden layers.
        features: filters per hidden layer (64 in the paper); even, since pooling pairs them.
        update: a key of `UPDATES`.
        schedule: ``"exponential"`` (the rate times `decay` after each epoch) or ``"bold-driver"``.
        lr: base learning rate λ, for the loss *summed* over a minibatch. None chooses one of
            `lr_candidates` for each run, as the paper does (`manifoldnet.experiments.selection`).
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
        min_epochs: the rules of `manifoldnet.experiments.stopping` may end a run with the bold
            driver from this epoch on (25 in the paper); None never asks them.
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
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        _check_choice("update", self.update, tuple(UPDATES))
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("selection_schedule", self.selection_schedule, SELECTION_SCHEDULES)
        _check_choice("training_measure", self.training_measure, MEASURES)
        _check_choice("validation_measure", self.validation_measure, MEASURES)
        for name in _COUNTS:
            _check_integer(name, getattr(self, name), at_least=1)
        _check_integer("seed", self.seed, at_least=0)
        for name in ("train_size", "validation_size", "min_epochs"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), at_least=1)
        if self.features % 2:
            raise ConfigError(
                f"features is {self.features}; it must be even, because 2x1 max-pooling pairs "
                "features"
            )
        for name, bounds in _BOUNDS.items():
            if name != "lr" or self.lr is not None:
                value = _checked_real(name, getattr(self, name), *bounds)
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

    def _check_candidates(self) -> None:
        if isinstance(self.lr_candidates, str) or not isinstance(self.lr_candidates, Sequence):
            raise ConfigError(f"lr_candidates is {self.lr_candidates!r}; it must be a tuple")
        rates = tuple(_checked_real("lr_candidates", r, *_BOUNDS["lr"]) for r in self.lr_candidates)
        if not rates or len(set(rates)) < len(rates):
            raise ConfigError(f"lr_candidates is {rates}; it must name different rates")
        object.__setattr__(self, "lr_candidates", rates)

    def identity(self) -> str:
        """A hash of all fields (16 hexadecimal digits), the same in every process.

        A sweep knows its runs by it. It changes with any field, and when the library gains one.
        """
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "lr_candidates": list(self.lr_candidates)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """Builds the configuration that `to_dict` described; absent fields take their defaults.

        Raises:
            ConfigError: for a field that does not exist, or a value that is refused.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown fields {', '.join(unknown)}; a configuration has {', '.join(known)}"
            )
        return cls(**fields)

    def differences(self, other: TrainConfig) -> str:
        """What sets ``other`` apart, as text: ``"lr 0.01 there, 0.1 here"``; empty when equal."""
        mine, theirs = self.to_dict(), other.to_dict()
        return ", ".join(
            f"{k} {theirs[k]} there, {mine[k]} here" for k in mine if mine[k] != theirs[k]
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _check_integer(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer, {at_least} or more")


def _checked_real(
    name: str, value: object, lower: float, with_lower: bool, upper: float, with_upper: bool
) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    above = value >= lower if with_lower else value > lower
    below = value <= upper if with_upper else value < upper
    if not (above and below):  # also refuses NaN, for which every comparison is false
        interval = f"{'[' if with_lower else '('}{lower:g}, {upper:g}{']' if with_upper else ')'}"
        raise ConfigError(f"{name} is {value}; it must be a number in {interval}")
    return float(value)
