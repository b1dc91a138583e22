"""The images of a run, with what is deliberately wrong about some of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldnet.experiments.data import Dataset, Images, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.scale_invariant.config import StageConfig


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run trains on and is judged by.

    Attributes:
        train: images to train on.
        gain: by what each of them is multiplied.
        validation: images that choose; None without any.
        test: images that judge.
        size: channels, height and width.
    """

    train: Images
    gain: Tensor
    validation: Images | None
    test: Images
    size: tuple[int, ...]

    def batch(self, rows: Tensor) -> Tensor:
        """Training images as they are shown: float32, ``(rows, channels, height, width)``."""
        pixels = self.train.vectors(rows)
        if self.gain.ne(1).any():
            pixels *= self.gain[rows, None]
        return pixels.reshape(-1, *self.size)


def make_parts(config: StageConfig, data: Dataset) -> Parts:
    """The images of a configuration.

    Training images are drawn by the seed; what is corrupted as well, and the images that are
    corrupted at a smaller share are among those at a larger one.

    Raises:
        ConfigError: when there are not that many images.
    """
    available = len(data.train_labels)
    held_out = config.validation_size
    count = available - held_out if config.train_size is None else config.train_size
    if count < 1 or count + held_out > available:
        raise ConfigError(
            f"{data.name} has {available} images outside its test set, which does not leave room "
            f"for {count} training and {held_out} validation images: lower train_size or "
            "validation_size"
        )
    order = torch.randperm(available, generator=seeded_generator(config.seed, "split"))
    chosen = order[held_out : held_out + count]
    pixels = data.train_images.flatten(1)
    train_pixels, labels = pixels[chosen], data.train_labels[chosen]
    test = Images(data.test_images.flatten(1), data.test_labels, data.white)
    validation = None
    if held_out:
        rows = order[:held_out]
        validation = Images(pixels[rows], data.train_labels[rows], data.white)
    labels = _with_wrong_labels(labels, len(data.classes), config)
    train_pixels, gain = _with_outliers(train_pixels, data.white, config)
    size = tuple(data.train_images.shape[1:])
    return Parts(Images(train_pixels, labels, data.white), gain, validation, test, size)


def _with_wrong_labels(labels: Tensor, classes: int, config: StageConfig) -> Tensor:
    source = seeded_generator(config.seed, "wrong labels")
    order = torch.randperm(len(labels), generator=source)
    shift = torch.randint(1, classes, (len(labels),), generator=source)
    wrong = order[: round(config.wrong_labels * len(labels))]
    labels = labels.clone()
    labels[wrong] = (labels[wrong] + shift[wrong]) % classes
    return labels


def _with_outliers(pixels: Tensor, white: int, config: StageConfig) -> tuple[Tensor, Tensor]:
    gain = torch.ones(len(pixels))
    source = seeded_generator(config.seed, "outliers")
    order = torch.randperm(len(pixels), generator=source)
    odd = order[: round(config.outliers * len(pixels))]
    gain[odd] = config.outlier_scale
    if config.outlier_kind == "noise" and len(odd):
        shape = (len(odd), pixels.shape[1])
        pixels[odd] = torch.randint(0, white + 1, shape, generator=source, dtype=torch.uint8)
    return pixels, gain
