"""Local pieces of sharded weights, and the sums of products over the processes that share slices.

A weight of fully sharded, tensor-parallel or hybrid training is a `DTensor`: a piece of it is here.
Elementwise arithmetic needs no more. A mesh dimension that shards the weight along another
dimension than the one that indexes its slices has a piece of every slice in each of its processes:
their inner products are added over its process group, for all such weights of a step at once.
Decisions are made on these sums, so they are the same in every process.

Second moments, one number per slice, are DTensors as well: sharded where the slices are, replicated
where a slice is. So state is saved and resharded as torch does it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from manifoldnet.geometry import Slices
from manifoldnet.geometry.slices import Dim
from manifoldnet.optim.step import StepInput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = [
    "Groups",
    "add_over",
    "groups_of",
    "is_sharded",
    "local",
    "localized",
    "per_slice",
    "pieces",
    "wrapped",
]

Groups = tuple["ProcessGroup", ...]
"""The process groups that hold pieces of the slices of a weight."""


def is_sharded(x: Any) -> TypeGuard[DTensor]:
    """Test for a DTensor. Where nobody imported them (a second's work), there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The piece of a tensor that is here, on the same memory; a plain tensor itself.

    Args:
        x: a tensor.
        like: a DTensor whose pieces it is to match: it is redistributed if it is placed otherwise.
    """
    if not is_sharded(x):
        return x
    if is_sharded(like) and x.placements != like.placements:
        x = x.redistribute(like.device_mesh, like.placements)
    piece: Tensor = x.detach().to_local()  # type: ignore[attr-defined]
    return piece


def pieces(tensors: Sequence[Any]) -> list[Any]:
    """Tensors with the pieces that are here in place of DTensors; empty ones are left out."""
    if "torch.distributed.tensor" not in sys.modules:
        return list(tensors)
    found = [local(x) if is_sharded(x) else x for x in tensors]
    return [x for x, given in zip(found, tensors, strict=True) if x is given or x.numel()]


def wrapped(piece: Tensor, like: Tensor) -> Tensor:
    """A piece as a tensor that is placed as another is."""
    if not is_sharded(like) or is_sharded(piece):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        piece,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def localized(work: StepInput) -> StepInput:
    """The step of the pieces that are here."""
    x, g, _, b, _, s, top, *_ = work
    b, s, top = (None if t is None else local(t) for t in (b, s, top))
    return work._replace(x=local(x), g=local(g, like=x), b=b, s=s, top=top)


def groups_of(x: Tensor, dim: Dim) -> Groups:
    """The groups of processes that have pieces of the same slices."""
    if not is_sharded(x):
        return ()
    mesh = x.device_mesh
    return tuple(
        mesh.get_group(i)
        for i, placement in enumerate(x.placements)
        if _dim_of(placement) not in (None, dim) and mesh.size(i) > 1
    )


def _dim_of(placement: Any) -> int | None:
    """The dimension that a placement shards; those that no weight has are refused."""
    if placement.is_partial():
        raise RuntimeError(
            "a weight is placed as partial sums, which no step can be taken on: redistribute it. "
            "No weight was changed"
        )
    # Strided shards are no `Shard`, but have its dimension.
    return getattr(placement, "dim", None)


def per_slice(x: Tensor, dim: Dim) -> Tensor:
    """Zeros in the type of a weight, one for each slice, that are where its slices are."""
    over = Slices(dim).over(x.ndim)
    piece = local(x)
    shape = [1 if d in over else n for d, n in enumerate(piece.shape)]
    zeros = torch.zeros(shape, dtype=x.dtype, device=piece.device)
    if not is_sharded(x):
        return zeros
    from torch.distributed.tensor import DTensor, Replicate

    placements = [p if _dim_of(p) == dim and dim is not None else Replicate() for p in x.placements]
    whole = torch.Size(1 if d in over else n for d, n in enumerate(x.shape))
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(
        zeros, x.device_mesh, placements, run_check=False, shape=whole, stride=stride
    )


def add_over(groups: Groups, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of tensors over process groups, by one message for each group.

    Its type is the same everywhere, whatever computed the products: float64 on processors.
    """
    cpu = tensors[0].device.type == "cpu"
    dtype = torch.float64 if cpu else reduce(torch.promote_types, [t.dtype for t in tensors])
    flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
    for group in groups:
        torch.distributed.all_reduce(flat, group=group)
    sums = flat.split([tensor.numel() for tensor in tensors])
    return [s.view(t.shape).to(t.dtype) for s, t in zip(sums, tensors, strict=True)]
