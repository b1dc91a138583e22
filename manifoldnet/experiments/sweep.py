"""Sweeps: many configurations, each trained once, in worker processes or on a cluster.

    configurations -> those without a record in the folder -> workers -> records (`store`)

A sweep that is killed goes on with the same call, which trains the missing runs. A long run keeps
a checkpoint after every epoch and goes on from there. Numbers do not depend on the worker, nor on
the runs beside it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from manifoldnet.experiments import checkpoint, store
from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import ConfigError, DataError, ExperimentError, RecordError
from manifoldnet.experiments.progress import SweepProgress
from manifoldnet.experiments.records import C, E, R, RunRecord, same_runs
from manifoldnet.experiments.training import Data, Experiment, train_in, train_whole, versions
from manifoldnet.experiments.workers import Processes, available
from manifoldnet.optim import NormGrowthWarning, ZeroSliceWarning

ATTEMPTS = 2  # where a worker died, or failed in a way that is not the user's to mend
_MAX_INITIAL_FAILURES = 5  # without a success; then the other runs are not tried
_POLL_SECONDS = 5.0  # between two looks at the progress of long runs


class SweepError(ExperimentError):
    """Some runs of a sweep failed; the records of the others have been written."""


def sweep(
    experiment: Experiment[C, E, R],
    configs: Sequence[C],
    folder: str | Path,
    *,
    axes: Sequence[str] | None = None,
    purpose: Mapping[str, str] | None = None,
    checkpoints: bool = False,
    jobs: int | None = None,
    executor: Executor | None = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
    notice: Callable[[str], None] | None = None,
) -> list[RunRecord[C, E, R]]:
    """Train what is missing of some configurations of one data set, after checking all of them.

    A script calls this below ``if __name__ == "__main__":``, since worker processes import it.

    Args:
        experiment: the experiment of the configurations.
        configs: the runs that are to be in the folder.
        folder: of the records.
        axes: the fields in which records of the folder may differ; by default any.
        purpose: written into the records as `RunRecord.sweep`: ``{"purpose": "comparison", ...}``.
        checkpoints: keep one of each run in the folder, which all workers need to see then.
        jobs: worker processes; by default one for each processor.
        executor: does the work instead of processes; it is not shut down.
        data_dir: the folder of data sets; workers are given the same name.
        progress: show a bar on stderr.
        notice: called with a line of text before anything slow.

    Returns:
        One record per configuration, in the same order.

    Raises:
        ConfigError: when a configuration comes twice, does not fit the data, or there is none.
        DataError: when the data cannot be loaded.
        RecordError: when the folder or a record in it cannot be used, or be written.
        SweepError: when runs failed twice. The others have been done.
    """
    folder = Path(folder).absolute()
    jobs = available() if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least one is needed")
    wanted = {config.identity(): config for config in configs}
    if not configs or len(wanted) < len(configs):
        raise ConfigError("a sweep needs configurations, each of them once")
    if len({experiment.source(config) for config in configs}) > 1:
        raise ConfigError("the configurations of a sweep are of one data set")
    store.read_all(folder, experiment.schema)  # raises before the folder is made
    with store.lock(folder):
        store.clean(folder)
        found = store.read_all(folder, experiment.schema)
        own = versions(experiment.device)
        any_field = [field.name for field in dataclasses.fields(configs[0])]
        store.check(folder, found, configs, any_field if axes is None else axes, own, purpose or {})
        missing = [config for identity, config in wanted.items() if identity not in found]
        if missing:
            checksum = _check_data(experiment, missing, data_dir, found, notice)
            there = [found[identity] for identity in wanted if identity in found]
            bar = SweepProgress(missing, there, enabled=progress)
            workers: AbstractContextManager[Executor] = (
                Processes(min(jobs, len(missing))) if executor is None else nullcontext(executor)
            )
            data_folder = None if data_dir is None else str(data_dir)
            with bar, workers as pool:

                def begin(config: C) -> Future[RunRecord[C, E, R]]:
                    directory = store.run_directory(folder, config) if checkpoints else None
                    return pool.submit(
                        run_one,
                        experiment,
                        config,
                        data_folder,
                        checksum,
                        own["manifoldnet"],
                        directory,
                    )

                found |= _train(missing, folder, begin, bar, checkpoints, purpose or {})
    return [found[identity] for identity in wanted]


def _check_data(
    experiment: Experiment[C, E, R],
    configs: Sequence[C],
    data_dir: str | Path | None,
    found: Mapping[str, RunRecord[C, E, R]],
    notice: Callable[[str], None] | None,
) -> str:
    """Load the data, and refuse configurations that do not fit them, before any run starts."""
    data = experiment.load(experiment.source(configs[0]), data_dir, notice)
    seen = set()
    for config in configs:
        sizes = experiment.sizes(config)
        if sizes not in seen:
            seen.add(sizes)
            experiment.parts(config, data)
    fingerprint = data.fingerprint()
    for identity, record in found.items():
        if record.data != fingerprint:
            raise RecordError(
                f"the record {identity} was trained on other data than this {data.name!r} "
                f"(checksum {record.data}, now {fingerprint}): use that data, or another folder"
            )
    return fingerprint


def _train(
    configs: Sequence[C],
    folder: Path,
    begin: Callable[[C], Future[RunRecord[C, E, R]]],
    bar: SweepProgress,
    checkpoints: bool,
    purpose: Mapping[str, str],
) -> dict[str, RunRecord[C, E, R]]:
    done: dict[str, RunRecord[C, E, R]] = {}
    failed: dict[str, list[C]] = {}
    pending = {begin(config): (config, 1) for config in configs}
    try:
        while pending:
            timeout = _POLL_SECONDS if checkpoints else None
            for future in wait(pending, timeout=timeout, return_when=FIRST_COMPLETED).done:
                config, attempt = pending.pop(future)
                try:
                    error = future.exception()
                except CancelledError as cancelled:  # not by us: these are still pending
                    raise SweepError(
                        "the workers are gone, with the cluster that they belonged to; finished "
                        "runs are kept, and the same command goes on"
                    ) from cancelled
                if error is None:
                    record = dataclasses.replace(future.result(), sweep=purpose)
                    store.keep(folder, record)
                    done[config.identity()] = record
                    bar.end(record)
                elif attempt < ATTEMPTS and not isinstance(error, ExperimentError):
                    pending[begin(config)] = (config, attempt + 1)
                else:
                    failed.setdefault(f"{type(error).__name__}: {error}", []).append(config)
                    bar.fail(config)
                    if not done and sum(map(len, failed.values())) >= _MAX_INITIAL_FAILURES:
                        raise SweepError(_account(failed, 0, len(configs)))
            if checkpoints:
                for config, _ in pending.values():
                    bar.reach(config, _epochs_in(store.run_directory(folder, config)))
    finally:
        for future in pending:
            future.cancel()
    if failed:
        raise SweepError(_account(failed, len(done), len(configs)))
    return done


def _account(failed: Mapping[str, Sequence[Configuration]], done: int, runs: int) -> str:
    """The reasons why runs failed, the most common one first."""
    reasons = sorted(failed.items(), key=lambda item: -len(item[1]))
    parts = []
    for reason, configs in reasons[:3]:
        more = f" and {len(configs) - 1} more" if len(configs) > 1 else ""
        parts.append(f"{configs[0].label}, seed {configs[0].seed}{more}: {reason}")
    if len(reasons) > 3:
        parts.append(f"{len(reasons) - 3} other reasons")
    count = sum(map(len, failed.values()))
    rest = "the others are done" if count + done == runs else "and none succeeded: stopped there"
    return (
        f"{count} of {runs} runs failed, {rest}; the same command tries them again. "
        + "; ".join(parts)
    )


def run_one(
    experiment: Experiment[C, E, R],
    config: C,
    data_dir: str | None,
    fingerprint: str,
    version: str,
    directory: Path | None = None,
) -> RunRecord[C, E, R]:
    """Train one run in a worker, with the version and the data of the sweep.

    A checkpoint is written after every epoch into ``directory``, if any.
    """
    own = versions()["manifoldnet"]
    if own != version:
        raise ConfigError(
            f"a worker has manifoldnet {own}, the process that started the sweep {version}: "
            "install the same everywhere"
        )
    data = _load(experiment.load, experiment.source(config), data_dir)
    if data.fingerprint() != fingerprint:
        raise DataError(
            f"a worker has other data named {config.dataset!r} than the process that started the "
            f"sweep (checksum {data.fingerprint()}, not {fingerprint})"
        )
    with warnings.catch_warnings():
        # The additive scaled metric: if norms overflow, the record says that the run diverged.
        warnings.simplefilter("ignore", NormGrowthWarning)
        warnings.simplefilter("ignore", ZeroSliceWarning)
        if directory is None:
            return train_whole(experiment, config, data)
        schema = experiment.schema
        left = checkpoint.inspect(directory, config, schema, resume=True, overwrite=False)
        if left is not None and not (
            same_runs(left.versions.get("manifoldnet"), own) and left.data == fingerprint
        ):
            raise RecordError(
                f"{directory} holds this run as manifoldnet {left.versions.get('manifoldnet')} "
                f"began it on data of checksum {left.data}; this is {own}, on {fingerprint}: "
                "delete that directory, or go on with what it was begun with"
            )
        return train_in(experiment, config, directory, data, resume=True)


@lru_cache(maxsize=1)
def _load(load: Callable[..., Data], source: tuple[Any, ...], data_dir: str | None) -> Data:
    return load(source, data_dir, None)


def _epochs_in(directory: Path) -> int:
    """The number of epochs in the record of a run that goes on."""
    try:
        return checkpoint.record_path(directory).read_bytes().count(b'{"kind": "epoch"')
    except OSError:
        return 0
