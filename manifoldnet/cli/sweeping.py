"""What the commands that sweep have in common."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from manifoldnet.cli.options import add_data_dir, notice_of


def add_work(command: argparse.ArgumentParser, repetitions: int | None, what: str) -> None:
    """Adds how many runs there are, and who does them."""
    command.add_argument(
        "--repetitions",
        type=int,
        default=repetitions,
        metavar="N",
        help=what if repetitions is None else f"{what} (%(default)s)",
    )
    workers = command.add_mutually_exclusive_group()
    workers.add_argument(
        "--jobs", type=int, metavar="N", help="worker processes (default: one a processor)"
    )
    workers.add_argument(
        "--cluster", metavar="ADDRESS", help="a Dask scheduler whose workers do it instead"
    )
    add_data_dir(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def run_sweep(
    arguments: argparse.Namespace,
    folder: Path,
    experiment: Any,
    runs: Sequence[Any],
    axes: Sequence[str],
    what: str,
    checkpoints: bool = False,
) -> list[Any]:
    """Runs a sweep, and says where its records are; gives them."""
    from manifoldnet.experiments.sweep import sweep
    from manifoldnet.experiments.workers import cluster

    workers = nullcontext(None) if arguments.cluster is None else cluster(arguments.cluster)
    with workers as executor:
        records = sweep(
            experiment,
            runs,
            folder,
            axes=axes,
            checkpoints=checkpoints,
            jobs=arguments.jobs,
            executor=executor,
            data_dir=arguments.data_dir,
            progress=not arguments.quiet,
            notice=notice_of(arguments),
        )
    diverged = sum(record.result is not None and record.result.diverged for record in records)
    print(f"{len(records)} runs of {what} are in {folder}, {diverged} diverged")
    print(f"report: {shlex.join(['manifoldnet', 'report', str(folder)])}")
    return records
