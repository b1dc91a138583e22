"""Unknowns of a linear symmetry, as columns of a linear system, and its null space.

For a generator W ↦ A W + W B + T of every parameter and the gradient G of one sample,

    d/dt L = Σ ⟨A, G Wᵀ⟩ + ⟨B, Wᵀ G⟩ + ⟨T, G⟩ = 0,

one linear equation in the entries of all A, B and T. A kernel (out, in, …) has A on its filters and
B on its input channels, summed over positions; a vector has A and T. What moves no weight is in the
null space as well: A = cI with B = −cI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.linear import LinearGenerator
from manifoldnet.symmetry.linear_system import LinearSystem
from manifoldnet.symmetry.null_space import Gap, TrivialGenerator, find_gap
from manifoldnet.symmetry.working_copy import RandomWeights

__all__ = ["LinearColumns", "NullSpace", "null_space"]

# Sizes of rows and columns are taken out in powers of this.
_SCALE = 8.0
# Further rows, at new weights, that must lie in the span of the earlier ones.
_BLOCK = 160
_ROUNDS = 12
# Relative eigenvalue of a Gram matrix below which rounding errors matter.
_GRAM = 1e-10


@final
@dataclass(frozen=True)
class _Spans:
    """Columns of one parameter: first index of A, B and T, and the end."""

    left: int
    right: int
    shift: int
    end: int
    diagonal: bool


@final
class LinearColumns:
    """Entries of A, B and T of all parameters, in this order for each.

    Args:
        model: source of the sizes of rows and columns. Entries are measured in these, so that badly
            scaled weights give the same equations.
        names: parameters that are moved.
        tables: those whose A is diagonal.
    """

    least = 1e-3

    def __init__(self, model: nn.Module, names: Container[str], tables: Container[str]) -> None:
        own = {n: p for n, p in model.named_parameters() if n in names}
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(p.shape) for n, p in own.items()}
        self.spans: dict[str, _Spans] = {}
        self.columns = 0
        for name, shape in self.shapes.items():
            rows = shape[0] if shape else 1
            left, diagonal = self.columns, name in tables
            right = left + (rows if diagonal else rows**2)
            shift = right + (shape[1] ** 2 if len(shape) > 1 else 0)
            self.columns = shift + math.prod(shape)
            self.spans[name] = _Spans(left, right, shift, self.columns, diagonal)
        self.units: dict[str, Tensor] = {}

    def measure(self, weights: RandomWeights) -> None:
        """Set the sizes in which entries are measured."""
        self.units = {name: self._units(name, size) for name, size in weights.sizes[1].items()}

    def _units(self, name: str, size: Tensor) -> Tensor:
        whole = size.log().mean().exp()
        relative = size / whole

        def rounded(x: Tensor) -> Tensor:
            return _SCALE ** (x.log() / math.log(_SCALE)).round()

        if size.ndim == 0:
            return torch.stack([torch.ones_like(whole), whole])
        columns = size.new_zeros(0)
        if size.ndim == 1:
            rows = rounded(relative)
            t = whole * rows
        else:
            first, second = (relative.movedim(dim, 0).flatten(1)[:, 0] for dim in (0, 1))
            middle = first[0].sqrt()
            rows, columns = rounded(first / middle), rounded(second / middle)
            shape = [1] * (size.ndim - 2)
            t = (whole * rows[:, None] * columns).reshape(len(rows), len(columns), *shape)
            t = t.expand(size.shape)
        left = torch.ones_like(rows) if self.spans[name].diagonal else rows[:, None] / rows
        right = columns / columns[:, None]
        return torch.cat([left.flatten(), right.flatten(), t.flatten()])

    def product(self, name: str, w: Tensor, g: Tensor) -> Tensor:
        """G Wᵀ, Wᵀ G and G of one parameter, in their units."""
        if w.ndim == 0:
            parts = [(w * g).reshape(1), g.reshape(1)]
            return torch.cat(parts) * self.units[name]
        rows_w, rows_g = (x.flatten(1) if x.ndim > 1 else x[:, None] for x in (w, g))
        if self.spans[name].diagonal:
            parts = [(rows_w * rows_g).sum(1)]
        else:
            parts = [(rows_g @ rows_w.mT).flatten()]
        if w.ndim > 1:
            w1, g1 = (x.movedim(1, 0).flatten(1) for x in (w, g))
            parts.append((w1 @ g1.mT).flatten())
        return torch.cat([*parts, g.flatten()]) * self.units[name]

    def sums(self, products: Mapping[str, Tensor]) -> Tensor:
        """Rows of the system from batched products."""
        return torch.cat([products[name] for name in self.shapes], dim=1)

    @property
    def unit(self) -> Tensor:
        """Units of all columns: null vectors times these are entries of A, B and T."""
        return torch.cat([self.units[name].double().cpu() for name in self.shapes])

    def linear(self) -> Tensor:
        """Mask of the columns of A and B."""
        mask = torch.ones(self.columns, dtype=torch.bool)
        for span in self.spans.values():
            mask[span.shift : span.end] = False
        return mask

    def sides(self) -> list[int]:
        """A number for each column: parameter, A or B or T, diagonal or not."""
        found = torch.zeros(self.columns, dtype=torch.long)
        for i, (name, span) in enumerate(self.spans.items()):
            found[span.left : span.end] = 6 * i
            found[span.right : span.shift] += 1
            found[span.shift : span.end] += 2
            for diagonal in self._diagonals(name):
                found[diagonal] += 3
        return [int(x) for x in found]

    def _diagonals(self, name: str) -> list[Tensor]:
        """Columns of the diagonals of A and B."""
        span, shape = self.spans[name], self.shapes[name]
        n = shape[0] if shape else 1
        step = 1 if span.diagonal else n + 1
        found = [span.left + step * torch.arange(n)]
        if len(shape) > 1:
            found.append(span.right + (shape[1] + 1) * torch.arange(shape[1]))
        return found

    def trivial(self, live: Tensor) -> list[TrivialGenerator]:
        """A = cI, B = −cI of each matrix, on live columns."""
        found = []
        for name, shape in self.shapes.items():
            if len(shape) > 1:
                up, down = (d[live[d]] for d in self._diagonals(name))
                if len(up) or len(down):
                    found.append(TrivialGenerator(up, down))
        return found

    def generator(self, vector: Tensor, kind: str = "other", name: str = "") -> LinearGenerator:
        """Generator with given entries; matrices of zeros are left out."""
        left, right, shift = {}, {}, {}
        for parameter, span in self.spans.items():
            shape = self.shapes[parameter]
            a, b = vector[span.left : span.right], vector[span.right : span.shift]
            t = vector[span.shift : span.end]
            n = shape[0] if shape else 1
            if bool(a.any()):
                left[parameter] = torch.diag(a) if span.diagonal else a.reshape(n, n)
            if bool(b.any()):
                right[parameter] = b.reshape(shape[1], shape[1])
            if bool(t.any()):
                shift[parameter] = t.reshape(shape)
        return LinearGenerator(left, right, shift, name, kind)

    def entries(self, generator: LinearGenerator) -> Tensor:
        """Columns on which a generator has entries that are not zero."""
        found = []
        for name, span in self.spans.items():
            for part, start in (
                (generator.left.get(name), span.left),
                (generator.right.get(name), span.right),
                (generator.translation.get(name), span.shift),
            ):
                if part is not None:
                    entries = part.diagonal() if start == span.left and span.diagonal else part
                    found.append(start + entries.flatten().nonzero().flatten())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def transpose(self, vectors: Tensor) -> Tensor:
        """Vectors (as rows) with A and B transposed."""
        result = vectors.clone()
        for name, span in self.spans.items():
            shape = self.shapes[name]
            for start, end, n in (
                (span.left, span.right, shape[0] if shape else 1),
                (span.right, span.shift, shape[1] if len(shape) > 1 else 0),
            ):
                if n and end - start == n * n:
                    part = vectors[:, start:end].reshape(-1, n, n).mT
                    result[:, start:end] = part.reshape(-1, n * n)
        return result

    def brackets(self, one: Tensor, vectors: Tensor) -> Tensor:
        """Entries of the commutators [X, Yᵢ] of linear fields, as rows."""
        result = torch.zeros_like(vectors)
        for name, span in self.spans.items():
            shape = self.shapes[name]
            for start, end, n, sign in (
                (span.left, span.right, shape[0] if shape else 1, 1.0),
                (span.right, span.shift, shape[1] if len(shape) > 1 else 0, -1.0),
            ):
                x = one[start:end]
                if n and end - start == n * n and bool(x.any()):
                    x, y = x.reshape(n, n), vectors[:, start:end].reshape(-1, n, n)
                    result[:, start:end] = sign * (x @ y - y @ x).flatten(1)
        return result


@final
@dataclass(frozen=True)
class NullSpace:
    """Null space of a linear system.

    Attributes:
        basis: orthonormal null vectors as columns, in units of the columns.
        live: mask of the columns that a gradient has reached.
        gap: gap of the singular values.
        equations: number of rows used.
    """

    basis: Tensor
    live: Tensor
    gap: Gap
    equations: int


def null_space(
    system: LinearSystem[LinearColumns],
    floor: float,
    known: float,
    on_progress: Callable[[str, int, int], None],
    first: Tensor | None = None,
) -> tuple[NullSpace, Tensor]:
    """Null space of the rows of a system, once new ones add nothing to them.

    Args:
        system: source of the rows.
        floor: as in `find_gap`.
        known: largest component of a new row in the null space.
        on_progress: as in `discover`.
        first: rows of an earlier call.

    Returns:
        The null space, and the rows (or a triangular factor of them).
    """
    columns = system.layout.columns
    block = max(_BLOCK, columns // 8)
    rows = torch.zeros(0, columns, dtype=torch.float64) if first is None else first
    # Rows at common weights are not all independent.
    wanted, count = columns + columns // 4 + _BLOCK, 0
    for _ in range(_ROUNDS):
        while len(rows) < wanted:
            new = system.rows(min(block, wanted - len(rows)))
            rows, count = torch.cat([rows, new]), count + len(new)
            on_progress("equations", min(len(rows), columns), columns + block)
            if not len(new):
                break
        if count and bool((system.reached == 0).any()):
            rows = torch.cat([rows, system.large_rows()])
        on_progress("factorizing", 0, 1)
        found, rows = _factorize(rows, system.reached > 0, floor, count)
        on_progress("factorizing", 1, 1)
        new = system.rows(block)
        rest = (new[:, found.live] @ found.basis[found.live]).norm(dim=1)
        if not bool((rest > known).any()) and not bool((system.reached > 0)[~found.live].any()):
            break
        rows, count = torch.cat([rows, new]), count + len(new)
        wanted = len(rows) + block
    return found, rows


def _factorize(rows: Tensor, live: Tensor, floor: float, count: int) -> tuple[NullSpace, Tensor]:
    """Null space of rows on live columns, and their triangular factor."""
    factor = torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows
    n = int(live.sum())
    basis = torch.zeros(rows.shape[1], 0, dtype=torch.float64)
    if n == 0:
        return NullSpace(basis, live, Gap(0, 0.0, 0.0, floor), count), factor
    singular, right = _singular_vectors(factor[:, live])
    if float(singular[0]) == 0:
        gap = Gap(0, 0.0, 0.0, floor)
    else:
        gap = find_gap(singular / singular[0], n, floor)
    basis = torch.zeros(rows.shape[1], n - gap.rank, dtype=torch.float64)
    basis[live] = right[:, gap.rank :]
    return NullSpace(basis, live, gap, count), factor


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values of a matrix, descending, and the right singular vectors as columns.

    The Gram matrix determines singular values above 1e-5 (relative) and the span of the other
    vectors, up to rounding errors that one step of refinement takes out; in that span, a small
    singular value decomposition has the full resolution. This takes a third of the time.
    """
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    count = int((values > _GRAM * values[0]).sum())
    large, small = vectors[:, :count], vectors[:, count:]
    for _ in range(2):
        error = large.mT @ (matrix.mT @ (matrix @ small))
        small = torch.linalg.qr(small - large @ (error / values[:count, None])).Q
    product = matrix @ small
    if len(product) < product.shape[1]:
        pad = product.new_zeros(product.shape[1] - len(product), product.shape[1])
        product = torch.cat([product, pad])
    _, rest, right = torch.linalg.svd(product, full_matrices=False)
    singular = torch.cat([values[:count].sqrt(), rest])
    return singular, torch.cat([large, small @ right.mT], dim=1)
