"""Training for the symmetry paper: a run, the choice of its learning rate, and when it ends.

The loss is the cross-entropy *summed* over a minibatch, as in the paper; a learning rate for the
mean would be as many times larger as there are images in a minibatch.

The base learning rate is chosen as in Section 4 of [badrinarayanan2015symmetry]: every candidate
trains for 50 epochs on 1,000 of the run's training images, and the one with the lowest error on 500
others is used. All candidates have the run's own start, and see the images in the same order. What
the paper leaves open is in the fields ``lr_candidates`` and ``selection_…`` of `TrainConfig`.

A run ends by its configuration and its epochs alone:

    a training loss that is not finite          -> diverged
    the last of ``config.epochs``               -> finished, or diverged if the validation error is
    one of three rules, with the bold driver       above ``config.diverged_above``

The rules are those of Section 4, tested after each epoch from ``config.min_epochs`` on, in this
order:

    (i)   the training error is below ``stop_train_error``
    (ii)  the validation error is above the one ``stop_validation_epochs`` earlier
    (iii) it differs from the one before by less than ``stop_validation_change``

Only the values at the end of that epoch count. With exponential decay the paper names no rule, so
those runs train all their epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, Images, Split, seeded_generator, split
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry import networks
from manifoldnet.experiments.papers.symmetry.config import (
    CLASSIFICATION,
    Epoch,
    Record,
    Result,
    TrainConfig,
)
from manifoldnet.experiments.papers.updates import declare
from manifoldnet.experiments.records import Selection

_EVALUATION_BATCH = 1000


class Run(training.Run):
    """A network of the paper under training.

    A step takes about a millisecond, most of it Python: there is no data loader, and no number
    leaves its tensor before the epoch is over.
    """

    row = Epoch

    def __init__(
        self, config: TrainConfig, data: Dataset, device: torch.device = training.PROCESSOR
    ) -> None:
        if config.lr is None:
            raise ConfigError("lr is None, to be chosen by `select`; a run needs a number")
        self.batch_size = config.batch_size
        self.network = networks.build(
            config.architecture,
            data,
            depth=config.depth,
            features=config.features,
            seed=config.seed,
        ).to(device)
        declare(self.network, config.update)
        self.optimizer = mn.RiemannianSGD(
            self.network.named_parameters(), lr=config.lr, momentum=config.momentum, fused=True
        )
        self.scheduler = schedule(config, self.optimizer)
        self.generator = seeded_generator(config.seed, "order")

    def train_pass(self, parts: Split) -> dict[str, float]:
        """One pass over the training images; their mean loss and error rate as they came up."""
        images = parts.train
        self.network.train()
        order = torch.randperm(len(images), generator=self.generator)
        labels = images.labels[order]
        losses: list[Tensor] = []
        answers: list[Tensor] = []
        batch = self.batch_size
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
        return {"train_loss": total / len(images), "train_error": wrong / len(images)}

    def evaluate(self, number: int, parts: Split, trained: object) -> dict[str, float]:
        """Loss and error rate on the validation images, error rate on the test images."""
        names = ("validation_loss", "validation_error", "test_error")
        scores = (*evaluate(self.network, parts.validation), evaluate(self.network, parts.test)[1])
        return dict(zip(names, scores, strict=True))


def schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> Any:
    """The scheduler of a run."""
    if config.schedule == "exponential":
        return ExponentialLR(optimizer, config.decay)
    return mn.optim.BoldDriver(optimizer, grow=config.grow, shrink=config.shrink)


def evaluate(network: nn.Module, images: Images) -> tuple[float, float]:
    """Mean cross-entropy (nats) and error rate, in [0, 1], of ``network`` on ``images``."""
    network.eval()
    loss, wrong = 0.0, 0
    with torch.no_grad():
        for rows in torch.arange(len(images)).split(_EVALUATION_BATCH):
            scores, labels = network(images.vectors(rows)), images.labels[rows]
            loss += cross_entropy(scores, labels, reduction="sum").item()
            wrong += int((scores.argmax(1) != labels).sum())
    return loss / len(images), wrong / len(images)


def images_for(config: TrainConfig, data: Dataset) -> Split:
    """The images that a run trains and is evaluated on."""
    images = split(data, config.seed, config.train_size, config.validation_size)
    _check_minibatches(config, len(images.train), "train_size")
    if config.lr is None:
        images_of_choice(config, images.train)
    return images


def select(
    config: Any,
    data: Dataset,
    images: Split,
    device: torch.device = training.PROCESSOR,
    start: Callable[[Any, Dataset, torch.device], Run] = Run,
) -> Selection:
    """Choose the learning rate of a run, which depends on its own configuration alone.

    `start` makes the run of a configuration that has a rate.
    """
    began = time.perf_counter()
    parts = images_of_choice(config, images.train)
    errors = tuple(
        _final_error(replace(config, lr=lr), data, parts, device, start)
        for lr in config.lr_candidates
    )
    return Selection(
        candidates=config.lr_candidates,
        errors=errors,
        lr=config.lr_candidates[errors.index(min(errors))],
        seconds=time.perf_counter() - began,
    )


def images_of_choice(config: TrainConfig, training: Images) -> Split:
    """Two random parts of the training images: to train on, and to judge the candidates by."""
    train, judge = config.selection_train_size, config.selection_validation_size
    if train + judge > len(training):
        raise ConfigError(
            f"choosing the learning rate takes {train} and {judge} of the training images, of "
            f"which there are {len(training)}: lower selection_train_size or "
            "selection_validation_size, or give lr a number"
        )
    _check_minibatches(config, train, "selection_train_size")
    order = torch.randperm(len(training), generator=seeded_generator(config.seed, "selection"))
    one, other = (
        Images(training.pixels[rows], training.labels[rows], training.white)
        for rows in (order[:train], order[train : train + judge])
    )
    return Split(train=one, validation=other, test=other)


def _check_minibatches(config: TrainConfig, images: int, remedy: str) -> None:
    """Raise ConfigError when the last minibatch of an epoch cannot be normalized over."""
    if config.architecture == "arch2" and images % config.batch_size == 1:
        raise ConfigError(
            f"{images} training images leave a last minibatch of one, over which "
            f"arch2 cannot normalize: change batch_size or {remedy}"
        )


def _final_error(
    config: TrainConfig,
    data: Dataset,
    parts: Split,
    device: torch.device,
    start: Callable[[Any, Dataset, torch.device], Run],
) -> float:
    run = start(config, data, device)
    for _ in range(config.selection_epochs):
        loss = run.train_pass(parts)["train_loss"]
        if not math.isfinite(loss):
            return 1.0
        if config.selection_schedule == "own":
            run.move_schedule(loss)
    return evaluate(run.network, parts.validation)[1]


def stopping_rule(config: TrainConfig, epochs: Sequence[Epoch]) -> str:
    """The rule that ends a run after these epochs, in words; empty when none does."""
    if config.min_epochs is None or config.schedule != "bold-driver":
        return ""
    if len(epochs) < max(config.min_epochs, 1):
        return ""
    last, back = epochs[-1], config.stop_validation_epochs
    training_error = last.train_loss if config.training_measure == "loss" else last.train_error
    if training_error < config.stop_train_error:
        return f"the training {config.training_measure} fell below {config.stop_train_error:g}"
    name = "validation_error" if config.validation_measure == "error" else "validation_loss"
    measured = [getattr(epoch, name) for epoch in epochs]
    validation = [math.nan if value is None else value for value in measured]  # records of format 1
    if len(epochs) > back and validation[-1] > validation[-1 - back]:
        return f"the validation {config.validation_measure} rose over {back} epochs"
    if len(epochs) > 1 and abs(validation[-1] - validation[-2]) < config.stop_validation_change:
        return (
            f"the validation {config.validation_measure} changed by less than "
            f"{config.stop_validation_change:g}"
        )
    return ""


def outcome(config: TrainConfig, last: Epoch) -> dict[str, Any]:
    """Errors after the last epoch; a reason why the run counts as diverged, if it does."""
    bad = last.validation_error > config.diverged_above
    return {
        "test_error": last.test_error,
        "validation_error": last.validation_error,
        "reason": f"the validation error ended at {last.validation_error:.2f}" if bad else "",
    }


EXPERIMENT: training.Experiment[TrainConfig, Epoch, Result] = training.Experiment(
    schema=CLASSIFICATION,
    start=Run,
    parts=images_for,
    outcome=outcome,
    size_fields=(
        *("architecture", "batch_size", "train_size", "validation_size", "lr"),
        *("selection_train_size", "selection_validation_size"),
    ),
    choose=select,
    stopping_rule=stopping_rule,
)


def train(
    config: TrainConfig, directory: str | Path, data: Dataset | None = None, **options: Any
) -> Record:
    """Train one configuration; write its record and checkpoint after every epoch.

    Options (`data_dir`, `resume`, `overwrite`, `on_epoch`), result and errors are those of
    `manifoldnet.experiments.training.train_in`; `data` is by default what `load` gives for
    ``config.dataset``.
    """
    return training.train_in(EXPERIMENT, config, directory, data, **options)
