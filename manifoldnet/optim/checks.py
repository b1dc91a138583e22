"""Checks of options, points and gradients, and their error messages."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry import Manifold
from manifoldnet.geometry.settled import settled_numbers
from manifoldnet.optim import shards

__all__ = [
    "as_number",
    "check_number",
    "check_point",
    "is_elsewhere",
    "refuse_missing",
    "refuse_nonfinite",
    "users_level",
]

# A step puts a weight back on its manifold, so rounding (of a type conversion, say) is no reason
# to refuse it; a weight that was never put there is.
_GROSS = 1e-2


def check_number(name: str, value: Any, *, least: float = 0.0, below: float = math.inf) -> None:
    """Raise ValueError unless least ≤ value < below (NaN is refused; one-element tensors count).

    Raises:
        TypeError: for what is no number.
    """
    if not isinstance(value, Real | Tensor):
        raise TypeError(f"{name} must be a number or a tensor of one element, not {value!r}")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} as a tensor must have one element, not {value.numel()}")
    number = float(value)
    if not (least <= number < below and math.isfinite(number)):
        lower = f" and ≥ {least:g}" if math.isfinite(least) else ""
        limit = f"finite{lower}" if below == math.inf else f"≥ {least:g} and < {below:g}"
        raise ValueError(f"{name} must be {limit}, not {number}")


def as_number(value: float | Tensor) -> float | Tensor:
    """An option as a number, unless its value is on a device or in a graph of torch.compile."""
    if not isinstance(value, Tensor) or torch.compiler.is_compiling():
        return value
    return float(value) if value.device.type == "cpu" else value


def is_elsewhere(value: Any) -> bool:
    """Test for a tensor on an accelerator, where it takes waiting to read a value."""
    return isinstance(value, Tensor) and value.device.type not in ("cpu", "meta")


def check_point(name: str, p: Tensor, manifold: Manifold | None) -> None:
    """Raise ValueError for a weight that is far off its manifold."""
    if manifold is not None and not p.is_meta:
        manifold.assert_check_point_on_manifold(p.detach(), tol=_GROSS, name=name)


def refuse_nonfinite(names: Sequence[str], parameters: Sequence[Tensor]) -> None:
    """Raise RuntimeError for gradients with entries that are NaN or infinite."""
    found = [(n, p.grad) for n, p in zip(names, parameters, strict=True) if p.grad is not None]
    values = (g.coalesce().values() if g.is_sparse else g for _, g in found)
    counts = settled_numbers([(~each.isfinite()).sum() for each in values])
    for (name, _), count in zip(found, counts, strict=True):
        if count:
            raise RuntimeError(
                f"the gradient of {name} has {count:.0f} entries that are NaN or infinite; no "
                "weight was changed. Lower the learning rate, clip gradients, or skip this batch"
            )


def refuse_missing(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise RuntimeError for sharded weights that have a gradient in some processes only.

    A step adds up products over all processes, which would wait for each other.
    """
    sharded = [(name, p) for name, p in weights if shards.is_sharded(p)]
    counts = settled_numbers([shards.vote(p, p.grad is not None) for _, p in sharded])
    for (name, p), count in zip(sharded, counts, strict=True):
        if 0 < count < (size := shards.processes(p)):
            raise RuntimeError(
                f"{name} has a gradient in {count:.0f} of the {size} processes that hold pieces of "
                "it, and a step needs those of all: let every process compute it, or give it zeros "
                "where it is not used. No weight was changed"
            )


def users_level() -> int:
    """The `stacklevel` of a warning that points at the caller of this library and of torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch.", "manifoldnet.optim")
    ):
        level, frame = level + 1, frame.f_back
    return level
