"""Linear symmetry groups: linear maps and translations of weights that leave a loss invariant.

    LinearGenerator    W ↦ A W + W B + T of each of some parameters: a vector field on the weights
    LinearElement      W ↦ L W R + S, the flow of such a field: L = e^A, R = e^B
    LinearGroup        the elements spanned by its generators, in named blocks

A acts along dim 0 of a parameter (rows of a matrix, filters, entries of a vector), B along dim 1
(columns, input channels); a scaling is the case of diagonal A and B. Generators are fields modulo
those that move no weight (A = cI with B = −cI). Groups come from
`manifoldnet.symmetry.discover(kind="linear")`, or from generators written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.report import LinearDiscovery
from manifoldnet.symmetry.scaling import ScalingElement, Slice

__all__ = ["LinearBlock", "LinearElement", "LinearGenerator", "LinearGroup"]

# Relative size below which an entry of a generator is rounding.
_NEGLIGIBLE = 1e-9


@final
@dataclass(frozen=True, eq=False)
class LinearGenerator:
    """Generator of a one-parameter subgroup: the vector field W ↦ A W + W B + T.

    Args:
        left: A by parameter, n₀ × n₀, acting along dim 0.
        right: B by parameter, n₁ × n₁, acting along dim 1.
        translation: T by parameter, of the parameter's shape.
        name: readable name.
        kind: "scaling", "GL", "SL", "O", "GL(ℂ)", "shift", "translation", or "other". A *shift* is
            a linear map whose orbits lie in those of translations (a multiple of a row of ones,
            added to all logits).

    Raises:
        ValueError: without any matrix or translation, or with one that is not finite or square.
    """

    left: Mapping[str, Tensor] = field(default_factory=dict)
    right: Mapping[str, Tensor] = field(default_factory=dict)
    translation: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""
    kind: str = "other"

    def __post_init__(self) -> None:
        if not (self.left or self.right or self.translation):
            raise ValueError("a generator moves at least one parameter")
        for part in ("left", "right", "translation"):
            given = {n: torch.as_tensor(m).double() for n, m in getattr(self, part).items()}
            for name, m in given.items():
                if part != "translation" and (m.ndim != 2 or m.shape[0] != m.shape[1]):
                    raise ValueError(f"{name}: {part} has the shape {tuple(m.shape)}, not square")
                if not bool(m.isfinite().all()):
                    raise ValueError(f"{name}: {part} has entries that are not finite")
            object.__setattr__(self, part, given)

    @classmethod
    def of_scaling(
        cls, generator: Generator, shapes: Mapping[str, tuple[int, ...]]
    ) -> LinearGenerator:
        """Same field as that of a generator of scalings.

        Args:
            generator: exponents of slices.
            shapes: shapes of the parameters.
        """
        sides: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for where, exponent in generator.exponents.items():
            shape = shapes[where.parameter] or (1,)
            dim = where.dim or 0
            size = shape[dim]
            matrix = sides[dim].setdefault(
                where.parameter, torch.zeros(size, size, dtype=torch.float64)
            )
            for i in range(size) if where.dim is None else (where.index,):
                matrix[i, i] += exponent
        return cls(*sides, name=generator.name, kind="scaling")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that it moves."""
        return tuple(dict.fromkeys([*self.left, *self.right, *self.translation]))

    @property
    def is_translation(self) -> bool:
        """True if it has no linear part."""
        return not (self.left or self.right)

    @property
    def is_symmetric(self) -> bool:
        """True if it is linear and all its matrices are symmetric.

        The field is a gradient then: that of ½⟨W, A W + W B⟩, summed over parameters.
        """
        return self._equals_transpose(1.0)

    @property
    def is_skew(self) -> bool:
        """True if it is linear and all its matrices are skew-symmetric: a rotation of weights."""
        return self._equals_transpose(-1.0)

    @property
    def is_diagonal(self) -> bool:
        """True if it is linear and all its matrices are diagonal: a scaling of weights."""
        return not self.translation and all(
            bool(((m - m.diagonal().diag()).abs() <= _NEGLIGIBLE * m.abs().max()).all())
            for m in (*self.left.values(), *self.right.values())
        )

    def _equals_transpose(self, sign: float) -> bool:
        matrices = [*self.left.values(), *self.right.values()]
        if self.translation or not matrices:
            return False
        return all(
            bool(((m - sign * m.mT).abs() <= _NEGLIGIBLE * m.abs().max()).all()) for m in matrices
        )

    def velocity(self, parameter: str, x: Tensor) -> Tensor:
        """A x + x B + T of one parameter, in the type of x."""
        v = torch.zeros_like(x)
        if parameter in self.left:
            v = v + along(self.left[parameter].to(x), x, 0)
        if parameter in self.right:
            v = v + along(self.right[parameter].to(x).mT, x, 1)
        if parameter in self.translation:
            v = v + self.translation[parameter].to(x).reshape(x.shape)
        return v

    def element(self, t: float) -> LinearElement:
        """Flow of the field for the time t."""
        return LinearElement.exponential(
            {n: t * m for n, m in self.left.items()},
            {n: t * m for n, m in self.right.items()},
            {n: t * m for n, m in self.translation.items()},
        )

    def __repr__(self) -> str:
        return f"<LinearGenerator {self.name or ', '.join(self.parameters)} ({self.kind})>"


