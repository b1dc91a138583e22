"""The training loop: one for every experiment, data set, network, update and schedule.

start (seeded) -> [choice of the learning rate] -> [ epoch -> checkpoint and record ] until there is
a verdict -> result

An `Experiment` says what each of these words means.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments import records, rundir
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.records import C, E, Kind, R, RunRecord, Selection
from manifoldnet.experiments.rundir import Checkpoint


class Data(Protocol):
    """A data set."""

    @property
    def name(self) -> str:
        """What it was asked for by."""

    def fingerprint(self) -> str:
        """A checksum of all of it, by which a run knows its data again."""


Stateful = Mapping[str, Any]
"""What has a `state_dict`, and torch generators."""


class Run(Protocol):
    """What changes while a run goes on: network, optimizer, schedule, source of randomness."""

    def epoch(self, number: int, parts: Any) -> Any:
        """Trains one epoch and evaluates it; gives the row of the record."""

    @property
    def stateful(self) -> Stateful:
        """What a resumed run needs the state of, by its name in the checkpoint."""


Notice = Callable[[str], None]
"""Is called with a line of text before anything slow."""


@dataclass(frozen=True)
class Experiment(Generic[C, E, R]):
    """What the loop asks of an experiment: functions of a module, so that workers know them too.

    Attributes:
        kind: of its records.
        source: what decides which data a configuration needs, as the arguments of `load`.
        load: loads them, from a data folder if one is given.
        parts: what a run trains on and is judged by; a ConfigError when the data do not fit.
        sizes: what `parts` depends on besides the seed, for checking many configurations at once.
        start: a run before its first epoch; its configuration names a learning rate.
        verdict: the result, from the epochs so far alone; None while the run has to go on.
        choose: the choice of the learning rate, for configurations that leave it open.
    """

    kind: Kind[C, E, R]
    source: Callable[[C], tuple[Any, ...]]
    load: Callable[[tuple[Any, ...], str | Path | None, Notice | None], Data]
    parts: Callable[[C, Any], Any]
    sizes: Callable[[C], tuple[Any, ...]]
    start: Callable[[C, Any], Run]
    verdict: Callable[[C, Sequence[E]], R | None]
    choose: Callable[[C, Any, Any], Selection] | None = None


def train_in(
    experiment: Experiment[C, E, R],
    config: C,
    directory: str | Path,
    data: Data | None = None,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[E], None] | None = None,
) -> RunRecord[C, E, R]:
    """Trains one configuration, and keeps its record and checkpoint after every epoch.

    A process that is killed loses the epoch it was in. A run whose loss stops being finite ends
    there; it is recorded as diverged and not an error.

    Args:
        experiment: what the configuration is of.
        config: what to train.
        directory: where the run's two files go.
        data: the data set, when it is loaded already.
        data_dir: the folder of data sets, for loading.
        resume: go on with the run in `directory`, bit for bit; begin when there is none.
        overwrite: remove the run in `directory`, if any, and begin.
        on_epoch: called after each epoch that is trained, once it is on disk.

    Returns:
        The whole record, also when the run had ended before.

    Raises:
        ConfigError: when the data do not fit the configuration.
        DataError: when the data cannot be loaded.
        RecordError: when `directory` cannot be used (`rundir.inspect`), another process trains in
            it, its run was of other data, or its weights are not finite or off their manifolds.
    """
    directory = Path(directory)
    found = rundir.inspect(directory, config, experiment.kind, resume=resume, overwrite=overwrite)
    if isinstance(found, RunRecord):
        return found
    data = data if data is not None else experiment.load(experiment.source(config), data_dir, None)
    parts = experiment.parts(config, data)
    with rundir.held(directory):
        # Again: another process may have been here meanwhile.
        found = rundir.inspect(
            directory, config, experiment.kind, resume=resume, overwrite=overwrite
        )
        if isinstance(found, RunRecord):
            return found
        return _train_in(experiment, config, directory, data, parts, found, on_epoch)


def _train_in(
    experiment: Experiment[C, E, R],
    config: C,
    directory: Path,
    data: Data,
    parts: Any,
    found: Checkpoint[C, E] | None,
    on_epoch: Callable[[E], None] | None,
) -> RunRecord[C, E, R]:
    """The training of `train_in`, in a directory that is held."""
    fingerprint = data.fingerprint()
    if found is None:
        rundir.clear(directory)
        found = Checkpoint(config, versions(), fingerprint, epochs=(), states={})
        records.write(found.record(), rundir.record_path(directory))
    elif found.data != fingerprint:
        raise RecordError(
            f"the run in {directory} was trained on other data than this {data.name!r} (checksum "
            f"{found.data}, "
            f"now {fingerprint}): use that data, or train the run again with --overwrite, or "
            "delete its directory"
        )
    else:
        rundir.tidy(directory)
    with limited_threads(config.threads):
        if found.selection is None:
            found = dataclasses.replace(found, selection=_choice(experiment, config, data, parts))
        run = experiment.start(_decided(config, found.selection), data)
        if found.epochs:
            _restore(run, found, directory)
            if experiment.verdict(config, found.epochs) is None:
                _check_weights(run, directory)
        epochs = found.epochs
        while experiment.verdict(config, epochs) is None:
            epochs += (run.epoch(len(epochs) + 1, parts),)
            found = dataclasses.replace(found, epochs=epochs, states=_states(run))
            rundir.save(found, directory)
            if on_epoch is not None:
                on_epoch(epochs[-1])
    record = dataclasses.replace(found.record(), result=experiment.verdict(config, epochs))
    records.write(record, rundir.record_path(directory))
    return record


def train_whole(experiment: Experiment[C, E, R], config: C, data: Data) -> RunRecord[C, E, R]:
    """Trains one configuration from start to end, and leaves nothing on disk.

    The numbers are those of `train_in`.

    Raises:
        ConfigError: when the data do not fit the configuration.
    """
    parts = experiment.parts(config, data)
    epochs: tuple[E, ...] = ()
    with limited_threads(config.threads):
        selection = _choice(experiment, config, data, parts)
        run = experiment.start(_decided(config, selection), data)
        while (result := experiment.verdict(config, epochs)) is None:
            epochs += (run.epoch(len(epochs) + 1, parts),)
    return RunRecord(config, versions(), data.fingerprint(), epochs, result, selection)


def _choice(experiment: Experiment[C, E, R], config: C, data: Data, parts: Any) -> Selection | None:
    if config.lr is not None or experiment.choose is None:
        return None
    return experiment.choose(config, data, parts)


def _decided(config: C, selection: Selection | None) -> C:
    return config if selection is None else dataclasses.replace(config, lr=selection.lr)


def _states(run: Run) -> dict[str, Any]:
    return {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in run.stateful.items()
    }


def _restore(run: Run, checkpoint: Checkpoint[C, E], directory: Path) -> None:
    try:
        for name, part in run.stateful.items():
            load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            load(checkpoint.states[name])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RecordError(
            f"the checkpoint in {directory} does not hold the state of this run "
            f"({type(error).__name__}: {error}): put an intact one there, or train the run again "
            "with --overwrite, or delete its directory"
        ) from error


def _check_weights(run: Run, directory: Path) -> None:
    """RecordError if the run cannot go on from the weights and buffers of its checkpoint."""
    models = [part for part in run.stateful.values() if isinstance(part, nn.Module)]
    try:
        for model in models:
            for name, tensor in model.state_dict().items():
                if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
                    raise ValueError(f"{name} has values that are not finite")
            mn.verify(model)
    except ValueError as error:
        raise RecordError(
            f"{rundir.checkpoint_path(directory)} holds weights that training cannot go on from "
            f"({error}): put an intact copy there, or train the run again with --overwrite, or "
            "delete its directory"
        ) from error


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Within the block torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions() -> dict[str, str]:
    """What decides the numbers besides the configuration, for the record."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "manifoldnet": mn.__version__,
        "machine": f"{platform.system()} {platform.machine()}{_accelerator()}",
    }


def _accelerator() -> str:
    return f" {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
