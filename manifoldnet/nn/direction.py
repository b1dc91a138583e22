"""Directions of vectors of any size.

    evened(y) = 2^−e y, its largest entry in [½, 1)        direction(y) = y/‖y‖

A norm is taken of numbers divided by the power of two next to the largest of them, which is exact:
no square overflows or vanishes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["direction", "evened", "evening"]

_HALF = (torch.float16, torch.bfloat16)


def direction(y: Tensor) -> Tensor:
    """y/‖y‖ along the last dimension, of any finite y: 0 (and of zero gradient) where y is 0.

    `torch.nn.functional.normalize` squares first, which overflows to a silent 0 for large y and
    shortens small ones.
    """
    y = evened(y)
    y = y.float() if y.dtype in _HALF else y
    known = y.detach().ne(0).any(-1, keepdim=True)
    length = torch.where(known, y, 1.0).norm(dim=-1, keepdim=True)
    return torch.where(known, y / length, 0.0)


def evening(x: Tensor) -> Tensor:
    """One over the power of two next to the largest entry along the last dimension."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    _, exponent = torch.frexp(largest)
    # Within the normal numbers of the type: 2^±bound is exact, and neither 0 nor ∞. Not ldexp of x,
    # whose gradient is 0 for negative exponents (torch 2.13).
    bound = -round(math.log2(torch.finfo(x.dtype).tiny))
    return torch.ldexp(torch.ones_like(largest), -exponent.clamp(-bound, bound))


def evened(x: Tensor) -> Tensor:
    """x times `evening`, a factor that what follows ignores."""
    return x * evening(x)
