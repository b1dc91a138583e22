"""Declaration rule of a scaling group: the scaled metric on the slices that it scales.

    mn.declare_all(model, symmetry.rule(group))

The metric ⟨u, v⟩/‖x‖² of each slice is invariant under scalings of the slice, so steps under it
commute with the group, as far as one choice of slices per weight allows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

from torch import nn

from manifoldnet.geometry import Manifold, ScaledEuclidean
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.scaling import Slice

__all__ = ["Rule", "rule"]


def rule(group: ScalingGroup) -> Rule:
    """Rule for `declare_all` that declares the scaled metric where a group scales weights.

    Each weight that a non-trivial generator scales gets `ScaledEuclidean`: with `dim=0` if rows are
    scaled, `dim=1` if columns are, `dim=None` if only the whole tensor is. The metric of a weight
    with scaled rows and scaled columns can be invariant under one of them only: those of more
    generators, or rows if these are equally many. Vectors (biases, scales and shifts of
    normalization) stay undeclared, as steps under a relative metric cannot cross zero.
    `rule(group).uncovered` holds the other generators; `explain` measures their effect.

    Args:
        group: the symmetries of the model.

    Raises:
        TypeError: if it is no `ScalingGroup`; a `LinearGroup` has one, `group.scalings`.
        ValueError: if the group scales no weight of order two or more.
    """
    if not isinstance(group, ScalingGroup):
        raise TypeError(
            f"a rule is that of a ScalingGroup, not of a {type(group).__name__}; the scalings of a "
            "linear group are group.scalings"
        )
    uses: dict[str, Counter[int | None]] = {}
    nontrivial = group.nontrivial.generators
    for generator in nontrivial:
        for name, dim in _scaled_dims(generator, group):
            if len(group.shapes[name]) > 1:
                uses.setdefault(name, Counter())[dim] += 1
    if not uses:
        raise ValueError(
            "the group scales no weight of order two or more: there is nothing to declare by it"
        )
    manifolds: dict[str, Manifold] = {}
    for name, counts in uses.items():
        # Each of the metrics is invariant under a scaling of the whole tensor.
        partial = [dim for dim in counts if dim is not None]
        manifolds[name] = ScaledEuclidean(min(partial, key=lambda d: (-counts[d], d), default=None))
    uncovered = tuple(g for g in nontrivial if not _covered(g, manifolds, group))
    return Rule(manifolds, uncovered)


@final
@dataclass(frozen=True)
class Rule:
    """Rule for `declare_all`, made by `rule`.

    Attributes:
        manifolds: manifolds by qualified parameter name.
        uncovered: non-trivial generators under which the declared metric is not invariant.
    """

    manifolds: dict[str, Manifold]
    uncovered: tuple[Generator, ...] = ()

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        """Manifold of a parameter; None if it stays undeclared."""
        return self.manifolds.get(name)

    def why(self, name: str, module: nn.Module, parameter: nn.Parameter) -> str:
        """Reason of the answer, for the report of `declare_all`."""
        if name in self.manifolds:
            return "scaled by the group"
        return "a vector" if parameter.ndim < 2 else "not scaled by the group"

    def validate(self, model: nn.Module) -> None:
        """Raise a ValueError if a model does not have these parameters."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        missing = [name for name in self.manifolds if name not in parameters]
        if missing:
            raise ValueError(
                f"the group is another model's: {type(model).__name__} has no {', '.join(missing)}"
            )


def _scaled_dims(generator: Generator, group: ScalingGroup) -> set[tuple[str, int | None]]:
    """Pairs (parameter, dim) that a generator scales, buffers aside.

    `dim` is None if all slices have one exponent, so that the whole tensor is scaled.
    """
    pairs = set()
    for name, dim in {(w.parameter, w.dim) for w in generator.exponents}:
        if name in group.buffers:
            continue
        size = 0 if dim is None else group.shapes[name][dim]
        exponents = {generator.exponents.get(Slice(name, dim, i)) for i in range(size)}
        pairs.add((name, dim if len(exponents) > 1 else None))
    return pairs


def _covered(generator: Generator, manifolds: dict[str, Manifold], group: ScalingGroup) -> bool:
    """True if the metrics are invariant under a generator."""
    return all(
        len(group.shapes[name]) > 1 and (dim is None or manifolds[name].slices.dim == dim)
        for name, dim in _scaled_dims(generator, group)
    )
