"""The scaling symmetries of a model that a file of the user's makes: `manifoldnet symmetries`.

    "net.py:make" -> make() -> (model, loss_fn, batches) -> discover -> explain -> what is printed

The factory may give a function that makes the user's own optimizer as a fourth thing: its column
then stands beside those of the paper's updates. Needs no package beyond those of `manifoldnet`.
"""

from __future__ import annotations

import copy
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
from typing import Any

from torch import nn

import manifoldnet as mn
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.symmetry import Explanation, ScalingGroup, discover, explain

_TUPLE = "(model, loss_fn, batches) or (model, loss_fn, batches, make_optimizer)"


class SymmetriesError(ExperimentError):
    """A factory that cannot be used, or whose model's symmetries cannot be found."""


@dataclass(frozen=True)
class Symmetries:
    """What is known of a model. Its `str` is for people.

    Attributes:
        group: its scalings, as discovered.
        explanation: which update respects which; None when there is no symmetry.
    """

    group: ScalingGroup
    explanation: Explanation | None

    def __str__(self) -> str:
        if self.explanation is None:
            return str(self.group)
        return f"{self.group}\n\n{self.explanation}"


@dataclass(frozen=True)
class Task:
    """What a factory gives, checked.

    Attributes:
        model: any module.
        loss_fn: `loss_fn(output, target)`.
        batches: pairs (input, target).
        make_optimizer: makes the user's optimizer of a model.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Any]
    batches: Iterable[Any]
    make_optimizer: Callable[[nn.Module], Any] | None = None


def find(
    target: str,
    *,
    classifier: Sequence[str] = (),
    keep_eps: bool = False,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Symmetries:
    """Discovers and explains the symmetries of what a factory makes.

    Args:
        target: `module:factory` or `file.py:factory`; modules are looked for in the current
            directory first.
        classifier: the layers that classify, as in `manifoldnet.rules`; none if left out, which
            puts the paper's metrics where the group asks for them.
        keep_eps: as in `discover`.
        seed: decides all random choices.
        on_progress: as in `discover`.

    Raises:
        SymmetriesError: when there is no such factory, what it gives cannot be used, or there is
            no clear answer.
    """
    with _importable(target) as (module, name):
        task = _make(module, name, target)
        if classifier:
            with _blaming(f"classifier {', '.join(classifier)}"):
                _check_classifier(task.model, tuple(classifier))
        with _blaming(f"the symmetries of {target} cannot be found"):
            group = discover(
                task.model,
                task.loss_fn,
                task.batches,
                keep_eps=keep_eps,
                seed=seed,
                on_progress=on_progress,
            )
        if group.dimension == 0:
            return Symmetries(group, None)
        with _blaming(f"the symmetries of {target} cannot be explained"):
            explanation = explain(
                task.model,
                group,
                task.make_optimizer,
                classifier=tuple(classifier) or None,
                seed=seed,
            )
        return Symmetries(group, explanation)


@contextmanager
def _importable(target: str) -> Iterator[tuple[ModuleType, str]]:
    """The module of a target, and the factory's name; what it imports later is found as well."""
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
    # Registered as an import would do (dataclasses and pickle look modules up), but in no one's
    # place: a file may be called random.py.
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


def _make(module: ModuleType, name: str, target: str) -> Task:
    """Calls the factory and checks what it gives."""
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
        what = f"{len(given)} things" if isinstance(given, tuple) else type(given).__name__
        raise SymmetriesError(f"{target} gave {what}; it must give {_TUPLE}")
    task = Task(*given)
    for part, good, wanted in (
        ("model", isinstance(task.model, nn.Module), "a torch.nn.Module"),
        ("loss_fn", callable(task.loss_fn), "a function of output and target"),
        ("batches", isinstance(task.batches, Iterable), "an iterable of pairs (input, target)"),
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


def _check_classifier(model: nn.Module, classifier: tuple[str, ...]) -> None:
    """Raises what `explain` would raise, before the discovery, which may take minutes."""
    probe = copy.deepcopy(model)
    for name in mn.manifolds(probe):
        mn.undeclare(probe, name)
    mn.declare_all(probe, mn.rules.scaled_metric(classifier))


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turns any error into one line: inside, it is the user's code that runs."""
    try:
        yield
    except Exception as error:
        raise SymmetriesError(f"{what}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """An error in one line: its type and message, and where in the user's code it came up.

    The messages of manifoldnet's own errors speak for themselves.
    """
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    library = str(Path(mn.__file__).parent)
    if frames and frames[-1].filename.startswith(library) and message:
        return message
    for frame in reversed(frames):
        path = frame.filename
        if path.endswith(".py") and not path.startswith((library, *installed)):
            message += f" ({os.path.basename(path)}, line {frame.lineno})"
            break
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
