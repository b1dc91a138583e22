"""The arrows between the rooms of the package, read from its import statements.

    geometry → registry → declarations → optim → symmetry → nn → interop → experiments → cli

An import may only point to the left. `testing` may import every room before `interop` and is
imported by none. Where a package's `__init__` re-exports a name, the arrow
goes from the module that uses the name to the one that defines it.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "manifoldnet"

# Rooms from left to right.
ROOMS = [
    {"geometry", "cache", "deprecation"},
    {"registry"},
    {"names", "declarations", "checkpoints", "parameter_groups", "manifold_parameter"}
    | {"foreign", "rules", "dataflow", "summaries", "parameter"},
    {"optim"},
    {"symmetry"},
    {"nn", "objective"},
    {"interop"},
    {"experiments"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
APART = {"testing"}

# Other packages, besides the standard library. What is not listed here may use the light ones.
LIGHT = {"torch", "numpy", "filelock"}
ALLOWED = {
    "geometry": {"torch"},
    "optim.backends.triton.kernels": {"triton"},
    "geometry._geoopt": {"geoopt"},
    "symmetry.conservation": LIGHT | {"matplotlib"},  # to plot, when asked
    "testing": LIGHT | {"hypothesis"},
    "interop": LIGHT | {"geoopt", "pymanopt"},
    "experiments": LIGHT
    | {"datasets", "distributed", "geoopt", "matplotlib", "pandas", "PIL", "scipy", "sklearn"}
    | {"tqdm"},
    "cli": set(),
}

# Last names of modules below `experiments`: those that read records, and those that train. What
# steps an optimizer counts as training, wherever it stands.
REPORTS = {"report", "claims", "figures", "tables", "results", "records", "statistics"}
TRAINING = {"training", "run", "networks", "network", "comparison", "sweep", "times", "timing"}
STEPS = {"optim", "interop"}


class Import(NamedTuple):
    """One name that a module imports, and where the statement stands."""

    module: str
    name: str | None
    line: int


@dataclass
class Tree:
    """The modules of a package, by dotted name, and what each of them imports."""

    root: Path
    package: str = PACKAGE
    imports: dict[str, list[Import]] = field(init=False)
    packages: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.imports, self.packages = {}, set()
        for path in sorted((self.root / self.package).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            if is_package:
                self.packages.add(module)
            home = module if is_package else module.rpartition(".")[0]
            source = ast.parse(path.read_text(encoding="utf-8"), str(path))
            self.imports[module] = list(statements(source, home))

    def home(self, module: str, name: str | None) -> Iterator[str]:
        """The modules that `from module import name` comes from, through re-exports."""
        if f"{module}.{name}" in self.imports:
            yield f"{module}.{name}"
        elif module in self.packages:
            found = [i for i in self.imports[module] if name in (i.name, None)]
            if not found:
                yield module  # defined in the __init__ itself, or named in a table of its own
            for each in found:
                if each.module.split(".")[0] == self.package:
                    yield from self.home(each.module, each.name)
        else:
            yield module

    def arrows(self) -> Iterator[tuple[str, str, Import]]:
        """Every import inside the package, except those of an `__init__`: (from, to, statement)."""
        for module, statements in self.imports.items():
            if module in self.packages:
                continue
            for each in statements:
                if each.module.split(".")[0] == self.package:
                    for target in self.home(each.module, each.name):
                        yield module, target, each

    def others(self) -> Iterator[tuple[str, str, int]]:
        """Every import from outside: (module, top-level package, line)."""
        for module, statements in self.imports.items():
            for each in statements:
                top = each.module.split(".")[0]
                if top != self.package:
                    yield module, top, each.line

    def within(self, module: str) -> str:
        """A module's name without the package's."""
        return module.removeprefix(self.package).removeprefix(".")


def statements(tree: ast.AST, package: str) -> Iterator[Import]:
    """The import statements of a module, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = base if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            yield from (Import(module, a.name, node.lineno) for a in node.names)
        else:
            yield from statements(node, package)


def room(name: str) -> str:
    return name.split(".")[0]


def misplaced(tree: Tree) -> Iterator[str]:
    """Modules that no room is known for."""
    for module in tree.imports:
        name = tree.within(module)
        if name and room(name) not in RANK and room(name) not in APART:
            yield f"{module} stands in no room: give it a place in ROOMS"


