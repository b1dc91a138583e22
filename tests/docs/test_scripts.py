"""The scripts beside the documentation's pages stand on the public library alone."""

import ast
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SHARED = ("manifoldnet.experiments.plotting.", "manifoldnet.experiments.text.")
SCRIPTS = sorted([*DOCS.glob("*.py"), *DOCS.glob("recipes/*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_nothing_private_and_of_experiments_only_plots_and_texts(
    path: Path,
) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("manifoldnet"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            experiments = name.startswith("manifoldnet.experiments")
            assert not experiments or name.startswith(SHARED), name
            assert "._" not in name, name
