"""Any optimizer of torch in the moving frame of a scaling group.

The balanced representative e^{As} w of the weights (`manifoldnet.symmetry.balance`) is the same for
all parameterizations, and q = e^{−As} is a frame: a positive factor for each number, that a group
element scales as the weights. A step of a base optimizer B (AdamW, Muon, …) is

    x̂ = w/q,  ĝ = q ∂L/∂w          B sees the balanced weights, and their gradient
    x̂⁺ = B(x̂, ĝ)                   its own step, with its own state, weight decay included
    w ← w + q (x̂⁺ − x̂)

As B sees the same numbers from w and from h·w, the run commutes with every group element h,
whatever B computes. With each step the frame follows the weights (`moving_frame`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import torch
from torch import nn
from torch.optim import Optimizer

from manifoldnet.geometry.settled import is_sharded
from manifoldnet.optim.checks import users_level
from manifoldnet.optim.hooks import StepHooks, hooks_of
from manifoldnet.symmetry.balance import weights_of
from manifoldnet.symmetry.group import ScalingGroup
from manifoldnet.symmetry.model_check import check_model, check_undeclared
from manifoldnet.symmetry.moving_frame import MovingFrame, Shown
from manifoldnet.symmetry.orbit import Orbit

__all__ = ["make_invariant"]

_O = TypeVar("_O", bound=Optimizer)

_KEY = "moving_frame"


@overload
def make_invariant(optimizer: _O, model: nn.Module, group: ScalingGroup) -> _O: ...


@overload
def make_invariant(
    optimizer: Sequence[_O], model: nn.Module, group: ScalingGroup
) -> Sequence[_O]: ...


def make_invariant(
    optimizer: _O | Sequence[_O], model: nn.Module, group: ScalingGroup
) -> _O | Sequence[_O]:
    """Let an optimizer of torch step in the moving frame of a scaling group, by its step hooks.

    Runs from w and from h·w are the same for every element h of the group: losses are equal, and
    the weights differ by h, up to rounding. Weights keep the parameterization that they have.
    Class, state, groups and schedulers of the optimizer stay as they are, and so do its steps of
    weights that the group does not scale. Weight decay, momentum and moments are those of the
    balanced weights; choose the learning rate anew, for balanced weights. A closure is evaluated
    before the step, once. The frame is in `state_dict()` as "moving_frame". Where anything else has
    written to the weights (a checkpoint, an average), the frame is found anew before the next step;
    among several processes it is carried along with a warning.

    Gradients outside of the step are those of the weights as they are, so that clipping by their
    norm, between `backward` and `step`, depends on the parameterization. Clip in the frame:

        def clip(*_):  # torch takes nothing else than None, or new arguments
            clip_grad_norm_(model.parameters(), 1.0)

        make_invariant(optimizer, model, group)
        optimizer.register_step_pre_hook(clip)

    If the step raises, the weights that the group scales are put back, and all gradients; other
    weights and the optimizer's state are as its step left them.

    A gradient that is zero but for rounding (a key's bias in attention) stays rounding, which
    Adam divides by its own size: with eps below that, such weights move at random.

    Args:
        optimizer: any instance of `torch.optim.Optimizer`, `manifoldnet.constrain`-ed or not; or
            several that share the weights of the model, such as Muon and AdamW.
        model: the model whose weights they step.
        group: scalings that leave its loss invariant, as of `manifoldnet.symmetry.discover`.

    Returns:
        The same object.

    Raises:
        TypeError: if it is no optimizer of torch.
        ValueError: for a group of another model, or without non-trivial generators; for declared
            weights that it scales (their manifolds have frames of their own); for trainable weights
            that it scales and none of the optimizers holds; for sharded weights; for optimizers
            that have a moving frame already, or move weights several times within a step (LBFGS).
    """
    optimizers: list[Any] = [optimizer]
    if isinstance(optimizer, Sequence):
        optimizers = list(optimizer)
    for each in optimizers:
        _check_optimizer(each)
    check_model(model, group)
    orbit = Orbit(group, next(model.parameters()).device)
    if not orbit.dimension:
        raise ValueError("the group has no generator that changes weights: nothing to be done")
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in orbit.dims}
    check_undeclared(model, orbit)
    _check_held(optimizers, parameters)
    for name, p in parameters.items():
        if is_sharded(p):
            raise ValueError(
                f"{name} is sharded, and a moving frame takes whole weights: keep it "
                "replicated, or leave its generators out (group.subgroup)"
            )
    frame = MovingFrame.of(orbit, parameters, weights_of(orbit, model))
    for each in optimizers:
        _Invariance(frame).attach(each)
    return optimizer


@dataclass(eq=False)
class _Invariance(StepHooks):
    """The hooks of one optimizer in a moving frame."""

    frame: MovingFrame
    shown: list[Shown] = field(default_factory=list)
    loaded: dict[str, Any] | None = None

    def attached(self, optimizer: Optimizer) -> None:
        """Keep the frame in checkpoints."""
        optimizer.register_state_dict_post_hook(self.save)
        optimizer.register_load_state_dict_pre_hook(self.check)
        optimizer.register_load_state_dict_post_hook(self.load)

    def save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Add the frame to a checkpoint."""
        return state | {_KEY: self.frame.state()}

    def check(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Look at the frame of a checkpoint, before anything is loaded."""
        self.loaded = state.get(_KEY)
        if self.loaded is not None:
            self.frame.check(self.loaded)
        else:
            warnings.warn(
                "the checkpoint has no moving frame: this one goes on with the frame of the "
                "weights that it was made with",
                UserWarning,
                stacklevel=users_level(),
            )

    def load(self, optimizer: Optimizer) -> None:
        """Take the frame from the checkpoint that torch has loaded."""
        if self.loaded is not None:
            self.frame.load(self.loaded)
            self.loaded = None

    def enter(self, optimizer: Optimizer) -> None:
        """Show the optimizer balanced weights, and their gradients."""
        names = {id(p): name for name, p in self.frame.parameters.items()}
        stepped = [
            (names[id(p)], p)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in names and p.grad is not None
        ]
        for name, p in stepped:
            if p.grad.is_sparse:
                raise RuntimeError(
                    f"{name} has a sparse gradient, and a moving frame takes dense ones: make the "
                    "layer with sparse=False, or leave its generators out (group.subgroup)"
                )
        self.frame.check_shapes()
        self.frame.follow()
        if stepped:
            self.frame.enter({name: p.grad for name, p in stepped}, self.shown)

    def leave(self, optimizer: Optimizer) -> None:
        """Add the displacements to the weights, in their own parameterization."""
        if self.shown:
            self.frame.leave(self.shown)

    def restore(self) -> None:
        """Put weights and gradients back as they were."""
        if self.shown:
            self.frame.restore(self.shown)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "make_invariant takes a torch.optim.Optimizer, or several, not a "
            f"{type(optimizer).__name__}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS moves weights several times within a step: minimize in the moving frame with "
            'manifoldnet.interop.pymanopt.minimize(model, loss, "lbfgs", group=group)'
        )
    if any(isinstance(each, _Invariance) for each in hooks_of(optimizer)):
        raise ValueError(
            f"this {type(optimizer).__name__} has a moving frame already: make a new optimizer for "
            "another group"
        )


def _check_held(optimizers: Sequence[Optimizer], parameters: dict[str, nn.Parameter]) -> None:
    """Raise a ValueError for trainable weights of the group that are held never, or twice."""
    held: dict[int, int] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                held[id(p)] = held.get(id(p), 0) + 1
    missing = [n for n, p in parameters.items() if p.requires_grad and id(p) not in held]
    if missing:
        raise ValueError(
            f"{', '.join(missing[:5])}{' …' if missing[5:] else ''}: the group scales "
            f"{'it' if len(missing) == 1 else 'them'}, but the optimizer does not hold "
            f"{'it' if len(missing) == 1 else 'them'}. Give all optimizers of the model at once, "
            "make_invariant([muon, adamw], model, group), or freeze what is not trained "
            "(requires_grad_(False))"
        )
    twice = [name for name, p in parameters.items() if held.get(id(p), 0) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is in these optimizers twice: give it once")
