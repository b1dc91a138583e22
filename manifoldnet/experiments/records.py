"""The record of a run: a JSON-lines file that tells what was trained and how it went.

    {"kind": "run", "format": 2, "experiment": ..., "config": {...}, "versions": {...}, "data": ...}
    {"kind": "selection", "candidates": [...], "errors": [...], "lr": ..., "seconds": ...}
    {"kind": "epoch", "epoch": 1, "train_loss": ..., "test_error": ..., ...}
    {"kind": "result", "status": "finished", "test_error": ..., ...}

one line that opens it, one if the learning rate was chosen, one for each epoch, and one when the
run has ended. What an epoch and a result tell depends on the experiment (`Kind`): a row that all
have in common, and more. Format 1, without selections and validation losses, is read as well.

Reports read these files and nothing else. A number that is not finite is written as null, which is
valid JSON everywhere, and read back as NaN. A line that cannot be read is an error with its place,
never skipped.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.files import write_text

RECORD_NAME = "record.jsonl"
_FORMAT = 2
_READABLE = (1, 2)
_UNNAMED = "classification"  # records of format 1 name no experiment


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """What every experiment tells of an epoch.

    Attributes:
        epoch: counted from 1.
        lr: learning rate during this epoch.
        train_loss: mean loss of the training data, when their minibatch came up.
        violation: how far the worst declared weight is off its manifold (0 when nothing is
            declared).
        train_seconds: wall clock of the training pass.
        seconds: the same with the evaluation.
    """

    epoch: int
    lr: float
    train_loss: float
    violation: float
    train_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """How a run of any experiment ended.

    Attributes:
        status: ``"finished"`` or ``"diverged"``.
        reason: why it counts as diverged; empty otherwise.
        epochs: trained epochs.
        seconds: wall clock of all epochs, with evaluations, without interruptions.
        stopped: the rule that ended the run early; empty when none did.
    """

    status: str
    reason: str
    epochs: int
    seconds: float
    stopped: str = ""

    @property
    def diverged(self) -> bool:
        """Whether the run's numbers are not worth comparing."""
        return self.status == "diverged"


@dataclass(frozen=True)
class Selection:
    """How the base learning rate of a run was chosen.

    Attributes:
        candidates: the rates that were tried.
        errors: the error rate that each ended with; 1 where the loss was not finite.
        lr: the chosen one.
        seconds: wall clock of all of it.
    """

    candidates: tuple[float, ...]
    errors: tuple[float, ...]
    lr: float
    seconds: float


C = TypeVar("C", bound=Configuration)
E = TypeVar("E", bound=EpochRow)
R = TypeVar("R", bound=ResultRow)


@dataclass(frozen=True)
class Kind(Generic[C, E, R]):
    """What the records of an experiment hold.

    Attributes:
        config: the class of its configurations, whose `experiment` names it.
        epoch: what is told of an epoch.
        result: what is told at the end.
    """

    config: type[C]
    epoch: type[E]
    result: type[R]


@dataclass(frozen=True)
class RunRecord(Generic[C, E, R]):
    """A run as far as it has come.

    Attributes:
        config: what was asked for.
        versions: of Python and the packages that decide the numbers, when the run began.
        data: checksum of the data set.
        epochs: what has been trained.
        result: None while the run is unfinished.
        selection: how the learning rate was chosen; None when it was given.
    """

    config: C
    versions: Mapping[str, str]
    data: str
    epochs: tuple[E, ...] = ()
    result: R | None = None
    selection: Selection | None = None

    @property
    def lr(self) -> float:
        """The base learning rate, given or chosen; NaN before the choice."""
        if self.config.lr is not None:
            return self.config.lr
        return math.nan if self.selection is None else self.selection.lr


def write(record: RunRecord[Any, Any, Any], path: Path) -> None:
    """Writes a record in one atomic step."""
    header = {
        "kind": "run",
        "format": _FORMAT,
        "experiment": record.config.experiment,
        "config": record.config.to_dict(),
        "versions": dict(record.versions),
        "data": record.data,
    }
    lines: list[dict[str, Any]] = [header]
    if record.selection is not None:
        lines.append(_line("selection", record.selection))
    lines += [_line("epoch", epoch) for epoch in record.epochs]
    if record.result is not None:
        lines.append(_line("result", record.result))
    write_text(
        path,
        "".join(json.dumps(_without_nonfinite(line), allow_nan=False) + "\n" for line in lines),
    )


