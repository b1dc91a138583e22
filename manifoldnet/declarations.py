"""Declarations: weights of a model on manifolds.

    declare(layer, "weight", Oblique(), project=True)     one weight of a layer
    declare(block, Pair("q.weight", "k.weight"))          two that act by their product alone
    declare_all(model, rules.unit_norm("head"))           a whole network, by a rule
    declare_all(model, {"blocks.*.q.weight": Oblique()})  … or by patterns of names
    layer.weight = ManifoldParameter(data, Oblique())     a new weight

All three fill the registry of the module (`manifoldnet.registry`), from which `manifolds`,
`violations`, `verify` and `param_groups` answer. Data off the manifold is an error that says which
slices, by how much, and what to call; nothing is moved silently.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import functools
import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from manifoldnet import registry
from manifoldnet.geometry import (
    Euclidean,
    Manifold,
    NotOnManifoldError,
    Pair,
    PairFactor,
    Slices,
    from_geoopt,
    from_spec,
)
from manifoldnet.geometry.manifold import Spec
from manifoldnet.geometry.settled import copy_into, settle
from manifoldnet.registry import (
    Declarations,
    check_module,
    declared_modules,
    declared_parameters,
    is_geoopt,
    qualified,
)

__all__ = [
    "DeclarationReport",
    "NothingDeclaredWarning",
    "RimWarning",
    "Rule",
    "declare",
    "declare_all",
    "declare_from",
    "load_state_dict",
    "manifolds",
    "param_groups",
    "project_",
    "spec",
    "undeclare",
    "verify",
    "violations",
]

_WHOLE = Slices(None)

Rule = Callable[[str, nn.Module, nn.Parameter], Manifold | None]
"""A rule for `declare_all`: (qualified name, module, parameter) -> manifold, or None if free.

