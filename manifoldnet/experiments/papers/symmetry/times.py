"""Times training passes of the paper's networks with every update, for the report.

    python -m manifoldnet.experiments.papers.symmetry.times --out runs/symmetry-paper

The updates, and the same loop with plain `torch.optim.SGD`, take turns in one process with one
thread (`experiments.papers.symmetry.epoch_time`). It takes some minutes, better with the machine
doing nothing else, and writes ``times.csv``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from manifoldnet.experiments import timing
from manifoldnet.experiments.papers.symmetry import costs
from manifoldnet.experiments.papers.symmetry.cells import PROTOCOL
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.epoch_time import epoch_times
from manifoldnet.experiments.papers.updates import UPDATES

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
    """The command: see `timing.run`."""
    return timing.run(
        argv,
        lambda passes, folder, status: costs.to_csv(measure(passes, TIMED, folder, status)),
        module=__spec__.name,
        description="Time training passes with every update, in turn, for the report.",
        name=costs.NAME,
        units="passes",
        turns=15,
    )


if __name__ == "__main__":
    sys.exit(main())