def read(path: Path, kind: Kind[C, E, R], way_out: str | None = None) -> RunRecord[C, E, R]:
    """Reads a record back.

    Args:
        path: the file.
        kind: what it should hold.
        way_out: what the user is told to do about a damaged one; by default what helps in a run's
            own directory.

    Raises:
        RecordError: naming the file, the line and the way out, when it is of another experiment, or
            any line is damaged or out of place.
    """
    way_out = way_out or (
        f"delete {path.name} and go on with the run (--resume), which writes it again from the "
        "checkpoint beside it, or train it again with --overwrite"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read ({error}): {way_out}") from error
    try:
        return _record(text, kind)
    except _DamageError as error:
        raise RecordError(f"{path}, line {error.line} is damaged: {error}; {way_out}") from error


def experiment(path: Path) -> str:
    """The experiment that a record is of.

    Raises:
        RecordError: when the file does not begin like a record.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            line = json.loads(stream.readline())
        return str(line.get("experiment", _UNNAMED))
    except (OSError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}, line 1 is damaged ({error}): move it away") from error


class _DamageError(Exception):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def _record(text: str, kind: Kind[C, E, R]) -> RunRecord[C, E, R]:
    if not text.endswith("\n"):
        raise _DamageError(text.count("\n") + 1, "it is cut off")
    lines = [_parse(number, line) for number, line in enumerate(text.splitlines(), start=1)]
    record = _header(lines[0], kind)
    epochs: list[E] = []
    result: R | None = None
    selection: Selection | None = None
    for number, line in enumerate(lines[1:], start=2):
        what = line.pop("kind", None)
        if result is not None:
            raise _DamageError(number, "it comes after the result, which is the last line")
        if what == "epoch":
            epoch = _row(kind.epoch, line, number)
            if epoch.epoch != len(epochs) + 1:
                raise _DamageError(
                    number, f"it is epoch {epoch.epoch} where epoch {len(epochs) + 1} belongs"
                )
            epochs.append(epoch)
        elif what == "result":
            result = _row(kind.result, line, number)
            if not epochs:
                raise _DamageError(number, "it is the result of a run without epochs")
            if result.epochs != len(epochs):
                raise _DamageError(
                    number, f"the result is of {result.epochs} epochs, there are {len(epochs)}"
                )
        elif what == "selection" and number == 2:
            selection = _row(Selection, line, number)
        else:
            raise _DamageError(number, f"its kind is {what!r}, not 'epoch' or 'result'")
    return dataclasses.replace(record, epochs=tuple(epochs), result=result, selection=selection)


def _header(line: dict[str, Any], kind: Kind[C, E, R]) -> RunRecord[C, E, R]:
    if line.get("kind") != "run":
        raise _DamageError(1, "a record begins with a line of kind 'run'")
    if line.get("format") not in _READABLE:
        what = f"its format is {line.get('format')!r}, this is format {_FORMAT}"
        raise _DamageError(1, what)
    experiment = line.get("experiment", _UNNAMED)
    if experiment != kind.config.experiment:
        what = f"it is of the experiment {experiment!r}, not {kind.config.experiment!r}"
        raise _DamageError(1, what)
    try:
        config = kind.config.from_dict(line["config"])
        return RunRecord(config, dict(line["versions"]), str(line["data"]))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        what = f"it does not describe a run ({type(error).__name__}: {error})"
        raise _DamageError(1, what) from error


# What JSON may hold for a field of each type; null is a float that is not finite.
_WANTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float, type(None)),
    "float | None": (int, float, type(None)),
    "tuple[int, ...]": (list,),
    "tuple[int, ...] | None": (list,),
    "str": (str,),
    "tuple[float, ...]": (list,),
}
_Row = TypeVar("_Row", bound=EpochRow | ResultRow | Selection)


def _row(cls: type[_Row], given: dict[str, Any], line: int) -> _Row:
    values = dict(given)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    wanted = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    odd = (wanted - set(values)) | (set(values) - set(fields))
    if odd:
        raise _DamageError(line, f"fields are missing or unknown: {', '.join(sorted(odd))}")
    for name, value in given.items():
        kind = str(fields[name].type)
        if isinstance(value, bool) or not isinstance(value, _WANTED[kind]):
            raise _DamageError(line, f"{name} is {value!r}, not of type {kind}")
        if isinstance(value, list):
            number = float if "float" in kind else int
            if not all(type(entry) is number for entry in value):
                raise _DamageError(line, f"{name} is {value!r}, not of type {kind}")
            values[name] = tuple(value)
        elif isinstance(value, (int, type(None))) and kind.startswith("float"):
            values[name] = math.nan if value is None else float(value)
    try:
        return cls(**values)
    except ValueError as error:
        raise _DamageError(line, str(error)) from error


def _parse(number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _DamageError(number, f"it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _DamageError(number, "it is not a JSON object")
    return value


def _line(kind: str, row: EpochRow | ResultRow | Selection) -> dict[str, Any]:
    """A row's fields; what was not measured is left out, since null stands for no number."""
    return {"kind": kind, **{name: value for name, value in vars(row).items() if value is not None}}


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
