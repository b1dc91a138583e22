"""Any optimizer of torch in the moving frame of a scaling group.

Balancing (`manifoldnet.symmetry.balance`) scales weights w by a group element to e^{As} w, which is
the same for all weights of an orbit. The frame q = e^{−As} has a positive factor for each entry; a
group element scales q and w alike. A step of a base optimizer B (AdamW, Muon, …) is

    x̂ = w/q,  ĝ = q ∂L/∂w          the balanced weights, and their gradient
    x̂⁺ = B(x̂, ĝ)                   a step of B with its own state, weight decay included
    w ← w + q (x̂⁺ − x̂)

From w and from h·w, B gets the same numbers for every group element h. So the two runs differ by h
alone, whatever B computes. The frame is updated with the weights in each step (`moving_frame`).
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

    Runs from w and from h·w agree for every element h of the group: their losses are equal, and
    their weights differ by h, up to rounding. In each step the optimizer sees the balanced weights
    and their gradients; between steps the model keeps its own weights.

    The optimizer keeps its class, state, groups and schedulers. Weights that the group does not
    scale are stepped as before. Weight decay, momentum and moments refer to the balanced weights,
    so choose the learning rate for balanced weights. A closure is evaluated once, before the step.

    `state_dict()` holds the frame as "moving_frame". If something else has changed the weights (a
    checkpoint, an average), the frame is computed anew before the next step. With several
    processes the old frame is kept, with a warning.

    Outside of the step, gradients are those of the model's own weights. Clipping their norm between
    `backward` and `step` would depend on how the weights are scaled. Clip in a hook instead:

        def clip(*_):  # must return None
            clip_grad_norm_(model.parameters(), 1.0)

        make_invariant(optimizer, model, group)
        optimizer.register_step_pre_hook(clip)

    If the step raises, all gradients and the weights that the group scales are restored. Other
    weights and the optimizer's state stay as the failed step left them.

    Some gradients are zero up to rounding, such as that of a key's bias in attention. Adam divides
    by the size of a gradient, so such weights move at random unless eps is larger than the noise.

    Args:
        optimizer: any `torch.optim.Optimizer`, also one under `manifoldnet.constrain`; or several
            that share the weights of the model, such as Muon and AdamW.
        model: the model whose weights they step.
        group: scalings that leave its loss invariant, as `manifoldnet.symmetry.discover` finds.

    Returns:
        The same object.

    Raises:
        TypeError: for anything but optimizers of torch.
        ValueError: for a group of another model, or one that changes no weight; if the group scales
            declared weights (their manifolds have frames of their own), trainable weights that none
            of the optimizers holds, or sharded weights; for optimizers that have a moving frame
            already, or that move weights several times within a step (LBFGS).
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
