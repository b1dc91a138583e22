"""Values of tensors of which several processes hold a part each (torch's DTensor).

Where Python asks such a tensor for a number, each process sees its own part (torch 2.13 reduces
none), so that processes would decide differently, and wait for each other forever. What decides
from values asks `settle` or `settled_numbers` first. All processes have to, in the same order.

These tensors are known by their class, where it has been imported: a graph of torch.compile knows
nothing of their methods, and torch.distributed is not imported here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "copy_into",
    "is_sharded",
    "laid_out_along",
    "laid_out_as",
    "reducible",
    "settle",
    "settled_numbers",
    "spread_as",
]


def is_sharded(t: Any) -> bool:
    """Test whether a tensor is a DTensor, of which this process may hold a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def settle(t: Tensor) -> Tensor:
    """The whole of a DTensor, alike on all processes, as an ordinary tensor; others themselves.

    Meant for numbers of slices and flags, not for weights: it takes the memory of the whole.
    """
    parts: Any = t  # DTensor has the method, which the type Tensor has not
    return parts.full_tensor() if is_sharded(t) else t


def settled_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """The values of tensors of one number; all DTensors of a mesh share one collective."""
    groups: dict[Any, list[int]] = {}
    for place, t in enumerate[Any](numbers):
        layout = (t.device_mesh, t.placements) if is_sharded(t) else None
        groups.setdefault((t.device, t.dtype, layout), []).append(place)
    values = [math.nan] * len(numbers)
    for (_, _, layout), places in groups.items():
        some: list[Any] = [numbers[place] for place in places]
        if layout is None:
            row = torch.stack(some)
        else:
            parts = torch.stack([t.to_local() for t in some])
            row = type(some[0]).from_local(parts, *layout, run_check=False)
        for place, value in zip(places, settle(row).tolist(), strict=True):
            values[place] = value
    return values


def reducible(t: Any, over: tuple[int, ...]) -> Any:
    """A DTensor of non-negative numbers that has the maxima of `t`, and no empty part.

    Of an empty part torch computes no maximum. Here each process gives that of its own part, 0 if
    it is empty, and ∞ for NaN, which a collective may lose.

    Args:
        t: a DTensor of numbers ≥ 0.
        over: the dimensions that the maximum is to be taken over.
    """
    if any(placement.is_partial() for placement in t.placements):
        return t
    part = t.to_local().nan_to_num(nan=math.inf, posinf=math.inf)
    empty = any(part.shape[d] == 0 for d in over)
    shape = [1 if d in over else n for d, n in enumerate(part.shape)]
    part = part.new_zeros(shape) if empty else part.amax(over, keepdim=True)
    whole = list(t.shape)
    for d in over:
        sizes = zip(t.placements, t.device_mesh.shape, strict=True)
        whole[d] = math.prod(n for p, n in sizes if getattr(p, "dim", None) == d)
    stride = torch.empty(whole, device="meta").stride()
    return type(t).from_local(
        part, t.device_mesh, t.placements, run_check=False, shape=torch.Size(whole), stride=stride
    )


def copy_into(x: Any, y: Any) -> None:
    """`x.copy_(y)`, also for a DTensor that torch refuses to copy to (dimensions of size one)."""
    if is_sharded(x) and is_sharded(y):
        part, new = x.to_local(), laid_out_as(x, y).to_local()
        if part.data_ptr() != new.data_ptr():
            part.copy_(new)
    else:
        x.copy_(y)


def laid_out_as(x: Any, y: Any) -> Any:
    """`y` in parts as those of `x`, if both are DTensors; else `y` itself."""
    if not (is_sharded(x) and is_sharded(y)):
        return y
    here, there = ((t.device_mesh, t.placements) for t in (x, y))
    return y if here == there else y.redistribute(*here)


def laid_out_along(x: Any, y: Tensor, dim: int) -> Any:
    """One number per slice, known to every process, in parts as those of a DTensor.

    Args:
        x: a DTensor.
        y: a tensor of the size of `x` along `dim`, and of size one along its other dimensions.
        dim: the dimension that indexes the slices.
    """
    from torch.distributed.tensor import Replicate, distribute_tensor

    # Strided shards are no `Shard`, but have its dimension.
    places = [p if getattr(p, "dim", None) == dim else Replicate() for p in x.placements]
    return distribute_tensor(y, x.device_mesh, places, src_data_rank=None)


def spread_as(x: Any, whole: Tensor) -> Tensor:
    """A tensor that every process has, in parts as those of `x` if that is a DTensor."""
    if not is_sharded(x):
        return whole
    from torch.distributed.tensor import Replicate  # of a DTensor: imported long ago

    everywhere = [Replicate()] * x.device_mesh.ndim
    spread: Tensor = type(x).from_local(whole, x.device_mesh, everywhere, run_check=False)
    return laid_out_as(x, spread)
