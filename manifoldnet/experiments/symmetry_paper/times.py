"""Times training passes of the paper's networks with every update, for the report.

    python -m manifoldnet.experiments.symmetry_paper.times --out runs/symmetry-paper

The updates, and the same loop with plain `torch.optim.SGD`, take turns pass by pass in one process
with one thread (`experiments.classification.epoch_time`). It takes some minutes, better with the
machine doing nothing else, and writes ``times.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from manifoldnet.experiments.classification.config import TrainConfig
from manifoldnet.experiments.classification.epoch_time import epoch_times
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.status import StatusLine
from manifoldnet.experiments.symmetry_paper import costs
from manifoldnet.experiments.symmetry_paper.cells import PROTOCOL
from manifoldnet.experiments.updates import UPDATES

TIMED = replace(PROTOCOL, lr=1e-3)
"""What is timed; the rate is one that all updates learn with."""


def measure(
    passes: int,
    config: TrainConfig = TIMED,
    data_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[costs.Key, float]:
    """Seconds of training passes of each network with each update.

    Args:
        passes: how many of each; one more comes first and does not count.
        config: what to train, but for network and update.
        data_dir: the folder of data sets.
        on_progress: is told what is timed, the number of the pass, and how many there are.
    """
    seconds = {}
    for architecture, depth in costs.NETWORKS:
        network = replace(
            config, architecture=architecture, depth=depth, epochs=passes + 1, min_epochs=None
        )
        what = f"timing {architecture} with {depth} layers, pass"
        found = epoch_times(network, tuple(UPDATES), data_dir, partial(on_progress, what))
        for update, times in found.items():
            for number, each in enumerate(times[1:], 1):
                seconds[architecture, depth, update, number] = each
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes the file.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit code: 2 if something in the request is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m manifoldnet.experiments.symmetry_paper.times",
        description="Time training passes with every update, in turn, for the report.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder that is reported on")
    add("--passes", type=int, default=15, metavar="N", help="of each update (%(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="the folder of data sets")
    add("--quiet", action="store_true", help="no progress line")
    arguments = parser.parse_args(argv)
    if arguments.passes < 2:
        parser.error(f"--passes is {arguments.passes}; an interval needs two")
    path = arguments.out / costs.NAME
    try:
        with StatusLine(enabled=not arguments.quiet) as status:
            seconds = measure(arguments.passes, TIMED, arguments.data_dir, status)
        write_text(path, costs.to_csv(seconds))
    except (ExperimentError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
