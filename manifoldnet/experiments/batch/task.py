"""What is solved: the mean cross-entropy of a network on one batch, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manifoldnet.experiments.data import Dataset, seeded_generator, split
from manifoldnet.experiments.papers.symmetry import networks as models

Batch = tuple[Tensor, Tensor]


def batch_of(data: Dataset, size: int) -> Batch:
    """Images as vectors, and their labels: so many of the training set, always the same."""
    images = split(data, 0, size, 1).train
    return images.vectors(torch.arange(len(images))).double(), images.labels


def arch1(data: Dataset, update: str, features: int) -> nn.Module:
    """Arch1 with two layers, at the same start, declared as an update wants it."""
    network = models.build(
        "arch1",
        data.inputs,
        len(data.classes),
        depth=2,
        features=features,
        generator=seeded_generator(0, "start"),
    ).double()
    models.declare(network, update)
    return network


def loss_of(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """A closure that gives the loss."""
    pixels, labels = batch
    return lambda: cross_entropy(model(pixels), labels)
