"""Scaling groups: the scalings that leave a loss invariant, as a basis of log-scales.

    Generator     hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s
    ScalingGroup  all products of powers of its generators: a vector space of log-scales

A generator is *trivial* if it changes no weight (all rows of a matrix times s, all its columns
times 1/s). Trivial generators come last, and `dimension - trivial_dimension` counts the others.
Groups come from `manifoldnet.symmetry.discover`, from a network that knows its own (those of the
symmetry paper), or from generators written by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, nn

from manifoldnet.deprecation import renamed_attribute
from manifoldnet.symmetry.averages import Followed, follow
from manifoldnet.symmetry.batches import Batch, InputTarget, as_pair
from manifoldnet.symmetry.losses import LossFunction
from manifoldnet.symmetry.reparameterize import named_tensors
from manifoldnet.symmetry.report import Discovery, Widening
from manifoldnet.symmetry.scaling import ScalingElement, Slice, describe_slices
from manifoldnet.symmetry.widening import WrongPatternError, widen

__all__ = [
    "FalseSymmetryError",
    "Generator",
    "ScalingGroup",
    "describe",
    "trivial_generators",
    "with_averages",
]


@final
@dataclass(frozen=True)
class Generator:
    """Generator of a one-parameter subgroup: slice i is multiplied by e^(aᵢ s), s ∈ ℝ.

    Args:
        exponents: aᵢ by slice, none of them zero.
        name: readable name; a `ScalingGroup` sets one if it is empty.
        trivial: True if it changes no weight; set by a `ScalingGroup`.
        shifts: as in `ScalingElement.from_log2`.

    Raises:
        ValueError: without exponents, or with one that is zero or not finite.
    """

    exponents: Mapping[Slice, float]
    name: str = field(default="", compare=False)
    trivial: bool = False
    shifts: tuple[tuple[Slice, Slice], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.exponents:
            raise ValueError("a generator scales at least one slice")
        for where, exponent in self.exponents.items():
            if not isinstance(where, Slice):
                raise ValueError(f"a generator has exponents by Slice, not by {where!r}")
            if not math.isfinite(exponent) or exponent == 0:
                raise ValueError(f"{where} has the exponent {exponent}: leave out what stays")
        object.__setattr__(self, "exponents", dict(self.exponents))

    def __repr__(self) -> str:
        """Name, or exponents if there is none."""
        return f"<Generator {self.name}>" if self.name else f"Generator({self.exponents!r})"

    def __hash__(self) -> int:
        return hash(frozenset(self.exponents.items()))

    def element(self, factor: float) -> ScalingElement:
        """Element with s = ln `factor`; exact if `factor` is a power of two.

        Raises:
            ValueError: for a factor that is not positive and finite.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"the factor is {factor}; it must be positive and finite")
        return ScalingElement.from_log2(
            {where: a * math.log2(factor) for where, a in self.exponents.items()},
            shifts=self.shifts if factor != 1 else (),
        )

    @property
    def family(self) -> tuple[tuple[str, int | None, float], ...]:
        """Parameters, dimensions and exponents; generators of a family differ in indices only."""
        return tuple(sorted({(w.parameter, w.dim, a) for w, a in self.exponents.items()}, key=str))

    kind = renamed_attribute("Generator.kind", "Generator.family", removed_in="0.4.0")


class FalseSymmetryError(RuntimeError):
    """A generator that a finite element disproves.

    Attributes:
        generator: the generator that is no symmetry.
        deviation: relative change of the loss under a finite element of it.
    """

    def __init__(self, message: str, generator: Any, deviation: float) -> None:
        super().__init__(message)
        self.generator, self.deviation = generator, deviation


