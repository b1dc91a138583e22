"""Declaring a model by its symmetries: the scaled metric on whatever the group scales.

    mn.declare_all(model, symmetry.rule(group))

The metric ⟨u, v⟩/‖w‖² of each slice does not see how long the slice is, so an update that follows
it commutes with the group: with as much of it as one choice of slices per weight can cover.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import nn

from manifoldnet.geometry import Manifold, ScaledEuclidean
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.scaling import Slice

__all__ = ["Rule", "rule"]


def rule(group: ScalingGroup) -> Rule:
    """The rule for `declare_all` that gives a model the metric its symmetries ask for.

    Each weight whose slices a non-trivial generator scales gets `ScaledEuclidean` on them: `dim=0`
    if rows are scaled, `dim=1` if columns are, `dim=None` if only all of it together. A weight that
    is scaled both ways (rows of one layer against columns of the next) can be invariant under one
    of them only: the one that more generators use, rows if they are as many. Vectors (biases,
    scales and shifts of normalization) stay free, as a relative metric cannot cross zero. What is
    not covered is in `rule(group).uncovered`; `explain` measures it.

    Args:
        group: discovered, or a network's own.

    Raises:
        ValueError: if the group scales no weight of order two or more.
    """
    uses: dict[str, dict[int | None, int]] = {}
    real = [generator for generator in group.generators if not generator.trivial]
    for generator in real:
        for name, dim in {_how(generator, w, group) for w in generator.exponents}:
            if len(group.shapes[name]) > 1 and name not in group.buffers:
                uses.setdefault(name, {}).setdefault(dim, 0)
                uses[name][dim] += 1
    if not uses:
        raise ValueError(
            "the group scales no weight of order two or more: there is nothing to declare by it"
        )
    manifolds: dict[str, Manifold] = {}
    for name, counts in uses.items():
        # All rows together may be scaled under any of the metrics.
        partial = {dim: count for dim, count in counts.items() if dim is not None}
        dim = min(partial, key=lambda d: (-partial[d], d)) if partial else None
        manifolds[name] = ScaledEuclidean(dim)
    uncovered = tuple(g for g in real if not _covered(g, manifolds, group))
    return Rule(manifolds, uncovered)


@final
@dataclass(frozen=True)
class Rule:
    """What `rule` gives: a function for `declare_all`.

    Attributes:
        manifolds: by qualified parameter name.
        uncovered: the generators under which the declared model's metric is not invariant.
    """

    manifolds: dict[str, Manifold]
    uncovered: tuple[Generator, ...] = ()

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        """Where a parameter lives."""
        return self.manifolds.get(name)

    def validate(self, model: nn.Module) -> None:
        """Refuse a model that does not have these parameters."""
        there = dict(model.named_parameters(remove_duplicate=False))
        missing = [name for name in self.manifolds if name not in there]
        if missing:
            raise ValueError(
                f"the group is another model's: {type(model).__name__} has no {', '.join(missing)}"
            )


def _how(generator: Generator, where: Slice, group: ScalingGroup) -> tuple[str, int | None]:
    """How a generator scales the parameter of one slice: along a dimension, or as a whole."""
    name, dim = where.parameter, where.dim
    if dim is None:
        return name, None
    exponents = [
        generator.exponents.get(Slice(name, dim, i)) for i in range(group.shapes[name][dim])
    ]
    return name, None if len(set(exponents)) == 1 else dim


def _covered(generator: Generator, manifolds: dict[str, Manifold], group: ScalingGroup) -> bool:
    """Whether the metrics are invariant under a generator."""
    for where in generator.exponents:
        name, dim = _how(generator, where, group)
        if name in group.buffers:
            continue
        if len(group.shapes[name]) < 2 or (dim is not None and manifolds[name].slices.dim != dim):
            return False
    return True
