"""Layout of weights in memory, as kernels read it."""

from __future__ import annotations

import math
import sys
from collections.abc import Container
from functools import cache

import torch
from torch import Tensor

from manifoldnet.geometry.slices import Dim

__all__ = ["Layout", "dense_layout"]

Layout = tuple[int, int, int]
"""A slice as x[:, i, :] of (outer, count, inner), in the order of memory."""


def dense_layout(p: Tensor, dim: Dim, dtypes: Container[torch.dtype]) -> Layout | None:
    """The layout of a weight that is nothing but memory without holes; None for others.

    Addresses are taken of plain tensors only: a subclass may have none, or another meaning of them.

    Args:
        p: the weight.
        dim: the dimension that indexes its slices.
        dtypes: the types that are taken.
    """
    if not _is_memory(p) or p.dtype not in dtypes or p.is_neg():
        return None
    return _layout(p.shape, p.stride(), dim)


@cache
def _layout(shape: torch.Size, stride: tuple[int, ...], dim: Dim) -> Layout | None:
    order = sorted(range(len(shape)), key=lambda d: (-stride[d], d))
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and stride[d] != expected:
            return None
        expected *= max(shape[d], 1)
    if not isinstance(dim, int):
        return 1, 1, math.prod(shape)
    place = order.index(dim)
    before, after = order[:place], order[place + 1 :]
    return math.prod(shape[d] for d in before), shape[dim], math.prod(shape[d] for d in after)


def _is_memory(p: Tensor) -> bool:
    """Test for a tensor that is nothing but memory, of which pointers can be taken.

    Of other classes (DTensor, FakeTensor) and of the wrappers of `torch.func` only torch knows
    where the numbers are.
    """
    loaded = sys.modules.get("manifoldnet.manifold_parameter")  # it would import geoopt
    known = (Tensor, torch.nn.Parameter, getattr(loaded, "ManifoldParameter", Tensor))
    return type(p) in known and torch._C._has_storage(p) and not torch._is_functional_tensor(p)
