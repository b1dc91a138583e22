"""Any optimizer of torch on declared weights: direction, frame and retraction apart.

A step of a base optimizer B (AdamW, Muon, …) on a declared weight x, with the frame q of its metric
(`manifoldnet.geometry.Frame`), is

    x̂ = x/q,  ĝ = grad f(x)/q      B sees weight and Riemannian gradient in the frame
    x̂⁺ = B(x̂, ĝ)                   its own step, with its own state
    v = P_x(q (x̂⁺ − x̂))            the displacement as a tangent vector
    x ← R_x(v)                     retracted

An isometry of the metric that scales slices scales q alike, so x̂ and ĝ do not change, and the run
commutes with it, whatever B computes. Under the scaled metric q = ‖x‖; on spheres q = 1. With
B = SGD this is Riemannian gradient descent; with Muon under the scaled metric, the intrinsic Muon
of [li2026intrinsic].

Where B reads a weight for decoupled weight decay alone, it is given zero in its place, so that its
step is the displacement itself, v/q: a difference of nearly equal numbers would lose it in half
precision. The decay, −lr λ x, is added to v.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from manifoldnet import foreign, registry
from manifoldnet.geometry import Polar
from manifoldnet.optim import backends, displacement, memory, pairs
from manifoldnet.optim.checkpoint import check_saved
from manifoldnet.optim.checks import check_number, check_point, users_level
from manifoldnet.optim.displacement import Displaced, Length, Lengths, Tangent, Weight
from manifoldnet.optim.groups import Declared, described, spec_of, weight_of
from manifoldnet.optim.hooks import StepHooks, hooks_of
from manifoldnet.optim.muon import Muon
from manifoldnet.optim.overflow import alarming, warn_of_norms

__all__ = ["constrain"]

_O = TypeVar("_O", bound=Optimizer)

# These read a weight for weight decay alone, which is lr λ x̂ where it is decoupled.
_BLIND = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.RMSprop),
    *(torch.optim.Rprop, Muon),
    *([torch.optim.Muon] if hasattr(torch.optim, "Muon") else []),  # of newer releases
)
# Their weight decay is added to gradients, unless the group says `decoupled_weight_decay`.
_COUPLED = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.RMSprop),
)


def constrain(
    optimizer: _O,
    *,
    length: Length = "base",
    tangent: Tangent = True,
    floor: float = 0.0,
    brake: float = 0.0,
    gains: Callable[[list[Tensor]], Optimizer] | None = None,
) -> _O:
    """Make an optimizer of torch follow the manifolds of declared weights, by its own step hooks.

    Its class, state, groups and schedulers stay as they are, and so do its steps of undeclared
    parameters. `.grad` is after a step what it was before. During a step there are, for each
    declared weight, one copy of it and one of its gradient; on a processor their memory is kept for
    the next step. A closure is evaluated before the step, once. Hooks that are registered after
    this call see weights and gradients in the frame, and so are averages of weights that an
    optimizer keeps itself (schedule-free methods, ASGD).

    Weight decay of torch's optimizers, where it is decoupled, has no effect on a sphere, and under
    the scaled metric it shrinks slices in proportion, beside the step and its `length`. Copies and
    pickles of the optimizer keep the hooks; they refuse to step parameters that are no longer
    declared. A checkpoint of a plain optimizer is refused where its groups or options differ.

    Args:
        optimizer: any instance of `torch.optim.Optimizer` that holds declared weights.
        length: "base" takes the length of a step from the optimizer; "angle" makes it lr: the step
            of each slice has the Riemannian length lr ρ, lr under the scaled metric. On a sphere
            that is the angle lr, exactly with `retraction="geodesic"` and tangent steps, and
            atan lr with the projection. Slices without a step stay.
        tangent: True projects gradient and displacement to tangent spaces; False leaves both, and
            projects `x + v` to the manifold; "gradient" projects the gradient alone.
        floor: with `length="angle"`, a slice whose displacement is shorter than `floor` times the
            root mean square of those of its weight takes a step that is shorter in proportion.
        brake: the share, from 0 to 1, of the radial part of a displacement that is left out under
            the scaled metric; 1 keeps norms with `retraction="geodesic"`.
        gains: for weights on `Polar`: makes an ordinary optimizer of a list of gains, one tensor
            for each such weight, such as `lambda r: torch.optim.Adam(r, lr=1e-3)`. It steps with
            this one, whose steps turn the directions. Its state is in `state_dict()` as "gains";
            what collects states by itself (`torch.distributed.checkpoint.state_dict`) leaves
            that out, and loading says so.

    Returns:
        The same object.

    Raises:
        TypeError: if it is no optimizer of torch.
        ValueError: for optimizers that follow declarations already, or move weights several times
            within a step (LBFGS); for weight decay that torch's optimizers add to gradients; if
            none of the parameters is declared, or one is there twice; for weights off their
            manifolds; for gains without an optimizer, and the other way round.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"constrain takes a torch.optim.Optimizer, not a {type(optimizer).__name__}"
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"this {type(optimizer).__name__} wraps an optimizer and has no step hooks: constrain "
            "the optimizer first, and wrap it afterwards (accelerator.prepare)"
        )
    if length not in ("base", "angle"):
        raise ValueError(f'length must be "base" or "angle", not {length!r}')
    if not (isinstance(tangent, bool) or tangent == "gradient"):
        raise ValueError(f'tangent must be True, False or "gradient", not {tangent!r}')
    check_number("floor", floor)
    check_number("brake", brake, below=math.nextafter(1.0, 2.0))
    if floor and length != "angle":
        raise ValueError('floor is for length="angle": it shortens steps of a given length')
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS moves weights several times within a step, along a straight line: minimize on "
            'manifolds with manifoldnet.interop.pymanopt.minimize(model, loss, "lbfgs"), or with a '
            "first-order optimizer"
        )
    if _constraint(optimizer) is not None:
        raise ValueError(f"this {type(optimizer).__name__} is constrained already: call it once")
    if foreign.follows_declarations(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} follows declarations already: constrain is for optimizers "
            "that do not"
        )
    constraint = _Constraint(Lengths(length, tangent, float(floor), float(brake)), gains)
    constraint.look(optimizer)
    if not constraint.weights:
        raise ValueError(
            f"none of the parameters of this {type(optimizer).__name__} is declared: declare "
            "weights first (manifoldnet.declare), and give the optimizer those parameters"
        )
    constraint.attach(optimizer)
    return optimizer


