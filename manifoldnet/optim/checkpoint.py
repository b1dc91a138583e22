"""Optimizer checkpoints: matching saved state to parameters, and taking over plain ones.

A saved optimizer numbers its parameters; which number is which is found

    by name          both sides name their parameters (`param_groups` does), whatever wrappers
                     of torch, or one attribute around the whole model, put before the names
    by model order   the checkpoint is one unnamed group, as `torch.optim.SGD(model.parameters())`
                     saves it, and our groups know each parameter's place in the model
    by position      the groups have the same sizes, as in torch

Everything is checked and rearranged here on plain data, before an optimizer is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry.settled import settle
from manifoldnet.registry import unwrapped

__all__ = ["align", "check_entries", "check_saved", "name_parameters", "saved_specs"]

# State that is kept by optimizers of torch; anything else belongs to what wraps an optimizer.
_STATE_OF_TORCH = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product", "momentum_buffer"}
    | {"square_avg", "acc_delta", "grad_avg", "sum", "step_size", "row_var", "col_var", "variance"}
    | {"ax", "eta"}
)
# Made by what is asked for, and so not in every state.
_OPTIONAL = frozenset({"max_exp_avg_sq"})

# Options by which optimizers of torch differ, and which no release has added to one of them.
_OWN_OPTIONS = frozenset(
    {"betas", "eps", "momentum", "dampening", "alpha", "centered", "lr_decay", "rho", "etas"}
    | {"initial_accumulator_value", "step_sizes", "lambd", "t0", "momentum_decay", "ns_steps"}
)

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
        ValueError: if it is no such state, or the parameters cannot be matched.
    """
    _check_form(saved)
    source = _source(groups, saved["param_groups"])
    old_groups = [g for g in saved["param_groups"] for _ in g["params"]]
    old_keys = [k for g in saved["param_groups"] for k in g["params"]]
    old_specs = saved_specs(saved)
    old_names = _flat(saved["param_groups"], "param_names")
    # What is kept under no parameter's key (its number, or its name in a distributed checkpoint),
    # torch copies as it is.
    known = {*old_keys, *(key for key in saved["state"] if isinstance(key, int))}
    state = {key: value for key, value in saved["state"].items() if key not in known}
    new_groups: list[dict[str, Any]] = []
    number = 0
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
        elif old_names is not None:
            merged["param_names"] = [old_names[key] for key in source[number - len(keys) : number]]
        if old_specs is not None:
            merged["manifolds"] = specs
        new_groups.append({**merged, "params": keys})
    return {**saved, "state": state, "param_groups": new_groups}


def saved_specs(saved: dict[str, Any]) -> list[Any] | None:
    """The spec of each saved parameter's manifold (None if free); None for a state of torch."""
    return _flat(saved["param_groups"], "manifolds")


