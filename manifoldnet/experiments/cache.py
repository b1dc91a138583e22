"""Decoded data sets kept on disk, so that pictures are decompressed once.

A cache file holds the fields of one data set, a dataclass of tensors and plain values. Its name
carries the identity of the source (`Source.key`), so a folder whose files have changed gets a new
one; a hub repository is taken to stay as it is. Delete the file, or the whole folder, at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from manifoldnet.experiments.errors import DataError
from manifoldnet.experiments.files import replacing
from manifoldnet.experiments.hub import Source

_FORMAT = 1


class _Data(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fingerprint(self) -> str: ...


D = TypeVar("D", bound=_Data)


def directory() -> Path:
    """``$XDG_CACHE_HOME/manifoldnet``, by default ``~/.cache/manifoldnet``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "manifoldnet"


def path_of(source: Source, variant: str = "") -> Path:
    """Where the decoded tensors of a source are kept."""
    return directory() / f"{source.key()}{variant}.pt"


def load(
    source: Source,
    kind: type[D],
    read: Callable[[Source], D],
    notice: Callable[[str], None],
    variant: str = "",
) -> D:
    """The data set of ``source``: from the cache, or else read, decoded and put there.

    Args:
        source: where it comes from.
        kind: its class.
        read: decodes it.
        notice: called with a line of text before that.
        variant: what `read` makes of the source, where there is more than one thing.

    Raises:
        DataError: when the source cannot be used, or when the cache file is damaged or cannot be
            written.
    """
    path = path_of(source, variant)
    if path.exists():
        return _restore(path, kind)
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
            "XDG_CACHE_HOME to another folder"
        ) from error


def _restore(path: Path, kind: type[D]) -> D:
    remedy = "delete that file, and it will be made again from its source"
    try:
        content = torch.load(path, weights_only=True)
        version = content.pop("format")
        fingerprint = content.pop("fingerprint")
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        data = kind(**fields)
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
