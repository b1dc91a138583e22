"""First lines of docstrings: noun phrases and imperatives, no questions.

"Parallel transport along a geodesic.", not "Where a vector goes".
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("manifoldnet", "tests", "docs", "notebooks")
QUESTIONS = {"what", "how", "whether", "which", "who", "whose", "where", "why"}

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def questions(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings that open with a question word: (line, first line)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Definition):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            word = first.partition(" ")[0].strip("\"'`*_,.:;?").lower()
            if word.partition("'")[0].partition("’")[0] in QUESTIONS:
                yield getattr(node, "lineno", 1), first


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_open_with_statements(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts]
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line}: {first}"
        for path in sorted(files)
        for line, first in questions(path.read_text(encoding="utf-8"))
    ]
    assert not found, "open with a noun phrase or an imperative:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module holds."""',
        'class A:\n    """Where: a class."""',
        'def f():\n    """How far?\n\n    In metres.\n    """',
        'async def f():\n    """Who\'s next."""',
        'def f():\n    def g():\n        """*Whether* it is."""',
    ],
)
def test_a_question_is_seen(source: str) -> None:
    assert len(list(questions(source))) == 1


@pytest.mark.parametrize(
    "first", ["Whatever comes.", "The way how.", "Test whether.", "", "Wholly."]
)
def test_a_statement_passes(first: str) -> None:
    assert not list(questions(f'"""{first}"""' if first else "x = 1"))
