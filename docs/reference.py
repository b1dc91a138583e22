"""A check of the built reference: every public name has an entry.

    python docs/reference.py build/site     lists those that have none, and fails if there are any

Public is what a module's `__all__` names. Entries are those of objects.inv, the inventory for other
projects' links; what has no docstring is left out of it.
"""

import importlib
import inspect
import pkgutil
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import manifoldnet


def entries(site: Path) -> set[str]:
    """The full names in the inventory of a built site."""
    inventory = (site / "objects.inv").read_bytes()
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    return {line.split(" ")[0] for line in body.splitlines()}


def public_modules() -> Iterator[ModuleType]:
    """Modules with no underscore in their names."""
    yield manifoldnet
    for found in pkgutil.walk_packages(manifoldnet.__path__, "manifoldnet."):
        if not re.search(r"\._", found.name):
            yield importlib.import_module(found.name)


def has_entry(module: ModuleType, name: str, known: set[str]) -> bool:
    """Test whether a public name, or the object it refers to, is among the entries."""
    value = getattr(module, name)
    if isinstance(value, ModuleType):  # it has no entry of its own, but what it holds has
        return any(entry.startswith(f"{value.__name__}.") for entry in known)
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}" in known
    # Constants and aliases of types do not know where they are defined.
    return any(entry.rpartition(".")[2] == name for entry in known)


def missing(site: Path) -> list[str]:
    """Public names without an entry."""
    known = entries(site)
    return [
        f"{module.__name__}.{name}"
        for module in public_modules()
        for name in getattr(module, "__all__", ())
        if not name.startswith("__") and not has_entry(module, name, known)
    ]


if __name__ == "__main__":
    if names := missing(Path(sys.argv[1])):
        sys.exit(
            "no page of docs/api shows these public names (has each a docstring, and its module a "
            "`:::` there?):\n  " + "\n  ".join(names)
        )
