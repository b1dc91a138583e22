"""What a training pass costs with each update: ``times.csv``, and ratios with intervals.

The seconds in the records were measured while other runs were at work, which slows one update and
not the next. Those of this file were measured for the purpose, the updates taking turns
(`manifoldnet.experiments.papers.symmetry.times` writes it), so that their ratio within a turn means
something. Reads files, trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.symmetry.cells import DEPTHS, PAPER_UPDATES
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES
from manifoldnet.experiments.spreadsheet import csv_text, read_csv
from manifoldnet.experiments.statistics import Estimate, paired

NAME = "times.csv"
BASE = "b-sgd"
COLUMNS = ("architecture", "depth", "update", "pass", "seconds")
NETWORKS = tuple(product(ARCHITECTURES, DEPTHS))

Key = tuple[str, int, str, int]
"""Architecture, depth, update, pass."""

Costs = Mapping[tuple[str, int], Mapping[str, Mapping[int, float]]]
"""Seconds by network (architecture and depth), update and pass."""


def to_csv(seconds: Mapping[Key, float]) -> str:
    """One row per pass, under `COLUMNS`."""
    rows = [dict(zip(COLUMNS, (*key, f"{s:.6f}"), strict=True)) for key, s in seconds.items()]
    return csv_text(COLUMNS, rows)


def read(folder: Path) -> Costs | None:
    """The measurement in a folder; None where there is none.

    Raises:
        RecordError: when the file is damaged, or not the whole measurement.
    """
    path = folder / NAME
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

    read_csv(path, COLUMNS, parse, way_out)
    updates = dict.fromkeys((*(update for _, _, update, _ in seconds), *PAPER_UPDATES))
    passes = range(1, 1 + max([2, *(number for *_, number in seconds)]))
    for network, update, number in product(NETWORKS, updates, passes):
        if (*network, update, number) not in seconds:
            raise RecordError(f"{path} lacks {_words((*network, update, number))}: {way_out}")
    return {
        network: {u: {n: seconds[*network, u, n] for n in passes} for u in updates}
        for network in NETWORKS
    }


def log_ratio(updates: Mapping[str, Mapping[int, float]], update: str) -> Estimate:
    """The logarithm of how many times B-SGD's seconds an update takes, paired over passes."""
    one, base = (
        {number: math.log(seconds) for number, seconds in updates[name].items()}
        for name in (update, BASE)
    )
    return paired(one, base)


def _words(key: Key) -> str:
    architecture, depth, update, number = key
    return f"{architecture}, {depth} layers, {update}, pass {number}"
