"""Files that are either there in full or not there at all.

A file is written under a temporary name beside its target and renamed over it, so a process killed
at any moment leaves the previous version. (The rename is atomic against a killed process. Data is
not forced to the disk: after a power failure the last epoch may be missing.)
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new version of ``path``, which takes the old one's place when the block ends well.

    Args:
        path: the file to write; its folder is created when missing.

    Yields:
        A binary stream. When the block raises, `path` is left as it was.

    Raises:
        OSError: when it cannot be written; its file name is that of `path`.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
        os.chmod(
            temporary, 0o666 & ~_umask()
        )  # mkstemp makes private files; a record is an ordinary one
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # Writing to a full disk names no file, and the temporary one says nothing to anybody.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file in one atomic step (UTF-8)."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file in one atomic step."""
    with replacing(path) as stream:
        stream.write(content)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files that a killed process left beside ``path``."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def this_process() -> str:
    """The name of this process in the messages of others: its number and its machine."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _umask() -> int:
    mask = os.umask(0o022)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask
