"""Folders of finished runs: one record each, named by the hash of its configuration.

    <folder>/records.jsonl.gz            packed records (`pack`), all in one file
    <folder>/records/<identity>.jsonl    records of runs since then, one file each
    <folder>/runs/<identity>/            of long runs: record and checkpoint after every epoch

A record appears in one atomic step when its run has ended: one that is missing is still to do.
Packed and loose records are read and extended alike.
"""

from __future__ import annotations

import errno
import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from manifoldnet.experiments import records
from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import held, write_bytes
from manifoldnet.experiments.records import C, E, R, RunRecord, Schema

PACK = "records.jsonl.gz"
_PACK_FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{16}\.jsonl")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.jsonl\..*\.tmp")


def path_of(folder: Path, config: Configuration) -> Path:
    """The file of a configuration's record, unless that is packed."""
    return _loose(folder, config.identity())


def run_directory(folder: Path, config: Configuration) -> Path:
    """The directory of a long run, with its checkpoint."""
    return folder / "runs" / config.identity()


def sweeps(folder: Path) -> list[Path]:
    """The folders of sweeps: this one, or those directly below it."""
    if not folder.is_dir() or (folder / "records").is_dir() or (folder / PACK).exists():
        return [folder]
    below = [*folder.glob("*/records"), *folder.glob(f"*/{PACK}")]
    return sorted({path.parent for path in below})


def read_all(
    folder: Path, schema: Schema[C, E, R], *, exact: bool = True
) -> dict[str, RunRecord[C, E, R]]:
    """All records of a folder, by name, in the order of their names. Changes nothing.

    Reports read with ``exact=False``, without a look at the names: those of an earlier version,
    whose configurations had fewer fields, differ.
    """
    texts, packed = _texts(folder)
    found = {}
    for name, text in texts.items():
        is_packed = name in packed.texts
        where = f"{folder / PACK}, {name}" if is_packed else str(_loose(folder, name))
        move = "move the file away" if is_packed else "move it away"
        record = records.from_text(
            text,
            schema,
            where,
            f"{move}, and the same command trains that run again, or choose another folder",
        )
        if exact and record.config.identity() != name:
            version = record.versions.get("manifoldnet", "unknown")
            raise RecordError(
                f"{where} does not hold the run of its name ({record.config.identity()}): it was "
                f"renamed, or is of another version of manifoldnet ({version}): choose another "
                "folder"
            )
        if record.result is None:
            raise RecordError(f"{where} is of a run that has not ended: {move}")
        if is_packed and not record.sweep:
            record = replace(record, sweep=packed.sweep)
        found[name] = record
    return found


def read_together(
    folder: Path,
    schema: Schema[C, E, R],
    free: Sequence[str],
    command: str,
    way_out: str = "move one of them to another folder",
) -> list[RunRecord[C, E, R]]:
    """The records of a folder that may differ in the fields `free`, for a report on all of them.

    Raises:
        RecordError: when there are none (`command` makes some), one is damaged or foreign, or two
            do not belong together.
    """
    found = read_all(folder, schema, exact=False)
    if not found:
        raise RecordError(
            f"{folder} holds no records: make some with manifoldnet reproduce {command} "
            f"--out {folder}"
        )
    paths = {_loose(folder, name): record for name, record in found.items()}
    records.check_together(paths, free, way_out=way_out)
    return list(found.values())


def experiment(folder: Path) -> str:
    """The experiment of the folder's first record; "" without any."""
    for name, text in _texts(folder)[0].items():
        try:
            return records.experiment_of(text)
        except ValueError as error:
            where = f"{_loose(folder, name)}, line 1"
            raise RecordError(f"{where} is damaged ({error}): move it away") from error
    return ""


def check(
    folder: Path,
    found: Mapping[str, RunRecord[C, E, R]],
    configs: Sequence[C],
    axes: Sequence[str],
    versions: Mapping[str, str],
    purpose: Mapping[str, str],
) -> None:
    """Refuse records that cannot be in one folder with those of ``configs``.

    ``axes`` are the fields in which they may differ.
    """
    paths = {folder / name: record for name, record in found.items()}
    for path, record in paths.items():
        version = record.versions.get("manifoldnet")
        if not records.same_runs(version, versions["manifoldnet"]):
            raise RecordError(
                f"{path} is of manifoldnet {version}, this is {versions['manifoldnet']}: choose "
                "another folder, or go on with that version"
            )
        if record.sweep and purpose and record.sweep != purpose:
            raise RecordError(
                f"{path} belongs to a sweep for another purpose ({' '.join(record.sweep.values())} "
                f"there, {' '.join(purpose.values())} here): choose another folder"
            )
    records.check_together(paths, axes, configs[0], way_out="choose another folder")


