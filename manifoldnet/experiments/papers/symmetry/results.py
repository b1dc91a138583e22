"""Finished runs by cell, and what is asked of them. Reads records, trains nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.symmetry.cells import AXES, Cell
from manifoldnet.experiments.papers.symmetry.config import SCHEDULES, TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import Record
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.spreadsheet import csv_text
from manifoldnet.experiments.statistics import Estimate, estimate

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
    def seeds(self) -> set[int]:
        """Of all runs."""
        return {run.config.seed for run in self.runs}

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
        return fmean(len(run.epochs) for run in self.finished) if self.finished else math.nan

    @property
    def pass_seconds(self) -> list[float]:
        """Median seconds of a training pass of each run."""
        return [median(epoch.train_seconds for epoch in run.epochs) for run in self.runs]

    @property
    def rates(self) -> Counter[float]:
        """How many runs chose which base learning rate."""
        return Counter(run.lr for run in self.runs)

    @property
    def rules(self) -> Counter[str]:
        """How many finished runs were ended by which rule; "" for those that had all epochs."""
        return Counter(run.result.stopped for run in self.finished if run.result)

    @property
    def reasons(self) -> Counter[str]:
        """How many runs diverged, and in which way: those of `stopping.verdict`."""
        return Counter(
            "validation error too high"
            if math.isfinite(run.epochs[-1].train_loss)
            else "loss not finite"
            for run in self.runs
            if run.result and run.result.diverged
        )


Table = Mapping[Cell, CellRuns]


def protocol(found: Mapping[Path, Record]) -> TrainConfig:
    """The configuration that all runs share, but for `AXES`.

    Args:
        found: at least one record, by its file.

    Raises:
        RecordError: when two differ in another field or in their data, or are of the same run.
    """
    first_path, first = next(iter(found.items()))
    seen: dict[tuple[Cell, int], Path] = {}
    shared = _shared(first.config)
    for path, record in found.items():
        here = _shared(record.config)
        odd = [f"{k} {v} there, {shared[k]} here" for k, v in here.items() if v != shared[k]]
        if record.data != first.data:
            odd.append(f"data {record.data} there, {first.data} here")
        if odd:
            raise RecordError(
                f"{path} cannot stand in one report with {first_path.name} ({', '.join(odd)}): "
                "move the runs of the other protocol away"
            )
        run = (Cell.of(record.config), record.config.seed)
        if run in seen:
            raise RecordError(
                f"{path} is of the same run as {seen[run].name} ({run[0].name}, seed {run[1]}): "
                "move one of them away"
            )
        seen[run] = path
    return first.config


def _shared(config: TrainConfig) -> dict[str, object]:
    return {name: value for name, value in config.to_dict().items() if name not in AXES}


def by_cell(records: Iterable[Record]) -> dict[Cell, CellRuns]:
    """Groups records: runs by seed, cells so that the updates of one setting stand together."""
    groups: dict[Cell, list[Record]] = {}
    for record in records:
        groups.setdefault(Cell.of(record.config), []).append(record)
    return {
        cell: CellRuns(cell, tuple(sorted(groups[cell], key=lambda run: run.config.seed)))
        for cell in sorted(groups, key=_order)
    }


def _order(cell: Cell) -> tuple[str, int, int, int]:
    update = list(UPDATES).index(cell.update)
    return cell.architecture, cell.depth, SCHEDULES.index(cell.schedule), update


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
