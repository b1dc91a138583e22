"""Several updates on several seeds, one run after the other, each in a directory of its own.

    <output>/<update>/seed-<seed>/{record.jsonl, checkpoint.pt}
    <output>/{table.md, results.csv, test_error.png}                   (`tables.write_report`)

Updates that share a seed share the split of the images, the start and the order of the minibatches.
Seeds are the outer loop: a comparison that is stopped early has all updates side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments import checkpoint
from manifoldnet.experiments.data import Dataset, load
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION, Record, TrainConfig
from manifoldnet.experiments.papers.symmetry.run import train
from manifoldnet.experiments.progress import Progress
from manifoldnet.experiments.records import RunRecord


def configurations(
    base: TrainConfig, updates: Sequence[str], seeds: Iterable[int]
) -> list[TrainConfig]:
    """The runs of a comparison: ``base`` with every update on every seed.

    Raises:
        ConfigError: when there are none, when one comes twice, or when one makes no sense.
    """
    seeds = list(seeds)
    for name, values in (("updates", list(updates)), ("seeds", seeds)):
        if not values:
            raise ConfigError(f"there are no {name} to compare")
        if len(set(values)) < len(values):
            raise ConfigError(f"the {name} name one twice: {', '.join(map(str, values))}")
    return [replace(base, update=update, seed=seed) for seed in seeds for update in updates]


def compare(
    configs: Sequence[TrainConfig], output: str | Path, data: Dataset | None = None, **options: Any
) -> list[Record]:
    """Train several configurations of one data set, each in its own directory below ``output``.

    Options and errors are those of `train_all`.
    """
    runs = [(config, Path(output) / config.update / f"seed-{config.seed}") for config in configs]
    return train_all(runs, data, **options)


def train_all(
    runs: Sequence[tuple[TrainConfig, Path]],
    data: Dataset | None = None,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    notice: Callable[[str], None] | None = None,
) -> list[Record]:
    """Train configurations of one data set one after the other, with progress bars on stderr.

    All directories are checked before the first run begins.
    """
    found = [
        checkpoint.inspect(where, config, CLASSIFICATION, resume=resume, overwrite=overwrite)
        for config, where in runs
    ]
    done = [0 if run is None else len(run.epochs) for run in found]
    if data is None and not all(isinstance(run, RunRecord) for run in found):
        data = load(runs[0][0].dataset, data_dir, notice)
    result = []
    with Progress(sum(config.epochs for config, _ in runs), sum(done), enabled=progress) as bars:
        for number, (config, where) in enumerate(runs):
            name = f"{config.update}, seed {config.seed} ({number + 1}/{len(runs)})"
            bars.begin(name, config.epochs, done[number])
            record = train(
                config, where, data, resume=resume, overwrite=overwrite, on_epoch=bars.advance
            )
            bars.end(record)
            result.append(record)
    return result
