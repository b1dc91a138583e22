"""One network under training: what changes from epoch to epoch, and how it is judged.

The loss is the cross-entropy *summed* over a minibatch, as in the paper; a learning rate for the
mean would be as many times larger as there are images in a minibatch. A step of these networks
takes about a millisecond, most of it Python, so the loop does no more than it must: no data loader,
and no number leaves its tensor before the epoch is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments.data import Dataset, Images, Split, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.loop import Stateful
from manifoldnet.experiments.papers.symmetry import networks as models
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import Epoch

_EVALUATION_BATCH = 1000


class Run:
    """What changes while a run goes on: network, optimizer, schedule, source of randomness.

    Args:
        config: what is trained; its learning rate is given (not None).
        data: decides the sizes of the network.

    Raises:
        ConfigError: when the learning rate is still to be chosen.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        if config.lr is None:
            raise ConfigError("lr is None, to be chosen by selection.select; a run needs a number")
        self.config = config
        self.network = models.build(
            config.architecture,
            data.inputs,
            len(data.classes),
            depth=config.depth,
            features=config.features,
            generator=seeded_generator(config.seed, "start"),
        )
        models.declare(self.network, config.update)
        self.optimizer: torch.optim.Optimizer = mn.RiemannianSGD(
            self.network.named_parameters(), lr=config.lr, momentum=config.momentum, fused=True
        )
        self.scheduler = _SCHEDULES[config.schedule](self.optimizer, config)
        self.generator = seeded_generator(config.seed, "order")

    @property
    def stateful(self) -> Stateful:
        """See `loop.Run`."""
        return {
            "model": self.network,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "generator": self.generator,
        }

    def epoch(self, number: int, images: Split) -> Epoch:
        """Trains one epoch, evaluates, and moves the schedule on."""
        began = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        loss, train_error = self.train_pass(images.train)
        trained = time.perf_counter()
        if math.isfinite(loss):
            self.move_schedule(loss)
        validation_loss, validation_error = evaluate(self.network, images.validation)
        _, test_error = evaluate(self.network, images.test)
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
            validation_loss=validation_loss,
        )

    def move_schedule(self, loss: float) -> None:
        """Ends an epoch of the given mean training loss for the learning rate."""
        if isinstance(self.scheduler, mn.optim.BoldDriver):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

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
