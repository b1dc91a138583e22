"""The builder of notebooks: what a page holds, how failures read, and when nothing is run."""

import subprocess
import sys
from pathlib import Path

import pytest
from builder import SCRIPT, build

pytestmark = pytest.mark.thorough

# A cell that shows the smallest PNG there is.
DRAW = """\
from base64 import b64decode
from IPython.display import Image

start = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
Image(b64decode(start + "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))"""
GOOD = f"""\
# %% [markdown]
# # A title
#
# See [the API](../docs/api/geometry.md) and [the next](2-next.ipynb).

# %%
from pathlib import Path

print(Path.cwd().name)
print("in two lines")
6 * 7

# %% alt="a grey pixel"
{DRAW}

# %%
from IPython.display import Markdown

Markdown("| a | b |\\n|---|---|\\n| 1 | 2 |")
"""
BAD = {
    "1-raises": ("x = 1\n# %%\nx / 0", "code cell 2 (x / 0): ZeroDivisionError: division by zero"),
    "2-warns": (
        "import warnings; warnings.warn('beware')",
        "code cell 1 (import warnings; warnings.warn('beware')): it writes to stderr:",
    ),
    "3-mute": (
        DRAW,
        "code cell 1 (from base64 import b64decode): its picture has no words",
    ),
    "4-dies": ("import os\nos._exit(1)", "code cell 1 (import os): "),
}


def write(root: Path, **notebooks: str) -> Path:
    for name, text in notebooks.items():
        path = root / "notebooks" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def run(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_page_has_what_the_notebook_gave_and_is_made_once(tmp_path: Path) -> None:
    root = write(tmp_path, **{"1-good": GOOD})
    result = run(root)
    assert result.returncode == 0, result.stderr
    assert "notebooks/1-good.py: " in result.stdout

    page = root / "docs" / "notebooks" / "1-good.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# A title\n")
    assert "[the API](../api/geometry.md) and [the next](2-next.md)" in text
    assert "```python\nfrom pathlib import Path\n" in text
    assert "```text\nnotebooks\nin two lines\n```\n\n```text\n42\n```" in text
    assert "\n| a | b |\n|---|---|\n| 1 | 2 |\n" in text
    assert "![a grey pixel](1-good/1.png)" in text
    assert (page.parent / "1-good" / "1.png").read_bytes().startswith(b"\x89PNG")

    page.write_text(text + "by hand", encoding="utf-8")
    (page.parent / "0-gone.md").touch()
    assert run(root).returncode == 0
    assert page.read_text(encoding="utf-8") == text, "a page that was changed is made again"
    assert not (page.parent / "0-gone.md").exists()

    made = page.stat().st_mtime_ns
    assert run(root).stdout == "notebooks: 1 of 1 pages are up to date\n"
    assert page.stat().st_mtime_ns == made


def test_what_is_wrong_is_named_by_notebook_and_cell(tmp_path: Path) -> None:
    write(tmp_path, **{name: f"# %%\n{code}\n" for name, (code, _) in BAD.items()})
    write(tmp_path, **{"5-good": GOOD})
    result = run(tmp_path)
    assert result.returncode == 1
    for name, (_, message) in BAD.items():
        assert f"notebooks/{name}.py: {message}" in result.stderr
    assert "notebooks/5-good.py: " in result.stdout, "the others are made all the same"
    assert {path.stem for path in (tmp_path / "docs" / "notebooks").iterdir()} == {"5-good"}


CHANGES = [
    "notebooks/1-good.py",
    "notebooks/matplotlibrc",
    "constraints.txt",
    "manifoldnet/geometry/sphere.py",
    "docs/results/symmetry-paper/records.jsonl.gz",
    "docs/notebooks/1-good.md",
    "docs/notebooks/1-good/1.png",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_page_is_current_until_something_changes(tmp_path: Path, change: str) -> None:
    for name in CHANGES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    project = build.Project(tmp_path)
    (source,) = project.sources
    assert not project.is_current(source)

    stamp = project.stamp_path("1-good")
    stamp.parent.mkdir(parents=True)
    stamp.write_text(project.stamp(source))
    assert project.is_current(source)

    (tmp_path / change).write_text("after")
    assert not project.is_current(source)


def test_a_fence_is_longer_than_those_in_it() -> None:
    assert build.fenced("text", "a\n````\nb\n\n") == "`````text\na\n````\nb\n`````"


def test_ids_of_cells_do_not_change(tmp_path: Path) -> None:
    (source,) = build.Project(write(tmp_path, **{"1-good": GOOD})).sources
    assert build.paired(source) == build.paired(source)
    assert '"id": "cell-0"' in build.paired(source)
    assert '"outputs": []' in build.paired(source)
