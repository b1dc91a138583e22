"""Slices: which numbers of a weight form one vector, and the arithmetic on them.

Everything per filter or per class is written once here, for tensors of any order. `dim` is the
dimension that *indexes* the vectors, as in `torch.nn.utils.parametrizations.weight_norm`:

    dim=0           each filter or row           (64, 3, 5, 5) -> 64 vectors of 75 numbers
    dim=1           each column, input channel   (10, 32)      -> 32 vectors of 10 numbers
    dim=None        the whole tensor is one vector (Frobenius)
    dim="elements"  each number by itself        (the components of flat space)

Results keep the reduced dimensions with size one, so that they broadcast against the tensor.
Half types (float16, bfloat16) are computed in float32.
"""

from __future__ import annotations

import math
from functools import cache
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Dim",
    "check_dim",
    "check_radius",
    "computed_in",
    "cos_sinc",
    "inner",
    "label",
    "largest",
    "norm",
    "normalize",
    "nouns",
    "promote",
    "reduced",
    "size",
    "versed",
]

Dim = int | Literal["elements"] | None
"""The dimension that indexes the slices; None: one slice; "elements": each number is one."""

_HALF = (torch.float16, torch.bfloat16)
# Below this θ², power series are used where derivatives are asked for.
_SMALL = 1e-2


def check_dim(dim: Dim) -> None:
    """Refuse a `dim` that means different things to different libraries.

    Raises:
        ValueError: if `dim` is negative (`weight_norm` reads -1 as "the whole tensor", everyone
            else as "the last dimension") or not a whole number.
    """
    if dim is None:
        return
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise ValueError(
            f"dim must be None or a whole number ≥ 0, not {dim!r}: "
            "it is the dimension that indexes the vectors (0: rows, 1: columns)"
        )
    if dim < 0:
        raise ValueError(
            f"dim={dim} is negative: name the dimension that indexes the vectors by its number "
            "from the front, or use dim=None for the whole tensor as one vector"
        )


def check_radius(radius: float) -> float:
    """The radius as a float; ValueError unless it is positive and finite."""
    if not (isinstance(radius, Real) and radius is not True and 0 < radius < math.inf):
        raise ValueError(f"radius must be a positive, finite number, not {radius!r}")
    return float(radius)


@cache
def reduced(ndim: int, dim: Dim) -> tuple[int, ...]:
    """The dimensions that one slice extends over, for a tensor of order `ndim`."""
    if dim == "elements":
        return ()
    return tuple(d for d in range(ndim) if d != dim)


def size(shape: torch.Size, dim: Dim) -> int:
    """How many numbers one slice holds."""
    result = 1
    for d in reduced(len(shape), dim):
        result *= shape[d]
    return result


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type that tensors of a type are computed in: float32 for half types."""
    return torch.float32 if dtype in _HALF else dtype


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type they are computed in: float32 for half types."""
    return tuple([t.float() if t.dtype in _HALF else t for t in tensors])


def inner(u: Tensor, v: Tensor, dim: Dim) -> Tensor:
    """`⟨u, v⟩` of each slice, shape of `u` with the slice's dimensions reduced to one."""
    if u.dtype in _HALF or v.dtype in _HALF:
        u, v = promote(u, v)
    over = reduced(u.ndim, dim)
    product = u * v
    # An empty list of dimensions would make torch reduce over all of them.
    return product.sum(over, keepdim=True) if over else product


def norm(u: Tensor, dim: Dim) -> Tensor:
    """`‖u‖` of each slice; its derivative at u = 0 is taken as 0."""
    if u.dtype in _HALF:
        u = u.float()
    over = reduced(u.ndim, dim)
    return torch.linalg.vector_norm(u, 2, over, keepdim=True) if over else u.abs()


def largest(x: Tensor, dim: Dim) -> Tensor:
    """The largest |entry| of each slice."""
    over = reduced(x.ndim, dim)
    # Several times faster on CPU than torch's maximum norm.
    return x.abs().amax(over, keepdim=True) if over else x.abs()


def normalize(x: Tensor, dim: Dim, length: float | Tensor = 1.0) -> Tensor:
    """`length · x/‖x‖` of each slice, without overflow or underflow of the squares.

    A zero slice gives NaN: whoever lets data in must refuse it there.
    """
    # The function does not depend on the scale of x: the largest entry can be divided away as
    # if it were a constant, and the derivative is still exact.
    tiny = torch.finfo(x.dtype).tiny
    x = x * largest(x.detach(), dim).clamp(min=tiny).reciprocal()
    return x * (length / norm(x, dim))


def cos_sinc(squared: Tensor) -> tuple[Tensor, Tensor]:
    """cos θ and sin θ/θ as functions of θ²: what moving on a circle needs.

    Both are power series in θ²; written so, a geodesic has exact derivatives at u = 0, where
    those of θ = ‖u‖ do not exist. Where no derivative is asked for, the plain functions do.
    Beyond 1/ε, where the place on the circle is lost to rounding, θ is held there.
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


def versed(squared: Tensor, cos: Tensor) -> Tensor:
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


def label(index: int, ndim: int, dim: Dim) -> str:
    """Name of slice number `index` in messages: "row 3", "column 5", "filter 7", …"""
    return "the whole tensor" if dim is None else f"{nouns(ndim, dim)[0]} {index}"


def nouns(ndim: int, dim: Dim) -> tuple[str, str]:
    """Singular and plural noun for the slices of a tensor of order `ndim`: "row", "rows"."""
    if dim == "elements" or ndim == 1:
        return "entry", "entries"
    if dim in (0, 1):
        words = ("row", "column") if ndim == 2 else ("filter", "channel")
        return words[dim], f"{words[dim]}s"
    return f"slice (dim {dim})", f"slices (dim {dim})"
