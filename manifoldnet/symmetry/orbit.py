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
    """The non-trivial generators of a group, as index arrays.

    Slices are numbered through all axes. Where every generator that scales an axis scales all its
    slices alike, the axis is the whole tensor.

    Args:
        group: its generators that change weights; buffers have no part in sums.
        device: of the index arrays, and of the log-scales.

    Attributes:
        generators: in the order of the log-scales.
        families: in the order of their first generators.
        axes: the numbers of the slices of every axis.
        slices: the number of all slices.
        dims: by parameter, the dimensions that index slices; None for the whole tensor.
        shapes: by parameter.
        whose: generator of each entry of A.
        which: slice of each entry.
        exponents: the entries.
        largest: by generator, the largest magnitude of its entries.
        uneven: the entries of generators that have several magnitudes.
        overlap: by generator, the largest number of entries that meet in a number it scales.
    """

    def __init__(self, group: ScalingGroup, device: torch.device | None = None) -> None:
        by_form: dict[object, list[tuple[Generator, dict[tuple[Axis, float], list[int]]]]] = {}
        sizes: dict[Axis, int] = {}
        parts: set[Axis] = set()
        for generator in group.generators:
            if generator.trivial:
                continue
            slices: dict[tuple[Axis, float], list[int]] = {}
            for where, exponent in generator.exponents.items():
                if where.parameter not in group.buffers:
                    key = ((where.parameter, where.dim), exponent)
                    slices.setdefault(key, []).append(where.index)
            for (axis, _), indices in slices.items():
                name, dim = axis
                sizes[axis] = 1 if dim is None else group.shapes[name][dim]
                if len(indices) < sizes[axis]:
                    parts.add(axis)
            form = tuple(sorted(((k, len(i)) for k, i in slices.items()), key=repr))
            by_form.setdefault(form, []).append((generator, slices))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dims: dict[str, list[int | None]] = {}
        self.axes: dict[Axis, slice] = {}
        self.slices = 0
        for name, dim in sorted(sizes, key=lambda a: (a[0], -1 if a[1] is None else a[1])):
            kept = dim if (name, dim) in parts else None
            if (name, kept) not in self.axes:
                size = 1 if kept is None else sizes[name, dim]
                self.axes[name, kept] = slice(self.slices, self.slices + size)
                self.slices += size
                self.dims.setdefault(name, []).append(kept)
                self.shapes[name] = group.shapes[name]
        self.generators: list[Generator] = []
        self.families: list[Family] = []
        for members in by_form.values():
            scaled = []
            for axis, exponent in members[0][1]:
                if axis in parts:
                    index = torch.tensor([found[axis, exponent] for _, found in members])
                else:
                    axis = axis[0], None
                    index = torch.zeros(len(members), 1, dtype=torch.long)
                scaled.append(Scaled(axis, exponent, index.to(device)))
            start = len(self.generators)
            self.families.append(Family(start, len(members), tuple(scaled), _overlap(scaled)))
            self.generators += [generator for generator, _ in members]
        self._list_entries(device)
        self._count_overlaps()

    def _list_entries(self, device: torch.device | None) -> None:
        """A by its entries."""
        whose = [torch.zeros(0, dtype=torch.long, device=device)]
        which, exponents = whose.copy(), [torch.zeros(0, dtype=torch.float64, device=device)]
        for family in self.families:
            numbers = torch.arange(family.start, family.start + family.size, device=device)
            for axis, exponent, index in family.scaled:
                whose.append(numbers.unsqueeze(1).expand(index.shape).reshape(-1))
                which.append(index.reshape(-1) + self.axes[axis].start)
                exponents.append(exponents[0].new_full((index.numel(),), exponent))
        self.whose, self.which = torch.cat(whose), torch.cat(which)
        self.exponents = torch.cat(exponents)
        size = self.exponents.abs()
        self.largest = size.new_zeros(self.dimension).scatter_reduce(0, self.whose, size, "amax")
        smaller = self.whose[size < self.largest[self.whose]]
        self.uneven = torch.isin(self.whose, smaller).nonzero().reshape(-1)

    def _count_overlaps(self) -> None:
        """The largest number of slices that meet, by generator."""
        meeting = torch.bincount(self.which, minlength=self.slices)
        most = {axis: int(meeting[where].max()) for axis, where in self.axes.items()}
        for (name, dim), where in self.axes.items():
            meeting[where] += sum(most[name, other] for other in self.dims[name] if other != dim)
        self.overlap = torch.zeros(self.dimension, dtype=torch.long, device=self.which.device)
        self.overlap.scatter_reduce_(0, self.whose, meeting[self.which], "amax")

    @property
    def dimension(self) -> int:
        """Number of log-scales."""
        return len(self.generators)

    def logs(self, s: Tensor) -> Tensor:
        """As by slices: logarithms of their factors, for log-scales s."""
        found = s.new_zeros(self.slices)
        return found.index_add_(0, self.which, self.exponents * s[self.whose])

    def by_axis(self, values: Tensor) -> Logs:
        """Numbers of all slices by axis, in the same memory."""
        return {axis: values[where] for axis, where in self.axes.items()}

    def joined(self, values: Logs) -> Tensor:
        """Numbers of all slices, from those by axis."""
        return torch.cat([values[axis] for axis in self.axes])

    def add(self, logs: Logs, family: Family, s: Tensor) -> None:
        """Add to logarithms those of one family with log-scales s."""
        for axis, exponent, index in family.scaled:
            values = (exponent * s).unsqueeze(1).expand(index.shape).reshape(-1)
            logs[axis].index_add_(0, index.reshape(-1), values)

    def gather(self, sums: Tensor, power: int = 1) -> Tensor:
        """Aᵀ: sums over slices times exponents to a power, added up for each generator."""
        found = sums.new_zeros(self.dimension)
        return found.index_add_(0, self.whose, self.exponents**power * sums[self.which])

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
            ones = self.part(name, self.by_axis(w.new_ones(self.slices, dtype=torch.float64)))
            for dim in dims:
                counts[name, dim] = nonzero.sums(dim, ones) / prod(w.shape[1:])
        return self.gather(self.joined(counts))


def _overlap(scaled: list[Scaled]) -> int:
    """The largest number of slices that meet in one number of some parameter."""
    most: dict[str, int] = {}
    for axis in dict.fromkeys(each.axis for each in scaled):
        indices = torch.cat([each.slices.reshape(-1) for each in scaled if each.axis == axis])
        most[axis[0]] = most.get(axis[0], 0) + int(torch.bincount(indices).max())
    return max(most.values(), default=1)
