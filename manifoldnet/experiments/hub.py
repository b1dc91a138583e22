"""Image sets in the format of Hugging Face `datasets`, and those for classification as tensors.

Wanted are splits `train` and `test`, in parquet files of a folder or a repository on the hub, each
with a column of images (`image` or `img`) of one size and one of integers (`label`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manifoldnet.experiments.errors import DataError, importing

if TYPE_CHECKING:
    import datasets

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
DATA_VARIABLE = "MANIFOLDNET_DATA"
_SHORT_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}

# How a picture's mode is read; without those where something would be lost: 16-bit gray, alpha.
_MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB"}
_MODE_WORDS = {"L": "8-bit gray ('L')", "RGB": "colour ('RGB')", "P": "a palette ('P')"}


@dataclass(frozen=True)
class Source:
    """The origin of a set: a folder, or else a repository of the hub."""

    name: str
    folder: Path | None = None

    @property
    def location(self) -> str:
        """The argument of `datasets.load_dataset`: a path, or a repository of the hub."""
        return str(self.folder) if self.folder else _SHORT_NAMES.get(self.name, self.name)

    def key(self) -> str:
        """Identify the content without reading it: a folder's files by name, size and time."""
        parts = [self.location]
        if self.folder:
            for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
                about = path.stat()
                parts.append(f"{path.relative_to(self.folder)} {about.st_size} {about.st_mtime_ns}")
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return f"{self.name.replace('/', '--')}-{digest}"


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """The source of a set: the folder ``data_dir/name``, or the hub without a data folder.

    A missing folder is a DataError; the hub is not tried then: whoever names a folder means it.
    """
    data_dir = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not data_dir:
        return Source(name)
    data_dir = Path(data_dir)
    folder = (data_dir / name).absolute()
    if folder.is_dir():
        return Source(name, folder)
    if not data_dir.is_dir():
        raise DataError(
            f"the data folder {data_dir} does not exist: correct --data-dir or {DATA_VARIABLE}, "
            "or give neither to load from the Hugging Face hub"
        )
    held = ", ".join(sorted(p.name for p in data_dir.iterdir() if p.is_dir())) or "no folders"
    raise DataError(
        f"there is no folder {name!r} in the data folder {data_dir} (it holds {held}): put the "
        f"set there, or give neither --data-dir nor {DATA_VARIABLE} to load from the Hugging Face "
        "hub"
    )


def read(
    source: Source, side: int | None = None
) -> tuple[str, Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    """The fields of a `Dataset`, decoded; `side` makes all images squares (`squared`)."""
    splits = open_splits(source, ("train", "test"))
    (train_images, train_labels, classes), (test_images, test_labels, _) = (
        _decode_split(split, f"{source.location}, split {name!r}", side)
        for name, split in splits.items()
    )
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{source.location}: training images are {_size(train_images[0])}, test images "
            f"{_size(test_images[0])} (channels x height x width); they must agree"
        )
    highest = int(max(train_labels.max(), test_labels.max()))
    classes = classes or tuple(str(label) for label in range(highest + 1))
    if highest >= len(classes):
        what = f"label {highest} in a set of {len(classes)} named classes"
        raise DataError(f"{source.location}: {what}")
    return source.name, train_images, train_labels, test_images, test_labels, classes


