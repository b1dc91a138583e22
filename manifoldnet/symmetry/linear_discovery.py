"""Discovery of the linear symmetries of a model: `discover(kind="linear")`.

    linear system (one row per sample or minibatch; columns: entries of all A, B and T)
      -> null space -> check on samples left out -> named blocks -> verification by `matrix_exp`
      -> LinearGroup

Generators are taken modulo those that move no weight, and modulo linear maps of a vector that its
own translations imply (a bias before batch normalization may have any value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.batches import InputTarget, count_samples, take
from manifoldnet.symmetry.group import FalseSymmetryError
from manifoldnet.symmetry.linear import LinearBlock, LinearGenerator, LinearGroup
from manifoldnet.symmetry.linear_blocks import split
from manifoldnet.symmetry.linear_columns import LinearColumns, NullSpace, null_space
from manifoldnet.symmetry.linear_system import LinearSystem
from manifoldnet.symmetry.null_space import (
    ADVICE,
    FLOOR,
    FLOOR_NORMALIZED,
    NoGapError,
    check_clear,
    check_zero,
)
from manifoldnet.symmetry.report import LinearDiscovery
from manifoldnet.symmetry.scaling import describe_slices
from manifoldnet.symmetry.verification import FAINT, Verifier
from manifoldnet.symmetry.working_copy import eps_fields

__all__ = ["find_linear_group", "linear_columns"]

_MOST_UNKNOWNS = 8000
# Matrices of unknowns × unknowns that are held at a time.
_COPIES = 5
# Of so many samples of a batch, one is left out.
_LEFT_OUT = 6
# Rows of samples that were left out.
_HELD_ROWS = 96
_KNOWN = {torch.float64: 1e-8, torch.float32: 2e-4}
# Random elements for each weight and batch of the verifier.
_ELEMENTS = 2
# Singular values of elements reach from e^-s to e^s.
_SPREAD, _SPREAD_WITH_EPS = 2.0, 0.5


def linear_columns(model: nn.Module, names: Sequence[str]) -> LinearColumns:
    """Unknowns of the linear symmetries of some parameters.

    Raises:
        ValueError: if there are too many.
    """
    layout = LinearColumns(model, names, _tables(model))
    if layout.columns > _MOST_UNKNOWNS:
        largest = sorted(layout.spans, key=lambda n: layout.spans[n].left - layout.spans[n].end)
        raise ValueError(
            f"{layout.columns} unknowns (the entries of a matrix on the rows, one on the columns, "
            f"and a translation of each parameter) need {_gib(layout.columns):.0f} GiB; at most "
            f"{_MOST_UNKNOWNS} are looked at. Use a narrower copy of the model (its symmetries "
            "have the same form), or name some parameters with parameters=[...]; most unknowns "
            f"belong to {', '.join(largest[:3])}"
        )
    return layout


def _gib(columns: int) -> float:
    """Memory of the system and its factorization."""
    return 8 * _COPIES * columns**2 / 2**30


def _tables(model: nn.Module) -> set[str]:
    """Weights of embeddings."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }


def find_linear_group(
    model: nn.Module,
    system: LinearSystem[LinearColumns],
    verifier: Verifier,
    on_progress: Callable[[str, int, int], None],
) -> LinearGroup:
    """Verified linear group of a linear system.

    Raises:
        NoGapError: as `discover`; also if samples that were left out break what the others allow.
        FalseSymmetryError: as `discover`.
        ValueError: as `discover`.
    """
    layout, keep_eps = system.layout, system.keep_eps
    layout.measure(system.weights)
    on_progress(system.cost("unknowns", _COPIES), 0, 1)
    found, held = _determined(system, on_progress)
    unreached = _unreached(layout, system.reached)
    check_clear(found.gap, system.dtype, keep_eps)
    if not keep_eps:
        # Features that are all but constant in a minibatch have variances near the ε that is left.
        check_zero(found.gap, system.dtype, 3 * FLOOR_NORMALIZED if eps_fields(model) else 0.0)
    on_progress("splitting", 0, 1)
    basis = torch.linalg.qr(layout.unit[:, None] * found.basis).Q
    group = split(model, layout, basis, found.live, system.generator)
    on_progress("splitting", 1, 1)
    spread = _SPREAD_WITH_EPS if keep_eps else _SPREAD
    floor = FLOOR[system.dtype]
    verified = _verify(group, verifier, spread, 100 * floor if keep_eps else 0.0, on_progress)
    if not keep_eps:
        _check_faint(group, system, verifier)
    eps = max((value or 0.0 for _, _, value in eps_fields(model)), default=0.0)
    report = LinearDiscovery(
        unknowns=layout.columns,
        equations=found.equations,
        held_out=held,
        coupled=system.coupled,
        gap=found.gap,
        dtype=system.dtype,
        unreached=unreached,
        verified=verified,
        spread=spread,
        eps=eps,
        eps_kept=keep_eps,
        eps_effect=_eps_effect(group, verifier) if eps else verified,
        kernels=tuple(n for n, shape in layout.shapes.items() if len(shape) > 2),
        tables=tuple(n for n, span in layout.spans.items() if span.diagonal),
    )
    return LinearGroup(group.blocks, group.shapes, report)