def wrong_way(tree: Tree) -> Iterator[str]:
    """Imports that point to the right, into what stands apart, or from it into experiments."""
    for module, target, each in tree.arrows():
        here, there = room(tree.within(module)), room(tree.within(target))
        if not there or here not in RANK | dict.fromkeys(APART):
            continue
        if there in APART:
            allowed = here == there
        elif here in APART:
            allowed = RANK[there] < RANK["interop"]
        else:
            allowed = RANK[there] <= RANK[here]
        if not allowed:
            yield f"{module}:{each.line} imports {target}: {here} may not know {there}"


def too_heavy(tree: Tree) -> Iterator[str]:
    """Imports of packages that a room does without."""
    for module, top, line in tree.others():
        name = tree.within(module)
        allowed = ALLOWED.get(name, ALLOWED.get(room(name), LIGHT))
        if top not in allowed and top not in sys.stdlib_module_names:
            yield f"{module}:{line} imports {top}: {room(name) or 'the package'} does without it"


def paper_of(name: str) -> str:
    """The paper whose package a module stands in; "" for the engine and what papers share."""
    match name.split("."):
        case ["experiments", "papers", paper, _, *_]:
            return paper
    return ""


def papers_apart(tree: Tree) -> Iterator[str]:
    """Imports of a paper by the engine or by another paper."""
    for module, target, each in tree.arrows():
        here, there = tree.within(module), tree.within(target)
        engine = here.startswith("experiments.") and len(here.split(".")) == 2
        shared = here.startswith("experiments.papers.")
        if paper_of(there) not in ("", paper_of(here)) and (engine or shared):
            owner = paper_of(here) or "what no paper owns"
            yield f"{module}:{each.line} imports {target}: {owner} may not know that paper"


def training_reports(tree: Tree) -> Iterator[str]:
    """Report code that reaches the code that trains, directly or through other modules."""
    arrows: dict[str, set[str]] = {}
    for module, target, _ in tree.arrows():
        arrows.setdefault(tree.within(module), set()).add(tree.within(target))
    for report in map(tree.within, tree.imports):
        if not report.startswith("experiments.") or report.split(".")[-1] not in REPORTS:
            continue
        seen, ahead = set(), [report]
        while ahead:
            here = ahead.pop()
            if here not in seen:
                seen.add(here)
                ahead += arrows.get(here, ())
        for name in sorted(seen):
            trains = name.startswith("experiments.") and name.split(".")[-1] in TRAINING
            if trains or room(name) in STEPS:
                yield f"{tree.package}.{report} reads records, but reaches {name}"


def circles(tree: Tree) -> Iterator[str]:
    """Modules that import each other, be it within a function or for type checkers only."""
    graph: dict[str, set[str]] = {}
    for module, target, _ in tree.arrows():
        if module != target:
            graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "circle: " + " → ".join(reversed(error.args[1]))


@functools.cache
def package() -> Tree:
    """The package, parsed once."""
    return Tree(ROOT)


RULES = [misplaced, wrong_way, too_heavy, papers_apart, training_reports, circles]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule) -> None:
    problems = list(rule(package()))
    assert not problems, "\n".join(problems)


def test_every_rule_sees_the_package() -> None:
    tree = package()
    assert f"{PACKAGE}.geometry.oblique" in tree.imports
    assert any(here.endswith(".declarations") for here, _, _ in tree.arrows())
    names = {module.split(".")[-1] for module in tree.imports}
    assert names >= REPORTS | TRAINING, "REPORTS and TRAINING name modules that are gone"
    assert {paper_of(tree.within(module)) for module in tree.imports} > {"", "symmetry", "segnet"}


