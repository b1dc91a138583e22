"""Files that are either there in full or not there at all, and folders that one process writes to.

A file is written under a temporary name and renamed: a killed process leaves the previous version.
Data is forced to the disk only where asked for: a power failure may cost the last epoch.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from manifoldnet.experiments.errors import RecordError


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a new version of ``path``, which takes the old one's place when the block ends well.

    `durable` forces it to the disk before.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        mask = os.umask(0o022)  # the only portable way to read it is to set it
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes private files
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # Writing to a full disk names no file, and the temporary one says nothing to anybody.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in one atomic step (UTF-8)."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a whole file in one atomic step."""
    with replacing(path, durable) as stream:
        stream.write(content)


@contextmanager
def held(directory: Path, elsewhere: str = "--out") -> Iterator[None]:
    """Keep other processes from writing into a folder within the block.

    The lock is the operating system's and goes with the process. ``elsewhere`` is the thing to
    choose another of, in messages.
    """
    path = directory / ".lock"
    lock = FileLock(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(encoding="utf-8")
        raise RecordError(
            f"another process is at work in {directory} ({holder}): wait for it, stop it, or "
            f"choose another {elsewhere}"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordError(
            f"{path} cannot be locked ({reason}): choose another {elsewhere}, on another disk"
        ) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()  # before the release: after it, the file may be another's lock
        lock.release()
