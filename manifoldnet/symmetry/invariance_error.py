"""How far from invariant something is under a scaling g, as numbers: 0 is exact, 1 is not at all.

    loss         |L(g·w) − L(w)|                      relative to the loss
    metric       |‖g·dw‖ at g·w  −  ‖dw‖ at w|        relative, worst parameter
    update       step, then scale, against scale, then step; relative to the step
    trajectory   N steps from w and from g·w: losses at every step, and weights at the end

They take any model, loss, batch and optimizer: AdamW, geoopt's, the user's own. Weights are
compared in the original coordinates, g⁻¹·w̃ with w, where slices have comparable sizes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Euclidean, Slices
from manifoldnet.registry import declared_parameters
from manifoldnet.symmetry.evaluation import (
    Batch,
    LossFunction,
    check_penalty,
    evaluate,
    frozen_randomness,
    relative_change,
    scalar_loss,
)
from manifoldnet.symmetry.reparameterize import (
    reparameterize,
    resolve,
    scaled_tensors,
    write,
)
from manifoldnet.symmetry.runs import OptimizerFactory, Run, check_batch, run
from manifoldnet.symmetry.scaling import ScalingElement, Slice

__all__ = [
    "Deviation",
    "OptimizerFactory",
    "Run",
    "loss",
    "metric",
    "run",
    "trajectory",
    "update",
    "worst_parameter",
]


@final
class Deviation(float):
    """A relative error: a number, which also knows where it is largest.

    Attributes:
        where: in words, the worst parameter, its worst slice and that slice's factor.
        parameter: the worst parameter; empty for the loss of a whole batch.
    """

    where: str
    parameter: str

    def __new__(cls, value: float, where: str = "", parameter: str = "") -> Deviation:
        """A number with a place."""
        self = super().__new__(cls, value)
        self.where, self.parameter = where, parameter
        return self


def loss(
    model: nn.Module, element: ScalingElement, loss_fn: LossFunction, batch: Batch
) -> Deviation:
    """|L(g·w) − L(w)| relative to the larger of the two.

    Normalization layers blur it by O(ε/var); see `without_eps`. Of a loss that is zero but for
    rounding it says nothing.

    Args:
        model: in the mode that matters (batch normalization: training); it is not changed.
        element: g.
        loss_fn: `loss_fn(output, target)`.
        batch: `(input, target)`.

    Raises:
        ValueError: if the model does not have what the element scales, a loss is not finite, or it
            depends on the model's parameters by another way than its output.
    """
    check_batch(batch)
    element = resolve(model, element)
    before = evaluate(model, loss_fn, batch)
    scaled = _scaled(model, element)
    with torch.enable_grad(), frozen_randomness():
        # On a copy of its own: buffers change.
        check_penalty(model, scalar_loss(copy.deepcopy(scaled), loss_fn, batch, None), loss_fn)
    after = evaluate(scaled, loss_fn, batch)
    return Deviation(
        relative_change(before, after), f"the loss is {before:.9g}, and {after:.9g} when scaled"
    )


def metric(
    model: nn.Module, element: ScalingElement, *, generator: torch.Generator | None = None
) -> Deviation:
    """|‖g·dw‖ − ‖dw‖| / ‖dw‖ for random dw, of the parameter where it is largest.

    Norms are those of the metrics that the model is declared with; undeclared parameters have the
    Euclidean one.

    Args:
        model: with its declarations.
        element: g.
        generator: where dw is drawn from; the same dw each time if left out.

    Raises:
        ValueError: if the model does not have what the element scales, or a weight is off its
            manifold so that steps have no length there.
    """
    declared = declared_parameters(model)
    element = resolve(model, element)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    worst = Deviation(0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in element.parameters:
                continue
            manifold = declared[name][1] if name in declared else Euclidean()
            # In float64, so that what is measured is the metric and not the rounding.
            w = parameter.double()
            dw = torch.randn(w.shape, dtype=torch.float64, generator=source).to(w)
            dw = manifold.proju(w, dw)
            here = float(manifold.norm(w, dw))
            there = float(manifold.norm(element.apply(name, w), element.apply(name, dw)))
            if not math.isfinite(here):
                raise ValueError(
                    f"{name} is no point of {manifold}: a step there has the length {here}"
                )
            value = relative_change(here, there) if math.isfinite(there) else math.inf
            if value > worst:
                where = (
                    f"{name} ({manifold}): a step of length {here:.6g} has length {there:.6g} when "
                    f"both are scaled ({_extreme(element, name, w)})"
                )
                worst = Deviation(value, where, name)
    return worst


def update(
    model: nn.Module,
    element: ScalingElement,
    loss_fn: LossFunction,
    batch: Batch,
    optimizer: OptimizerFactory,
    *,
    steps: int = 1,
) -> Deviation:
    """‖g⁻¹·w̃⁺ − w⁺‖ / ‖w⁺ − w‖: step and scale against scale and step, in the worst parameter.

    A parameter whose gradient is zero but for rounding (a bias before batch normalization) moves by
    noise: one that moves less than √ε times as far as the one that moves most, ε of its type, is
    compared with that distance.

    Args:
        model: it is not changed.
        element: g.
        loss_fn: `loss_fn(output, target)`.
        batch: `(input, target)`.
        optimizer: makes the optimizer of a model.
        steps: how many steps to take on the batch; more than one brings momentum in.

    Raises:
        ValueError: as `loss`; if a declared weight cannot be scaled (`reparameterize`); if the run
            from the model's own weights diverges. If only that from scaled weights does, the
            error is ∞.
    """
    _check_steps(steps)
    element = resolve(model, element)
    here, there = _both(model, element, loss_fn, [batch], optimizer, steps)
    if there.diverged:
        return _DIVERGED
    start = {name: w.detach() for name, w in model.named_parameters()}
    return worst_parameter(here.weights, there.weights, start, element)


def trajectory(
    model: nn.Module,
    element: ScalingElement,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int = 100,
) -> Deviation:
    """The largest relative difference between two runs, from w and from g·w.

    Compared are the losses before each step and, at the end, ‖g⁻¹·w̃ − w‖ / ‖w‖ of each parameter.
    What is small beside the largest loss, or weight, is compared as in `update`.

    Args:
        model: it is not changed.
        element: g.
        loss_fn: `loss_fn(output, target)`.
        batches: used over and over, in this order.
        optimizer: makes the optimizer of a model.
        steps: the length N of the runs.

    Raises:
        ValueError: as `update`.
    """
    _check_steps(steps)
    element = resolve(model, element)
    with frozen_randomness():  # a loader may shuffle
        given = list(islice(batches, steps))
    here, there = _both(model, element, loss_fn, given, optimizer, steps)
    if there.diverged:
        return _DIVERGED
    worst = Deviation(0.0)
    least = max(map(abs, here.losses)) * max(map(_small, here.weights.values()), default=0.0)
    for i, (a, b) in enumerate(zip(here.losses, there.losses, strict=True)):
        value = 0.0 if a == b else abs(b - a) / max(abs(a), abs(b), least)
        if value > worst:
            worst = Deviation(
                value, f"the loss at step {i} is {a:.9g}, and {b:.9g} from scaled weights"
            )
    zero = {name: torch.zeros_like(w) for name, w in here.weights.items()}
    return max(worst, worst_parameter(here.weights, there.weights, zero, element))


_DIVERGED = Deviation(math.inf, "the run from scaled weights diverges, the other does not")


def _both(
    model: nn.Module,
    element: ScalingElement,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    optimizer: OptimizerFactory,
    steps: int,
) -> tuple[Run, Run]:
    """A run from w, and one from g·w.

    Raises:
        ValueError: if the first one diverges.
    """
    scaled = reparameterize(model, element)
    here = run(model, loss_fn, batches, optimizer, steps=steps)
    if here.diverged:
        raise ValueError(
            f"the run from the model's own weights is not finite after {len(here.losses)} of "
            f"{steps} steps: use a smaller learning rate"
        )
    return here, run(scaled, loss_fn, batches, optimizer, steps=steps)


def _scaled(model: nn.Module, element: ScalingElement) -> nn.Module:
    """A scaled copy, also where a declared weight leaves its manifold: it is only looked at."""
    target = copy.deepcopy(model)
    write(target, scaled_tensors(target, element))
    return target


def worst_parameter(
    here: Mapping[str, Tensor],
    there: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    element: ScalingElement,
) -> Deviation:
    """max over parameters of ‖g⁻¹·w̃ − w‖ / ‖w − w₀‖.

    Args:
        here: w, by parameter.
        there: w̃, from scaled weights.
        start: w₀; zeros for an error relative to the weights.
        element: g, by first names.
    """
    back = element.inverse()
    apart: dict[str, Tensor] = {}
    sizes: dict[str, float] = {}
    for name, w in here.items():
        now, origin = _wide(w), _wide(start[name])
        other = _wide(there[name]) * back.factors(name, w)
        apart[name] = other - now
        sizes[name] = max(float((now - origin).norm()), float((other - origin).norm()))
    largest = max(sizes.values(), default=0.0)
    worst = Deviation(0.0)
    for name, difference in apart.items():
        off = float(difference.norm())
        if off == 0:
            continue
        value = off / max(sizes[name], largest * _small(here[name]))
        if not value <= worst:  # NaN too: ∞/∞
            value = math.inf if math.isnan(value) else value
            where = f"{name} is off by {value:.3g} relative ({_worst(element, name, difference)})"
            worst = Deviation(value, where, name)
    return worst


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float64))


def _small(x: Tensor) -> float:
    """The relative size below which a difference may be all rounding: √ε of the type."""
    return math.sqrt(torch.finfo(x.dtype).eps)


def _worst(element: ScalingElement, name: str, apart: Tensor) -> str:
    """The slice of a parameter where two values differ most, in words, and its factor."""
    dims = sorted({w.dim for w in element.slices if w.parameter == name}, key=str) or [0]
    dim = dims[0] if apart.ndim else None
    norms = Slices(dim).norm(apart).flatten()
    index = int(norms.argmax())
    label = Slices(dim).label(index, apart.ndim)
    if dim is None:
        return f"{label}, factor {element.factor(Slice(name, None)):.4g}"
    return f"most of it in {label}, factor {element.factor(Slice(name, dim, index)):.4g}"


def _extreme(element: ScalingElement, name: str, x: Tensor) -> str:
    """The slice of a parameter whose factor is farthest from 1, in words."""
    named = [w for w in element.slices if w.parameter == name]
    worst = max(named, key=lambda w: abs(element.log2(w)))
    return f"{Slices(worst.dim).label(worst.index, x.ndim)}, factor {element.factor(worst):.4g}"


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; at least one step is needed")
