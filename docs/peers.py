"""Twelve tasks in manifoldnet and in other libraries, side by side.

    python docs/peers.py            runs all of them and writes results/peers.csv
    python docs/peers.py --table    prints the record as the table of coming_from.md

Each file of peer_tasks/ is one task: what all libraries share, and a function for each library with
what its user writes. The first word of the function's docstring is the verdict: `works`, `trap` (it
works, with something to know or to write by hand) or `no`. `lines` are the lines of the function
without comments, docstring and imports; `names` counts the names of the library that it uses.
`measured` is what `measure` returned for it. `ABSENT` gives the libraries that have nothing to run.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import manifoldnet as mn

RECORD = Path(__file__).parent / "results" / "peers.csv"
LIBRARIES = {
    "manifoldnet": {"mn", "minimize", "Manifold", "Metric", "Projection", "Retraction"}
    | {"Geodesics", "Additive", "Slices", "resolve_retraction"},
    "geoopt": {"go"},
    "geotorch": {"gt"},
    "torch_parametrizations": {"parametrizations", "parametrize"},
    "pymanopt": {"pm"},
    "adamp": {"SGDP"},
}
TASKS = {
    "unit_norm": "unit-norm filters of a whole CNN",
    "orthogonal": "orthogonal layer: tall, wide, kernel",
    "own_optimizer": "keep AdamW or Muon",
    "poincare": "Poincaré embedding",
    "checkpoints": "resume, strict loading, tied weights, `assign=True`",
    "pca": "PCA on Stiefel, second order",
    "second_order_network": "second-order solver over a network",
    "own_manifold": "a set of your own",
    "cosine_padding": "cosine embeddings, padding row",
    "lora": "LoRA, independent of the split into factors",
    "compile_amp": "`torch.compile`, bfloat16 autocast",
    "off_manifold": "weights that are off the set",
}


class Row(NamedTuple):
    """One library in one task."""

    task: str
    library: str
    verdict: str
    lines: int | None
    names: int | None
    remark: str
    measured: str


def load(task: str) -> Any:
    """The module of a task."""
    return importlib.import_module(f"peer_tasks.{task}")


def counts(setup: Callable[..., Any], roots: set[str]) -> tuple[int, int]:
    """The lines of a function, and the names that it takes from a library."""
    source = inspect.getsource(setup)
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:]  # without the docstring
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    names = set()
    for node in ast.walk(function):
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in roots:
            names.add(ast.unparse(node))
    inner = {name for name in names if any(other.startswith(name + ".") for other in names)}
    return len(code), len(names - inner)


def measured(module: Any, setup: Callable[..., Any]) -> dict[str, Any]:
    """The results of a task for a library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mn.ForeignOptimizerWarning)
        return dict(module.measure(setup))


def printed(value: Any) -> str:
    """A number to two digits."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def rows(run: bool = True) -> Iterator[Row]:
    """All libraries in all tasks; `measured` stays empty without a run."""
    for task in TASKS:
        module = load(task)
        for library, roots in LIBRARIES.items():
            if library in module.ABSENT:
                yield Row(task, library, "no", None, None, module.ABSENT[library], "")
                continue
            setup = getattr(module, library)
            verdict, _, remark = (setup.__doc__ or "").partition(" ")
            found = measured(module, setup) if run else {}
            text = "; ".join(f"{name} {printed(value)}" for name, value in found.items())
            remark = remark.strip("()")
            yield Row(task, library, verdict.strip(":"), *counts(setup, roots), remark, text)


def record() -> list[dict[str, str]]:
    """The rows of the record."""
    with RECORD.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """The record as a table: verdicts, and the number of lines behind them."""
    cells = {(row["task"], row["library"]): row for row in record()}
    libraries = [library for library in LIBRARIES if library != "adamp"]
    head = ["task", *(name.replace("torch_parametrizations", "torch") for name in libraries)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, title in TASKS.items():
        verdicts = []
        for library in libraries:
            row = cells[task, library]
            word = {"works": "yes", "trap": "with care", "no": "–"}[row["verdict"]]
            shown = f"{word}, {row['lines']}" if row["lines"] and word != "–" else word
            verdicts.append(shown)
        lines.append(f"| {' | '.join([title, *verdicts])} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the record as a table")
    if parser.parse_args().table:
        print(table())
        return
    sys.path.insert(0, str(Path(__file__).parent))
    found = list(rows())
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(found)


if __name__ == "__main__":
    main()
