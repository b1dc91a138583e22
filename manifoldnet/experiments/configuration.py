"""What a run of any experiment is told, as a frozen value: hashed, written down, compared.

A configuration is a dataclass of plain JSON types (numbers, strings, None, tuples of them). Two
runs of equal configurations on the same data, machine and versions give the same bits; where their
files are is not part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from manifoldnet.experiments.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Configuration(ABC):
    """Base of the configurations; checked on construction, so that one that exists can be trained.

    Attributes:
        experiment: what records of such runs are called.
        dataset: name of the data set.
        epochs: the most passes through the training data.
        lr: base learning rate; None where it is chosen for each run.
        seed: decides everything random.
        threads: torch's threads during the run. The number is kept with the run because sums are
            rounded in another order when it changes.
    """

    experiment: ClassVar[str]

    dataset: str
    epochs: int
    lr: float | None
    seed: int = 0
    threads: int = 1

    @property
    @abstractmethod
    def label(self) -> str:
        """What tells the runs of an experiment apart besides their seed, in a word."""

    def identity(self) -> str:
        """A hash of all fields (16 hexadecimal digits), the same in every process.

        A sweep knows its runs by it. It changes with any field, and when the library gains one.
        """
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; `from_dict` is the inverse."""
        fields = dataclasses.asdict(self).items()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
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

    def differences(self, other: Configuration) -> str:
        """What sets ``other`` apart, as text: ``"lr 0.01 there, 0.1 here"``; empty when equal."""
        if type(self) is not type(other):
            return f"{other.experiment} there, {self.experiment} here"
        mine, theirs = self.to_dict(), other.to_dict()
        return ", ".join(
            f"{k} {theirs[k]} there, {mine[k]} here" for k in mine if mine[k] != theirs[k]
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def check_integer(name: str, value: object, at_least: int) -> None:
    """Raises ConfigError unless ``value`` is an integer of that size."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer, {at_least} or more")


Bounds = tuple[float, bool, float, bool]
"""Lower, is it allowed, upper, is it allowed."""


def checked_real(name: str, value: object, bounds: Bounds) -> float:
    """The number as a float.

    Raises:
        ConfigError: when it is none, is NaN, or lies outside its bounds.
    """
    lower, with_lower, upper, with_upper = bounds
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    above = value >= lower if with_lower else value > lower
    below = value <= upper if with_upper else value < upper
    if not (above and below):  # also refuses NaN, for which every comparison is false
        interval = f"{'[' if with_lower else '('}{lower:g}, {upper:g}{']' if with_upper else ')'}"
        raise ConfigError(f"{name} is {value}; it must be a number in {interval}")
    return float(value)