@final
@dataclass(frozen=True)
class ScalingGroup:
    """An abelian group of scalings, spanned by its generators.

    Args:
        generators: a basis; trivial generators are put last.
        shapes: shapes of the parameters (and buffers) that they scale.
        buffers: names of the buffers among these.
        report: record of the discovery or of `widen`, if there was one.
        structure: (name, class) of every module of the model, as `of` records it; empty if unknown.
            `check_model` compares it.

    Raises:
        ValueError: for a slice that its parameter does not have, a generator that is marked as
            trivial and is not, or linearly dependent generators.
    """

    generators: tuple[Generator, ...]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()
    report: Discovery | Widening | None = field(default=None, compare=False)
    structure: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        named = []
        order = {name: i for i, name in enumerate(self.shapes)}
        for generator in self.generators:
            for where in generator.exponents:
                _check_slice(where, self.shapes)
            name = generator.name or _described(generator.exponents, self.shapes, order)
            trivial = _is_trivial(generator.exponents, self.shapes)
            if generator.trivial and not trivial:
                raise ValueError(f"{name} is said to be trivial, but it moves weights")
            if (generator.name, generator.trivial) != (name, trivial):
                generator = replace(generator, name=name, trivial=trivial)
            named.append(generator)
        named.sort(key=lambda generator: generator.trivial)
        object.__setattr__(self, "generators", tuple(named))
        object.__setattr__(self, "shapes", {k: tuple(v) for k, v in self.shapes.items()})
        self._check_independent()

    @classmethod
    def of(cls, model: nn.Module, generators: Iterable[Generator]) -> ScalingGroup:
        """Group spanned by generators of a model."""
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        buffers = frozenset(name for name, _ in model.named_buffers()) & shapes.keys()
        structure = tuple((name, type(m).__qualname__) for name, m in model.named_modules())
        return cls(tuple(generators), shapes, buffers, structure=structure)

    def __hash__(self) -> int:
        return hash(self.generators)

    def _check_independent(self) -> None:
        # A generator with a slice of its own is independent of all others. Without it, others may
        # have slices of their own.
        rest = [set(g.exponents) for g in self.generators]
        left = list(range(len(rest)))
        while True:
            uses = Counter(where for i in left for where in rest[i])
            shared = [i for i in left if all(uses[w] > 1 for w in rest[i])]
            if len(shared) == len(left):
                break
            left = shared
        if len(left) < 2:
            return
        matrix = _matrix([self.generators[i].exponents for i in left])
        rank = int(torch.linalg.matrix_rank(matrix, rtol=1e-9))
        if rank < len(left):
            raise ValueError(
                f"{len(left)} generators span only {rank} dimensions; leave out what others give, "
                f"for example {self.generators[left[-1]].name}"
            )

    # --- size ---------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Number of generators, the trivial ones included."""
        return len(self.generators)

    @property
    def trivial_dimension(self) -> int:
        """Number of trivial generators."""
        return sum(generator.trivial for generator in self.generators)

    @property
    def nontrivial(self) -> ScalingGroup:
        """Subgroup of the non-trivial generators."""
        kept = tuple(g for g in self.generators if not g.trivial)
        return replace(self, generators=kept)

    def subgroup(self, generators: Iterable[int | Generator]) -> ScalingGroup:
        """Subgroup spanned by some of the generators, given by index in the basis or themselves.

        Raises:
            ValueError: for a generator that is not of this basis.
        """
        kept = tuple(self.generators[g] if isinstance(g, int) else g for g in generators)
        foreign = set(kept) - set(self.generators)
        if foreign:
            raise ValueError(f"{foreign.pop()} is not a generator of this group")
        return replace(self, generators=kept)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters that a non-trivial generator scales, in the order of the model."""
        named = {w.parameter for g in self.generators if not g.trivial for w in g.exponents}
        return tuple(n for n in self.shapes if n in named and n not in self.buffers)

    def __contains__(self, item: object) -> bool:
        """True if an element, a generator or a whole group is contained, to 1e-9.

        Scalings of parameters are compared, not their representations: "the whole tensor" equals
        "all rows" and "all columns". Buffers are disregarded.
        """
        if isinstance(item, ScalingGroup):
            wanted = [generator.exponents for generator in item.generators]
        elif isinstance(item, Generator):
            wanted = [item.exponents]
        elif isinstance(item, ScalingElement):
            if any(item.factor(w) < 0 for w in item.slices):
                return False
            wanted = [{w: item.log2(w) for w in item.slices}]
        else:
            return False
        if any(_missing(where, self.shapes) for exponents in wanted for where in exponents):
            return False
        mine = self._canonical_of(generator.exponents for generator in self.generators)
        theirs = self._canonical_of(wanted)
        if not (mine and theirs):
            return not theirs
        rows = _matrix([*mine, *theirs])
        span, vectors = rows[: len(mine)].mT, rows[len(mine) :].mT
        rest = vectors - span @ torch.linalg.lstsq(span, vectors, driver="gelsy").solution
        return bool((rest.norm(dim=0) <= 1e-9 * vectors.norm(dim=0)).all())

    def _canonical_of(self, every: Iterable[Mapping[Slice, float]]) -> list[dict[Slice, float]]:
        """Canonical exponents of parameters, buffers aside, where any are left."""
        kept = (
            {w: a for w, a in exponents.items() if w.parameter not in self.buffers}
            for exponents in every
        )
        return [c for exponents in kept if (c := _canonical(exponents, self.shapes))]

    # --- elements -----------------------------------------------------------------------------

    def element(self, log_scales: Sequence[float] | Tensor) -> ScalingElement:
        """Element with the log-scale sᵢ on generator i.

        Args:
            log_scales: natural logarithms, one for each generator in the order of the basis.

        Raises:
            ValueError: if their number is not the dimension, or one is not finite.
        """
        values = torch.as_tensor(log_scales, dtype=torch.float64).reshape(-1)
        return self.from_log2((values / math.log(2)).tolist())

    def from_log2(self, log2_scales: Iterable[float]) -> ScalingElement:
        """Element with the factor 2^tᵢ on generator i; exact for whole tᵢ.

        Args:
            log2_scales: tᵢ, one for each generator in the order of the basis.

        Raises:
            ValueError: as `element`.
        """
        scales = list(log2_scales)
        if len(scales) != self.dimension:
            raise ValueError(f"{len(scales)} log-scales for a group of dimension {self.dimension}")
        log2: dict[Slice, float] = {}
        shifts: list[tuple[Slice, Slice]] = []
        for generator, t in zip(self.generators, scales, strict=True):
            if t != 0:
                shifts += generator.shifts
                for where, exponent in generator.exponents.items():
                    log2[where] = log2.get(where, 0.0) + exponent * t
        return ScalingElement.from_log2(log2, shifts=shifts)

    def sample(
        self,
        *,
        generator: torch.Generator | None = None,
        spread: float = 1.0,
        powers_of_two: bool = False,
    ) -> ScalingElement:
        """Random element: every sᵢ uniform between −`spread` and `spread`.

        Args:
            generator: source of randomness; torch's default generator if None.
            spread: largest |ln factor| of one generator: 6.9 for factors from 1e-3 to 1e3.
            powers_of_two: round every sᵢ to the nearest multiple of ln 2, or of q ln 2 if exponents
                are p/q. All factors are powers of two then, which scale without rounding.

        Raises:
            ValueError: for a spread that is not finite and positive.
        """
        if not (math.isfinite(spread) and spread > 0):
            raise ValueError(f"spread is {spread}; it must be positive and finite (in ln factor)")
        uniform = torch.rand(self.dimension, generator=generator, dtype=torch.float64)
        log2 = (2 * uniform - 1) * (spread / math.log(2))
        if powers_of_two:
            steps = torch.tensor([_denominator(g) for g in self.generators], dtype=torch.float64)
            log2 = (log2 / steps).round() * steps
        return self.from_log2(log2.tolist())

    # --- other sizes --------------------------------------------------------------------------

    def widen(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batch: Batch,
        *,
        seed: int = 0,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> ScalingGroup:
        """Write the group of a narrow copy for a model of other widths and depths, and verify it.

        Families of generators are patterns over indices (`manifoldnet.symmetry.widening`). Each is
        written for the model's sizes, with a block's families for every block, and verified by a
        random element of all its generators, with factors up to e, at the model's weights and near
        them. ε of normalization layers is removed for that, as in `discover`.

        A narrow copy determines the pattern if different axes have different sizes, and heads,
        groups, and key heads are two or more; for another depth it has three blocks.

        Args:
            model: the wide model, in the mode that matters; it is not changed.
            loss_fn: as in `discover`.
            batch: one batch for the wide model; a few samples are enough.
            seed: decides the random elements.
            on_progress: called with (name of the stage, steps done, steps in all).

        Returns:
            The group of the wide model; `report` is a `Widening`.

        Raises:
            ValueError: if the models are not of one architecture, or the narrow copy does not
                determine the pattern of a family.
            FalseSymmetryError: if a family changes the loss of the wide model, however it is
                written; the message names it.
        """
        trivial = {w.parameter for g in self.generators if g.trivial for w in g.exponents}
        narrow = [g.exponents for g in self.generators if not g.trivial]
        measured = self.report is not None
        if measured:  # running averages are found anew
            narrow = [
                {w: a for w, a in exponents.items() if w.parameter not in self.buffers}
                for exponents in narrow
            ]
        try:
            result = widen(
                narrow,
                trivial,
                self.shapes,
                self.structure,
                self.report.unreached_slices if isinstance(self.report, Discovery) else (),
                model,
                loss_fn,
                batch,
                seed=seed,
                on_progress=on_progress,
            )
        except WrongPatternError as error:
            shapes = {name: tuple(t.shape) for name, t in named_tensors(model).items()}
            name = describe(error.exponents, shapes)
            generator = Generator(error.exponents, name)
            raise FalseSymmetryError(f"{name}: {error}", generator, error.deviation) from None
        generators = [Generator(exponents) for exponents in result.exponents]
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        generators += trivial_generators(shapes, result.matrices)
        group = type(self).of(model, generators)
        if measured:
            pair = as_pair(batch, loss_fn is None)
            group, _ = with_averages(group, model, loss_fn, pair, result.dtype)
        report = Widening(
            families=result.families,
            generators=len(result.exponents),
            dtype=result.dtype,
            verified=result.verified,
            narrow=self.report,
        )
        return replace(group, report=report)

    # --- printing -----------------------------------------------------------------------------

    def families(self) -> Iterator[tuple[str, list[Generator]]]:
        """Generators that differ in their indices only, with a common name."""
        found: dict[object, list[Generator]] = {}
        for generator in self.generators:
            found.setdefault((generator.trivial, generator.family), []).append(generator)
        for members in found.values():
            name = members[0].name
            yield (f"{name}, and {len(members) - 1} more like it" if members[1:] else name), members

    def __str__(self) -> str:
        lines = [
            f"scaling group of dimension {self.dimension}, "
            f"{self.dimension - self.trivial_dimension} of it non-trivial"
            if self.generators
            else "scaling group of dimension 0: there is no scaling symmetry"
        ]
        for name, members in self.families():
            lines.append(f"  {name}" + ("  (trivial)" if members[0].trivial else ""))
        if self.report is not None:
            lines.append(str(self.report))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"<ScalingGroup of dimension {self.dimension} ({self.trivial_dimension} trivial) on "
            f"{len(self.shapes)} parameters>"
        )


def trivial_generators(
    shapes: Mapping[str, tuple[int, ...]], parameters: Iterable[str] | None = None
) -> list[Generator]:
    """Trivial generators, one for each matrix: exponent 1 on all rows, −1 on all columns.

    Args:
        shapes: shapes of all parameters.
        parameters: names of the parameters to include; all if None.
    """
    return [
        Generator(
            {Slice(name, 0, i): 1.0 for i in range(shape[0])}
            | {Slice(name, 1, j): -1.0 for j in range(shape[1])},
            trivial=True,
        )
        for name, shape in shapes.items()
        if len(shape) > 1 and (parameters is None or name in parameters)
    ]


def _check_slice(where: Slice, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if where.parameter not in shapes:
        raise ValueError(
            f"there is no parameter {where.parameter!r} (there are: {', '.join(shapes)})"
        )
    if _missing(where, shapes):
        raise ValueError(
            f"{where.parameter} of shape {tuple(shapes[where.parameter])} has no slice "
            f"{where.index} along dim={where.dim}"
        )


def _missing(where: Slice, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """True if there is no such slice."""
    shape = shapes.get(where.parameter)
    if shape is None or where.dim is None:
        return shape is None
    return where.dim >= len(shape) or where.index >= shape[where.dim]


def _canonical(
    exponents: Mapping[Slice, float], shapes: Mapping[str, tuple[int, ...]]
) -> dict[Slice, float]:
    """Unique exponents of the scaling that given ones stand for; empty if it is trivial.

    For each parameter: the exponent of its first entry, on `Slice(parameter, None)`, and for each
    dimension the exponents of the other slices less that of the first.
    """
    by_dim: dict[tuple[str, int | None], dict[int, float]] = {}
    for where, exponent in exponents.items():
        by_dim.setdefault((where.parameter, where.dim), {})[where.index] = exponent
    result: dict[Slice, float] = {}
    for (name, dim), given in by_dim.items():
        first, whole = given.get(0, 0.0), Slice(name, None)
        result[whole] = result.get(whole, 0.0) + first
        if dim is not None:
            for i in range(1, shapes[name][dim]) if first else given:
                result[Slice(name, dim, i)] = given.get(i, 0.0) - first
    negligible = 1e-12 * max(map(abs, exponents.values()), default=0.0)
    return {where: value for where, value in result.items() if abs(value) > negligible}


def _is_trivial(exponents: Mapping[Slice, float], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """True if a generator changes no weight."""
    dims: dict[str, set[int | None]] = {}
    for where in exponents:
        dims.setdefault(where.parameter, set()).add(where.dim)
    # Along one dimension of a parameter, nothing cancels.
    return min(map(len, dims.values())) > 1 and not _canonical(exponents, shapes)


def _denominator(generator: Generator) -> int:
    """Least q for which all exponents are multiples of 1/q."""
    return math.lcm(*(_fraction(a).denominator for a in generator.exponents.values()))


def _matrix(rows: Sequence[Mapping[Slice, float]]) -> Tensor:
    """Exponents as rows of a matrix whose columns are all slices that occur."""
    column = {where: i for i, where in enumerate(dict.fromkeys(w for row in rows for w in row))}
    matrix = torch.zeros(len(rows), len(column), dtype=torch.float64)
    for i, row in enumerate(rows):
        for where, exponent in row.items():
            matrix[i, column[where]] = exponent
    return matrix


def with_averages(
    group: ScalingGroup,
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: InputTarget,
    dtype: torch.dtype,
) -> tuple[ScalingGroup, Followed]:
    """Same group, whose generators scale and shift running averages along; see `averages.follow`.

    Names of generators stay those of the parameters.
    """
    plain = [g for g in group.generators if not g.trivial]
    followed = follow(model, loss_fn, batch, [g.exponents for g in plain], dtype)
    generators = [
        replace(g, exponents=exponents, shifts=shifts)
        for g, exponents, shifts in zip(plain, followed.exponents, followed.shifts, strict=True)
    ]
    generators += [g for g in group.generators if g.trivial]
    return replace(group, generators=tuple(generators)), followed


def describe(exponents: Mapping[Slice, float], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name of a generator: `hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s`.

    Positive exponents come first, then parameters in the order of the model. Names are for people;
    they are never parsed.
    """
    return _described(exponents, shapes, {name: i for i, name in enumerate(shapes)})


def _described(
    exponents: Mapping[Slice, float],
    shapes: Mapping[str, tuple[int, ...]],
    order: Mapping[str, int],
) -> str:
    found: dict[tuple[int, str, int | None, float], list[int]] = {}
    for where, exponent in exponents.items():
        key = (order[where.parameter], where.parameter, where.dim, exponent)
        found.setdefault(key, []).append(where.index)
    formatted = []
    for key in sorted(found, key=lambda k: (k[3] < 0, k[0], str(k[2]), -k[3])):
        _, name, dim, exponent = key
        shape = shapes[name]
        size = None if dim is None else shape[dim]
        power = _fraction(abs(exponent))
        formatted.append(
            describe_slices(name, dim, found[key], len(shape), size)
            + f" {'×' if exponent > 0 else '÷'} s"
            + ("" if power == 1 else f"^{power}")
        )
    return ", ".join(formatted)


@lru_cache
def _fraction(exponent: float) -> Fraction:
    """Small fraction next to an exponent."""
    return Fraction(exponent).limit_denominator(1000)
