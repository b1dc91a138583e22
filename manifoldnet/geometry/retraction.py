"""Retractions: how a step along a tangent vector becomes a new point.

    Additive     x + u                         the straight step; for sets without a constraint
    Projective   project(x + u)                the straight step, then back to the set
    Geodesic     exp(x, u)                     the exact curve of the metric

Each comes with the transport of tangent vectors *along that step*, which momentum needs and
which stays defined where the transport between the two end points is not. A retraction knows no
manifold: it uses the parts (projection, geodesics) of the one it is called with.

Names of retractions stand in one dictionary; `register_retraction` adds to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import signature
from typing import ClassVar, Protocol, final

from torch import Tensor

from manifoldnet.geometry.geodesics import Geodesics
from manifoldnet.geometry.naming import add_name, name_of
from manifoldnet.geometry.projection import Projection

__all__ = [
    "RETRACTIONS",
    "Additive",
    "Geodesic",
    "Parts",
    "Projective",
    "Retraction",
    "register_retraction",
]


class Parts(Protocol):
    """What a retraction needs of a manifold."""

    @property
    def projection(self) -> Projection:
        """To the set, and to its tangent spaces."""

    @property
    def geodesics(self) -> Geodesics:
        """The exact curves of the metric."""


class Retraction(ABC):
    """A step that agrees with the geodesic to first order (or better)."""

    #: Whether a step is undone by the step back along what it carried; None if not known.
    reversible: ClassVar[bool | None] = None

    @property
    def name(self) -> str:
        """The name that its class is registered by; `module.Class` where it is not."""
        return name_of(RETRACTIONS, type(self))

    @abstractmethod
    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        """The point reached from `x` by the tangent vector `u`."""

    @abstractmethod
    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The point reached, and the tangent vector `v` carried along to it."""


@final
@dataclass(frozen=True)
class Additive(Retraction):
    """`x + u`, with vectors carried along unchanged.

    The update of the paper's scaled metric. Its distance to the geodesic is of second order.
    """

    reversible: ClassVar[bool | None] = True

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        """`x + u`."""
        return x + u

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`x + u`, and `v` as it is."""
        return x + u, v


@final
@dataclass(frozen=True)
class Projective(Retraction):
    """`x + u` put back to the set.

    On a sphere it stays on the geodesic's great circle and ends at the angle atan θ < π/2
    instead of θ: third order, and parallel transport between the end points is always defined.
    """

    reversible: ClassVar[bool | None] = True

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        """`project(x + u)`."""
        return parts.projection.to_set(x + u)

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`project(x + u)`, and `v` in parallel to it, made tangent to rounding."""
        y = self.step(parts, x, u)
        return y, parts.projection.to_tangent(y, parts.geodesics.transport(x, y, v))


@final
@dataclass(frozen=True)
class Geodesic(Retraction):
    """The exponential map, with parallel transport along the geodesic."""

    reversible: ClassVar[bool | None] = True

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        """`exp(x, u)`."""
        return parts.geodesics.exp(x, u)

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`exp(x, u)`, and `v` in parallel along the geodesic, made tangent to rounding."""
        y, carried = parts.geodesics.exp_transport(x, u, v)
        return y, parts.projection.to_tangent(y, carried)


RETRACTIONS: dict[str, type[Retraction]] = {
    "additive": Additive,
    "projective": Projective,
    "geodesic": Geodesic,
}
"""Retractions by name, as constructors of manifolds and specs know them."""


def register_retraction(name: str, cls: type[Retraction]) -> None:
    """Give a class of retractions the name that means it: `Oblique(retraction=name)`, and in specs.

    Args:
        name: not empty.
        cls: a concrete subclass of `Retraction` whose constructor needs no arguments.

    Raises:
        ValueError: for a name that another class has, a class that has another name, and what is
            no such class.
    """
    if isinstance(cls, type) and issubclass(cls, Retraction):
        needed = [p.name for p in signature(cls).parameters.values() if p.default is p.empty]
        if needed:
            raise ValueError(
                f"{cls.__name__} needs arguments ({', '.join(needed)}), which a name does not "
                "give: register a subclass that sets them"
            )
        own = getattr(cls, "name", name)
        if isinstance(own, str) and own != name:
            raise ValueError(f"{cls.__name__}.name is {own!r}: register it by that name")
    add_name(RETRACTIONS, name, cls, Retraction)
