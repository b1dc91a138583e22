"""Times training steps with every stage, in turn, for the report.

    python -m manifoldnet.experiments.papers.scale_invariant.times --out runs/scale-invariant

A step is what a user's loop does: images through the smaller MNIST network and the stage, loss,
gradient, step of the optimizer. The stages take turns minibatch by minibatch in one process with
one thread; what counts is the ratio to logistic regression within a turn. Writes
``stage_cost.csv``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from manifoldnet.experiments import sources, timing
from manifoldnet.experiments.papers.scale_invariant import costs
from manifoldnet.experiments.papers.scale_invariant.config import (
    ARCHITECTURES,
    METHODS,
    StageConfig,
)
from manifoldnet.experiments.papers.scale_invariant.costs import Costs
from manifoldnet.experiments.papers.scale_invariant.grids import CHOICE_DIMENSIONS
from manifoldnet.experiments.papers.scale_invariant.parts import make_parts
from manifoldnet.experiments.papers.scale_invariant.run import Run
from manifoldnet.experiments.training import limited_threads

TIMED = StageConfig()
"""What is timed, but for method, rate and dimension."""

_RATE = 0.01
_WARM = 5


def measure(
    steps: int,
    config: StageConfig = TIMED,
    data_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Costs:
    """Seconds of training steps with each stage.

    Args:
        steps: how many of each; a few more come first and do not count.
        config: what to train, but for method, rate and dimension.
        data_dir: the folder of data sets.
        on_progress: is told what is timed, the number of the step, and how many there are.
    """
    data = sources.load(config.dataset, data_dir, None, ARCHITECTURES[config.architecture].side)
    base = replace(config, lr=_RATE, embedding_dim=None)
    stages = [replace(base, method="rescaled", embedding_dim=m) for m in CHOICE_DIMENSIONS]
    stages += [replace(base, method=method) for method in METHODS if method != "rescaled"]
    runs = {(c.method, str(c.embedding_dim or "")): Run(c, data) for c in stages}
    parts = make_parts(config, data)
    seconds: dict[tuple[str, str], dict[int, float]] = {stage: {} for stage in runs}
    with limited_threads(config.threads):
        for number in range(1 - _WARM, steps + 1):
            on_progress("timing steps", max(number, 0), steps)
            rows = torch.arange(config.batch_size) + config.batch_size * (number + _WARM)
            rows %= len(parts.train)
            images, labels = parts.batch(rows), parts.train.labels[rows]
            first = number % len(runs)  # whoever comes first finds the caches of the last one
            for stage, run in [*runs.items()][first:] + [*runs.items()][:first]:
                began = time.perf_counter()
                run.optimizer.zero_grad()
                run.loss(run.network(images), labels).backward()
                run.optimizer.step()
                if number > 0:
                    seconds[stage][number] = time.perf_counter() - began
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """The command: see `timing.run`."""
    return timing.run(
        argv,
        lambda steps, folder, status: costs.to_csv(measure(steps, TIMED, folder, status)),
        module=__spec__.name,
        description="Time training steps with every classification stage, in turn, for the report.",
        name=costs.NAME,
        units="steps",
        turns=150,
    )


if __name__ == "__main__":
    sys.exit(main())
