"""The training loop of every experiment.

    start (seeded) -> [choice of the learning rate]
        -> [ epoch -> checkpoint and record ] until there is a verdict -> result

Numbers depend on the configuration and the data alone: a run that is resumed from a checkpoint
gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments import checkpoint as checkpoints
from manifoldnet.experiments import records
from manifoldnet.experiments.checkpoint import AGAIN, Checkpoint
from manifoldnet.experiments.data import load
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import held
from manifoldnet.experiments.records import C, E, EpochRow, R, RunRecord, Schema, Selection


class Data(Protocol):
    """A data set."""

    @property
    def name(self) -> str:
        """The name by which it was loaded."""

    def fingerprint(self) -> str:
        """A checksum of all of it."""


PROCESSOR = torch.device("cpu")
Notice = Callable[[str], None]
"""Called with a line of text before anything slow."""


class Run(ABC):
    """A network under training: everything that changes from epoch to epoch.

    A subclass sets the attributes in its constructor, from a configuration with a learning rate,
    data, and the device of its network. The first weights are drawn on the processor, so that they
    are the same on all devices.
    """

    row: ClassVar[type[EpochRow]]  # class of the rows that `epoch` returns
    network: nn.Module  # the model
    optimizer: torch.optim.Optimizer  # of the network's parameters
    scheduler: Any = None  # of the learning rate; None keeps it constant
    generator: torch.Generator  # source of all randomness after the start

    @abstractmethod
    def train_pass(self, parts: Any) -> dict[str, Any]:
        """Train one pass over the data; return `train_loss` and other fields of the row."""

    @abstractmethod
    def evaluate(self, number: int, parts: Any, trained: Mapping[str, Any]) -> dict[str, Any]:
        """The other fields of the row after epoch ``number``, given those of `train_pass`."""

    @property
    def stateful(self) -> dict[str, Any]:
        """The parts with a state, by their names in a checkpoint."""
        parts = {"model": self.network, "optimizer": self.optimizer}
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        return parts | {"generator": self.generator}

    def epoch(self, number: int, parts: Any) -> Any:
        """Train one epoch, evaluate, and move the schedule on; return the row of the record."""
        began = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        trained = self.train_pass(parts)
        train_seconds = time.perf_counter() - began
        if math.isfinite(trained["train_loss"]):
            self.move_schedule(trained["train_loss"])
        measured = trained | self.evaluate(number, parts, trained)
        return self.row(
            epoch=number,
            lr=lr,
            **measured,
            violation=max(map(float, mn.violations(self.network).values()), default=0.0),
            train_seconds=train_seconds,
            seconds=time.perf_counter() - began,
        )

    def move_schedule(self, loss: float) -> None:
        """Tell the scheduler that an epoch ended with this mean training loss."""
        if isinstance(self.scheduler, mn.optim.BoldDriver):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()


def load_images(
    source: tuple[Any, ...], data_dir: str | Path | None, notice: Notice | None
) -> Data:
    """The image-classification set ``(name,)`` or ``(name, side)``, as `load` loads it."""
    name, *side = source
    return load(name, data_dir, notice, *side)


def not_finite(last: EpochRow) -> str:
    """The reason why a run ends at an epoch as diverged; empty when it can go on."""
    if math.isfinite(last.train_loss):
        return ""
    return f"the training loss was not finite in epoch {last.epoch}"


def all_epochs(config: object, epochs: Sequence[EpochRow]) -> str:
    """The rule of experiments that train all their epochs."""
    return ""


@dataclass(frozen=True)
class Experiment(Generic[C, E, R]):
    """An experiment as functions of a module, which worker processes can import."""

    schema: Schema[C, E, R]  # of its records
    # Before the first epoch, with a learning rate, on a device.
    start: Callable[[C, Any, torch.device], Run]
    parts: Callable[[C, Any], Any]  # of the data; a ConfigError when they do not fit
    # The fields of the result besides those of `ResultRow`, from the last epoch. A ``reason`` among
    # them makes a run that trained to its end count as diverged.
    outcome: Callable[[C, E], Mapping[str, Any]]
    load: Callable[[tuple[Any, ...], str | Path | None, Notice | None], Data] = load_images
    data_fields: tuple[str, ...] = ("dataset",)  # attributes of the configuration, for `source`
    size_fields: tuple[str, ...] = ("train_size", "validation_size")  # that `parts` depends on
    # The learning rate, where it is not given.
    choose: Callable[[C, Any, Any, torch.device], Selection] | None = None
    fault: Callable[[E], str] = not_finite  # why a run ends as diverged, or ""
    stopping_rule: Callable[[C, Sequence[E]], str] = all_epochs  # that ends a run early, or ""
    resident: bool = True  # all data are on the device; False where runs move each minibatch
    device: str = "cpu"  # on which runs train; part of `versions`, not of a configuration

    def source(self, config: C) -> tuple[Any, ...]:
        """The first argument of `load`."""
        return tuple(getattr(config, name) for name in self.data_fields)

    def sizes(self, config: C) -> tuple[Any, ...]:
        """A key: `parts` accepts either all or none of the configurations that share it."""
        return tuple(getattr(config, name) for name in self.size_fields)

    def verdict(self, config: C, epochs: Sequence[E]) -> R | None:
        """The result of a run, from its epochs alone; None while it has to go on."""
        if not epochs:
            return None
        last, rule = epochs[-1], ""
        reason = self.fault(last)
        if not reason and last.epoch < config.epochs:
            rule = self.stopping_rule(config, epochs)
            if not rule:
                return None
        outcome = {"reason": ""} | dict(self.outcome(config, last))
        outcome["reason"] = reason or outcome["reason"]
        return self.schema.result(
            status="diverged" if outcome["reason"] else "finished",
            epochs=last.epoch,
            seconds=sum(epoch.seconds for epoch in epochs),
            stopped=rule,
            **outcome,
        )


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
    """Train one configuration; write its record and checkpoint after every epoch.

    A killed process loses the epoch it was in. A run that diverges is recorded, which is no error.
    `resume` goes on with the run in `directory`, bit for bit, or begins; `overwrite` removes it.
    `on_epoch` is called after each epoch that is trained, once it is on disk.
    """
    directory = Path(directory)

    def inspect() -> RunRecord[C, E, R] | Checkpoint[C, E] | None:
        return checkpoints.inspect(
            directory, config, experiment.schema, resume=resume, overwrite=overwrite
        )

    found = inspect()
    if isinstance(found, RunRecord):
        return found
    data = data if data is not None else experiment.load(experiment.source(config), data_dir, None)
    parts = experiment.parts(config, data)
    with held(directory):
        found = inspect()  # again: another process may have been here meanwhile
        if isinstance(found, RunRecord):
            return found
        fingerprint = data.fingerprint()
        if found is not None and found.data != fingerprint:
            raise RecordError(
                f"the run in {directory} was trained on other data than this {data.name!r} "
                f"(checksum {found.data}, now {fingerprint}): use that data, or {AGAIN}"
            )
        checkpoints.tidy(directory, clear=found is None)
        if found is None:
            made_with = versions(experiment.device)
            found = Checkpoint(config, made_with, fingerprint, epochs=(), states={})
            records.write(found.record(), checkpoints.record_path(directory))
        state = found
        with limited_threads(config.threads), deterministic(experiment.device):
            for state in _epochs(experiment, config, data, parts, found, directory):
                checkpoints.save(state, directory)
                if on_epoch is not None:
                    on_epoch(state.epochs[-1])
        result = experiment.verdict(config, state.epochs)
        record = dataclasses.replace(state.record(), result=result)
        records.write(record, checkpoints.record_path(directory))
        return record


def train_whole(experiment: Experiment[C, E, R], config: C, data: Data) -> RunRecord[C, E, R]:
    """Train one configuration from start to end without files; the numbers are `train_in`'s."""
    parts = experiment.parts(config, data)
    made_with = versions(experiment.device)
    start = Checkpoint[C, E](config, made_with, data.fingerprint(), epochs=(), states={})
    with limited_threads(config.threads), deterministic(experiment.device):
        *_, last = _epochs(experiment, config, data, parts, start)
    return dataclasses.replace(last.record(), result=experiment.verdict(config, last.epochs))


