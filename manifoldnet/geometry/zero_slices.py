"""Slices that stay zero, such as the padding row of an embedding: each a manifold of one point.

    set         x = 0 there, the manifold's own set elsewhere
    tangent     {0} there: such a slice never moves, and its gradient is ignored
    distance    0 there

`Oblique(zero_slices=(0,))` is the product of the point {0} for row 0 and a sphere for each other
row. Its parts are those of `Oblique()`, applied to a weight that has ones in place of the named
slices; the results there are replaced. So formulas that divide by a norm are never given a zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from manifoldnet.geometry.parts import Frame, Geodesics, Metric, Projection
from manifoldnet.geometry.settled import is_sharded, laid_out_along
from manifoldnet.geometry.slices import Slices

__all__ = ["GeodesicsExcept", "MetricExcept", "ProjectionExcept", "ZeroSlices"]


@final
@dataclass(frozen=True, init=False)
class ZeroSlices:
    """The slices of a weight that are exactly zero.

    Args:
        slices: of the weight, indexed by a dimension.
        indices: the numbers of those that are zero, in any order.

    Raises:
        TypeError: for indices that are no whole numbers.
        ValueError: for negative ones, and for slices that no dimension indexes.
    """

    slices: Slices
    indices: tuple[int, ...]

    def __init__(self, slices: Slices, indices: Iterable[int]) -> None:
        if isinstance(indices, str) or not isinstance(indices, Iterable):
            raise TypeError(
                f"zero_slices must be a tuple of whole numbers, such as (0,), not {indices!r}"
            )
        numbers = list(indices)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(
                    f"zero_slices must be a tuple of whole numbers, such as (0,): {number!r} is "
                    "none"
                )
            if number < 0:
                raise ValueError(
                    f"zero_slices={tuple(numbers)}: {number} is negative: count slices from the "
                    "front, from 0 on"
                )
        if numbers and not isinstance(slices.dim, int):
            raise ValueError(
                f"zero_slices={tuple(numbers)} needs slices that a dimension indexes, and "
                f"dim={slices.dim!r}: give dim=0 for rows, 1 for columns"
            )
        vars(self).update(slices=slices, indices=tuple(sorted(set(numbers))))

    def misfit(self, shape: torch.Size) -> str | None:
        """The reason why no point of this shape has such slices, after "it …"; None if one has."""
        dim = self.slices.dim
        if not self.indices or not isinstance(dim, int):
            return None
        count, last = shape[dim], self.indices[-1]
        has = f"has {count} slices along dimension {dim} (shape {tuple(shape)})"
        if last >= count:
            return f"{has}, and zero_slices={self.indices} names slice {last}"
        if len(self.indices) == count:
            return f"{has}, and zero_slices={self.indices} names all of them: nothing would move"
        return None

    def mask(self, x: Tensor) -> Tensor:
        """True for the slices that are zero, in a shape that broadcasts against `x`."""
        dim = self.slices.dim
        assert isinstance(dim, int)  # checked by the constructor
        found = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
        for index in self.indices:
            found[index] = True
        found = found.view([-1 if d == dim else 1 for d in range(x.ndim)])
        return laid_out_along(x, found, dim) if is_sharded(x) else found

    def filled(self, x: Tensor) -> Tensor:
        """`x` with ones in the slices that are zero."""
        return torch.where(self.mask(x), 1.0, x)

    def cleared(self, u: Tensor) -> Tensor:
        """`u` with zeros in the slices that are zero."""
        return torch.where(self.mask(u), 0.0, u)


@final
@dataclass(frozen=True)
class MetricExcept(Metric):
    """A metric on all slices but those that are zero, whose tangent spaces are {0}."""

    of: Metric
    zero: ZeroSlices

    # A property where each metric else has a constant.
    @property
    def scale_invariant(self) -> bool:  # type: ignore[override]
        """True if the metric of the other slices is."""
        return self.of.scale_invariant

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ₓ of each slice; 0 for those that are zero."""
        zero = self.zero
        return self.of.component_inner(zero.filled(x), zero.cleared(u), zero.cleared(v))

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """As the metric's own; the projection makes it zero where the slice is."""
        return self.of.sharp(x, g)

    def frame(self, x: Tensor) -> Frame:
        """As the metric's own."""
        return self.of.frame(x)


@final
@dataclass(frozen=True)
class ProjectionExcept(Projection):
    """A projection of all slices but those that are zero."""

    of: Projection
    zero: ZeroSlices

    def to_set(self, x: Tensor) -> Tensor:
        """0 there; NaN in place of an entry that is not finite, which has no nearest."""
        y = self.of.to_set(self.zero.filled(x))
        nearest = torch.where(x.isfinite(), 0.0, torch.nan).to(x.dtype)
        return torch.where(self.zero.mask(x), nearest, y)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """0 there."""
        return self.zero.cleared(self.of.to_tangent(self.zero.filled(x), self.zero.cleared(u)))

    def violation(self, x: Tensor) -> Tensor:
        """0 or 1 there: an entry that is not zero is as far off as the slice is long."""
        return self._unless_zero(x, self.of.violation(self.zero.filled(x)))

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """0 or 1 there."""
        zero = self.zero
        return self._unless_zero(u, self.of.tangent_violation(zero.filled(x), zero.cleared(u)))

    def misfit(self, dtype: torch.dtype) -> str | None:
        """As the projection's own."""
        return self.of.misfit(dtype)

    def codimension(self, shape: torch.Size) -> int | None:
        """That of the others, and all entries of the slices that are zero."""
        slices, count = self.zero.slices, len(self.zero.indices)
        others = torch.Size(n - count * (d == slices.dim) for d, n in enumerate(shape))
        known = self.of.codimension(others)
        return None if known is None else known + count * slices.size(shape)

    def _unless_zero(self, x: Tensor, off: Tensor) -> Tensor:
        """Violations of slices: ∞ for non-finite entries in place of a zero, 1 for others."""
        largest = self.zero.slices.largest(x)
        amount = torch.where(largest.isfinite(), 1.0, torch.inf)
        here = torch.where(largest == 0, 0.0, amount).to(off.dtype)
        return torch.where(self.zero.mask(x), here, off)


@final
@dataclass(frozen=True)
class GeodesicsExcept(Geodesics):
    """Geodesics of all slices but those that are zero, which stay."""

    of: Geodesics
    zero: ZeroSlices

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """0 there."""
        zero = self.zero
        return zero.cleared(self.of.exp(zero.filled(x), zero.cleared(u)))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 0 there."""
        zero = self.zero
        y, w = self.of.exp_transport(zero.filled(x), zero.cleared(u), zero.cleared(v))
        return zero.cleared(y), zero.cleared(w)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """0 there."""
        return self.zero.cleared(self.of.log(self.zero.filled(x), self.zero.filled(y)))

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """0 there."""
        return self.zero.cleared(self.of.component_dist(self.zero.filled(x), self.zero.filled(y)))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """0 there."""
        zero = self.zero
        moved = self.of.transport(zero.filled(x), zero.filled(y), zero.cleared(v))
        return zero.cleared(moved)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """0 there."""
        zero = self.zero
        vectors = (zero.cleared(vector) for vector in (g, h, u))
        return zero.cleared(self.of.hessian(zero.filled(x), *vectors))
