"""The notebooks, without running them: `make docs` runs them, and fails if one does."""

import shlex
from pathlib import Path

import pytest
from builder import ROOT, build
from test_readme import blocks, check, commands

SOURCES = build.Project(ROOT).sources
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def test_there_are_notebooks() -> None:
    assert len(SOURCES) == 8


@each_notebook
def test_the_ipynb_is_that_of_the_source(source: Path) -> None:
    there = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert there == build.paired(source), "run python notebooks/build.py --pair"


def test_no_ipynb_is_left_over() -> None:
    left = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert left == {source.stem for source in SOURCES}


@each_notebook
def test_it_begins_with_a_title_and_what_the_reader_learns(source: Path) -> None:
    first = build.read(source).cells[0]
    title, _, summary = first.source.partition("\n\n")
    assert first.cell_type == "markdown"
    assert title.startswith("# ")
    assert summary


@each_notebook
def test_what_it_says_is_asserted(source: Path) -> None:
    assert "\nassert " in source.read_text(encoding="utf-8")


@each_notebook
def test_it_is_in_the_navigation(source: Path) -> None:
    assert f"notebooks/{source.stem}.md\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@each_notebook
def test_its_commands_exist(source: Path) -> None:
    for cell in build.read(source).cells:
        if cell.cell_type == "markdown":
            for block in blocks(cell.source):
                assert block.language == "console"
                for _, words in commands(block):
                    try:
                        check(words)
                    except ValueError as error:
                        pytest.fail(f"{shlex.join(words)}: {error}")
