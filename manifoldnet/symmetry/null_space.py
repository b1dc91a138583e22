"""Null space of a matrix M, with a sparse basis of small whole numbers.

    row_space(rows)      singular values, the gap among them, an orthonormal basis of the row space
    sparse_basis(…)      null vectors with few entries, trivial ones apart

The null space of symmetries has a sparse basis (few slices in each generator), but a singular value
decomposition returns an arbitrary rotation of it. Two facts recover the sparse basis:

- Given columns of M that form a basis of its column space, every other column is a unique
  combination of them. These combinations are null vectors (*circuits*), and sparse where few
  columns depend on each other.
- A multiple of a trivial null vector (+1 on all rows of a matrix, −1 on all its columns) may be
  added to any null vector. The multiple that gives the most zeros is taken.

Circuits are computed for several random bases of columns and rounded to small fractions. The
sparsest independent ones are kept, and then reduced by each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from manifoldnet.deprecation import renamed_attribute

__all__ = [
    "ADVICE",
    "FLOOR",
    "FLOOR_NORMALIZED",
    "Gap",
    "NoGapError",
    "TrivialGenerator",
    "check_clear",
    "check_zero",
    "find_gap",
    "row_space",
    "sparse_basis",
]

FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6}
"""Size of a zero singular value after rounding, relative to the largest one, by type."""

FLOOR_NORMALIZED = 1e-8
"""The same where the ε of normalization layers has been made small, but not zero."""

ADVICE = (
    "Give inputs of ordinary size (mean square 1, say), more samples, or the model and the data in "
    "float64"
)
"""Advice against an undecided null space."""

# Smallest ratio of singular values that is a gap.
_CLEAR, _CLEAR_WITH_EPS = 30.0, 10.0
# A relative singular value above this may be different from zero, whatever the gap.
_NO_ZERO = {torch.float64: 1e-10, torch.float32: 2e-5}

# Random bases of columns.
_ROUNDS = 8
# Exponents are multiples of 1/12: halves, thirds, quarters.
_DENOMINATOR = 12
# Relative size below which an entry of an unrounded null vector is zero.
_ZERO_ENTRY = 1e-7
# Smallest ratio of neighbouring nonzero singular values that is reported as a second gap.
_SECOND_GAP = 1e3


class NoGapError(RuntimeError):
    """Singular values, or responses of the loss, that may or may not be zero: no decision."""


@dataclass(frozen=True)
class Gap:
    """Gap between the nonzero singular values of M and those that count as zero.

    All values are relative to the largest one.

    Attributes:
        rank: number of nonzero singular values.
        kept: the smallest nonzero one; 0 if there are none.
        dropped: the largest one that counts as zero; 0 if there are none.
        floor: size of singular values that rounding, or ε, may produce.
        near_zero_count: number of nonzero ones below a second gap: directions in which the loss
            hardly changes.
    """

    rank: int
    kept: float
    dropped: float
    floor: float
    near_zero_count: int = 0

    nearly = renamed_attribute("Gap.nearly", "Gap.near_zero_count", removed_in="0.4.0")

    @property
    def ratio(self) -> float:
        """`kept` over the larger of `dropped` and `floor`."""
        return self.kept / max(self.dropped, self.floor) if self.rank else math.inf

    def __str__(self) -> str:
        if self.rank == 0:
            return "none counts"
        return (
            f"{self.kept:.1e} is the smallest that counts, {self.dropped:.1e} the largest that "
            "does not"
        )


@dataclass(frozen=True)
class TrivialGenerator:
    """Null vector with the entry 1 on some columns of M and −1 on others.

    Attributes:
        positive: columns with the entry 1.
        negative: columns with the entry −1.
    """

    positive: Tensor
    negative: Tensor

    def vector(self, columns: int) -> Tensor:
        """Dense vector of a given length."""
        vector = torch.zeros(columns, dtype=torch.float64)
        vector[self.positive], vector[self.negative] = 1.0, -1.0
        return vector


def find_gap(singular: Tensor, columns: int, floor: float) -> Gap:
    """Find the largest ratio of neighbouring singular values above a floor.

    Args:
        singular: singular values relative to the largest, descending.
        columns: number of columns of M; missing singular values are zero.
        floor: smaller values are not distinguished from each other.
    """
    values = torch.full((columns + 1,), floor, dtype=torch.float64)
    values[: len(singular)] = singular.clamp(min=floor)
    ratios = values[:-1] / values[1:]
    rank = int(ratios.argmax()) + 1
    second = (ratios[: rank - 1] >= _SECOND_GAP).nonzero().flatten().tolist()
    return Gap(
        rank,
        kept=float(values[rank - 1]),
        dropped=float(singular[rank]) if rank < len(singular) else 0.0,
        floor=floor,
        near_zero_count=rank - 1 - second[0] if second else 0,
    )


def check_clear(gap: Gap, dtype: torch.dtype, keep_eps: bool) -> None:
    """Raise a NoGapError unless a gap is wide.

    Args:
        gap: the gap.
        dtype: type that gradients were computed in.
        keep_eps: True if ε was left in normalization layers.
    """
    if gap.ratio < (_CLEAR_WITH_EPS if keep_eps else _CLEAR):
        raise NoGapError(
            f"no clear gap in the singular values: {gap.kept:.1e} and {gap.dropped:.1e} (relative) "
            f"are next to each other, and {gap.floor:.1e} may come from rounding or ε. Give more "
            "varied batches"
            + (", or leave out keep_eps=True" if keep_eps else "")
            + (", or use dtype=torch.float64" if dtype != torch.float64 else "")
        )


def check_zero(gap: Gap, dtype: torch.dtype, zero: float = 0.0) -> None:
    """Raise a NoGapError if singular values that count as zero may be different from it.

    Args:
        gap: the gap.
        dtype: type that gradients were computed in.
        zero: values up to this one are rounding in any case.
    """
    if gap.dropped > max(zero, _NO_ZERO[dtype]):
        raise NoGapError(
            f"undecided: singular values up to {gap.dropped:.1e} (relative) are far below the "
            f"others, from {gap.kept:.1e} on, and far above the {gap.floor:.1e} that rounding "
            "leaves of a zero. They are symmetries but for a small term (activations that are "
            "all but linear at inputs of this size, a small constant in the model), or none. "
            + ADVICE
        )


def row_space(rows: Tensor, floor: float) -> tuple[Gap, Tensor, Tensor]:
    """Singular values of M above the gap, with their right singular vectors.

    Args:
        rows: M, float64.
        floor: as in `find_gap`.

    Returns:
        The gap, `gap.rank` singular values relative to the largest, and as many orthonormal rows.
    """
    columns = rows.shape[1]
    if columns == 0:
        return Gap(0, 0.0, 0.0, floor), rows.new_zeros(0), rows[:0]
    if len(rows) > columns:
        rows = torch.linalg.qr(rows, mode="r").R
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    singular = singular / singular[0]
    gap = find_gap(singular, columns, floor)
    return gap, singular[: gap.rank], basis[: gap.rank]


def sparse_basis(
    singular: Tensor,
    rows: Tensor,
    dims: Sequence[int],
    trivial: Sequence[TrivialGenerator],
    tolerance: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Sparse basis of the null space of M, a function of this space alone.

    Args:
        singular: nonzero singular values of M, relative to the largest.
        rows: their right singular vectors, orthonormal, rank × columns.
        dims: a number for each column, the same for all rows (or all columns) of a parameter.
        trivial: the trivial null vectors.
        tolerance: largest ‖Mv‖/‖v‖ of a rounded null vector v.

    Returns:
        The non-trivial vectors and the trivial ones. A vector is rounded where that leaves it a
        null vector.
    """
    rank, columns = rows.shape
    trivial_vectors = [each.vector(columns) for each in trivial]
    wanted = columns - rank - len(trivial)
    if wanted <= 0:
        return [], trivial_vectors
    independent = _IndependentVectors(columns)
    for vector in trivial_vectors:
        independent.add(vector)
    matrix = singular[:, None] * rows  # M, up to a rotation
    generator = torch.Generator().manual_seed(0)
    rows = _canonical_rotation(rows, generator)
    candidates: dict[tuple[tuple[int, float], ...], Tensor] = {}
    for _ in range(_ROUNDS):
        for vector in _round(matrix, trivial, _circuits(rows, trivial, generator), tolerance):
            support = vector.nonzero().flatten().tolist()
            key = tuple((i, round(float(vector[i]), 6)) for i in support)
            candidates.setdefault(key, vector)

    def family(entries: tuple[tuple[int, float], ...]) -> frozenset[tuple[int, float]]:
        return frozenset((dims[i], value) for i, value in entries)

    families = Counter(map(family, candidates))
    found: list[Tensor] = []
    # Fewest entries first, then the largest family, then the order of the model.
    for key in sorted(candidates, key=lambda key: (len(key), -families[family(key)], key)):
        vector = candidates[key]
        if len(found) < wanted and independent.add(vector):
            found.append(vector)
    found = _reduce(found, trivial, dims)
    found.sort(key=lambda vector: vector.nonzero().flatten().tolist())
    return found, trivial_vectors


