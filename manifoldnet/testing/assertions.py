"""Assertions of invariance: thin checks over `manifoldnet.symmetry.invariance_error`.

    assert_loss_invariant(model, group, loss_fn, batch)
    assert_metric_invariant(model, group)
    assert_update_equivariant(model, group, loss_fn, batch, make_optimizer)
    assert_trajectory_invariant(model, group, loss_fn, batches, make_optimizer, steps=100)

Each takes one element of a scaling or a linear group, or a group, of which three random elements
are tried (for more, pass elements of `group.sample` or of the strategy `elements`). A failure is
reported for as few generators as still fail, with factors of 2 (flows for the time 1) if these fail
too. Each returns the largest error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

import torch
from torch import nn

from manifoldnet.deprecation import renamed_argument
from manifoldnet.symmetry import (
    LinearElement,
    LinearGroup,
    ScalingElement,
    ScalingGroup,
    invariance_error,
    without_eps,
)
from manifoldnet.symmetry.batches import Batch
from manifoldnet.symmetry.invariance_error import Deviation
from manifoldnet.symmetry.losses import LossFunction
from manifoldnet.symmetry.replay import OptimizerFactory
from manifoldnet.symmetry.working_copy import eps_fields

__all__ = [
    "assert_loss_invariant",
    "assert_metric_invariant",
    "assert_trajectory_invariant",
    "assert_update_equivariant",
]

# Accepted relative errors by the coarsest type in the model: of one evaluation or step, and after
# many steps, in which rounding errors grow.
_ONCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_LATER = {torch.float64: 1e-8, torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 3e-1}

_EXAMPLES = 3
# Largest |ln factor| of a generator, and spectral norm of exponents of linear maps.
_SPREAD, _LINEAR_SPREAD = 3.0, 2.0

Symmetry = ScalingElement | ScalingGroup | LinearElement | LinearGroup
"""Element of a scaling or a linear group, or such a group."""

_Element = ScalingElement | LinearElement
_also_scaling = renamed_argument("scaling", "symmetry", removed_in="0.4.0")
_Measure = Callable[[_Element], Deviation]


@_also_scaling
def assert_loss_invariant(
    model: nn.Module,
    symmetry: Symmetry,
    loss_fn: LossFunction | None,
    batch: Batch,
    *,
    rtol: float | None = None,
) -> Deviation:
    """Assert that the loss does not change under g: |L(g·w) − L(w)| ≤ rtol · |L|.

    Args:
        model: in the mode that matters (batch normalization: training); it is not changed.
        symmetry: one element, or a group, of scalings or of linear maps.
        loss_fn: as in `discover`.
        batch: as in `discover`.
        rtol: the relative error to accept; by the model's types if left out: 1e-9 for float64,
            1e-3 for float32.

    Raises:
        AssertionError: names the generator, its factor and the error, and says whether the ε of
            normalization layers is the cause.
        ValueError: as `invariance_error.loss`.
    """

    def measure(element: _Element) -> Deviation:
        return invariance_error.loss(model, element, loss_fn, batch)

    return _check(symmetry, measure, "the loss is not invariant", _allowed(model, rtol, _ONCE))


@_also_scaling
def assert_metric_invariant(
    model: nn.Module, symmetry: Symmetry, *, rtol: float | None = None
) -> Deviation:
    """Assert that tangent vectors keep their lengths: ‖dg·u‖ at g·w is ‖u‖ at w.

    Lengths are those of the metrics that the model is declared with. A linear map that is not
    orthogonal keeps those of a `Pair`, if it acts on the pair, and Euclidean ones never.

    Args:
        model: with its declarations.
        symmetry: one element, or a group, of scalings or of linear maps.
        rtol: as in `assert_loss_invariant`.

    Raises:
        AssertionError: names the parameter, slice and factor, and the error.
    """

    def measure(element: _Element) -> Deviation:
        source = torch.Generator().manual_seed(0)
        return invariance_error.metric(model, element, generator=source)

    allowed = _allowed(model, rtol, _ONCE)
    return _check(symmetry, measure, "the metric is not invariant", allowed)


@_also_scaling
def assert_update_equivariant(
    model: nn.Module,
    symmetry: Symmetry,
    loss_fn: LossFunction | None,
    batch: Batch,
    optimizer: OptimizerFactory,
    *,
    steps: int = 1,
    rtol: float | None = None,
) -> Deviation:
    """Assert that an update commutes with g: ‖g⁻¹·w̃⁺ − w⁺‖ ≤ rtol · ‖w⁺ − w‖.

    Args:
        model: as in `assert_loss_invariant`.
        symmetry: one element, or a group, of scalings or of linear maps.
        loss_fn: as in `discover`.
        batch: as in `discover`.
        optimizer: a function from a model to its optimizer.
        steps: the number of steps; momentum matters from the second on.
        rtol: as in `assert_loss_invariant`.

    Raises:
        AssertionError: names the parameter, slice and factor, and the error.
        ValueError: as `invariance_error.update`.
    """

    def measure(element: _Element) -> Deviation:
        return invariance_error.update(model, element, loss_fn, batch, optimizer, steps=steps)

    allowed = _allowed(model, rtol, _ONCE)
    return _check(symmetry, measure, "the update is not equivariant", allowed)


@_also_scaling
def assert_trajectory_invariant(
    model: nn.Module,
    symmetry: Symmetry,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int = 100,
    rtol: float | None = None,
) -> Deviation:
    """Assert that a training run does not depend on the parameterization it starts from.

    The losses of all steps are compared, and the final weights w with g⁻¹·w̃.

    Args:
        model: as in `assert_loss_invariant`.
        symmetry: one element, or a group, of scalings or of linear maps.
        loss_fn: as in `discover`.
        batches: used in turn, and again from the first.
        optimizer: a function from a model to its optimizer.
        steps: the length of the runs.
        rtol: the relative error to accept; 1e-8 for float64, 1e-2 for float32 if left out.

    Raises:
        AssertionError: names the step or the parameter, and the error.
        ValueError: as `invariance_error.trajectory`.
    """
    given = list(islice(batches, steps))

    def measure(element: _Element) -> Deviation:
        return invariance_error.trajectory(model, element, loss_fn, given, optimizer, steps=steps)

    allowed = _allowed(model, rtol, _LATER)
    return _check(symmetry, measure, "the training run is not invariant", allowed)


def _allowed(
    model: nn.Module, rtol: float | None, by_type: dict[torch.dtype, float]
) -> tuple[nn.Module, float, str]:
    """The model, its tolerance and the origin of the tolerance."""
    if rtol is not None:
        return model, rtol, "rtol"
    types = {p.dtype for p in model.parameters() if p.dtype in by_type}
    coarsest = max(types, key=by_type.__getitem__, default=torch.float64)
    return model, by_type[coarsest], str(coarsest).removeprefix("torch.")


def _check(
    symmetry: Symmetry,
    measure: _Measure,
    claim: str,
    allowed: tuple[nn.Module, float, str],
) -> Deviation:
    """The largest deviation; AssertionError about the simplest failure if it is too large."""
    model, rtol, reason = allowed
    worst = Deviation(0.0)
    for element, reduce in _elements(symmetry):
        error = measure(element)
        if error <= rtol:
            worst = max(worst, error)
            continue
        name = repr(element)
        if reduce is not None:
            element, name = reduce(lambda simpler: measure(simpler) > rtol)
            error = measure(element)
        lines = [
            f"{claim}: the error is {float(error):.3g} relative (allowed: {rtol:g}, {reason})",
            f"under {name}",
            error.where,
        ]
        if eps_fields(model):
            with without_eps(model):
                exact = measure(element)
            if exact <= rtol:
                lines.append(
                    f"The cause is the ε of the normalization layers: without it the error is "
                    f"{float(exact):.1g}. Check inside `with without_eps(model)`, or allow for it"
                )
        raise AssertionError("\n".join(line for line in lines if line))
    return worst


_Fails = Callable[[_Element], bool]
_Reduce = Callable[[_Fails], tuple[_Element, str]]


def _elements(symmetry: Symmetry) -> Iterable[tuple[_Element, _Reduce | None]]:
    """The element, or random ones of a group, each with a function that simplifies a failure."""
    if isinstance(symmetry, ScalingElement | LinearElement):
        return [(symmetry, None)]
    if not isinstance(symmetry, ScalingGroup | LinearGroup):
        raise TypeError(
            "an element or a group of scalings or of linear maps is needed (ScalingElement, "
            f"ScalingGroup, LinearElement, LinearGroup), not a {type(symmetry).__name__}"
        )
    scaling = isinstance(symmetry, ScalingGroup)
    group = symmetry.nontrivial if isinstance(symmetry, ScalingGroup) else symmetry
    if not group.generators:
        raise ValueError("no generator of the group moves a weight: there is nothing to check")
    source = torch.Generator().manual_seed(0)
    found: list[tuple[_Element, _Reduce | None]] = []
    for _ in range(_EXAMPLES):
        spread = _SPREAD if scaling else _LINEAR_SPREAD
        uniform = torch.rand(len(group.generators), generator=source)
        coefficients = (2 * uniform.double() - 1) * spread
        if isinstance(group, LinearGroup):
            coefficients = group.bounded(coefficients, spread)
        found.append((group.element(coefficients), partial(_simplest, group, coefficients)))
    return found


def _simplest(
    group: ScalingGroup | LinearGroup, coefficients: torch.Tensor, fails: _Fails
) -> tuple[_Element, str]:
    """A failing element with few generators, found by halving.

    Their factors are 2, or times 1, if these fail too.
    """
    kept = list(range(len(coefficients)))

    def element(places: list[int], value: float | None = None) -> _Element:
        values = torch.zeros_like(coefficients)
        values[places] = coefficients[places] if value is None else value
        return group.element(values)

    size = len(kept) // 2
    while size >= 1:
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if rest and fails(element(rest)):
                kept = rest
                break
        else:
            size //= 2
    simple = math.log(2) if isinstance(group, ScalingGroup) else 1.0
    found, values = element(kept, simple), [simple] * len(kept)
    if not fails(found):
        found, values = element(kept), coefficients[kept].tolist()
    names = [_name(group, place, value) for place, value in zip(kept, values, strict=True)]
    return found, "; ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _name(group: ScalingGroup | LinearGroup, place: int, value: float) -> str:
    """Name of a generator, its number among those of the same name, and its factor or time."""
    generator = group.generators[place]
    if isinstance(group, ScalingGroup):
        return f"{generator.name} with s = {math.exp(value):.4g}"
    alike = [i for i, g in enumerate(group.generators) if g.name == generator.name]
    number = f" (generator {alike.index(place) + 1} of {len(alike)})" if len(alike) > 1 else ""
    return f"{generator.name}{number} with t = {value:.4g}"
