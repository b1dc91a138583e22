"""Texts as numbers of characters, for networks that predict the next one.

    load -> docstrings: the documentation strings of the standard library of the Python that runs
         -> any other name: a text file (UTF-8)

Documentation strings are read from the source, without importing it. They differ between versions
of Python, so that a record's checksum tells them apart.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manifoldnet.experiments.errors import DataError

DOCSTRINGS = "docstrings"
"""The name of the default text."""

_MODULES = (  # of the standard library, in every version of Python from 3.11 on
    *("_collections_abc", "_pydecimal", "_pyio", "abc", "argparse", "ast", "base64", "bdb"),
    *("bisect", "calendar", "cmd", "code", "codecs", "codeop", "collections", "concurrent/futures"),
    *("configparser", "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "difflib"),
    *("dis", "doctest", "email", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib"),
    *("functools", "getopt", "getpass", "gettext", "glob", "graphlib", "gzip", "heapq", "hmac"),
    *("html", "http", "imaplib", "importlib", "inspect", "ipaddress", "json", "linecache"),
    *("locale", "logging", "lzma", "mailbox", "mimetypes", "modulefinder", "multiprocessing"),
    *("netrc", "numbers", "operator", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools"),
    *("pkgutil", "platform", "plistlib", "poplib", "pprint", "profile", "pstats", "pydoc", "queue"),
    *("quopri", "random", "re", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex"),
    *("shutil", "site", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "stat"),
    *("statistics", "string", "stringprep", "subprocess", "symtable", "sysconfig", "tabnanny"),
    *("tarfile", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize", "trace"),
    *("traceback", "types", "typing", "unittest", "urllib", "uuid", "venv", "warnings", "wave"),
    *("weakref", "webbrowser", "wsgiref", "xml", "xmlrpc", "zipapp", "zipfile", "zoneinfo"),
)


@dataclass(frozen=True, eq=False)
class Text:
    """A text as numbers of characters."""

    name: str  # what it was asked for by
    codes: Tensor  # int64, ``(characters,)``, in ``0 … len(alphabet) - 1``
    alphabet: str  # the different characters, sorted

    @classmethod
    def of(cls, name: str, text: str) -> Text:
        """The text as numbers of characters."""
        alphabet = "".join(sorted(set(text)))
        number = {character: i for i, character in enumerate(alphabet)}
        return cls(name, torch.tensor([number[c] for c in text], dtype=torch.long), alphabet)

    def fingerprint(self) -> str:
        """Eight hexadecimal digits of a hash (SHA-256) of the text."""
        text = "".join(map(self.alphabet.__getitem__, self.codes.tolist()))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def load(name: str, notice: Callable[[str], None] | None = None) -> Text:
    """Load a text.

    Args:
        name: ``"docstrings"``, or the path of a text file.
        notice: called with a line of text before anything slow.

    Raises:
        DataError: if the file is missing, is no text, or is empty; if the source of the standard
            library is not there.
    """
    if name == DOCSTRINGS:
        if notice is not None:
            notice("reading the documentation strings of the standard library")
        return Text.of(name, "\n".join(_docstrings(Path(sysconfig.get_path("stdlib")))))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as text ({error}): name a text file in UTF-8, or "
            f"{DOCSTRINGS!r} for Python's documentation strings"
        ) from error
    if not text:
        raise DataError(f"{name} is empty: name a text file with some text in it")
    return Text.of(name, text)


def _docstrings(library: Path) -> Iterator[str]:
    """The documentation strings of modules, their classes and functions, in their order there."""
    found = False
    for name in _MODULES:
        file = library / f"{name}.py"
        for path in [file] if file.exists() else sorted((library / name).glob("**/*.py")):
            if "test" in path.parts or "tests" in path.parts:
                continue  # some installations leave tests out
            found = True
            for node in _definitions(ast.parse(path.read_bytes())):
                text = ast.get_docstring(node)
                if text:
                    yield text
    if not found:
        raise DataError(
            f"the source of the standard library is not in {library}: name a text file instead"
        )


_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    if isinstance(node, _Definition):
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _definitions(child)