A rule may have more methods: `validate(model)`, which raises a ValueError where the rule does not
fit the model; `bind(model)`, which gives the rule to call for this model; and `why(name, module,
parameter)`, which gives the reason of its answer for the report.
"""


def declare(
    module: nn.Module,
    name: str | Pair,
    manifold: Manifold | None = None,
    project: bool = False,
) -> None:
    """Declare that an existing parameter of a module lies on a manifold, or two are a pair.

    The tensor keeps its identity: optimizers, ties and hooks that hold it stay valid.

    Args:
        module: the module, or a model that contains it.
        name: the parameter's name in `module`; dotted for one of its submodules. Or a `Pair`, which
            has the names of two.
        manifold: one of this library or of geoopt; none for a pair.
        project: put the values on the manifold first. Slices that are to stay zero
            (`zero_slices`) have to be zero already: they are not cleared.

    Raises:
        TypeError: if `module` is no module, or `name` no string and no pair; if a manifold is
            missing, or given with a pair.
        ValueError: if there is no such parameter, its order or type does not fit, its values are
            off the manifold and `project` is False, a slice is zero or not finite, a slice of
            `zero_slices` is not zero, or the tensor is declared already, here or under another
            name, on a different manifold. Nothing is changed then.
    """
    if isinstance(name, Pair):
        if manifold is not None:
            raise TypeError(
                f"{name} has a metric of its own, and each parameter one manifold: leave "
                f"{manifold} out"
            )
        _declare(module, _factors(module, name), project, [(0, 1)])
        return
    owner, local = _find(module, name)
    if manifold is None:
        raise TypeError(f"a manifold for {name} is missing, such as manifoldnet.Oblique()")
    if isinstance(manifold, PairFactor):
        raise TypeError(f"{name} is to be a factor without a partner: declare a Pair of names")
    _declare(module, [(name, owner, local, from_geoopt(manifold))], project)


def _factors(module: nn.Module, pair: Pair) -> list[tuple[str, nn.Module, str, Manifold]]:
    """The declarations that a pair stands for, once the parameters fit together."""
    plan: list[tuple[str, nn.Module, str, Manifold]] = []
    tensors = []
    for name, factor in zip((pair.left, pair.right), pair.factors, strict=True):
        owner, local = _find(module, name)
        tensor = owner._parameters[local]
        assert tensor is not None  # it was found
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet (a lazy module): run the model once, then declare it"
            )
        factor.assert_check_point(tensor, name=name)
        plan.append((name, owner, local, factor))
        tensors.append(tensor)
    left, right = tensors
    if left is right:
        raise ValueError(
            f"{pair.left} and {pair.right} are one tensor (tied): a pair is of two; nothing was "
            "declared"
        )
    reason = pair.misfit(left, right)
    if reason is not None:
        raise ValueError(f"{pair.left} and {pair.right} {reason}; nothing was declared")
    for name, tensor, other in ((pair.left, left, right), (pair.right, right, left)):
        partner = registry.partner_of(tensor)
        if partner is not None and partner is not other:
            raise ValueError(
                f"{name} is a factor of another pair already, and has one partner: undeclare that "
                "first; nothing was declared"
            )
    return plan


def undeclare(module: nn.Module, name: str) -> None:
    """Remove a declaration; the tensor keeps its values and its identity.

    A tied tensor is undeclared under all of its names, whichever is given, and a pair as a whole by
    the name of either factor.

    Raises:
        TypeError: if `module` is no module, or `name` no string.
        ValueError: if there is no such declaration.
    """
    owner, local = _owner(module, name)
    declarations = Declarations.of(owner)
    if registry.is_shared(owner._parameters, local):
        registry.refresh()  # the index entry of another of its names may be out of date
    parameter = owner._parameters.get(local)
    found = registry.records(parameter) if parameter is not None else []
    if declarations is not None and local in declarations.manifolds:
        found.append((declarations, local))
    of_geoopt = is_geoopt(parameter, "tensor", "ManifoldParameter")
    if not found and not of_geoopt:
        known = [
            qualified(prefix, key)
            for prefix, _, declared in declared_modules(module)
            for key in declared.manifolds
        ]
        raise ValueError(f"{name} is not declared here (declared: {', '.join(known) or 'none'})")
    if parameter is not None and of_geoopt:
        # As a plain Parameter no optimizer will take it for a point of the manifold. The attribute
        # is of geoopt's class, which carries no types.
        del parameter.manifold  # type: ignore[attr-defined]
        parameter.__class__ = nn.Parameter
    for record, key in found:
        record.remove(key)


def declare_all(
    model: nn.Module,
    rule: Rule | Manifold | Mapping[str, Manifold | Spec],
    project: bool = False,
) -> DeclarationReport:
    """Declare the weights of a network: all of them or, on an error, none.

    Args:
        model: the network.
        rule: which weights, in one of four forms:

            - a rule, called with (qualified name, module, parameter) for every parameter, and for
              each name of a tied one; it returns the manifold, or None to leave it free. Ready ones
              are in `manifoldnet.rules`;
            - a manifold, for all weights with two dimensions or more that it fits;
            - a dictionary of patterns, `{"blocks.*.q.weight": Oblique()}`: names of parameters, or
              patterns of them as in Python's `fnmatch`, in which `*` matches dots as well;
            - a description that `spec` gave.
        project: put the values on their manifolds first.

    Returns:
        The declared manifolds by qualified name: a dictionary, which prints as a table of what was
        declared, what was left free, and why.

    Raises:
        TypeError: if `model` is no module, or `rule` none of these.
        ValueError: as `declare`; if the rule names a layer that the model does not have, a pattern
            matches no parameter, or two patterns give a parameter different manifolds; or if
            nothing at all is declared.
    """
    check_module(model)
    chosen = _as_rule(model, rule)
    why = getattr(chosen, "why", None)
    report = DeclarationReport()
    plan = []
    for prefix, module in model.named_modules():
        registry.refuse_flattening(module)
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = qualified(prefix, local)
            manifold = chosen(name, module, parameter)
            reason = "" if why is None else why(name, module, parameter)
            if manifold is not None:
                plan.append((name, module, local, from_geoopt(manifold)))
                report[name] = plan[-1][-1]
            report._add(name, reason)
    if not plan:
        raise ValueError(f"{_said(rule)} declares none of the model's parameters{report._reasons}")
    _declare(model, plan, project)
    return report


class DeclarationReport(dict[str, Manifold]):
    """The manifolds that `declare_all` declared, by qualified name; printed, a table with reasons.

    Attributes:
        why: the reason of each declaration, where the rule gives one.
        free: the names of the parameters that were left free, each with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.why: dict[str, str] = {}
        self.free: dict[str, str] = {}

    def _add(self, name: str, reason: str) -> None:
        if name in self:
            self.why[name] = reason
        else:
            self.free[name] = reason or "left free by the rule"

    @property
    def _reasons(self) -> str:
        """The commonest reasons for weights of two dimensions or more, for an error message."""
        reasons = list(dict.fromkeys(r for r in self.free.values() if r not in _PLAIN_REASONS))
        return f" ({'; '.join(reasons[:3])})" if reasons else ""

    def __str__(self) -> str:
        """A table: under each manifold, and under "free", names and reasons.

        Names that differ only in numbers share a line, such as `blocks.*.q.weight (12)`; so do all
        parameters of fewer than two dimensions, by their number.
        """
        sections: dict[str, dict[tuple[str, str], list[str]]] = {}
        manifolds: dict[str, Manifold | None] = {**self, **dict.fromkeys(self.free)}
        for name, manifold in manifolds.items():
            rows = sections.setdefault("free" if manifold is None else repr(manifold), {})
            reason = self.free[name] if manifold is None else self.why.get(name, "")
            pattern = "" if reason == FEW_DIMENSIONS else name_pattern(name)
            rows.setdefault((pattern, reason), []).append(name)
        lines = []
        for title, rows in sections.items():
            for (pattern, reason), names in rows.items():
                count = len(names)
                several = f"{pattern} ({count})" if pattern else f"{count} parameters"
                lines.append((title, names[0] if count == 1 else several, reason))
        width = max((len(label) for _, label, _ in lines), default=0)
        text, last = [], None
        for title, label, reason in lines:
            if title != last:
                text.append(title)
            text.append(f"  {label:<{width}}  {reason}".rstrip())
            last = title
        return "\n".join(text)