def _canonical_rotation(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Orthonormal basis of the same row space that does not depend on the given one.

    Weights and samples rotate the singular vectors; without this they would decide which of
    several equally short generators are found.
    """
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return torch.linalg.qr(((noise @ rows.mT) @ rows).mT).Q.mT


def _circuits(
    rows: Tensor, trivial: Sequence[TrivialGenerator], generator: torch.Generator
) -> Tensor:
    """One null vector for each column outside of a random basis of columns.

    The entry of one random column of each trivial vector (the gauge) is zero.
    """
    rank, columns = rows.shape
    gauge = [
        int(support[torch.randint(len(support), (), generator=generator)])
        for support in (torch.cat([each.positive, each.negative]) for each in trivial)
    ]
    outside = torch.ones(columns, dtype=torch.bool)
    outside[gauge] = False
    indices = outside.nonzero().flatten()
    # Partial pivoting prefers columns of large weight.
    weight = torch.exp(4 * torch.rand(len(indices), generator=generator, dtype=torch.float64))
    _, pivots = torch.linalg.lu_factor(rows[:, indices].mT * weight[:, None])
    order = list(range(len(indices)))
    for i, j in enumerate(pivots.tolist()):
        order[i], order[j - 1] = order[j - 1], order[i]
    basic, other = indices[order[:rank]], indices[order[rank:]]
    vectors = torch.zeros(len(other), columns, dtype=torch.float64)
    vectors[torch.arange(len(other)), other] = 1.0
    vectors[:, basic] = -torch.linalg.solve(rows[:, basic], rows[:, other]).mT
    return vectors


def _round(
    matrix: Tensor, trivial: Sequence[TrivialGenerator], vectors: Tensor, tolerance: float
) -> list[Tensor]:
    """Vectors with many zeros and, where these are null vectors, coprime whole entries."""
    vectors = _with_most_zeros(vectors, trivial)
    rounded = vectors.mul(_DENOMINATOR).round().div(_DENOMINATOR)
    residuals = (rounded @ matrix.mT).norm(dim=1) / rounded.norm(dim=1)
    results = []
    for vector, exact, residual in zip(rounded, vectors, residuals.tolist(), strict=True):
        if residual <= tolerance:
            results.append(_coprime(vector))
        else:
            exact = exact / exact.abs().max()
            exact = torch.where(exact.abs() > max(tolerance, _ZERO_ENTRY), exact, 0.0)
            results.append(exact * exact[exact.nonzero()[0, 0]].sign())
    return results


def _with_most_zeros(vectors: Tensor, trivial: Sequence[TrivialGenerator]) -> Tensor:
    """Vectors (as rows) plus the multiples of trivial ones that give the most zeros."""
    vectors = vectors.clone()
    for each in trivial:
        # Adding t times the trivial vector makes entries −t (positive) and t (negative) zero.
        values = torch.cat([-vectors[:, each.positive], vectors[:, each.negative]], dim=1)
        t = _most_frequent(values)[:, None]  # the largest of several: all rows, not all columns
        vectors[:, each.positive] += t
        vectors[:, each.negative] -= t
    return vectors


def _most_frequent(values: Tensor) -> Tensor:
    """Most frequent value of each row on a fine grid, the largest one of several."""
    grid = -60 * _DENOMINATOR
    return values.mul(grid).round().mode(dim=1).values.div(grid)


def _reduce(
    vectors: list[Tensor], trivial: Sequence[TrivialGenerator], dims: Sequence[int]
) -> list[Tensor]:
    """Basis of the same span, modulo trivial vectors, with fewer entries.

    A multiple of another vector, or of the sum of a family of vectors (all rows of a layer against
    all columns of the next), is subtracted as long as that shortens one. Of two with equally
    many entries, the one with smaller entries is preferred, then the one on later slices. (Any
    layer that writes to a residual stream may represent them all; the last one does.) So the result
    depends little on the random bases.
    """

    def length(vector: Tensor) -> tuple[int, float, list[int]]:
        support = vector.nonzero().flatten()
        sizes = vector[support].abs()
        return len(support), round(float(sizes.sum() / sizes.min()), 6), (-support).tolist()

    if not vectors:
        return []
    basis = torch.stack(vectors)
    lengths = [length(vector) for vector in vectors]
    whole = (basis == basis.round()).all(dim=1)
    dim = torch.tensor(dims)
    changed = True
    while changed:
        changed = False
        members: dict[object, list[int]] = {}
        for i in whole.nonzero().flatten().tolist():
            support = basis[i].nonzero().flatten()
            kind = zip(dim[support].tolist(), basis[i, support].tolist(), strict=True)
            members.setdefault(frozenset(kind), []).append(i)
        families = [m for m in members.values() if len(m) > 1]
        sums = torch.stack([basis[m].sum(0) for m in families]) if families else basis[:0]
        sums = _with_most_zeros(sums, trivial)
        for i in sorted(whole.nonzero().flatten().tolist(), key=lengths.__getitem__, reverse=True):
            count, support = lengths[i][0], basis[i].nonzero().flatten()
            overlapping = whole & (basis[:, support] != 0).any(dim=1)
            overlapping[i] = False
            foreign = torch.tensor([i not in m for m in families], dtype=torch.bool)
            foreign &= (sums[:, support] != 0).any(dim=1)
            others = torch.cat([basis[overlapping], sums[foreign]])
            # The multiples of each that make the most entries zero: the largest and the smallest.
            quotients = (basis[i, support] / others[:, support]).repeat(2, 1)
            quotients[len(others) :] *= -1
            distinct = -1e6 * torch.arange(1, count + 1, dtype=torch.float64)
            factors = _most_frequent(torch.where(quotients.isfinite(), quotients, distinct))
            factors[len(others) :] *= -1
            tried = _with_most_zeros(basis[i] - factors[:, None] * others.repeat(2, 1), trivial)
            tried[tried.abs() < 1e-9] = 0.0
            short = tried[(tried != 0).sum(dim=1) <= count]
            best = min(short, key=length, default=basis[i])
            if length(best) < lengths[i]:
                basis[i], lengths[i], changed = _coprime(best), length(best), True
                unchanged = [i not in m for m in families]  # other sums would contain this one
                families = [m for m, kept in zip(families, unchanged, strict=True) if kept]
                sums = sums[torch.tensor(unchanged, dtype=torch.bool)]
    return list(basis)


def _coprime(vector: Tensor) -> Tensor:
    """Multiple of a vector of small fractions with coprime whole entries, the first positive."""
    support = vector.nonzero().flatten()
    fractions = [Fraction(float(v)).limit_denominator(_DENOMINATOR) for v in vector[support]]
    scale = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * scale) for f in fractions]
    divisor = math.gcd(*whole) * (1 if whole[0] > 0 else -1)
    result = torch.zeros_like(vector)
    result[support] = torch.tensor([w // divisor for w in whole], dtype=vector.dtype)
    return result


class _IndependentVectors:
    """Linearly independent vectors, held as an orthonormal basis of their span."""

    def __init__(self, columns: int) -> None:
        self.basis = torch.zeros(0, columns, dtype=torch.float64)
        self.count = 0

    def add(self, vector: Tensor) -> bool:
        """Add a vector unless it depends on the earlier ones; False if it does."""
        rest = vector / vector.norm()
        basis = self.basis[: self.count]
        for _ in range(2):  # the second pass removes the rounding errors of the first
            rest = rest - (basis @ rest) @ basis
        norm = rest.norm()
        if norm < 1e-6:
            return False
        if self.count == len(self.basis):
            more = torch.zeros(max(64, self.count), len(vector), dtype=torch.float64)
            self.basis = torch.cat([self.basis, more])
        self.basis[self.count] = rest / norm
        self.count += 1
        return True
