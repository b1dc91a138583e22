"""A null space, and a sparse basis of it that a person can read.

    row_space(rows)      singular values, the gap between them, an orthonormal basis of the rows
    sparse_basis(…)      null vectors with few, whole-numbered entries, the trivial ones apart

The null space of symmetries has a sparse basis (tied slices as small sets), but numerical linear
algebra finds a random rotation of it. Two facts lead back. For any set of columns that form a basis
of the column space, each other column depends on them in one way: these *circuits* are null
vectors, and sparse ones where few columns are tied to each other. And a null vector may be changed
by the trivial ones (all rows of a matrix up, all columns down), so that each matrix gets the shift
that leaves most zeros. Circuits for several random choices of columns are rounded to small
fractions, the sparsest independent ones of them kept, and these made shorter by each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["Gap", "Shift", "row_space", "sparse_basis"]

_ROUNDS = 8
# Exponents are multiples of 1/12: halves, thirds, quarters.
_DENOMINATOR = 12
# Entries of null vectors that are not fractions, relative to the largest, are zero below this.
_TINY = 1e-7
# A gap among the singular values that count is worth a word from here on.
_NEARLY = 1e3


@dataclass(frozen=True)
class Gap:
    """Where the singular values of M (relative to the largest) fall off.

    Attributes:
        rank: how many count as not zero.
        kept: the smallest of these; 0 if there are none.
        dropped: the largest of the others; 0 if there are none.
        floor: what may come from rounding, or from a known blur.
        nearly: how many of those that count stand below another gap: directions in which the loss
            hardly changes.
    """

    rank: int
    kept: float
    dropped: float
    floor: float
    nearly: int = 0

    @property
    def ratio(self) -> float:
        """How many times smaller the first value is that counts as zero (the floor at least)."""
        return self.kept / max(self.dropped, self.floor) if self.rank else math.inf

    def __str__(self) -> str:
        if self.rank == 0:
            return "none counts"
        return (
            f"{self.kept:.1e} is the smallest that counts, {self.dropped:.1e} the largest that "
            "does not"
        )


@dataclass(frozen=True)
class Shift:
    """A trivial null vector: these columns up, those down."""

    up: Tensor
    down: Tensor

    def vector(self, columns: int) -> Tensor:
        """It, as a vector."""
        vector = torch.zeros(columns, dtype=torch.float64)
        vector[self.up], vector[self.down] = 1.0, -1.0
        return vector


def find_gap(singular: Tensor, columns: int, floor: float) -> Gap:
    """The largest relative gap of descending singular values above a floor.

    Args:
        singular: the values, relative to the largest.
        columns: of M; values that there are no rows for are zero.
        floor: smaller values are not told apart.
    """
    values = torch.full((columns + 1,), floor, dtype=torch.float64)
    values[: len(singular)] = singular.clamp(min=floor)
    ratios = values[:-1] / values[1:]
    rank = int(ratios.argmax()) + 1
    wide = (ratios[: rank - 1] >= _NEARLY).nonzero().flatten().tolist()
    return Gap(
        rank,
        kept=float(values[rank - 1]),
        dropped=float(singular[rank]) if rank < len(singular) else 0.0,
        floor=floor,
        nearly=rank - 1 - wide[0] if wide else 0,
    )


def row_space(rows: Tensor, floor: float) -> tuple[Gap, Tensor, Tensor]:
    """The gap in the singular values of some rows, those above it, and their right vectors.

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
    sizes: Tensor,
    rows: Tensor,
    sides: Sequence[int],
    shifts: Sequence[Shift],
    generator: torch.Generator,
    tolerance: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """A sparse basis of the null space of M.

    Args:
        sizes: the singular values of M that are not zero, relative to the largest.
        rows: their right vectors, orthonormal, rank × columns.
        sides: by column, a number that all rows of a parameter share, or all its columns.
        shifts: the trivial null vectors.
        generator: decides the random choices.
        tolerance: how large M may make a rounded null vector, relative.

    Returns:
        The non-trivial vectors and the trivial ones; rounded where rounding leaves a null vector.
    """
    rank, columns = rows.shape
    trivial = [shift.vector(columns) for shift in shifts]
    wanted = columns - rank - len(trivial)
    if wanted <= 0:
        return [], trivial
    chosen = _Independent(columns)
    for vector in trivial:
        chosen.add(vector)
    matrix = sizes[:, None] * rows  # M, up to a rotation
    candidates: dict[tuple[tuple[int, float], ...], Tensor] = {}
    for _ in range(_ROUNDS):
        for vector in _round(matrix, shifts, _circuits(rows, shifts, generator), tolerance):
            places = vector.nonzero().flatten().tolist()
            key = tuple((i, round(float(vector[i]), 6)) for i in places)
            candidates.setdefault(key, vector)

    def kind(entries: tuple[tuple[int, float], ...]) -> frozenset[tuple[int, float]]:
        return frozenset((sides[i], value) for i, value in entries)

    families = Counter(map(kind, candidates))
    found: list[Tensor] = []
    # Few entries first; of these, what has many like it; then the order of the model.
    for key in sorted(candidates, key=lambda key: (len(key), -families[kind(key)], key)):
        vector = candidates[key]
        if len(found) < wanted and chosen.add(vector):
            found.append(vector)
    found = _shorten(found, shifts)
    found.sort(key=lambda vector: vector.nonzero().flatten().tolist())
    return found, trivial


