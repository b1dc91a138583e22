"""Finished runs by cell, and what is asked of them. Reads records, trains nothing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from manifoldnet.experiments.records import Record
from manifoldnet.experiments.statistics import Estimate, estimate
from manifoldnet.experiments.symmetry_paper.cells import GEODESIC, TABLE2, Cell

COLUMNS = (
    *("architecture", "depth", "update", "schedule", "seed", "lr", "epochs"),
    *("test_error", "diverged", "seconds"),
)


@dataclass(frozen=True)
class CellRuns:
    """The runs of one cell, in the order of their seeds.

    Attributes:
        cell: which.
        runs: all of them, the diverged ones too.
    """

    cell: Cell
    runs: tuple[Record, ...]

    @property
    def finished(self) -> tuple[Record, ...]:
        """Those that did not diverge: as in the paper, means are over these."""
        return tuple(run for run in self.runs if run.result and not run.result.diverged)

    @property
    def diverged(self) -> int:
        """How many are set aside."""
        return len(self.runs) - len(self.finished)

    @property
    def test_errors(self) -> dict[int, float]:
        """Final test error of the finished runs, by seed."""
        return {run.config.seed: run.epochs[-1].test_error for run in self.finished}

    @property
    def test_error(self) -> Estimate:
        """Mean of the final test errors."""
        return estimate(list(self.test_errors.values()))

    @property
    def epochs(self) -> float:
        """Mean number of epochs of the finished runs; NaN without any."""
        return fmean(len(run.epochs) for run in self.finished) if self.finished else float("nan")

    @property
    def pass_seconds(self) -> dict[int, float]:
        """Median seconds of a training pass of each run, by seed."""
        return {
            run.config.seed: sorted(e.train_seconds for e in run.epochs)[len(run.epochs) // 2]
            for run in self.runs
        }

    @property
    def rates(self) -> Counter[float]:
        """How many runs chose which base learning rate."""
        return Counter(run.lr for run in self.runs)

    @property
    def rules(self) -> Counter[str]:
        """How many finished runs were ended by which rule; "" for those that had all epochs."""
        return Counter(run.result.stopped for run in self.finished if run.result)


Table = Mapping[Cell, CellRuns]


def by_cell(records: Iterable[Record]) -> dict[Cell, CellRuns]:
    """Groups records; cells in the order of the table, runs by seed."""
    groups: dict[Cell, list[Record]] = {}
    for record in records:
        groups.setdefault(Cell.of(record.config), []).append(record)
    order = [*TABLE2, *GEODESIC]
    known = [cell for cell in order if cell in groups]
    others = [cell for cell in groups if cell not in order]
    return {
        cell: CellRuns(cell, tuple(sorted(groups[cell], key=lambda run: run.config.seed)))
        for cell in (*known, *others)
    }


def to_csv(table: Table) -> str:
    """One row per run, under `COLUMNS`; `seconds` is the wall clock of its epochs."""
    rows = [
        {
            "architecture": cell.architecture,
            "depth": cell.depth,
            "update": cell.update,
            "schedule": cell.schedule,
            "seed": run.config.seed,
            "lr": repr(run.lr),
            "epochs": len(run.epochs),
            "test_error": f"{run.epochs[-1].test_error:.6g}",
            "diverged": str(bool(run.result and run.result.diverged)).lower(),
            "seconds": f"{run.result.seconds:.2f}" if run.result else "",
        }
        for cell, runs in table.items()
        for run in runs.runs
    ]
    return csv_text(COLUMNS, rows)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as the text of a CSV file."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def pairs(
    table: Table, one: str, other: str, where: Callable[[Cell], bool] = lambda cell: True
) -> list[tuple[CellRuns, CellRuns]]:
    """Cells that differ in nothing but these two updates, where both have runs."""
    found = []
    for cell, runs in table.items():
        partner = Cell(cell.architecture, cell.depth, other, cell.schedule)
        if cell.update == one and where(cell) and partner in table:
            found.append((runs, table[partner]))
    return found