@final
class LinearElement:
    """Group element: W ↦ L W R + S of each of some parameters.

    Args:
        left: invertible L by parameter, along dim 0; the identity by default.
        right: invertible R by parameter, along dim 1; the identity by default.
        shift: S by parameter; zero by default.

    Raises:
        ValueError: for a matrix that is not square, finite and invertible.
    """

    __slots__ = ("left", "right", "shift")

    def __init__(
        self,
        left: Mapping[str, Tensor] | None = None,
        right: Mapping[str, Tensor] | None = None,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.left, self.right, self.shift = (
            {name: torch.as_tensor(m).double() for name, m in (given or {}).items()}
            for given in (left, right, shift)
        )
        for part in (self.left, self.right):
            for name, m in part.items():
                if m.ndim != 2 or m.shape[0] != m.shape[1]:
                    raise ValueError(f"{name}: a matrix of shape {tuple(m.shape)} is not square")
                if not math.isfinite(float(torch.linalg.cond(m))):
                    raise ValueError(f"{name}: a matrix of the element is not invertible")

    @classmethod
    def exponential(
        cls,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        translation: Mapping[str, Tensor],
    ) -> LinearElement:
        """Flow of the field W ↦ A W + W B + T for the time 1."""
        shift = {
            name: _integral(t, left.get(name), right.get(name)) for name, t in translation.items()
        }
        return cls(
            {name: torch.matrix_exp(m) for name, m in left.items()},
            {name: torch.matrix_exp(m) for name, m in right.items()},
            shift,
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that it moves."""
        return tuple(dict.fromkeys([*self.left, *self.right, *self.shift]))

    def apply(self, parameter: str, x: Tensor) -> Tensor:
        """g·x = L x R + S of one parameter, computed in float64 and rounded once.

        Raises:
            ValueError: if x has another shape, is not of a floating-point type, or the result
                overflows in it.
        """
        return self._moved(parameter, x, self.left, self.right, self.shift)

    def differential(self, parameter: str, u: Tensor) -> Tensor:
        """L u R of a tangent vector u: a step or a momentum at x becomes one at g·x."""
        return self._moved(parameter, u, self.left, self.right, {})

    def gradient(self, parameter: str, g: Tensor) -> Tensor:
        """L^{-T} g R^{-T}: the gradient at g·x of an invariant loss with the gradient g at x."""
        left, right = (
            {n: torch.linalg.inv(m).mT for n, m in part.items() if n == parameter}
            for part in (self.left, self.right)
        )
        return self._moved(parameter, g, left, right, {})

    @staticmethod
    def _moved(
        parameter: str,
        x: Tensor,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        shift: Mapping[str, Tensor],
    ) -> Tensor:
        if not x.is_floating_point():
            raise ValueError(f"{parameter} has the type {x.dtype}, which no linear map acts on")
        y = x.double()
        for dim, part in ((0, left), (1, right)):
            if parameter in part:
                m = part[parameter].to(y.device)
                if dim >= max(y.ndim, 1) or (y.shape[dim] if y.ndim else 1) != len(m):
                    raise ValueError(
                        f"{parameter} of shape {tuple(x.shape)} has no {len(m)} slices along "
                        f"dim={dim}, which the element mixes"
                    )
                y = along(m if dim == 0 else m.mT, y, dim)
        if parameter in shift:
            s = shift[parameter].to(y.device)
            if s.numel() != y.numel():
                raise ValueError(
                    f"{parameter} of shape {tuple(x.shape)} cannot be shifted by "
                    f"{tuple(s.shape)} numbers"
                )
            y = y + s.reshape(y.shape)
        y = y.to(x.dtype)
        if not x.is_meta and not bool((y.isfinite() | ~x.isfinite()).all()):
            raise ValueError(f"{parameter}: numbers overflow in {x.dtype} when they are moved")
        return y

    def inverse(self) -> LinearElement:
        """Inverse element: W ↦ L⁻¹ (W − S) R⁻¹."""
        left, right = (
            {name: torch.linalg.inv(m) for name, m in part.items()}
            for part in (self.left, self.right)
        )
        shift = {name: -self._moved(name, s, left, right, {}) for name, s in self.shift.items()}
        return LinearElement(left, right, shift)

    def compose(self, other: LinearElement) -> LinearElement:
        """Product g h: first h, then g. Also written `g * h`."""
        left, right, shift = dict(other.left), dict(other.right), dict(self.shift)
        for name, m in self.left.items():
            left[name] = m @ left[name] if name in left else m
        for name, m in self.right.items():
            right[name] = right[name] @ m if name in right else m
        for name, s in other.shift.items():
            moved = self.differential(name, s)
            shift[name] = shift[name] + moved if name in shift else moved
        return LinearElement(left, right, shift)

    def __mul__(self, other: LinearElement) -> LinearElement:
        return self.compose(other) if isinstance(other, LinearElement) else NotImplemented

    def renamed(self, names: Mapping[str, str]) -> LinearElement:
        """Same maps under other parameter names."""
        left, right, shift = (
            {names.get(name, name): m for name, m in part.items()}
            for part in (self.left, self.right, self.shift)
        )
        return LinearElement(left, right, shift)

    def describe(self, parameter: str) -> str:
        """Readable effect on one parameter: "singular values of the map from 0.5 to 2"."""
        low = high = 1.0
        for part in (self.left, self.right):
            if parameter in part:
                values = torch.linalg.svdvals(part[parameter])
                low, high = low * float(values[-1]), high * float(values[0])
        parts = []
        if parameter in self.left or parameter in self.right:
            parts.append(f"singular values of the map from {low:.3g} to {high:.3g}")
        if parameter in self.shift:
            parts.append(f"shifted by a norm of {float(self.shift[parameter].norm()):.3g}")
        return ", ".join(parts) or "not moved"

    def __repr__(self) -> str:
        moved = "; ".join(f"{name}: {self.describe(name)}" for name in self.parameters[:4])
        more = f"; and {len(self.parameters) - 4} more" if self.parameters[4:] else ""
        return f"<LinearElement on {moved or 'nothing'}{more}>"


@final
@dataclass(frozen=True, eq=False)
class LinearBlock:
    """An ideal of a linear group's algebra: generators that commute with those of other blocks.

    Attributes:
        name: "0, head 1: GL(3) on q/k".
        kind: "GL(3)", "O(5)", "scaling", "shift", "translation", or "other".
        generators: a basis; symmetric generators first, skew ones next, others last.
        where: the rows, columns and entries that it moves, formatted.
    """

    name: str
    kind: str
    generators: tuple[LinearGenerator, ...]
    where: str = ""

    @property
    def dimension(self) -> int:
        """Number of generators."""
        return len(self.generators)


@final
@dataclass(frozen=True, eq=False)
class LinearGroup:
    """A Lie group of linear maps and translations of weights.

    The linear generators come first, the pure translations last. `dimension` counts the linear
    ones, `translation_dimension` the others: translations are a vector space of their own, in
    whose orbits those of the shifts lie.

    Args:
        blocks: the ideals.
        shapes: shapes of the parameters.
        report: record of the discovery, if the group was discovered.

    Raises:
        ValueError: for a parameter that `shapes` does not have, or a matrix of another size.
    """

    blocks: tuple[LinearBlock, ...]
    shapes: Mapping[str, tuple[int, ...]]
    report: LinearDiscovery | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {k: tuple(v) for k, v in self.shapes.items()})
        ordered = sorted(self.blocks, key=lambda b: all(g.is_translation for g in b.generators))
        object.__setattr__(self, "blocks", tuple(ordered))
        for generator in self.generators:
            _check_shapes(generator, self.shapes)

    @classmethod
    def of(cls, model: nn.Module, generators: Iterable[LinearGenerator]) -> LinearGroup:
        """Group spanned by generators of a model, in blocks of one name each."""
        named: dict[tuple[bool, str, str], list[LinearGenerator]] = {}
        for g in generators:
            named.setdefault((g.is_translation, g.name, g.kind), []).append(g)
        blocks = (LinearBlock(key[1], key[2], tuple(each)) for key, each in named.items())
        return cls(tuple(blocks), {n: tuple(p.shape) for n, p in model.named_parameters()})

    # --- size ---------------------------------------------------------------------------------

    @property
    def generators(self) -> tuple[LinearGenerator, ...]:
        """Basis of the algebra: the linear generators, then the translations."""
        every = [g for block in self.blocks for g in block.generators]
        return tuple(sorted(every, key=lambda g: g.is_translation))

    @property
    def translations(self) -> tuple[LinearGenerator, ...]:
        """Generators without a linear part."""
        return tuple(g for g in self.generators if g.is_translation)

    @property
    def dimension(self) -> int:
        """Number of linear generators."""
        return sum(not g.is_translation for g in self.generators)

    @property
    def translation_dimension(self) -> int:
        """Number of pure translations."""
        return len(self.translations)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters that a generator moves, in the order of the model."""
        moved = {name for g in self.generators for name in g.parameters}
        return tuple(name for name in self.shapes if name in moved)

    @property
    def scalings(self) -> ScalingGroup:
        """Scalings among the generators: those with diagonal matrices and no translation."""
        diagonal = [g for g in self.generators if g.is_diagonal]
        return ScalingGroup(tuple(map(self._scaling, diagonal)), self.shapes)

    def _scaling(self, generator: LinearGenerator) -> Generator:
        exponents = {}
        for dim, part in ((0, generator.left), (1, generator.right)):
            for name, m in part.items():
                values = m.diagonal()
                for i in (values.abs() > _NEGLIGIBLE * values.abs().max()).nonzero().flatten():
                    where = Slice(name, dim, int(i)) if self.shapes[name] else Slice(name, None)
                    exponents[where] = float(values[i])
        return Generator(exponents)

    def subgroup(self, blocks: Iterable[LinearBlock]) -> LinearGroup:
        """Subgroup spanned by some of the blocks.

        Raises:
            ValueError: for a block that is not of this group.
        """
        kept = tuple(blocks)
        for block in kept:
            if block not in self.blocks:
                raise ValueError(f"{block.name} is not a block of this group")
        return LinearGroup(kept, self.shapes, self.report)

    def __contains__(self, item: object) -> bool:
        """True if a generator or a whole group, linear or of scalings, is in the span, to 1e-8.

        Fields are compared at random weights, not their representations.

        Raises:
            TypeError: for an element: a map has many logarithms. `invariance_error.loss` measures
                its effect.
        """
        if isinstance(item, LinearElement | ScalingElement):
            raise TypeError(
                "generators are in the span of a linear group or not; of an element, that is not "
                "decided: measure its effect, invariance_error.loss(model, element, …)"
            )
        if isinstance(item, LinearGroup | ScalingGroup):
            return all(generator in self for generator in item.generators)
        if isinstance(item, Generator):
            item = LinearGenerator.of_scaling(item, self.shapes)
        if not isinstance(item, LinearGenerator) or set(item.parameters) - set(self.shapes):
            return False
        source = torch.Generator().manual_seed(0)
        fields = [*self.generators, item]
        parts = []
        for _ in range(3):
            weights = {
                name: torch.randn(shape, generator=source, dtype=torch.float64)
                for name, shape in self.shapes.items()
            }
            parts.append(torch.stack([field_at(g, weights) for g in fields], dim=1))
        values = torch.cat(parts)
        span, vector = values[:, :-1], values[:, -1:]
        if not self.generators:
            return not bool(vector.any())
        rest = vector - span @ torch.linalg.lstsq(span, vector, driver="gelsd").solution
        return bool(rest.norm() <= 1e-8 * vector.norm())

    # --- elements -----------------------------------------------------------------------------

    def element(self, coefficients: Sequence[float] | Tensor) -> LinearElement:
        """Exponential of a combination of all generators, translations included.

        Args:
            coefficients: one for each generator, in the order of `generators`.

        Raises:
            ValueError: if their number is another, or one is not finite.
        """
        values = torch.as_tensor(coefficients, dtype=torch.float64).reshape(-1)
        if len(values) != len(self.generators):
            raise ValueError(
                f"{len(values)} coefficients for {len(self.generators)} generators "
                f"({self.dimension} linear ones, {self.translation_dimension} translations)"
            )
        if not bool(values.isfinite().all()):
            raise ValueError("a coefficient is not finite")
        return LinearElement.exponential(*self._combine(values.tolist()))

    def _combine(
        self, coefficients: Sequence[float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        parts: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] = ({}, {}, {})
        for c, g in zip(coefficients, self.generators, strict=True):
            if c == 0:
                continue
            for total, given in zip(parts, (g.left, g.right, g.translation), strict=True):
                for name, m in given.items():
                    total[name] = total[name] + c * m if name in total else c * m
        return parts

    def sample(
        self, *, generator: torch.Generator | None = None, spread: float = 1.0
    ) -> LinearElement:
        """Random element with ‖A‖, ‖B‖ ≤ `spread`: singular values from e^-spread to e^spread.

        Args:
            generator: source of randomness; torch's default generator if None.
            spread: largest spectral norm of the exponents, and size of the translations.

        Raises:
            ValueError: for a spread that is not finite and positive.
        """
        if not (math.isfinite(spread) and spread > 0):
            raise ValueError(f"spread is {spread}; it must be positive and finite")
        uniform = torch.rand(len(self.generators), generator=generator, dtype=torch.float64)
        return self.element(self.bounded(spread * (2 * uniform - 1), spread))

    def bounded(self, coefficients: Sequence[float] | Tensor, spread: float) -> Tensor:
        """Coefficients of the same direction with ‖A‖, ‖B‖ ≤ `spread`; translations as they are.

        Args:
            coefficients: one for each generator.
            spread: largest spectral norm of the exponents.
        """
        values = torch.as_tensor(coefficients, dtype=torch.float64)
        linear = torch.tensor([not g.is_translation for g in self.generators])
        left, right, _ = self._combine(torch.where(linear, values, 0.0).tolist())
        norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (*left.values(), *right.values())]
        shrink = spread / max(spread, *norms) if norms else 1.0
        return torch.where(linear, shrink * values, values)

    # --- printing -----------------------------------------------------------------------------

    def __str__(self) -> str:
        if not self.generators:
            lines = ["linear group of dimension 0: there is no linear symmetry"]
        else:
            shifts = self.translation_dimension
            lines = [
                f"linear group of dimension {self.dimension}"
                + (f", and {shifts} translation{'s' * (shifts > 1)}" if shifts else "")
            ]
        for block in self.blocks:
            lines.append(f"  {block.dimension:3d}  {block.name}")
            if block.where:
                lines.append(f"       {block.where}")
        if self.report is not None:
            lines.append(str(self.report))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"<LinearGroup of dimension {self.dimension} ({self.translation_dimension} "
            f"translations) on {len(self.shapes)} parameters>"
        )


def field_at(generator: LinearGenerator, weights: Mapping[str, Tensor]) -> Tensor:
    """Velocities of all parameters at given weights, as one vector."""
    return torch.cat([generator.velocity(name, w).flatten() for name, w in weights.items()])


def along(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Product of a matrix with the slices of x along a dimension: Σⱼ mᵢⱼ xⱼ."""
    if x.ndim == 0:
        return matrix.reshape(()) * x
    return torch.tensordot(matrix, x, dims=([1], [dim])).movedim(0, dim)


def _integral(translation: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """∫₀¹ e^(sA) T e^(sB) ds: the way of a weight that starts at zero."""
    if left is None and right is None:
        return translation
    t = translation.reshape(len(translation) if translation.ndim else 1, -1)
    rest = t.shape[1]
    a = t.new_zeros(len(t), len(t)) if left is None else left
    b = t.new_zeros(rest, rest)
    if right is not None:
        b = torch.kron(right, torch.eye(rest // len(right), dtype=t.dtype))
    top, bottom = torch.cat([a, t], dim=1), torch.cat([torch.zeros_like(t).mT, -b], dim=1)
    flow = torch.matrix_exp(torch.cat([top, bottom]))[: len(t), len(t) :]
    return (flow @ torch.matrix_exp(b)).reshape(translation.shape)


def _check_shapes(generator: LinearGenerator, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for dim, part in ((0, generator.left), (1, generator.right)):
        for name, m in part.items():
            if name not in shapes:
                raise ValueError(f"there is no parameter {name!r} (there are: {', '.join(shapes)})")
            shape = shapes[name] or (1,)
            if dim >= len(shape) or shape[dim] != len(m):
                raise ValueError(
                    f"{name} of shape {shape} has no {len(m)} slices along dim={dim}, which "
                    f"{generator.name or 'a generator'} mixes"
                )
    for name, t in generator.translation.items():
        if name not in shapes or tuple(t.shape) != tuple(shapes[name]):
            raise ValueError(
                f"there is no parameter {name!r} of shape {tuple(t.shape)} to translate"
            )
