"""Decoded data sets kept on disk, so that pictures are decompressed once.

A cache file holds the tensors of one `Dataset`. Its name carries the identity of the source
(`Source.key`), so a folder whose files have changed gets a new one; a hub repository is taken to
stay as it is. Delete the file, or the whole folder, at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from manifoldnet.experiments import hub
from manifoldnet.experiments.data import Dataset
from manifoldnet.experiments.errors import DataError
from manifoldnet.experiments.files import replacing

_FORMAT = 1


def directory() -> Path:
    """``$XDG_CACHE_HOME/manifoldnet``, by default ``~/.cache/manifoldnet``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "manifoldnet"


def path_of(source: hub.Source) -> Path:
    """Where the decoded tensors of a source are kept."""
    return directory() / f"{source.key()}.pt"


def load(source: hub.Source, notice: Callable[[str], None]) -> Dataset:
    """The data set of ``source``: from the cache, or else read, decoded and put there.

    Raises:
        DataError: when the source cannot be used (`hub.read`), or when the cache file is damaged or
            cannot be written.
    """
    path = path_of(source)
    if path.exists():
        return _restore(path)
    notice(f"decoding {source.name} once from {source.location} (kept in {path})")
    data = hub.read(source)
    _save(data, path)
    return data


def _save(data: Dataset, path: Path) -> None:
    content = {
        "format": _FORMAT,
        "fingerprint": data.fingerprint(),
        "name": data.name,
        "train_images": data.train_images,
        "train_labels": data.train_labels,
        "test_images": data.test_images,
        "test_labels": data.test_labels,
        "classes": list(data.classes),
        "white": data.white,
    }
    try:
        with replacing(path) as stream:
            torch.save(content, stream)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {path} ({error}): make room there, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error


def _restore(path: Path) -> Dataset:
    remedy = "delete that file, and it will be made again from its source"
    try:
        content = torch.load(path, weights_only=True)
        version = content.pop("format")
        fingerprint = content.pop("fingerprint")
        data = Dataset(**{**content, "classes": tuple(content["classes"])})
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
