"""Records of the parameters in an optimizer's groups, and of a step of them.

weight_of(p)    a record of a parameter: `Plain`, or `Declared` with its manifold
GroupWork       the parameters of a group that a step moves, and what repeats of it
PlainCall       a call of torch's function for undeclared ones
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldnet import registry
from manifoldnet.geometry import Euclidean, Manifold, PairFactor, from_spec
from manifoldnet.optim import backends, shards
from manifoldnet.optim.backends import Layout
from manifoldnet.optim.memory import Expected
from manifoldnet.optim.step import SliceGeometry, slice_geometry

__all__ = ["Declared", "GroupWork", "Plain", "PlainCall", "described", "spec_of", "weight_of"]


@dataclass(eq=False)
class Plain:
    """An undeclared parameter.

    Attributes:
        p: the parameter.
        want: the forms of its gradient and state, once they were asked for.
        copied: its gradient in the order of memory of the parameter, if that is a copy; for the
            time of a step.
    """

    p: Tensor
    want: Expected | None = None
    copied: Tensor | None = None

    @property
    def grad(self) -> Tensor:
        """The gradient as a step reads it."""
        grad = self.p.grad if self.copied is None else self.copied
        assert grad is not None  # no weight without one is stepped
        return grad

    @property
    def has_holes(self) -> bool:
        """True if its memory has holes."""
        return self.want is not None and self.want.plain and not self.want.dense


@dataclass(eq=False)
class Declared(Plain):
    """A declared weight.

    Attributes:
        manifold: where it lives.
        geometry: of its slices; None for manifolds that only the reference step knows.
        layout: how the kernel of its device reads it, if it is stepped by that.
        records: of its declaration. They outlive a model that is thrown away while it trains.
        partner: the other factor of a pair, with its manifold.
    """

    manifold: Manifold = field(kw_only=True)
    geometry: SliceGeometry | None = None
    layout: Layout | None = None
    records: tuple[registry.Declarations, ...] = ()
    partner: Tensor | None = None
    partner_factor: PairFactor | None = None

    @property
    def x(self) -> Tensor:
        """The weight as an ordinary tensor on the same memory."""
        return self.p if type(self.p) is torch.nn.Parameter else self.p.detach()


class PlainCall(NamedTuple):
    """One call of a functional optimizer of torch: `fused`, and its lists of tensors."""

    fused: bool | None
    params: list[Tensor]
    grads: list[Tensor]
    state: tuple[list[Any], ...]
    special: bool  # whether there is a sparse gradient (SGD) or a complex parameter (Adam)

    def pieces(self) -> tuple[list[Tensor], list[Tensor], tuple[list[Any], ...]]:
        """The tensors as torch's functions take them: no subclasses, and pieces of sharded ones."""
        if {type(p) for p in self.params} == {torch.nn.Parameter}:
            return self.params, self.grads, self.state
        params = [p if type(p) is torch.nn.Parameter else p.detach() for p in self.params]
        grads = [shards.local(g, like=p) for g, p in zip(self.grads, params, strict=True)]
        state = tuple([t if t is None else shards.local(t) for t in some] for some in self.state)
        return [shards.local(p) for p in params], grads, state


@dataclass(eq=False)
class GroupWork:
    """The parameters of a group that have a gradient.

    Attributes:
        group: the options.
        plain: undeclared ones.
        declared: declared weights.
        params: those of both, in this order.
        idle: parameters without a gradient.
        entries: of state that a step needs, in the order of torch's function; None for none.
        form: `fused` and `special` of the one call of torch's function, if there is only one.
        kernel: the step of all declared weights once more, if the kernel for processors takes it.
        columns: parameters, gradients and entries of state, plain ones first. They and their
            addresses are there while a step is taken that is like the last one.
        addresses: of these, for declared weights.
    """

    group: dict[str, Any]
    plain: list[Plain]
    declared: list[Declared]
    params: list[Tensor]
    idle: list[Tensor]
    entries: tuple[str | None, ...]
    form: tuple[bool | None, bool] | None = None
    kernel: backends.Repeated | None = None
    columns: list[list[Any]] = field(default_factory=list)
    addresses: list[list[int]] = field(default_factory=list)


def weight_of(p: Tensor) -> Plain:
    """The record of a parameter. Euclidean weights, declared or not, are plain.

    Raises:
        ValueError: for a parameter of torch's old FSDP that stands for declared weights.
    """
    registry.refuse_flat_parameter(p)
    manifold = registry.manifold_of(p)
    if manifold is None or isinstance(manifold, Euclidean):
        return Plain(p)
    records = tuple(declarations for declarations, _ in registry.records(p))
    weight = Declared(p, manifold=manifold, geometry=slice_geometry(manifold), records=records)
    if isinstance(manifold, PairFactor):
        weight.partner = registry.partner_of(p)
        other = None if weight.partner is None else registry.manifold_of(weight.partner)
        weight.partner_factor = other if isinstance(other, PairFactor) else None
    return weight


def spec_of(weight: Plain) -> Any:
    """The spec of a weight's manifold; None if it is not declared."""
    return weight.manifold.spec() if isinstance(weight, Declared) else None


def described(spec: Any) -> str:
    """A spec in messages: the manifold as it prints, or its name where there is none to print."""
    if spec is None:
        return "not declared"
    try:
        return f"declared on {from_spec(spec)}"
    except (TypeError, ValueError):
        return f"declared on {spec['manifold']} {spec['fields']}"
