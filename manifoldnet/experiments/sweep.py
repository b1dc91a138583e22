"""Many configurations, each trained once: whatever is killed, the next call does what is missing.

    configurations -> which are missing in the folder? -> workers train them -> records (`folder`)

A run is known by the hash of its configuration. It is trained whole, in a worker, and its record is
written by the parent when it has ended: a run of a minute is not worth checkpoints, and so a kill
costs at most the runs that were in the works. Numbers do not depend on who trained a run, nor
beside what.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments import sources
from manifoldnet.experiments.config import TrainConfig
from manifoldnet.experiments.data import Dataset
from manifoldnet.experiments.errors import ConfigError, DataError, ExperimentError, RecordError
from manifoldnet.experiments.progress import SweepProgress
from manifoldnet.experiments.records import Record
from manifoldnet.experiments.training import images_for, train_whole, versions
from manifoldnet.experiments.workers import Processes, available
from manifoldnet.optim import NormGrowthWarning

# A run whose worker died, or failed in a way that is not the user's to mend, is tried once more.
ATTEMPTS = 2


class SweepError(ExperimentError):
    """Some runs of a sweep failed; the records of the others are there."""


def sweep(
    configs: Sequence[TrainConfig],
    folder: str | Path,
    *,
    axes: Sequence[str] | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
    notice: Callable[[str], None] | None = None,
) -> list[Record]:
    """Trains what is missing of some configurations, all of one data set.

    Everything is checked before the first run begins.

    Args:
        configs: what is to be in the folder.
        folder: where records are kept.
        axes: the fields in which records of the folder may differ, besides those of `configs`; by
            default any.
        jobs: worker processes; by default one for each processor.
        executor: who does the work instead; it is not shut down.
        data_dir: the folder of data sets, for loading; workers are given the same name.
        progress: whether to show a bar on stderr.
        notice: called with a line of text before anything slow.

    Returns:
        One record per configuration, in the same order.

    Raises:
        ConfigError: when a configuration comes twice, does not fit the data, or there is none.
        DataError: when the data cannot be loaded, or differ from those of the records.
        RecordError: when the folder cannot be used: another process is at work there, or a file in
            it is damaged, foreign, or of another version or sweep; or when a record cannot be
            written.
        SweepError: when runs failed twice. The others have been done.
    """
    folder = Path(folder)
    jobs = available() if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least one is needed")
    wanted = {config.identity(): config for config in configs}
    if not configs or len(wanted) < len(configs):
        raise ConfigError("a sweep needs configurations, each of them once")
    if len({config.dataset for config in configs}) > 1:
        raise ConfigError("the configurations of a sweep are of one data set")
    folders.read_all(folder)  # complains before anything is made
    with folders.lock(folder):
        folders.clean(folder)
        found = folders.read_all(folder)
        any_field = [field.name for field in dataclasses.fields(TrainConfig)]
        folders.check(folder, found, configs, any_field if axes is None else axes, versions())
        missing = [config for identity, config in wanted.items() if identity not in found]
        if missing:
            fingerprint = _check_data(missing, data_dir, found, notice)
            done = sum(len(found[i].epochs) for i in wanted if i in found)
            bar = SweepProgress(
                sum(config.epochs for config in missing) + done,
                done,
                runs=len(configs),
                ended=len(configs) - len(missing),
                enabled=progress,
            )
            workers: AbstractContextManager[Executor] = (
                Processes(min(jobs, len(missing))) if executor is None else nullcontext(executor)
            )
            with bar, workers as pool:
                found |= _train(missing, folder, pool, data_dir, fingerprint, bar)
    return [found[identity] for identity in wanted]


def _check_data(
    configs: Sequence[TrainConfig],
    data_dir: str | Path | None,
    found: dict[str, Record],
    notice: Callable[[str], None] | None,
) -> str:
    """Loads the data, and refuses what does not fit them, before anything starts."""
    data = sources.load(configs[0].dataset, data_dir, notice)
    seen = set()
    for config in configs:
        sizes = (
            *(config.architecture, config.batch_size, config.train_size, config.validation_size),
            *(config.lr is None, config.selection_train_size, config.selection_validation_size),
        )
        if sizes not in seen:
            seen.add(sizes)
            images_for(config, data)
    fingerprint = data.fingerprint()
    for identity, record in found.items():
        if record.data != fingerprint:
            raise RecordError(
                f"the record {identity} was trained on other data than this {data.name!r} "
                f"(checksum {record.data}, now {fingerprint}): use that data, or another folder"
            )
    return fingerprint


def _train(
    configs: Sequence[TrainConfig],
    folder: Path,
    pool: Executor,
    data_dir: str | Path | None,
    fingerprint: str,
    bar: SweepProgress,
) -> dict[str, Record]:
    place = None if data_dir is None else str(data_dir)

    def begin(config: TrainConfig) -> Future[Record]:
        return pool.submit(run_one, config, place, fingerprint)

    done: dict[str, Record] = {}
    failed: list[str] = []
    pending = {begin(config): (config, 1) for config in configs}
    try:
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                config, attempt = pending.pop(future)
                error = future.exception()
                if error is None:
                    record = future.result()
                    folders.keep(folder, record)
                    done[config.identity()] = record
                    bar.end(record)
                elif attempt < ATTEMPTS and not isinstance(error, ExperimentError):
                    pending[begin(config)] = (config, attempt + 1)
                else:
                    failed.append(f"{_describe(config)}: {type(error).__name__}: {error}")
                    bar.fail(config)
    finally:
        for future in pending:
            future.cancel()
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(configs)} runs failed, the others are done; the same command "
            f"tries those again. {'; '.join(failed)}"
        )
    return done


def run_one(config: TrainConfig, data_dir: str | None, fingerprint: str) -> Record:
    """Trains one run in a worker.

    Args:
        config: the run.
        data_dir: the folder of data sets.
        fingerprint: checksum of the data that the sweep was checked with.

    Raises:
        DataError: when the worker's data are others.
    """
    data = _load(config.dataset, data_dir)
    if data.fingerprint() != fingerprint:
        raise DataError(
            f"a worker has other data named {config.dataset!r} than the process that started the "
            f"sweep (checksum {data.fingerprint()}, not {fingerprint})"
        )
    with warnings.catch_warnings():
        # The additive scaled metric: if norms overflow, the record says that the run diverged.
        warnings.simplefilter("ignore", NormGrowthWarning)
        return train_whole(config, data)


@lru_cache(maxsize=1)
def _load(name: str, data_dir: str | None) -> Dataset:
    return sources.load(name, data_dir)


def _describe(config: TrainConfig) -> str:
    return (
        f"{config.architecture}-{config.depth}-{config.update}-{config.schedule}, "
        f"seed {config.seed}"
    )
