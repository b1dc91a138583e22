"""Step hooks that show an optimizer of torch other coordinates of weights and gradients.

    before    closure, if there is one; then `enter`: other numbers in the places of weights
    (the step of the optimizer)
    after     `leave`: the weights that its displacements stand for

What goes wrong in between puts weights and gradients back. Copies and pickles of an optimizer have
its hooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

__all__ = ["StepHooks", "hooks_of"]


class StepHooks(ABC):
    """The two hooks of an optimizer's step.

    Attributes:
        depth: of steps that call the step of their base class, with its hooks.
    """

    depth: int = 0

    @abstractmethod
    def enter(self, optimizer: Optimizer) -> None:
        """Put other coordinates into the places of weights and gradients, after all checks."""

    @abstractmethod
    def leave(self, optimizer: Optimizer) -> None:
        """Write the weights that the optimizer's displacements stand for."""

    @abstractmethod
    def restore(self) -> None:
        """Put back what a step that failed, or was skipped, has left."""

    def attached(self, optimizer: Optimizer) -> None:  # noqa: B027
        """Register further hooks, on an optimizer and on its copies."""

    def attach(self, optimizer: Optimizer) -> None:
        """Hook this to an optimizer, so that its copies have it, too."""
        if self not in hooks_of(optimizer):
            optimizer.register_step_pre_hook(self.before)
            optimizer.register_step_post_hook(self.after)
            # Other hooks see the weights themselves.
            hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
            hooks.move_to_end(next(reversed(hooks)), last=False)
        self.attached(optimizer)
        plain = type(optimizer).__getstate__

        def reduce(protocol: Any) -> Any:
            state = dict(plain(optimizer))
            own = hooks_of(optimizer)
            state["_optimizer_step_pre_hooks"] = OrderedDict(enumerate(h.before for h in own))
            state["_optimizer_step_post_hooks"] = OrderedDict(enumerate(h.after for h in own))
            return _copied, (type(optimizer), state)

        vars(optimizer)["__reduce_ex__"] = reduce
        step = optimizer.step

        @wraps(getattr(step, "__func__", step))  # of a method, its signature has `self`
        def guarded(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            try:
                return step(*args, **kwargs)
            finally:
                self.depth = 0
                self.restore()

        vars(optimizer)["step"] = MethodType(guarded, optimizer)

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Evaluate a closure, once, and enter."""
        self.depth += 1
        if self.depth > 1:  # the step of a base class
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._enter(optimizer)
            return None
        with torch.enable_grad():
            losses = [closure()]
        self._enter(optimizer)

        def once() -> Any:
            if not losses:
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluates its closure again within a step, with "
                    "weights that it has moved: such an optimizer cannot be used here"
                )
            return losses.pop()

        if "closure" in kwargs:
            return args, {**kwargs, "closure": once}
        return (args[0], once, *args[2:]), kwargs

    @_disable_dynamo  # as torch's optimizers have it: a graph breaks here
    @torch.no_grad()
    def _enter(self, optimizer: Optimizer) -> None:
        self.enter(optimizer)

    @_disable_dynamo
    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Leave, unless a fused step was skipped for an overflow of gradients."""
        self.depth -= 1
        if self.depth:
            return
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            self.restore()
            return
        self.leave(optimizer)


def hooks_of(optimizer: Optimizer) -> list[StepHooks]:
    """The step hooks of this kind that an optimizer has."""
    owners = (
        getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values()
    )
    return [owner for owner in owners if isinstance(owner, StepHooks)]


def _copied(cls: type[Optimizer], state: dict[str, Any]) -> Optimizer:
    """A copy of an optimizer, with its hooks."""
    optimizer = cls.__new__(cls)
    optimizer.__setstate__(state)
    for each in hooks_of(optimizer):
        each.attach(optimizer)
    return optimizer
