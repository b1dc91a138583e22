"""Names of classes in specs: dictionaries that grow by registration only.

A class statement changes nothing. A name belongs to one class and a class has one name, so what is
read back is what was written down.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

__all__ = ["add_name", "name_of"]

_T = TypeVar("_T")


def add_name(known: dict[str, type[_T]], name: str, cls: type[_T], base: type[Any]) -> None:
    """Add a class to a dictionary of names; again under the same name changes nothing.

    A class of the same module and name takes the place of its former definition, as when a cell of
    a notebook is run again.

    Args:
        known: the dictionary.
        name: not empty.
        cls: a concrete subclass of `base`.
        base: what all classes of the dictionary derive from.

    Raises:
        ValueError: for a name that another class has, a class that has another name, and what is
            no such class.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a name is a string that is not empty, not {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, base)) or inspect.isabstract(cls):
        raise ValueError(f"{cls!r} is not a concrete subclass of {base.__name__}")
    taken = known.get(name)
    if taken is not None and not _same(taken, cls):
        raise ValueError(
            f"the name {name!r} is taken by {_path(taken)}: register {_path(cls)} by another one"
        )
    for other, owner in known.items():
        if other != name and _same(owner, cls):
            raise ValueError(f"{_path(cls)} is registered already, as {other!r}")
    known[name] = cls


def name_of(known: dict[str, type[_T]], cls: type[_T]) -> str:
    """The name of a class; `module.Class`, which no registered class has, if it has none."""
    return next((name for name, owner in known.items() if owner is cls), _path(cls))


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _same(one: type[Any], other: type[Any]) -> bool:
    """Test whether two classes are one, or two definitions of one."""
    return _path(one) == _path(other)
