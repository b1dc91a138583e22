"""Made-up road scenes: sky over a road, with a car in some, as tensors and as parquet files."""

import io

import numpy as np
import torch
from PIL import Image

from manifoldnet.experiments.papers.segnet.config import CLASSES
from manifoldnet.experiments.papers.segnet.data import Scenes

SKY, ROAD, CAR, VOID = 0, 3, 8, 11


def scene(seed, height=32, width=40):
    """An image and its mask, as arrays."""
    rng = np.random.default_rng(seed)
    mask = np.full((height, width), ROAD, dtype=np.uint8)
    mask[: rng.integers(height // 4, height // 2)] = SKY
    if seed % 2:
        left = rng.integers(0, width // 2)
        mask[height // 2 : -height // 8, left : left + width // 4] = CAR
    mask[-1] = VOID
    colours = {SKY: (90, 160, 250), ROAD: (90, 90, 90), CAR: (200, 30, 30), VOID: (0, 0, 0)}
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for number, colour in colours.items():
        image[mask == number] = colour
    noise = rng.integers(-20, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


SEQUENCES = {"train": "ABBA", "validation": "A", "test": "CCA"}
"""The sequences of the images of each part, over and over."""


def sequences(split, count):
    """The sequence of each image of a part."""
    own = SEQUENCES["validation" if split == "val" else split]
    return tuple(own[i % len(own)] for i in range(count))


def scenes(counts=(6, 3, 4), height=32, width=40):
    """A whole set."""
    tensors = {}
    for split, count, first in zip(
        ("train", "validation", "test"), counts, (0, 100, 200), strict=True
    ):
        tensors[f"{split}_sequences"] = sequences(split, count)
        pairs = [scene(first + i, height, width) for i in range(count)]
        images = torch.stack(
            [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image, _ in pairs]
        )
        masks = torch.stack([torch.from_numpy(mask) for _, mask in pairs])
        tensors |= {f"{split}_images": images, f"{split}_masks": masks}
    return Scenes("camvid", CLASSES["camvid"], **tensors)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write(folder, split, pairs, named=True):
    """A split as a parquet file; `pairs` are encoded pictures."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        name: [p and {"bytes": p, "path": None} for p in column]
        for name, column in zip(("image", "mask"), zip(*pairs, strict=True), strict=True)
    }
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    if named:
        names = enumerate(sequences(split, len(pairs)))
        rows["name"] = [f"{name}_{i:05}" for i, name in names]
        features["name"] = datasets.Value("string")
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )


def write_all(folder, counts=(6, 3, 4), named=True, **size):
    """A folder with a whole set."""
    for split, count, first in zip(("train", "val", "test"), counts, (0, 100, 200), strict=True):
        pairs = [tuple(map(png, scene(first + i, **size))) for i in range(count)]
        write(folder, split, pairs, named)
