"""Declarations: saying that a weight lives on a manifold, and asking what was said.

    layer.weight = ManifoldParameter(data, Oblique())     a new weight
    declare(layer, "weight", Oblique(), project=True)     one that a layer already has
    declare_all(model, rules.unit_norm("head"))           a whole network

All three fill the registry of the module (`manifoldnet.registry`), and all questions
(`manifolds`, `violations`, `verify`, `param_groups`) are answered from it. Data off the manifold
is an error that says which slices, by how much, and what to call; nothing is moved silently.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import geoopt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from manifoldnet import registry
from manifoldnet.geometry import Euclidean, Manifold, from_geoopt
from manifoldnet.registry import (
    Declarations,
    declared_modules,
    declared_parameters,
    qualified,
)

__all__ = [
    "ManifoldParameter",
    "Rule",
    "declare",
    "declare_all",
    "load_state_dict",
    "manifolds",
    "param_groups",
    "project_",
    "undeclare",
    "verify",
    "violations",
]

Rule = Callable[[str, nn.Module, nn.Parameter], Manifold | None]
"""Says where a parameter lives: (qualified name, module, parameter) -> manifold, None for free."""


# geoopt carries no types, so its class is Any to the type checker.
class ManifoldParameter(geoopt.ManifoldParameter):  # type: ignore[misc]
    """A parameter on a manifold: a declaration that is made by assigning it to a module.

    It is a `geoopt.ManifoldParameter`, so geoopt's optimizers take it as it is.

    Args:
        data: a point of `manifold`; shared, not copied, as in `torch.nn.Parameter`.
        manifold: one of this library or of geoopt.
        requires_grad: as in `torch.nn.Parameter`.

    Raises:
        ValueError: if the data cannot be a point of the manifold (order, type) or is off it; the
            message says which slices, by how much, and what to call.
    """

    manifold: Manifold

    def __new__(
        cls, data: Tensor, manifold: Manifold, requires_grad: bool = True
    ) -> ManifoldParameter:
        """Check the point and make the parameter."""
        manifold = from_geoopt(manifold)
        if not isinstance(data, Tensor):
            raise ValueError(f"data must be a tensor, not {type(data).__name__}")
        if data.is_meta:
            manifold.assert_check_point(data)
        else:
            manifold.assert_check_point_on_manifold(data)
        return _trusted(data, manifold, requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> ManifoldParameter:
        # Unlike geoopt's, without a check: weights that have drifted can be copied too.
        if id(self) not in memo:
            data = self.detach().clone(memory_format=torch.preserve_format)
            memo[id(self)] = _trusted(data, self.manifold, self.requires_grad)
        copied: ManifoldParameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, proto: Any) -> Any:
        return _trusted, (self.detach(), self.manifold, self.requires_grad)


def _trusted(data: Tensor, manifold: Manifold, requires_grad: bool) -> ManifoldParameter:
    """A ManifoldParameter of data that needs no check: a copy, or one read back from disk."""
    registry.watch()
    made = torch.Tensor._make_subclass(ManifoldParameter, data.detach(), requires_grad)
    made.manifold = manifold
    return made


def declare(module: nn.Module, name: str, manifold: Manifold, project: bool = False) -> None:
    """Declare that a parameter which a module already has lives on a manifold.

    The tensor keeps its identity: optimizers, ties and hooks that hold it stay valid.

    Args:
        module: the module, or a model that contains it.
        name: the parameter's name in `module`; dotted for one of its submodules.
        manifold: one of this library or of geoopt.
        project: put the values on the manifold first.

    Raises:
        ValueError: if there is no such parameter, its order or type does not fit, its values are
            off the manifold and `project` is False, a slice is zero or not finite, or the tensor
            is declared already, here or under another name, on a different manifold. Nothing
            is changed then.
    """
    owner, local = _find(module, name)
    _declare(module, [(name, owner, local, from_geoopt(manifold))], project)


def undeclare(module: nn.Module, name: str) -> None:
    """Take a declaration back; the tensor stays, with its values and its identity.

    A tied tensor may be called by any of its names, and is free under all of them afterwards.

    Raises:
        ValueError: if there is no such declaration.
    """
    owner, local = _owner(module, name)
    declarations = Declarations.of(owner)
    parameter = owner._parameters.get(local)
    found = list(registry.records(parameter)) if parameter is not None else []
    if declarations is not None and local in declarations.manifolds:
        found.append((declarations, local))
    if not found and not isinstance(parameter, geoopt.ManifoldParameter):
        known = [
            qualified(prefix, key)
            for prefix, _, declared in declared_modules(module)
            for key in declared.manifolds
        ]
        raise ValueError(f"{name} is not declared here (declared: {', '.join(known) or 'none'})")
    if isinstance(parameter, geoopt.ManifoldParameter):
        # As a plain Parameter no optimizer will take it for a point of the manifold.
        del parameter.manifold
        parameter.__class__ = nn.Parameter
    for record, key in found:
        record.remove(key)


def declare_all(model: nn.Module, rule: Rule, project: bool = False) -> dict[str, Manifold]:
    """Declare a whole network by a rule, all of it or (on an error) nothing.

    Args:
        model: the network.
        rule: called with (qualified name, module, parameter) for every parameter, each name of a
            tied one included; gives the manifold, or None to leave it free. See
            `manifoldnet.rules` for the paper's.
        project: put the values on their manifolds first.

    Returns:
        What was declared, by qualified name.

    Raises:
        ValueError: as `declare`; if the rule names a layer that the model does not have; or if it
            declares nothing at all.
    """
    validate = getattr(rule, "validate", None)
    if validate is not None:
        validate(model)
    plan = []
    for prefix, module in model.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            manifold = rule(qualified(prefix, local), module, parameter)
            if manifold is not None:
                plan.append((qualified(prefix, local), module, local, from_geoopt(manifold)))
    if not plan:
        raise ValueError(f"the rule {rule!r} declares none of the model's parameters")
    _declare(model, plan, project)
    return {name: manifold for name, _, _, manifold in plan}


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"give the module that holds the weights, not a {type(model).__name__}")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that a qualified name leads to, and the rest of the name."""
    _check_module(module)
    if not isinstance(name, str):
        raise ValueError(f"a parameter is named by a string such as 'fc.weight', not {name!r}")
    *path, local = name.split(".")
    try:
        return module.get_submodule(".".join(path)), local
    except AttributeError as error:
        raise ValueError(f"{type(module).__name__} has no submodule {'.'.join(path)!r}") from error


