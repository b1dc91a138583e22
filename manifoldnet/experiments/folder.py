"""A folder of finished runs: one record each, named by the hash of its configuration.

    <folder>/records/<identity>.jsonl
    <folder>/runs/<identity>/            of long runs: record and checkpoint after every epoch
    <folder>/lock

A record appears in one atomic step when its run has ended, so whatever is in the folder is whole,
and what is missing is still to do. There is nothing else in `records`: what does not belong there
is an error, and is left as it is.
"""

from __future__ import annotations

import dataclasses
import errno
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifoldnet.experiments import records
from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import this_process
from manifoldnet.experiments.records import C, E, Kind, R, RunRecord

_NAME = re.compile(r"[0-9a-f]{16}\.jsonl")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.jsonl\..*\.tmp")


def path_of(folder: Path, config: Configuration) -> Path:
    """Where the record of a configuration is, or will be."""
    return folder / "records" / f"{config.identity()}.jsonl"


def read_all(
    folder: Path, kind: Kind[C, E, R], *, exact: bool = True
) -> dict[str, RunRecord[C, E, R]]:
    """All records of a folder, by name, in the order of their names. Changes nothing.

    Args:
        folder: with the records.
        kind: what they should hold.
        exact: whether each must have the name that this version gives it. Reports do without, and
            so can read what an earlier version left, whose configurations had fewer fields.

    Raises:
        RecordError: for a file that is no record of a finished run, or not the one that its name
            promises.
    """
    if folder.exists() and not folder.is_dir():
        raise RecordError(f"{folder} is a file; records need a folder: choose another one")
    place = folder / "records"
    if place.exists() and not place.is_dir():
        raise RecordError(f"{place} is a file; records need a folder: choose another one")
    found: dict[str, RunRecord[C, E, R]] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        if _TEMPORARY.fullmatch(path.name):
            continue  # a killed process left it; `clean` takes it away
        if not _NAME.fullmatch(path.name):
            raise RecordError(
                f"{path} is none of the records of a sweep: move it away, or choose another folder"
            )
        found[path.stem] = _read(path, kind, exact)
    return found


def _read(path: Path, kind: Kind[C, E, R], exact: bool) -> RunRecord[C, E, R]:
    record = records.read(
        path,
        kind,
        "move it away, and the same command trains that run again, or choose another folder",
    )
    if exact and record.config.identity() != path.stem:
        version = record.versions.get("manifoldnet", "unknown")
        raise RecordError(
            f"{path} does not hold the run that its name promises ({record.config.identity()}): it "
            f"was renamed, or is of another version of manifoldnet ({version}): choose another "
            "folder"
        )
    if record.result is None:
        raise RecordError(f"{path} is of a run that has not ended: move it away")
    return record


def check(
    folder: Path,
    found: Mapping[str, RunRecord[C, E, R]],
    configs: Sequence[C],
    axes: Sequence[str],
    versions: dict[str, str],
) -> None:
    """Refuses records that cannot stand beside those of ``configs`` in one report.

    Args:
        folder: for messages.
        found: what `read_all` gave.
        configs: what is to be in the folder.
        axes: the fields in which runs of the folder may differ.
        versions: of this process.

    Raises:
        RecordError: when a record differs in another field, or is of another version.
    """
    wanted = configs[0]
    cell = {name: getattr(wanted, name) for name in axes}
    for identity, record in found.items():
        path = folder / "records" / f"{identity}.jsonl"
        version = record.versions.get("manifoldnet")
        if version != versions["manifoldnet"]:
            raise RecordError(
                f"{path} is of manifoldnet {version}, this is {versions['manifoldnet']}: choose "
                "another folder, or go on with that version"
            )
        moved = dataclasses.replace(record.config, **cell)
        if moved != wanted:
            raise RecordError(
                f"{path} belongs to another sweep ({wanted.differences(moved)}): choose another "
                "folder"
            )


def run_directory(folder: Path, config: Configuration) -> Path:
    """Where a long run keeps what it needs to go on."""
    return folder / "runs" / config.identity()


def experiment(folder: Path) -> str:
    """The experiment that the records of a folder are of, by the first of them; "" without any.

    Raises:
        RecordError: when that one does not say.
    """
    place = folder / "records"
    paths = [p for p in sorted(place.glob("*.jsonl")) if _NAME.fullmatch(p.name)]
    return records.experiment(paths[0]) if paths else ""


def clean(folder: Path) -> None:
    """Removes what a killed process left half-written; only under `lock`."""
    for path in (folder / "records").iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from writing into it within the block.

    The lock is the operating system's and goes with the process, however that ends.

    Raises:
        RecordError: when another process has it, or the folder cannot be written.
    """
    try:
        import fcntl  # not on Windows, where the rest of this module works
    except ImportError as error:
        raise RecordError("sweeps need the file locks of a Unix system") from error
    path = folder / "lock"
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "records"):
            pass  # is there a right to write?
        stream = path.open("a")
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be written ({error.strerror}): choose another folder"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(
                f"another process is at work in {folder} ({path.read_text()}): wait for it, stop "
                "it, or choose another folder"
            ) from error
        except OSError as error:
            raise RecordError(
                f"{path} cannot be locked ({error.strerror}): choose a folder on another disk"
            ) from error
        stream.truncate(0)
        stream.write(this_process())
        stream.flush()
        yield


def keep(folder: Path, record: RunRecord[Any, Any, Any]) -> None:
    """Puts the record of a finished run into the folder, in one atomic step.

    Raises:
        RecordError: when it cannot be written; what is there stays as it is.
    """
    path = path_of(folder, record.config)
    try:
        records.write(record, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room" if full else "mend that"
        raise RecordError(
            f"{path} cannot be written ({error.strerror or error}): the records of finished runs "
            f"are kept; {way_out} and repeat the command, which does what is missing"
        ) from error