def open_splits(source: Source, wanted: Sequence[str]) -> dict[str, datasets.Dataset]:
    """The ``wanted`` splits of a set, whose pictures are not decoded yet."""
    with importing("datasets", f"the data set {source.name!r}"):
        import datasets
    with ExitStack() as stack:
        stack.enter_context(_quiet(datasets))
        keep: dict[str, Any] = {}
        if source.folder:  # a throw-away cache: what is worth keeping is the decoded tensors
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            keep = {"cache_dir": cache, "keep_in_memory": True}
        try:
            loaded = datasets.load_dataset(source.location, **keep)
        except Exception as error:  # whatever it is, it comes from outside and is about this source
            way_out = "check that the folder holds intact parquet files"
            if not source.folder:
                way_out = "check the name and the network, or give a folder with --data-dir or "
                way_out += DATA_VARIABLE
            reason = str(error).strip().splitlines() or [""]
            raise DataError(
                f"cannot load {source.location} with Hugging Face datasets "
                f"({type(error).__name__}: {reason[0]}): {way_out}"
            ) from error
    missing = [name for name in wanted if name not in loaded]
    if missing:
        names = " and ".join(f"{name}-*.parquet" for name in wanted)
        raise DataError(
            f"{source.location} has no split {' and no split '.join(map(repr, missing))}, only "
            f"{', '.join(map(repr, loaded))}: name the files {names}"
        )
    return {name: loaded[name] for name in wanted}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence the library's progress bars and messages within the block."""
    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _decode_split(
    split: datasets.Dataset, where: str, side: int | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images, labels and class names (empty when the labels are bare numbers) of one split."""
    label_column = _column(split, ("label",), where)
    images = _decode_images(encoded(split, ("image", "img"), where), where, side)
    feature = split.features[label_column]
    labels = split.with_format("arrow")[:].column(label_column).to_pylist()
    for row, label in enumerate(labels):
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise DataError(
                f"{where}, row {row}: the label is {label!r}; labels must be integers from 0 (a "
                "set with names for labels becomes one by class_encode_column, in Hugging Face "
                "datasets)"
            )
    return images, torch.tensor(labels), tuple(getattr(feature, "names", None) or ())


def encoded(
    split: datasets.Dataset, accepted: tuple[str, ...], where: str
) -> list[dict[str, Any] | None]:
    """The column of pictures of that name, as they are stored, for `decode`."""
    import datasets

    name = _column(split, accepted, where)
    if len(split) == 0:
        raise DataError(f"{where}: it is empty")
    try:
        column = split.select_columns([name]).cast_column(name, datasets.Image(decode=False))
    except Exception as error:
        raise DataError(
            f"{where}: column {name!r} holds {split.features[name]}, not images"
        ) from error
    rows: list[dict[str, Any] | None] = column.with_format("arrow")[:].column(name).to_pylist()
    return rows


def _column(split: datasets.Dataset, accepted: tuple[str, ...], where: str) -> str:
    for name in accepted:
        if name in split.column_names:
            return name
    raise DataError(
        f"{where}: there is no column {' or '.join(map(repr, accepted))}, only "
        f"{', '.join(map(repr, split.column_names))}: rename the one that is meant"
    )


def _decode_images(rows: list[dict[str, Any] | None], where: str, side: int | None) -> Tensor:
    """Stack pictures into uint8 ``(images, channels, height, width)``; RGB where any is."""
    arrays = [decode(row, f"{where}, row {index}") for index, row in enumerate(rows)]
    if side is not None:
        arrays = [squared(array, side) for array in arrays]
    for index, array in enumerate(arrays):
        if array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(
                f"{where}: the image in row {index} is {array.shape[0]}x{array.shape[1]} (height "
                f"x width), the one in row 0 {arrays[0].shape[0]}x{arrays[0].shape[1]}; these "
                "networks need one size: resize the images first"
            )
    channels = max(array.shape[2] for array in arrays)
    stacked = np.empty((len(arrays), channels, *arrays[0].shape[:2]), dtype=np.uint8)
    for target, array in zip(stacked, arrays, strict=True):
        target[:] = array.transpose(2, 0, 1)
    return torch.from_numpy(stacked)


def decode(row: dict[str, Any] | None, where: str, modes: Mapping[str, str] = _MODES) -> Pixels:
    """A picture as an array of ``(height, width, channels)``; ``modes`` are Pillow's."""
    with importing("pillow", "decoding images"):
        from PIL import Image
    if row is None or (row.get("bytes") is None and row.get("path") is None):
        raise DataError(f"{where}: there is no image")
    content = row.get("bytes")
    try:
        with Image.open(io.BytesIO(content) if content is not None else row["path"]) as picture:
            mode = modes.get(picture.mode)
            if mode is None:
                raise DataError(
                    f"{where}: the image has mode {picture.mode!r}; convert it to "
                    f"{' or '.join(_MODE_WORDS[name] for name in sorted(set(modes.values())))}"
                )
            pixels = np.asarray(picture if mode == picture.mode else picture.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged pictures
        raise DataError(
            f"{where}: the image cannot be decoded ({error}): repair or remove that row"
        ) from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def squared(pixels: Pixels, side: int) -> Pixels:
    """A picture as a square: padded with zeros, or its middle, reduced to fit the short side."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        above, before = (side - height) // 2, (side - width) // 2
        after = ((above, side - height - above), (before, side - width - before), (0, 0))
        return np.pad(pixels, after)
    factor = side / min(height, width)
    size = max(side, round(width * factor)), max(side, round(height * factor))
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return pixels[top : top + side, left : left + side]


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
