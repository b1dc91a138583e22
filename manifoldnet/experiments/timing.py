"""Timing by turns, and the command line of a measurement.

The callables that are compared take turns, so that a slow second of the machine slows all of them;
what counts is their ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch.utils.benchmark.utils.timer import timer

from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.progress import StatusLine

Measure = Callable[[int, Path | None, StatusLine], str]
"""Of the number of turns, the data folder and the progress line; returns the text of the file."""

_Name = TypeVar("_Name")


def interleaved(
    works: Mapping[_Name, Callable[[int], object]],
    rounds: int,
    before_round: Callable[[int], object] = lambda number: None,
) -> dict[_Name, list[float]]:
    """Seconds of every call of some callables that take turns; each is given the round's number.

    Another one comes first in each round, because the first finds the caches of the last one. The
    clock is that of `torch.utils.benchmark`, which waits for a GPU.
    """
    seconds: dict[_Name, list[float]] = {name: [] for name in works}
    order = list(works.items())
    for number in range(rounds):
        before_round(number)
        first = number % len(order)
        for name, work in order[first:] + order[:first]:
            began = timer()
            work(number)
            seconds[name].append(timer() - began)
    return seconds


def run(
    argv: Sequence[str] | None,
    measure: Measure,
    *,
    module: str,
    description: str,
    name: str,
    units: str,
    turns: int,
) -> int:
    """Measure and write the file ``name``; returns the exit code.

    ``units`` names a turn, in the plural: ``"steps"`` makes the option ``--steps``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder that is reported on")
    of_each = "of each (%(default)s)"
    add(f"--{units}", dest="turns", type=int, default=turns, metavar="N", help=of_each)
    add("--data-dir", type=Path, metavar="DIR", help="the folder of data sets")
    add("--quiet", action="store_true", help="no progress line")
    arguments = parser.parse_args(argv)
    if arguments.turns < 2:
        parser.error(f"--{units} is {arguments.turns}; an interval needs two")
    path = arguments.out / name
    try:
        with StatusLine(enabled=not arguments.quiet) as status:
            text = measure(arguments.turns, arguments.data_dir, status)
        write_text(path, text)
    except (ExperimentError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0
