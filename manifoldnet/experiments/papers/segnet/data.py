"""Road scenes with a class for every pixel: loading, class weights, augmentation.

A set is a folder of parquet files with the splits `train`, `validation` and `test`; in each a
column `image` (RGB) and a column `mask` (8-bit gray, the number of a class at each pixel). A column
`name` says by what stands before its first ``_`` which sequence a frame is of. Images
are reduced with a triangle filter as wide as the reduction, masks by taking the nearest pixel, and
both are kept so on disk (`cache`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from manifoldnet.experiments import hub
from manifoldnet.experiments.data import cached
from manifoldnet.experiments.errors import ConfigError, DataError
from manifoldnet.experiments.papers.segnet.config import CLASSES, SegmentationConfig

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images and masks in three parts, as uint8; the number after the last class is void.

    Images are ``(images, 3, height, width)``, masks ``(images, height, width)``. Sequences are
    those of the images, empty where they have no names.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_masks: Tensor
    validation_images: Tensor
    validation_masks: Tensor
    test_images: Tensor
    test_masks: Tensor
    train_sequences: tuple[str, ...] = ()
    validation_sequences: tuple[str, ...] = ()
    test_sequences: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A checksum of every pixel (CRC-32), which identifies the data of a run."""
        checksum = 0
        for split in SPLITS:
            for tensor in self.part(split):
                checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
        return f"{checksum:08x}"

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and masks of one of `SPLITS`."""
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_masks")

    def sequences(self, split: str) -> tuple[str, ...]:
        """The sequence of each image of one of `SPLITS`."""
        found: tuple[str, ...] = getattr(self, f"{split}_sequences")
        return found


def parts(config: SegmentationConfig, data: Scenes) -> Scenes:
    """The images that a run trains on, those that it is judged by, and the test images.

    Raises:
        ConfigError: for sequences that the training images do not have, or when none are left.
    """
    known = dict.fromkeys(data.sequences("train"))
    if unknown := [name for name in config.held_out if name not in known]:
        raise ConfigError(
            f"held_out names {', '.join(unknown)}; {data.name} has training images of "
            f"{', '.join(known) or 'no sequences, as its images have no names'}"
        )
    for split in SPLITS:
        if len(data.part(split)[0]) == 0:
            raise ConfigError(f"{data.name}: there are no {split} images")
    if not config.held_out and config.train_images is None:
        return data
    named = data.sequences("train") or ("",) * len(data.train_images)
    rows = torch.tensor([i for i, name in enumerate(named) if name not in config.held_out])
    count = len(rows) if config.train_images is None else config.train_images
    if not 0 < count <= len(rows):
        raise ConfigError(
            f"train_images is {config.train_images}; without {', '.join(config.held_out) or 'any'} "
            f"there are {len(rows)} training images"
        )
    rows = rows[torch.arange(count) * len(rows) // count]
    changed: dict[str, Any] = {
        "train_images": data.train_images[rows],
        "train_masks": data.train_masks[rows],
        "train_sequences": tuple(named[i] for i in rows),
    }
    if config.held_out:
        outside = {
            split: [i for i, n in enumerate(data.sequences(split)) if n in config.held_out]
            for split in ("train", "validation")
        }
        for kind in ("images", "masks"):
            every = [getattr(data, f"{split}_{kind}")[own] for split, own in outside.items()]
            changed[f"validation_{kind}"] = torch.cat(every)
        changed["validation_sequences"] = tuple(
            data.sequences(split)[i] for split, own in outside.items() for i in own
        )
    return replace(data, **changed)


def load(source: tuple[Any, ...], data_dir: Any = None, notice: Any = None) -> Scenes:
    """Load a set by its name (a key of `CLASSES`), height and width."""
    name, height, width = source
    if name not in CLASSES:
        raise DataError(
            f"the classes of {name!r} are not known, only those of {', '.join(CLASSES)}: add them "
            "to manifoldnet.experiments.papers.segnet.config.CLASSES"
        )
    return cached(
        hub.find(name, data_dir),
        Scenes,
        partial(read, height=height, width=width),
        notice or (lambda line: None),
        variant=f"-{height}x{width}-named",
    )


def read(source: hub.Source, height: int, width: int) -> Scenes:
    """Read, decode and reduce a whole set; errors are those of `load`."""
    classes = CLASSES[source.name]
    fields: dict[str, Any] = {}
    first: tuple[str, tuple[int, ...]] | None = None  # where the first image is, and its size
    for name, split in hub.open_splits(source, SPLITS).items():
        where = f"{source.location}, split {name!r}"
        encoded = (hub.encoded(split, (column,), where) for column in ("image", "mask"))
        images, masks = [], []
        for index, (image, mask) in enumerate(zip(*encoded, strict=True)):
            row = f"{where}, row {index}"
            pixels = hub.decode(image, row, {"RGB": "RGB"})
            labels = hub.decode(mask, f"{row}, mask", {"L": "L", "P": "P"})[..., 0]
            first = first or (where, pixels.shape[:2])
            _check(row, pixels, labels, first, len(classes))
            if labels.shape != (height, width):
                from PIL import Image  # `hub.decode` has seen that it is installed

                size = width, height
                pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
                labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
            images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
            masks.append(torch.from_numpy(labels.copy()))
        fields |= {f"{name}_images": torch.stack(images), f"{name}_masks": torch.stack(masks)}
        named = split["name"] if "name" in split.column_names else []
        fields[f"{name}_sequences"] = tuple(str(each).partition("_")[0] for each in named)
    return Scenes(source.name, classes, **fields)


def _check(row: str, pixels: Any, labels: Any, first: tuple[str, Any], void: int) -> None:
    """DataError for an image or a mask that does not fit; ``first`` names a place and a size."""
    place, size = first
    for what, shape in (("image", pixels.shape[:2]), ("mask", labels.shape)):
        if shape != size:
            raise DataError(
                f"{row}: the {what} is {shape[0]}x{shape[1]} (height x width), row 0 of "
                f"{place} {size[0]}x{size[1]}; they must agree: resize them first"
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


def class_weights(data: Scenes) -> Tensor:
    """Median-frequency weights of the classes on the training masks; see `SegmentationConfig`.

    A class that no mask holds weighs 1: it is in no loss.
    """
    masks = data.train_masks.flatten(1).long()
    classes = len(data.classes)
    counts = torch.stack([torch.bincount(m, minlength=classes + 1) for m in masks])[:, :classes]
    pixels = (counts > 0).sum(0) * masks.shape[1]
    frequency = counts.sum(0) / pixels  # 0/0 is NaN: a class of no image
    weights = frequency.nanmedian() / frequency
    return torch.where(weights.isnan(), 1.0, weights).float()


def augment(
    pictures: Tensor, masks: Tensor, config: SegmentationConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augment a minibatch of images and masks, in place, as `SegmentationConfig` says."""
    count = len(pictures)
    if config.mirror:
        mirrored = torch.rand(count, generator=generator) < 0.5
        pictures[mirrored], masks[mirrored] = pictures[mirrored].flip(-1), masks[mirrored].flip(-1)
    if config.zoom > 1:
        for i, (cut, by, down, right) in enumerate(torch.rand(count, 4, generator=generator)):
            if cut < 0.5:
                factor = 1 + (config.zoom - 1) * by
                pictures[i], masks[i] = _enlarged(pictures[i], masks[i], factor, down, right)
    if config.gamma > 1:
        power = config.gamma ** (2 * torch.rand(count, generator=generator) - 1)
        raised = (pictures.float() / 255) ** power[:, None, None, None]
        pictures = (255 * raised).round().byte()
    return pictures, masks


def _enlarged(
    picture: Tensor, mask: Tensor, factor: Tensor, down: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """A window of 1/``factor`` of the size, ``down`` and ``right`` in [0, 1], at full size."""
    height, width = mask.shape
    h, w = round(height / float(factor)), round(width / float(factor))
    top, left = round(float(down) * (height - h)), round(float(right) * (width - w))
    cut = picture[:, top : top + h, left : left + w].float()
    labels = mask[top : top + h, left : left + w].float()
    image = interpolate(cut[None], (height, width), mode="bilinear")[0].round()
    known = interpolate(labels[None, None], (height, width), mode="nearest-exact")[0, 0]
    return image.to(picture.dtype), known.to(mask.dtype)
