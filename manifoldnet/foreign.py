"""A warning for optimizers that do not follow declarations, at their first step.

`torch.optim.AdamW` on a declared weight steps it as if it were in flat space: it leaves its sphere,
and the scaled metric has no effect. Nothing fails, so that it is said here, once per optimizer, by
torch's hook before every step. The hook exists from the first declaration of a process on. After an
optimizer was looked at, each of its further steps costs one look-up, unless declarations change.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import geoopt
import torch
from geoopt.optim.mixin import OptimMixin
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from manifoldnet import registry
from manifoldnet.geometry import Euclidean

__all__ = ["ForeignOptimizerWarning", "accept", "follows_declarations"]

# Set on a class, or on one optimizer, whose steps on declared weights follow their manifolds.
_MARK = "_follows_declarations"


def accept(optimizer: Any) -> None:
    """Mark an optimizer, and those that it wraps, as one that need not be warned of.

    Its steps follow declarations by other means (hooks of its own), or are what is to be measured.
    A copy of the optimizer loses the mark, as it loses its hooks.
    """
    for each in (optimizer, *_wrapped(optimizer)):
        if isinstance(each, Optimizer):
            setattr(each, _MARK, True)


def _wrapped(optimizer: Any) -> Iterator[Optimizer]:
    for held in getattr(optimizer, "__dict__", {}).values():
        for inner in held if isinstance(held, list | tuple) else (held,):
            if isinstance(inner, Optimizer):
                yield inner


class ForeignOptimizerWarning(UserWarning):
    """An optimizer steps declared weights as if they were in flat space."""


@dataclass
class _Seen:
    """The findings about an optimizer, and the time of the look."""

    version: int
    count: int  # its number of parameters
    frozen: list[Tensor]  # declared weights that do not train, so far


# None for an optimizer that has been warned of, or that follows declarations.
_seen: weakref.WeakKeyDictionary[Optimizer, _Seen | None] = weakref.WeakKeyDictionary()
_handle: Any = None


def follows_declarations(optimizer: Any) -> bool:
    """Test whether an optimizer is marked as following declarations, or wraps one that is."""
    return any(getattr(each, _MARK, False) for each in (optimizer, *_wrapped(optimizer)))


def _register() -> None:
    global _handle
    if _handle is None:
        _handle = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return  # a graph holds tensors only; the first step outside of one is looked at
    version = registry.version()
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if optimizer in _seen:
        seen = _seen[optimizer]
        if seen is None or _still_holds(seen, optimizer, version, count):
            return
    if follows_declarations(optimizer):
        _seen[optimizer] = None
        return
    registry.refresh()
    declared = list(_declared(optimizer))
    moved = [text for text, p in declared if p.requires_grad or p.grad is not None]
    if not moved:
        _seen[optimizer] = _Seen(version, count, [p for _, p in declared])
        return
    _seen[optimizer] = None
    listed = ", ".join(moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
    warnings.warn(
        f"{type(optimizer).__name__} steps declared weights as if they were in flat space, so that "
        f"they leave their manifolds, and metrics have no effect: {listed}. Give them to "
        "manifoldnet.RiemannianSGD or manifoldnet.RiemannianAdam, call manifoldnet.project_(model) "
        "after each step, or manifoldnet.undeclare them",
        ForeignOptimizerWarning,
        stacklevel=3,  # past torch's wrapper of `step`
    )


def _still_holds(seen: _Seen, optimizer: Optimizer, version: int, count: int) -> bool:
    if seen.count != count or any(p.requires_grad or p.grad is not None for p in seen.frozen):
        return False
    if seen.version != version:
        changed = registry.changed_since(seen.version)
        if changed is None or any(
            id(p) in changed for group in optimizer.param_groups for p in group["params"]
        ):
            return False
        seen.version = version
    return True


def _declared(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The declared weights that an optimizer takes for free ones, each with its description."""
    geoopts = isinstance(optimizer, OptimMixin)
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [None] * len(group["params"])
        for place, (name, p) in enumerate(zip(names, group["params"], strict=False)):
            manifold = registry.manifold_of(p)
            if manifold is None or isinstance(manifold, Euclidean):
                continue
            found = registry.find(p)
            label = found.label if found else f"parameter {place} of group {number}"
            if geoopts and isinstance(p, geoopt.ManifoldTensor):
                continue  # geoopt's optimizers ask the parameter itself
            yield f"{name or label} (shape {tuple(p.shape)}, on {manifold})", p


registry.at_first_declaration(_register)
