"""What a training step costs with each stage: ``stage_cost.csv``, and ratios with intervals.

`manifoldnet.experiments.papers.scale_invariant.times` writes the file. Reads files, trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median

from manifoldnet.experiments.document import Block, Heading, Paragraph, Table
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.spreadsheet import csv_text, read_csv
from manifoldnet.experiments.statistics import paired

NAME = "stage_cost.csv"
COLUMNS = ("method", "m", "step", "seconds")
BASE = ("logistic", "")
_BLOCK = 10

Costs = Mapping[tuple[str, str], Mapping[int, float]]
"""Seconds by stage (method, m) and step."""


def to_csv(costs: Costs) -> str:
    """One row per step, under `COLUMNS`."""
    rows = [
        dict(zip(COLUMNS, (*stage, number, f"{s:.6f}"), strict=True))
        for stage, times in costs.items()
        for number, s in times.items()
    ]
    return csv_text(COLUMNS, rows)


def read(folder: Path) -> Costs | None:
    """The measurement in a folder; None where there is none.

    Raises:
        RecordError: when the file is damaged, or steps of some stage are missing.
    """
    path = folder / NAME
    if not path.exists():
        return None
    costs: dict[tuple[str, str], dict[int, float]] = {}

    def parse(row: dict[str, str]) -> None:
        seconds = float(row["seconds"])
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {row['seconds']}, not a positive number")
        costs.setdefault((row["method"], row["m"]), {})[int(row["step"])] = seconds

    read_csv(path, COLUMNS, parse, "delete it, or measure again")
    if BASE not in costs or len({frozenset(times) for times in costs.values()}) > 1:
        raise RecordError(
            f"{path} has no steps of logistic regression, or not as many of each stage: delete it, "
            "or measure again"
        )
    return costs


def milliseconds(costs: Costs | None, method: str, m: int | None) -> str:
    """The median step of a stage as text; ``–`` where it was not measured."""
    times = (costs or {}).get((method, "" if m is None else str(m)))
    return f"{1000 * median(times.values()):.1f}" if times else "–"


def blocks(costs: Costs) -> Iterator[Block]:
    """A section: median milliseconds, and the ratio to logistic regression."""
    yield Heading("What a training step costs")
    yield Paragraph(
        "Smaller MNIST network, minibatches of 100, one thread, stages in turn. The ratio is the "
        f"geometric mean over blocks of {_BLOCK} steps (neighbours are alike), with its 95 % "
        "interval."
    )
    rows = []
    for (method, m), times in costs.items():
        ratio = paired(_logarithms(times), _logarithms(costs[BASE]))
        rows.append(
            (
                method + (f", m = {m}" if m else ""),
                f"{1000 * median(times.values()):.1f}",
                f"{math.exp(ratio.mean):.3f}",
                f"{math.exp(ratio.low):.3f} to {math.exp(ratio.high):.3f}",
                str(ratio.n),
            )
        )
    header = ("stage", "ms/step (median)", "ratio to logistic", "95 % interval", "blocks")
    yield Table(header, tuple(rows))


def _logarithms(times: Mapping[int, float]) -> dict[int, float]:
    """Of the seconds, averaged over each block of steps; of each step where there are few."""
    size = _BLOCK if len(times) >= 2 * _BLOCK else 1
    blocks: dict[int, list[float]] = {}
    for number, seconds in times.items():
        blocks.setdefault((number - 1) // size, []).append(math.log(seconds))
    return {block: fmean(values) for block, values in blocks.items()}