def _check_form(saved: Any) -> None:
    """Raise ValueError unless a state has the form of `Optimizer.state_dict`."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError(
            "no state of an optimizer: it needs the entries 'state' and 'param_groups'"
        )
    for number, group in enumerate(saved["param_groups"]):
        for key, right in (("param_names", _is_name), ("manifolds", _is_spec)):
            entries = group.get(key, ())
            if not isinstance(entries, list | tuple):
                raise ValueError(
                    f"{key} of group {number} of the saved state is no list: {entries!r}"
                )
            for entry in entries:
                if not right(entry):
                    raise ValueError(
                        f"{key} of group {number} of the saved state has the entry {entry!r}, "
                        "which this library has not written: remove it, or save the state anew"
                    )


def check_saved(groups: list[dict[str, Any]], saved: Any, optimizer: str) -> None:
    """Check that a saved state is of an optimizer of the same kind over the same groups.

    For optimizers under `constrain`, whose states torch loads: by position, with an error that
    names no cause, or with none until the next step.

    Args:
        groups: the optimizer's `param_groups`.
        saved: what `Optimizer.state_dict` gave.
        optimizer: the name of the optimizer's class.

    Raises:
        ValueError: for a state of another optimizer or of other groups.
    """
    theirs = saved.get("param_groups") if isinstance(saved, Mapping) else None
    if not theirs or not all(isinstance(g, Mapping) and "params" in g for g in theirs):
        return  # no state of an optimizer, which torch itself refuses
    sizes = [[len(g["params"]) for g in some] for some in (groups, theirs)]
    own, others = ({k for g in some for k in g} & _OWN_OPTIONS for some in (groups, theirs))
    if any("manifolds" in g for g in theirs):
        of = "RiemannianSGD or RiemannianAdam"
    elif own - others and others - own:
        of = f"an optimizer of another kind (it has {', '.join(sorted(others))})"
    elif sizes[0] == sizes[1]:
        return
    elif all("model_order" in g for g in theirs):
        of = f"an optimizer of other declarations, with groups of {sizes[1]} parameters"
    else:
        of = f"an optimizer with groups of {sizes[1]} parameters (of plain training?)"
    raise ValueError(
        f"nothing was loaded: this checkpoint is of {of}, and this is {optimizer} under constrain "
        f"with groups of {sizes[0]}. The moments of one do not fit the other: load the weights "
        "alone (manifoldnet.load_state_dict) and go on with the optimizer as it is, or load what "
        "the same optimizer saved with the same declarations and groups"
    )


def _is_name(entry: Any) -> bool:
    return isinstance(entry, str)


def _is_spec(entry: Any) -> bool:
    return entry is None or (
        isinstance(entry, Mapping) and {"manifold", "version", "fields"} <= entry.keys()
    )


def check_entries(
    name: str, state: Any, keys: frozenset[str], optimizer: str, declared: bool
) -> None:
    """Raise ValueError unless the saved state of one parameter fits the parameter.

    Args:
        name: what to call the parameter.
        state: its saved state.
        keys: the entries that the optimizer knows; others are left alone.
        optimizer: its name.
        declared: whether the parameter is on a manifold; the state of others is torch's matter
            as far as it can be used at all.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {name} is no dictionary: {state!r}")
    if state.keys() & _STATE_OF_TORCH - keys:
        raise ValueError(
            f"the state of {name} has {', '.join(sorted(map(str, state)))}, which is not "
            f"of {optimizer}"
        )
    lacking = keys - _OPTIONAL - state.keys()
    if lacking and state.keys() & keys:
        raise ValueError(f"the state of {name} lacks {', '.join(sorted(lacking))}")
    for key in keys & state.keys():
        value = state[key]
        if key == "step":
            if not _is_count(value):
                raise ValueError(f"step of {name} must be a number ≥ 0, not {value!r}")
        elif isinstance(value, Tensor):
            if declared and not value.is_floating_point():
                raise ValueError(
                    f"{key} of {name} has type {value.dtype}: of a declared weight it is "
                    "floating-point"
                )
            if not declared or value.is_meta:
                continue
            count = int(settle((~value.isfinite()).sum()))
            if count:
                raise ValueError(
                    f"{key} of {name} has {count} entries that are NaN or infinite: load an "
                    "earlier state, or start with a new optimizer"
                )
            if key.endswith("_sq") and int(settle((value < 0).sum())):
                raise ValueError(f"{key} of {name} has negative entries, and it is made of squares")
        elif value is not None or key != "momentum_buffer":  # torch's SGD writes None there
            raise ValueError(f"{key} of {name} must be a tensor, not a {type(value).__name__}")


def _is_count(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or _is_count(value.item()))
    return isinstance(value, int | float) and 0 <= value < math.inf


def name_parameters(group: Any, others: list[dict[str, Any]]) -> None:
    """Name the parameters of a group without names, if all other groups have them."""
    if not isinstance(group, dict) or not others or any("param_names" not in g for g in others):
        return
    params = group.get("params")
    if params is None or isinstance(params, set) or "param_names" in group:
        return
    params = [params] if isinstance(params, Tensor) else list(params)
    if all(isinstance(p, Tensor) for p in params):
        params = [(f"group{len(others)}.{i}", p) for i, p in enumerate(params)]
    group["params"] = params


def _source(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[int]:
    """The saved index of each parameter of `groups`, in order."""
    names, saved_names = _unique_names(groups), _unique_names(saved)
    if names is not None and saved_names is not None:
        names, saved_names = _same_prefix(names, saved_names)
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
    """The names of parameters without prefixes of wrappers; None unless they are unique."""
    names = _flat(groups, "param_names")
    if names is None or len(set(names)) < len(names):
        return None
    return unwrapped(names)


def _same_prefix(ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    """Two lists of names, without a prefix that all names of only one of them have.

    `"model.body.weight"` is `"body.weight"` where one side was a part of a larger module.
    """
    for names, others, swapped in ((ours, theirs, False), (theirs, ours, True)):
        split = [name.split(".") for name in names]
        for count in range(1, min(map(len, split), default=1)):
            if len({tuple(parts[:count]) for parts in split}) > 1:
                break
            shorter = [".".join(parts[count:]) for parts in split]
            if set(shorter) == set(others):
                return (others, shorter) if swapped else (shorter, others)
    return ours, theirs


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
