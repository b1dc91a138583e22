"""Optimizer checkpoints: matching saved state to parameters, and taking over plain ones.

A saved optimizer numbers its parameters; which number is which is found

    by name          both sides name their parameters (`param_groups` does)
    by model order   the checkpoint is one unnamed group, as `torch.optim.SGD(model.parameters())`
                     saves it, and our groups know each parameter's place in the model
    by position      the groups have the same sizes, as in torch

Everything is checked and rearranged here on plain data, before an optimizer is touched.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["align", "saved_specs"]

# What belongs to the parameters of a group, not to its options.
_PER_PARAMETER = {"params", "param_names", "manifolds", "model_order"}


def align(groups: list[dict[str, Any]], saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state rearranged to the groups of an optimizer.

    Args:
        groups: the optimizer's `param_groups`.
        saved: what `Optimizer.state_dict` gave.

    Returns:
        The same with its state and groups in the optimizer's order. Options of a group are taken
        over where all parameters of the new group were saved with the same value.

    Raises:
        ValueError: if the parameters cannot be matched.
    """
    source = _source(groups, saved["param_groups"])
    old_groups = [g for g in saved["param_groups"] for _ in g["params"]]
    old_keys = [k for g in saved["param_groups"] for k in g["params"]]
    old_specs = saved_specs(saved)
    state, new_groups, number = {}, [], 0
    for group in groups:
        keys, origins, specs = [], [], []
        for _ in group["params"]:
            old = source[number]
            if old_keys[old] in saved["state"]:
                state[number] = saved["state"][old_keys[old]]
            keys.append(number)
            origins.append(old_groups[old])
            specs.append(old_specs[old] if old_specs is not None else None)
            number += 1
        merged = {key: value for key, value in group.items() if key not in _PER_PARAMETER}
        merged.update(_shared_options(origins))
        if "model_order" in group:
            merged["model_order"] = group["model_order"]
        if "param_names" in group:
            merged["param_names"] = group["param_names"]
        if old_specs is not None:
            merged["manifolds"] = specs
        new_groups.append({**merged, "params": keys})
    return {**saved, "state": state, "param_groups": new_groups}


def saved_specs(saved: dict[str, Any]) -> list[Any] | None:
    """The description of each saved parameter's manifold (None: free); None for torch's own."""
    specs: list[Any] = []
    for group in saved["param_groups"]:
        if len(group.get("manifolds", ())) != len(group["params"]):
            return None
        specs.extend(group["manifolds"])
    return specs


def _source(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[int]:
    """For each parameter of `groups`, in order, the number it was saved under."""
    names = _unique_names(groups)
    saved_names = _unique_names(saved)
    if names is not None and saved_names is not None:
        if set(names) != set(saved_names):
            missing = sorted(set(names) - set(saved_names))
            surplus = sorted(set(saved_names) - set(names))
            raise ValueError(
                "this optimizer state belongs to other parameters: it lacks "
                f"{', '.join(missing) or 'none'}, and has {', '.join(surplus) or 'none'} besides"
            )
        place = {name: number for number, name in enumerate(saved_names)}
        return [place[name] for name in names]
    sizes = [len(g["params"]) for g in groups]
    saved_sizes = [len(g["params"]) for g in saved]
    order = _flat(groups, "model_order")
    count = sum(sizes)
    if order is not None and saved_sizes == [count] and sorted(order) == list(range(count)):
        return order
    foreign = saved_names is None and any("manifolds" not in g for g in saved)
    reordered = order is not None and order != sorted(order)
    if sizes == saved_sizes and not (foreign and reordered):
        return list(range(count))
    raise ValueError(
        f"this optimizer state has groups of {saved_sizes} parameters and this optimizer of "
        f"{sizes}, and they cannot be matched by name: make both with manifoldnet.param_groups, "
        "or with model.named_parameters()"
    )


def _unique_names(groups: list[dict[str, Any]]) -> list[str] | None:
    """The parameters' names without what wrappers put before them; None unless each has its own."""
    names = _flat(groups, "param_names")
    if names is None:
        return None
    names = [name.replace("_orig_mod.", "").removeprefix("module.") for name in names]
    return names if len(set(names)) == len(names) else None


def _flat(groups: list[dict[str, Any]], key: str) -> list[Any] | None:
    """A per-parameter entry of all groups in one list; None unless every group has it in full."""
    if any(len(g.get(key, ())) != len(g["params"]) for g in groups):
        return None
    return [entry for g in groups for entry in g[key]]


def _shared_options(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """The options on which all the groups that parameters come from agree."""
    if not origins:
        return {}
    first, *others = {id(origin): origin for origin in origins}.values()
    return {
        key: value
        for key, value in first.items()
        if key not in _PER_PARAMETER
        and all(key in other and _equal(value, other[key]) for other in others)
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return bool(torch.equal(torch.as_tensor(a), torch.as_tensor(b)))
    return bool(a == b)
