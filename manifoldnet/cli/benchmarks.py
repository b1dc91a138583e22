"""`manifoldnet bench`: what a step costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_benchmarks(commands: Any) -> None:
    """Adds the command."""
    summary = "time steps of manifoldnet, torch, geoopt and parametrizations"
    command = commands.add_parser(
        "bench",
        help=summary,
        description=summary.capitalize()
        + ". They take turns; what counts is the ratio to torch's fused step.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_bench)
    add = command.add_argument
    add(
        "--out", type=Path, default=Path("runs") / "benchmarks", metavar="DIR", help="(%(default)s)"
    )
    add(
        "--shapes",
        nargs="+",
        metavar="NAME",
        default=["mlp", "resnet50"],
        help="of mlp, resnet50, gpt2, matrix, growth (mlp resnet50)",
    )
    add("--threads", nargs="+", type=int, metavar="N", default=[2], help="of torch (2)")
    add("--seconds", type=float, default=5.0, metavar="S", help="of each comparison (%(default)s)")
    add("--quiet", action="store_true", help="no progress line")


def _bench(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.benchmarks import measure, report
    from manifoldnet.experiments.benchmarks.shapes import SHAPES
    from manifoldnet.experiments.benchmarks.work import cells
    from manifoldnet.experiments.errors import ConfigError
    from manifoldnet.experiments.files import write_text
    from manifoldnet.experiments.progress import StatusLine
    from manifoldnet.experiments.report import publish

    for name in arguments.shapes:
        if name not in (*SHAPES, "growth"):
            raise ConfigError(f"there are no shapes {name!r}, only {', '.join(SHAPES)}, growth")
    if any(count < 1 for count in arguments.threads):
        raise ConfigError(f"--threads is {arguments.threads}; each must be 1 or more")
    if not 0 <= arguments.seconds < float("inf"):
        raise ConfigError(f"--seconds is {arguments.seconds}; it must be a number of seconds")
    path = arguments.out / report.NAME
    done = report.read(path) if path.exists() else []
    known = {row.cell for row in done}
    with StatusLine(enabled=not arguments.quiet) as status:
        for cell in cells(arguments.shapes, arguments.threads):
            if cell in known:
                continue  # a run that was stopped goes on
            done += measure.measure(cell, arguments.seconds, status)
            write_text(path, report.to_csv(done))
    result = publish(list(report.blocks(done)), arguments.out, "benchmarks", {})
    print(result.text)
    for file in (path, *result.files):
        print(file)
