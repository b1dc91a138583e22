"""How long an epoch takes with each update, against the same loop with plain `torch.optim.SGD`.

The updates take turns, some minibatches each, so that a slow second of the machine slows all of
them; what counts is the ratio of the medians, not the seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from manifoldnet.experiments import sources, timing
from manifoldnet.experiments.document import Table, to_markdown
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.run import Run, images_for
from manifoldnet.experiments.training import limited_threads

PLAIN = "torch.optim.SGD"
_TURN = 2000  # images


def epoch_times(
    config: TrainConfig,
    updates: Sequence[str],
    data_dir: str | Path | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Times training passes, without evaluation.

    Args:
        config: what to train; ``config.epochs`` is how many passes of each to time.
        updates: keys of `UPDATES`.
        data_dir: the folder of data sets.
        on_round: is told the number of each pass and how many there are, before it begins.

    Returns:
        Seconds of each pass, by update; plain SGD comes first.
    """
    data = sources.load(config.dataset, data_dir)
    split = images_for(config, data)
    images = split.train
    turns = [
        replace(split, train=replace(images, pixels=pixels, labels=labels))
        for pixels, labels in zip(
            images.pixels.split(_TURN), images.labels.split(_TURN), strict=True
        )
    ]
    with limited_threads(config.threads):
        runs = {PLAIN: Run(replace(config, update="b-sgd"), data)}
        plain = runs[PLAIN]
        (rate,) = {group["lr"] for group in plain.optimizer.param_groups}
        plain.optimizer = torch.optim.SGD(
            plain.network.parameters(), lr=rate, momentum=config.momentum
        )
        for update in updates:
            runs[update] = Run(replace(config, update=update), data)

        def before_turn(number: int) -> None:
            if on_round is not None and number % len(turns) == 0:
                on_round(number // len(turns) + 1, config.epochs)

        works = {
            name: lambda number, run=run: run.train_pass(turns[number % len(turns)])
            for name, run in runs.items()
        }
        seconds = timing.interleaved(works, config.epochs * len(turns), before_turn)
    return {name: [sum(each) for each in _chunks(s, len(turns))] for name, s in seconds.items()}


def _chunks(values: list[float], size: int) -> list[list[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def ratio_table(seconds: dict[str, list[float]]) -> str:
    """A Markdown table of `epoch_times`: median seconds, and their ratio to plain SGD's."""
    plain = median(seconds[PLAIN])
    rows = [
        (name, f"{median(times):.3f}", f"{median(times) / plain:.2f}")
        for name, times in seconds.items()
    ]
    return to_markdown([Table(("update", "s/epoch (median)", "ratio"), tuple(rows))]).rstrip()
