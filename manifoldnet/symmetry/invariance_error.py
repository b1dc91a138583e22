"""Relative errors of invariance under a group element g, scaling or linear: 0 is exact.

    loss         |L(g·w) − L(w)|                      relative to the loss
    metric       |‖dg·u‖ at g·w  −  ‖u‖ at w|         relative, worst parameter
    update       ‖g⁻¹·w̃⁺ − w⁺‖                        relative to the step, worst parameter
    trajectory   N steps from w and from g·w          losses at every step, weights at the end

Any model, loss, batch and optimizer can be measured: AdamW, geoopt's, the user's own. Weights are
compared in the original coordinates, g⁻¹·w̃ with w, where slices have comparable sizes. A linear
element acts by w ↦ L w R + S, its differential by u ↦ L u R.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Euclidean, Manifold, PairFactor, Slices
from manifoldnet.registry import declared_parameters, partner_of
from manifoldnet.symmetry.batches import Batch, as_pair
from manifoldnet.symmetry.linear import LinearElement
from manifoldnet.symmetry.losses import (
    LossFunction,
    check_penalty,
    evaluate,
    frozen_randomness,
    relative_change,
    scalar_loss,
)
from manifoldnet.symmetry.reparameterize import (
    Element,
    reparameterize,
    resolve,
    scaled_tensors,
    write,
)
from manifoldnet.symmetry.replay import OptimizerFactory, Run, run
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
    """Relative error, a float, with the place where it is largest.

    Attributes:
        where: description of the worst parameter, its worst slice and the factor of that slice.
        parameter: name of the worst parameter; empty for the loss of a whole batch.
    """

    where: str
    parameter: str

    def __new__(cls, value: float, where: str = "", parameter: str = "") -> Deviation:
        """Make a float with attributes."""
        self = super().__new__(cls, value)
        self.where, self.parameter = where, parameter
        return self


def loss(
    model: nn.Module, element: Element, loss_fn: LossFunction | None, batch: Batch
) -> Deviation:
    """|L(g·w) − L(w)| relative to the larger of the two.

    The ε of normalization layers changes the loss by O(ε/var); see `without_eps`. The error is
    meaningless if the loss is zero up to rounding.

    Args:
        model: in the mode that matters (batch normalization: training); it is not changed.
        element: g.
        loss_fn: as in `discover`.
        batch: as in `discover`.

    Raises:
        ValueError: if the model lacks a tensor that the element moves, a loss is not finite, or it
            depends on the model's parameters by another way than its output.
    """
    pair = as_pair(batch, loss_fn is None)
    element = resolve(model, element)
    before = evaluate(model, loss_fn, pair)
    scaled = _scaled(model, element)
    with torch.enable_grad(), frozen_randomness():
        # On another copy, since buffers change.
        check_penalty(model, scalar_loss(copy.deepcopy(scaled), loss_fn, pair, None), loss_fn)
    after = evaluate(scaled, loss_fn, pair)
    return Deviation(
        relative_change(before, after), f"the loss is {before:.9g}, and {after:.9g} at g·w"
    )


def metric(
    model: nn.Module, element: Element, *, generator: torch.Generator | None = None
) -> Deviation:
    """|‖dg·u‖ − ‖u‖| / ‖u‖ of a random tangent vector u, in the worst parameter.

    Norms are those of the declared metrics; undeclared parameters have the Euclidean one. That of a
    factor of a pair is taken beside its partner, which g moves as well.

    Args:
        model: with its declarations.
        element: g.
        generator: source of u; by default the same u at each call.

    Raises:
        ValueError: if the model lacks a tensor that the element moves, or norms at a weight are
            not finite because it is off its manifold; for a factor of a pair whose partner is in
            another model.
    """
    declared = declared_parameters(model)
    element = resolve(model, element)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def geometry(name: str, parameter: Tensor, moved: bool) -> Manifold:
        """Manifold of a parameter at w, or at g·w."""
        manifold = declared[name][1] if name in declared else Euclidean()
        if not isinstance(manifold, PairFactor):
            return manifold
        partner = partner_of(parameter)
        if partner is None or id(partner) not in names:
            raise ValueError(f"{name} is a factor of a pair, and its partner is not in this model")
        beside, factor = partner.detach().double(), declared[names[id(partner)]][1]
        if moved and names[id(partner)] in element.parameters:
            beside = element.apply(names[id(partner)], beside)
        assert isinstance(factor, PairFactor)
        return manifold.beside(factor.split(beside))

    source = torch.Generator().manual_seed(0) if generator is None else generator
    worst = Deviation(0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in element.parameters:
                continue
            manifold = geometry(name, parameter, False)
            # In float64: rounding in the parameter's own type would dominate.
            w = parameter.double()
            u = torch.randn(w.shape, dtype=torch.float64, generator=source).to(w)
            u = manifold.proju(w, u)
            before = float(manifold.norm(w, u))
            there = geometry(name, parameter, True)
            after = float(there.norm(element.apply(name, w), element.differential(name, u)))
            if not math.isfinite(before):
                raise ValueError(
                    f"{name} is no point of {manifold}: a step there has the length {before}"
                )
            value = relative_change(before, after) if math.isfinite(after) else math.inf
            if value > worst:
                where = (
                    f"{name} ({manifold}): a step of length {before:.6g} has length {after:.6g} "
                    f"at g·w ({_extreme(element, name, w)})"
                )
                worst = Deviation(value, where, name)
    return worst


def update(
    model: nn.Module,
    element: Element,
    loss_fn: LossFunction | None,
    batch: Batch,
    optimizer: OptimizerFactory,
    *,
    steps: int = 1,
) -> Deviation:
    """‖g⁻¹·w̃⁺ − w⁺‖ / ‖w⁺ − w‖ of the worst parameter, w⁺ and w̃⁺ after steps from w and g·w.

    The gradient of a bias before batch normalization is all rounding, and so is its step. The
    denominator is therefore at least √ε times that of the largest step of any parameter, with the ε
    of the type.

    Args:
        model: it is not changed.
        element: g.
        loss_fn: as in `discover`.
        batch: as in `discover`.
        optimizer: makes the optimizer of a model.
        steps: number of steps on the batch; more than one includes the effect of momentum.

    Raises:
        ValueError: as `loss`; if a declared weight leaves its manifold (`reparameterize`); if the
            run from w diverges. If only the run from g·w diverges, the error is ∞.
    """
    _check_steps(steps)
    element = resolve(model, element)
    plain, scaled = _two_runs(model, element, loss_fn, [batch], optimizer, steps)
    if scaled.diverged:
        return _DIVERGED
    start = {name: w.detach() for name, w in model.named_parameters()}
    return worst_parameter(plain.weights, scaled.weights, start, element)


def trajectory(
    model: nn.Module,
    element: Element,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int = 100,
) -> Deviation:
    """Largest relative difference of two runs, from w and from g·w.

    The maximum is over the losses before each step and, at the end, ‖g⁻¹·w̃ − w‖ / ‖w‖ of each
    parameter. Denominators have a lower bound as in `update`, by the largest loss or weight.

    Args:
        model: it is not changed.
        element: g.
        loss_fn: as in `discover`.
        batches: as in `discover`, used cyclically in this order.
        optimizer: makes the optimizer of a model.
        steps: length N of the runs.

    Raises:
        ValueError: as `update`.
    """
    _check_steps(steps)
    element = resolve(model, element)
    with frozen_randomness():  # a loader may shuffle
        given = list(islice(batches, steps))
    plain, scaled = _two_runs(model, element, loss_fn, given, optimizer, steps)
    if scaled.diverged:
        return _DIVERGED
    worst = Deviation(0.0)
    least = max(map(abs, plain.losses)) * max(map(_sqrt_eps, plain.weights.values()), default=0.0)
    for i, (a, b) in enumerate(zip(plain.losses, scaled.losses, strict=True)):
        value = 0.0 if a == b else abs(b - a) / max(abs(a), abs(b), least)
        if value > worst:
            worst = Deviation(value, f"the loss at step {i} is {a:.9g}, and {b:.9g} from g·w")
    zero = {name: torch.zeros_like(w) for name, w in plain.weights.items()}
    return max(worst, worst_parameter(plain.weights, scaled.weights, zero, element))


_DIVERGED = Deviation(math.inf, "the run from g·w diverges, the one from w does not")


def _two_runs(
    model: nn.Module,
    element: Element,
    loss_fn: LossFunction | None,
    batches: Sequence[Batch],
    optimizer: OptimizerFactory,
    steps: int,
) -> tuple[Run, Run]:
    """Runs from w and from g·w.

    Raises:
        ValueError: if the first one diverges.
    """
    scaled_model = reparameterize(model, element)
    plain = run(model, loss_fn, batches, optimizer, steps=steps)
    if plain.diverged:
        raise ValueError(
            f"the run from the model's own weights is not finite after {len(plain.losses)} of "
            f"{steps} steps: use a smaller learning rate"
        )
    return plain, run(scaled_model, loss_fn, batches, optimizer, steps=steps)


def _scaled(model: nn.Module, element: Element) -> nn.Module:
    """Copy at g·w, whose declared weights may be off their manifolds."""
    target = copy.deepcopy(model)
    write(target, scaled_tensors(target, element))
    return target


def worst_parameter(
    plain: Mapping[str, Tensor],
    scaled: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    element: Element,
) -> Deviation:
    """Maximum over parameters of ‖g⁻¹·w̃ − w‖ / ‖w − w₀‖.

    Args:
        plain: w, by parameter.
        scaled: w̃, from g·w₀.
        start: w₀; zeros for an error relative to the weights.
        element: g, by first names.
    """
    inverse = element.inverse()
    differences: dict[str, Tensor] = {}
    sizes: dict[str, float] = {}
    for name, weight in plain.items():
        w, w0 = _wide(weight), _wide(start[name])
        back = _wide(scaled[name])
        if name in inverse.parameters:
            back = inverse.apply(name, back)
        differences[name] = back - w
        sizes[name] = max(float((w - w0).norm()), float((back - w0).norm()))
    largest = max(sizes.values(), default=0.0)
    worst = Deviation(0.0)
    for name, difference in differences.items():
        distance = float(difference.norm())
        if distance == 0:
            continue
        value = distance / max(sizes[name], largest * _sqrt_eps(plain[name]))
        if not value <= worst:  # NaN too: ∞/∞
            value = math.inf if math.isnan(value) else value
            where = f"{name} is off by {value:.3g} relative ({_worst(element, name, difference)})"
            worst = Deviation(value, where, name)
    return worst


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float64))


def _sqrt_eps(x: Tensor) -> float:
    """√ε of the type: relative size below which a difference may be all rounding."""
    return math.sqrt(torch.finfo(x.dtype).eps)


def _worst(element: Element, name: str, difference: Tensor) -> str:
    """Label of the slice with the largest difference, and the effect of the element on it."""
    slices = element.slices if isinstance(element, ScalingElement) else ()
    named = [w.dim for w in slices if w.parameter == name]
    dim = min(named, key=str, default=0) if difference.ndim else None
    index = int(Slices(dim).norm(difference).flatten().argmax())
    label = Slices(dim).label(index, difference.ndim)
    if isinstance(element, LinearElement):
        return f"most of it in {label}, {element.describe(name)}"
    assert isinstance(element, ScalingElement)
    if dim is None:
        return f"{label}, factor {element.factor(Slice(name, None)):.4g}"
    return f"most of it in {label}, factor {element.factor(Slice(name, dim, index)):.4g}"


def _extreme(element: Element, name: str, x: Tensor) -> str:
    """Label of the slice whose factor is farthest from 1, and its factor."""
    if isinstance(element, LinearElement):
        return element.describe(name)
    assert isinstance(element, ScalingElement)
    named = [w for w in element.slices if w.parameter == name]
    worst = max(named, key=lambda w: abs(element.log2(w)))
    return f"{Slices(worst.dim).label(worst.index, x.ndim)}, factor {element.factor(worst):.4g}"


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; at least one step is needed")
