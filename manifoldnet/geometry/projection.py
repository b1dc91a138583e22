"""Projections: from the space around a manifold to its points and to its tangent vectors.

    Normalization   set ‖x‖ = ρ        x → ρ x/‖x‖        u → u − ⟨x, u⟩ x/⟨x, x⟩
    NoProjection    no constraint      x → x              u → u

Tangent projections divide by the *measured* ⟨x, x⟩ instead of ρ²: in float32 a point is never
exactly on its sphere, and the error would otherwise feed itself from step to step.
`violation` says how far off a point or a vector is, as numbers; the caller decides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.geometry.slices import Dim

__all__ = ["NoProjection", "Normalization", "Projection"]


class Projection(ABC):
    """The nearest point of the set, and the nearest tangent vector."""

    @abstractmethod
    def to_set(self, x: Tensor) -> Tensor:
        """The point of the manifold that is nearest to `x`."""

    @abstractmethod
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The tangent vector at `x` that is nearest to `u`."""

    @abstractmethod
    def violation(self, x: Tensor) -> Tensor:
        """How far each slice is off the set, relative to its size; ∞ where nothing can mend it."""

    @abstractmethod
    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""

    def explain_type(self, dtype: torch.dtype) -> str | None:
        """Explanation of why points cannot be held in a type of numbers; None if they can."""
        return None

    def codimension(self, shape: torch.Size) -> int:
        """How many directions are not tangent at a point of this shape.

        Counted at a random point, as what the trace of the projection lacks, unless it is known.
        """
        source = torch.Generator().manual_seed(0)
        x = self.to_set(torch.randn(shape, dtype=torch.float64, generator=source))
        kept = 0.0
        for i in range(x.numel()):
            unit = torch.zeros_like(x)
            unit.view(-1)[i] = 1
            kept += float(self.to_tangent(x, unit).flatten()[i])
        return x.numel() - round(kept)


@final
@dataclass(frozen=True)
class Normalization(Projection):
    """Each slice on the sphere of radius ρ."""

    dim: Dim = 0
    radius: float = 1.0

    def to_set(self, x: Tensor) -> Tensor:
        """`ρ x/‖x‖` of each slice."""
        return slices.normalize(x, self.dim, self.radius)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """`u − ⟨x, u⟩ x/⟨x, x⟩` of each slice."""
        share = slices.inner(x, u, self.dim) / slices.norm(x, self.dim).square()
        return torch.addcmul(u, share, x, value=-1)

    def violation(self, x: Tensor) -> Tensor:
        """`|‖x‖ − ρ| / ρ` of each slice."""
        (x,) = slices.promote(x)
        largest = slices.largest(x, self.dim)
        # The largest entry stands apart so that squares of large ones do not overflow.
        off = (slices.norm(x / largest, self.dim) * (largest / self.radius) - 1).abs()
        # Zero and non-finite slices have given 0/0 and ∞/∞.
        return off.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """`|⟨x, u⟩| / (‖x‖‖u‖)` of each slice."""
        x, u = slices.promote(x, u)
        length = slices.norm(x, self.dim) * slices.norm(u, self.dim)
        share = slices.inner(x, u, self.dim).abs() / torch.where(length > 0, length, 1.0)
        return share.nan_to_num(nan=torch.inf)

    def explain_type(self, dtype: torch.dtype) -> str | None:
        """ρ², by which steps divide, must be a number of the type that is computed in."""
        own, used = torch.finfo(dtype), torch.finfo(slices.computed_in(dtype))
        least = max(math.sqrt(used.tiny), own.tiny)
        most = min(math.sqrt(used.max), own.max)
        if least <= self.radius <= most:
            return None
        return (
            f"in which the square of radius={self.radius:.3g} cannot be computed: use a radius "
            f"from {least:.2g} to {most:.2g}, or a type with a wider range"
        )

    def codimension(self, shape: torch.Size) -> int:
        """One for each slice."""
        return math.prod(shape) // slices.size(shape, self.dim)


@final
@dataclass(frozen=True)
class NoProjection(Projection):
    """Every vector is tangent; every point is in the set, or (`nonzero`) all but the zero slice."""

    dim: Dim = "elements"
    nonzero: bool = False

    def to_set(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """`u` itself."""
        return u

    def violation(self, x: Tensor) -> Tensor:
        """0, or ∞ for slices with non-finite entries (and for zero slices, with `nonzero`)."""
        (x,) = slices.promote(x)
        if self.nonzero:
            # Not the slice itself alone: the metric divides by its square.
            squared = slices.inner(x, x, self.dim)
            bad = ~((squared > 0) & squared.isfinite())
        else:
            bad = ~slices.largest(x, self.dim).isfinite()
        return bad.to(x.dtype).masked_fill(bad, torch.inf)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """0, or ∞ for slices of `u` with non-finite entries."""
        return NoProjection(self.dim).violation(u)

    def codimension(self, shape: torch.Size) -> int:
        """0."""
        return 0