FEW_DIMENSIONS = "fewer than two dimensions"
_PLAIN_REASONS = ("left free by the rule", FEW_DIMENSIONS)


def name_pattern(name: str) -> str:
    """A qualified name with `*` for the parts that are numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _said(rule: object) -> str:
    if isinstance(rule, Mapping):
        return f"the dictionary of {len(rule)} patterns"
    return f"the rule {rule!r}" if callable(rule) else repr(rule)


def _as_rule(model: nn.Module, given: Any) -> Any:
    """The rule that a form of `declare_all` stands for."""
    if isinstance(given, Manifold) or is_geoopt(given, "manifolds.base", "Manifold"):
        return _Everywhere(from_geoopt(given))
    if isinstance(given, Mapping):
        return _ByPattern(_matched(model, given))
    if not callable(given) or isinstance(given, type):
        raise TypeError(
            "weights are declared by a rule, a function of (name, module, parameter) such as "
            "manifoldnet.rules.unit_norm(classifier=…), by a manifold, or by a dictionary of "
            f"patterns of names, not by {given!r}"
        )
    if inspect.isfunction(given):
        signature = inspect.signature(given)
        try:
            signature.bind("", model, None)
        except TypeError as error:
            ready = getattr(given, "__module__", "") == "manifoldnet.rules"
            raise TypeError(
                f"a rule is called with (name, module, parameter), and {given.__name__}{signature} "
                + ("makes one: call it first" if ready else "does not take these")
            ) from error
    validate = getattr(given, "validate", None)
    if validate is not None:
        validate(model)
    bind = getattr(given, "bind", None)
    return given if bind is None else bind(model)


class _Everywhere:
    """One manifold for all weights with two dimensions or more that it fits."""

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        return None if self.why(name, module, parameter) else self.manifold

    def why(self, name: str, module: nn.Module, parameter: nn.Parameter) -> str:
        """The reason why the manifold does not fit a parameter; "" if it does."""
        if is_lazy(parameter):
            return ""  # for `_declare` to refuse
        if parameter.ndim < 2:
            return FEW_DIMENSIONS
        try:
            self.manifold.assert_check_point(parameter, name=name)
        except (TypeError, ValueError) as error:
            return str(error)
        return ""


class _ByPattern:
    """Manifolds of parameters by their names, each with its pattern."""

    def __init__(self, found: dict[str, tuple[str, Manifold]]) -> None:
        self.found = found

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        return self.found[name][1] if name in self.found else None

    def why(self, name: str, module: nn.Module, parameter: nn.Parameter) -> str:
        """The pattern that matches a parameter, or that there is none."""
        pattern = self.found[name][0] if name in self.found else ""
        return "no pattern matches" if not pattern else "" if pattern == name else pattern


def _matched(
    model: nn.Module, patterns: Mapping[str, Manifold | Spec]
) -> dict[str, tuple[str, Manifold]]:
    """The pattern and the manifold of each parameter that one of the patterns matches."""
    names = _names(model)
    found: dict[str, tuple[str, Manifold]] = {}
    for pattern, given in patterns.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"a pattern is a string such as 'blocks.*.q.weight', not {pattern!r}; nothing was "
                "declared"
            )
        if isinstance(given, Pair) or _is_pair_spec(given):
            raise TypeError(
                f"{pattern}: a pair is declared by manifoldnet.declare(module, pair), and a "
                "description with pairs by manifoldnet.declare_from; nothing was declared"
            )
        try:
            manifold = from_spec(given) if isinstance(given, Mapping) else from_geoopt(given)
        except (ValueError, TypeError, KeyError) as error:
            raise type(error)(f"{pattern}: {error}; nothing was declared") from error
        # A name may have brackets in it, which mean something in a pattern.
        matches = {names[pattern]} if pattern in names else set(_matching(names, pattern))
        if not matches:
            known = {name_pattern(n): 0 for n in names}
            near = difflib.get_close_matches(name_pattern(pattern), known, 3)
            raise ValueError(
                f"{pattern!r} matches no parameter of this {type(model).__name__}"
                + (f" (near to it: {', '.join(near)})" if near else f" ({_first(names)})")
                + "; nothing was declared"
            )
        for name in matches:
            first, other = found.setdefault(name, (pattern, manifold))
            if other != manifold:
                raise ValueError(
                    f"{name} is matched by {first!r}, which gives it {other}, and by {pattern!r}, "
                    f"which gives it {manifold}: make the patterns disjoint; nothing was declared"
                )
    return found


def _matching(names: dict[str, str], pattern: str) -> list[str]:
    return [name for known, name in names.items() if fnmatch.fnmatchcase(known, pattern)]


def _first(names: dict[str, str]) -> str:
    """The beginning of the list of parameters, for an error message."""
    patterns = list(dict.fromkeys(map(name_pattern, names.values())))
    more = ", …" if len(patterns) > 5 else ""
    return f"it has {', '.join(patterns[:5])}{more}" if patterns else "it has none"


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
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
        wrapped = _names(module).get(name, name)
        if wrapped != name:
            return _owner(module, wrapped)
    if not complete:
        where = f" ({'.'.join(found)})" if found else ""
        near = difflib.get_close_matches(name, _names(module), 1)
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


def _names(model: nn.Module) -> dict[str, str]:
    """The names of a model's parameters, by themselves and by those of the plain model."""
    names = [
        qualified(prefix, local)
        for prefix, module in model.named_modules()
        for local, parameter in module._parameters.items()
        if parameter is not None
    ]
    return {**dict(zip(registry.unwrapped(names), names, strict=True)), **{n: n for n in names}}


