"""The training loop: one for every data set, architecture, update and schedule.

start (seeded) -> [choice of the learning rate] -> [ epoch: shuffle, minibatches, evaluate,
schedule -> checkpoint and record ] until `stopping.verdict` -> result
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from pathlib import Path

import torch

import manifoldnet as mn
from manifoldnet.experiments import records, rundir, sources
from manifoldnet.experiments.config import TrainConfig
from manifoldnet.experiments.data import Dataset, Split, split
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.records import Epoch, Record, Selection
from manifoldnet.experiments.run import Run, limited_threads
from manifoldnet.experiments.rundir import Checkpoint
from manifoldnet.experiments.selection import check_minibatches, parts, select
from manifoldnet.experiments.stopping import verdict


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

    A process that is killed loses the epoch it was in. A run whose loss stops being finite ends
    there; it is recorded as diverged and not an error.

    Args:
        config: what to train.
        directory: where the run's two files go.
        data: the data set, when it is loaded already; by default `sources.load` is asked for
            ``config.dataset``.
        data_dir: the folder of data sets, for loading.
        resume: go on with the run in `directory`, bit for bit; begin when there is none.
        overwrite: remove the run in `directory`, if any, and begin.
        on_epoch: called after each epoch that is trained, once it is on disk.

    Returns:
        The whole record, also when the run had ended before.

    Raises:
        ConfigError: when the data set is too small for the configuration.
        DataError: when the data cannot be loaded.
        RecordError: when `directory` cannot be used (`rundir.inspect`), or its run was of other
            data.
    """
    directory = Path(directory)
    found = rundir.inspect(directory, config, resume=resume, overwrite=overwrite)
    if isinstance(found, Record):
        return found
    data = data if data is not None else sources.load(config.dataset, data_dir)
    images = images_for(config, data)
    fingerprint = data.fingerprint()
    if found is None:
        rundir.clear(directory)
        found = Checkpoint(config, versions(), fingerprint, epochs=(), states={})
        records.write(found.record(), rundir.record_path(directory))
    elif found.data != fingerprint:
        raise RecordError(
            f"the run in {directory} was trained on other data than this {data.name!r} (checksum "
            f"{found.data}, "
            f"now {fingerprint}): use that data, or train the run again with --overwrite"
        )
    with limited_threads(config.threads):
        if config.lr is None and found.selection is None:
            found = dataclasses.replace(found, selection=select(config, data, images.train))
        run = Run(_decided(config, found.selection), data)
        if found.epochs:
            _restore(run, found, directory)
        epochs = found.epochs
        while verdict(config, epochs) is None:
            epochs += (run.epoch(len(epochs) + 1, images),)
            found = dataclasses.replace(found, epochs=epochs, states=run.state_dict())
            rundir.save(found, directory)
            if on_epoch is not None:
                on_epoch(epochs[-1])
    record = dataclasses.replace(found.record(), result=verdict(config, epochs))
    records.write(record, rundir.record_path(directory))
    return record


def train_whole(config: TrainConfig, data: Dataset) -> Record:
    """Trains one configuration from start to end, and leaves nothing on disk.

    The numbers are those of `train`.

    Raises:
        ConfigError: when the data set is too small for the configuration.
    """
    images = images_for(config, data)
    epochs: tuple[Epoch, ...] = ()
    with limited_threads(config.threads):
        selection = select(config, data, images.train) if config.lr is None else None
        run = Run(_decided(config, selection), data)
        while (result := verdict(config, epochs)) is None:
            epochs += (run.epoch(len(epochs) + 1, images),)
    return Record(config, versions(), data.fingerprint(), epochs, result, selection)


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


def _decided(config: TrainConfig, selection: Selection | None) -> TrainConfig:
    return config if selection is None else dataclasses.replace(config, lr=selection.lr)


def _restore(run: Run, checkpoint: Checkpoint, directory: Path) -> None:
    try:
        run.load_state_dict(checkpoint.states)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RecordError(
            f"the checkpoint in {directory} does not hold the state of this run "
            f"({type(error).__name__}: {error}): put an intact one there, or train the run again "
            "with --overwrite"
        ) from error


def versions() -> dict[str, str]:
    """What decides the numbers besides the configuration, for the record."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "manifoldnet": mn.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
