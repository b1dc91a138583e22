"""Metrics: how long a tangent vector is, and which vector stands for a differential.

    EuclideanMetric   ⟨u, v⟩                 gradient  g
    ScaledMetric      ⟨u, v⟩ / ‖x‖²          gradient  ‖x‖² g

A parameter is the product of its slices: the metric gives one number per slice
(`component_inner`), and the inner product of the whole is their sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.geometry.slices import Dim

__all__ = ["EuclideanMetric", "Metric", "ScaledMetric"]


class Metric(ABC):
    """An inner product on each tangent space."""

    @abstractmethod
    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ at x, one number per slice (float32 for half types).

        Args:
            x: point.
            u: tangent vector at `x`, same shape.
            v: tangent vector at `x`, same shape.

        Returns:
            Shape of `x` with the dimensions of a slice reduced to one.
        """

    @abstractmethod
    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """The vector G(x)⁻¹ g that represents the differential `g`: ⟨G⁻¹g, v⟩ₓ = g·v for all v."""


@final
@dataclass(frozen=True)
class EuclideanMetric(Metric):
    """The plain dot product of each slice."""

    dim: Dim = "elements"

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨u, v⟩` of each slice."""
        return slices.inner(u, v, self.dim)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`g` itself."""
        return g


@final
@dataclass(frozen=True)
class ScaledMetric(Metric):
    """`⟨u, v⟩ / ‖x‖²` of each slice: the length of a step relative to the weight it moves.

    The scaled metric (8) of [badrinarayanan2015symmetry]. x → αx with u → αu leaves it unchanged.
    """

    dim: Dim = 0

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨u, v⟩ / ‖x‖²` of each slice."""
        return slices.inner(u, v, self.dim) / slices.norm(x, self.dim).square()

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`‖x‖² g`."""
        return slices.norm(x, self.dim).square() * g