def _determined(
    system: LinearSystem[LinearColumns], on_progress: Callable[[str, int, int], None]
) -> tuple[NullSpace, int]:
    """Null space of all samples, if that of most of them is the same, and the number of others.

    Fewer samples than a layer has inputs, say, leave directions of its weights free.

    Raises:
        NoGapError: if samples that were left out break symmetries of the others.
    """
    floor, known = FLOOR[system.dtype], _KNOWN[system.dtype]
    every = system.batches
    most, others, held = _leave_out(every, system)
    if not held:
        return null_space(system, floor, known, on_progress)[0], 0
    system.batches = most
    found, rows = null_space(system, floor, known, on_progress)
    reached = system.reached > 0
    system.batches = others
    new = system.rows(_HELD_ROWS)
    broken = new[:, reached] @ found.basis[reached]
    if bool((broken.norm(dim=1) > 10 * known).any()):
        count = int((torch.linalg.svdvals(broken) > 10 * known).sum())
        raise NoGapError(
            f"the batches do not determine the answer: {count} of {found.basis.shape[1]} "
            f"directions leave the loss of most samples as it is, but not that of {held} others. "
            "Give more and more varied samples, several times as many as the widest layer has "
            "inputs"
        )
    system.batches = every
    if bool(((system.reached > 0) != reached).any()):
        found, _ = null_space(system, floor, known, on_progress, torch.cat([rows, new]))
    return found, held


def _leave_out(
    batches: list[InputTarget], system: LinearSystem[LinearColumns]
) -> tuple[list[InputTarget], list[InputTarget], int]:
    """Most samples of each batch, the others, and the number of these."""
    most: list[InputTarget] = []
    others: list[InputTarget] = []
    held = 0
    for batch in batches:
        size = None if system.whole else count_samples(batch)
        if size is None or size < _LEFT_OUT:
            most.append(batch)
            continue
        order = torch.randperm(size, generator=system.generator)
        count = max(size // _LEFT_OUT, 2 if system.coupled else 1)
        if system.coupled and size - count < 2 * system.samples:
            most.append(batch)
            continue
        others.append(_taken(batch, order[:count]))
        most.append(_taken(batch, order[count:]))
        held += count
    return most, others, held


def _taken(batch: InputTarget, indices: Any) -> InputTarget:
    taken: InputTarget = take(batch, indices)
    return taken


def _unreached(layout: LinearColumns, reached: Tensor) -> tuple[str, ...]:
    """Slices whose translations no gradient has reached, formatted.

    Raises:
        ValueError: if they make up a whole parameter.
    """
    formatted = []
    for name, shape in layout.shapes.items():
        span = layout.spans[name]
        live = (reached[span.shift : span.end] > 0).reshape(shape)
        if not bool(live.any()):
            raise ValueError(
                f"{name} gets no gradient from these batches: the loss does not depend on it, and "
                "every map of it would count as a symmetry. Freeze it (requires_grad_(False)), "
                "or name the parameters to look at with parameters=[...]"
            )
        for dim in range(min(len(shape), 2)):
            missed = ~live.movedim(dim, 0).reshape(shape[dim], -1).any(dim=1)
            indices = missed.nonzero().flatten().tolist()
            if indices:
                formatted.append(describe_slices(name, dim, indices, len(shape)))
    return tuple(formatted)


# --- verification --------------------------------------------------------------------------------


def _verify(
    group: LinearGroup,
    verifier: Verifier,
    spread: float,
    tolerance: float,
    on_progress: Callable[[str, int, int], None],
) -> float:
    """Largest relative change of the loss under random elements, far from the identity.

    Raises:
        FalseSymmetryError: if a change is above the tolerance.
    """
    if not group.generators:
        return 0.0
    tolerance, worst = max(tolerance, verifier.resolution), 0.0
    for i, weights in enumerate(verifier.weights):
        on_progress("verifying", i, len(verifier.weights))
        for batch in verifier.batches:
            for _ in range(_ELEMENTS):
                element = group.sample(generator=verifier.source, spread=spread)
                change = verifier.change(verifier.model, weights, batch, element)
                if not change <= tolerance:
                    raise _violation(group, verifier, weights, batch, spread, tolerance, change)
                worst = max(worst, change)
    on_progress("verifying", len(verifier.weights), len(verifier.weights))
    return worst


def _violation(
    group: LinearGroup,
    verifier: Verifier,
    weights: dict[str, Tensor],
    batch: InputTarget,
    spread: float,
    tolerance: float,
    change: float,
) -> FalseSymmetryError:
    """Error that names the generator under which the loss changes most."""

    def alone(generator: LinearGenerator) -> float:
        return max(
            verifier.change(verifier.model, weights, batch, generator.element(t))
            for t in (spread / _norm(generator), -spread / _norm(generator))
        )

    changes = [alone(g) for g in group.generators]
    worst = max(range(len(changes)), key=changes.__getitem__)
    generator, deviation = group.generators[worst], changes[worst]
    if deviation <= tolerance:
        deviation = change
    return FalseSymmetryError(
        f"{generator.name} leaves the loss as it is to first order only: an element of it, with "
        f"singular values up to e^{spread:g}, changes it by {deviation:.2g} relative. The loss is "
        "locally constant in these weights (rounding, a step function, gradients cut off): leave "
        "them out with parameters=[...]. Or a small constant in the model (an ε) breaks it, or "
        "units are all but linear where inputs are this small: give larger inputs. Or the batches "
        "do not say enough: give larger and more varied ones",
        generator,
        deviation,
    )


def _norm(generator: LinearGenerator) -> float:
    """Largest spectral norm of the matrices; that of translations is their largest entry."""
    matrices = [*generator.left.values(), *generator.right.values()]
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in matrices]
    return max([*norms, *(float(t.abs().max()) for t in generator.translation.values())])


