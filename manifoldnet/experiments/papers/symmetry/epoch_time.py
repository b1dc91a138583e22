"""How long an epoch takes with each update, against the same loop with plain `torch.optim.SGD`.

The updates take turns, some minibatches each, so that a slow second of the machine slows all of
them; what counts is the ratio of the medians, not the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from manifoldnet.experiments import sources
from manifoldnet.experiments.document import Table, to_markdown
from manifoldnet.experiments.loop import limited_threads
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.run import Run
from manifoldnet.experiments.papers.symmetry.training import images_for

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
    images = images_for(config, data).train
    turns = [
        replace(images, pixels=pixels, labels=labels)
        for pixels, labels in zip(
            images.pixels.split(_TURN), images.labels.split(_TURN), strict=True
        )
    ]
    seconds: dict[str, list[float]] = {}
    with limited_threads(config.threads):
        runs = {PLAIN: Run(replace(config, update="b-sgd"), data)}
        plain = runs[PLAIN]
        (rate,) = {group["lr"] for group in plain.optimizer.param_groups}
        plain.optimizer = torch.optim.SGD(
            plain.network.parameters(), lr=rate, momentum=config.momentum
        )
        for update in updates:
            runs[update] = Run(replace(config, update=update), data)
        for number in range(1, config.epochs + 1):
            if on_round is not None:
                on_round(number, config.epochs)
            passes = dict.fromkeys(runs, 0.0)
            for turn, some in enumerate(turns):
                first = turn % len(runs)  # nobody is always behind the same one
                for name, run in [*runs.items()][first:] + [*runs.items()][:first]:
                    began = time.perf_counter()
                    run.train_pass(some)
                    passes[name] += time.perf_counter() - began
            for name, time_of_pass in passes.items():
                seconds.setdefault(name, []).append(time_of_pass)
    return seconds


def ratio_table(seconds: dict[str, list[float]]) -> str:
    """A Markdown table of `epoch_times`: median seconds, and their ratio to plain SGD's."""
    plain = median(seconds[PLAIN])
    rows = [
        (name, f"{median(times):.3f}", f"{median(times) / plain:.2f}")
        for name, times in seconds.items()
    ]
    return to_markdown([Table(("update", "s/epoch (median)", "ratio"), tuple(rows))]).rstrip()
