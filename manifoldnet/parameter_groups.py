"""Parameter groups of a model for an optimizer: declared weights, and all others."""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from manifoldnet.geometry import Euclidean
from manifoldnet.registry import check_module, declared_parameters

__all__ = ["NothingDeclaredWarning", "param_groups"]


def param_groups(
    model: nn.Module,
    *,
    names: bool = True,
    declared: Mapping[str, Any] | None = None,
    free: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The parameter groups of a model for an optimizer: declared weights, and all others.

    Weight decay is for the others only: it has no effect on a norm-constrained weight, and breaks
    the invariance of the scaled metric. A model without declarations (lost, perhaps, when it was
    built anew) gives one group, and a warning.

    Args:
        model: the network.
        names: give parameters with their names, by which checkpoints are matched; False for
            optimizers that take no named ones (torch's ZeroRedundancyOptimizer).
        declared: options for the group of declared weights only (`declared={"lr": 0.1}`).
        free: options for the group of all others only.
        options: options of the optimizer for both groups (`lr=…`, `weight_decay=…`).

    Returns:
        One or two groups of parameters; `model_order` is each one's index in
        `model.parameters()`, by which a checkpoint without names can be taken over.

    Raises:
        TypeError: if `model` is no module, or `declared` or `free` no dictionary.
        ValueError: for an option that no optimizer of torch or of this library has; for weight
            decay asked for declared weights; if the model has no parameters.
    """
    check_module(model)
    for argument, given in (("declared", declared), ("free", free)):
        if not isinstance(given, Mapping | None):
            raise TypeError(
                f"{argument} must be a dictionary of options, such as {{'lr': 0.1}}, "
                f"not {type(given).__name__}"
            )
    declared, free = dict(declared or {}), dict(free or {})
    for key in [*options, *declared, *free]:
        _check_option(key)
    if declared.get("weight_decay", 0):
        raise ValueError(
            f"declared={{'weight_decay': {declared['weight_decay']}}}: on a norm-constrained "
            "weight decay has no effect, and it breaks the invariance of the scaled metric; "
            "give it to the others, with free={'weight_decay': …}"
        )
    found = declared_parameters(model)
    chosen = {id(p) for p, m in found.values() if not isinstance(m, Euclidean)}
    groups: list[dict[str, Any]] = []
    for wanted, own in ((True, {**declared, "weight_decay": 0.0}), (False, free)):
        members = [
            (place, name, p)
            for place, (name, p) in enumerate(model.named_parameters())
            if (id(p) in chosen) is wanted
        ]
        if members:
            groups.append(
                {
                    **options,
                    **own,
                    "params": [(name, p) if names else p for _, name, p in members],
                    "model_order": [place for place, _, _ in members],
                }
            )
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameters")
    if not found:
        warnings.warn(
            f"nothing is declared in this {type(model).__name__}, so that an optimizer takes "
            "Euclidean steps on all of it. Declarations do not travel with weights: after "
            "from_pretrained, or a state dict into a new model, declare again "
            "(manifoldnet.declare_all, or declare_from with what manifoldnet.spec gave). For a "
            "model without declarations give model.named_parameters() to the optimizer",
            NothingDeclaredWarning,
            stacklevel=2,
        )
    return groups


class NothingDeclaredWarning(UserWarning):
    """A model without declarations was given where they matter."""


# Options of this library's optimizers beyond those of torch, and entries that torch's schedulers
# and logging tools keep in groups.
_MORE_OPTIONS = frozenset({"error_if_nonfinite", "slice_scale", "initial_lr", "name"})


@functools.cache
def _known_options() -> frozenset[str]:
    """The options that any optimizer of torch takes."""
    found = set(_MORE_OPTIONS)
    for optimizer in vars(torch.optim).values():
        if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
            found |= inspect.signature(optimizer).parameters.keys()
    return frozenset(found - {"params", "defaults"})


def _check_option(key: str) -> None:
    if key == "params":
        raise ValueError("params is found by this function: give options such as lr=0.1 only")
    known = _known_options()
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        raise ValueError(
            f"{key} is an option of no optimizer of torch or manifoldnet"
            + (f" (did you mean {near[0]}?)" if near else "")
            + "; give one of an optimizer from elsewhere to its constructor, or write it into the "
            "groups"
        )
