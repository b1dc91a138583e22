"""Batches: validation, selection of samples, conversion.

    (input, target)       loss_fn(model(input), target); a dict as input gives keyword arguments
    {"labels": …, …}      loss_fn(model(**rest), labels), as transformers' Trainer calls its
                          compute_loss_func; without a loss_fn, the loss in model(**batch)

Inside the package every batch is a pair `(input, target)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Batch", "InputTarget", "as_pair", "cast", "collect", "count_samples", "take"]

Batch = tuple[Any, Any] | Mapping[str, Any]
"""(input, target), or a mapping with `labels`. Tensors may be nested in tuples, lists, dicts."""

InputTarget = tuple[Any, Any]
"""(input, target); the target is None where the model computes its own loss."""

_LABELS = "labels"


def collect(
    batches: Iterable[Any], most: int, most_bytes: int, own_loss: bool
) -> list[InputTarget]:
    """List of the first batches, as pairs.

    Args:
        batches: pairs (input, target), or mappings.
        most: how many to take.
        most_bytes: no further batch is taken once their tensors need more memory than this.
        own_loss: as in `as_pair`.

    Raises:
        ValueError: if there are none, or as `as_pair`.
    """
    if isinstance(batches, Mapping):
        raise ValueError(f"batches is one batch, {_describe(batches)}: one batch alone is [batch]")
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches are an iterable of (input, target), not a {type(batches).__name__}: the "
            "order is model, loss_fn, batches"
        )
    pairs: list[InputTarget] = []
    size = 0
    for batch in islice(iter(batches), most):
        pairs.append(as_pair(batch, own_loss))
        size += sum(leaf.numel() * leaf.element_size() for leaf in _tensors(pairs[-1]))
        if size > most_bytes:
            break
    if not pairs:
        raise ValueError("batches is empty: at least one pair (input, target) is needed")
    return pairs


def as_pair(batch: Any, own_loss: bool) -> InputTarget:
    """A batch as (input, target).

    Args:
        batch: a pair, or a mapping with `labels`.
        own_loss: True if the model computes the loss, so that its input is the whole mapping.

    Raises:
        ValueError: if it is neither, the labels of a loss function are missing, or a pair comes
            without a loss function.
    """
    if isinstance(batch, Mapping):
        given = dict(batch)  # others than dict are opaque to torch's pytree
        if own_loss:
            return given, None
        if _LABELS not in given:
            raise ValueError(
                f"a batch is {_describe(batch)} without {_LABELS!r}, which loss_fn(output, labels) "
                f"needs: name them so, give pairs (input, target), or leave the loss to the model "
                "with loss_fn=None"
            )
        return given, given.pop(_LABELS)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "a batch is a pair (input, target), as a DataLoader gives it, or a dict with "
            f"{_LABELS!r}, not {_describe(batch)}. One batch alone is [(input, target)]"
        )
    given, target = batch
    if own_loss:
        raise ValueError(
            "loss_fn is None, so that the model computes its loss: a batch must be a dict that it "
            "is called with (labels included), not a pair (input, target)"
        )
    return dict(given) if isinstance(given, Mapping) else given, target


def _describe(batch: Any) -> str:
    """Type of a batch, with its keys or its length."""
    name = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"{name} of {', '.join(map(str, batch)) or 'nothing'}"
    return f"{name} of {len(batch)}" if isinstance(batch, tuple | list) else name


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
