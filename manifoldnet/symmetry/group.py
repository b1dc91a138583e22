"""Scaling groups: which scalings leave a network's loss as it is, as a basis of log-scales.

    Generator     hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s
    ScalingGroup  all products of powers of its generators: a vector space of log-scales

A generator is *trivial* when it changes no weight at all (all rows of one matrix up, all its
columns down); those are kept apart, so that `dimension - trivial_dimension` counts what really
moves the weights. Groups come from `manifoldnet.symmetry.discover`, from a network that knows its
own (`manifoldnet.experiments.papers.symmetry.networks`), or from generators written down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.names import describe, fraction
from manifoldnet.symmetry.reparameterize import named_tensors
from manifoldnet.symmetry.report import Discovery
from manifoldnet.symmetry.scaling import ScalingElement, Slice

__all__ = ["Generator", "ScalingGroup", "trivial_generators"]


@final
@dataclass(frozen=True)
class Generator:
    """One direction of a group: slice i is multiplied by e^(aᵢ s), s ∈ ℝ.

    Args:
        exponents: aᵢ by slice, none of them zero.
        name: what a reader calls it; `ScalingGroup` writes one if it is left empty.
        trivial: whether it leaves every weight as it is; a `ScalingGroup` finds that out.

    Raises:
        ValueError: without exponents, or with one that is zero or not finite.
    """

    exponents: Mapping[Slice, float]
    name: str = field(default="", compare=False)
    trivial: bool = False

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
        """By its name, where it has one: exponents are many."""
        return f"<Generator {self.name}>" if self.name else f"Generator({self.exponents!r})"

    def __hash__(self) -> int:
        return hash(frozenset(self.exponents.items()))

    def element(self, factor: float) -> ScalingElement:
        """The element with s = ln `factor`; exact if that is a power of two.

        Raises:
            ValueError: for a factor that is not positive and finite.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"the factor is {factor}; it must be positive and finite")
        return ScalingElement.from_log2(
            {where: a * math.log2(factor) for where, a in self.exponents.items()}
        )

    @property
    def kind(self) -> tuple[tuple[str, int | None, float], ...]:
        """What it has in common with its like: parameters, dimensions and exponents, no indices."""
        return tuple(sorted({(w.parameter, w.dim, a) for w, a in self.exponents.items()}, key=str))


