"""Warnings of norms near overflow under the scaled metric, and of zero slices.

Under batch normalization norms grow by a constant factor a step at the most, so ‖x‖² takes as many
steps from 1 to √max as from there to max: after the first steps, to look every 100 is often enough.
Elsewhere a large rate can go from ordinary to infinite in a step or two.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from manifoldnet.geometry import Manifold
from manifoldnet.geometry.settled import settle, settled_numbers
from manifoldnet.geometry.slices import promote
from manifoldnet.optim.checks import users_level

__all__ = [
    "NormGrowthWarning",
    "ZeroSliceWarning",
    "alarming",
    "growing",
    "largest_norm",
    "overflowing",
    "warn_of_norms",
    "zero_slices",
]


class NormGrowthWarning(UserWarning):
    """A weight under the scaled metric grows towards overflow."""


class ZeroSliceWarning(UserWarning):
    """A slice of a declared weight has become zero, and is no longer stepped."""


def warn_of_norms(
    name: str, p: Tensor, manifold: Manifold, warned: set[tuple[str, type[UserWarning]]]
) -> None:
    """Warn of a weight that has a zero slice or whose norm will overflow, once of each.

    Args:
        name: of the weight.
        p: the weight.
        manifold: one of slices.
        warned: of which there was a warning before.
    """
    for category, find in ((NormGrowthWarning, overflowing), (ZeroSliceWarning, zero_slices)):
        trouble = find(p, manifold)
        if trouble is not None and (name, category) not in warned:
            warned.add((name, category))
            warnings.warn(f"{name}: {trouble}", category, stacklevel=users_level())


@cache
def largest_norm(dtype: torch.dtype) -> float:
    """The norm beyond which ‖x‖² or ‖x‖ is nearer to overflow than to 1, on a logarithmic scale."""
    computed = torch.promote_types(dtype, torch.float32)
    return min(float(torch.finfo(computed).max ** 0.25), float(torch.finfo(dtype).max ** 0.5))


def growing(square: float, dtype: torch.dtype) -> bool:
    """Test whether `overflowing` should be asked about a weight, by ‖x‖² of its longest slice."""
    return not square <= largest_norm(dtype) ** 2


def alarming(weights: Sequence[tuple[Tensor, Manifold]]) -> list[bool]:
    """Test weights for zero slices and, as `overflowing` does, for norms near overflow.

    The numbers of all of them are read at once.
    """
    flags = []
    for p, manifold in weights:
        (x,) = promote(p.detach())
        squares = settle(manifold.slices.inner(x, x)).flatten()
        found = _zero(squares, manifold)
        if manifold.scale_invariant:
            found = found | ~(squares <= largest_norm(p.dtype) ** 2)
        flags.append(found.any().float())
    return [bool(flag) for flag in settled_numbers(flags)]


def overflowing(p: Tensor, manifold: Manifold) -> str | None:
    """A message about a weight whose squared norm will overflow; None if it will not.

    None for other metrics, and as long as ‖x‖² is below √max of the type it is computed in, and ‖x‖
    below √max of the weight's.
    """
    if not manifold.scale_invariant:
        return None
    (x,) = promote(p.detach())
    norms = settle(manifold.slices.norm(x)).flatten()
    if not bool((norms > largest_norm(p.dtype)).any()):
        return None
    worst = int(norms.argmax())
    advice = "lower the learning rate"
    if manifold.retraction.grows_norms:
        advice = (
            "where the loss does not depend on the norm (batch normalization), additive steps make "
            f"it grow without bound: use retraction='geodesic', which keeps it, or {advice}"
        )
    return (
        f"{manifold.slices.label(worst, p.ndim)} has norm {float(norms[worst]):.3g}, on its "
        f"way out of {p.dtype}: {advice}"
    )


def _zero(squares: Tensor, manifold: Manifold) -> Tensor:
    """The slices that are zero, by ‖x‖² of each, but for those that are declared to be."""
    zero = squares == 0
    for index in manifold.zero_slices:
        zero[index] = False
    return zero


def zero_slices(p: Tensor, manifold: Manifold) -> str | None:
    """A message about zero slices of a weight that are not declared so; None if there are none."""
    (x,) = promote(p.detach())
    zero = _zero(settle(manifold.slices.inner(x, x)).flatten(), manifold)
    count = int(zero.sum())
    if not count:
        return None
    return (
        f"{count} of {zero.numel()} slices are zero or too small to be squared, the first of them "
        f"{manifold.slices.label(int(zero.int().argmax()), p.ndim)}. Such a slice has no "
        f"direction on {manifold}, so steps leave it as it is: give it values, or undeclare the "
        "weight"
    )
