"""The contracts of a manifold's parts, and the names by which classes are known in specs.

    Metric       an inner product on each tangent space, and its frame
    Projection   the nearest point of the set, and the nearest tangent vector
    Geodesics    exponential map, logarithm, distance, parallel transport, Hessian

A part is a frozen value. It acts on each slice of a weight, in float32 or float64, and checks
nothing. The parts of a manifold stand in the manifold's file. The fourth part, the retraction, uses
the methods of the manifold that it steps on: it stands with `Manifold`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor

__all__ = [
    "Frame",
    "Geodesics",
    "Metric",
    "Projection",
    "name_of",
    "register",
]

_T = TypeVar("_T")


@final
@dataclass(frozen=True)
class Frame:
    """The square root of a metric at a point: coordinates in which it is the dot product.

    For a metric ⟨u, v⟩ₓ = ⟨G(x) u, v⟩ they are û = G(x)^½ u, and the gradient is ĝ = G(x)^−½ g.
    Here G(x)^½ divides each slice, or each number, by a positive factor q(x).

    Attributes:
        scale: q, of a shape that broadcasts against the point; 1 for the Euclidean metric.
    """

    scale: Tensor | float = 1.0

    def enter(self, u: Tensor) -> Tensor:
        """The coordinates `u/q` of a vector, or of the point itself; zero where q is."""
        if not isinstance(self.scale, Tensor):
            return u if self.scale == 1 else u / self.scale
        return u / torch.where(self.scale > 0, self.scale, 1.0)

    def leave(self, u: Tensor) -> Tensor:
        """The vector `q u` with coordinates `u`; also the coordinates of a differential."""
        return u if not isinstance(self.scale, Tensor) and self.scale == 1 else u * self.scale


class Metric(ABC):
    """An inner product on each tangent space; that of a parameter is the sum over its slices."""

    #: True if x → αx with u → αu leaves it unchanged: nothing holds the norms of slices then.
    scale_invariant: ClassVar[bool] = False

    @abstractmethod
    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ₓ of tangent vectors, one number per slice, whose dimensions are reduced to one."""

    @abstractmethod
    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """The vector G(x)⁻¹ g that represents the differential `g`: ⟨G⁻¹g, v⟩ₓ = g·v for all v."""

    def frame(self, x: Tensor) -> Frame:
        """The frame q(x) of a metric that divides slices or single numbers: G(x)⁻¹ g = q² g.

        The default finds q from `sharp`. If G(x) is not diagonal it has no such frame, and
        `manifoldnet.testing.MetricLaws` says so.
        """
        return Frame(self.sharp(x, torch.ones_like(x)).sqrt())


class Projection(ABC):
    """The nearest point of the set, the nearest tangent vector, and the violations of both."""

    @abstractmethod
    def to_set(self, x: Tensor) -> Tensor:
        """The point of the manifold that is nearest to `x`."""

    @abstractmethod
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The tangent vector at `x` that is nearest to `u`."""

    @abstractmethod
    def violation(self, x: Tensor) -> Tensor:
        """The distance of each slice from the set, relative to its size; ∞ if it has no nearest."""

    @abstractmethod
    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""

    def misfit(self, dtype: torch.dtype) -> str | None:
        """The reason why points cannot be held in a type of numbers; None if they can."""
        return None

    def codimension(self, shape: torch.Size) -> int | None:
        """The dimension of the normal space at points of this shape; None: no formula is known."""
        return None


class Geodesics(ABC):
    """Exponential map, logarithm, distance, parallel transport and Hessian of a metric on a set.

    Transport between two points is not defined at the cut locus (antipodes of a sphere), where no
    geodesic is singled out: NaN there. Transport along a given geodesic is always defined.
    """

    @abstractmethod
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The end point, after unit time, of the geodesic from `x` with velocity `u`."""

    @abstractmethod
    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`exp(x, u)`, and the parallel transport of `v` along that geodesic."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at `x` with `exp(x, u) = y`."""

    @abstractmethod
    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the shortest geodesic from `x` to `y`, one number per slice."""

    @abstractmethod
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The parallel transport of `v` from `x` to `y` along the shortest geodesic."""

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The Riemannian Hessian applied to `u`, as `Manifold.ehess2rhess`.

        Raises:
            NotImplementedError: where the formula is not written.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no Hessian: use a solver that needs none, such as "
            "conjugate gradients, or add the method"
        )


# --- names ----------------------------------------------------------------------------------------
#
# They stand in dictionaries that grow by registration only: a class statement changes nothing. A
# name belongs to one class and a class has one name, so what is read back is what was written down.


def register(known: dict[str, type[_T]], name: str, cls: type[_T], base: type[Any]) -> None:
    """Add a class to a dictionary of names; again under the same name changes nothing.

    A class of the same module and name takes the place of its former definition, as when a cell of
    a notebook is run again.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name is a string, not {name!r}")
    if not name:
        raise ValueError("a name is a string that is not empty")
    if not _is_concrete(cls, base):
        raise TypeError(f"{cls!r} is not a concrete subclass of {base.__name__}")
    path = _path(cls)
    taken = _path(known.get(name, cls))
    if taken != path:
        raise ValueError(f"the name {name!r} is taken by {taken}: register {path} by another one")
    for other, owner in known.items():
        if other != name and _path(owner) == path:
            raise ValueError(f"{path} is registered already, as {other!r}")
    known[name] = cls


def _is_concrete(cls: Any, base: type[Any]) -> bool:
    proper = isinstance(cls, type) and issubclass(cls, base) and cls is not base
    return proper and not inspect.isabstract(cls)


def name_of(known: dict[str, type[_T]], cls: type[_T]) -> str:
    """The name of a class; `module.Class`, which no registered class has, if it has none."""
    return next((name for name, owner in known.items() if owner is cls), _path(cls))


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
