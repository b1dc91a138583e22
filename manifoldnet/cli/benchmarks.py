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
    from manifoldnet.experiments.benchmarks.shapes import GROWTH, SHAPES
    from manifoldnet.experiments.benchmarks.work import cells
    from manifoldnet.experiments.document import Heading, Picture, publish
    from manifoldnet.experiments.errors import ConfigError
    from manifoldnet.experiments.files import write_text
    from manifoldnet.experiments.status import StatusLine

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
    blocks: list[Any] = []
    for count in sorted({row.cell.threads for row in done}, reverse=True):
        here = [row for row in done if row.cell.threads == count]
        threads = f"{count} thread" + "s" * (count != 1)
        if any(row.cell.shapes in SHAPES for row in here):
            blocks.append(Heading(f"Multiples of torch's fused step, {threads}"))
            blocks.append(report.table(here, count))
            text = f"Time of a step as a multiple of torch's fused one, {threads}"
            blocks.append(Picture(f"benchmarks_{count}.png", report.draw(here, count), text))
            blocks.append(Heading(f"Bytes, {threads}"))
            blocks.append(report.traffic(here, count))
        if any(row.cell.shapes in GROWTH for row in here):
            blocks.append(Heading(f"Growth, {threads}"))
            blocks.append(report.growth(here, count))
            text = f"Time of a step against size and number of weights, {threads}"
            picture = report.draw_growth(here, count)
            blocks.append(Picture(f"benchmarks_growth_{count}.png", picture, text))
    result = publish(blocks, arguments.out, "benchmarks", {})
    print(result.text)
    for file in (path, *result.files):
        print(file)
