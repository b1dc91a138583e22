"""Normalization of vectors of any size, without overflow or underflow.

    rescale(y) = 2^−e y, its largest entry in [½, 1)        normalize(y) = y/‖y‖

Multiplication by a power of two is exact, and no square of a rescaled entry overflows or vanishes.

`geometry` normalizes points of a sphere, which are not zero: it divides by the largest entry, with
a rounding, and a zero slice gives NaN. Features may be zero, and are compared bit for bit with
scaled ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifoldnet.geometry.slices import promote

__all__ = ["normalize", "power_of_two_scale", "rescale"]


def normalize(y: Tensor) -> Tensor:
    """y/‖y‖ along the last dimension, of any finite y: 0, with zero gradient, where y is 0.

    Half types give float32. `torch.nn.functional.normalize` squares y itself: a large y becomes 0,
    a small one is shortened.
    """
    (y,) = promote(rescale(y))
    nonzero = y.detach().ne(0).any(-1, keepdim=True)
    norm = torch.where(nonzero, y, 1.0).norm(dim=-1, keepdim=True)
    return torch.where(nonzero, y / norm, 0.0)


def power_of_two_scale(x: Tensor) -> Tensor:
    """2^−e along the last dimension, for a largest entry in [2^(e−1), 2^e)."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    _, exponent = torch.frexp(largest)
    # Within the normal numbers of the type: 2^±bound is exact, and neither 0 nor ∞. Not ldexp of x,
    # whose gradient is 0 for negative exponents (torch 2.13).
    bound = -round(math.log2(torch.finfo(x.dtype).tiny))
    return torch.ldexp(torch.ones_like(largest), -exponent.clamp(-bound, bound))


def rescale(x: Tensor) -> Tensor:
    """x times `power_of_two_scale`, without gradient through the scale."""
    return x * power_of_two_scale(x)
