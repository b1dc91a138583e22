"""Image sets as frozen values of tensors: loading by name, and a run's part of a set.

    load -> digits: scikit-learn's 8x8 digits, embedded, with a fixed test set; no download
         -> any other name: Hugging Face `datasets` (`hub`), decoded once, kept on disk (`cached`)

"No input pre-processing is performed" in the paper is read as: pixels as floats in [0, 1],
rasterized to vectors, with no centring, whitening or augmentation.

Decoded images are in the folder `MANIFOLDNET_CACHE`, and may be deleted at any time. The name of a
file carries the identity of the source (`Source.key`), so a folder whose files have changed gets a
new one; a hub repository is taken to stay as it is.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from manifoldnet.cache import cache_folder
from manifoldnet.experiments import hub
from manifoldnet.experiments.errors import ConfigError, DataError, importing
from manifoldnet.experiments.files import replacing

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, with the test images set apart."""

    name: str  # what it was asked for by
    train_images: Tensor  # uint8, ``(images, channels, height, width)``
    train_labels: Tensor  # int64, ``(images,)``, in ``0 … len(classes) - 1``
    test_images: Tensor  # as `train_images`
    test_labels: Tensor  # as `train_labels`
    classes: tuple[str, ...]  # names of the classes
    white: int = 255  # the pixel value that stands for 1.0

    @property
    def inputs(self) -> int:
        """Pixels of an image, all channels: the length of a rasterized one."""
        return self.train_images[0].numel()

    def fingerprint(self) -> str:
        """A checksum (CRC-32) of every pixel and label, compared when a run is resumed."""
        checksum = 0
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
        return f"{checksum:08x}"


@dataclass(frozen=True, eq=False)
class Images:
    """Rasterized images and their labels, as the training loop wants them."""

    pixels: Tensor  # uint8, ``(images, inputs)``
    labels: Tensor  # int64, ``(images,)``
    white: int  # the pixel value that stands for 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def vectors(self, rows: Tensor) -> Tensor:
        """The images that the int64 tensor ``rows`` lists, as float32 vectors in [0, 1]."""
        pixels = self.pixels.index_select(0, rows.to(self.pixels.device))
        return pixels.float().div_(self.white)


@dataclass(frozen=True)
class Split:
    """The images of one run: for training, for choices, and for the reported error."""

    train: Images
    validation: Images
    test: Images


def split(
    data: Dataset, seed: int, train_size: int | None = None, validation_size: int | None = None
) -> Split:
    """Split the training images at random, by ``seed`` alone.

    Validation images are a sixth by default (10,000 of MNIST's 60,000, as in the paper), training
    images the rest.
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
    """A random generator for one purpose, whose numbers do not depend on draws for others."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    notice: Callable[[str], None] | None = None,
    side: int | None = None,
) -> Dataset:
    """Load a data set by its name.

    Args:
        name: ``"digits"``; or the name of a folder in `data_dir`; or, without a `data_dir`, a set
            of the Hugging Face hub (``"mnist"`` and ``"cifar10"`` for short, ``"owner/name"`` for
            any other).
        data_dir: a folder of Hugging Face data sets, one folder each; by default what the
            environment variable MANIFOLDNET_DATA names.
        notice: called with a line of text before anything slow.
        side: makes all images squares of this side (`hub.squared`).

    Raises:
        DataError: when it is missing, lacks a split or a column, or cannot be decoded.
        MissingExtraError: when the package that reads it is not installed.
    """
    if name == "digits":
        return load_digits(side)
    variant = "" if side is None else f"-square{side}"
    source = hub.find(name, data_dir)
    return cached(source, Dataset, lambda it: Dataset(*hub.read(it, side)), notice, variant)


def load_digits(side: int | None = None) -> Dataset:
    """Scikit-learn's 1,797 digits of 8x8 pixels (0 … 16); the same fifth is always the test set."""
    with importing("scikit-learn", "the data set 'digits'"):
        from sklearn.datasets import load_digits as read
    bunch = read()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    if side is not None:
        before = (side - images.shape[-1]) // 2
        after = side - images.shape[-1] - before
        images = nn.functional.pad(images, (before, after, before, after))
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=seeded_generator(0, "digits"))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(name) for name in bunch.target_names),
        white=16,
    )


class _Data(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fingerprint(self) -> str: ...


D = TypeVar("D", bound=_Data)


def cache_path(source: hub.Source, variant: str = "") -> Path:
    """The file of the decoded tensors of a source."""
    return cache_folder() / f"{source.key()}{variant}.pt"


def cached(
    source: hub.Source,
    cls: type[D],
    read: Callable[[hub.Source], D],
    notice: Callable[[str], None] | None = None,
    variant: str = "",
) -> D:
    """The data set of ``source``: read from the cache, or else decoded and cached.

    `variant` tells what `read` makes of the source, where there are several ways.
    """
    path = cache_path(source, variant)
    if path.exists():
        return _restore(path, cls)
    if notice is not None:
        notice(f"decoding {source.name} once from {source.location} (kept in {path})")
    data = read(source)
    _save(data, path)
    return data


def _save(data: _Data, path: Path) -> None:
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    content = {
        "format": _FORMAT,
        "fingerprint": data.fingerprint(),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()},
    }
    try:
        with replacing(path) as stream:
            torch.save(content, stream)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {path} ({error}): make room there, or set "
            "MANIFOLDNET_CACHE to another folder"
        ) from error


def _restore(path: Path, cls: type[D]) -> D:
    remedy = "delete that file, and it will be made again from its source"
    try:
        content = torch.load(path, weights_only=True)
        version = content.pop("format")
        fingerprint = content.pop("fingerprint")
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        data = cls(**fields)
    except Exception as error:  # torch, pickle, zip, a missing key: they all mean the same here
        raise DataError(
            f"the data cache {path} is damaged ({type(error).__name__}): {remedy}"
        ) from error
    if version != _FORMAT:
        raise DataError(
            f"the data cache {path} has format {version}, this is format {_FORMAT}: {remedy}"
        )
    if data.fingerprint() != fingerprint:
        raise DataError(f"the data cache {path} is damaged (its checksum differs): {remedy}")
    return data
