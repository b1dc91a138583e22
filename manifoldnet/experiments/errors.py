"""Errors of experiments that their user can mend, as one family of exceptions.

The command line turns these, and nothing else, into one line on stderr: an exception outside this
family is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class ExperimentError(RuntimeError):
    """Base of the errors about configurations, data sets and run directories."""


class ConfigError(ExperimentError, ValueError):
    """A configuration that makes no sense."""


class DataError(ExperimentError):
    """A data set that is missing, incomplete or cannot be decoded."""


class RecordError(ExperimentError):
    """A run directory that is damaged, or that belongs to something else."""


class MissingExtraError(ExperimentError, ImportError):
    """A package that only the experiments need is not installed."""

    def __init__(self, package: str, purpose: str, extra: str = "experiments") -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'manifoldnet[{extra}]'"
        )
        self._arguments = (package, purpose, extra)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), self._arguments  # a worker's errors are pickled on their way here


@contextmanager
def importing(package: str, purpose: str, extra: str = "experiments") -> Iterator[None]:
    """Turns a failed import in the block into a `MissingExtraError`."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, purpose, extra) from error


def require(purpose: str, *packages: str) -> None:
    """Check that packages of the extra `experiments` are installed, without importing them."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, purpose)