def _epochs(
    experiment: Experiment[C, E, R],
    config: C,
    data: Data,
    parts: Any,
    found: Checkpoint[C, E],
    directory: Path | None = None,
) -> Iterator[Checkpoint[C, E]]:
    """Train until there is a verdict; yield the state after each epoch.

    Without a `directory` the run is not to be saved, and the state has no weights.
    """
    device, selection = torch.device(experiment.device), found.selection
    parts = moved(parts, device) if experiment.resident else parts
    if selection is None and config.lr is None and experiment.choose is not None:
        selection = experiment.choose(config, data, parts, device)
    decided = config if selection is None else dataclasses.replace(config, lr=selection.lr)
    run = experiment.start(decided, data, device)
    if found.epochs and directory is not None:
        _restore(run, found, directory)
        if experiment.verdict(config, found.epochs) is None:
            _check_weights(run, directory)
    epochs = found.epochs
    while experiment.verdict(config, epochs) is None:
        epochs += (run.epoch(len(epochs) + 1, parts),)
        states = {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in (run.stateful.items() if directory is not None else ())
        }
        yield dataclasses.replace(found, epochs=epochs, states=states, selection=selection)


def moved(parts: Any, device: torch.device) -> Any:
    """Tensors and dataclasses of them on a device; anything else is left as it is."""
    if isinstance(parts, Tensor):
        return parts.to(device)
    if dataclasses.is_dataclass(parts) and not isinstance(parts, type):
        values = {field.name: getattr(parts, field.name) for field in dataclasses.fields(parts)}
        return dataclasses.replace(parts, **{n: moved(v, device) for n, v in values.items()})
    return parts


def _restore(run: Run, found: Checkpoint[Any, Any], directory: Path) -> None:
    try:
        for name, part in run.stateful.items():
            load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            load(found.states[name])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RecordError(
            f"the checkpoint in {directory} does not hold the state of this run "
            f"({type(error).__name__}: {error}): put an intact one there, or {AGAIN}"
        ) from error


def _check_weights(run: Run, directory: Path) -> None:
    """RecordError if the run cannot go on from the weights and buffers of its checkpoint."""
    try:
        for name, tensor in run.network.state_dict().items():
            if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} has values that are not finite")
        mn.verify(run.network)
    except ValueError as error:
        raise RecordError(
            f"{checkpoints.checkpoint_path(directory)} holds weights that training cannot go on "
            f"from ({error}): put an intact copy there, or {AGAIN}"
        ) from error


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Limit torch to `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Give a GPU its reproducible kernels within the block, and float32 in full; else nothing."""
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def versions(device: str = "cpu") -> dict[str, str]:
    """The versions and the machine that decide the numbers besides the configuration."""
    accelerator = f" {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "manifoldnet": mn.__version__,
        "machine": f"{platform.system()} {platform.machine()}{accelerator}",
    }