def _eps_effect(group: LinearGroup, verifier: Verifier) -> float:
    """Relative change of the loss under a small element, with ε in normalization layers."""
    if not group.generators:
        return 0.0
    element = group.sample(generator=verifier.source, spread=_SPREAD_WITH_EPS)
    return verifier.change(verifier.original, verifier.weights[0], verifier.batches[0], element)


def _check_faint(
    group: LinearGroup, system: LinearSystem[LinearColumns], verifier: Verifier
) -> None:
    """Verify generators of weights that have little effect on the loss.

    The equations do not tell: their entries ⟨A, G Wᵀ⟩ are zero for rows in front of a
    normalization, however much the loss depends on these. So the weights themselves are changed.
    A unit that is nearly linear because its inputs are small is found far from the identity, by
    scalings, which are free of rounding there.

    Raises:
        NoGapError: if the effect is below the verifier's resolution, and not by rounding.
        FalseSymmetryError: if scalings far from the identity change the loss.
    """
    layout = system.layout
    faint: list[tuple[LinearGenerator, float]] = []
    for generator in group.generators:
        columns = layout.entries(generator)
        if len(columns) and float(system.response[columns].max()) < FAINT:
            response = _response(generator, verifier)
            if response < FAINT:
                faint.append((generator, response))
    if not faint:
        return
    differentiable = system.differentiable()
    kept = [(g, r) for g, r in faint if bool(differentiable[layout.entries(g)].any())]
    for generator, response in kept:
        if response < verifier.resolution:
            raise NoGapError(
                f"undecided: the loss moves by {response:.1e} relative when the weights of "
                f"{generator.name} are changed by as much as they are large, and nothing below "
                f"{verifier.resolution:.0e} is told apart: whether that is a symmetry cannot be "
                "seen. " + ADVICE
            )
    scalings = [(g, r) for g, r in kept if g.is_diagonal]
    blocks = tuple(LinearBlock(g.name, g.kind, (g,)) for g, _ in scalings)
    part = LinearGroup(blocks, group.shapes).scalings
    verifier.check_faint(part, [response for _, response in scalings])


def _response(generator: LinearGenerator, verifier: Verifier) -> float:
    """Largest relative change of the loss when what a generator moves is changed at random.

    Numbers change by about as much as they are large.
    """
    worst = 0.0
    for weights in verifier.weights:
        moved = {}
        for name in generator.parameters:
            w = weights[name]
            noise = torch.randn(w.shape, generator=verifier.source, dtype=torch.float64).to(w)
            size = w.square().mean().sqrt()
            moved[name] = torch.where(generator.velocity(name, w) != 0, w + size * noise, w)
        for batch in verifier.batches:
            worst = max(worst, verifier.difference(verifier.model, weights, batch, moved))
    return worst
