"""A warning for optimizers that do not follow declarations, at their first step.

`torch.optim.AdamW` steps a declared weight as if it were Euclidean: it leaves its sphere, and
the scaled metric has no effect. Nothing fails, so each such optimizer is warned of once, by a step
hook of torch, which is installed at the first declaration of a process. Further steps of an
optimizer cost one look-up each, unless declarations change.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from manifoldnet import registry
from manifoldnet.geometry import Euclidean
from manifoldnet.registry import is_geoopt

__all__ = ["MARK", "ForeignOptimizerWarning", "accept", "follows_declarations"]

MARK = "_follows_declarations"
"""Attribute of a class, or of one optimizer, whose steps follow the manifolds of its weights."""


def accept(optimizer: Any) -> None:
    """Exempt an optimizer, and those that it wraps, from the warning.

    For optimizers that follow declarations by other means (hooks of their own), or whose Euclidean
    steps are to be measured. A copy of the optimizer is not exempt, as it has no hooks either.
    """
    for each in (optimizer, *_wrapped(optimizer)):
        if isinstance(each, Optimizer):
            setattr(each, MARK, True)


def _wrapped(optimizer: Any) -> Iterator[Optimizer]:
    for held in getattr(optimizer, "__dict__", {}).values():
        for inner in held if isinstance(held, list | tuple) else (held,):
            if isinstance(inner, Optimizer):
                yield inner


class ForeignOptimizerWarning(UserWarning):
    """An optimizer steps declared weights as if they were Euclidean."""


@dataclass
class _Seen:
    """An optimizer without declared weights that train, at a version of the registry."""

    version: int
    count: int  # of its parameters
    frozen: list[Tensor]  # declared weights that do not train so far


# None for an optimizer that follows declarations, or that has been warned of.
_seen: weakref.WeakKeyDictionary[Optimizer, _Seen | None] = weakref.WeakKeyDictionary()
_handle: Any = None


def follows_declarations(optimizer: Any) -> bool:
    """Test whether an optimizer is marked as following declarations, or wraps one that is."""
    return any(getattr(each, MARK, False) for each in (optimizer, *_wrapped(optimizer)))


def _register() -> None:
    global _handle
    if _handle is None:
        _handle = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return  # checked at the first step outside of a compiled graph
    if getattr(optimizer, MARK, False):
        return
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
        f"{type(optimizer).__name__} steps declared weights as if they were Euclidean, so that "
        f"they leave their manifolds, and metrics have no effect: {listed}. Constrain the "
        "optimizer (manifoldnet.constrain), give them to manifoldnet.RiemannianSGD or "
        "manifoldnet.RiemannianAdam, call manifoldnet.project_(model) after each step, or "
        "manifoldnet.undeclare them",
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
    """The declared weights that an optimizer steps as free ones, each with its description."""
    of_geoopt = is_geoopt(optimizer, "optim.mixin", "OptimMixin")
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [None] * len(group["params"])
        for place, (name, p) in enumerate(zip(names, group["params"], strict=False)):
            manifold = registry.manifold_of(p)
            if manifold is None or isinstance(manifold, Euclidean):
                continue
            found = registry.find(p)
            label = found.label if found else f"parameter {place} of group {number}"
            if of_geoopt and is_geoopt(p, "tensor", "ManifoldTensor"):
                continue  # geoopt's optimizers use the manifold of the parameter
            yield f"{name or label} (shape {tuple(p.shape)}, on {manifold})", p


registry.at_first_declaration(_register)