def _find(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that owns a parameter, and its name there."""
    owner, local = _owner(module, name)
    if owner._parameters.get(local) is None:
        names = ", ".join(n for n, _ in owner.named_parameters(recurse=False)) or "none"
        hint = ""
        if parametrize.is_parametrized(owner, local):
            hint = (
                f"; {local} is parametrized: remove the parametrization, or declare "
                f"parametrizations.{local}.original"
            )
        raise ValueError(
            f"{type(owner).__name__} has no parameter {local!r} (it has: {names}){hint}"
        )
    return owner, local


def _declare(
    model: nn.Module, plan: list[tuple[str, nn.Module, str, Manifold]], project: bool
) -> None:
    """Check everything first, then write: values, then the registry, under all tied names."""
    homes = registry.index()
    planned: dict[int, tuple[str, Manifold]] = {}
    values: list[tuple[Tensor, Tensor]] = []
    for name, owner, local, manifold in plan:
        parameter = owner._parameters[local]
        assert parameter is not None
        if is_lazy(parameter):
            raise ValueError(
                f"{name} has no shape yet (a lazy module): run the model once, then declare it"
            )
        other = registry.manifold_of(parameter, homes)
        if other is not None and other != manifold:
            raise ValueError(
                f"{name} is declared on {other} already, here or under another name of the same "
                f"tensor; one tensor cannot live on {manifold} too: undeclare it first"
            )
        first, other = planned.setdefault(id(parameter), (name, manifold))
        if other != manifold:
            raise ValueError(
                f"{first} and {name} are one tensor, but are to live on {other} and {manifold}"
            )
        manifold.assert_check_point(parameter, name=name)
        if parameter.is_meta:
            continue
        with torch.no_grad():
            point = manifold.projx(parameter.detach(), name=name) if project else parameter
            manifold.assert_check_point_on_manifold(point, name=name)
            if project:
                values.append((parameter, point))
    with torch.no_grad():
        for target, point in values:
            target.copy_(point)
    for module in model.modules():
        for local, parameter in module._parameters.items():
            if id(parameter) in planned:
                Declarations.set(module, local, planned[id(parameter)][1])


def manifolds(model: nn.Module) -> dict[str, Manifold]:
    """What is declared in a model: {"hidden.weight": Oblique(dim=0, …), …}.

    A tensor that several modules share appears once, under its first name.

    Raises:
        RuntimeError: if a declared parameter is gone from its module.
    """
    return {name: manifold for name, (_, manifold) in declared_parameters(model).items()}


def violations(model: nn.Module) -> dict[str, float]:
    """How far each declared weight is off its manifold: its worst slice, relative.

    0 is exact; ∞ marks a zero slice (where none is allowed) or values that are not finite.
    """
    with torch.no_grad():
        return {
            name: float(manifold.violation(parameter).max())
            for name, (parameter, manifold) in declared_parameters(model).items()
        }


def verify(model: nn.Module, tol: float | None = None) -> None:
    """Raise if any declared weight is off its manifold.

    Args:
        model: the network.
        tol: the relative violation to accept; by the weight's type if left out
            (`manifoldnet.geometry.tolerance`).

    Raises:
        ValueError: a readable list: which weights, which slices, by how much.
    """
    troubles = []
    for name, (parameter, manifold) in declared_parameters(model).items():
        trouble = _trouble(name, manifold, parameter, tol)
        if trouble:
            troubles.append(trouble)
    if troubles:
        raise ValueError("\n".join(troubles))


def _trouble(name: str, manifold: Manifold, x: Tensor, tol: float | None = None) -> str | None:
    """Why a tensor is no point of a manifold; None if it is one, or has no values (meta)."""
    shape = manifold.explain_shape(x)
    if shape:
        return f"{name} cannot be a point of {manifold}: it {shape}"
    return None if x.is_meta else manifold.explain(x, tol=tol, name=name)


@torch.no_grad()
def project_(model: nn.Module) -> None:
    """Put every declared weight on its manifold, in place: after averaging weights, say.

    Raises:
        ValueError: if a slice is zero or not finite; nothing is changed then.
    """
    points = [
        (parameter, manifold.projx(parameter.detach(), name=name))
        for name, (parameter, manifold) in declared_parameters(model).items()
    ]
    for parameter, point in points:
        parameter.copy_(point)


def load_state_dict(
    model: nn.Module,
    state: Mapping[str, Any],
    project: bool = False,
    strict: bool = True,
    assign: bool = False,
) -> Any:
    """Load weights after checking that they lie on the model's manifolds.

    Args:
        model: the network, with its declarations.
        state: as for `torch.nn.Module.load_state_dict`.
        project: put loaded weights on their manifolds instead of refusing them.
        strict: as in torch.
        assign: as in torch.

    Returns:
        What torch's method returns: missing and unexpected keys.

    Raises:
        ValueError: if a declared weight in `state` has another shape or is off its manifold.
            Nothing has been loaded then.
    """
    checked: dict[str, Any] = OrderedDict(state)
    if hasattr(state, "_metadata"):  # torch keeps the modules' versions there
        checked._metadata = state._metadata  # type: ignore[attr-defined]
    troubles = []
    for name, (parameter, manifold) in declared_parameters(model, tied=True).items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            continue  # missing, or what torch will refuse itself
        value = value.detach()
        if not assign:
            value = value.to(parameter.dtype)
        if value.shape != parameter.shape:
            troubles.append(
                f"{name} has shape {tuple(value.shape)} in the checkpoint and "
                f"{tuple(parameter.shape)} in the model"
            )
            continue
        if project:
            value = manifold.projx(value, name=name)
            checked[name] = value
        trouble = _trouble(name, manifold, value)
        if trouble:
            troubles.append(trouble)
    if troubles:
        raise ValueError("nothing was loaded: " + "\n".join(troubles))
    return model.load_state_dict(checked, strict=strict, assign=assign)


def param_groups(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """The parameter groups of a model for an optimizer: declared weights, and all others.

    Weight decay is for the others only: on a norm-constrained weight it has no effect, and it
    would break the invariance of the scaled metric.

    Args:
        model: the network.
        options: options of the optimizer for both groups (`lr=…`, `weight_decay=…`).

    Returns:
        One or two groups of named parameters; `model_order` holds each one's place in
        `model.parameters()`, by which a checkpoint without names can be taken over.
    """
    if "params" in options:
        raise ValueError("params is what this function finds: give options such as lr=0.1 only")
    _check_module(model)
    declared = {
        id(p) for p, m in declared_parameters(model).values() if not isinstance(m, Euclidean)
    }
    groups: list[dict[str, Any]] = []
    for wanted in (True, False):
        found = [
            (place, named)
            for place, named in enumerate(model.named_parameters())
            if (id(named[1]) in declared) is wanted
        ]
        if found:
            group: dict[str, Any] = {
                **options,
                "params": [named for _, named in found],
                "model_order": [place for place, _ in found],
            }
            if wanted:
                group["weight_decay"] = 0.0
            groups.append(group)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameters")
    return groups
