"""Declarations: weights of a model on manifolds.

    declare(layer, "weight", Oblique(), project=True)     one weight of a layer
    declare(block, Pair("q.weight", "k.weight"))          two that act by their product alone
    declare_all(model, rules.unit_norm("head"))           a whole network, by a rule
    declare_all(model, {"blocks.*.q.weight": Oblique()})  … or by patterns of names
    layer.weight = ManifoldParameter(data, Oblique())     a new weight

All of them fill the registry of the module (`manifoldnet.registry`), from which `manifolds`,
`violations` and `verify` answer. Data off the manifold is an error that says which slices, by how
much, and what to call; nothing is moved silently.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from manifoldnet import registry
from manifoldnet.geometry import (
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
from manifoldnet.names import find, known_names, name_pattern, owner_of
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
    "RimWarning",
    "Rule",
    "declare",
    "declare_all",
    "manifolds",
    "project_",
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
        declare_planned(module, factors_of(module, name), project, [(0, 1)])
        return
    owner, local = find(module, name)
    if manifold is None:
        raise TypeError(f"a manifold for {name} is missing, such as manifoldnet.Oblique()")
    if isinstance(manifold, PairFactor):
        raise TypeError(f"{name} is to be a factor without a partner: declare a Pair of names")
    declare_planned(module, [(name, owner, local, from_geoopt(manifold))], project)


def factors_of(module: nn.Module, pair: Pair) -> list[tuple[str, nn.Module, str, Manifold]]:
    """The declarations that a pair stands for, once the parameters fit together."""
    plan: list[tuple[str, nn.Module, str, Manifold]] = []
    tensors = []
    for name, factor in zip((pair.left, pair.right), pair.factors, strict=True):
        owner, local = find(module, name)
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
    owner, local = owner_of(module, name)
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
    declare_planned(model, plan, project)
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
            return ""  # for `declare_planned` to refuse
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


def is_pair_spec(description: object) -> bool:
    return isinstance(description, Mapping) and description.get("manifold") == "Pair"


def _matched(
    model: nn.Module, patterns: Mapping[str, Manifold | Spec]
) -> dict[str, tuple[str, Manifold]]:
    """The pattern and the manifold of each parameter that one of the patterns matches."""
    names = known_names(model)
    found: dict[str, tuple[str, Manifold]] = {}
    for pattern, given in patterns.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"a pattern is a string such as 'blocks.*.q.weight', not {pattern!r}; nothing was "
                "declared"
            )
        if isinstance(given, Pair) or is_pair_spec(given):
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


def declare_planned(
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
                values.append((x, projected(manifold, x, name)))
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


def projected(manifold: Manifold, x: Tensor, name: str) -> Tensor:
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
        trouble = trouble_of(name, manifold, parameter, tol)
        if trouble:
            troubles.append(trouble)
    if troubles:
        raise ValueError("\n".join(troubles))


def trouble_of(name: str, manifold: Manifold, x: Tensor, tol: float | None = None) -> str | None:
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
