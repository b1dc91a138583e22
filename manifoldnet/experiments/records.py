"""The record of a run: a JSON-lines file that tells what was trained and how it went.

    {"kind": "run", "format": 1, "config": {...}, "versions": {...}, "data": "<checksum>"}
    {"kind": "epoch", "epoch": 1, "train_loss": ..., "test_error": ..., ...}
    {"kind": "result", "status": "finished", "test_error": ..., ...}

one line that opens it, one for each epoch, and one when the run has ended.

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
from typing import Any, TypeVar

from manifoldnet.experiments.config import TrainConfig
from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.files import write_text

RECORD_NAME = "record.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """One epoch of one run. Errors are rates in [0, 1].

    Attributes:
        epoch: counted from 1.
        lr: learning rate during this epoch.
        train_loss: mean cross-entropy (nats) of a training image, when its minibatch came up.
        train_error: error rate on the training images, likewise measured while training.
        validation_error: error rate on the validation images after the epoch.
        test_error: error rate on the test images after the epoch.
        violation: how far the worst declared weight is off its manifold (0 when nothing is
            declared).
        train_seconds: wall clock of the training pass.
        seconds: the same with the evaluation.
    """

    epoch: int
    lr: float
    train_loss: float
    train_error: float
    validation_error: float
    test_error: float
    violation: float
    train_seconds: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: ``"finished"`` or ``"diverged"``.
        reason: why it counts as diverged; empty otherwise.
        epochs: trained epochs.
        test_error: error rate on the test images after the last of them.
        validation_error: the same for the validation images.
        seconds: wall clock of all epochs, with evaluations, without interruptions.
    """

    status: str
    reason: str
    epochs: int
    test_error: float
    validation_error: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the run's numbers are not worth comparing."""
        return self.status == "diverged"


@dataclass(frozen=True)
class Record:
    """A run as far as it has come.

    Attributes:
        config: what was asked for.
        versions: of Python and the packages that decide the numbers, when the run began.
        data: checksum of the data set.
        epochs: what has been trained.
        result: None while the run is unfinished.
    """

    config: TrainConfig
    versions: Mapping[str, str]
    data: str
    epochs: tuple[Epoch, ...] = ()
    result: Result | None = None


def write(record: Record, path: Path) -> None:
    """Writes a record in one atomic step."""
    header = {
        "kind": "run",
        "format": _FORMAT,
        "config": record.config.to_dict(),
        "versions": dict(record.versions),
        "data": record.data,
    }
    lines = [header] + [{"kind": "epoch", **vars(epoch)} for epoch in record.epochs]
    if record.result is not None:
        lines.append({"kind": "result", **vars(record.result)})
    write_text(
        path,
        "".join(json.dumps(_without_nonfinite(line), allow_nan=False) + "\n" for line in lines),
    )


def read(path: Path) -> Record:
    """Reads a record back.

    Raises:
        RecordError: naming the file, the line and the way out, when any line is damaged or out of
            place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read ({error}): {_way_out(path)}") from error
    if not text.endswith("\n"):
        raise _damage(path, text.count("\n") + 1, "it is cut off")
    lines = [_parse(path, number, line) for number, line in enumerate(text.splitlines(), start=1)]
    header = lines[0]
    if header.get("kind") != "run":
        raise _damage(path, 1, "a record begins with a line of kind 'run'")
    if header.get("format") != _FORMAT:
        raise _damage(path, 1, f"its format is {header.get('format')!r}, this is format {_FORMAT}")
    try:
        config = TrainConfig.from_dict(header["config"])
        record = Record(config, dict(header["versions"]), str(header["data"]))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise _damage(
            path, 1, f"it does not describe a run ({type(error).__name__}: {error})"
        ) from error
    epochs: list[Epoch] = []
    result: Result | None = None
    for number, line in enumerate(lines[1:], start=2):
        kind = line.pop("kind", None)
        if result is not None:
            raise _damage(path, number, "it comes after the result, which is the last line")
        if kind == "epoch":
            epoch = _row(Epoch, line, path, number)
            if epoch.epoch != len(epochs) + 1:
                raise _damage(
                    path, number, f"it is epoch {epoch.epoch} where epoch {len(epochs) + 1} belongs"
                )
            epochs.append(epoch)
        elif kind == "result":
            result = _row(Result, line, path, number)
            if result.epochs != len(epochs):
                raise _damage(
                    path,
                    number,
                    f"the result is of {result.epochs} epochs, there are {len(epochs)}",
                )
        else:
            raise _damage(path, number, f"its kind is {kind!r}, not 'epoch' or 'result'")
    return dataclasses.replace(record, epochs=tuple(epochs), result=result)


# What JSON may hold for a field of each type; null is a float that is not finite.
_WANTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float, type(None)),
    "str": (str,),
}
_Row = TypeVar("_Row", Epoch, Result)


def _row(cls: type[_Row], values: dict[str, Any], path: Path, number: int) -> _Row:
    values = dict(values)
    types = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    if set(values) != set(types):
        odd = ", ".join(sorted(set(values) ^ set(types)))
        raise _damage(path, number, f"fields are missing or unknown: {odd}")
    for name, value in values.items():
        kind = types[name]
        if isinstance(value, bool) or not isinstance(value, _WANTED[kind]):
            raise _damage(path, number, f"{name} is {value!r}, not of type {kind}")
        if isinstance(value, (int, type(None))) and kind == "float":
            values[name] = math.nan if value is None else float(value)
    return cls(**values)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _damage(path, number, f"it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damage(path, number, "it is not a JSON object")
    return value


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _damage(path: Path, number: int, what: str) -> RecordError:
    return RecordError(f"{path}, line {number} is damaged: {what}; {_way_out(path)}")


def _way_out(path: Path) -> str:
    return (
        f"delete {path.name} and use --resume, which writes it again from the checkpoint beside "
        "it, "
        "or train the run again with --overwrite"
    )
