"""Images for the experiments as frozen values of tensors: a whole set, and a run's part of it.

"No input pre-processing is performed" in the paper is read as: pixels as floats in [0, 1],
rasterized to vectors, with no centring, whitening or augmentation. Images stay uint8 in memory and
are scaled minibatch by minibatch, in a quarter of the memory.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldnet.experiments.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, with the test images set apart.

    Attributes:
        name: what it was asked for by.
        train_images: uint8, ``(images, channels, height, width)``.
        train_labels: int64, ``(images,)``, in ``0 … len(classes) - 1``.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        classes: names of the classes.
        white: the pixel value that stands for 1.0.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    white: int = 255

    @property
    def inputs(self) -> int:
        """Pixels of an image, all channels: the length of a rasterized one."""
        return self.train_images[0].numel()

    def fingerprint(self) -> str:
        """A checksum of every pixel and label (CRC-32), by which a run knows its data again."""
        checksum = 0
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
        return f"{checksum:08x}"


@dataclass(frozen=True, eq=False)
class Images:
    """Rasterized images and their labels, as the training loop wants them.

    Attributes:
        pixels: uint8, ``(images, inputs)``.
        labels: int64, ``(images,)``.
        white: the pixel value that stands for 1.0.
    """

    pixels: Tensor
    labels: Tensor
    white: int

    def __len__(self) -> int:
        return len(self.labels)

    def vectors(self, rows: Tensor) -> Tensor:
        """The images that the int64 tensor ``rows`` lists, as float32 vectors in [0, 1]."""
        return self.pixels.index_select(0, rows).float().div_(self.white)


@dataclass(frozen=True)
class Split:
    """What one run trains on, chooses by, and reports."""

    train: Images
    validation: Images
    test: Images


def split(
    data: Dataset, seed: int, train_size: int | None = None, validation_size: int | None = None
) -> Split:
    """Splits the training images at random into training and validation images.

    Args:
        data: the images; its test images are left as they are.
        seed: decides the split; the same seed gives the same one everywhere.
        train_size: training images; by default all that the validation images leave.
        validation_size: validation images; by default a sixth (10,000 of MNIST's 60,000, as in the
            paper).

    Raises:
        ConfigError: when there are not that many images.
    """
    available = len(data.train_labels)
    validation = available // 6 if validation_size is None else validation_size
    train = available - validation if train_size is None else train_size
    if train < 1 or validation < 1 or train + validation > available:
        raise ConfigError(
            f"{data.name} has {available} images outside its test set, which does not leave room "
            f"for {train} training and {validation} validation images: lower train_size or "
            "validation_size"
        )
    order = torch.randperm(available, generator=seeded_generator(seed, "split"))
    pixels, labels = data.train_images.flatten(1), data.train_labels

    def select(rows: Tensor) -> Images:
        return Images(pixels[rows], labels[rows], data.white)

    return Split(
        train=select(order[validation : validation + train]),
        validation=select(order[:validation]),
        test=Images(data.test_images.flatten(1), data.test_labels, data.white),
    )


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A random generator of its own for each purpose, so that no draw moves another one's."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