def keep(folder: Path, record: RunRecord[Any, Any, Any]) -> None:
    """Put the record of a finished run into the folder, in one atomic step."""
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


def clean(folder: Path) -> None:
    """Remove the half-written files of a killed process; only under `lock`."""
    for path in (folder / "records").glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from writing into it within the block."""
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "records"):
            pass  # raises without the permission to write
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be written ({error.strerror}): choose another folder"
        ) from error
    with held(folder, "folder"):
        yield


def pack(folder: Path, schema: Schema[C, E, R], sweep: Mapping[str, str] | None = None) -> Path:
    """Put all records of a folder into its packed file, and remove the loose ones.

    Lines are kept as they are, so the same records give the same bytes. A loose record is removed
    only when the packed file has been written and read back. ``sweep`` is the `RunRecord.sweep` of
    the packed records that do not name their own.
    """
    if not read_all(folder, schema, exact=False):
        raise RecordError(f"there are no records in {folder}: nothing to pack")
    path = folder / PACK
    with lock(folder):
        clean(folder)
        read_all(folder, schema, exact=False)  # again: another process may have added some
        texts, before = _texts(folder)
        packed = _Packed(texts, dict(sweep or before.sweep))
        try:
            write_bytes(path, packed.content(), durable=True)
        except OSError as error:
            raise RecordError(
                f"{path} cannot be written ({error.strerror}): the records are left as they are"
            ) from error
        if _Packed.read(path) != packed:
            raise RecordError(f"{path} does not hold what was written: check that disk")
        for name in texts:
            _loose(folder, name).unlink(missing_ok=True)
        (folder / "records").rmdir()
    return path


@dataclass(frozen=True)
class _Packed:
    """The content of a packed file: a line with names and sweep, then all records one by one."""

    texts: dict[str, str] = field(default_factory=dict)  # by name, in the order of names
    sweep: dict[str, str] = field(default_factory=dict)  # of records that do not name their own

    def content(self) -> bytes:
        head = {"kind": "pack", "format": _PACK_FORMAT, "sweep": self.sweep}
        text = json.dumps(head | {"names": list(self.texts)}) + "\n" + "".join(self.texts.values())
        return gzip.compress(text.encode(), mtime=0)

    @classmethod
    def read(cls, path: Path) -> _Packed:
        """Raise RecordError when the file is damaged."""
        if not path.exists():
            return cls()
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
            head = json.loads(lines[0])
            starts = [n for n, line in enumerate(lines) if line.startswith('{"kind": "run"')]
            if head["kind"] != "pack" or head["format"] != _PACK_FORMAT:
                raise ValueError(f"it is a {head['kind']} of format {head['format']}")
            texts = ["".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)])]
            return cls(dict(zip(head["names"], texts, strict=True)), dict(head["sweep"]))
        except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
            raise RecordError(
                f"{path} is damaged ({error}): put an intact copy there, or move it away"
            ) from error


def _texts(folder: Path) -> tuple[dict[str, str], _Packed]:
    """All records of a folder as text, in the order of their names; and the packed ones."""
    place = folder / "records"
    for path in (folder, place):
        if path.exists() and not path.is_dir():
            raise RecordError(f"{path} is a file; records need a folder: choose another one")
    packed = _Packed.read(folder / PACK)
    texts = dict(packed.texts)
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        if _TEMPORARY.fullmatch(path.name):
            continue  # of a killed process; `clean` removes it
        if not _NAME.fullmatch(path.name):
            raise RecordError(
                f"{path} is none of the records of a sweep: move it away, or choose another folder"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path} cannot be read ({error}): move it away") from error
        if texts.setdefault(path.stem, text) != text:
            raise RecordError(
                f"{path} and the record of that name in {folder / PACK} differ: move one away"
            )
    return dict(sorted(texts.items())), packed


def _loose(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.jsonl"
