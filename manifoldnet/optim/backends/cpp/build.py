"""The compiled kernel as a library: built once, kept in a cache folder, verified, loaded.

    library()   the loaded kernel, or None after one warning: what a step asks
    build()     its path, after compiling it where need be: `manifoldnet build-kernel`

The file is `step-<key>-<digest>.so`. The key is that of source, flags and processor, so that a
cached kernel needs no compiler. The digest is that of the file: what does not have it is damaged,
is never loaded (a file that was cut short kills the process), and is compiled anew. A kernel is
loaded in a process of its own before it gets its name.

Only folders and files of this user (or of root) that nobody else can write to are used: a library
runs as soon as it is loaded. Where the folder is not, or cannot be written, a private one below the
system's temporary folder takes its place. One process compiles, the others wait for it; a failure
is remembered, so that the next processes neither compile nor wait, until the compiler or CXX
changes, a day has passed, or `manifoldnet build-kernel` is called.

`torch.utils.cpp_extension.load` builds, locks and caches, too. It is not used, because it needs
ninja and a compiler also where the library is there, loads whatever file stands in its folder, and
includes torch's headers for a kernel that takes plain pointers.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from manifoldnet.cache import cache_folder

__all__ = ["KernelError", "build", "library"]

_SOURCE = Path(__file__).with_name("step.cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math"),  # vectors of square roots; NaN stays NaN
    # All of the registers' width, which compilers do not take by themselves.
    *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []),
)
_SYMBOLS = tuple(
    f"{task}_{type}" for task in ("gram", "update", "step") for type in ("float", "double")
)
_COMPILERS = ("g++", "c++", "clang++")
# Seconds that compiling may take, within a step and ahead of it. It takes some 15 of a processor.
_IN_STEP, _AHEAD = 60.0, 600.0
# Seconds that loading the library in a process of its own may take.
_LOADING = 30.0
# Seconds after which a compiler that failed is asked again.
_REMEMBERED = 24 * 3600.0
_LOAD = "import ctypes, sys\nfor name in sys.argv[2:]: getattr(ctypes.CDLL(sys.argv[1]), name)"


class KernelError(RuntimeError):
    """A kernel that cannot be compiled or loaded.

    Args:
        reason: what is wrong, continuing "the kernel …".
        way_out: what to do about it.
    """

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"the kernel {reason}. {way_out}")
        self.reason, self.way_out = reason, way_out


class _FolderError(Exception):
    """A folder in which kernels cannot be stored safely; another one is tried."""

    def __init__(self, reason: str, unsafe: bool = False) -> None:
        super().__init__(reason)
        self.unsafe = unsafe


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, compiled if necessary; None, with a warning, if that fails."""
    try:
        return _load()
    except KernelError as error:
        warnings.warn(
            f"fused=True: the kernel {error.reason}; declared weights take the path without a "
            f"compiler, which is slower and gives the same results. {error.way_out}, or leave "
            "fused out",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def build(*, force: bool = False, limit: float = _AHEAD) -> Path:
    """Compile the kernel if it is not in the cache.

    Args:
        force: compile it also where it is.
        limit: seconds that compiling, and waiting for another process that does, may take each.

    Returns:
        The file.

    Raises:
        KernelError: where it cannot be compiled or kept.
    """
    return _obtain(limit, force=force, anyway=True)


def _load() -> ctypes.CDLL:
    path = _obtain(_IN_STEP)
    try:
        return _open(path)
    except (OSError, AttributeError) as error:
        # Whole, and still not to be loaded: compiled on a machine with newer libraries, say.
        try:
            path = _obtain(_IN_STEP, force=True)
        except KernelError as other:
            reason = f"could not be loaded ({error}), and {other.reason}"
            raise KernelError(reason, other.way_out) from other
    try:
        return _open(path)
    except (OSError, AttributeError) as error:
        raise KernelError(f"could not be loaded ({error})", f"Delete {path}") from error


def _open(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name in _SYMBOLS:
        function = getattr(loaded, name)
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return loaded


def _obtain(limit: float, *, force: bool = False, anyway: bool = False) -> Path:
    """The file of the kernel, compiled if necessary.

    Args:
        limit: of compiling, and of waiting, in seconds.
        force: compile it also where it is there.
        anyway: also after a failure that is remembered.
    """
    key = _key()

    def find(folder: Path) -> Path | None:
        if not os.path.lexists(folder):
            return None
        _check_folder(folder)
        return next((path for path in _candidates(folder, key) if _is_good(path, key)), None)

    def make(folder: Path) -> Path | None:
        if folder.exists() and not folder.is_dir():
            raise _FolderError(f"{folder} is a file")
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_folder(folder)
        return _build_in(folder, key, limit, force, anyway)

    # All folders are looked into first: with a kernel in one of them no compiler is asked for.
    for attempt in (make,) if force else (find, make):
        refused: list[_FolderError] = []
        for folder in _folders():
            try:
                path = attempt(folder)
            except _FolderError as error:
                refused.append(error)
            except OSError as error:
                refused.append(_FolderError(f"{folder} cannot be used: {_said(error)}"))
            else:
                if path is not None:
                    _report(refused, folder)
                    return path
    raise KernelError(
        f"has no folder to be kept in: {'; '.join(map(str, refused))}",
        "Make room there, or name a folder of your own in MANIFOLDNET_CACHE",
    )


def _key() -> str:
    key = hashlib.sha256(_SOURCE.read_bytes())
    for part in (*_FLAGS, _processor()):
        key.update(part.encode())
    return key.hexdigest()[:16]


def _processor() -> str:
    """The processor's instructions, by name: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.machine()
    )


# --- folders and files that can be trusted ------------------------------------------------------


def _folders() -> list[Path]:
    """The folders for the kernel: the user's cache, then a private one."""
    private = Path(tempfile.gettempdir()) / f"manifoldnet-{_user()}"
    try:
        return [cache_folder(), private]
    except RuntimeError:  # no home folder
        return [private]


def _report(refused: Sequence[_FolderError], used: Path) -> None:
    """Warn that the given folder, or an unsafe one, is not used."""
    if any(error.unsafe for error in refused) or (refused and os.environ.get("MANIFOLDNET_CACHE")):
        warnings.warn(
            f"{'; '.join(map(str, refused))}. The compiled kernel is in {used} instead: name a "
            "folder of your own in MANIFOLDNET_CACHE",
            RuntimeWarning,
            stacklevel=2,
        )


def _check_folder(folder: Path) -> None:
    """Raise _FolderError if users other than this one and root can write to a folder or link."""
    for state in (folder.lstat(), folder.stat()):
        _check_owner(folder, state)


def _check_owner(path: Path, state: os.stat_result) -> None:
    """Raise _FolderError if users other than this one and root can write to a file or folder."""
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are the user's by default
        return
    if state.st_uid not in (os.geteuid(), 0):
        reason = f"belongs to user {state.st_uid}, not to user {os.geteuid()}"
    elif not stat.S_ISLNK(state.st_mode) and state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = f"can be written by others (mode {stat.S_IMODE(state.st_mode):o})"
    else:
        return
    raise _FolderError(f"{path} {reason}, and a library from there could be anybody's", unsafe=True)


def _user() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "kernel"


def _candidates(folder: Path, key: str) -> list[Path]:
    return sorted(folder.glob(f"step-{key}-*.so"))


def _is_good(path: Path, key: str) -> bool:
    """Test whether a file is complete, regular, and owned by this user or root."""
    try:
        state = path.lstat()
        _check_owner(path, state)
        return stat.S_ISREG(state.st_mode) and path.name == _name(path, key)
    except (OSError, _FolderError):
        return False


def _name(path: Path, key: str) -> str:
    return f"step-{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.so"


# --- compiling ----------------------------------------------------------------------------------


def _build_in(folder: Path, key: str, limit: float, force: bool, anyway: bool) -> Path:
    """Compile the kernel into a folder, or wait for another process that does.

    Raises:
        _FolderError: if the folder is full or refuses programs.
        OSError: if it cannot be written.
        KernelError: if the kernel cannot be compiled.
    """
    if hasattr(os, "statvfs") and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise _FolderError(f"{folder} is on a disk that no program is loaded from (noexec)")
    before = set(_candidates(folder, key))
    lock = FileLock(folder / f"step-{key}.lock", timeout=limit + _LOADING)
    try:
        lock.acquire()
    except Timeout as error:
        raise KernelError(
            f"has been in the making by another process for {limit + _LOADING:.0f} s "
            f"({lock.lock_file})",
            "Wait for it, or stop it",
        ) from error
    try:
        for path in _candidates(folder, key):
            # One that appeared while this process waited is as good as its own.
            if _is_good(path, key) and not (force and path in before):
                return path
        compiler = _compiler()
        note = folder / f"step-{key}.failed"
        if not anyway:
            _check_note(note, compiler)
        try:
            path = _compile(compiler, folder, key, limit)
        except KernelError as error:
            _write_note(note, compiler, error.reason)
            raise
        for old in _candidates(folder, key):
            if old != path:
                _remove(old)
        note.unlink(missing_ok=True)
        return path
    finally:
        lock.release()


def _compiler() -> list[str]:
    """The compiler command: CXX with its arguments, or the first compiler that is found.

    Raises:
        KernelError: if there is none, or CXX names none.
    """
    wanted = os.environ.get("CXX", "").strip()
    if not wanted:
        for name in _COMPILERS:
            if found := shutil.which(name):
                return [found]
        raise KernelError(
            f"could not be compiled: there is no C++ compiler ({', '.join(_COMPILERS)}) in PATH",
            "Install g++, or name a compiler in CXX",
        )
    if found := shutil.which(wanted):  # a path may have spaces
        return [found]
    try:
        program, *arguments = shlex.split(wanted)
    except ValueError:
        program, arguments = wanted, []
    if found := shutil.which(program):
        return [found, *arguments]
    raise KernelError(
        f"could not be compiled: CXX={wanted!r} names no program that can be run ({program!r} is "
        "not there)",
        "Correct CXX, or unset it, and g++ is taken",
    )


def _compile(compiler: Sequence[str], folder: Path, key: str, limit: float) -> Path:
    """Compile, load in another process, then rename; only under the lock."""
    for left in folder.glob(f"step-{key}.*.tmp"):  # of a process that was killed
        _remove(left)
    words = shlex.join(compiler)
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=f"step-{key}.", suffix=".tmp", ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch) / "step.so"
        status, said = _run([*compiler, *_FLAGS, "-o", str(made), str(_SOURCE)], limit)
        if status is None:
            raise KernelError(
                f"could not be compiled: {words} took longer than {limit:.0f} s",
                "Compile it ahead by `manifoldnet build-kernel`, which waits longer",
            )
        if re.search("no space left|disk quota", said, re.IGNORECASE):
            raise _FolderError(f"{folder}, or the folder of temporary files, is full ({said})")
        if status or not made.is_file():
            raise KernelError(
                f"could not be compiled: {words} "
                + (f"failed with status {status}" if status else "wrote nothing")
                + (f" ({said})" if said else ""),
                "Name another compiler in CXX",
            )
        made.chmod(0o755)
        # In a process of its own: a library that is none may end it.
        load = [sys.executable, "-I", "-c", _LOAD, str(made), *_SYMBOLS]
        status, said = _run(load, _LOADING) if sys.executable else (0, "")
        if status != 0:
            last = said.splitlines()[-1] if said else f"status {status}"
            raise KernelError(
                f"could not be compiled: what {words} wrote cannot be loaded ({last})",
                "Name another compiler in CXX",
            )
        path = folder / _name(made, key)
        if path.is_dir():  # a rename does not replace it
            _remove(path)
        made.replace(path)
    return path


def _run(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """The status of a command (None after `limit` seconds), and the end of its error output.

    Its children end with it: compilers have some.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
            )
        except OSError as error:  # a file with the right to be run, and no program
            return 126, _said(error)
        try:
            status = process.wait(limit)
        except BaseException as error:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, ""
        complaints.seek(0)
        return status, complaints.read().decode(errors="replace").strip()[-500:]


def _check_note(note: Path, compiler: Sequence[str]) -> None:
    """Raise KernelError if this compiler has failed within a day."""
    try:
        failed = json.loads(note.read_text(encoding="utf-8"))
        age = time.time() - failed["time"]
        known = failed["compiler"] == _fingerprint(compiler) and 0 <= age < _REMEMBERED
        reason = str(failed["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if known:
        raise KernelError(
            f"{reason}; this was {age / 60:.0f} minutes ago and is tried again after a day",
            "Call `manifoldnet build-kernel` to try now, or name another compiler in CXX",
        )


def _write_note(note: Path, compiler: Sequence[str], reason: str) -> None:
    failed = {"reason": reason, "compiler": _fingerprint(compiler), "time": time.time()}
    with suppress(OSError):  # it is tried again, then
        note.write_text(json.dumps(failed), encoding="utf-8")


def _fingerprint(compiler: Sequence[str]) -> list[str | int]:
    """The identity of a compiler, found without running it."""
    state = os.stat(compiler[0])
    return [*compiler, state.st_size, state.st_mtime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _said(error: OSError) -> str:
    return error.strerror or str(error)
