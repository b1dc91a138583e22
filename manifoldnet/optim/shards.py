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
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from manifoldnet.geometry import Slices
from manifoldnet.geometry.settled import is_sharded
from manifoldnet.geometry.slices import Dim
from manifoldnet.optim.step import StepInput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Groups",
    "add_over",
    "fitted",
    "groups_of",
    "is_sharded",
    "local",
    "partition",
    "per_slice",
    "pieces",
    "processes",
    "vote",
    "wrapped",
]

Groups = tuple["ProcessGroup", ...]
"""The process groups that hold pieces of the slices of a weight."""

Across = tuple[torch.device, Groups]
"""The device and the process groups of weights whose products are added up at once."""


def _may_be_there() -> bool:
    """Test for DTensors in this process: there are none where nobody has imported them."""
    return sys.modules.get("torch.distributed.tensor") is not None


def local(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The piece of a tensor that is here, on the same memory; a plain tensor itself.

    Args:
        x: a tensor.
        like: a DTensor whose pieces it is to match: it is redistributed if it is placed otherwise.
    """
    if not _may_be_there() or not is_sharded(x):
        return x
    parts: Any = x.detach()
    if is_sharded(like):
        wanted: Any = like
        if (parts.device_mesh, parts.placements) != (wanted.device_mesh, wanted.placements):
            parts = parts.redistribute(wanted.device_mesh, wanted.placements)
    piece: Tensor = parts.to_local()
    return piece


def pieces(tensors: Sequence[Any]) -> list[Any]:
    """Tensors with the pieces that are here in place of DTensors; empty ones are left out."""
    if not _may_be_there():
        return list(tensors)
    found = [local(x) if is_sharded(x) else x for x in tensors]
    return [x for x, given in zip(found, tensors, strict=True) if x is given or x.numel()]


def partition(works: Sequence[StepInput]) -> tuple[dict[int, StepInput], dict[Across, list[int]]]:
    """The pieces of weights that are here, by the place of the weight.

    Those of weights that have no slice here are left out, as in all processes that share slices.

    Returns:
        The pieces, and the places of those whose slices have other pieces elsewhere, by device and
        groups of processes.
    """
    across: dict[Across, list[int]] = {}
    if not _may_be_there():
        return dict(enumerate(works)), across
    here: dict[int, StepInput] = {}
    for place, work in enumerate(works):
        if not is_sharded(work.x):
            here[place] = work
            continue
        groups = groups_of(work.x, work.geometry.dim)
        piece = _localized(work)
        dim = work.geometry.dim
        if isinstance(dim, int) and not piece.x.shape[dim]:
            continue
        here[place] = piece
        if groups:
            across.setdefault((piece.x.device, groups), []).append(place)
    return here, across


def _localized(work: StepInput) -> StepInput:
    x, g = local(work.x), local(work.g, like=work.x)
    if g.stride() != x.stride():
        g = torch.empty_like(x, dtype=g.dtype).copy_(g)
    b, s, max_s = (None if t is None else local(t) for t in (work.b, work.s, work.max_s))
    return work._replace(x=x, g=g, b=b, s=s, max_s=max_s)


def groups_of(x: Any, dim: Dim) -> Groups:
    """The groups of processes that have pieces of the same slices.

    Raises:
        RuntimeError: for a weight that is placed as partial sums.
    """
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


def processes(x: Any) -> int:
    """The number of processes that hold pieces of a DTensor, empty ones included."""
    return int(x.device_mesh.size())


def vote(x: Any, yes: bool) -> Tensor:
    """A number that is, added up over the processes of a DTensor, how many of them say yes."""
    from torch.distributed.tensor import DTensor, Partial

    mesh = x.device_mesh
    piece = torch.tensor(float(yes), device=x.to_local().device)
    return DTensor.from_local(piece, mesh, [Partial()] * mesh.ndim, run_check=False)


def per_slice(x: Tensor, dim: Dim) -> Tensor:
    """Zeros in the type of a weight, one for each slice, that are where its slices are."""
    slices, piece = Slices(dim), local(x)
    zeros = torch.zeros(slices.shape_of(piece.shape), dtype=x.dtype, device=piece.device)
    if not is_sharded(x):
        return zeros
    return _placed(zeros, x, _of_slices(x, dim), slices.shape_of(x.shape))


def fitted(value: Tensor, x: Any, dtype: torch.dtype, dim: Dim | Literal["weight"]) -> Tensor:
    """A weight's state in the places of the weight or of its slices.

    A plain tensor is the whole: each process takes its piece of it.

    Args:
        value: the state.
        x: the weight, a DTensor.
        dtype: the type it is to have.
        dim: "weight" for state with the weight's shape, else the dimension that indexes its slices.

    Returns:
        The same object if nothing is to be done.
    """
    from torch.distributed.tensor import distribute_tensor

    placements = x.placements if dim == "weight" else _of_slices(x, dim)
    parts: Any = value
    if not is_sharded(value):
        whole = value.to(x.device, dtype)
        parts = distribute_tensor(whole, x.device_mesh, placements, src_data_rank=None)
    elif (parts.device_mesh, tuple(parts.placements)) != (x.device_mesh, tuple(placements)):
        parts = parts.redistribute(x.device_mesh, placements)
    parts = parts.to(dtype)
    piece, like = local(parts), local(x)
    if dim == "weight" and piece.stride() != like.stride():
        parts = _placed(torch.empty_like(like, dtype=dtype).copy_(piece), x, placements, x.shape)
    found: Tensor = parts
    return found


def _of_slices(x: Any, dim: Dim) -> tuple[Any, ...]:
    """The placements of one number per slice: with its slice, or in all processes that share it."""
    from torch.distributed.tensor import Replicate

    return tuple(p if dim is not None and _dim_of(p) == dim else Replicate() for p in x.placements)


def _placed(piece: Tensor, like: Any, placements: Any, shape: torch.Size) -> Tensor:
    """A DTensor of pieces on the mesh of another."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        piece, like.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )


def wrapped(piece: Tensor, like: Any) -> Tensor:
    """A piece as a tensor that is placed as another is."""
    if not is_sharded(like) or is_sharded(piece):
        return piece
    return _placed(piece, like, like.placements, like.shape)


def add_over(groups: Groups, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of tensors over process groups, by one message for each group.

    In double precision where the device has it, whatever computed the tensors here: the type of a
    message, and what is decided on its sums, is the same in all processes.
    """
    has_double = tensors[0].device.type != "mps"
    dtype = torch.float64 if has_double else torch.float32
    flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
    for group in groups:
        torch.distributed.all_reduce(flat, group=group)
    sums = flat.split([tensor.numel() for tensor in tensors])
    return [s.view(t.shape) for s, t in zip(sums, tensors, strict=True)]
