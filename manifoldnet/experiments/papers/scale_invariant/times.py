"""Measure the cost of a training step with every stage, in turn, for the report.

    python -m manifoldnet.experiments.papers.scale_invariant.times --out runs/scale-invariant

A step is that of a user's loop: images through the smaller MNIST network and the stage, loss,
gradient, step of the optimizer. The stages take turns minibatch by minibatch in one process with
one thread; what counts is the ratio to logistic regression within a turn. Writes
``stage_cost.csv``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from manifoldnet.experiments import timing
from manifoldnet.experiments.data import load
from manifoldnet.experiments.papers.scale_invariant.config import (
    METHODS,
    StageConfig,
    grid,
)
from manifoldnet.experiments.papers.scale_invariant.records import COST_COLUMNS, COSTS
from manifoldnet.experiments.papers.scale_invariant.run import Run, make_parts
from manifoldnet.experiments.report import csv_text
from manifoldnet.experiments.training import limited_threads

TIMED = StageConfig()
"""The timed step, but for method, rate and dimension."""

_RATE = 0.01
_DIMENSIONS = (10, 128, 1024)
_WARM = 5


def measure(
    steps: int,
    config: StageConfig = TIMED,
    data_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[tuple[str, str], list[float]]:
    """Seconds of training steps with each stage (method, m)."""
    data = load(config.dataset, data_dir, None, config.side)
    parts = make_parts(config, data)
    batch: dict[str, torch.Tensor] = {}

    def next_batch(number: int) -> None:
        on_progress("timing steps", max(number + 1 - _WARM, 0), steps)
        rows = (torch.arange(config.batch_size) + config.batch_size * (number + 1)) % len(
            parts.train
        )
        batch.update(images=parts.batch(rows), labels=parts.train.labels[rows])

    def step(run: Run) -> Callable[[int], object]:
        def work(number: int) -> None:
            run.optimizer.zero_grad()
            run.loss(run.network(batch["images"]), batch["labels"]).backward()
            run.optimizer.step()

        return work

    works = {
        (one.method, str(one.embedding_dim or "")): step(Run(one, data))
        for one in grid(config, list(METHODS), [_RATE], _DIMENSIONS)
    }
    with limited_threads(config.threads):
        seconds = timing.interleaved(works, _WARM + steps, next_batch)
    return {stage: times[_WARM:] for stage, times in seconds.items()}


def to_csv(seconds: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """One row per step, under `COST_COLUMNS`."""
    rows = [
        dict(zip(COST_COLUMNS, (*stage, number, f"{s:.6f}"), strict=True))
        for stage, times in seconds.items()
        for number, s in enumerate(times, 1)
    ]
    return csv_text(COST_COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: see `timing.run`."""
    return timing.run(
        argv,
        lambda steps, folder, status: to_csv(measure(steps, TIMED, folder, status)),
        module=__spec__.name,
        description="Time training steps with every classification stage, in turn, for the report.",
        name=COSTS,
        units="steps",
        turns=150,
    )


if __name__ == "__main__":
    sys.exit(main())
