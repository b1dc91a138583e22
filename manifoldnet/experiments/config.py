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
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from manifoldnet.experiments.errors import ConfigError

ARCHITECTURES = ("arch1", "arch2")
SCHEDULES = ("exponential", "bold-driver")


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
        lr: base learning rate λ, for the loss *summed* over a minibatch. The paper picks one of
            1e-2 … 1e-5 for each run and does not say which.
        momentum: 0, plain SGD, in the paper.
        batch_size: images per minibatch. A smaller last minibatch is used as it is.
        epochs: passes through the training images (25 to 60 in the paper, by a rule of its own).
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
    """

    dataset: str = "digits"
    architecture: str = "arch2"
    depth: int = 2
    features: int = 64
    update: str = "b-sgd"
    schedule: str = "exponential"
    lr: float = 1e-2
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

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not _DATASET_NAME.fullmatch(self.dataset):
            raise ConfigError(
                f"dataset is {self.dataset!r}; give a name such as 'digits', 'mnist', or "
                "'owner/name' on the hub"
            )
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        _check_choice("update", self.update, tuple(UPDATES))
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("depth", "features", "batch_size", "epochs", "threads"):
            _check_integer(name, getattr(self, name), at_least=1)
        _check_integer("seed", self.seed, at_least=0)
        for name in ("train_size", "validation_size"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), at_least=1)
        if self.features % 2:
            raise ConfigError(
                f"features is {self.features}; it must be even, because 2x1 max-pooling pairs "
                "features"
            )
        # Every bound is (lower, is it allowed, upper, is it allowed).
        self._check_real("lr", 0.0, False, math.inf, False)
        self._check_real("momentum", 0.0, True, 1.0, False)
        self._check_real("decay", 0.0, False, 1.0, True)
        self._check_real("grow", 1.0, True, math.inf, False)
        self._check_real("shrink", 0.0, False, 1.0, False)
        if self.architecture == "arch2" and self.batch_size == 1:
            raise ConfigError(
                "batch_size is 1; arch2 normalizes over the minibatch and needs 2 or more"
            )

    def _check_real(
        self, name: str, lower: float, with_lower: bool, upper: float, with_upper: bool
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} is {value!r}; it must be a number")
        above = value >= lower if with_lower else value > lower
        below = value <= upper if with_upper else value < upper
        if not (above and below):  # also refuses NaN, for which every comparison is false
            interval = (
                f"{'[' if with_lower else '('}{lower:g}, {upper:g}{']' if with_upper else ')'}"
            )
            raise ConfigError(f"{name} is {value}; it must be a number in {interval}")
        object.__setattr__(self, name, float(value))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

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
