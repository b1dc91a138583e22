"""Parameters found by their names, and the errors for names that lead nowhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from manifoldnet import registry
from manifoldnet.registry import check_module, qualified


def name_pattern(name: str) -> str:
    """A qualified name with `*` for the parts that are numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule of a qualified name, and the last part of the name.

    A parameter is also found by its name in the plain model, without the parts of torch's wrappers.
    """
    check_module(module)
    if not isinstance(name, str):
        raise TypeError(
            f"a parameter is named by a string such as 'fc.weight', not by {_given(module, name)}"
        )
    *path, local = name.split(".")
    owner, found = module, []
    registry.refuse_flattening(module)
    for part in path:
        inner = owner._modules.get(part)
        if inner is None:
            break
        registry.refuse_flattening(inner)
        owner = inner
        found.append(part)
    complete = len(found) == len(path)
    if not complete or local not in owner._parameters:
        wrapped = known_names(module).get(name, name)
        if wrapped != name:
            return owner_of(module, wrapped)
    if not complete:
        where = f" ({'.'.join(found)})" if found else ""
        near = difflib.get_close_matches(name, known_names(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{type(owner).__name__}{where} has no submodule {path[len(found)]!r} (it has: "
            f"{_listed(n for n, m in owner._modules.items() if m is not None)}){hint}"
        )
    return owner, local


def _listed(names: Iterable[str], most: int = 8) -> str:
    """Names for an error message, the first of them if there are many."""
    every = list(names)
    return ", ".join([*every[:most], "…"] if len(every) > most else every) or "none"


def _given(module: nn.Module, value: object) -> str:
    """An argument that is not the name of a parameter, in an error message."""
    if not isinstance(value, Tensor):
        return repr(value) if not isinstance(value, nn.Module) else f"a {type(value).__name__}"
    names = [n for n, p in module.named_parameters(remove_duplicate=False) if p is value]
    itself = f": the name of this one is {names[0]!r}" if names else ""
    return f"a tensor{'' if is_lazy(value) else f' of shape {tuple(value.shape)}'}{itself}"


def known_names(model: nn.Module) -> dict[str, str]:
    """The names of a model's parameters, by themselves and by those of the plain model."""
    names = [
        qualified(prefix, local)
        for prefix, module in model.named_modules()
        for local, parameter in module._parameters.items()
        if parameter is not None
    ]
    return {**dict(zip(registry.unwrapped(names), names, strict=True)), **{n: n for n in names}}


def find(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that owns a parameter, and its name there."""
    owner, local = owner_of(module, name)
    if owner._parameters.get(local) is None:
        inner = owner._modules.get(local)
        if inner is not None:
            raise ValueError(_of_module(name, inner))
        names = _listed(n for n, _ in owner.named_parameters(recurse=False))
        found = _found_instead(owner, local)
        raise ValueError(
            f"{type(owner).__name__} has no parameter {local!r} (it has: {names})"
            + (f"; {local} {found}" if found else "")
        )
    return owner, local


def _of_module(name: str, module: nn.Module) -> str:
    """An error message for the name of a module in place of that of a parameter."""
    kind = type(module).__name__
    article = "an" if kind[0] in "AEIOU" else "a"
    own = [n for n, _ in module.named_parameters(recurse=False)]
    inner = own or [n for n, _ in module.named_parameters()]
    if not inner:
        return f"{name!r} is {article} {kind} without parameters"
    held = f"with {_listed(own)}" if own else f"that contains {_listed(inner, 3)}"
    return f"{name!r} is {article} {kind} {held}: name one of them, such as '{name}.{inner[0]}'"


# Parameters that functions of torch put in the place of one, with the function that undoes it.
_REPLACED = {
    ("_g", "_v"): ("torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    ("_orig", "_mask"): ("torch.nn.utils.prune", "torch.nn.utils.prune.remove(layer, {name!r})"),
    ("_orig", "_u"): (
        "torch.nn.utils.spectral_norm",
        "torch.nn.utils.remove_spectral_norm(layer)",
    ),
}


def _found_instead(owner: nn.Module, local: str) -> str:
    """The rest of a sentence that begins with a name: what a module has by it; "" for nothing."""
    if parametrize.is_parametrized(owner, local):
        return (
            "is parametrized: remove the parametrization, or declare "
            f"parametrizations.{local}.original"
        )
    held = {*owner._parameters, *owner._buffers}
    for ends, (by, undo) in _REPLACED.items():
        if all(local + end in held for end in ends):
            parts = " and ".join(local + end for end in ends)
            return f"is computed from {parts} by {by}: call {undo.format(name=local)} first"
    if local in owner._parameters:
        return "is None"
    if local in owner._buffers:
        return "is a buffer, which no optimizer steps"
    value = getattr(owner, local, None)
    if callable(value) and type(owner).__module__.startswith("torch.ao.nn.quantized"):
        return (
            f"is quantized ({type(owner).__module__}), and is not trained any more: declare "
            "weights, and train them, before they are quantized"
        )
    if isinstance(value, Tensor):
        return f"is a plain tensor of type {value.dtype}, which no optimizer steps"
    near = difflib.get_close_matches(local, owner._parameters, 1)
    return f"is unknown: did you mean {near[0]!r}?" if near else ""
