"""Symmetries of the model that a user's factory makes: the command `manifoldnet symmetries`.

    "net.py:make" -> make() -> (model, loss_fn, batches) -> discover -> explain -> Symmetries

A factory may return a function that makes an optimizer as a fourth item; the table of `explain`
then has a column for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, TypedDict

from torch import nn

from manifoldnet.symmetry.batches import Batch
from manifoldnet.symmetry.comparison import Explanation, check_classifier, explain
from manifoldnet.symmetry.discovery import discover
from manifoldnet.symmetry.group import ScalingGroup
from manifoldnet.symmetry.linear import LinearGroup
from manifoldnet.symmetry.losses import LossFunction
from manifoldnet.symmetry.replay import OptimizerFactory

__all__ = ["Symmetries", "SymmetriesError", "Task", "find_symmetries"]

_TUPLE = "(model, loss_fn, batches) or (model, loss_fn, batches, make_optimizer)"


class SymmetriesError(RuntimeError):
    """Unusable factory, or a model whose symmetries cannot be found. The message is one line."""


class _Options(TypedDict):
    """Options of `discover` that the command passes on."""

    keep_eps: bool
    seed: int
    on_progress: Callable[[str, int, int], None] | None


@dataclass(frozen=True)
class Symmetries:
    """Symmetries of a model. Its `str` is for printing.

    Attributes:
        group: the discovered scalings, or linear maps.
        explanation: comparison of updates; None if there is no symmetry.
    """

    group: ScalingGroup | LinearGroup
    explanation: Explanation | None

    def __str__(self) -> str:
        if self.explanation is None:
            return str(self.group)
        return f"{self.group}\n\n{self.explanation}"


@dataclass(frozen=True)
class Task:
    """Result of a factory.

    Attributes:
        model: any module.
        loss_fn: as in `discover`.
        batches: as in `discover`.
        make_optimizer: makes the user's optimizer of a model.
    """

    model: nn.Module
    loss_fn: LossFunction | None
    batches: Iterable[Batch]
    make_optimizer: OptimizerFactory | None = None


def find_symmetries(
    target: str,
    *,
    kind: Literal["scaling", "linear"] = "scaling",
    classifier: Sequence[str] = (),
    keep_eps: bool = False,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Symmetries:
    """Discover and explain the symmetries of the model that a factory makes.

    Args:
        target: `module:factory` or `file.py:factory`; modules are searched in the current
            directory first.
        kind: as in `discover`.
        classifier: the layers that classify, as in `manifoldnet.rules`; if empty, the metrics of
            the table follow the group, as in `explain`.
        keep_eps: as in `discover`.
        seed: decides all random choices.
        on_progress: as in `discover`.

    Raises:
        SymmetriesError: if there is no such factory, its result cannot be used, or the symmetries
            cannot be determined.
    """
    with _loaded(target) as (module, name):
        task = _make_task(module, name, target)
        if classifier:
            # `explain` would raise as well, but after the discovery, which may take minutes.
            with _as_one_line_error(f"classifier {', '.join(classifier)}"):
                check_classifier(task.model, tuple(classifier))
        with _as_one_line_error(f"the symmetries of {target} cannot be found"):
            options = _Options(keep_eps=keep_eps, seed=seed, on_progress=on_progress)
            group: ScalingGroup | LinearGroup
            if kind == "linear":
                group = discover(task.model, task.loss_fn, task.batches, kind="linear", **options)
            else:
                group = discover(task.model, task.loss_fn, task.batches, **options)
        if not group.generators:
            return Symmetries(group, None)
        with _as_one_line_error(f"the symmetries of {target} cannot be explained"):
            explanation = explain(
                task.model,
                group,
                task.make_optimizer,
                classifier=tuple(classifier) or None,
                seed=seed,
            )
        return Symmetries(group, explanation)


@contextmanager
def _loaded(target: str) -> Iterator[tuple[ModuleType, str]]:
    """Module and factory name of a target; inside, later imports of the module work too."""
    where, colon, name = target.rpartition(":")
    if not (colon and where and name):
        raise SymmetriesError(
            f"{target!r} names no factory: give module:factory or file.py:factory"
        )
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise SymmetriesError(f"there is no file {where}")
    before = list(sys.path)
    sys.path.insert(0, str(path.resolve().parent) if is_file else os.getcwd())
    try:
        yield (_from_file(path) if is_file else _from_name(where)), name
    finally:
        sys.path[:] = before


def _from_name(where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{where}.".startswith(f"{error.name}."):
            raise SymmetriesError(
                f"there is no module {where!r} in the current directory or among those installed"
            ) from error
        raise SymmetriesError(f"importing {where} raised {_describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise SymmetriesError(f"importing {where} raised {_describe(error)}") from error


def _from_file(path: Path) -> ModuleType:
    # Registered as by an import (dataclasses and pickle look modules up), but without replacing
    # another module: a file may be called random.py.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}__file"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SymmetriesError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SymmetriesError(f"importing {path} raised {_describe(error)}") from error
    return module


def _make_task(module: ModuleType, name: str, target: str) -> Task:
    """Call a factory and check the types of its result."""
    where = target.rpartition(":")[0]
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and callable(value)
        ]
        raise SymmetriesError(
            f"{where} has no function {name!r} (it has: {', '.join(own) or 'none'})"
        )
    try:
        given = factory()
    except (Exception, SystemExit) as error:
        raise SymmetriesError(f"{target} raised {_describe(error)}") from error
    if not isinstance(given, tuple) or len(given) not in (3, 4):
        found = f"{len(given)} things" if isinstance(given, tuple) else type(given).__name__
        raise SymmetriesError(f"{target} gave {found}; it must give {_TUPLE}")
    task = Task(*given)
    for part, good, wanted in (
        ("model", isinstance(task.model, nn.Module), "a torch.nn.Module"),
        (
            "loss_fn",
            task.loss_fn is None or callable(task.loss_fn),
            "a function of output and target, or None",
        ),
        (
            "batches",
            isinstance(task.batches, Iterable),
            "an iterable of pairs (input, target), or dicts",
        ),
        (
            "make_optimizer",
            task.make_optimizer is None or callable(task.make_optimizer),
            "a function that makes an optimizer of a model",
        ),
    ):
        if not good:
            found = type(getattr(task, part)).__name__
            raise SymmetriesError(f"{target}: {part} is of type {found}; it must be {wanted}")
    return task


@contextmanager
def _as_one_line_error(prefix: str) -> Iterator[None]:
    """Convert any exception of the user's code to a SymmetriesError."""
    try:
        yield
    except Exception as error:
        raise SymmetriesError(f"{prefix}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """Describe an error in one line: type, message and line of the user's code.

    Only the message is used for errors that manifoldnet raises.
    """
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    library = str(Path(__file__).parents[1])
    if frames and frames[-1].filename.startswith(library) and message:
        return message
    for frame in reversed(frames):
        path = frame.filename
        if path.endswith(".py") and not path.startswith((library, *installed)):
            message += f" ({os.path.basename(path)}, line {frame.lineno})"
            break
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
