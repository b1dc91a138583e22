"""Times of training passes with every update, against the same loop with `torch.optim.SGD`.

    python -m manifoldnet.experiments.papers.symmetry.times --out runs/symmetry-paper

The updates take turns in one process with one thread, some minibatches each. It takes some minutes,
better with the machine doing nothing else, and writes ``times.csv`` for the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from manifoldnet.experiments import timing
from manifoldnet.experiments.data import load
from manifoldnet.experiments.papers.symmetry import results
from manifoldnet.experiments.papers.symmetry.cells import PROTOCOL
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.run import Run, images_for
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.report import Table, to_markdown
from manifoldnet.experiments.training import limited_threads

PLAIN = "torch.optim.SGD"
_TURN = 2000  # images

TIMED = replace(PROTOCOL, lr=1e-3)
"""The configuration that is timed; all updates learn with this rate."""


def epoch_times(
    config: TrainConfig,
    updates: Sequence[str],
    data_dir: str | Path | None = None,
    on_round: Callable[[int, int], None] = lambda number, total: None,
) -> dict[str, list[float]]:
    """Seconds of training passes, without evaluation.

    Args:
        config: what to train; ``config.epochs`` is the number of passes of each update.
        updates: keys of `UPDATES`.
        data_dir: the folder of data sets.
        on_round: called before each pass with its number and their total.

    Returns:
        Seconds of each pass, by update; plain SGD comes first.
    """
    data = load(config.dataset, data_dir)
    split = images_for(config, data)
    halves = (split.train.pixels.split(_TURN), split.train.labels.split(_TURN))
    turns = [
        replace(split, train=replace(split.train, pixels=pixels, labels=labels))
        for pixels, labels in zip(*halves, strict=True)
    ]
    plain = Run(replace(config, update="b-sgd"), data)
    (rate,) = {group["lr"] for group in plain.optimizer.param_groups}
    plain.optimizer = torch.optim.SGD(plain.network.parameters(), lr=rate, momentum=config.momentum)
    runs = {PLAIN: plain} | {name: Run(replace(config, update=name), data) for name in updates}

    def train(run: Run, number: int) -> None:
        run.train_pass(turns[number % len(turns)])

    def before_turn(number: int) -> None:
        if number % len(turns) == 0:
            on_round(number // len(turns) + 1, config.epochs)

    works = {name: partial(train, run) for name, run in runs.items()}
    with limited_threads(config.threads):
        seconds = timing.interleaved(works, config.epochs * len(turns), before_turn)
    starts = range(0, config.epochs * len(turns), len(turns))
    return {name: [sum(s[i : i + len(turns)]) for i in starts] for name, s in seconds.items()}


def ratio_table(seconds: dict[str, list[float]]) -> str:
    """A Markdown table of `epoch_times`: median seconds, and their ratio to plain SGD's."""
    plain = median(seconds[PLAIN])
    rows = [
        (name, f"{median(times):.3f}", f"{median(times) / plain:.2f}")
        for name, times in seconds.items()
    ]
    return to_markdown([Table(("update", "s/epoch (median)", "ratio"), tuple(rows))]).rstrip()


def measure(
    passes: int,
    config: TrainConfig = TIMED,
    data_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[results.Key, float]:
    """Seconds of training passes of each network with each update."""
    seconds = {}
    for architecture, depth in results.NETWORKS:
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
        lambda passes, folder, status: results.times_csv(measure(passes, TIMED, folder, status)),
        module=__spec__.name,
        description="Time training passes with every update, in turn, for the report.",
        name=results.TIMES,
        units="passes",
        turns=15,
    )


if __name__ == "__main__":
    sys.exit(main())
