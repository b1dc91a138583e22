"""Measures the batch solvers and draws what came out.

    python -m manifoldnet.experiments.batch.measure --out docs/results --data-dir data

writes ``batch_solvers.csv`` and ``.png`` (a contest on MNIST), ``batch_rescaled.csv`` and ``.png``
(trust regions from rescaled weights) and ``batch_overhead.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from manifoldnet.experiments.batch import contest, overhead, report, rescaling
from manifoldnet.experiments.data import load
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_bytes, write_text
from manifoldnet.experiments.progress import StatusLine
from manifoldnet.experiments.report import csv_text
from manifoldnet.experiments.training import limited_threads


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all three and writes the files.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit code: 2 if something in the request is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m manifoldnet.experiments.batch.measure",
        description="Measure batch solvers on MNIST and on the digits.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--seconds", type=float, default=20, metavar="S", help="for each solver (%(default)s)")
    add("--rounds", type=int, default=100, metavar="N", help="of timed calls (%(default)s)")
    add("--dataset", default="mnist", metavar="NAME", help="of the contest (%(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="the folder of data sets")
    add("--quiet", action="store_true", help="no progress line")
    arguments = parser.parse_args(argv)
    if not arguments.seconds > 0 or arguments.rounds < 1:
        parser.error("--seconds and --rounds must be positive")
    out = arguments.out
    try:
        with StatusLine(enabled=not arguments.quiet) as status, limited_threads(1):
            data = load(arguments.dataset, arguments.data_dir)
            calls = overhead.overhead(data, arguments.rounds, on_progress=status)
            courses = rescaling.rescaled(load("digits"), on_progress=status)
            runs = contest.contest(data, arguments.seconds, on_progress=status)
        write_text(out / "batch_solvers.csv", report.contest_csv(runs))
        write_bytes(out / "batch_solvers.png", report.draw_contest(runs))
        write_text(out / "batch_rescaled.csv", report.rescaling_csv(courses))
        write_bytes(out / "batch_rescaled.png", report.draw_rescaling(courses))
        rows = [{"call": name, "seconds": f"{value:.6f}"} for name, value in calls.items()]
        write_text(out / "batch_overhead.csv", csv_text(("call", "seconds"), rows))
    except (ExperimentError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(f"{report.summary(runs, courses, calls)}\n{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