def _constraint(optimizer: Optimizer) -> _Constraint | None:
    found = (each for each in hooks_of(optimizer) if isinstance(each, _Constraint))
    return next(found, None)


@dataclass(eq=False)
class _Constraint(StepHooks):
    """The two hooks of a constrained optimizer: `before` its step, and `after` it.

    Attributes:
        how: changes of the displacements.
        make_gains: makes `gains`.
        gains: the optimizer of the gains, if there are any.
        gain: the gains of the weights on `Polar`, in their order.
        specs: the manifolds of the parameters of each group, to know copies without their model.
        weights: the declared weights of the optimizer.
        displaced: those that it is about to step.
        ids: of the groups and their parameters, and `version` of the registry, at the last look.
        steps: so far.
        warned: what there was a warning of.
        plans: of the backends.
    """

    how: Lengths
    make_gains: Callable[[list[Tensor]], Optimizer] | None = None
    gains: Optimizer | None = None
    gain: list[torch.nn.Parameter] = field(default_factory=list)
    specs: list[list[Any]] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    displaced: list[Displaced] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    version: int = -1
    steps: int = 0
    warned: set[tuple[str, type[UserWarning]]] = field(default_factory=set)
    plans: backends.Plans = field(default_factory=backends.Plans)

    def __getstate__(self) -> dict[str, Any]:
        fresh = _Constraint(self.how, None, self.gains, self.gain, self.specs)
        return vars(fresh) | {"steps": self.steps, "warned": self.warned}

    # --- whose step is whose ------------------------------------------------------------------

    def attached(self, optimizer: Optimizer) -> None:
        """Keep gains in checkpoints, and steps of declared weights without a warning."""
        optimizer.register_state_dict_post_hook(self.save_gains)
        optimizer.register_load_state_dict_pre_hook(self.load)
        foreign.accept(optimizer)

    def look(self, optimizer: Optimizer) -> None:
        """Look up the declared weights of an optimizer.

        Raises:
            RuntimeError: for a parameter that was declared otherwise before.
            ValueError: for weights that are there twice, and for weight decay in gradients.
        """
        version = registry.version()
        ids = [[id(group), *map(id, group["params"])] for group in optimizer.param_groups]
        if (version, ids) == (self.version, self.ids):
            return
        registry.refresh()
        found: list[Weight] = []
        specs: list[list[Any]] = []
        seen: set[int] = set()
        for number, group in enumerate(optimizer.param_groups):
            names = group.get("param_names") or [None] * len(group["params"])
            known = self.specs[number] if number < len(self.specs) else []
            own: list[Any] = []
            for place, (name, p) in enumerate(zip(names, group["params"], strict=True)):
                weight = weight_of(p)
                label = name or _label(p, f"parameter {place} of group {number}")
                spec = spec_of(weight)
                if place < len(known) and known[place] not in (None, spec):
                    raise RuntimeError(
                        f"{label} was {described(known[place])} when this optimizer was "
                        f"constrained and is {described(spec)} now (undeclared, "
                        "copied without its module, or sharded since?): copy model and optimizer "
                        "together, or constrain a new optimizer after the declarations, and after "
                        "fully_shard"
                    )
                own.append(spec)
                if not isinstance(weight, Declared):
                    continue
                if id(p) in seen:
                    raise ValueError(f"{label} is in this optimizer twice: give it once")
                seen.add(id(p))
                found.append(
                    Weight(
                        p,
                        manifold=weight.manifold,
                        geometry=weight.geometry,
                        records=weight.records,
                        partner=weight.partner,
                        partner_factor=weight.partner_factor,
                        name=label,
                        group=group,
                    )
                )
            specs.append(own)
        if self.how.brake and not any(weight.manifold.scale_invariant for weight in found):
            raise ValueError("brake is for the scaled metric, which no weight here is declared on")
        checked = {id(weight.p) for weight in self.weights}
        for weight in found:
            _check_options(optimizer, weight)
            if weight.partner is not None and self.how.length == "angle":
                raise ValueError(
                    f"{weight.name} is a factor of a pair, which has no angle: leave "
                    'length="angle" out, or give pairs to an optimizer of their own'
                )
            if id(weight.p) not in checked:
                check_point(weight.name, weight.p, weight.manifold)
        self._find_gains(found)
        self.weights, self.specs = found, specs
        self.version, self.ids = version, ids

    def _find_gains(self, weights: list[Weight]) -> None:
        """Give weights on `Polar` their gains, and the gains an optimizer."""
        polar = [weight for weight in weights if isinstance(weight.manifold, Polar)]
        if not polar and self.make_gains is not None:
            raise ValueError("gains are for weights on Polar, which no weight here is declared on")
        known = self.gain
        if len(known) != len(polar):
            if known or self.make_gains is None:
                raise ValueError(
                    f"{polar[len(known) or 0].name if polar else 'a weight'} is declared on Polar, "
                    "and its gains need an optimizer of their own: constrain(optimizer, "
                    "gains=lambda r: torch.optim.Adam(r, lr=1e-3)), once all weights are there"
                )
            for weight in polar:
                r, _ = cast(Polar, weight.manifold).split(weight.p.detach())
                known.append(torch.nn.Parameter(r.clone()))
            self.gains = self.make_gains(list(known))
        for weight, gain in zip(polar, known, strict=True):
            weight.gain = gain

    def save_gains(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Add gains and their optimizer's state to a checkpoint, if there are any."""
        if self.gains is not None:
            values = [p.detach().clone() for p in self.gain]
            state["gains"] = {"values": values, "optimizer": self.gains.state_dict()}
        return state

    def load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Check a checkpoint, and take gains and their optimizer's state from it."""
        check_saved(optimizer.param_groups, state, type(optimizer).__name__)
        saved = state.get("gains")
        if self.gains is None or saved is None:
            if self.gains is not saved:
                warnings.warn(
                    f"{'only the checkpoint' if saved else 'only this optimizer'} has gains of "
                    "weights on Polar: they start anew from the weights",
                    UserWarning,
                    stacklevel=users_level(),
                )
            return
        shapes = [[tuple(v.shape) for v in some] for some in (self.gain, saved["values"])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"gains of shapes {shapes[1]} are in this checkpoint, and {shapes[0]} are needed: "
                "it belongs to another model"
            )
        self.gains.load_state_dict(saved["optimizer"])
        for p, value in zip(self.gain, saved["values"], strict=True):
            p.data.copy_(value)

    # --- the hooks ----------------------------------------------------------------------------

    def enter(self, optimizer: Optimizer) -> None:
        """Put weights and gradients into the frame, once all of them were checked."""
        self.look(optimizer)
        weights = [weight for weight in self.weights if weight.p.grad is not None]
        idle = [weight.p for weight in self.weights if weight.p.grad is None]
        if any(registry.find(p) is None for p in idle):  # replaced past the modules' registration
            self.version = -1
            self.look(optimizer)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        for weight in weights:
            _check_options(optimizer, weight)
            _check_memory(weight)
            pairs.check_partner(weight.label, weight, held)
        blind = type(optimizer) in _BLIND
        scale = getattr(optimizer, "grad_scale", None)  # of a GradScaler, for fused steps
        state = optimizer.state
        displacement.enter(weights, blind, self.how.tangent, self.displaced, scale, state)
        self.steps += 1

    def leave(self, optimizer: Optimizer) -> None:
        """Retract the weights along their displacements."""
        for each in self.displaced:
            if each.weight.p.shape != each.shape:
                raise RuntimeError(
                    f"{type(optimizer).__name__} gave {each.weight.name} the shape "
                    f"{tuple(each.weight.p.shape)} within a step, and it was {tuple(each.shape)}: "
                    "such an optimizer cannot be constrained. No weight was changed"
                )
        watched = displacement.leave(self.displaced, self.how, self.plans, optimizer.state)
        if self.gains is not None:
            self.gains.step()
            for each in self.displaced:
                each.join()
        self.displaced.clear()
        # A weight whose zero slices are declared would be found in every step.
        watched = [weight for weight in watched if not weight.manifold.zero_slices]
        if self.steps % 100 == 0 and not _is_capturing():
            flags = alarming([(w.p, w.manifold) for w in self.weights if w.geometry])
            known = [weight for weight in self.weights if weight.geometry]
            watched += [weight for weight, flag in zip(known, flags, strict=True) if flag]
        for weight in watched:
            if not isinstance(weight.manifold, Polar):
                warn_of_norms(weight.name, weight.p, weight.manifold, self.warned)

    def restore(self) -> None:
        """Put back what an optimizer has left in the frame, and forget gradients of gains."""
        for gain in self.gain:
            gain.grad = None
        while self.displaced:
            self.displaced.pop().restore()


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _label(p: Tensor, otherwise: str) -> str:
    found = registry.find(p)
    return found.label if found else otherwise


def _check_options(optimizer: Optimizer, weight: Weight) -> None:
    """Raise ValueError for weight decay in gradients, and for steps with a graph."""
    group = weight.group
    if group.get("differentiable"):
        raise ValueError("differentiable=True is not supported: a step is taken without a graph")
    decay = group.get("weight_decay", 0)
    coupled = isinstance(optimizer, _COUPLED) and not group.get("decoupled_weight_decay", False)
    if decay and coupled:
        raise ValueError(
            f"weight_decay={decay} of {type(optimizer).__name__} is added to the gradient of "
            f"{weight.name}, which is declared: it breaks the invariance of the scaled metric, and "
            "on spheres it distorts momentum and moments. Use param_groups(model, weight_decay=…), "
            "which gives it to the other parameters only, or an optimizer that decouples it (AdamW)"
        )


def _check_memory(weight: Weight) -> None:
    """Check the forms of a weight and its gradient; RuntimeError by name if they do not fit."""
    p, grad = weight.p, weight.grad
    if grad.is_sparse:
        raise RuntimeError(
            f"{weight.name} has a sparse gradient, and a step on {weight.manifold} needs all of a "
            "slice: make the layer with sparse=False, or undeclare it"
        )
    if weight.want is None or weight.want.weight != memory.form(p):
        weight.want = memory.expected(p, weight.manifold)
    memory.check(lambda: weight.name, p, grad, {}, weight.want, {}, convert=True)
    by_kernel = weight.group.get("fused") and backends.has_kernel(p.device)
    weight.layout = weight.want.layout if by_kernel else None
