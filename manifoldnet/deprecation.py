"""Old public names that still work: their use gives a `FutureWarning` with the new name.

    class Generator:
        kind = renamed_attribute("Generator.kind", "Generator.family", removed_in="0.4.0")

    @renamed_argument("scaling", "symmetry", removed_in="0.4.0")
    def assert_loss_invariant(model, symmetry, ...): ...

    __getattr__ = renamed_module("manifoldnet.parameter", NEW, removed_in="0.4.0")

A name that was public in a release works for two more minor releases, and is then removed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar, cast

__all__ = ["renamed_argument", "renamed_attribute", "renamed_module"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _warn(old: str, new: str, removed_in: str) -> None:
    warnings.warn(
        f"{old} is called {new} now; the old name will be removed in manifoldnet {removed_in}",
        FutureWarning,
        stacklevel=3,
    )


def renamed_attribute(old: str, new: str, removed_in: str) -> property:
    """The old name of an attribute, as a property for the body of its class.

    Args:
        old: "Class.name" as it was.
        new: "Class.name" as it is.
        removed_in: the version without the old name.
    """

    def read(self: Any) -> Any:
        _warn(old, new, removed_in)
        return getattr(self, new.rpartition(".")[2])

    return property(read, doc=f"Old name of `{new}`.")


def renamed_argument(old: str, new: str, removed_in: str) -> Callable[[_Function], _Function]:
    """A decorator for a function that takes an argument by its old name, too.

    Args:
        old: the keyword as it was.
        new: the keyword as it is.
        removed_in: the version without the old name.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if old in options:
                where = f" of {function.__name__}"
                if new in options:
                    raise TypeError(f"{old}{where} is the old name of {new}: give one of them")
                _warn(f"{old}{where}", new, removed_in)
                options[new] = options.pop(old)
            return function(*args, **options)

        return cast(_Function, call)

    return decorate


def renamed_module(old: str, new: str | Sequence[str], removed_in: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that was renamed, or whose names are in several now.

    Args:
        old: the module's name.
        new: the module or modules that have its names.
        removed_in: the version without the old one.
    """
    modules = (new,) if isinstance(new, str) else tuple(new)

    def find(name: str) -> Any:
        for module in map(import_module, modules):
            if name in module.__all__:
                _warn(f"{old}.{name}", f"{module.__name__}.{name}", removed_in)
                return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find
