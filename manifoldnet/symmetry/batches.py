"""Batches `(input, target)`: validation, selection of samples, conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Batch", "cast", "check_batch", "collect", "count_samples", "take"]

Batch = tuple[Any, Any]
"""(input, target), as a data loader gives them. Tensors may be nested in tuples, lists, dicts."""


def collect(batches: Iterable[Any], most: int, most_bytes: int) -> list[Batch]:
    """List of the first batches.

    Args:
        batches: pairs (input, target).
        most: how many to take.
        most_bytes: no further batch is taken once their tensors need more memory than this.

    Raises:
        ValueError: if there are none, or one is no pair.
    """
    pairs: list[Batch] = []
    size = 0
    for batch in islice(iter(batches), most):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                "batches must give pairs (input, target), as a DataLoader does; they gave "
                f"{type(batch).__name__}"
                + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
                + ". One batch alone is [(input, target)]"
            )
        pairs.append((batch[0], batch[1]))
        size += sum(leaf.numel() * leaf.element_size() for leaf in _tensors(batch))
        if size > most_bytes:
            break
    if not pairs:
        raise ValueError("batches is empty: at least one pair (input, target) is needed")
    return pairs


def check_batch(batch: Any) -> None:
    """Raise a ValueError unless a batch is a pair (input, target)."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise ValueError(f"a batch is a pair (input, target), not {type(batch).__name__}")


def count_samples(batch: Any) -> int | None:
    """Number of samples; None if the tensors of a batch do not share a first dimension."""
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in _tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def take(batch: Any, indices: Any) -> Any:
    """Samples of a batch at some indices (a tensor, a slice, …) of the first dimension."""
    return _map(
        batch, lambda x: x[indices.to(x.device) if isinstance(indices, Tensor) else indices]
    )


def cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Move every nested tensor to a device; convert the floating-point ones to a type."""
    return _map(value, lambda x: x.to(device, dtype if x.is_floating_point() else None))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)
