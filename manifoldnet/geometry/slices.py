"""Slices: the vectors that a weight is made of, and their arithmetic.

`dim` is the dimension that *indexes* the vectors, as in torch's `weight_norm`:

    dim=0           each filter or row           (64, 3, 5, 5) -> 64 vectors of 75 numbers
    dim=1           each column, input channel   (10, 32)      -> 32 vectors of 10 numbers
    dim=None        the whole tensor as one vector (Frobenius)
    dim="elements"  each number by itself        (the components of Euclidean space)

Results keep the reduced dimensions with size one, so that they broadcast against the tensor.
Half types (float16, bfloat16) are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from manifoldnet.geometry.settled import is_sharded, reducible

__all__ = [
    "ELEMENTS",
    "LONG",
    "Dim",
    "Slices",
    "check_radius",
    "computed_in",
    "cos_sinc",
    "euclidean_norm",
    "one_minus_cos_over_sq",
    "promote",
]

Dim = int | Literal["elements"] | None
"""The dimension that indexes the slices; None: one slice; "elements": each number is one."""

LONG = 1 << 13
"""Up to so many numbers `vector_norm`, which adds in a row, is accurate; `sum` adds pairwise."""

_HALF = (torch.float16, torch.bfloat16)
# Below this θ², power series are used where derivatives are asked for.
_SMALL = 1e-2


def euclidean_norm(u: Tensor, over: tuple[int, ...]) -> Tensor:
    """`‖u‖` over dimensions that are kept with size one; its derivative at 0 is taken as 0."""
    if not over:
        return u.abs()
    if math.prod(u.shape[d] for d in over) <= LONG:
        return torch.linalg.vector_norm(u, 2, over, keepdim=True)
    square = (u * u).sum(over, keepdim=True)
    zero = square == 0  # where the root has no derivative
    return torch.where(zero, 1.0, square).sqrt() * ~zero


@dataclass(frozen=True)
class Slices:
    """The vectors of a tensor that one dimension indexes.

    Args:
        dim: that dimension; None for the whole tensor, "elements" for each number by itself.

    Raises:
        TypeError: if `dim` is none of these.
        ValueError: if `dim` is negative: `weight_norm` reads -1 as "the whole tensor", everyone
            else as "the last dimension".
    """

    dim: Dim = 0

    def __post_init__(self) -> None:
        dim = self.dim
        if dim is None or dim == "elements":
            return
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise _wrong_dim(dim)
        if dim < 0:
            raise ValueError(
                f"dim={dim} is negative: name the dimension that indexes the vectors by its number "
                "from the front, or use dim=None for the whole tensor as one vector"
            )

    @classmethod
    def of_vectors(cls, dim: int | None) -> Slices:
        """Slices of more than single numbers: as the constructor, but "elements" is refused."""
        if isinstance(dim, str):
            raise _wrong_dim(dim)
        return cls(dim)

    def over(self, ndim: int) -> tuple[int, ...]:
        """The dimensions that one slice extends over, for a tensor of order `ndim`."""
        return _over(ndim, self.dim)

    def shape_of(self, shape: Sequence[int]) -> torch.Size:
        """The shape of one number per slice, dimensions kept, for a tensor of some shape."""
        over = self.over(len(shape))
        return torch.Size(1 if d in over else n for d, n in enumerate(shape))

    def size(self, shape: torch.Size) -> int:
        """The number of entries of one slice."""
        return math.prod(shape[d] for d in self.over(len(shape)))

    def count(self, shape: torch.Size) -> int:
        """The number of slices."""
        over = self.over(len(shape))
        return math.prod(n for d, n in enumerate(shape) if d not in over)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """`⟨u, v⟩` of each slice, shape of `u` with the slice's dimensions reduced to one."""
        if u.dtype in _HALF or v.dtype in _HALF:
            u, v = promote(u, v)
        over = self.over(u.ndim)
        product = u * v
        # An empty list of dimensions would make torch reduce over all of them.
        return product.sum(over, keepdim=True) if over else product

    def norm(self, u: Tensor) -> Tensor:
        """`‖u‖` of each slice; its derivative at u = 0 is taken as 0."""
        if u.dtype in _HALF:
            u = u.float()
        return euclidean_norm(u, self.over(u.ndim))

    def largest(self, x: Tensor) -> Tensor:
        """The largest |entry| of each slice."""
        over, x = self.over(x.ndim), x.abs()
        if over and is_sharded(x):
            x = reducible(x, over)
        # Several times faster on CPU than torch's maximum norm.
        return x.amax(over, keepdim=True) if over else x

    def normalize(self, x: Tensor, length: float | Tensor = 1.0) -> Tensor:
        """`length · x/‖x‖` of each slice, without overflow or underflow of the squares.

        A zero slice gives NaN: callers that let data in must refuse it.
        """
        # The function does not depend on the scale of x: the largest entry can be divided away as
        # if it were a constant, and the derivative is still exact.
        tiny = torch.finfo(x.dtype).tiny
        x = x * self.largest(x.detach()).clamp(min=tiny).reciprocal()
        return x * (length / self.norm(x))

    def label(self, index: int, ndim: int) -> str:
        """The name of slice number `index` in messages: "row 3", "column 5", "filter 7", …"""
        return "the whole tensor" if self.dim is None else f"{nouns(ndim, self.dim)[0]} {index}"


