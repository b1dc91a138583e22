"""Records of runs as JSON lines, and tables of many records.

    {"kind": "run", "format": 2, "experiment": ..., "config": {...}, "versions": {...}, "data": ...}
    {"kind": "selection", "candidates": [...], "errors": [...], "lr": ..., "seconds": ...}
    {"kind": "epoch", "epoch": 1, "train_loss": ..., "test_error": ..., ...}
    {"kind": "result", "status": "finished", "test_error": ..., ...}

A selection is there if the learning rate was chosen, a result when the run has ended. The columns
of an epoch and of a result are those of the experiment's `Schema`. A run of a sweep has ``"sweep":
{"purpose": "comparison", ...}`` in the first line. Format 1, without selections and validation
losses, is read as well. A number that is not finite is written as null, and read back as NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import ConfigError, RecordError, importing
from manifoldnet.experiments.files import write_text

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 2
_UNNAMED = "classification"  # records of format 1 name no experiment
# Versions of manifoldnet with the same algorithms in all runs: their records go together.
_SAME_RUNS = (frozenset({"0.1.0", "0.2.0"}),)


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of any experiment."""

    epoch: int  # counted from 1
    lr: float  # learning rate during this epoch
    train_loss: float  # mean loss of the training data, when their minibatch came up
    violation: float  # distance of the worst declared weight from its manifold; 0 without any
    train_seconds: float  # wall clock of the training pass
    seconds: float  # the same with the evaluation

    def summary(self) -> str:
        """The scores that the progress bar shows."""
        return f"loss {self.train_loss:.4g}"


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """The end of a run of any experiment."""

    status: str  # ``"finished"`` or ``"diverged"``
    reason: str  # why it counts as diverged; empty otherwise
    epochs: int  # trained epochs
    seconds: float  # wall clock of all epochs, with evaluations, without interruptions
    stopped: str = ""  # the rule that ended the run early; empty when none did

    @property
    def diverged(self) -> bool:
        """True for a run whose scores are left out of comparisons."""
        return self.status == "diverged"


@dataclass(frozen=True)
class Selection:
    """The choice of the base learning rate of a run."""

    candidates: tuple[float, ...]  # the rates that were tried
    errors: tuple[float, ...]  # that each ended with; 1 where the loss was not finite
    lr: float  # the chosen one
    seconds: float  # wall clock of all of it


C = TypeVar("C", bound=Configuration)
E = TypeVar("E", bound=EpochRow)
R = TypeVar("R", bound=ResultRow)


@dataclass(frozen=True)
class Schema(Generic[C, E, R]):
    """The classes that the records of an experiment are made of."""

    config: type[C]  # the configurations, whose `experiment` names it
    epoch: type[E]  # a row for each epoch
    result: type[R]  # the row at the end


@dataclass(frozen=True)
class RunRecord(Generic[C, E, R]):
    """A run up to its last finished epoch."""

    config: C
    versions: Mapping[str, str]  # when the run began
    data: str  # checksum of the data set
    epochs: tuple[E, ...] = ()
    result: R | None = None  # None while the run is unfinished
    selection: Selection | None = None  # the choice of the learning rate; None when it was given
    sweep: Mapping[str, str] = field(default_factory=dict)  # its "purpose", and what reports need

    @property
    def lr(self) -> float:
        """The base learning rate, given or chosen; NaN before the choice."""
        if self.config.lr is not None:
            return self.config.lr
        return math.nan if self.selection is None else self.selection.lr


def to_text(record: RunRecord[Any, Any, Any]) -> str:
    """The lines of a record."""
    lines: list[dict[str, Any]] = [
        {
            "kind": "run",
            "format": _FORMAT,
            "experiment": record.config.experiment,
            "config": record.config.to_dict(),
            "versions": dict(record.versions),
            "data": record.data,
            **({"sweep": dict(record.sweep)} if record.sweep else {}),
        }
    ]
    if record.selection is not None:
        lines.append(_line("selection", record.selection))
    lines += [_line("epoch", epoch) for epoch in record.epochs]
    if record.result is not None:
        lines.append(_line("result", record.result))
    return "".join(json.dumps(_without_nonfinite(line), allow_nan=False) + "\n" for line in lines)


