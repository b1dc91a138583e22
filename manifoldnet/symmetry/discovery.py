"""Discovery of the symmetries of a model, from its gradients alone.

    linear system (one row ⟨wᵢ, ∂L/∂wᵢ⟩ᵢ per sample or minibatch)
      -> null space -> sparse basis -> verification with finite elements -> ScalingGroup

No layer is special: ReLU, batch normalization, attention and the user's own layers are treated
alike. The result is a symmetry at every weight that was tried, far from the identity. This is no
proof for all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifoldnet.symmetry.batches import Batch, cast, collect
from manifoldnet.symmetry.group import (
    FalseSymmetryError,
    Generator,
    ScalingGroup,
    trivial_generators,
    with_averages,
)
from manifoldnet.symmetry.linear import LinearGroup
from manifoldnet.symmetry.linear_columns import LinearColumns
from manifoldnet.symmetry.linear_discovery import find_linear_group, linear_columns
from manifoldnet.symmetry.linear_system import Layout, LinearSystem
from manifoldnet.symmetry.losses import LossFunction, RepeatableLoss, frozen_randomness
from manifoldnet.symmetry.null_space import (
    ADVICE,
    FLOOR,
    FLOOR_NORMALIZED,
    NoGapError,
    TrivialGenerator,
    check_clear,
    check_zero,
    row_space,
    sparse_basis,
)
from manifoldnet.symmetry.report import Discovery
from manifoldnet.symmetry.scaling import Slice, describe_slices
from manifoldnet.symmetry.verification import FAINT, Verifier
from manifoldnet.symmetry.working_copy import eps_fields, working_copy, working_loss

__all__ = ["Discovery", "FalseSymmetryError", "NoGapError", "discover"]

# Up to this many slices, gradients are computed in float64; above, in float32.
_FLOAT64_SLICES = 2000
_MOST_SLICES = 16_000
# Matrices of slices × slices that are held at a time.
_COPIES = 7
# Number and memory of the batches that are used.
_BATCHES, _BYTES = 64, 2**30

# Distance of new rows from the span of the earlier ones below which they add nothing to it,
_KNOWN = {torch.float64: 1e-8, torch.float32: 5e-5}
# if there are at least so many of them, at several random weights.
_BLOCK = 160
# Columns of M without a gradient; zero ones, whose slices are symmetries each; all others.
_UNREACHED, _FREE, _COUPLED = 0, 1, 2


@overload
def discover(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    *,
    kind: Literal["scaling"] = "scaling",
    parameters: Iterable[str] | None = None,
    keep_eps: bool = False,
    minibatch: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> ScalingGroup: ...


@overload
def discover(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    *,
    kind: Literal["linear"],
    parameters: Iterable[str] | None = None,
    keep_eps: bool = False,
    minibatch: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> LinearGroup: ...


def discover(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batches: Iterable[Batch],
    *,
    kind: Literal["scaling", "linear"] = "scaling",
    parameters: Iterable[str] | None = None,
    keep_eps: bool = False,
    minibatch: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> ScalingGroup | LinearGroup:
    """Discover all scalings, or all linear maps, of weights that leave the loss invariant.

    A copy of the model is evaluated in the model's mode (training or evaluation). Time grows with
    the cube of the number of unknowns, memory with its square: 5000 slices, a residual network of
    700,000 weights, take minutes and 1.3 GiB. `on_progress` gets an estimate of both first.

    Scalings multiply rows, columns and entries of parameters. Linear maps W ↦ e^A W e^B mix rows
    (filters, entries) and columns (input channels) of a parameter, and translations W ↦ W + T are
    looked for with them: `parameter rows² + columns² + numbers` unknowns, at most 8000 in all.

    Args:
        model: any differentiable module. Frozen parameters (`requires_grad=False`) are constants.
        loss_fn: `loss_fn(output, target)`, one number, as torch's losses. If it does not take the
            output (a TypeError or AttributeError), it gets the output's `logits`. None for models
            that compute their loss: the `loss` of the output, or its first item.
        batches: `(input, target)` pairs; the first 64 are used, or what fits into 1 GiB. The input
            goes to the model, a tuple as positional arguments, a dict as keyword arguments. Or
            dicts (any mappings), as transformers' Trainer takes them: `labels` are the target, all
            else is the input. Without a `loss_fn` labels are a part of the input.
        kind: "scaling" or "linear".
        parameters: names of the parameters to move; by default all that require gradients.
        keep_eps: leave ε in normalization layers. With it their symmetries hold approximately, the
            less the smaller the variance of the features. By default it is removed, and the report
            states its effect.
        minibatch: samples per equation, for models that couple samples; by default found out.
        dtype: type that gradients are computed in; by default float64 up to 2000 slices and float32
            above. Verification is in float64. If a model or loss brings numbers of another type
            along, float32 is used.
        seed: decides the random weights and samples.
        on_progress: called with (name of the stage, steps done, steps in all). The first stage is
            named by the number of unknowns, and the memory and time that they are expected to take.

    Returns:
        The group; `group.report` tells how it was found. Its dimension is 0 if there is no
        symmetry. A `ScalingGroup` has a sparse basis, a `LinearGroup` named blocks.

    Raises:
        ValueError: if the model has no such parameters, one of them gets no gradient, there are no
            batches, there are too many slices, or the loss is not one finite number; if it depends
            on the model's parameters by another way than its output (a penalty in loss_fn), or is
            not the same twice (noise that torch's default generator does not rule).
        NoGapError: if the singular values have no clear gap, or some that count as zero may not be
            zero; if the loss hardly depends on the slices of a generator; for linear maps, if some
            samples break what the others allow (fewer samples than inputs, say).
        FalseSymmetryError: if a symmetry to first order fails for finite elements.
    """
    on_progress = on_progress or (lambda *_: None)
    if kind not in ("scaling", "linear"):
        raise ValueError(f"kind is {kind!r}: what is looked for is 'scaling' or 'linear'")
    names = _names(model, parameters)
    if minibatch is not None and minibatch < 1:
        raise ValueError(f"minibatch is {minibatch}: an equation takes one sample or more")
    if dtype is not None and dtype not in FLOOR:
        raise ValueError(f"dtype is {dtype}: gradients are computed in float64 or float32")
    layout = linear_columns(model, names) if kind == "linear" else _layout(model, names)
    with frozen_randomness(seed):  # a shuffling loader gives the same batches again
        pairs = collect(batches, _BATCHES, _BYTES, loss_fn is None)
    verifier = Verifier(model, loss_fn, pairs, names, seed, keep_eps)
    if dtype is None:
        narrow = kind == "linear" or layout.columns <= _FLOAT64_SLICES
        dtype = verifier.dtype if narrow else torch.float32
    source = torch.Generator().manual_seed(seed)
    work = working_copy(model, dtype, keep_eps=keep_eps)
    loss = working_loss(loss_fn, dtype, next(model.parameters()).device)
    repeatable = [verifier.repeatable]
    with suppress(ValueError, RuntimeError):  # without ε, or in another type, there may be no loss
        batch = cast(verifier.batches[0], dtype, next(work.parameters()).device)
        repeatable.append(RepeatableLoss(work, loss, batch))
    arguments = (source, minibatch, keep_eps)
    group: ScalingGroup | LinearGroup
    try:
        if isinstance(layout, LinearColumns):
            linear = LinearSystem(work, loss, pairs, layout, *arguments)
            group = find_linear_group(model, linear, verifier, on_progress)
        else:
            scaling = LinearSystem(work, loss, pairs, layout, *arguments)
            group = _discover(model, scaling, verifier, on_progress)
    except (NoGapError, FalseSymmetryError):
        for each in repeatable:  # noise in the loss is the cause then, and is reported instead
            each.check()
        raise
    for each in repeatable:
        each.check()
    return group


def _layout(model: nn.Module, names: list[str]) -> Layout:
    """Slices of some parameters.

    Raises:
        ValueError: if there are too many.
    """
    layout = Layout({n: tuple(p.shape) for n, p in model.named_parameters() if n in names})
    if layout.columns > _MOST_SLICES:
        raise ValueError(
            f"{layout.columns} slices need {8 * _COPIES * layout.columns**2 / 2**30:.0f} GiB; at "
            f"most {_MOST_SLICES} are looked at. Discover the group of a narrower copy of the "
            "model and write it for this one (group.widen, in minutes for any width), or name some "
            "parameters with parameters=[...]"
        )
    return layout


def _discover(
    model: nn.Module,
    system: LinearSystem[Layout],
    verifier: Verifier,
    on_progress: Callable[[str, int, int], None],
) -> ScalingGroup:
    """Verified group of a linear system.

    Raises:
        NoGapError: as `discover`.
        FalseSymmetryError: as `discover`.
    """
    layout, keep_eps, dtype = system.layout, system.keep_eps, system.dtype
    on_progress(system.cost("slices", _COPIES), 0, 1)
    floor = FLOOR[dtype]
    if keep_eps:
        floor = max(floor, _eps_singular_value(system))
    rows, count = _collect_rows(system, _KNOWN[dtype], on_progress)
    unreached = _unreached(system)
    on_progress("factorizing", 0, 1)
    zero = 3 * (max(floor, FLOOR_NORMALIZED) if eps_fields(model) else floor)
    classes = _classify_columns(rows, system.reached, zero)
    gap, singular, space = row_space(rows[:, classes == _COUPLED], floor)
    check_clear(gap, dtype, keep_eps)
    tolerance = max(zero, 2 * gap.dropped)
    basis = _basis(layout, singular, space, classes, tolerance)
    on_progress("factorizing", 1, 1)
    group = ScalingGroup.of(model, basis)
    verified = verifier.check(group, 100 * floor if keep_eps else 0.0, on_progress)
    if not keep_eps:
        _check_faint(group, system, verifier)
        check_zero(gap, dtype, zero)
    eps = max((value or 0.0 for _, _, value in eps_fields(model)), default=0.0)
    eps_effect = verifier.eps_effect(group) if eps else verified
    loss_fn, batch = verifier.loss_fn, verifier.batches[0]
    group, followed = with_averages(group, model, loss_fn, batch, verifier.dtype)
    report = Discovery(
        slices=len(layout.slices),
        equations=count,
        coupled=system.coupled,
        gap=gap,
        dtype=dtype,
        unreached=unreached,
        verified=verified,
        spread=verifier.spread,
        eps=eps,
        eps_kept=keep_eps,
        eps_effect=eps_effect,
        unreached_slices=tuple(
            where
            for where, rows in zip(layout.slices, system.reached.tolist(), strict=True)
            if rows == 0
        ),
        averages=followed.count,
        evaluated=followed.verified,
        stale=tuple(group.generators[i].name for i in followed.stale),
    )
    return replace(group, report=report)


def _check_faint(group: ScalingGroup, system: LinearSystem[Layout], verifier: Verifier) -> None:
    """Verify generators whose slices have little effect on the loss.

    Raises:
        NoGapError: if the effect is below the verifier's resolution.
        FalseSymmetryError: if elements far from the identity change the loss.
    """
    column = {where: i for i, where in enumerate(system.layout.slices)}
    columns = [[column[w] for w in g.exponents] for g in group.nontrivial.generators]
    responses = [float(system.response[each].max()) for each in columns]
    faint = [i for i, response in enumerate(responses) if response < FAINT]
    if not faint:
        return
    # The gradient of a bias before batch normalization is all rounding: it may have any value.
    differentiable = system.differentiable()
    faint = [i for i in faint if bool(differentiable[columns[i]].any())]
    undecided = [i for i in faint if responses[i] < verifier.resolution]
    if undecided:
        first, others = undecided[0], len(undecided) - 1
        raise NoGapError(
            f"undecided: the loss moves by {responses[first]:.1e} relative when the slices of "
            f"{group.nontrivial.generators[first].name} are changed by as much as they are large, "
            f"and nothing below {verifier.resolution:.0e} is told apart: whether that is a "
            f"symmetry{f', and {others} more like it,' if others else ''} cannot be seen. " + ADVICE
        )
    verifier.check_faint(group.nontrivial.subgroup(faint), [responses[i] for i in faint])


def _names(model: nn.Module, parameters: Iterable[str] | None) -> list[str]:
    """Names of the parameters to scale."""
    named = dict(model.named_parameters())
    if not named:
        raise ValueError(f"{type(model).__name__} has no parameters: there is nothing to scale")
    if parameters is None:
        names = [n for n, p in named.items() if p.requires_grad and p.is_floating_point()]
        if not names:
            raise ValueError(
                f"all {len(named)} parameters of {type(model).__name__} are frozen "
                "(requires_grad=False), or not real numbers: name those to look at"
            )
        return names
    first = {id(p): name for name, p in named.items()}
    every = dict(model.named_parameters(remove_duplicate=False))
    wanted = [parameters] if isinstance(parameters, str) else list(parameters)
    if not wanted:
        raise ValueError("parameters names nothing: leave it out to look at all of them")
    unknown = [repr(name) for name in wanted if name not in every]
    if unknown:
        raise ValueError(
            f"there is no parameter {', '.join(unknown)} (there are: {', '.join(every)})"
        )
    names = [first[id(every[name])] for name in wanted]  # weights may be tied
    unreal = [name for name in names if not named[name].is_floating_point()]
    if unreal:
        dtype = named[unreal[0]].dtype
        raise ValueError(f"{', '.join(unreal)}: only real numbers are scaled, not {dtype}")
    return names


def _collect_rows(
    system: LinearSystem[Layout], known: float, on_progress: Callable[[str, int, int], None]
) -> tuple[Tensor, int]:
    """Collect rows of M until new ones lie in the span of the earlier ones.

    Returns:
        The rows, and how many were computed. If there are many more rows than columns, the
        triangular factor of M replaces them.
    """
    columns = len(system.reached)
    block = max(_BLOCK, columns // 32)
    rows = basis = torch.zeros(0, columns, dtype=torch.float64)
    count = 0
    for draw in (partial(system.rows, block), system.large_rows):
        larger = True
        while larger:
            new = draw()
            if count == 0 and bool((system.reached == 0).any()):
                new = torch.cat([new, system.large_rows()])
                _unreached(system)  # raises early if that is a whole parameter
            count += len(new)
            on_progress("equations", min(count, columns), columns + block)
            rows = torch.cat([rows, new])
            if len(rows) > 2 * columns + block:
                rows = torch.linalg.qr(rows, mode="r").R
            for _ in range(2):
                new = new - (new @ basis.mT) @ basis
            larger = bool((new.norm(dim=1) > known).any())
            if larger:
                _, singular, directions = torch.linalg.svd(new, full_matrices=False)
                basis = torch.cat([basis, directions[singular > known]])
    on_progress("equations", columns + block, columns + block)
    return rows, count


def _unreached(system: LinearSystem[Layout]) -> tuple[str, ...]:
    """Slices that no gradient has reached, formatted.

    Raises:
        ValueError: if they make up a whole parameter.
    """
    layout = system.layout
    missed: dict[tuple[str, int | None], list[int]] = {}
    for where, rows in zip(layout.slices, system.reached.tolist(), strict=True):
        if rows == 0:
            missed.setdefault((where.parameter, where.dim), []).append(where.index)
    formatted = []
    for (name, dim), indices in missed.items():
        shape = layout.shapes[name]
        if dim is None or len(indices) == shape[dim]:
            raise ValueError(
                f"{name} gets no gradient from these batches: the loss does not depend on it, and "
                "every scaling of it would count as a symmetry. Freeze it (requires_grad_(False)), "
                "or name the parameters to look at with parameters=[...]"
            )
        formatted.append(describe_slices(name, dim, indices, len(shape)))
    return tuple(formatted)


def _classify_columns(rows: Tensor, reached: Tensor, zero: float) -> Tensor:
    """Class of each column: _UNREACHED, _FREE (zero relative to ‖M‖) or _COUPLED."""
    norms = rows.norm(dim=0)
    top = norms  # near to the first singular vector after some power iterations
    for _ in range(8):
        top = normalize(rows.mT @ (rows @ top), dim=0)
    free = norms <= zero * (rows @ top).norm()
    return torch.where(reached > 0, torch.where(free, _FREE, _COUPLED), _UNREACHED)


def _eps_singular_value(system: LinearSystem[Layout]) -> float:
    """Largest relative singular value due to ε: one that grows by half or more when ε doubles."""
    fields = eps_fields(system.model)
    state = system.generator.get_state()
    count = len(system.reached) + _BLOCK
    once = system.rows(count)
    try:
        for module, name, value in fields:
            setattr(module, name, value and 2 * value)
        system.generator.set_state(state)
        twice = system.rows(count)
    finally:
        for module, name, value in fields:
            setattr(module, name, value)
    if once.shape != twice.shape:
        return 0.0
    _, singular, directions = torch.linalg.svd(once, full_matrices=False)
    change = ((twice - once) @ directions.mT).norm(dim=0)
    return float((singular * (change > singular / 2)).max() / singular[0])


def _basis(
    layout: Layout,
    singular: Tensor,
    space: Tensor,
    classes: Tensor,
    tolerance: float,
) -> list[Generator]:
    """Generators of the null space, the trivial ones last.

    Args:
        layout: columns of M.
        singular: nonzero singular values of the coupled columns.
        space: their right singular vectors, over the coupled columns.
        classes: class of each column, as `_classify_columns` returns it.
        tolerance: as in `sparse_basis`.
    """
    slices = layout.slices
    coupled = (classes == _COUPLED).nonzero().flatten().tolist()
    free = (classes == _FREE).nonzero().flatten().tolist()
    position = {slices[column]: i for i, column in enumerate(coupled)}
    numbers: dict[tuple[str, int | None], int] = {}
    dims = [
        numbers.setdefault((slices[column].parameter, slices[column].dim), len(numbers))
        for column in coupled
    ]
    trivial, matrices = [], []
    for name, shape in layout.shapes.items():
        if len(shape) < 2:
            continue
        rows, columns = (
            [position[w] for i in range(shape[dim]) if (w := Slice(name, dim, i)) in position]
            for dim in (0, 1)
        )
        if rows or columns:
            trivial.append(
                TrivialGenerator(
                    torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)
                )
            )
        else:
            # Each row and each column is a symmetry; the last column depends on the others.
            free.remove(max(c for c in free if slices[c].parameter == name))
        matrices.append(name)
    vectors, _ = sparse_basis(singular, space, dims, trivial, tolerance)
    generators = [Generator({slices[column]: 1.0}) for column in free]
    for vector in vectors:
        support = vector.nonzero().flatten().tolist()
        generators.append(
            Generator({slices[coupled[i]]: round(float(vector[i]), 9) for i in support})
        )
    order = {where: i for i, where in enumerate(slices)}
    generators.sort(key=lambda generator: [order[w] for w in generator.exponents])
    return generators + trivial_generators(layout.shapes, matrices)
