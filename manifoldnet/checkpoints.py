"""Checkpoints of declared models: their declarations as JSON, and weights checked before loading.

`spec` gives declarations in JSON types, and `declare_from` takes them. `load_state_dict` loads
weights that lie on their manifolds, or nothing at all.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from manifoldnet import registry
from manifoldnet.declarations import (
    declare_planned,
    factors_of,
    is_pair_spec,
    manifolds,
    projected,
    trouble_of,
)
from manifoldnet.geometry import Manifold, Pair, PairFactor, from_spec
from manifoldnet.geometry.manifold import Spec
from manifoldnet.geometry.settled import copy_into
from manifoldnet.names import find, known_names
from manifoldnet.registry import check_module, declared_parameters

__all__ = ["declare_from", "load_state_dict", "spec"]


def spec(model: nn.Module) -> dict[str, Spec]:
    """The declarations of a model in JSON types: {"hidden.weight": Oblique().spec(), …}.

    A checkpoint of weights does not contain them: save this beside it, and give it to
    `declare_from` when the model has been built anew. Names are those of the plain model, without
    the prefixes of torch's wrappers (compiled, distributed, checkpointed modules).

    Raises:
        RuntimeError: if a declared parameter is gone from its module.
    """
    declared = manifolds(model)
    plain = dict(zip(declared, registry.unwrapped(declared), strict=True))
    pairs = {plain[name]: pair for name, pair in _pairs(model, plain).items()}
    return {
        plain[name]: pairs[plain[name]].spec() if plain[name] in pairs else manifold.spec()
        for name, manifold in declared.items()
    }


def _pairs(model: nn.Module, called: Mapping[str, str]) -> dict[str, Pair]:
    """The pair of each of its factors by qualified name, with names as they are `called`."""
    declared = declared_parameters(model)
    names = {id(p): name for name, (p, _) in declared.items()}
    found: dict[str, Pair] = {}
    for name, (p, factor) in declared.items():
        if not isinstance(factor, PairFactor) or name in found:
            continue
        partner = registry.partner_of(p)
        other = names.get(id(partner))
        if other is None:
            raise RuntimeError(
                f"{name} is a factor of a pair, and its partner is not in this model (a part of "
                "the model, or copied without it?): describe the whole model, or undeclare it"
            )
        beside = declared[other][1]
        assert isinstance(beside, PairFactor)  # declared with this one
        shared = factor.dim, beside.dim
        pair = Pair(called[name], called[other], heads=factor.heads, shared=shared)
        found[name] = found[other] = pair
    return found


def declare_from(
    model: nn.Module, spec: Mapping[str, Spec], project: bool = False
) -> dict[str, Manifold]:
    """Declare the weights of a model by its `spec`: all of them or, on an error, none.

    Args:
        model: a model with the parameters that were declared; torch's wrappers may differ.
        spec: the result of `manifoldnet.spec`, as it is or through JSON.
        project: put the values on their manifolds first.

    Returns:
        The declared manifolds by qualified name.

    Raises:
        TypeError: if `model` is no module, or `spec` no dictionary.
        ValueError: as `declare`; if a description is of no manifold, or names a parameter that
            the model does not have.
    """
    check_module(model)
    if not isinstance(spec, Mapping):
        raise TypeError(
            f"spec must be a dictionary, as manifoldnet.spec gives it, not {type(spec).__name__}"
        )
    known = known_names(model)
    unknown = [str(name) for name in spec if name not in known]
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(unknown)}: the declarations are of another "
            "model; nothing was declared"
        )
    plan: list[tuple[str, nn.Module, str, Manifold]] = []
    paired: list[tuple[int, int]] = []
    for given, description in spec.items():
        try:
            described = _described(description)
            if isinstance(described, Pair):
                if given not in (described.left, described.right):
                    raise ValueError(f"it is no factor of {described}")
                left, right = (known[name] for name in (described.left, described.right))
                if all(known[given] != name for name, *_ in plan):
                    paired.append((len(plan), len(plan) + 1))
                    plan += factors_of(model, replace(described, left=left, right=right))
                continue
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{given}: {error}") from error
        owner, local = find(model, known[given])
        plan.append((known[given], owner, local, described))
    if plan:
        declare_planned(model, plan, project, paired)
    return {name: manifold for name, _, _, manifold in plan}


def _described(description: Spec) -> Manifold | Pair:
    """The manifold or the pair that a description is of."""
    if is_pair_spec(description):
        return Pair.from_spec(description)
    return from_spec(description)


def load_state_dict(
    model: nn.Module,
    state: Mapping[str, Any],
    project: bool = False,
    strict: bool = True,
    assign: bool = False,
) -> Any:
    """Load weights after checking that they lie on the model's manifolds.

    Where modules convert the values (hooks of `register_load_state_dict_pre_hook`, classes with a
    `_load_from_state_dict` of their own), the converted values are checked. The model's old values
    are then kept until all is loaded, which takes their memory once more.

    Args:
        model: the network, with its declarations.
        state: as for `torch.nn.Module.load_state_dict`.
        project: put loaded weights on their manifolds instead of refusing them.
        strict: as in torch.
        assign: as in torch.

    Returns:
        Missing and unexpected keys, as torch's method.

    Raises:
        TypeError: if `model` is no module, or `state` no dictionary.
        ValueError: if a declared weight in `state` has another shape or is off its manifold.
            Nothing has been loaded then.
    """
    declared = declared_parameters(model, tied=True)
    if not isinstance(state, Mapping):
        raise TypeError(
            "state must be a dictionary of tensors, as model.state_dict() gives it, "
            f"not {type(state).__name__}"
        )
    incoming = _Incoming(project, assign)
    if not any(_converts(module) for module in model.modules()):
        checked: dict[str, Any] = OrderedDict(state)
        # torch keeps the modules' versions in an attribute of the dictionary, which has no type.
        if hasattr(state, "_metadata"):
            checked._metadata = state._metadata  # type: ignore[attr-defined]
        for name, (parameter, manifold) in declared.items():
            incoming.check(checked, name, parameter, manifold)
        incoming.refuse()
        return model.load_state_dict(checked, strict=strict, assign=assign)
    before = _Snapshot(model)
    on = {id(parameter): manifold for parameter, manifold in declared.values()}
    handles = [
        # After all existing hooks, so that it sees the values that will be loaded.
        module._register_load_state_dict_pre_hook(functools.partial(incoming.hook, module, on))
        for module in model.modules()
        if any(id(parameter) in on for parameter in module._parameters.values())
    ]
    try:
        result = model.load_state_dict(state, strict=strict, assign=assign)
        incoming.refuse()
        # The hook sees nothing of a class that copies by itself.
        for name, (parameter, manifold) in declared_parameters(model, tied=True).items():
            if name not in incoming.seen and before.has_changed(parameter):
                if project and not parameter.is_meta:
                    x = parameter.detach()
                    copy_into(x, projected(manifold, x, name))
                incoming.note(trouble_of(name, manifold, parameter.detach()))
        incoming.refuse()
    except BaseException:
        before.restore()
        raise
    finally:
        for handle in handles:
            handle.remove()
    return result


class _Incoming:
    """Checks of the declared weights in a state: all are made before an error is raised."""

    def __init__(self, project: bool, assign: bool) -> None:
        self.project, self.assign = project, assign
        self.seen: set[str] = set()
        self.troubles: list[str] = []

    def hook(
        self,
        module: nn.Module,
        on: dict[int, Manifold],
        state: dict[str, Any],
        prefix: str,
        *_: Any,
    ) -> None:
        """Check the values that a module is about to load, as a pre-hook of torch."""
        for local, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in on:
                self.check(state, prefix + local, parameter, on[id(parameter)])

    def check(
        self, state: dict[str, Any], name: str, parameter: nn.Parameter, manifold: Manifold
    ) -> None:
        """Check one weight, or put its projection into the state."""
        value = state.get(name)
        if not isinstance(value, Tensor):
            return  # missing, or refused by torch itself
        self.seen.add(name)
        value = value.detach()
        if not self.assign:
            value = value.to(parameter.dtype)
        if value.shape != parameter.shape:
            self.note(
                f"{name} has shape {tuple(value.shape)} in the checkpoint and "
                f"{tuple(parameter.shape)} in the model"
            )
            return
        if self.project:
            try:
                value = state[name] = projected(manifold, value, name)
            except ValueError as error:
                self.note(str(error))
                return
        self.note(trouble_of(name, manifold, value))

    def note(self, trouble: str | None) -> None:
        if trouble:
            self.troubles.append(trouble)

    def refuse(self) -> None:
        if self.troubles:
            raise ValueError("nothing was loaded: " + "\n".join(self.troubles))


def _converts(module: nn.Module) -> bool:
    """Test whether a module may convert the values that it loads.

    Layers of torch do not: some fill in keys of old versions, but only of their buffers.
    """
    if module._load_state_dict_pre_hooks:
        return True
    owner = next(c for c in type(module).__mro__ if "_load_from_state_dict" in vars(c))
    return not owner.__module__.startswith("torch.nn.modules.")


class _Snapshot:
    """The tensors of a model and their values, to be restored after an error."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Tensor | None]] = []
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._extra: list[tuple[nn.Module, Any]] = []
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    self._places.append((held, name, tensor))
                    if tensor is not None and not is_lazy(tensor):
                        self._values[id(tensor)] = tensor, tensor.detach().clone()
            if type(module).set_extra_state is not nn.Module.set_extra_state:
                self._extra.append((module, copy.deepcopy(module.get_extra_state())))

    def has_changed(self, tensor: Tensor) -> bool:
        """Test whether a tensor is another one than before, or has other values."""
        kept, value = self._values.get(id(tensor), (None, None))
        return kept is not tensor or value is None or not torch.equal(value, tensor.detach())

    @torch.no_grad()
    def restore(self) -> None:
        """Put the same tensors back, with the values that they had."""
        for held, name, tensor in self._places:
            held[name] = tensor
        for tensor, value in self._values.values():
            if tensor.shape == value.shape and tensor.dtype == value.dtype:
                tensor.copy_(value)
            else:
                tensor.data = value
        for module, extra in self._extra:
            module.set_extra_state(extra)
