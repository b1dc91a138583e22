"""The training loop: one for every data set, architecture, update and schedule.

    start (seeded) -> [ epoch: shuffle, minibatches, evaluate, schedule -> checkpoint and record ] x
    epochs -> result

The loss is the cross-entropy *summed* over a minibatch, as in the paper; a learning rate for the
mean would be as many times larger as there are images in a minibatch. A step of these networks
takes about a millisecond, most of it Python, so the loop does no more than it must: no data loader,
and no number leaves its tensor before the epoch is over.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments import models, records, rundir, sources
from manifoldnet.experiments.config import UPDATES, TrainConfig
from manifoldnet.experiments.data import Dataset, Images, Split, seeded_generator, split
from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.records import Epoch, Record, Result
from manifoldnet.experiments.rundir import Checkpoint

# A run that ends with more than half of the validation images wrong counts as diverged. The paper
# ignores "a small proportion of runs where the validation error diverged" and does not say what
# that means.
DIVERGED_ABOVE = 0.5

_EVALUATION_BATCH = 1000


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
        found = Checkpoint(config, _versions(), fingerprint, epochs=(), states={})
        records.write(found.record(), rundir.record_path(directory))
    elif found.data != fingerprint:
        raise RecordError(
            f"the run in {directory} was trained on other data than this {data.name!r} (checksum "
            f"{found.data}, "
            f"now {fingerprint}): use that data, or train the run again with --overwrite"
        )
    with limited_threads(config.threads):
        run = Run(config, data)
        if found.epochs:
            _restore(run, found, directory)
        epochs = found.epochs
        while _verdict(config, epochs) is None:
            epochs += (run.epoch(len(epochs) + 1, images),)
            found = dataclasses.replace(found, epochs=epochs, states=run.state_dict())
            rundir.save(found, directory)
            if on_epoch is not None:
                on_epoch(epochs[-1])
    record = dataclasses.replace(found.record(), result=_verdict(config, epochs))
    records.write(record, rundir.record_path(directory))
    return record


def images_for(config: TrainConfig, data: Dataset) -> Split:
    """The images that a configuration trains and is judged on.

    Raises:
        ConfigError: when there are not that many, or they leave a minibatch that cannot be used.
    """
    images = split(data, config.seed, config.train_size, config.validation_size)
    if config.architecture == "arch2" and len(images.train) % config.batch_size == 1:
        raise ConfigError(
            f"{len(images.train)} training images leave a last minibatch of one, over which "
            "arch2 cannot normalize: change batch_size or train_size"
        )
    return images


def _restore(run: Run, checkpoint: Checkpoint, directory: Path) -> None:
    try:
        run.load_state_dict(checkpoint.states)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RecordError(
            f"the checkpoint in {directory} does not hold the state of this run "
            f"({type(error).__name__}: {error}): put an intact one there, or train the run again "
            "with --overwrite"
        ) from error


class Run:
    """What changes while a run goes on: network, optimizer, schedule, source of randomness."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config = config
        self.network = models.build(
            config.architecture,
            data.inputs,
            len(data.classes),
            depth=config.depth,
            features=config.features,
            generator=seeded_generator(config.seed, "start"),
        )
        update = UPDATES[config.update]
        if update.rule is not None:
            rule = getattr(mn.rules, update.rule)
            mn.declare_all(self.network, rule(classifier="head", **update.options))
        self.optimizer: torch.optim.Optimizer = mn.RiemannianSGD(
            mn.param_groups(self.network), lr=config.lr, momentum=config.momentum
        )
        self.scheduler = _SCHEDULES[config.schedule](self.optimizer, config)
        self.generator = seeded_generator(config.seed, "order")

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in tensors and plain types."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Takes up where `state_dict` was called."""
        self.network.load_state_dict(states["model"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])
        self.generator.set_state(states["generator"])

    def epoch(self, number: int, images: Split) -> Epoch:
        """Trains one epoch, evaluates, and moves the schedule on."""
        began = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        loss, train_error = self.train_pass(images.train)
        trained = time.perf_counter()
        if math.isfinite(loss):
            if isinstance(self.scheduler, mn.optim.BoldDriver):
                self.scheduler.step(loss)
            else:
                self.scheduler.step()
        validation_error = error_rate(self.network, images.validation)
        test_error = error_rate(self.network, images.test)
        return Epoch(
            epoch=number,
            lr=lr,
            train_loss=loss,
            train_error=train_error,
            validation_error=validation_error,
            test_error=test_error,
            violation=max(map(float, mn.violations(self.network).values()), default=0.0),
            train_seconds=trained - began,
            seconds=time.perf_counter() - began,
        )

    def train_pass(self, images: Images) -> tuple[float, float]:
        """One pass over the training images; their mean loss and error rate as they came up."""
        self.network.train()
        order = torch.randperm(len(images), generator=self.generator)
        labels = images.labels[order]
        losses: list[Tensor] = []
        answers: list[Tensor] = []
        batch = self.config.batch_size
        for rows, targets in zip(order.split(batch), labels.split(batch), strict=True):
            self.optimizer.zero_grad()
            scores = self.network(images.vectors(rows))
            loss = cross_entropy(scores, targets, reduction="sum")
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            answers.append(scores.detach().argmax(1))
        total = torch.stack(losses).double().sum().item()
        wrong = int((torch.cat(answers) != labels).sum())
        return total / len(images), wrong / len(images)


# How a schedule is made. The bold driver is told the epoch's mean training loss, the exponential
# one nothing.
_SCHEDULES: dict[str, Callable[[Any, TrainConfig], Any]] = {
    "exponential": lambda optimizer, config: ExponentialLR(optimizer, config.decay),
    "bold-driver": lambda optimizer, config: mn.optim.BoldDriver(
        optimizer, grow=config.grow, shrink=config.shrink
    ),
}


def error_rate(network: nn.Module, images: Images) -> float:
    """The part of ``images`` that ``network`` puts into a wrong class, in [0, 1]."""
    network.eval()
    wrong = 0
    with torch.no_grad():
        for rows in torch.arange(len(images)).split(_EVALUATION_BATCH):
            wrong += int((network(images.vectors(rows)).argmax(1) != images.labels[rows]).sum())
    return wrong / len(images)


def _verdict(config: TrainConfig, epochs: Sequence[Epoch]) -> Result | None:
    """The result of a run, from its epochs alone; None while it has to go on."""
    if not epochs:
        return None
    last = epochs[-1]
    if not math.isfinite(last.train_loss):
        reason = f"the training loss was not finite in epoch {last.epoch}"
    elif last.epoch < config.epochs:
        return None
    elif last.validation_error > DIVERGED_ABOVE:
        reason = f"the validation error ended at {last.validation_error:.2f}"
    else:
        reason = ""
    return Result(
        status="diverged" if reason else "finished",
        reason=reason,
        epochs=last.epoch,
        test_error=last.test_error,
        validation_error=last.validation_error,
        seconds=sum(epoch.seconds for epoch in epochs),
    )


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Within the block torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "manifoldnet": mn.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
