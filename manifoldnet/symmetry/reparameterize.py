"""Reparameterization of a model: its weights moved by a group element, scaling or linear.

    scaled = reparameterize(model, element)          a new model w̃ = g·w
    reparameterize(scaled, element.inverse(), in_place=True)

If all factors are powers of two, the second line restores every bit (overflow and underflow are
errors); otherwise it restores each number up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from manifoldnet.registry import declared_parameters
from manifoldnet.symmetry.scaling import ScalingElement

__all__ = ["Element", "named_tensors", "reparameterize", "resolve", "scaled_tensors", "write"]


class Element(Protocol):
    """Group element that moves tensors by name: a scaling, or a linear map."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that it moves."""

    def apply(self, parameter: str, x: Tensor, /) -> Tensor:
        """g·x of one tensor."""

    def differential(self, parameter: str, u: Tensor, /) -> Tensor:
        """g·u of a tangent vector at x, which is one at g·x."""

    def gradient(self, parameter: str, g: Tensor, /) -> Tensor:
        """Gradient at g·x of an invariant loss with the gradient `g` at x."""

    def inverse(self) -> Self:
        """Inverse element."""

    def renamed(self, names: Mapping[str, str], /) -> Self:
        """Same element under other names."""


E = TypeVar("E", bound=Element)


def reparameterize(
    model: nn.Module, element: Element, *, in_place: bool = False, project: bool = False
) -> nn.Module:
    """Move the weights of a model by a group element.

    Running averages of batch normalization are buffers. They follow the weights if the element
    comes from `discover`, or from the group of one of the symmetry paper's networks; otherwise they
    belong to the old weights, and `torch.optim.swa_utils.update_bn` computes them anew.

    Args:
        model: any module. Tied weights are moved once, under any of their names.
        element: factors of parameters and floating-point buffers, or linear maps of parameters.
        in_place: change this model instead of a copy; gradients of moved weights are dropped.
        project: project moved weights onto their manifolds; buffers are not projected.

    Returns:
        The new model, or this one.

    Raises:
        ValueError: if the element names a tensor that the model does not have, or one twice; if a
            parameter has no shape or no values yet; if a number overflows or underflows; or if a
            declared weight leaves its manifold and `project` is not set. The model is unchanged
            then.
    """
    element = resolve(model, element)  # before anything is copied
    target = model if in_place else copy.deepcopy(model)
    scaled = scaled_tensors(target, element)
    declared = declared_parameters(target)
    for name, y in scaled.items():
        if name in declared:
            manifold = declared[name][1]
            if project:
                scaled[name] = manifold.projx(y, name=name)
                continue
            error = manifold.validate(y, name=name)
            if error:
                raise ValueError(
                    f"the element moves a declared weight off its manifold, which does not have "
                    f"this symmetry: {error}"
                )
    write(target, scaled)
    return target


@torch.no_grad()
def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a model's tensors, by name, and drop their gradients."""
    tensors = named_tensors(model)
    for name, value in values.items():
        tensors[name].copy_(value)
        tensors[name].grad = None


def scaled_tensors(model: nn.Module, element: Element) -> dict[str, Tensor]:
    """Scaled tensors g·w, by (first) name; the model is not changed.

    Raises:
        ValueError: as `reparameterize`, except for manifolds.
    """
    tensors = named_tensors(model)
    known = resolve(model, element)
    for name in known.parameters:
        if tensors[name].is_meta:
            raise ValueError(f"{name} has no values to scale: it is on the meta device")
    with torch.no_grad():
        if isinstance(known, ScalingElement):
            return known.move({name: tensor.detach() for name, tensor in tensors.items()})
        return {name: known.apply(name, tensors[name].detach()) for name in known.parameters}


def resolve(model: nn.Module, element: E) -> E:
    """Same element with each tensor of the model under its first name (weights may be tied).

    Raises:
        ValueError: if it names a tensor that the model does not have, or one twice.
    """
    tensors = named_tensors(model)
    every: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    every |= dict(model.named_buffers(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in tensors.items()}
    names: dict[str, str] = {}
    for name in element.parameters:
        if name not in every or id(every[name]) not in first:
            raise ValueError(
                f"the element moves {name!r}, which {type(model).__name__} does not have "
                f"(it has: {', '.join(tensors)}){_parametrized(model, name)}"
            )
        canonical = first[id(every[name])]
        other = next((n for n, c in names.items() if c == canonical), None)
        if other is not None:
            raise ValueError(f"{other} and {name} are one tensor: move it under one of its names")
        names[name] = canonical
    return element.renamed(names)


def _parametrized(model: nn.Module, name: str) -> str:
    """Hint for the message if the name is that of a parametrized tensor."""
    prefix, _, local = name.rpartition(".")
    owner = dict(model.named_modules()).get(prefix)
    if owner is None or not parametrize.is_parametrized(owner, local):
        return ""
    parts = ", ".join(f"{prefix}.{n}" if prefix else n for n, _ in owner.named_parameters())
    return f"; {local} is parametrized: move what it is computed from, one of {parts}"


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers of a model, each once.

    Raises:
        ValueError: if one has no shape yet.
    """
    found: dict[str, Tensor] = dict(model.named_parameters())
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            found[name] = buffer
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet (a lazy module): run the model once first")
    return found
