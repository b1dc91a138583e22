"""The directory of a run: its record for reports, and the checkpoint from which it goes on.

The checkpoint, with weights and epochs, is written first: after a kill the record is at most one
epoch behind, and is completed from it. Damaged files, and those that do not fit together, are an
error before anything is changed.
"""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch

from manifoldnet.experiments import records
from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.records import C, E, EpochRow, R, RunRecord, Schema, Selection

_FORMAT = 2
AGAIN = "train the run again with --overwrite, or delete its directory"


@dataclass(frozen=True)
class Checkpoint(Generic[C, E]):
    """The state from which a run goes on bit for bit."""

    config: C
    versions: Mapping[str, str]  # as in the record
    data: str  # checksum of the data set
    epochs: tuple[E, ...]
    states: Mapping[str, Any]  # of the parts `Run.stateful`
    selection: Selection | None = None  # None when the rate was given, or is yet to be chosen

    def record(self) -> RunRecord[C, E, Any]:
        """The record of the run up to here, without a result."""
        return RunRecord(
            self.config, self.versions, self.data, self.epochs, selection=self.selection
        )


def record_path(directory: Path) -> Path:
    """The record of the run in ``directory``."""
    return directory / "record.jsonl"


def checkpoint_path(directory: Path) -> Path:
    """The checkpoint of the run in ``directory``."""
    return directory / "checkpoint.pt"


def save(checkpoint: Checkpoint[Any, Any], directory: Path) -> None:
    """Write checkpoint and record of an unfinished run, each in one atomic step."""
    content = {
        "format": _FORMAT,
        "config": checkpoint.config.to_dict(),
        "versions": dict(checkpoint.versions),
        "data": checkpoint.data,
        "epochs": [dict(vars(epoch)) for epoch in checkpoint.epochs],
        "states": dict(checkpoint.states),
        "selection": None if checkpoint.selection is None else dict(vars(checkpoint.selection)),
    }
    buffer = io.BytesIO()  # a full disk is not told apart from other faults within torch.save
    torch.save(content, buffer)
    write_bytes(checkpoint_path(directory), buffer.getvalue())
    records.write(checkpoint.record(), record_path(directory))


def tidy(directory: Path, clear: bool = False) -> None:
    """Remove the partial files that a killed process left; with `clear`, the run's own as well."""
    for path in (checkpoint_path(directory), record_path(directory)):
        for leftover in directory.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        if clear:
            path.unlink(missing_ok=True)


def inspect(
    directory: Path, config: C, schema: Schema[C, E, R], *, resume: bool, overwrite: bool
) -> RunRecord[C, E, R] | Checkpoint[C, E] | None:
    """The state of the run of ``config`` in ``directory``; changes nothing.

    The record of a run that has ended, the checkpoint of one to go on with, or None to begin.
    """
    if directory.exists() and not directory.is_dir():
        raise RecordError(f"{directory} is a file; a run needs a directory: choose another --out")
    has_record = record_path(directory).exists()
    has_checkpoint = checkpoint_path(directory).exists()
    if overwrite or not (has_record or has_checkpoint):
        return None
    if not resume:
        raise RecordError(
            f"{directory} already holds a run: go on with it by --resume, train it again by "
            "--overwrite, or choose another --out"
        )
    record = records.read(record_path(directory), schema) if has_record else None
    if record is not None:
        _check_config(record.config, config, directory)
        if record.result is not None:
            return record
    if not has_checkpoint:
        if record is not None and record.epochs:
            raise RecordError(
                f"{checkpoint_path(directory)} is missing, without which this run of "
                f"{len(record.epochs)} epochs cannot go on: put it back, or {AGAIN}"
            )
        return None
    checkpoint = load_checkpoint(checkpoint_path(directory), schema)
    _check_config(checkpoint.config, config, directory)
    there = () if record is None else record.epochs
    if _as_text(there) != _as_text(checkpoint.epochs[: len(there)]):
        raise RecordError(
            f"{record_path(directory)} and {checkpoint_path(directory)} have different "
            "epochs: delete the record, which is written again from the checkpoint when the run "
            f"goes on, or {AGAIN}"
        )
    return checkpoint


def load_checkpoint(path: Path, schema: Schema[C, E, R]) -> Checkpoint[C, E]:
    """Read a checkpoint; its tensors are on the CPU."""
    way_out = f"put an intact copy there, or {AGAIN}"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums it has written
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
    except Exception as error:  # torch, pickle, zip, a missing key: they all mean the same here
        raise RecordError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}): {way_out}"
        ) from error
    if version not in (1, _FORMAT):
        raise RecordError(f"{path} has format {version!r}, this is format {_FORMAT}: {way_out}")
    try:
        selection = content.get("selection")  # absent in format 1
        return Checkpoint(
            config=schema.config.from_dict(content["config"]),
            versions=content["versions"],
            data=content["data"],
            epochs=tuple(schema.epoch(**epoch) for epoch in content["epochs"]),
            states=content["states"],
            selection=None if selection is None else Selection(**selection),
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path} does not describe a run ({type(error).__name__}: {error}): {way_out}"
        ) from error


def _check_config(found: Configuration, wanted: Configuration, directory: Path) -> None:
    if found != wanted:
        raise RecordError(
            f"{directory} belongs to another configuration ({wanted.differences(found)}): choose "
            "another --out, or repeat that configuration to go on with it"
        )


def _as_text(epochs: Sequence[EpochRow]) -> str:
    # Equality that also holds where a number is NaN, or infinite, which a record reads as NaN.
    return repr(
        [
            [math.nan if isinstance(v, float) and not math.isfinite(v) else v for v in values]
            for values in map(dataclasses.astuple, epochs)
        ]
    )
