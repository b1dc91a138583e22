"""The orbit of a model's weights under a scaling group, as log-scales and sums over slices.

    e^{As} w      number e of the weights times e^{(As)_e}, for log-scales s of the generators
    f(s) = (1/p) Σ_e |w_e|^p e^{p(As)_e} − ⟨c, s⟩

A has a row for each number and is never formed: (As)_e is the sum of the logarithms of the slices
that contain e, and Aᵀ sums over slices and then over the slices of a generator. Generators of one
family differ in indices only, so that a family is a few index arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, final

import torch
from torch import Tensor

from manifoldnet.symmetry.group import Generator, ScalingGroup

__all__ = ["Axis", "Family", "Orbit", "Powers"]

Axis = tuple[str, int | None]
"""A parameter and the dimension that indexes its slices."""

Logs = dict[Axis, Tensor]
"""A number for each slice of each axis, such as the logarithm of its factor."""


class Scaled(NamedTuple):
    """The slices of one axis that a family scales with one exponent.

    Attributes:
        axis: parameter and dimension.
        exponent: of all these slices.
        slices: their numbers, (generators, slices of each).
    """

    axis: Axis
    exponent: float
    slices: Tensor


@final
@dataclass(frozen=True)
class Family:
    """Generators that differ in the indices of their slices only.

    Attributes:
        start: position of the first generator.
        size: number of generators.
        scaled: their slices.
        overlap: the largest number of slices of the family that meet in one number.
    """

    start: int
    size: int
    scaled: tuple[Scaled, ...]
    overlap: int


@final
class Powers:
    """E = |w|^p of one parameter, summed over the dimensions that index no slices.

    Sums are of e^{p As} E, for logarithms of factors in addition to those that w has already.

    Args:
        w: the parameter.
        dims: the dimensions that index slices; None among them for the whole tensor.
        p: the power.
    """

    def __init__(self, w: Tensor, dims: Sequence[int | None], p: float = 2.0) -> None:
        self.dims, self.p = tuple(dims), p
        self._indexed = [dim for dim in dims if dim is not None]
        x = w.square() if p == 2 else w.abs().pow(p)
        rest = [d for d in range(x.ndim) if d not in self._indexed]
        self.values = x.sum(rest) if rest else x

    def weights(self, logs: Mapping[int | None, Tensor]) -> dict[int | None, Tensor]:
        """e^{p As}, by dimension, of logarithms by dimension, in the type of the sums."""
        return {dim: (self.p * log).exp().to(self.values) for dim, log in logs.items()}

    def sums(self, dim: int | None, weights: Mapping[int | None, Tensor]) -> Tensor:
        """Sums over the slices along one dimension, each number weighted along all of them."""
        x = self.values
        for position in reversed(range(len(self._indexed))):
            other = self._indexed[position]
            if other != dim:
                x = torch.tensordot(x, weights[other], ([position], [0]))
        if None in self.dims and dim is not None:
            x = x * weights[None]
        return x.reshape(-1) * weights[dim]

    def along(
        self, dim: int | None, weights: Mapping[int | None, Tensor], u: Mapping[int | None, Tensor]
    ) -> Tensor:
        """Sums over the slices along one dimension of weighted numbers times Au."""
        total = self.sums(dim, weights) * u[dim]
        for other in self.dims:
            if other != dim:
                total = total + self.sums(dim, {**weights, other: weights[other] * u[other]})
        return total


@final
class Orbit:
    """The families of a group's non-trivial generators, as index arrays.

    Args:
        group: its generators that change weights; buffers have no part in sums.

    Attributes:
        generators: in the order of the log-scales.
        families: in the order of their first generators.
        axes: the sizes of all axes.
    """

    def __init__(self, group: ScalingGroup) -> None:
        by_form: dict[object, list[tuple[Generator, dict[tuple[Axis, float], list[int]]]]] = {}
        for generator in group.generators:
            if generator.trivial:
                continue
            slices: dict[tuple[Axis, float], list[int]] = {}
            for where, exponent in generator.exponents.items():
                if where.parameter not in group.buffers:
                    key = ((where.parameter, where.dim), exponent)
                    slices.setdefault(key, []).append(where.index)
            form = tuple(sorted(((k, len(i)) for k, i in slices.items()), key=repr))
            by_form.setdefault(form, []).append((generator, slices))
        self.generators: list[Generator] = []
        self.families: list[Family] = []
        self.axes: dict[Axis, int] = {}
        for members in by_form.values():
            scaled = []
            for axis, exponent in members[0][1]:
                index = torch.tensor([slices[axis, exponent] for _, slices in members])
                scaled.append(Scaled(axis, exponent, index))
                name, dim = axis
                self.axes[axis] = 1 if dim is None else group.shapes[name][dim]
            start = len(self.generators)
            overlap = _overlap(scaled, self.axes)
            self.families.append(Family(start, len(members), tuple(scaled), overlap))
            self.generators += [generator for generator, _ in members]
        self.dims: dict[str, list[int | None]] = {}
        for name, dim in sorted(self.axes, key=lambda a: (a[0], -1 if a[1] is None else a[1])):
            self.dims.setdefault(name, []).append(dim)
        self.shapes = {name: group.shapes[name] for name in self.dims}

    @property
    def dimension(self) -> int:
        """Number of log-scales."""
        return len(self.generators)

    def logs(self, s: Tensor) -> Logs:
        """Logarithms of the factors of all slices, for log-scales s."""
        found = {axis: s.new_zeros(size) for axis, size in self.axes.items()}
        for family in self.families:
            self.add(found, family, s[family.start : family.start + family.size])
        return found

    def add(self, logs: Logs, family: Family, s: Tensor) -> None:
        """Add to logarithms those of one family with log-scales s."""
        for axis, exponent, index in family.scaled:
            values = (exponent * s).unsqueeze(1).expand(index.shape).reshape(-1)
            logs[axis].index_add_(0, index.reshape(-1).to(s.device), values.to(logs[axis]))

    def gather(self, sums: Logs, power: int = 1) -> Tensor:
        """Aᵀ: sums over slices times exponents to a power, added up for each generator."""
        like = next(iter(sums.values()))
        found = like.new_zeros(self.dimension)
        for family in self.families:
            part = found[family.start : family.start + family.size]
            for axis, exponent, index in family.scaled:
                part += exponent**power * sums[axis][index.to(like.device)].sum(1)
        return found

    def log_factors(self, name: str, logs: Logs) -> Tensor:
        """As of one parameter, broadcast against it."""
        ndim = len(self.shapes[name])
        total = torch.zeros((), dtype=torch.float64)
        for dim in self.dims[name]:
            log = logs[name, dim]
            total = total.to(log) + log.reshape([-1 if d == dim else 1 for d in range(ndim)])
        return total

    def part(self, name: str, logs: Logs) -> dict[int | None, Tensor]:
        """The logarithms of one parameter, by dimension."""
        return {dim: logs[name, dim] for dim in self.dims[name]}

    def targets(self, weights: Mapping[str, Tensor]) -> Tensor:
        """c = Aᵀτ, where τ is 1 over the size of a row for numbers that are not zero.

        With τ = 0 on zeros, and there only, f is bounded from below in every direction.
        """
        counts: Logs = {}
        for name, dims in self.dims.items():
            w = weights[name]
            nonzero = Powers((w != 0).double(), dims)
            ones = {dim: w.new_ones(self.axes[name, dim], dtype=torch.float64) for dim in dims}
            for dim in dims:
                counts[name, dim] = nonzero.sums(dim, ones) / prod(w.shape[1:])
        return self.gather(counts)


def _overlap(scaled: list[Scaled], sizes: Mapping[Axis, int]) -> int:
    """The largest number of slices that meet in one number of some parameter."""
    most: dict[str, int] = {}
    for axis in dict.fromkeys(each.axis for each in scaled):
        indices = torch.cat([each.slices.reshape(-1) for each in scaled if each.axis == axis])
        count = int(torch.bincount(indices, minlength=sizes[axis]).max())
        most[axis[0]] = most.get(axis[0], 0) + count
    return max(most.values(), default=1)
