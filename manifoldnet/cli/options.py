"""Flags from dataclasses: names, types, defaults and help are those of the fields."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from manifoldnet.experiments.configuration import declared, descriptions

T = TypeVar("T")
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def add_options(parser: Any, cls: type[Any], names: Collection[str] | None = None) -> None:
    """Add a flag for each field of a dataclass."""
    types, texts = declared(cls), descriptions(cls)
    for each in dataclasses.fields(cls):
        if names is not None and each.name not in names:
            continue
        hint, _, accepted = types[each.name]
        several = typing.get_origin(hint) is tuple
        hint = hint.__args__[0] if several else hint
        text = texts[each.name].partition(". ")[0].rstrip(".")
        text = text.replace("`", "").replace("*", "").replace("%", "%%")
        flag: dict[str, Any] = {"default": each.default}
        if hint is bool:
            flag["action"] = "store_true" if not each.default else argparse.BooleanOptionalAction
        else:
            flag |= {"type": hint, "metavar": _METAVARS[hint]}
            if several:
                flag["nargs"] = "+"
            if accepted.choices is not None:
                text += f": {', '.join(accepted.choices)}"
            if each.default not in (None, ()):
                default: Any = each.default
                text += f" ({' '.join(map(str, default)) if several else default})"
        parser.add_argument(f"--{each.name.replace('_', '-')}", help=text, **flag)


def values(arguments: argparse.Namespace, cls: type[T]) -> T:
    """The dataclass of the parsed flags."""
    known = declared(cls)
    return cls(**{name: value for name, value in vars(arguments).items() if name in known})


def notice_of(options: Any) -> Callable[[str], None] | None:
    """The function that prints a line before anything slow; None with ``--quiet``."""
    return None if options.quiet else lambda line: print(line, file=sys.stderr)
