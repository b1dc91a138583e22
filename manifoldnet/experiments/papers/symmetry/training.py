"""Image classification for the training loop: what a run of `TrainConfig` loads, trains and is.

The loop itself is `manifoldnet.experiments.loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from manifoldnet.experiments import sources
from manifoldnet.experiments.data import Dataset, Split, split
from manifoldnet.experiments.loop import Experiment, Notice, train_in
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import CLASSIFICATION, Epoch, Record, Result
from manifoldnet.experiments.papers.symmetry.run import Run
from manifoldnet.experiments.papers.symmetry.selection import check_minibatches, parts, select
from manifoldnet.experiments.papers.symmetry.stopping import verdict
from manifoldnet.experiments.records import Selection


def train(
    config: TrainConfig,
    directory: str | Path,
    data: Dataset | None = None,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Record:
    """Trains one configuration, and keeps its record and checkpoint after every epoch.

    Arguments, result and errors are those of `manifoldnet.experiments.loop.train_in`, for this
    experiment; `data` is by default what `sources.load` gives for ``config.dataset``.
    """
    return train_in(
        EXPERIMENT,
        config,
        directory,
        data,
        data_dir=data_dir,
        resume=resume,
        overwrite=overwrite,
        on_epoch=on_epoch,
    )


def images_for(config: TrainConfig, data: Dataset) -> Split:
    """The images that a configuration trains and is judged on.

    Raises:
        ConfigError: when there are not that many, also for the choice of the learning rate, or they
            leave a minibatch that cannot be used.
    """
    images = split(data, config.seed, config.train_size, config.validation_size)
    check_minibatches(config, len(images.train), "train_size")
    if config.lr is None:
        parts(config, images.train)
    return images


def _source(config: TrainConfig) -> tuple[str]:
    return (config.dataset,)


def _load(source: tuple[Any, ...], data_dir: str | Path | None, notice: Notice | None) -> Dataset:
    (name,) = source
    return sources.load(name, data_dir, notice)


def _sizes(config: TrainConfig) -> tuple[Any, ...]:
    return (
        *(config.architecture, config.batch_size, config.train_size, config.validation_size),
        *(config.lr is None, config.selection_train_size, config.selection_validation_size),
    )


def _choose(config: TrainConfig, data: Dataset, images: Split) -> Selection:
    return select(config, data, images.train)


EXPERIMENT: Experiment[TrainConfig, Epoch, Result] = Experiment(
    kind=CLASSIFICATION,
    source=_source,
    load=_load,
    parts=images_for,
    sizes=_sizes,
    start=Run,
    verdict=verdict,
    choose=_choose,
)
