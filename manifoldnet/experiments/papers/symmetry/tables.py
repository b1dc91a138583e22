"""Finished runs as tables: a summary for people, rows for a spreadsheet.

Reads records, trains nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

from manifoldnet.experiments.document import Table, to_markdown
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.papers.symmetry.rows import Record
from manifoldnet.experiments.spreadsheet import csv_text, read_csv

COLUMNS = (
    "architecture",
    "depth",
    "update",
    "schedule",
    "lr",
    "seed",
    "epochs",
    "test_error",
    "seconds",
)
# Two rows that agree in these are of the same run.
_KEY = COLUMNS[:7]

T = TypeVar("T")


def by_update(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Groups records by update, in the order in which the updates first come."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.config.update, []).append(record)
    return groups


def summary(records: Sequence[Record]) -> str:
    """A Markdown table with one line per update.

    Means and standard deviations (of a sample, n − 1) are over the runs that finished; as in the
    paper, those that diverged are left out and counted. Errors are rates after the last epoch, not
    the best one along the way.
    """
    rows = [("update", "test error", "validation error", "n", "diverged", "s/epoch")]
    for update, runs in by_update(records).items():
        results = [run.result for run in runs if run.result is not None]
        finished = [result for result in results if not result.diverged]
        seconds = [epoch.train_seconds for run in runs for epoch in run.epochs]
        rows.append(
            (
                update,
                _mean_and_deviation([result.test_error for result in finished]),
                _mean_and_deviation([result.validation_error for result in finished]),
                str(len(finished)),
                str(len(results) - len(finished)),
                f"{fmean(seconds):.3f}" if seconds else "–",
            )
        )
    return to_markdown([Table(rows[0], tuple(rows[1:]))])


def rows(records: Iterable[Record]) -> list[dict[str, str]]:
    """One row per ended run, under `COLUMNS`; ``seconds`` is the wall clock of the whole run."""
    return [
        {
            "architecture": record.config.architecture,
            "depth": str(record.config.depth),
            "update": record.config.update,
            "schedule": record.config.schedule,
            "lr": repr(record.lr),
            "seed": str(record.config.seed),
            "epochs": str(record.config.epochs),
            "test_error": f"{record.result.test_error:.6g}",
            "seconds": f"{record.result.seconds:.2f}",
        }
        for record in records
        if record.result is not None
    ]


def write_csv(records: Iterable[Record], path: Path) -> None:
    """Writes the rows of ``records`` as a CSV file, in one atomic step."""
    write_text(path, csv_text(COLUMNS, rows(records)))


def merge_csv(records: Iterable[Record], path: Path) -> None:
    """Puts the rows of ``records`` into an existing CSV file (or a new one), in one atomic step.

    A row that agrees with a new one in all columns but the test error and the seconds is replaced
    where it stands; others are kept; new ones follow. The columns do not name the data set, the
    momentum or the sizes: keep one file for each.

    Raises:
        RecordError: when the file is not such a table.
    """
    table = _by_key(path) if path.exists() else {}
    table.update({_key(row): row for row in rows(records)})
    write_text(path, csv_text(COLUMNS, table.values()))


def check_csv(path: Path) -> None:
    """Raises what `merge_csv` would raise, before there is anything to merge."""
    if path.exists():
        _by_key(path)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RecordError(f"{path} cannot be written ({nearest} is no folder to write in)")


def _by_key(path: Path) -> dict[tuple[str | float, ...], dict[str, str]]:
    way_out = "correct it, or give --csv another file"
    return dict(read_csv(path, COLUMNS, lambda row: (_key(row), row), way_out))


def _key(row: Mapping[str, str]) -> tuple[str | float, ...]:
    """What tells runs apart; numbers as numbers, so that 0.01 and 1e-2 are the same rate."""
    return tuple(
        float(row[name]) if name in ("depth", "lr", "seed", "epochs") else row[name]
        for name in _KEY
    )


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