def write(record: RunRecord[Any, Any, Any], path: Path) -> None:
    """Write a record in one atomic step."""
    write_text(path, to_text(record))


def read(path: Path, schema: Schema[C, E, R]) -> RunRecord[C, E, R]:
    """The record of a run in its own directory."""
    way_out = (
        f"delete {path.name} and go on with the run (--resume), which writes it again from the "
        "checkpoint beside it, or train it again with --overwrite"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read ({error}): {way_out}") from error
    return from_text(text, schema, str(path), way_out)


def from_text(text: str, schema: Schema[C, E, R], name: str, way_out: str) -> RunRecord[C, E, R]:
    """The record that `to_text` wrote; errors name ``name`` as the file."""
    try:
        return _record(text, schema)
    except _DamageError as error:
        raise RecordError(f"{name}, line {error.line} is damaged: {error}; {way_out}") from error


def experiment_of(text: str) -> str:
    """The experiment of a record, from its first line."""
    head = json.loads(text.partition("\n")[0])
    if not isinstance(head, dict):
        raise ValueError("it is not a JSON object")
    return str(head.get("experiment", _UNNAMED))


def same_runs(one: str | None, other: str | None) -> bool:
    """True if runs of two versions of manifoldnet differ by the rounding of processors at most."""
    return one == other or any({one, other} <= each for each in _SAME_RUNS)


def check_together(
    found: Mapping[str, RunRecord[C, E, R]] | Mapping[Path, RunRecord[C, E, R]],
    axes: Collection[str],
    config: C | None = None,
    *,
    way_out: str = "move one of them to another folder",
) -> None:
    """Raise unless records fit in one report: one protocol, one data set, and no run twice.

    They may differ in the fields ``free``, else agree with ``config``, by default the first's.
    """
    seen: dict[C, str] = {}
    first = next(iter(found.items()), None)
    for name, record in found.items():
        assert first is not None
        base = config or first[1].config
        own = {field: getattr(record.config, field) for field in axes}
        differences = [dataclasses.replace(base, **own).differences(record.config)]
        if record.data != first[1].data:
            differences.append(f"data {record.data} there, {first[1].data} here")
        elif record.config in seen:
            differences.append(f"the run of {seen[record.config]} again")
        if any(differences):
            others = Path(str(first[0])).name if config is None else "the runs of this command"
            raise RecordError(
                f"{name} does not belong with {others} ({', '.join(filter(None, differences))}): "
                f"{way_out}"
            )
        seen[record.config] = Path(str(name)).name


def runs_frame(records: Iterable[RunRecord[Any, Any, Any]]) -> pd.DataFrame:
    """A table of runs, one row for each.

    Columns: the fields of configuration, result and `RunRecord.sweep`; ``chosen_lr``, the rate of
    training; ``trained``, its epochs; ``diverged``, ``identity``, ``label``, ``data``;
    ``version_torch`` and so on.
    """
    rows = []
    for record in records:
        result = {} if record.result is None else dict(vars(record.result))
        result.pop("epochs", None)
        rows.append(
            record.config.to_dict()
            | {"chosen_lr": record.lr, "trained": len(record.epochs)}
            | {**result, "diverged": record.result is not None and record.result.diverged}
            | {"identity": record.config.identity(), "label": record.config.label}
            | {"data": record.data}
            | {f"version_{name}": version for name, version in record.versions.items()}
            | dict(record.sweep)
        )
    with importing("pandas", "a table of records"):
        import pandas as pd
    return pd.DataFrame(rows)


def epochs_frame(records: Iterable[RunRecord[Any, Any, Any]]) -> pd.DataFrame:
    """A table of epochs: the fields of each, and the run's ``identity``, ``label`` and ``seed``."""
    with importing("pandas", "a table of records"):
        import pandas as pd
    return pd.DataFrame(
        {
            "identity": record.config.identity(),
            "label": record.config.label,
            "seed": record.config.seed,
            **vars(epoch),
        }
        for record in records
        for epoch in record.epochs
    )


class _DamageError(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _record(text: str, schema: Schema[C, E, R]) -> RunRecord[C, E, R]:
    if not text.endswith("\n"):
        raise _DamageError(text.count("\n") + 1, "it is cut off")
    lines = [_parse(number, line) for number, line in enumerate(text.splitlines(), start=1)]
    record = _header(lines[0], schema)
    epochs: list[E] = []
    result: R | None = None
    selection: Selection | None = None
    for number, line in enumerate(lines[1:], start=2):
        line_kind = line.pop("kind", None)
        if result is not None:
            raise _DamageError(number, "it comes after the result, which is the last line")
        if line_kind == "epoch":
            epoch = _row(schema.epoch, line, number)
            if epoch.epoch != len(epochs) + 1:
                raise _DamageError(
                    number, f"it is epoch {epoch.epoch} where epoch {len(epochs) + 1} belongs"
                )
            epochs.append(epoch)
        elif line_kind == "result":
            result = _row(schema.result, line, number)
            if not epochs:
                raise _DamageError(number, "it is the result of a run without epochs")
            if result.epochs != len(epochs):
                raise _DamageError(
                    number, f"the result is of {result.epochs} epochs, there are {len(epochs)}"
                )
        elif line_kind == "selection" and number == 2:
            selection = _row(Selection, line, number)
        else:
            raise _DamageError(number, f"its kind is {line_kind!r}, not 'epoch' or 'result'")
    return dataclasses.replace(record, epochs=tuple(epochs), result=result, selection=selection)


def _header(line: dict[str, Any], schema: Schema[C, E, R]) -> RunRecord[C, E, R]:
    if line.get("kind") != "run":
        raise _DamageError(1, "a record begins with a line of kind 'run'")
    if line.get("format") not in (1, _FORMAT):
        what = f"its format is {line.get('format')!r}, this is format {_FORMAT}"
        raise _DamageError(1, what)
    experiment = line.get("experiment", _UNNAMED)
    if experiment != schema.config.experiment:
        what = f"it is of the experiment {experiment!r}, not {schema.config.experiment!r}"
        raise _DamageError(1, what)
    try:
        config = schema.config.from_dict(line["config"])
        sweep = {str(name): str(value) for name, value in line.get("sweep", {}).items()}
        return RunRecord(config, dict(line["versions"]), str(line["data"]), sweep=sweep)
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
        what = f"it does not describe a run ({type(error).__name__}: {error})"
        raise _DamageError(1, what) from error


# What JSON may hold for a field of each type; null is a float that is not finite.
_WANTED = {"int": int, "float": int | float | None, "str": str, "tuple": list}
_Row = TypeVar("_Row", bound=EpochRow | ResultRow | Selection)


def _row(cls: type[_Row], given: dict[str, Any], line: int) -> _Row:
    values = dict(given)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    wrong = (required - set(values)) | (set(values) - set(fields))
    if wrong:
        raise _DamageError(line, f"fields are missing or unknown: {', '.join(sorted(wrong))}")
    for name, value in given.items():
        annotation = str(fields[name].type)
        if isinstance(value, bool) or not isinstance(
            value, _WANTED[re.split(r"\W", annotation)[0]]
        ):
            raise _DamageError(line, f"{name} is {value!r}, not of type {annotation}")
        if isinstance(value, list):
            kind = next((t for t in (float, str) if t.__name__ in annotation), int)
            if not all(type(entry) is kind for entry in value):
                raise _DamageError(line, f"{name} is {value!r}, not of type {annotation}")
            values[name] = tuple(value)
        elif isinstance(value, (int, type(None))) and annotation.startswith("float"):
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
