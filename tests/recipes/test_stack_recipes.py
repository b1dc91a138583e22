"""The scripts of docs/recipes run as they are printed, each in a process of its own.

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
FILTERS = ("error", "ignore:`torch.jit.:DeprecationWarning")
SECONDS = 120


class Needs(NamedTuple):
    """Requirements of a script beyond torch."""

    packages: tuple[str, ...] = ()  # it is skipped without them
    launcher: tuple[str, ...] = ()  # `python LAUNCHER… script.py`
    thorough: bool = True  # 2 s of CPU or more, the imports of its packages included
    filters: tuple[str, ...] = ()  # of warnings of its packages, as for `python -W`


# A script without a row is quick, and runs in a process that has torch already.
TORCHRUN = Needs(launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"))
LIGHTNING = Needs(
    packages=("lightning",),
    filters=(
        "ignore:`isinstance(treespec:FutureWarning",
        "ignore:The 'train_dataloader':UserWarning",
    ),
)
NEEDS: dict[str, Needs] = {
    "compiled": Needs(),
    "ddp": TORCHRUN,
    "fsdp2": TORCHRUN,
    "sharded_checkpoint": TORCHRUN,
    "with_accelerate": Needs(packages=("accelerate",)),
    "with_lightning": LIGHTNING,
    "with_lightning_manual": LIGHTNING,
    "with_trainer": Needs(packages=("transformers",)),
    "with_trainer_class": Needs(packages=("transformers",)),
}

# Importing torch takes longer than a recipe does: children are forked from a process that has it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch._dynamo", "manifoldnet"])


def execute(path: Path, folder: Path, log: Path) -> None:
    """Run a script as `__main__` in a folder; what it says goes to a file, with any traceback."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    sys.argv = [str(path)]
    warnings.simplefilter("error")
    for ignored in FILTERS[1:]:
        _, message, category = ignored.split(":")
        warnings.filterwarnings("ignore", message, getattr(builtins, category))
    runpy.run_path(str(path), run_name="__main__")


def run(path: Path, folder: Path, needs: Needs | None = None) -> tuple[int | None, str]:
    """The exit code of a script, run in a folder, and what it has printed."""
    log = folder.parent / f"{folder.name}.log"
    if needs is None:
        child = FORKS.Process(target=execute, args=(path, folder, log))
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
        return child.exitcode, log.read_text(encoding="utf-8")
    options = [f"-W{each}" for each in (*FILTERS, *needs.filters)]
    found_in = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        [sys.executable, *options, *needs.launcher, str(path)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": found_in},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * SECONDS,
    )
    return child.returncode, child.stdout


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
    code, said = run(path, folder, NEEDS.get(path.stem))
    assert code == 0, said
    assert said.strip(), "it prints no verdict"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print('done')", 0),
        ("print('done')\nassert 1 > 2", 1),
        ("import warnings\nwarnings.warn('mind this')", 1),
        ("import os\nassert not os.listdir() and __name__ == '__main__'", 0),
    ],
)
@pytest.mark.parametrize("needs", [None, Needs()], ids=["forked", "started"])
def test_a_failing_recipe_is_seen(
    source: str, expected: int, needs: Needs | None, tmp_path: Path
) -> None:
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
