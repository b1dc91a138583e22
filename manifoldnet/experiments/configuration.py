"""Configurations: the settings of a run as a frozen value that is hashed, written and compared.

A configuration is a dataclass of plain JSON types (numbers, strings, None, tuples of them). Each
field declares its range where it stands:

    epochs: int = field(30, at_least=1)
    lr: float | None = field(1e-2, above=0)
    schedule: str = field("exponential", choices=SCHEDULES)

Two runs of equal configurations on the same data, machine and versions give the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from manifoldnet.experiments.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The values that a field accepts; its type stands in the annotation."""

    at_least: float | None = None  # closed lower end
    above: float | None = None  # open lower end
    at_most: float | None = None  # closed upper end
    below: float | None = None  # open upper end
    choices: tuple[str, ...] | None = None  # all values, in the order of the help text
    pattern: str = ".+"  # a regular expression for the whole of a string
    example: str = "'mnist'"  # names in the message for a string that does not fit

    def __str__(self) -> str:  # "(0, inf)", "[0, 1)"
        low = f"({-math.inf if self.above is None else self.above:g}"
        high = f"{math.inf if self.below is None else self.below:g})"
        return (
            f"{low if self.at_least is None else f'[{self.at_least:g}'}, "
            f"{high if self.at_most is None else f'{self.at_most:g}]'}"
        )

    def __contains__(self, value: float) -> bool:
        return (  # every comparison is false for NaN
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and -math.inf < value < math.inf
        )


def field(
    default: Any = dataclasses.MISSING,
    *,
    choices: Sequence[str] | Mapping[str, Any] | None = None,
    later: bool = False,
    **limits: Any,
) -> Any:
    """A field of a configuration, with its `Range`: of the numbers, or of a tuple's entries.

    A field that came `later` than records of the experiment is in no `Configuration.identity` at
    its default, which is what runs did before: sweeps go on with their records.
    """
    kept = Range(choices=None if choices is None else tuple(choices), **limits)
    return dataclasses.field(default=default, metadata={"range": kept, "later": later})


class Checked:
    """Base of dataclasses whose fields are checked on construction, by a ConfigError."""

    def __post_init__(self) -> None:
        for name, (hint, optional, accepted) in declared(type(self)).items():
            value = getattr(self, name)
            if not (optional and value is None):
                object.__setattr__(self, name, _checked(name, value, hint, accepted))


@dataclass(frozen=True, kw_only=True)
class Configuration(Checked, ABC):
    """Base of the configurations; checked on construction, so that one that exists can be trained.

    Attributes:
        experiment: name of the experiment in the records of such runs.
        dataset: name of the data set.
        epochs: the most passes through the training data.
        lr: base learning rate; None where it is chosen for each run.
        seed: decides everything random.
        threads: torch's threads during the run. The number is kept with the run because sums are
            rounded in another order when it changes.
    """

    experiment: ClassVar[str]

    dataset: str
    epochs: int = field(at_least=1)
    lr: float | None = field(above=0)
    seed: int = field(0, at_least=0)
    threads: int = field(1, at_least=1)

    @property
    @abstractmethod
    def label(self) -> str:
        """A name for the runs of equal settings but for their seed."""

    def identity(self) -> str:
        """A hash of the fields, by which a sweep knows its runs."""
        fields = self.to_dict()
        for each in dataclasses.fields(self):
            if each.metadata.get("later") and getattr(self, each.name) == each.default:
                del fields[each.name]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; `from_dict` is the inverse."""
        fields = dataclasses.asdict(self).items()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` described; absent fields take their defaults.

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
        """The fields that differ, as text: ``"lr 0.01 there, 0.1 here"``; empty when equal."""
        if type(self) is not type(other):
            return f"{other.experiment} there, {self.experiment} here"
        mine, theirs = self.to_dict(), other.to_dict()
        return ", ".join(
            f"{k} {theirs[k]} there, {mine[k]} here" for k in mine if mine[k] != theirs[k]
        )


def descriptions(config: type[Any]) -> dict[str, str]:
    """The description of each field, from the ``Attributes`` of the class's docstrings."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
            for entry in re.split(r"\n(?=    \w)", "\n" + section)[1:]:
                name, _, text = entry.strip().partition(":")
                found[name] = " ".join(text.split())
    return found


def declared(config: Any) -> dict[str, tuple[Any, bool, Range]]:
    """By field: its type (``tuple[str, ...]`` for several), whether None is accepted, its range."""
    hints = typing.get_type_hints(config)
    found = {}
    for each in dataclasses.fields(config):
        hint = hints[each.name]
        optional = isinstance(hint, types.UnionType)
        if optional:
            (hint,) = (part for part in hint.__args__ if part is not type(None))
        found[each.name] = (hint, optional, each.metadata.get("range", Range()))
    return found


def _checked(name: str, value: Any, hint: Any, accepted: Range) -> Any:
    """The value in the field's type; ConfigError for one that is not accepted."""
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{name} is {value!r}; it must be a tuple")
        return tuple(_checked(name, entry, hint.__args__[0], accepted) for entry in value)
    if accepted.choices is not None:
        check_choice(name, value, accepted.choices)
    elif hint is str:
        if not isinstance(value, str) or not re.fullmatch(accepted.pattern, value):
            raise ConfigError(f"{name} is {value!r}; give a name such as {accepted.example}")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; it must be True or False")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or value not in accepted:
            least = "" if accepted.at_least is None else f", {accepted.at_least:g} or more"
            raise ConfigError(f"{name} is {value!r}; it must be an integer{least}")
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} is {value!r}; it must be a number")
        if value not in accepted:
            raise ConfigError(f"{name} is {value}; it must be a number in {accepted}")
        return float(value)
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
