"""The folder of files that can be made again: compiled kernels, decoded data sets."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The value of `MANIFOLDNET_CACHE`, or else a folder below the user's cache folder.

    Raises:
        RuntimeError: if the user has no home folder.
    """
    if chosen := os.environ.get("MANIFOLDNET_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # Relative paths are to be ignored there, says the specification of that variable.
    return (base if base.is_absolute() else Path.home() / ".cache") / "manifoldnet"