ELEMENTS = Slices("elements")
"""Each number is a slice, as in Euclidean space."""


def _wrong_dim(dim: object) -> TypeError:
    return TypeError(
        f"dim must be None or a whole number ≥ 0, not {dim!r}: "
        "it is the dimension that indexes the vectors (0: rows, 1: columns)"
    )


@cache
def _over(ndim: int, dim: Dim) -> tuple[int, ...]:
    if dim == "elements":
        return ()
    return tuple(d for d in range(ndim) if d != dim)


def check_radius(radius: float) -> float:
    """The radius as a float.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is not positive and finite.
    """
    if not isinstance(radius, Real) or isinstance(radius, bool):
        raise TypeError(f"radius must be a positive, finite number, not {radius!r}")
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, not {radius!r}")
    return float(radius)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type that tensors of a type are computed in: float32 for half types."""
    return torch.float32 if dtype in _HALF else dtype


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type they are computed in: float32 for half types."""
    return tuple([t.float() if t.dtype in _HALF else t for t in tensors])


def cos_sinc(squared: Tensor) -> tuple[Tensor, Tensor]:
    """cos θ and sin θ/θ as functions of θ².

    Both are power series in θ²; written so, a geodesic has exact derivatives at u = 0, where
    those of θ = ‖u‖ do not exist. Where no derivative is asked for, the plain functions serve.
    Beyond 1/ε, where θ modulo 2π is lost to rounding, θ is held there.
    """
    if not torch.is_grad_enabled():
        return _cos_sinc(squared.sqrt())
    small = squared < _SMALL
    s = torch.where(small, squared, 0.0)
    cos, sinc = _cos_sinc(torch.where(small, 1.0, squared).sqrt())
    # Taylor to θ⁸: the first term left out is below 3e-17.
    series_cos = 1 - s / 2 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56)))
    series_sinc = 1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72)))
    return torch.where(small, series_cos, cos), torch.where(small, series_sinc, sinc)


def one_minus_cos_over_sq(squared: Tensor, cos: Tensor) -> Tensor:
    """(1 − cos θ)/θ², given θ² and cos θ."""
    plain = (1 - cos) / squared.clamp(min=torch.finfo(squared.dtype).tiny)
    if not torch.is_grad_enabled():
        return plain
    small = squared < _SMALL
    s = torch.where(small, squared, 0.0)
    series = (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90)))) / 2
    return torch.where(small, series, (1 - cos) / torch.where(small, 1.0, squared))


def _cos_sinc(angle: Tensor) -> tuple[Tensor, Tensor]:
    info = torch.finfo(angle.dtype)
    held = angle.clamp(info.tiny, 1 / info.eps)
    # Divided by the angle itself, so that sinc · u is never longer than one.
    return held.cos(), held.sin() / angle.clamp(min=info.tiny)


def nouns(ndim: int, dim: Dim) -> tuple[str, str]:
    """Singular and plural noun for the slices of a tensor of order `ndim`: "row", "rows"."""
    if dim == "elements" or ndim == 1:
        return "entry", "entries"
    if dim in (0, 1):
        words = ("row", "column") if ndim == 2 else ("filter", "channel")
        return words[dim], f"{words[dim]}s"
    return f"slice (dim {dim})", f"slices (dim {dim})"
