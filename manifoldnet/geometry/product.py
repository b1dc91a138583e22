"""A product of manifolds, whose point is one vector: a whole network as a single point.

    Product([(Oblique(), (64, 784)), (Euclidean(), (64,))])        50,240 numbers in a row

Lengths add up as in Pythagoras' theorem, everything else acts factor by factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from manifoldnet.geometry.from_geoopt import from_geoopt
from manifoldnet.geometry.manifold import Manifold, from_spec, register_manifold
from manifoldnet.geometry.parts import Frame
from manifoldnet.geometry.slices import promote
from manifoldnet.geometry.validation import raise_if

__all__ = ["Product"]

Factor = tuple[Manifold, tuple[int, ...]]

_T = TypeVar("_T")


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """One vector of the parts."""
    return torch.cat([part.reshape(-1) for part in parts])


def _joined_pairs(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    points, vectors = zip(*pairs, strict=True)
    return _joined(points), _joined(vectors)


def _largest(parts: list[Tensor]) -> Tensor:
    """The largest entry, of shape (1,)."""
    return torch.stack([part.max() for part in parts]).max().reshape(1)


def _by_factor(name: str, combine: Callable[[Any], _T]) -> Callable[..., _T]:
    """A method that combines the results of the factors' methods of that name."""

    @wraps(getattr(Manifold, name))
    def method(self: Product, *vectors: Tensor) -> _T:
        return combine(self._each(name, *vectors))

    return method


@final
@dataclass(frozen=True, init=False)
class Product(Manifold):
    """M₁ × M₂ × … of manifolds with points of a shape each, flattened one after the other.

    Args:
        factors: manifolds and the shapes of their points.

    Raises:
        TypeError: for factors that are no such pairs.
        ValueError: if there are none, or a shape has no point of its manifold.
    """

    factors: tuple[Factor, ...]

    def __init__(self, factors: Iterable[tuple[Manifold, Iterable[int]]]) -> None:
        try:
            given = [(manifold, tuple(shape)) for manifold, shape in factors]
        except (TypeError, ValueError) as error:
            raise TypeError(
                "factors are pairs of a manifold and the shape of its points, such as "
                f"[(Oblique(), (3, 4)), (Sphere(), (5,))]: {error}"
            ) from error
        pairs = tuple((from_geoopt(manifold), shape) for manifold, shape in given)
        if not pairs:
            raise ValueError("a product needs at least one manifold")
        for number, (manifold, shape) in enumerate(pairs):
            blank = torch.empty(shape, dtype=torch.double, device="meta")
            raise_if(manifold.validate(blank, name=f"factor {number}, {shape},"))
        vars(self).update(factors=pairs)

    @property
    def size(self) -> int:
        """The number of entries of a point."""
        return sum(math.prod(shape) for _, shape in self.factors)

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts of a vector, in their shapes: views of it."""
        pieces = x.split([math.prod(shape) for _, shape in self.factors])
        return [piece.view(shape) for piece, (_, shape) in zip(pieces, self.factors, strict=True)]

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """One vector of parts."""
        return _joined(parts)

    def _each(self, method: str, *vectors: Tensor) -> list[Any]:
        """The results of a method of every factor for its parts of some vectors."""
        return [getattr(m, method)(*parts) for m, *parts in self._factors(*vectors)]

    def _factors(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        manifolds = [manifold for manifold, _ in self.factors]
        return list(zip(manifolds, *map(self.split, tensors), strict=True))

    # --- factor by factor -------------------------------------------------------------------

    sharp = _by_factor("sharp", _joined)
    nearest = _by_factor("nearest", _joined)
    proju = _by_factor("proju", _joined)
    expmap = _by_factor("expmap", _joined)
    logmap = _by_factor("logmap", _joined)
    transp = _by_factor("transp", _joined)
    retr = _by_factor("retr", _joined)
    ehess2rhess = _by_factor("ehess2rhess", _joined)
    expmap_transp = _by_factor("expmap_transp", _joined_pairs)
    retr_transp = _by_factor("retr_transp", _joined_pairs)
    violation = _by_factor("violation", _largest)
    tangent_violation = _by_factor("tangent_violation", _largest)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """⟨u, v⟩ₓ, the sum over the factors, as one number of shape (1,)."""
        vectors = promote(x, u, u if v is None else v)
        return torch.stack(self._each("inner", *vectors)).sum(0, True)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance, as one number of shape (1,)."""
        return torch.linalg.vector_norm(torch.stack(self._each("dist", x, y))).reshape(1)

    def frame(self, x: Tensor) -> Frame:
        """The frames of the factors, as one factor for each number."""
        (x,) = promote(x)
        frames = [manifold.frame(part) for manifold, part in self._factors(x)]
        ones = self.split(torch.ones_like(x))
        return Frame(self.join(f.leave(one) for f, one in zip(frames, ones, strict=True)))

    def codimension(self, shape: torch.Size) -> int:
        """The sum over the factors."""
        return sum(manifold.codimension(torch.Size(own)) for manifold, own in self.factors)

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """Those of the factors, as in Pythagoras' theorem."""
        return math.hypot(*(manifold.typical_dist(own) for manifold, own in self.factors))

    def with_true_steps(self) -> Manifold:
        """The product of the factors with true steps."""
        return Product((manifold.with_true_steps(), shape) for manifold, shape in self.factors)

    # --- the whole --------------------------------------------------------------------------

    @property
    def scale_invariant(self) -> bool:
        """False: a product is not scaled as a whole."""
        return False

    @property
    def ndim(self) -> int:
        """1: points are vectors."""
        return 1

    @property
    def reversible(self) -> bool | None:
        """True if all factors are; None if that is not known."""
        known = {manifold.reversible for manifold, _ in self.factors}
        return False if False in known else None if None in known else True

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """One vector of the parts, as `join`.

        Raises:
            ValueError: unless there is one for each factor, of its shape.
        """
        shapes = [shape for _, shape in self.factors]
        given = [tuple(tensor.shape) for tensor in tensors]
        if given != shapes:
            raise ValueError(f"a point of this product has parts of shapes {shapes}, not {given}")
        return self.join(tensors)

    def unpack_tensor(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The parts of a vector, as `split`."""
        return tuple(self.split(tensor))

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point, one of each factor; `size` is nothing, or that of a point."""
        if size not in ((), (self.size,), ((self.size,),)):
            raise ValueError(f"a point of this product has size {self.size}, not {size}")
        given: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        return self.join(manifold.random(shape, **given) for manifold, shape in self.factors)

    def _misfit(self, x: Tensor) -> str | None:
        if tuple(x.shape) != (self.size,):
            return f"has shape {tuple(x.shape)}, and a point of this product is ({self.size},)"
        for number, (manifold, shape) in enumerate(self.factors):
            reason = manifold._misfit(torch.empty(shape, dtype=x.dtype, device="meta"))
            if reason is not None:
                return f"has a factor {number} that {reason}"
        return None

    def _fields(self) -> dict[str, Any]:
        return {"factors": [[manifold.spec(), list(shape)] for manifold, shape in self.factors]}

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifold:
        return cls([(from_spec(spec), shape) for spec, shape in fields["factors"]])


register_manifold("Product", Product)
