"""Tables of finished runs, and the measured cost of the updates, read from files.

The seconds in the records were measured while other runs were at work, which slows one update and
not the next. Those of ``times.csv`` were measured for the purpose, the updates taking turns
(`manifoldnet.experiments.papers.symmetry.times`), so their ratio within a turn is meaningful.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.symmetry.cells import DEPTHS, FIGURE3, PAPER_UPDATES, Cell
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES, SCHEDULES, Record
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.records import epochs_frame, runs_frame
from manifoldnet.experiments.report import csv_text, read_csv
from manifoldnet.experiments.statistics import Estimate, estimate

if TYPE_CHECKING:
    import pandas as pd

CELL = ("architecture", "depth", "update", "schedule")
COLUMNS = (*CELL, "seed", "lr", "epochs", "test_error", "diverged", "seconds")
FIGURE3_COLUMNS = ("architecture", "update", "seed", "epoch", "test_error")

TIMES = "times.csv"
BASE = "b-sgd"
TIMES_COLUMNS = ("architecture", "depth", "update", "pass", "seconds")
NETWORKS = tuple(product(ARCHITECTURES, DEPTHS))

Key = tuple[str, int, str, int]
"""Architecture, depth, update, pass."""

Costs = Mapping[tuple[str, int], Mapping[str, Mapping[int, float]]]
"""Seconds by network (architecture and depth), update and pass."""


def run_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: the columns of `records.runs_frame` and these.

    Runs are ordered so that the updates of one setting stand together. `pass_seconds` is the median
    time of a training pass, `loss_finite` whether the last training loss is.
    """
    ordered = sorted(records, key=order)
    table = runs_frame(ordered)
    table["pass_seconds"] = [median(e.train_seconds for e in run.epochs) for run in ordered]
    table["loss_finite"] = [math.isfinite(run.epochs[-1].train_loss) for run in ordered]
    return table


def order(record: Record) -> tuple[str, int, int, int, int]:
    """Sort key: network, schedule, update, seed."""
    config = record.config
    update, schedule = [*UPDATES].index(config.update), SCHEDULES.index(config.schedule)
    return config.architecture, config.depth, schedule, update, config.seed


def by_cell(table: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """The runs of each cell."""
    return {Cell(*key): runs for key, runs in table.groupby(list(CELL), sort=False)}


def test_error(runs: pd.DataFrame) -> Estimate:
    """Mean test error after the last epoch; as in the paper, of the runs that did not diverge."""
    return estimate(runs.test_error[~runs.diverged].tolist())


def to_csv(table: pd.DataFrame) -> str:
    """One row per run, under `COLUMNS`; `seconds` is the wall clock of its epochs."""
    shown = table.assign(
        lr=table.chosen_lr.map(repr),
        epochs=table.trained,
        test_error=table.test_error.map("{:.6g}".format),
        diverged=table.diverged.map({True: "true", False: "false"}),
        seconds=table.seconds.map("{:.2f}".format),
    )
    text: str = shown.to_csv(columns=COLUMNS, index=False, lineterminator="\n")
    return text


def figure3_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per epoch of each run of Figure 3 that did not diverge, with these columns.

    `architecture` and `update` are those of the run; the others come from `records.epochs_frame`.
    """
    names = {cell.name: cell for cell in FIGURE3}
    shown = [r for r in records if r.config.label in names and r.result and not r.result.diverged]
    table = epochs_frame(sorted(shown, key=order))
    if not shown:
        return table.reindex(columns=[*FIGURE3_COLUMNS, "label"])
    for column in ("architecture", "update"):
        table[column] = [getattr(names[label], column) for label in table.label]
    return table


def figure3_csv(table: pd.DataFrame) -> str:
    """The errors of `figure3_table` as measured, under `FIGURE3_COLUMNS`."""
    shown = table.reindex(columns=FIGURE3_COLUMNS)
    shown["test_error"] = shown.test_error.map("{:.6g}".format)
    text: str = shown.to_csv(index=False, lineterminator="\n")
    return text


def times_csv(seconds: Mapping[Key, float]) -> str:
    """The text of ``times.csv``: one row per pass, under `TIMES_COLUMNS`."""
    rows = [dict(zip(TIMES_COLUMNS, (*key, f"{s:.6f}"), strict=True)) for key, s in seconds.items()]
    return csv_text(TIMES_COLUMNS, rows)


def read_times(folder: Path) -> Costs | None:
    """The measurement in a folder; None where there is none."""
    path = folder / TIMES
    if not path.exists():
        return None
    way_out = "delete it, or measure again"
    seconds: dict[Key, float] = {}

    def parse(row: dict[str, str]) -> None:
        key = (row["architecture"], int(row["depth"]), row["update"], int(row["pass"]))
        if key[:2] not in NETWORKS:
            raise ValueError(f"the paper has no network {key[0]} with {key[1]} layers")
        if key[3] < 1:
            raise ValueError(f"pass is {key[3]}; they count from 1")
        if key in seconds:
            raise ValueError(f"it is the second of {_words(key)}")
        seconds[key] = float(row["seconds"])
        if not 0 < seconds[key] < math.inf:
            raise ValueError(f"seconds is {row['seconds']}, not a positive number")

    read_csv(path, TIMES_COLUMNS, parse, way_out)
    updates = dict.fromkeys((*(update for _, _, update, _ in seconds), *PAPER_UPDATES))
    passes = range(1, 1 + max([2, *(number for *_, number in seconds)]))
    for network, update, number in product(NETWORKS, updates, passes):
        if (*network, update, number) not in seconds:
            raise RecordError(f"{path} lacks {_words((*network, update, number))}: {way_out}")
    return {
        network: {u: {n: seconds[*network, u, n] for n in passes} for u in updates}
        for network in NETWORKS
    }


def _words(key: Key) -> str:
    return "{}, {} layers, {}, pass {}".format(*key)