def _find(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that owns a parameter, and its name there."""
    owner, local = _owner(module, name)
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


def _declare(
    model: nn.Module,
    plan: list[tuple[str, nn.Module, str, Manifold]],
    project: bool,
    paired: Sequence[tuple[int, int]] = (),
) -> None:
    """Check everything first, then write: values, then the registry, under all tied names.

    `paired` has the places in the plan of the factors of each pair.
    """
    # A weight that cannot be tied has no other names, for which to search the model.
    alone = len(plan) == 1 and not registry.is_shared(plan[0][1]._parameters, plan[0][2])
    planned: dict[int, tuple[str, Manifold]] = {}
    values: list[tuple[Tensor, Tensor]] = []
    rims: list[str] = []
    for name, owner, local, manifold in plan:
        parameter = owner._parameters[local]
        assert parameter is not None
        if is_lazy(parameter):
            raise ValueError(
                f"{name} has no shape yet (a lazy module): run the model once, then declare it"
            )
        other = registry.manifold_of(parameter)
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
        x = parameter.detach()
        try:
            if project:  # refuses what it cannot put there
                values.append((x, _projected(manifold, x, name)))
                moved = manifold._moved_to_rim(x, name)
                if moved is not None:
                    rims.append(moved)
            else:
                manifold.assert_check_point_on_manifold(x, name=name)
        except NotOnManifoldError as error:
            error.args = (f"{error}{_of_padding(owner, local, error)}",)
            raise
    for moved in rims:  # here, where a filter that makes errors of warnings stops all
        warnings.warn(moved, RimWarning, stacklevel=3)
    for x, point in values:
        copy_into(x, point)
    for module in [plan[0][1]] if alone else model.modules():
        for local, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in planned:
                label, manifold = planned[id(parameter)]
                Declarations.set(
                    module, local, manifold, parameter, label=label if "." in label else None
                )
    for places in paired:
        for here, there in (places, places[::-1]):
            (_, owner, local, _), (_, partners_owner, its_local, _) = plan[here], plan[there]
            partner = Declarations.of(partners_owner)
            assert partner is not None  # written above
            tensor = owner._parameters[local]
            for module in model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is tensor:
                        Declarations.pair(module, name, (partner, its_local))


def _projected(manifold: Manifold, x: Tensor, name: str) -> Tensor:
    """The nearest point to values from elsewhere; an error where that would set slices to zero."""
    y = manifold.projx(x, name=name)
    if not manifold.zero_slices:
        return y
    sizes = settle(manifold.slices.largest(x)).flatten()
    lost = [index for index in manifold.zero_slices if sizes[index] != 0]
    if not lost:
        return y
    norms = settle(manifold.slices.norm(x)).flatten()
    labels = tuple(manifold.slices.label(index, x.ndim) for index in lost)
    what = [f"{label} has norm {norms[i]:.3g}" for label, i in zip(labels, lost, strict=True)]
    listed = ", ".join([*what[:3], "…"] if len(what) > 3 else what)
    raise NotOnManifoldError(
        f"{name}: {listed}, and zero_slices of {manifold} would set "
        f"{'it' if len(lost) == 1 else 'them'} to zero. Name in zero_slices the slices that are "
        "zero already (padding rows), or set these to zero first",
        manifold,
        name,
        slices=labels,
        amounts=(1.0,) * len(lost),
        tolerance=0.0,
        count=len(lost),
        total=sizes.numel(),
    )


class RimWarning(UserWarning):
    """Rows outside of an open ball were projected to its rim, where distances are very large."""


def _of_padding(owner: nn.Module, local: str, error: NotOnManifoldError) -> str:
    """The end of a message about the padding row of an embedding, which is zero."""
    if not isinstance(owner, nn.Embedding | nn.EmbeddingBag) or local != "weight":
        return ""
    row = owner.padding_idx
    if row is None or (f"row {row}", math.inf) not in zip(error.slices, error.amounts, strict=True):
        return ""
    return (
        f". Row {row} is the padding_idx of this {type(owner).__name__}, and stays zero on "
        f"{type(error.manifold).__name__}(…, zero_slices=({row},))"
    )


def manifolds(model: nn.Module) -> dict[str, Manifold]:
    """The declared manifolds of a model: {"hidden.weight": Oblique(dim=0, …), …}.

    A tensor that several modules share appears once, under its first name.

    Raises:
        RuntimeError: if a declared parameter is gone from its module.
    """
    return {name: manifold for name, (_, manifold) in declared_parameters(model).items()}


def violations(model: nn.Module) -> dict[str, float]:
    """Relative distance of each declared weight from its manifold, of its worst slice.

    0 is exact; ∞ marks a zero slice (where none is allowed) or values that are not finite.
    """
    with torch.no_grad():
        return {
            name: float(settle(_WHOLE.largest(manifold.violation(parameter))))
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
    """The reason that a tensor is no point of a manifold; None if it is one, or has no values."""
    error = manifold.validate(x, tol=tol, name=name)
    return None if error is None else str(error)


@torch.no_grad()
def project_(model: nn.Module) -> None:
    """Project every declared weight onto its manifold, in place: after averaging weights, say.

    Raises:
        ValueError: if a slice is zero or not finite; nothing is changed then.
    """
    points = [
        (parameter, manifold.projx(parameter.detach(), name=name))
        for name, (parameter, manifold) in declared_parameters(model).items()
    ]
    for parameter, point in points:
        copy_into(parameter, point)


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
    known = _names(model)
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
                    plan += _factors(model, replace(described, left=left, right=right))
                continue
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{given}: {error}") from error
        owner, local = _find(model, known[given])
        plan.append((known[given], owner, local, described))
    if plan:
        _declare(model, plan, project, paired)
    return {name: manifold for name, _, _, manifold in plan}


def _is_pair_spec(description: object) -> bool:
    return isinstance(description, Mapping) and description.get("manifold") == "Pair"


def _described(description: Spec) -> Manifold | Pair:
    """The manifold or the pair that a description is of."""
    if _is_pair_spec(description):
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
                    copy_into(x, _projected(manifold, x, name))
                incoming.note(_trouble(name, manifold, parameter.detach()))
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
                value = state[name] = _projected(manifold, value, name)
            except ValueError as error:
                self.note(str(error))
                return
        self.note(_trouble(name, manifold, value))

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
