"""The command line of a measurement: times something by turns, and writes one file.

`python -m <module> --out DIR` and how many units to time, `--data-dir` and `--quiet`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.status import StatusLine

Measure = Callable[[int, Path | None, StatusLine], str]
"""Is told how many turns, where data are, and whom to tell of progress; gives the file's text."""


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
    """Measures and writes the file.

    Args:
        argv: the arguments, without the program's name; by default those of the process.
        measure: does it.
        module: that is run.
        description: for ``--help``.
        name: of the file.
        units: what turns are: ``"steps"`` makes the option ``--steps``.
        turns: how many by default.

    Returns:
        The exit code: 2 if something in the request is wrong.
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
