"""A product of manifolds, whose point is one flat vector: a whole network as a single point.

    Product([(Oblique(), (64, 784)), (Euclidean(), (64,))])        50,240 numbers in a row

Lengths add up as in Pythagoras, everything else acts part by part. Metric, projection, retraction
and geodesics of the product are made of those of its parts, so it is a `Manifold` like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from manifoldnet.geometry.from_geoopt import from_geoopt
from manifoldnet.geometry.geodesics import Geodesics
from manifoldnet.geometry.manifold import Manifold, from_spec, register_manifold
from manifoldnet.geometry.metric import Metric
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.retraction import Parts, Retraction

__all__ = ["Product"]

Factor = tuple[Manifold, tuple[int, ...]]


@final
@dataclass(frozen=True, init=False)
class Product(Manifold):
    """M₁ × M₂ × … of parts that have a shape each, flattened and set one after the other.

    Args:
        factors: manifolds and the shapes of their points.

    Raises:
        ValueError: if there are none, or a shape has no point of its manifold.
    """

    factors: tuple[Factor, ...]

    def __init__(self, factors: Iterable[tuple[Manifold, Iterable[int]]]) -> None:
        parts = tuple((from_geoopt(manifold), tuple(shape)) for manifold, shape in factors)
        if not parts:
            raise ValueError("a product needs at least one manifold")
        for number, (manifold, shape) in enumerate(parts):
            blank = torch.empty(shape, dtype=torch.double, device="meta")
            manifold.assert_check_point(blank, name=f"factor {number}, {shape},")
        flat = _Flat(parts)
        self._compose(
            dim=None,
            factors=parts,
            metric=_Metric(flat),
            projection=_Projection(flat),
            retraction=_Retraction(flat),
            geodesics=_Geodesics(flat),
        )

    @property
    def size(self) -> int:
        """How many numbers a point has."""
        return sum(math.prod(shape) for _, shape in self.factors)

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts of a flat vector, in their shapes: views of it."""
        return _Flat(self.factors).split(x)

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """One flat vector of parts."""
        return torch.cat([part.reshape(-1) for part in parts])

    def explain_shape(self, x: Tensor) -> str | None:
        """Explanation of why a tensor of this shape and type cannot be a point; None if it can."""
        if tuple(x.shape) != (self.size,):
            return f"has shape {tuple(x.shape)}, and a point of this product is ({self.size},)"
        trouble = super().explain_shape(x)
        for number, (manifold, shape) in enumerate(self.factors):
            if trouble is None:
                trouble = manifold.explain_shape(torch.empty(shape, dtype=x.dtype, device="meta"))
                trouble = trouble and f"has a factor {number} that {trouble}"
        return trouble

    @property
    def ndim(self) -> int:
        """1: points are vectors."""
        return 1

    @property
    def reversible(self) -> bool | None:
        """True if all parts are; None where that is not known."""
        parts = {manifold.reversible for manifold, _ in self.factors}
        return False if False in parts else None if None in parts else True

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """One flat vector of the parts, as `join`.

        Raises:
            ValueError: unless there is one for each factor, of its shape.
        """
        shapes = [shape for _, shape in self.factors]
        given = [tuple(tensor.shape) for tensor in tensors]
        if given != shapes:
            raise ValueError(f"a point of this product has parts of shapes {shapes}, not {given}")
        return self.join(tensors)

    def unpack_tensor(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The parts of a flat vector, as `split`."""
        return tuple(self.split(tensor))

    def _parts(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        manifolds = [manifold for manifold, _ in self.factors]
        return list(zip(manifolds, *map(self.split, tensors), strict=True))

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point: one of each part.

        Args:
            size: nothing, or the size that a point has.
            dtype: as in `torch.randn`.
            device: as in `torch.randn`.
            generator: the source of randomness; torch's default one if left out.
        """
        if size not in ((), (self.size,), ((self.size,),)):
            raise ValueError(f"a point of this product has size {self.size}, not {size}")
        given: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        return self.join(manifold.random(shape, **given) for manifold, shape in self.factors)

    def _fields(self) -> dict[str, Any]:
        return {"factors": [[manifold.spec(), list(shape)] for manifold, shape in self.factors]}

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifold:
        return cls((from_spec(spec), shape) for spec, shape in fields["factors"])


register_manifold("Product", Product)


@dataclass(frozen=True)
class _Flat:
    """Calls the same method of every factor with its parts of some flat vectors."""

    factors: tuple[Factor, ...]

    def split(self, x: Tensor) -> list[Tensor]:
        pieces = x.split([math.prod(shape) for _, shape in self.factors])
        return [piece.view(shape) for piece, (_, shape) in zip(pieces, self.factors, strict=True)]

    def each(self, call: Callable[..., Any], *vectors: Tensor) -> list[Any]:
        parts = zip(*(self.split(vector) for vector in vectors), strict=True)
        return [
            call(manifold, *part) for (manifold, _), part in zip(self.factors, parts, strict=True)
        ]

    def joined(self, call: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in self.each(call, *vectors)])

    def both(self, call: Callable[..., tuple[Tensor, Tensor]], *vectors: Tensor) -> Any:
        points, carried = zip(*self.each(call, *vectors), strict=True)
        return (
            torch.cat([part.reshape(-1) for part in points]),
            torch.cat([part.reshape(-1) for part in carried]),
        )

    def largest(self, call: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        return torch.stack([part.max() for part in self.each(call, *vectors)]).max().reshape(1)


@dataclass(frozen=True)
class _Metric(Metric):
    flat: _Flat

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.stack(self.flat.each(lambda m, *part: m.inner(*part), x, u, v)).sum(0, True)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.metric.sharp(*part), x, g)


@dataclass(frozen=True)
class _Projection(Projection):
    flat: _Flat

    def to_set(self, x: Tensor) -> Tensor:
        return self.flat.joined(lambda m, part: m.projection.to_set(part), x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.projection.to_tangent(*part), x, u)

    def violation(self, x: Tensor) -> Tensor:
        return self.flat.largest(lambda m, part: m.projection.violation(part), x)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        return self.flat.largest(lambda m, *part: m.projection.tangent_violation(*part), x, u)

    def codimension(self, shape: torch.Size) -> int:
        return sum(m.projection.codimension(torch.Size(s)) for m, s in self.flat.factors)


@dataclass(frozen=True)
class _Retraction(Retraction):
    """Each part's own."""

    flat: _Flat

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.retraction.step(m, *part), x, u)

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, carried = self.flat.both(lambda m, *part: m.retraction.step_transport(m, *part), x, u, v)
        return y, carried


@dataclass(frozen=True)
class _Geodesics(Geodesics):
    flat: _Flat

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.geodesics.exp(*part), x, u)

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y, carried = self.flat.both(lambda m, *part: m.geodesics.exp_transport(*part), x, u, v)
        return y, carried

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.geodesics.log(*part), x, y)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        distances = self.flat.each(lambda m, *part: m.dist(*part), x, y)
        return torch.linalg.vector_norm(torch.stack(distances)).reshape(1)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.geodesics.transport(*part), x, y, v)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        return self.flat.joined(lambda m, *part: m.geodesics.hessian(*part), x, g, h, u)