# Each tree breaks one rule: files, the rule, and what it must say.
BAD_TREES = [
    ({"drawer.py": ""}, misplaced, "drawer stands in no room"),
    (
        {"geometry/a.py": "from manifoldnet.declarations import declare", "declarations.py": ""},
        wrong_way,
        "geometry may not know declarations",
    ),
    (
        {"optim/a.py": "def late():\n    from ..experiments import b", "experiments/b.py": ""},
        wrong_way,
        "optim may not know experiments",
    ),
    (  # a re-export does not hide where a name comes from
        {
            "__init__.py": "from manifoldnet.optim import Adam",
            "optim/__init__.py": "from .adam import Adam",
            "optim/adam.py": "",
            "rules.py": "from manifoldnet import Adam",
        },
        wrong_way,
        "rules:1 imports manifoldnet.optim.adam",
    ),
    (  # neither does the package as a whole
        {
            "__init__.py": "from manifoldnet.optim import sgd",
            "optim/__init__.py": "",
            "optim/sgd.py": "",
            "geometry/a.py": "import manifoldnet as mn",
        },
        wrong_way,
        "geometry may not know optim",
    ),
    (
        {"nn/a.py": "import manifoldnet.testing.laws", "testing/laws.py": ""},
        wrong_way,
        "nn may not know testing",
    ),
    (
        {"testing/a.py": "from manifoldnet.interop import b", "interop/b.py": ""},
        wrong_way,
        "testing may not know interop",
    ),
    (
        {"interop/a.py": "from manifoldnet.experiments import b", "experiments/b.py": ""},
        wrong_way,
        "interop may not know experiments",
    ),
    ({"geometry/a.py": "import numpy"}, too_heavy, "geometry does without it"),
    ({"geometry/a.py": "from geoopt import Sphere"}, too_heavy, "imports geoopt"),
    ({"optim/a.py": "import matplotlib.pyplot"}, too_heavy, "imports matplotlib"),
    ({"__init__.py": "import pymanopt"}, too_heavy, "the package does without it"),
    (
        {
            "experiments/__init__.py": "",
            "experiments/papers/__init__.py": "",
            "experiments/papers/symmetry/__init__.py": "",
            "experiments/papers/symmetry/figures.py": "from ... import helpers",
            "experiments/helpers.py": "def f():\n    from .training import train",
            "experiments/training.py": "",
        },
        training_reports,
        "figures reads records, but reaches experiments.training",
    ),
    (
        {
            "experiments/progress.py": "from .papers.symmetry.rows import Epoch",
            "experiments/papers/symmetry/rows.py": "",
        },
        papers_apart,
        "progress:1 imports manifoldnet.experiments.papers.symmetry.rows: what no paper owns",
    ),
    (
        {
            "experiments/papers/segnet/run.py": "from ..symmetry.networks import declare",
            "experiments/papers/symmetry/networks.py": "",
        },
        papers_apart,
        "segnet may not know that paper",
    ),
    (
        {
            "optim/a.py": "from manifoldnet.optim import b",
            "optim/b.py": "import manifoldnet.optim.a",
        },
        circles,
        "manifoldnet.optim.a",
    ),
]

GOOD_TREE = {
    "__init__.py": "from manifoldnet import optim\nfrom manifoldnet.geometry import Sphere",
    "geometry/__init__.py": "from .sphere import Sphere",
    "geometry/sphere.py": "import math\nimport torch",
    "geometry/_geoopt.py": "import geoopt",
    "manifold_parameter.py": "from manifoldnet.geometry._geoopt import geoopt",
    "declarations.py": "import torch\nfrom manifoldnet.geometry import Sphere",
    "optim/__init__.py": "from .sgd import SGD",
    "optim/sgd.py": "import manifoldnet.declarations\nfrom manifoldnet import Sphere",
    "experiments/__init__.py": "from .training import train",
    "experiments/training.py": "import tqdm\nimport manifoldnet as mn\nfrom . import records",
    "experiments/records.py": "import json",
    "experiments/plots.py": "import matplotlib\nfrom .records import Record",
    "experiments/papers/updates.py": "",
    "experiments/papers/segnet/run.py": "from manifoldnet.experiments.papers import updates",
    "cli.py": "from manifoldnet.experiments import train",
    "testing/laws.py": "import hypothesis\nfrom manifoldnet.optim import SGD",
}


def write(folder: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Tree(folder)


@pytest.mark.parametrize(("files", "rule", "message"), BAD_TREES)
def test_a_bad_tree_is_seen(tmp_path: Path, files: dict[str, str], rule, message: str) -> None:
    problems = list(rule(write(tmp_path, files)))
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_passes(tmp_path: Path, rule) -> None:
    assert list(rule(write(tmp_path, GOOD_TREE))) == []
