"""Check that a group is one of a model, as the model is now.

A model may change after its group was discovered: layers are replaced, added or pruned. The group's
scalings then change the loss, and nothing in the weights shows it.
"""

from __future__ import annotations

from torch import nn

from manifoldnet.declarations import manifolds
from manifoldnet.symmetry.group import ScalingGroup
from manifoldnet.symmetry.orbit import Orbit
from manifoldnet.symmetry.reparameterize import named_tensors

__all__ = ["check_model", "check_undeclared"]


def check_model(model: nn.Module, group: ScalingGroup) -> None:
    """Raise a ValueError unless a group fits a model.

    Args:
        model: it is not changed.
        group: its tensors must be those of the model, in the same shapes. If it was made by
            `ScalingGroup.of` (as by `discover`), modules must be of the same classes, too.

    Raises:
        TypeError: for what is no model, or no group of scalings.
        ValueError: for a tensor that the model lacks or has in another shape, a pruned weight, or
            a module that was replaced, added or removed since.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(group, ScalingGroup):
        raise TypeError(
            f"group must be a ScalingGroup, as discover(...) gives it, not {type(group).__name__}: "
            "balanced weights and moving frames are those of scalings"
        )
    lacking = _lacking(model, group) or _replaced(model, group)
    if lacking:
        raise ValueError(f"the group is not one of this {type(model).__name__}: {lacking}")


def check_undeclared(model: nn.Module, orbit: Orbit) -> None:
    """Raise a ValueError for declared weights that the group scales."""
    declared = manifolds(model)
    for generator in orbit.generators:
        for where in generator.exponents:
            if where.parameter in declared:
                raise ValueError(
                    f"{where.parameter} is declared on {declared[where.parameter]}, and "
                    f"{generator.name} scales it: a weight has its manifold's frame or the moving "
                    "one. Undeclare it, or leave such generators out: group.subgroup([g for g in "
                    "group.generators if all(w.parameter != "
                    f"{where.parameter!r} for w in g.exponents)])"
                )


def _lacking(model: nn.Module, group: ScalingGroup) -> str:
    """First tensor that the model does not have as the group scales it; empty if there is none."""
    tensors = named_tensors(model)
    names = dict(model.named_parameters(remove_duplicate=False))
    scaled = {where.parameter for generator in group.generators for where in generator.exponents}
    for name in (n for n in group.shapes if n in scaled):
        shape = group.shapes[name]
        found = tensors[name] if name in tensors else names.get(name)
        if found is not None:
            if tuple(found.shape) != shape:
                return (
                    f"{name} has the shape {tuple(found.shape)}, and {shape} in the group. For "
                    "another width or depth use group.widen"
                )
        elif f"{name}_orig" in tensors:
            return (
                f"{name} is pruned: it is computed from {name}_orig and a mask. Make that "
                "permanent (torch.nn.utils.prune.remove), or discover the group of the pruned model"
            )
        else:
            return f"there is no {name} (there are: {', '.join(tensors)})"
    return ""


def _replaced(model: nn.Module, group: ScalingGroup) -> str:
    """First module that is another one; empty if there is none or the structure is unknown."""
    if not group.structure:
        return ""
    known = dict(group.structure)
    modules = {name: type(module).__qualname__ for name, module in model.named_modules()}
    for name, kind in known.items():
        label = f"its module {name!r}" if name else "it"
        if name not in modules:
            return f"{label} ({kind}) is gone. Discover the group of the model as it is now"
        if modules[name] != kind:
            return (
                f"{label} was a {kind}, and is a {modules[name]}. Discover the group of the "
                "model as it is now"
            )
    added = [f"{name!r} ({kind})" for name, kind in modules.items() if name not in known]
    if added:
        return (
            f"its modules {', '.join(added)} have been added. Discover the group of the model as "
            "it is now"
        )
    return ""