def _circuits(rows: Tensor, shifts: Sequence[Shift], generator: torch.Generator) -> Tensor:
    """One null vector for each column outside of a random basis of columns.

    Of each trivial vector one random column (the gauge) is kept at zero.
    """
    rank, columns = rows.shape
    gauge = [
        int(both[torch.randint(len(both), (), generator=generator)])
        for both in (torch.cat([shift.up, shift.down]) for shift in shifts)
    ]
    free = torch.ones(columns, dtype=torch.bool)
    free[gauge] = False
    places = free.nonzero().flatten()
    # Partial pivoting prefers columns of large weight.
    weight = torch.exp(4 * torch.rand(len(places), generator=generator, dtype=torch.float64))
    weighted = rows[:, places].mT * weight[:, None]
    _, pivots = torch.linalg.lu_factor(weighted)
    order = list(range(len(places)))
    for i, j in enumerate(pivots.tolist()):
        order[i], order[j - 1] = order[j - 1], order[i]
    basic, other = places[order[:rank]], places[order[rank:]]
    vectors = torch.zeros(len(other), columns, dtype=torch.float64)
    vectors[torch.arange(len(other)), other] = 1.0
    vectors[:, basic] = -torch.linalg.solve(rows[:, basic], rows[:, other]).mT
    return vectors


def _round(
    matrix: Tensor, shifts: Sequence[Shift], vectors: Tensor, tolerance: float
) -> list[Tensor]:
    """The vectors, shifted to have many zeros, with small coprime whole entries where they may."""
    vectors = _shifted(vectors, shifts)
    rounded = vectors.mul(_DENOMINATOR).round().div(_DENOMINATOR)
    off = (rounded @ matrix.mT).norm(dim=1) / rounded.norm(dim=1)
    good = []
    for vector, plain, wrong in zip(rounded, vectors, off.tolist(), strict=True):
        if wrong <= tolerance:
            good.append(_whole(vector))
        else:
            plain = plain / plain.abs().max()
            plain = torch.where(plain.abs() > max(tolerance, _TINY), plain, 0.0)
            good.append(plain * plain[plain.nonzero()[0, 0]].sign())
    return good


def _shifted(vectors: Tensor, shifts: Sequence[Shift]) -> Tensor:
    """The vectors (rows) with as many zeros as trivial ones can bring."""
    vectors = vectors.clone()
    for shift in shifts:
        # Adding t to `up` and subtracting it from `down` makes entries −t and t zero.
        values = torch.cat([-vectors[:, shift.up], vectors[:, shift.down]], dim=1)
        t = _most_frequent(values)[:, None]  # the largest of several: all rows, not all columns
        vectors[:, shift.up] += t
        vectors[:, shift.down] -= t
    return vectors


def _most_frequent(values: Tensor) -> Tensor:
    """The most frequent value of each row (the largest of several), to a fine grid."""
    grid = -60 * _DENOMINATOR
    return values.mul(grid).round().mode(dim=1).values.div(grid)


def _shorten(vectors: list[Tensor], shifts: Sequence[Shift]) -> list[Tensor]:
    """The same span (with the trivial ones) by shorter vectors: each less a multiple of another.

    Of two that are equally short, the one with the later slices is better (of what may stand for
    all that writes to a residual stream, what does so last), so that the result depends little on
    the choices before.
    """

    def length(vector: Tensor) -> tuple[int, list[int]]:
        places = vector.nonzero().flatten()
        return len(places), (-places).tolist()

    if not vectors:
        return []
    basis = torch.stack(vectors)
    lengths = [length(vector) for vector in vectors]
    whole = (basis == basis.round()).all(dim=1)
    changed = True
    while changed:
        changed = False
        for i in sorted(whole.nonzero().flatten().tolist(), key=lengths.__getitem__, reverse=True):
            count, places = lengths[i][0], basis[i].nonzero().flatten()
            near = whole & (basis[:, places] != 0).any(dim=1)
            near[i] = False
            others = basis[near]
            # Each in the multiple that makes the most entries zero.
            quotients = basis[i, places] / others[:, places]
            single = -1e6 * torch.arange(1, count + 1, dtype=torch.float64)
            times = _most_frequent(torch.where(quotients.isfinite(), quotients, single))
            tried = _shifted(basis[i] - times[:, None] * others, shifts)
            tried[tried.abs() < 1e-9] = 0.0
            short = tried[(tried != 0).sum(dim=1) <= count]
            best = min(short, key=length, default=basis[i])
            if length(best) < lengths[i]:
                basis[i], lengths[i], changed = _whole(best), length(best), True
    return list(basis)


def _whole(vector: Tensor) -> Tensor:
    """A vector of small fractions as coprime whole numbers, the first of them positive."""
    places = vector.nonzero().flatten()
    fractions = [Fraction(float(v)).limit_denominator(_DENOMINATOR) for v in vector[places]]
    scale = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * scale) for f in fractions]
    divisor = math.gcd(*whole) * (1 if whole[0] > 0 else -1)
    result = torch.zeros_like(vector)
    result[places] = torch.tensor([w // divisor for w in whole], dtype=vector.dtype)
    return result


class _Independent:
    """Vectors that do not depend on each other, as an orthonormal basis that grows."""

    def __init__(self, columns: int) -> None:
        self.basis = torch.zeros(0, columns, dtype=torch.float64)
        self.count = 0

    def add(self, vector: Tensor) -> bool:
        """Take a vector in, unless it depends on those before."""
        rest = vector / vector.norm()
        basis = self.basis[: self.count]
        for _ in range(2):  # the second time removes what rounding has left of the first
            rest = rest - (basis @ rest) @ basis
        size = rest.norm()
        if size < 1e-6:
            return False
        if self.count == len(self.basis):
            more = torch.zeros(max(64, self.count), len(vector), dtype=torch.float64)
            self.basis = torch.cat([self.basis, more])
        self.basis[self.count] = rest / size
        self.count += 1
        return True
