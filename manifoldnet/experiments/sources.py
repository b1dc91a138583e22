"""Where images come from, by name.

digits: scikit-learn's 8x8 digits, embedded, with a fixed test set; no download.

Anything else: Hugging Face `datasets`, from the hub or from a folder (`hub`), decoded once and
kept on disk (`cache`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from manifoldnet.experiments import cache, hub
from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.experiments.errors import MissingExtraError


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    notice: Callable[[str], None] | None = None,
    side: int | None = None,
) -> Dataset:
    """Loads a data set by its name.

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
    return cache.load(
        find(name, data_dir),
        Dataset,
        partial(hub.read, side=side),
        notice or (lambda line: None),
        variant="" if side is None else f"-square{side}",
    )


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> hub.Source:
    """The folder or repository of a set, by its name; arguments and errors are those of `load`."""
    folder = data_dir if data_dir is not None else os.environ.get(hub.DATA_VARIABLE)
    return hub.find(name, Path(folder) if folder else None)


def load_digits(side: int | None = None) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels (0 … 16), split once and for all.

    One in five (359) is for testing. That split does not depend on a run's seed: runs are compared
    on the same images.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "the data set 'digits'") from error
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
