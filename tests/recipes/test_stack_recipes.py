"""The scripts of docs/recipes run as they are printed, each in a process of its own, or in two.

A new recipe is a script of under 40 lines that ends with a printed verdict and an `assert`, and
stands on one page as a snippet. What a script needs beyond torch is a row in `NEEDS`.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import multiprocessing
import os
import re
import runpy
import socket
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "recipes").glob("*.py"))
# As for `python -W`. geoopt 0.5 compiles its formulas with torch.jit.script when it is imported.
FILTERS = ("ignore:`torch.jit.:DeprecationWarning",)
SECONDS = 120


class Needs(NamedTuple):
    """Requirements of a script beyond torch."""

    packages: tuple[str, ...] = ()  # it is skipped without them
    processes: int = 1  # as `torchrun --nproc-per-node` starts them
    thorough: bool = True  # 2 s of CPU or more, the imports of its packages included
    filters: tuple[str, ...] = ()  # of warnings of its packages, as for `python -W`


# A script without a row is quick.
TWO = Needs(processes=2)
LIGHTNING = Needs(
    packages=("lightning",),
    filters=(
        "ignore:`isinstance(treespec:FutureWarning",
        "ignore:The 'train_dataloader':UserWarning",
    ),
)
NEEDS: dict[str, Needs] = {
    "compiled": Needs(),
    "ddp": TWO,
    "fsdp2": TWO,
    "sharded_checkpoint": TWO,
    "with_accelerate": Needs(packages=("accelerate",)),
    "with_lightning": LIGHTNING,
    "with_lightning_manual": LIGHTNING,
    "with_trainer": Needs(packages=("transformers",)),
    "with_trainer_class": Needs(packages=("transformers",)),
}

# Importing torch takes longer than a recipe does: children are forked from a process that has it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch._dynamo", "manifoldnet"])


def execute(path: Path, folder: Path, log: Path, needs: Needs, torchrun: dict[str, str]) -> None:
    """Run a script as `__main__` in a folder; what it says goes to a file, with any traceback."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    os.environ.update(torchrun)
    sys.argv = [str(path)]
    warnings.simplefilter("error")
    for ignored in (*FILTERS, *needs.filters):
        _, message, category = ignored.split(":")
        warnings.filterwarnings("ignore", re.escape(message), getattr(builtins, category))
    runpy.run_path(str(path), run_name="__main__")


def run(path: Path, folder: Path, needs: Needs) -> tuple[int | None, str]:
    """The exit code of a script, run in a folder, and what it has printed."""
    log = folder.parent / f"{folder.name}.log"
    torchrun = [{}] if needs.processes == 1 else ranks(needs.processes)
    children = [
        FORKS.Process(target=execute, args=(path, folder, log, needs, own)) for own in torchrun
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(SECONDS)
        if child.exitcode != 0:  # the others may wait for this one
            for other in children:
                other.kill()
                other.join()
    code = next((child.exitcode for child in children if child.exitcode != 0), 0)
    return code, log.read_text(encoding="utf-8")


def ranks(count: int) -> list[dict[str, str]]:
    """The variables that `torchrun` sets, for each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [{**same, **sizes, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(count)]


def parameter(path: Path) -> object:
    needs = NEEDS.get(path.stem)
    missing = [p for p in needs.packages if importlib.util.find_spec(p) is None] if needs else []
    marks = [pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")]
    if needs is not None and needs.thorough:
        marks.append(pytest.mark.thorough)
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [parameter(path) for path in SCRIPTS])
def test_a_recipe_runs_without_a_warning(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    code, said = run(path, folder, NEEDS.get(path.stem, Needs(thorough=False)))
    assert code == 0, said
    assert said.strip(), "it prints no verdict"


@pytest.mark.thorough
def test_torchrun_runs_a_recipe(tmp_path: Path) -> None:
    """As its page says; above, the variables of `torchrun` are set without it."""
    script = str(ROOT / "docs" / "recipes" / "fsdp2.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *("--nproc-per-node", "2", script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=5 * SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it prints no verdict"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print('done')", 0),
        ("print('done')\nassert 1 > 2", 1),
        ("import warnings\nwarnings.warn('mind this')", 1),
        ("import os\nassert not os.listdir() and __name__ == '__main__'", 0),
    ],
)
@pytest.mark.parametrize("needs", [Needs(), TWO], ids=["one process", "two"])
def test_a_failing_recipe_is_seen(source: str, expected: int, needs: Needs, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "empty"
    folder.mkdir()
    script.write_text(source)
    code, said = run(script, folder, needs)
    assert code == expected
    assert ("Error" in said or "Warning" in said) is bool(expected)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_ends_with_a_check(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "nothing is asserted"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_recipe_stands_on_one_page_and_in_the_table(path: Path) -> None:
    """The table is that of recipes/index.md: it links to the section that has the script."""
    snippet = f'--8<-- "docs/recipes/{path.name}"'
    docs = ROOT / "docs"
    pages = {page: page.read_text(encoding="utf-8") for page in docs.rglob("*.md")}
    found = [page for page, text in pages.items() for _ in range(text.count(snippet))]
    assert len(found) == 1, found
    heading = re.findall(r"^##+ (.*)$", pages[found[0]].split(snippet)[0], re.MULTILINE)[-1]
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
    link = f"{os.path.relpath(found[0], docs / 'recipes')}#{slug}"
    assert f"({link})" in pages[docs / "recipes" / "index.md"]


@pytest.mark.parametrize("name", NEEDS)
def test_needs_are_those_of_a_script(name: str) -> None:
    assert name in {path.stem for path in SCRIPTS}
