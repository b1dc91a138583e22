"""Euclidean space: every number by itself, no constraint, as of an undeclared parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from manifoldnet.geometry.manifold import Additive, EuclideanMetric, Manifold, register_manifold
from manifoldnet.geometry.parts import Geodesics, Projection
from manifoldnet.geometry.slices import ELEMENTS, Slices, promote

__all__ = ["Euclidean", "FlatGeodesics", "NoProjection"]


@final
@dataclass(frozen=True)
class NoProjection(Projection):
    """Every vector is tangent; every point is in the set, or (`nonzero`) all but the zero slice."""

    slices: Slices = ELEMENTS
    nonzero: bool = False

    def to_set(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """`u` itself."""
        return u

    def violation(self, x: Tensor) -> Tensor:
        """0, or ∞ for slices with non-finite entries (and for zero slices, with `nonzero`)."""
        (x,) = promote(x)
        if self.nonzero:
            # Not the slice itself alone: the metric divides by its square.
            squared = self.slices.inner(x, x)
            bad = ~((squared > 0) & squared.isfinite())
        else:
            bad = ~self.slices.largest(x).isfinite()
        return bad.to(x.dtype).masked_fill(bad, torch.inf)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """0, or ∞ for slices of `u` with non-finite entries."""
        return NoProjection(self.slices).violation(u)

    def codimension(self, shape: torch.Size) -> int:
        """0."""
        return 0


@final
@dataclass(frozen=True)
class FlatGeodesics(Geodesics):
    """Straight lines."""

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`x + u`."""
        return x + u

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`x + u`, and `v` as it is."""
        return x + u, v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`y − x`."""
        return y - x

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`|y − x|` of each number."""
        return (y - x).abs()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` as it is."""
        return v

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h` as it is."""
        return h


@final
@dataclass(frozen=True, init=False)
class Euclidean(Manifold):
    """ℝⁿ with the dot product; a component is one element.

    Optimizers treat a parameter declared `Euclidean()` exactly as an undeclared one.
    """

    def __init__(self) -> None:
        metric, projection = EuclideanMetric(), NoProjection()
        super().__init__(ELEMENTS, metric, projection, Additive(), FlatGeodesics())

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """Zero, whatever the `seed`; the other arguments are those of `torch.zeros`."""
        # Numbers or one tuple, as in torch, whose types have an overload for each.
        return torch.zeros(*size, dtype=dtype, device=device)  # type: ignore[arg-type]


register_manifold("Euclidean", Euclidean)
