"""Street scenes with a class for every pixel, as tensors of one size.

A set is a folder of parquet files with the splits `train`, `validation` and `test`; in each a
column `image` (RGB) and a column `mask` (8-bit gray, the number of a class at each pixel). Images
are reduced with a triangle filter as wide as the reduction, masks by taking the nearest pixel, and
both are kept so on disk (`cache`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldnet.experiments import cache, hub, sources
from manifoldnet.experiments.errors import DataError

SPLITS = ("train", "validation", "test")

CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "camvid": (
            *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence"),
            *("car", "pedestrian", "bicyclist"),
        )
    }
)
"""Names of the classes of the sets that are known; one number more is void."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images and masks, in three parts.

    Attributes:
        name: what the set was asked for by.
        classes: names of the classes; the number after the last is void.
        train_images: uint8, ``(images, 3, height, width)``.
        train_masks: uint8, ``(images, height, width)``.
        validation_images: as `train_images`, and so on.
        validation_masks: as `train_masks`, and so on.
        test_images: as above.
        test_masks: as above.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_masks: Tensor
    validation_images: Tensor
    validation_masks: Tensor
    test_images: Tensor
    test_masks: Tensor

    def fingerprint(self) -> str:
        """A checksum of every pixel (CRC-32), by which a run knows its data again."""
        checksum = 0
        for split in SPLITS:
            for tensor in self.part(split):
                checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
        return f"{checksum:08x}"

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and masks of one of `SPLITS`."""
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_masks")


def load(source: tuple[Any, ...], data_dir: Any = None, notice: Any = None) -> Scenes:
    """Loads a set in some size.

    Args:
        source: its name (a key of `CLASSES`), height and width.
        data_dir: a folder of Hugging Face data sets, one folder each; by default what the
            environment variable MANIFOLDNET_DATA names.
        notice: called with a line of text before anything slow.

    Raises:
        DataError: when it is unknown, missing, lacks a split or a column, holds images of different
            sizes or a mask that does not fit.
        MissingExtraError: when the package that reads it is not installed.
    """
    name, height, width = source
    if name not in CLASSES:
        raise DataError(
            f"the classes of {name!r} are not known, only those of {', '.join(CLASSES)}: add them "
            "to manifoldnet.experiments.papers.segnet.images.CLASSES"
        )
    return cache.load(
        sources.find(name, data_dir),
        Scenes,
        partial(read, height=height, width=width),
        notice or (lambda line: None),
        variant=f"-{height}x{width}",
    )


def read(source: hub.Source, height: int, width: int) -> Scenes:
    """Reads, decodes and reduces a whole set; errors are those of `load`."""
    classes = CLASSES[source.name]
    splits = hub.open_splits(source, SPLITS)
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for name, split in splits.items():
        where = f"{source.location}, split {name!r}"
        images, masks = _decode(split, where, len(classes), (width, height), sizes)
        tensors |= {f"{name}_images": images, f"{name}_masks": masks}
    return Scenes(source.name, classes, **tensors)


def _decode(
    split: Any, where: str, void: int, size: tuple[int, int], sizes: dict[str, tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Decodes a split; the size of its images goes into ``sizes``, and is that of the others."""
    images, masks = [], []
    pairs = zip(
        hub.encoded(split, ("image",), where), hub.encoded(split, ("mask",), where), strict=True
    )
    for index, (image, mask) in enumerate(pairs):
        row = f"{where}, row {index}"
        pixels = hub.decode(image, row, {"RGB": "RGB"})
        labels = hub.decode(mask, f"{row}, mask", {"L": "L", "P": "P"})[..., 0]
        place, found = next(iter(sizes.items()), (where, pixels.shape[:2]))
        sizes.setdefault(where, found)
        for what, shape in (("image", pixels.shape[:2]), ("mask", labels.shape)):
            if shape != found:
                raise DataError(
                    f"{row}: the {what} is {shape[0]}x{shape[1]} (height x width), row 0 of "
                    f"{place} {found[0]}x{found[1]}; they must agree: resize them first"
                )
        if labels.max() > void:
            raise DataError(
                f"{row}: the mask holds the number {labels.max()}, but there are {void} classes "
                f"from 0, and {void} for void"
            )
        if labels.min() == void:
            raise DataError(
                f"{row}: every pixel of the mask is void, so there is nothing to learn from it: "
                "leave the row out"
            )
        if tuple(found) != size[::-1]:
            from PIL import Image  # that it is there, `hub.decode` has seen

            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
            labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        masks.append(torch.from_numpy(labels.copy()))
    return torch.stack(images), torch.stack(masks)
