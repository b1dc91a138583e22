"""The kernel's cache: one compilation, nobody else's files, nothing damaged, no compiler twice.

Compilers are stand-ins, scripts that copy a library of a few bytes and keep count.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fresh import Forks

from manifoldnet.cache import cache_folder
from manifoldnet.cli import main
from manifoldnet.optim.backends.cpp import build as kernel
from manifoldnet.optim.backends.cpp.build import KernelError, build

pytestmark = pytest.mark.skipif(os.name != "posix", reason="compilers are shell scripts here")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)

EMPTY = 'extern "C" {' + "".join(f"void {name}() {{}}" for name in kernel._SYMBOLS) + "}"
OTHER = EMPTY + "int other = 1;"
WITHOUT_SYMBOLS = "int nothing;"
DEADLY = "#include <csignal>\nstatic int died = (raise(SIGBUS), 0);" + EMPTY

# Copies a library to where it is asked for, after $BEFORE; keeps count, and what it was called by.
COPIES = """#!/bin/sh
echo call >> {folder}/calls
printf '%s\\n' "$@" > {folder}/arguments
{before}
while [ "$1" != -o ]; do shift; done
{write}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Libraries by their source."""
    folder = tmp_path_factory.mktemp("libraries")

    def of(source: str) -> Path:
        path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}.so"
        if not path.exists():
            compiler = shutil.which("g++") or shutil.which("c++")
            assert compiler, "these tests need a C++ compiler"
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)],
                input=source.encode(),
                check=True,
            )
        return path

    return of


class World:
    """A cache folder, a folder of temporary files, and a compiler that keeps count."""

    def __init__(self, folder: Path, made: Callable[[str], Path], patch: pytest.MonkeyPatch):
        self.folder, self.made, self.patch = folder, made, patch
        self.cache, self.private = folder / "cache", folder / f"tmp/manifoldnet-{os.geteuid()}"
        (folder / "tmp").mkdir()
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        patch.setenv("MANIFOLDNET_CACHE", str(self.cache))
        patch.setenv("CXX", str(self.compiler()))

    def compiler(self, source: str = EMPTY, before: str = "", write: str = "", name: str = "cxx"):
        path = self.folder / name
        write = write or f'cp {self.made(source)} "$2"'
        path.write_text(COPIES.format(folder=self.folder, before=before, write=write))
        path.chmod(0o755)
        return path

    @property
    def calls(self) -> int:
        file = self.folder / "calls"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def inside(self) -> list[str]:
        """The names in the cache folder, but for the lock."""
        return sorted(p.name for p in self.cache.iterdir() if p.suffix != ".lock")


@pytest.fixture
def world(tmp_path: Path, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, made, monkeypatch)


def test_the_kernel_is_compiled_once_into_a_private_folder(world: World) -> None:
    path = build()
    assert path.parent == world.cache
    assert path.read_bytes() == world.made(EMPTY).read_bytes()
    assert world.cache.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o022 == 0
    assert build() == path
    assert world.calls == 1
    assert world.inside() == [path.name]


def test_a_kernel_in_the_cache_needs_no_compiler(world: World) -> None:
    path = build()
    world.patch.setenv("CXX", "/nonexistent/g++")
    world.patch.setenv("PATH", "/nonexistent")
    assert build() == path
    assert kernel._load()._name == str(path)


def test_another_source_or_processor_is_another_kernel(world: World) -> None:
    first = build()
    world.patch.setattr(kernel, "_processor", lambda: "flags: abacus")
    second = build()
    source = world.folder / "step.cpp"
    source.write_text("// another")
    world.patch.setattr(kernel, "_SOURCE", source)
    assert len({first, second, build()}) == 3
    assert first.exists()


def test_force_compiles_anew_and_takes_the_old_one_away(world: World) -> None:
    first = build()
    world.compiler(OTHER)
    second = build(force=True)
    assert world.calls == 2
    assert second != first
    assert world.inside() == [second.name]


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped", "appended to", "a folder"])
def test_a_damaged_kernel_is_compiled_anew(world: World, damage: str) -> None:
    path = build()
    whole = path.read_bytes()
    if damage == "a folder":
        path.unlink()
        path.mkdir()
        (path / "file").write_text("in it")
    else:
        path.write_bytes(
            {
                "emptied": b"",
                "cut": whole[: len(whole) // 2],
                "flipped": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
                "appended to": whole + b"\n",
            }[damage]
        )
    assert build().read_bytes() == whole
    assert world.calls == 2
    assert world.inside() == [path.name]


@pytest.mark.parametrize("content", ["text", "symbols"])
def test_an_intact_kernel_that_cannot_be_loaded_is_compiled_anew(
    world: World, content: str
) -> None:
    junk = b"text" if content == "text" else world.made(WITHOUT_SYMBOLS).read_bytes()
    world.cache.mkdir(mode=0o700)
    name = f"step-{kernel._key()}-{hashlib.sha256(junk).hexdigest()[:32]}.so"
    (world.cache / name).write_bytes(junk)
    with world.patch.context() as patch:
        patch.setenv("CXX", "none")
        with pytest.raises(KernelError, match=r"could not be loaded \(.*\), and could not be comp"):
            kernel._load()
    loaded = kernel._load()
    assert world.calls == 1
    assert loaded.step_float.restype is None
    assert world.inside() == [Path(loaded._name).name] != [name]


@pytest.mark.parametrize(
    ("source", "write", "message"),
    [
        (EMPTY, 'echo junk > "$2"', "cxx wrote cannot be loaded .*(file too short|invalid ELF)"),
        (WITHOUT_SYMBOLS, "", "cannot be loaded .*gram_float"),
        (DEADLY, "", "cannot be loaded .*status -7"),
        (EMPTY, "true", "cxx wrote nothing"),
        (EMPTY, "echo no such thing >&2; exit 3", r"cxx failed with status 3 \(no such thing\)"),
    ],
    ids=["junk", "no symbols", "kills its process", "nothing", "fails"],
)
def test_a_kernel_that_cannot_be_loaded_is_not_kept(
    world: World, source: str, write: str, message: str
) -> None:
    world.compiler(source, write=write)
    with pytest.raises(KernelError, match=message):
        build()
    assert [name.partition(".")[2] for name in world.inside()] == ["failed"]


def test_a_failure_is_remembered(world: World) -> None:
    def fails_with(message: str) -> None:
        with pytest.raises(KernelError, match=message):
            kernel._load()

    world.compiler(write="exit 1")
    fails_with("failed with status 1$|failed with status 1[.]")
    fails_with("status 1; this was 0 minutes ago .* `manifoldnet build-kernel`")
    assert world.calls == 1
    # Asked again by the command, by another compiler, by one that was changed, and after a day.
    with pytest.raises(KernelError, match="status 1"):
        build()
    world.patch.setenv("CXX", str(world.compiler(write="exit 2", name="another")))
    fails_with("status 2")
    world.compiler(write="exit 33", name="another")
    fails_with("status 33")
    assert world.calls == 4
    (note,) = world.cache.glob("*.failed")
    failed = json.loads(note.read_text())
    note.write_text(json.dumps(failed | {"time": failed["time"] - 25 * 3600}))
    fails_with("status 33[.]")
    assert world.calls == 5
    note.write_text("{")
    world.compiler(name="another")
    kernel._load()
    assert not note.exists()


def test_a_compiler_that_hangs_is_ended_with_its_children(world: World) -> None:
    pid = world.folder / "pid"
    world.compiler(before=f"sleep 1000 & echo $! > {pid}; wait")
    with pytest.raises(KernelError, match="took longer than 1 s.*build-kernel"):
        build(limit=1)
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert [name.partition(".")[2] for name in world.inside()] == ["failed"]


def test_a_step_waits_for_a_compiler_a_minute_at_most() -> None:
    assert kernel._IN_STEP <= 60


_BUILD = "from manifoldnet.optim.backends.cpp.build import build; print(build())"


@pytest.mark.thorough
def test_one_of_two_processes_compiles(world: World) -> None:
    # Left by one that was killed.
    leftover = world.cache / f"step-{kernel._key()}.abc.tmp"
    world.cache.mkdir(mode=0o700)
    leftover.mkdir()
    world.compiler(before="sleep 1")
    environment = os.environ | {"TMPDIR": str(world.folder / "tmp"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _BUILD], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 2
    assert world.calls == 1
    assert paths == {str(build())}
    assert not leftover.exists()


def test_waiting_for_another_process_times_out(world: World) -> None:
    world.cache.mkdir(mode=0o700)
    with (
        kernel.FileLock(world.cache / f"step-{kernel._key()}.lock"),
        world.patch.context() as patch,
    ):
        patch.setattr(kernel, "_LOADING", 0.0)
        with pytest.raises(KernelError, match="in the making by another process"):
            build(limit=0.2)
    assert build().exists()


# --- folders and owners -------------------------------------------------------------------------


def test_a_folder_that_others_can_write_to_is_refused(world: World) -> None:
    world.cache.mkdir()
    world.cache.chmod(0o1777)
    planted = world.cache / f"step-{kernel._key()}.so"
    planted.write_bytes(world.made(DEADLY).read_bytes())
    with pytest.warns(RuntimeWarning, match="cache can be written by others .mode 1777.*instead"):
        path = build()
    assert path.parent == world.private
    assert world.private.stat().st_mode & 0o777 == 0o700
    assert world.cache.stat().st_mode & 0o7777 == 0o1777  # it may be /tmp: it stays as it is
    # The next process finds it there, and is told again.
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert build() == path
    assert world.calls == 1


@as_root
def test_a_folder_of_another_user_is_refused(world: World) -> None:
    world.cache.mkdir(mode=0o755)
    os.chown(world.cache, 65534, 65534)
    with pytest.warns(RuntimeWarning, match="cache belongs to user 65534, not to user 0"):
        assert build().parent == world.private


@as_root
def test_a_link_of_another_user_is_refused(world: World) -> None:
    (world.folder / "mine").mkdir(mode=0o700)
    world.cache.symlink_to(world.folder / "mine")
    assert build().parent == world.cache  # the user's own is fine
    os.lchown(world.cache, 65534, 65534)
    with pytest.warns(RuntimeWarning, match="belongs to user 65534"):
        assert build().parent == world.private


@as_root
def test_a_file_of_another_user_is_replaced(world: World) -> None:
    path = build()
    os.chown(path, 65534, 65534)
    assert build() == path
    assert path.stat().st_uid == 0
    path.chmod(0o777)
    assert build() == path
    assert path.stat().st_mode & 0o022 == 0
    assert world.calls == 3


@as_root
def test_where_no_folder_is_safe_there_is_no_kernel(world: World) -> None:
    for folder in (world.cache, world.private):
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    with pytest.raises(KernelError, match="no folder to be kept in: .*cache belongs.*tmp/manifold"):
        build()
    assert world.calls == 0


def test_a_file_in_place_of_the_cache_folder(world: World) -> None:
    world.cache.write_text("a file")
    with pytest.warns(RuntimeWarning, match="cache is a file.*instead"):
        build()


def test_an_unwritable_home_is_replaced_by_a_private_folder(world: World) -> None:
    world.patch.delenv("MANIFOLDNET_CACHE")
    world.patch.delenv("XDG_CACHE_HOME", raising=False)
    world.patch.setenv("HOME", "/proc/none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build().parent == world.private
        assert build().parent == world.private
    assert world.calls == 1


def test_a_noexec_folder_is_replaced(world: World) -> None:
    statvfs = os.statvfs

    def noexec(path: Path) -> object:
        return SimpleNamespace(f_flag=os.ST_NOEXEC) if path == world.cache else statvfs(path)

    world.patch.setattr(os, "statvfs", noexec)
    with pytest.warns(RuntimeWarning, match="cache is on a disk .*noexec.*instead"):
        assert build().parent == world.private
    assert world.calls == 1


def test_a_full_disk_is_named_in_the_warning(world: World) -> None:
    full = f'case "$2" in {world.cache}*) echo "No space left on device" >&2; exit 1;; esac\n'
    world.compiler(write=full + f'cp {world.made(EMPTY)} "$2"')
    with pytest.warns(RuntimeWarning, match="cache, or .*, is full .No space left.*instead"):
        assert build().parent == world.private
    assert world.inside() == []


def test_a_folder_below_the_home_is_spelled_with_a_tilde(world: World) -> None:
    world.patch.setenv("HOME", str(world.folder))
    world.patch.setenv("MANIFOLDNET_CACHE", "~/kernels")
    assert build().parent == world.folder / "kernels"
    world.patch.delenv("MANIFOLDNET_CACHE")
    world.patch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == world.folder / ".cache/manifoldnet"
    world.patch.setenv("XDG_CACHE_HOME", str(world.cache))
    assert cache_folder() == world.cache / "manifoldnet"


# --- compilers ----------------------------------------------------------------------------------


def test_cxx_may_have_arguments(world: World) -> None:
    world.patch.setenv("CXX", f"{shlex.quote(os.environ['CXX'])} g++ -DNAME='a b'")
    build()
    arguments = (world.folder / "arguments").read_text().splitlines()
    assert arguments[:3] == ["g++", "-DNAME=a b", "-std=c++17"]


def test_cxx_may_be_a_path_with_spaces(world: World) -> None:
    world.patch.setenv("CXX", str(world.compiler(name="my compiler")))
    assert build().exists()


@pytest.mark.parametrize("cxx", ["/nonexistent/g++", "ccash g++", "'g++"])
def test_an_invalid_cxx_is_refused(world: World, cxx: str) -> None:
    world.compiler(name="g++")
    world.patch.setenv("PATH", str(world.folder))
    world.patch.setenv("CXX", cxx)
    with pytest.raises(KernelError, match=r"CXX=.* names no program .*unset it"):
        build()
    assert world.calls == 0


def test_without_cxx_the_first_compiler_found_is_used(world: World) -> None:
    world.patch.delenv("CXX")
    path = os.environ["PATH"]
    world.patch.setenv("PATH", f"{world.folder / 'bin'}")
    with pytest.raises(KernelError, match=r"no C\+\+ compiler \(g\+\+, c\+\+, clang\+\+\)"):
        build()
    world.patch.setenv("PATH", f"{world.folder}:{path}")
    world.compiler(name="g++")
    build()
    assert world.calls == 1


# --- where it is used ---------------------------------------------------------------------------

_STEPS = """
import warnings, torch, manifoldnet as mn
layer = torch.nn.Linear(3, 2, bias=False)
mn.declare(layer, "weight", mn.Oblique(), project=True)
optimizer = mn.RiemannianSGD(layer.parameters(), lr=0.1, fused=True)
layer.weight.grad = torch.ones(2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer.step()
    optimizer.step()
print([w.category.__name__ for w in caught], caught[0].message, mn.violations(layer))
"""


@pytest.mark.parametrize("write", ["exit 1", 'echo junk > "$2"'])
@pytest.mark.thorough
def test_without_the_kernel_a_step_warns_and_is_taken(
    fresh: Forks, world: World, write: str
) -> None:
    world.compiler(write=write)
    names = {name: os.environ[name] for name in ("MANIFOLDNET_CACHE", "CXX")}
    done = fresh(_STEPS, environment={**names, "TMPDIR": str(world.folder / "tmp")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['RuntimeWarning'] fused=True: the kernel could not be compiled")
    assert not list(world.cache.glob("*.so"))


def test_the_command_compiles_before_the_first_step(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-kernel"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(build())
    assert main(["build-kernel", "--force"]) == 0
    assert world.calls == 2
    world.patch.setenv("CXX", "none")
    assert main(["build-kernel", "--force"]) == 2
    assert "CXX='none' names no program" in capsys.readouterr().err
    assert Path(path).exists()