@final
@dataclass(frozen=True)
class ScalingGroup:
    """An abelian group of scalings, spanned by its generators.

    Args:
        generators: a basis; those that turn out to be trivial are put last, and marked.
        shapes: the shapes of the parameters (and buffers) they name.
        buffers: which of them are buffers, that no optimizer moves.
        report: how it was found, if it was discovered.

    Raises:
        ValueError: for a slice that its parameter does not have, a generator that is said to be
            trivial and is not, or generators that depend on each other.
    """

    generators: tuple[Generator, ...]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()
    report: Discovery | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        named = []
        for generator in self.generators:
            for where in generator.exponents:
                _check_slice(where, self.shapes)
            name = generator.name or describe(generator.exponents, self.shapes)
            trivial = not _rates(generator.exponents, self.shapes)
            if generator.trivial and not trivial:
                raise ValueError(f"{name} is said to be trivial, but it moves weights")
            named.append(Generator(generator.exponents, name, trivial))
        named.sort(key=lambda generator: generator.trivial)
        object.__setattr__(self, "generators", tuple(named))
        object.__setattr__(self, "shapes", {k: tuple(v) for k, v in self.shapes.items()})
        self._check_independent()

    @classmethod
    def of(cls, model: nn.Module, generators: Iterable[Generator]) -> ScalingGroup:
        """The group of a model that these generators span."""
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        buffers = frozenset(name for name, _ in model.named_buffers()) & shapes.keys()
        return cls(tuple(generators), shapes, buffers)

    def __hash__(self) -> int:
        return hash(self.generators)

    def _check_independent(self) -> None:
        # A generator with a slice of its own depends on no other: only the rest needs algebra.
        users: dict[Slice, int] = {}
        for generator in self.generators:
            for where in generator.exponents:
                users[where] = users.get(where, 0) + 1
        rest = [g for g in self.generators if all(users[w] > 1 for w in g.exponents)]
        if len(rest) < 2:
            return
        matrix = _matrix([g.exponents for g in rest])
        rank = int(torch.linalg.matrix_rank(matrix, rtol=1e-9))
        if rank < len(rest):
            raise ValueError(
                f"{len(rest)} generators span only {rank} dimensions; leave out what others give, "
                f"for example {rest[-1].name}"
            )

    # --- size ---------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """How many independent scalings there are, the trivial ones included."""
        return len(self.generators)

    @property
    def trivial_dimension(self) -> int:
        """How many of them change no weight."""
        return sum(generator.trivial for generator in self.generators)

    @property
    def nontrivial(self) -> ScalingGroup:
        """The same without the trivial generators."""
        kept = tuple(g for g in self.generators if not g.trivial)
        return ScalingGroup(kept, self.shapes, self.buffers, self.report)

    def subgroup(self, generators: Iterable[int | Generator]) -> ScalingGroup:
        """What some of the generators span, given themselves or by their place in the basis.

        Raises:
            ValueError: for a generator that is not of this basis.
        """
        kept = tuple(self.generators[g] if isinstance(g, int) else g for g in generators)
        foreign = set(kept) - set(self.generators)
        if foreign:
            raise ValueError(f"{foreign.pop()} is not a generator of this group")
        return ScalingGroup(kept, self.shapes, self.buffers, self.report)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that a non-trivial generator scales, in the order of the model."""
        named = {w.parameter for g in self.generators if not g.trivial for w in g.exponents}
        return tuple(n for n in self.shapes if n in named and n not in self.buffers)

    def __contains__(self, item: object) -> bool:
        """Whether an element, a generator or a whole group lies inside, to 1e-9.

        What counts is how parameters are scaled: "the whole tensor" is "all rows" and "all
        columns", and what is done to buffers makes no difference.
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
        mine = self._rates_of(generator.exponents for generator in self.generators)
        theirs = self._rates_of(wanted)
        if not (mine and theirs):
            return not theirs
        rows = _matrix([*mine, *theirs])
        span, vectors = rows[: len(mine)].mT, rows[len(mine) :].mT
        rest = vectors - span @ torch.linalg.lstsq(span, vectors, driver="gelsy").solution
        return bool((rest.norm(dim=0) <= 1e-9 * vectors.norm(dim=0)).all())

    def _rates_of(self, every: Iterable[Mapping[Slice, float]]) -> list[Mapping[Slice, float]]:
        """How parameters, buffers aside, are scaled; without what does not scale any."""
        kept = (
            {w: a for w, a in exponents.items() if w.parameter not in self.buffers}
            for exponents in every
        )
        return [rates for exponents in kept if (rates := _rates(exponents, self.shapes))]

    # --- elements -----------------------------------------------------------------------------

    def element(self, log_scales: Sequence[float] | Tensor) -> ScalingElement:
        """The element with the log-scale sᵢ on generator i.

        Args:
            log_scales: natural logarithms, one for each generator in the order of the basis.

        Raises:
            ValueError: if there are more or fewer of them, or one is not finite.
        """
        values = torch.as_tensor(log_scales, dtype=torch.float64).reshape(-1)
        return self.from_log2((values / math.log(2)).tolist())

    def from_log2(self, log2_scales: Iterable[float]) -> ScalingElement:
        """The element with the factor 2^tᵢ on generator i; exact for whole tᵢ.

        Args:
            log2_scales: tᵢ, one for each generator in the order of the basis.

        Raises:
            ValueError: as `element`.
        """
        scales = list(log2_scales)
        if len(scales) != self.dimension:
            raise ValueError(f"{len(scales)} log-scales for a group of dimension {self.dimension}")
        log2: dict[Slice, float] = {}
        for generator, t in zip(self.generators, scales, strict=True):
            if t != 0:
                for where, exponent in generator.exponents.items():
                    log2[where] = log2.get(where, 0.0) + exponent * t
        return ScalingElement.from_log2(log2)

    def sample(
        self,
        *,
        generator: torch.Generator | None = None,
        spread: float = 1.0,
        powers_of_two: bool = False,
    ) -> ScalingElement:
        """A random element: every sᵢ uniform between −`spread` and `spread`.

        Args:
            generator: the source of randomness; torch's default one if left out.
            spread: the largest |ln factor| of one generator: 6.9 for factors from 1e-3 to 1e3.
            powers_of_two: round every sᵢ so that all factors are powers of two, which scale without
                rounding: sᵢ to the nearest multiple of ln 2, or of q ln 2 if exponents are p/q.

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

    # --- for readers --------------------------------------------------------------------------

    def families(self) -> Iterator[tuple[str, list[Generator]]]:
        """Generators that differ in their indices only, with one name for all of them."""
        found: dict[object, list[Generator]] = {}
        for generator in self.generators:
            found.setdefault((generator.trivial, generator.kind), []).append(generator)
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
    """All rows up, all columns down: one generator for each matrix, which changes nothing.

    Args:
        shapes: of all parameters.
        parameters: which to look at; all if left out.
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
    """Whether there is no such slice."""
    shape = shapes.get(where.parameter)
    if shape is None or where.dim is None:
        return shape is None
    return where.dim >= len(shape) or where.index >= shape[where.dim]


def _rates(
    exponents: Mapping[Slice, float], shapes: Mapping[str, tuple[int, ...]]
) -> dict[Slice, float]:
    """What exponents do to the weights, in coordinates that say it in one way only.

    For each parameter: how fast its first entry grows, on `Slice(parameter, None)`; and along each
    dimension, how much faster than the first slice the others do. Nothing is left of exponents
    that change no weight.
    """
    along: dict[tuple[str, int | None], dict[int, float]] = {}
    for where, exponent in exponents.items():
        along.setdefault((where.parameter, where.dim), {})[where.index] = exponent
    rates: dict[Slice, float] = {}
    for (name, dim), given in along.items():
        first, whole = given.get(0, 0.0), Slice(name, None)
        rates[whole] = rates.get(whole, 0.0) + first
        if dim is not None:
            for i in range(1, shapes[name][dim]) if first else given:
                rates[Slice(name, dim, i)] = given.get(i, 0.0) - first
    negligible = 1e-12 * max(map(abs, exponents.values()), default=0.0)
    return {where: rate for where, rate in rates.items() if abs(rate) > negligible}


def _denominator(generator: Generator) -> int:
    """The least q for which all exponents are multiples of 1/q."""
    return math.lcm(*(fraction(a).denominator for a in generator.exponents.values()))


def _matrix(rows: Sequence[Mapping[Slice, float]]) -> Tensor:
    """Exponents as rows over all slices that any of them names."""
    places: dict[Slice, int] = {}
    for row in rows:
        for where in row:
            places.setdefault(where, len(places))
    matrix = torch.zeros(len(rows), len(places), dtype=torch.float64)
    for i, row in enumerate(rows):
        for where, exponent in row.items():
            matrix[i, places[where]] = exponent
    return matrix
