"""Discovery: all scaling symmetries of a model, from its gradients alone.

    equations (one row ⟨wᵢ, ∂L/∂wᵢ⟩ᵢ per sample or minibatch)
      -> null space -> sparse basis -> verified with finite elements -> ScalingGroup

No layer is known by name: whatever makes the loss invariant is found, whether it is ReLU, batch
normalization, attention or something of the user's own. What comes out is a symmetry at every
weight that was tried, far from the identity; a proof for all weights it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifoldnet.symmetry.basis import Shift, row_space, sparse_basis
from manifoldnet.symmetry.equations import Equations, Layout
from manifoldnet.symmetry.evaluation import (
    Batch,
    LossFunction,
    Repeated,
    cast,
    count_bytes,
    eps_fields,
    frozen_randomness,
    working_copy,
    working_loss,
)
from manifoldnet.symmetry.group import Generator, ScalingGroup, trivial_generators
from manifoldnet.symmetry.names import describe_slices
from manifoldnet.symmetry.report import Discovery
from manifoldnet.symmetry.scaling import Slice
from manifoldnet.symmetry.verification import FAINT, FalseSymmetryError, Verifier

__all__ = ["Discovery", "FalseSymmetryError", "NoGapError", "discover"]

# Up to this many slices, gradients are computed in float64; above, in float32.
_MANY = 2000
_MOST = 16_000
# The first so many batches are used, or as many as take so many bytes.
_BATCHES, _BYTES = 64, 2**30

# Relative to the largest singular value: what rounding leaves of a zero.
_FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6}
# … and of a column of zeros, where the ε of normalization layers has been made small.
_FLOOR_NORMALIZED = 1e-8
# Fresh equations that are this near to the span of the earlier ones add nothing to it.
_KNOWN = {torch.float64: 1e-8, torch.float32: 5e-5}
# … if there are so many of them, at several random weights.
_BLOCK = 160
_CLEAR, _CLEAR_WITH_EPS = 30.0, 10.0
# A singular value above this, relative to the largest, is not a zero for certain, whatever the gap.
_NO_ZERO = {torch.float64: 1e-10, torch.float32: 2e-5}
_UNREACHED, _ALONE, _TIED = 0, 1, 2
_MORE = (
    "Give inputs of ordinary size (mean square 1, say), more samples, or the model and the data in "
    "float64"
)


class NoGapError(RuntimeError):
    """The data do not tell what is zero from what is not, so that nothing is decided."""


def discover(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    parameters: Iterable[str] | None = None,
    keep_eps: bool = False,
    minibatch: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> ScalingGroup:
    """All scalings of rows, columns and entries of parameters that leave the loss as it is.

    The model is looked at in the mode it is in (training or evaluation), on a copy. Time grows with
    the cube of the number of slices, memory with its square: some 5000 of them, a residual network
    of 700,000 weights, take minutes and 1.3 GiB.

    Args:
        model: any differentiable module. Frozen parameters (`requires_grad=False`) are constants.
        loss_fn: `loss_fn(output, target)`, one number, as torch's losses.
        batches: `(input, target)` pairs; the first 64 are used, or what fits into 1 GiB. The input
            goes to the model, a tuple as positional arguments, a dict as keyword arguments.
        parameters: the names of those to look at; the others stay as they are.
        keep_eps: leave ε in normalization layers. It blurs their symmetries, the more the smaller
            the variance of the features; by default it is taken out while looking, and the report
            says what it blurs.
        minibatch: samples per equation, for models that couple samples; found out if left out.
        dtype: the type that gradients are computed in; by default float64 up to 2000 slices and
            float32 above. Verification is in float64. A model or loss that brings numbers of
            another type along is looked at in float32.
        seed: decides the random weights and samples.
        on_progress: called with (what is done, how much of it, of how much).

    Returns:
        The group, with a sparse basis; `group.report` is a `Discovery`. Its dimension is 0 if there
        is no symmetry.

    Raises:
        ValueError: if the model has no parameters to look at, one of them gets no gradient, there
            are no batches, there are too many slices, or the loss is not one finite number; if it
            depends on the model's parameters by another way than its output (a penalty in loss_fn),
            or is not the same twice (noise that torch's default generator does not rule).
        NoGapError: if the singular values have no clear gap, or some that count as zero may not be
            zero; if the loss hardly depends on the slices of a generator.
        FalseSymmetryError: if what holds to first order fails for finite elements.
    """
    tell = on_progress or (lambda *_: None)
    names = _names(model, parameters)
    if minibatch is not None and minibatch < 1:
        raise ValueError(f"minibatch is {minibatch}: an equation takes one sample or more")
    if dtype is not None and dtype not in _FLOOR:
        raise ValueError(f"dtype is {dtype}: gradients are computed in float64 or float32")
    with frozen_randomness(seed):  # a shuffling loader gives the same batches again
        pairs = _pairs(batches)
    layout = Layout({n: tuple(p.shape) for n, p in model.named_parameters() if n in names})
    slices = layout.slices
    if len(slices) > _MOST:
        raise ValueError(
            f"{len(slices)} slices need {8 * len(slices) ** 2 / 2**30:.0f} GiB and more; at most "
            f"{_MOST} are looked at. Use a narrower copy of the model (its symmetries have the "
            "same form), or name some parameters with parameters=[...]"
        )
    verifier = Verifier(model, loss_fn, pairs, names, seed, keep_eps)
    if dtype is None:
        dtype = verifier.dtype if len(slices) <= _MANY else torch.float32
    source = torch.Generator().manual_seed(seed)
    work = working_copy(model, dtype, keep_eps=keep_eps)
    loss = working_loss(loss_fn, dtype, next(model.parameters()).device)
    repeated = [verifier.repeated]
    with suppress(ValueError, RuntimeError):  # without ε, say, or in another type: no loss there
        batch = cast(verifier.batches[0], dtype, next(work.parameters()).device)
        repeated.append(Repeated(work, loss, batch))
    equations = Equations(work, loss, pairs, layout, source, minibatch, keep_eps)
    try:
        group = _discover(model, equations, verifier, tell)
    except (NoGapError, FalseSymmetryError):
        for each in repeated:  # what was not the same all the time is the reason then
            each.check()
        raise
    for each in repeated:
        each.check()
    return group


def _discover(
    model: nn.Module,
    equations: Equations,
    verifier: Verifier,
    tell: Callable[[str, int, int], None],
) -> ScalingGroup:
    """The group of the equations, verified; NoGapError and FalseSymmetryError as `discover`."""
    layout, keep_eps = equations.layout, equations.keep_eps
    dtype = equations.dtype
    floor = _FLOOR[dtype]
    if keep_eps:
        floor = max(floor, _blur(equations))
    rows, count = _collect(equations, _KNOWN[dtype], tell)
    unreached = _unreached(equations)
    tell("factorizing", 0, 1)
    zero = 3 * (max(floor, _FLOOR_NORMALIZED) if eps_fields(model) else floor)
    used = _classify(rows, equations.reached, zero)
    gap, sizes, space = row_space(rows[:, used == _TIED], floor)
    if gap.ratio < (_CLEAR_WITH_EPS if keep_eps else _CLEAR):
        raise NoGapError(
            f"no clear gap in the singular values: {gap.kept:.1e} and {gap.dropped:.1e} (relative) "
            f"are next to each other, and {gap.floor:.1e} may come from rounding or ε. Give more "
            "varied batches"
            + (", or leave out keep_eps=True" if keep_eps else "")
            + (", or use dtype=torch.float64" if dtype != torch.float64 else "")
        )
    basis = _basis(layout, sizes, space, used, equations.generator, max(zero, 2 * gap.dropped))
    tell("factorizing", 1, 1)
    group = ScalingGroup.of(model, basis)
    verified = verifier.check(group, 100 * floor if keep_eps else 0.0, tell)
    if not keep_eps:
        _check_faint(group, equations, verifier)
        if gap.dropped > max(zero, _NO_ZERO[dtype]):
            raise NoGapError(
                f"undecided: singular values up to {gap.dropped:.1e} (relative) are far below the "
                f"others, from {gap.kept:.1e} on, and far above the {gap.floor:.1e} that rounding "
                "leaves of a zero. They are symmetries but for a small term (activations that are "
                "all but linear at inputs of this size, a small constant in the model), or none. "
                + _MORE
            )
    eps = max((value or 0.0 for _, _, value in eps_fields(model)), default=0.0)
    report = Discovery(
        slices=len(layout.slices),
        equations=count,
        coupled=equations.coupled,
        gap=gap,
        dtype=dtype,
        unreached=unreached,
        verified=verified,
        spread=verifier.spread,
        eps=eps,
        eps_kept=keep_eps,
        blur=verifier.blur(group) if eps else verified,
    )
    return replace(group, report=report)


def _check_faint(group: ScalingGroup, equations: Equations, verifier: Verifier) -> None:
    """See whether the loss depends on each generator's slices enough to say something of it.

    Raises:
        NoGapError: if it hardly does.
        FalseSymmetryError: if elements far from the identity move it.
    """
    column = {where: i for i, where in enumerate(equations.layout.slices)}
    places = [[column[w] for w in g.exponents] for g in group.nontrivial.generators]
    responses = [float(equations.response[columns].max()) for columns in places]
    faint = [i for i, response in enumerate(responses) if response < FAINT]
    if not faint:
        return
    # A bias before batch normalization has no gradient but rounding errors: it may have any value.
    real = equations.differentiable()
    faint = [i for i in faint if bool(real[places[i]].any())]
    blind = [i for i in faint if responses[i] < verifier.resolution]
    if blind:
        first, others = blind[0], len(blind) - 1
        raise NoGapError(
            f"undecided: the loss moves by {responses[first]:.1e} relative when the slices of "
            f"{group.nontrivial.generators[first].name} are changed by as much as they are large, "
            f"and nothing below {verifier.resolution:.0e} is told apart: whether that is a "
            f"symmetry{f', and {others} more like it,' if others else ''} cannot be seen. " + _MORE
        )
    verifier.check_faint(group.nontrivial.subgroup(faint), [responses[i] for i in faint])


def _names(model: nn.Module, parameters: Iterable[str] | None) -> list[str]:
    """The names of the parameters to look at."""
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


def _pairs(batches: Iterable[Any]) -> list[Batch]:
    """The batches as a list of pairs."""
    pairs: list[Batch] = []
    size = 0
    for batch in islice(iter(batches), _BATCHES):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                "batches must give pairs (input, target), as a DataLoader does; they gave "
                f"{type(batch).__name__}"
                + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
                + ". One batch alone is [(input, target)]"
            )
        pairs.append((batch[0], batch[1]))
        size += count_bytes(pairs[-1])
        if size > _BYTES:
            break
    if not pairs:
        raise ValueError("batches is empty: at least one pair (input, target) is needed")
    return pairs


def _collect(
    equations: Equations, known: float, tell: Callable[[str, int, int], None]
) -> tuple[Tensor, int]:
    """Rows of M until fresh ones say nothing new, and how many there were.

    They are at most two for each column: then the triangular factor of M takes its place.
    """
    columns = len(equations.reached)
    block = max(_BLOCK, columns // 32)
    rows = basis = torch.zeros(0, columns, dtype=torch.float64)
    count = 0
    for draw in (partial(equations.rows, block), equations.large_rows):
        news = True
        while news:
            new = draw()
            if count == 0 and bool((equations.reached == 0).any()):
                new = torch.cat([new, equations.large_rows()])
                _unreached(equations)  # if that is a whole parameter, there is no need to go on
            count += len(new)
            tell("equations", min(count, columns), columns + block)
            rows = torch.cat([rows, new])
            if len(rows) > 2 * columns + block:
                rows = torch.linalg.qr(rows, mode="r").R
            for _ in range(2):
                new = new - (new @ basis.mT) @ basis
            news = bool((new.norm(dim=1) > known).any())
            if news:
                _, sizes, directions = torch.linalg.svd(new, full_matrices=False)
                basis = torch.cat([basis, directions[sizes > known]])
    tell("equations", columns + block, columns + block)
    return rows, count


def _unreached(equations: Equations) -> tuple[str, ...]:
    """What no gradient has reached, in words.

    Raises:
        ValueError: if that is a whole parameter.
    """
    layout, reached = equations.layout, equations.reached > 0
    missed: dict[tuple[str, int | None], list[int]] = {}
    for where, there in zip(layout.slices, reached.tolist(), strict=True):
        if not there:
            missed.setdefault((where.parameter, where.dim), []).append(where.index)
    words = []
    for (name, dim), indices in missed.items():
        shape = layout.shapes[name]
        if dim is None or len(indices) == shape[dim]:
            raise ValueError(
                f"{name} gets no gradient from these batches: the loss does not depend on it, and "
                "every scaling of it would count as a symmetry. Freeze it (requires_grad_(False)), "
                "or name the parameters to look at with parameters=[...]"
            )
        words.append(describe_slices(name, dim, indices, len(shape)))
    return tuple(words)


def _classify(rows: Tensor, reached: Tensor, zero: float) -> Tensor:
    """By column: not reached by any gradient, zero (a symmetry by itself), or neither."""
    sizes = rows.norm(dim=0)
    top = sizes  # near to the first singular vector after some power iterations
    for _ in range(8):
        top = normalize(rows.mT @ (rows @ top), dim=0)
    alone = sizes <= zero * (rows @ top).norm()
    return torch.where(reached > 0, torch.where(alone, _ALONE, _TIED), _UNREACHED)


def _blur(equations: Equations) -> float:
    """The largest singular value that ε makes: it grows by half or more when ε is doubled."""
    fields = eps_fields(equations.model)
    state = equations.generator.get_state()
    count = len(equations.reached) + _BLOCK
    here = equations.rows(count)
    try:
        for module, name, value in fields:
            setattr(module, name, value and 2 * value)
        equations.generator.set_state(state)
        there = equations.rows(count)
    finally:
        for module, name, value in fields:
            setattr(module, name, value)
    if here.shape != there.shape:
        return 0.0
    _, sizes, directions = torch.linalg.svd(here, full_matrices=False)
    moved = ((there - here) @ directions.mT).norm(dim=0)
    return float((sizes * (moved > sizes / 2)).max() / sizes[0])


def _basis(
    layout: Layout,
    sizes: Tensor,
    space: Tensor,
    used: Tensor,
    source: torch.Generator,
    tolerance: float,
) -> list[Generator]:
    """The generators of the null space.

    Args:
        layout: the columns.
        sizes: the singular values that are not zero.
        space: their right vectors, over the columns of `used` that are tied.
        used: what `_classify` says of each column.
        source: of random choices.
        tolerance: of rounding.
    """
    slices = layout.slices
    places = (used == _TIED).nonzero().flatten().tolist()
    alone = (used == _ALONE).nonzero().flatten().tolist()
    place_of = {slices[column]: i for i, column in enumerate(places)}
    numbers: dict[tuple[str, int | None], int] = {}
    sides = [
        numbers.setdefault((slices[column].parameter, slices[column].dim), len(numbers))
        for column in places
    ]
    shifts, trivial = [], []
    for name, shape in layout.shapes.items():
        if len(shape) < 2:
            continue
        up = [place_of[w] for i in range(shape[0]) if (w := Slice(name, 0, i)) in place_of]
        down = [place_of[w] for j in range(shape[1]) if (w := Slice(name, 1, j)) in place_of]
        if up or down:
            shifts.append(
                Shift(torch.tensor(up, dtype=torch.long), torch.tensor(down, dtype=torch.long))
            )
        else:
            # Rows and columns are symmetries one by one; the last column says nothing new.
            alone.remove(max(c for c in alone if slices[c].parameter == name))
        trivial.append(name)
    found, _ = sparse_basis(sizes, space, sides, shifts, source, tolerance)
    generators = [Generator({slices[column]: 1.0}) for column in alone]
    for vector in found:
        entries = vector.nonzero().flatten().tolist()
        generators.append(
            Generator({slices[places[i]]: round(float(vector[i]), 9) for i in entries})
        )
    order = {where: i for i, where in enumerate(slices)}
    generators.sort(key=lambda generator: [order[w] for w in generator.exponents])
    return generators + trivial_generators(layout.shapes, trivial)
