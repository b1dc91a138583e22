"""Assertions of invariance: thin checks over `manifoldnet.symmetry.invariance_error`.

    assert_loss_invariant(model, group, loss_fn, batch)
    assert_metric_invariant(model, group)
    assert_update_equivariant(model, group, loss_fn, batch, make_optimizer)
    assert_trajectory_invariant(model, group, loss_fn, batches, make_optimizer, steps=100)

Each takes one element, or a group, of which three random elements are tried (for more, pass
elements of `group.sample` or of the strategy `elements`). A failure is reported for
as few generators as still fail, with factors of 2 if these fail too. Each returns the largest
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

import torch
from torch import nn

from manifoldnet.symmetry import ScalingElement, ScalingGroup, invariance_error, without_eps
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
_SPREAD = 3.0

_Measure = Callable[[ScalingElement], Deviation]


def assert_loss_invariant(
    model: nn.Module,
    scaling: ScalingElement | ScalingGroup,
    loss_fn: LossFunction | None,
    batch: Batch,
    *,
    rtol: float | None = None,
) -> Deviation:
    """Assert that the loss does not change under a scaling: |L(g·w) − L(w)| ≤ rtol · |L|.

    Args:
        model: in the mode that matters (batch normalization: training); it is not changed.
        scaling: one element, or a group.
        loss_fn: as in `discover`.
        batch: as in `discover`.
        rtol: the relative error to accept; by the model's types if left out: 1e-9 for float64,
            1e-3 for float32.

    Raises:
        AssertionError: names the generator, its factor and the error, and says whether the ε of
            normalization layers is the cause.
        ValueError: as `invariance_error.loss`.
    """

    def measure(element: ScalingElement) -> Deviation:
        return invariance_error.loss(model, element, loss_fn, batch)

    return _check(scaling, measure, "the loss is not invariant", _allowed(model, rtol, _ONCE))


def assert_metric_invariant(
    model: nn.Module, scaling: ScalingElement | ScalingGroup, *, rtol: float | None = None
) -> Deviation:
    """Assert that tangent vectors keep their lengths: ‖g·dw‖ at g·w is ‖dw‖ at w.

    Lengths are those of the metrics that the model is declared with.

    Args:
        model: with its declarations.
        scaling: one element, or a group.
        rtol: as in `assert_loss_invariant`.

    Raises:
        AssertionError: names the parameter, slice and factor, and the error.
    """

    def measure(element: ScalingElement) -> Deviation:
        source = torch.Generator().manual_seed(0)
        return invariance_error.metric(model, element, generator=source)

    allowed = _allowed(model, rtol, _ONCE)
    return _check(scaling, measure, "the metric is not invariant", allowed)


def assert_update_equivariant(
    model: nn.Module,
    scaling: ScalingElement | ScalingGroup,
    loss_fn: LossFunction | None,
    batch: Batch,
    optimizer: OptimizerFactory,
    *,
    steps: int = 1,
    rtol: float | None = None,
) -> Deviation:
    """Assert that an update commutes with scaling: ‖g⁻¹·w̃⁺ − w⁺‖ ≤ rtol · ‖w⁺ − w‖.

    Args:
        model: as in `assert_loss_invariant`.
        scaling: one element, or a group.
        loss_fn: as in `discover`.
        batch: as in `discover`.
        optimizer: a function from a model to its optimizer.
        steps: the number of steps; momentum matters from the second on.
        rtol: as in `assert_loss_invariant`.

    Raises:
        AssertionError: names the parameter, slice and factor, and the error.
        ValueError: as `invariance_error.update`.
    """

    def measure(element: ScalingElement) -> Deviation:
        return invariance_error.update(model, element, loss_fn, batch, optimizer, steps=steps)

    allowed = _allowed(model, rtol, _ONCE)
    return _check(scaling, measure, "the update is not equivariant", allowed)


def assert_trajectory_invariant(
    model: nn.Module,
    scaling: ScalingElement | ScalingGroup,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int = 100,
    rtol: float | None = None,
) -> Deviation:
    """Assert that a training run does not depend on the parameterization it starts from.

    The losses of all steps are compared, and the final weights after the inverse scaling.

    Args:
        model: as in `assert_loss_invariant`.
        scaling: one element, or a group.
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

    def measure(element: ScalingElement) -> Deviation:
        return invariance_error.trajectory(model, element, loss_fn, given, optimizer, steps=steps)

    allowed = _allowed(model, rtol, _LATER)
    return _check(scaling, measure, "the training run is not invariant", allowed)


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
    scaling: ScalingElement | ScalingGroup,
    measure: _Measure,
    claim: str,
    allowed: tuple[nn.Module, float, str],
) -> Deviation:
    """The largest deviation; AssertionError about the simplest failure if it is too large."""
    model, rtol, reason = allowed
    worst = Deviation(0.0)
    for element, reduce in _elements(scaling):
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


_Fails = Callable[[ScalingElement], bool]
_Reduce = Callable[[_Fails], tuple[ScalingElement, str]]


def _elements(
    scaling: ScalingElement | ScalingGroup,
) -> Iterable[tuple[ScalingElement, _Reduce | None]]:
    """The element, or random ones of a group, each with a function that simplifies a failure."""
    if isinstance(scaling, ScalingElement):
        return [(scaling, None)]
    if not isinstance(scaling, ScalingGroup):
        raise TypeError(
            f"a ScalingElement or a ScalingGroup is needed, not a {type(scaling).__name__}; for "
            "linear maps there is manifoldnet.symmetry.invariance_error.loss"
        )
    group = scaling.nontrivial
    if group.dimension == 0:
        raise ValueError("the group has no scaling that moves a weight: there is nothing to check")
    source = torch.Generator().manual_seed(0)
    samples = [
        (2 * torch.rand(group.dimension, generator=source) - 1) * _SPREAD for _ in range(_EXAMPLES)
    ]
    return [(group.element(s), partial(_simplest, group, s)) for s in samples]


def _simplest(
    group: ScalingGroup, log_scales: torch.Tensor, fails: _Fails
) -> tuple[ScalingElement, str]:
    """A failing element with few generators, found by halving; factors of 2 if these fail too."""
    kept = list(range(group.dimension))

    def element(places: list[int]) -> ScalingElement:
        values = torch.zeros_like(log_scales)
        values[places] = log_scales[places]
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
    some = group.subgroup(kept)
    twos = some.from_log2([1.0] * len(kept))
    if fails(twos):
        factors, found = ["2"] * len(kept), twos
    else:
        factors, found = [f"{float(s.exp()):.4g}" for s in log_scales[kept]], element(kept)
    names = [f"{g.name} with s = {s}" for g, s in zip(some.generators, factors, strict=True)]
    return found, "; ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
