"""Families of generators as patterns over indices.

On every axis that a family scales,

    index = offset + Σ strideₐ · digitₐ,

with digits that number the generators (of all axes in common) and digits that run over the slices
of one generator. So an axis is a mixed-radix number: an attention head's pairs of rotated rows, for
example, are (pair, half, head), where `pair` and `head` number the generators. Another width is
another size of these digits, whose product is the size of the axis. Where sizes do not determine
them, there are several ways to write a family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manifoldnet.symmetry.scaling import Slice

__all__ = [
    "MEMBER",
    "NUMBER",
    "RUNNING",
    "Digit",
    "Exponents",
    "Pattern",
    "Shapes",
    "Site",
    "patterns",
    "size_of",
    "sized",
    "ways",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""

Exponents = dict[Slice, float]
"""Exponents of one generator."""

_Key = tuple[str, int | None, float]  # name, dimension and exponent of an axis
_Variable = tuple[str, int, int]  # name of an unknown count

NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
"""The number of a child module in a name."""

# Factorizations that are tried for one family.
_MOST_TRIES = 500

RUNNING = "running"
"""Kind of a digit that counts the generators of a family."""

MEMBER = "member"
"""Kind of a digit that counts the slices of one generator."""

_CONSTANT = "constant"


@dataclass(frozen=True)
class Digit:
    """A digit of an axis.

    Attributes:
        kind: what it numbers: the generators, the slices of one generator, or nothing.
        key: number of the digit among those of its kind; the value of a constant.
        count: of its values.
    """

    kind: str
    key: int
    count: int


@dataclass(frozen=True)
class Site:
    """Slices of one axis with one exponent, as a mixed-radix number, its lowest digit first."""

    name: str
    dim: int | None
    exponent: float
    digits: tuple[Digit, ...]

    def sized(self, sizes: Mapping[_Variable, int], at: int) -> Site:
        """Same digits with other counts; `at` is the position of the site in its family."""
        return replace(
            self,
            digits=tuple(
                d if d.kind == _CONSTANT else replace(d, count=sizes[_variable(d, at)])
                for d in self.digits
            ),
        )

    def indices(self, running: Sequence[int]) -> Tensor:
        """Indices of the slices, generators × slices.

        Args:
            running: counts of all running digits of the family, the lowest first.
        """
        shape = [*reversed(running)]
        members = [d for d in self.digits if d.kind == MEMBER]
        shape += [d.count for d in sorted(members, key=lambda d: -d.key)]
        total = torch.zeros(shape, dtype=torch.long)
        stride = 1
        for digit in self.digits:
            if digit.kind == _CONSTANT:
                total += stride * digit.key
            else:
                values = stride * torch.arange(digit.count)
                axis = (
                    len(running) - 1 - digit.key
                    if digit.kind == RUNNING
                    else len(shape) - 1 - digit.key
                )
                total += values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            stride *= digit.count
        return total.reshape(math.prod(running), -1)


@dataclass(frozen=True)
class Pattern:
    """Generators that differ in their indices only.

    Attributes:
        running: counts of the running digits, the lowest first; their product is the number of
            generators.
        sites: the scaled axes.
    """

    running: tuple[int, ...]
    sites: tuple[Site, ...]

    @property
    def count(self) -> int:
        """Number of generators."""
        return math.prod(self.running)

    def renamed(self, name: Callable[[str], str]) -> Pattern:
        """The same family of other tensors."""
        return replace(self, sites=tuple(replace(s, name=name(s.name)) for s in self.sites))

    def template(self, wide: Shapes) -> object:
        """Equal for families that are written alike."""
        return (
            self.running,
            tuple(
                (NUMBER.sub("#", s.name), s.dim, s.exponent, s.digits, size_of(wide, s))
                for s in self.sites
            ),
        )

    def exponents(self) -> list[Exponents]:
        """Exponents of every generator."""
        found: list[Exponents] = [{} for _ in range(self.count)]
        for site in self.sites:
            rows = site.indices(self.running).tolist()
            slices = {i: Slice(site.name, site.dim, i) for row in rows for i in row}
            for one, row in zip(found, rows, strict=True):
                for i in row:
                    one[slices[i]] = site.exponent
        return found

    def describe(self) -> str:
        """The tensors that increase and decrease."""
        names = {(s.exponent < 0, s.name): None for s in self.sites}
        up, down = ([n for low, n in names if low == sign] for sign in (False, True))
        return " and ".join(up) + (f" against {' and '.join(down)}" if down else "")


def _variable(digit: Digit, at: int) -> _Variable:
    """Name of an unknown count: running digits are common to all sites."""
    return (RUNNING, digit.key, 0) if digit.kind == RUNNING else (MEMBER, digit.key, at)


def size_of(shapes: Shapes, site: Site) -> int:
    """Number of slices along an axis; 0 if there is no such axis."""
    shape = shapes[site.name]
    if site.dim is None:
        return 1
    return shape[site.dim] if site.dim < len(shape) else 0


def patterns(
    generators: Sequence[Mapping[Slice, float]], shapes: Shapes, unreached: Iterable[Slice] = ()
) -> list[Pattern]:
    """Families of generators as patterns.

    Raises:
        ValueError: for generators that have no pattern.
    """
    order = {name: i for i, name in enumerate(shapes)}
    missed: dict[tuple[str, int | None], set[int]] = {}
    for where in unreached:
        missed.setdefault((where.parameter, where.dim), set()).add(where.index)
    grouped: dict[tuple[tuple[_Key, int], ...], list[dict[_Key, list[int]]]] = {}
    for exponents in generators:
        sites: dict[_Key, list[int]] = {}
        for where, a in exponents.items():
            sites.setdefault((where.parameter, where.dim, a), []).append(where.index)
        for (name, dim, _), found in sites.items():
            rest = missed.get((name, dim), set())
            if rest and dim is not None and rest.union(found) == set(range(shapes[name][dim])):
                found += rest.difference(found)
        keys = sorted(sites, key=lambda k: (order[k[0]], str(k[1]), -k[2]))
        indices = {key: sorted(sites[key]) for key in keys}
        kind = tuple((key, len(value)) for key, value in indices.items())
        grouped.setdefault(kind, []).append(indices)
    families = []
    for kind, members in grouped.items():
        family = _pattern(members, shapes)
        if family is None:
            names = ", ".join(dict.fromkeys(key[0] for key, _ in kind))
            raise ValueError(
                f"{len(members)} generators on {names} have no pattern in their indices that "
                "another width could follow. Discover a narrow copy of other widths: different "
                "ones for different axes, and at least two heads, groups and blocks of each kind"
            )
        families.append(family)
    return families


def _pattern(members: list[dict[_Key, list[int]]], shapes: Shapes) -> Pattern | None:
    """Pattern of some generators; None if there is none."""
    keys = list(members[0])
    for reference in keys:
        first = [member[reference][0] for member in members]
        if len(set(first)) < len(first):
            continue
        ordered = sorted(members, key=lambda member: member[reference])
        tables = [torch.tensor([member[key] for member in ordered]) for key in keys]
        running = _loops(torch.cat(tables, dim=1))
        if running is None:
            continue
        sites = []
        at = 0
        for key, table in zip(keys, tables, strict=True):
            steps = [step[at : at + table.shape[1]] for _, step in running]
            at += table.shape[1]
            if any(int(step.min()) != int(step.max()) for step in steps):
                break
            strides = [int(step[0]) for step in steps]
            digits = _digits(table, [c for c, _ in running], strides, key, shapes)
            if digits is None:
                break
            sites.append(Site(*key, digits))
        else:
            family = Pattern(tuple(c for c, _ in running), tuple(sites))
            made = [site.indices(family.running).sort(dim=1).values for site in sites]
            if all(torch.equal(a, b) for a, b in zip(made, tables, strict=True)):
                return family
    return None


def _loops(sequence: Tensor) -> list[tuple[int, Tensor]] | None:
    """Nested loops (count, step), the innermost first, that a sequence of vectors runs through."""
    loops = []
    while len(sequence) > 1:
        steps = sequence[1:] - sequence[:-1]
        other = (steps != steps[0]).any(dim=1).nonzero()
        count = int(other[0]) + 1 if len(other) else len(sequence)
        if len(sequence) % count:
            return None
        blocks = sequence.unflatten(0, (-1, count))
        expected = blocks[:, :1] + torch.arange(count)[:, None] * steps[0]
        if not torch.equal(blocks, expected):
            return None
        loops.append((count, steps[0]))
        sequence = blocks[:, 0]
    return loops


def _digits(
    table: Tensor,
    counts: list[int],
    strides: list[int],
    key: _Key,
    shapes: Shapes,
) -> tuple[Digit, ...] | None:
    """Digits of one axis; None if its indices are no mixed-radix number.

    Args:
        table: indices, generators × slices.
        counts: counts of the running digits.
        strides: their strides on this axis; 0 if the indices do not depend on them.
        key: name, dimension and exponent.
        shapes: of the tensors.
    """
    name, dim, _ = key
    size = 1 if dim is None else shapes[name][dim]
    members = _loops(table[0][:, None])
    if members is None:
        return None
    used = [
        (stride, Digit(RUNNING, q, count))
        for q, (count, stride) in enumerate(zip(counts, strides, strict=True))
        if stride
    ]
    used += [(int(step[0]), Digit(MEMBER, r, count)) for r, (count, step) in enumerate(members)]
    offset, reach = int(table[0, 0]), 1
    digits: list[Digit] = []
    for stride, digit in sorted([*used, (size, None)], key=lambda pair: pair[0]):
        if stride < 1 or stride % reach:
            return None
        if hidden := stride // reach - 1:
            digits.append(Digit(_CONSTANT, (offset // reach) % (hidden + 1), hidden + 1))
        if digit is not None:
            digits.append(digit)
            reach = stride * digit.count
    return tuple(digits)


# --- other widths --------------------------------------------------------------------------------


def sized(family: Pattern, sizes: Mapping[_Variable, int]) -> Pattern:
    """The same family with other counts of its digits."""
    return Pattern(
        tuple(sizes[RUNNING, q, 0] for q in range(len(family.running))),
        tuple(site.sized(sizes, at) for at, site in enumerate(family.sites)),
    )


def ways(family: Pattern, wide: Shapes) -> list[dict[_Variable, int]]:
    """Counts of all digits that fit the sizes of the axes, those with the most generators first."""
    equations: list[tuple[list[_Variable], int]] = []
    narrow: dict[_Variable, int] = {}
    for at, site in enumerate(family.sites):
        unknown = [_variable(d, at) for d in site.digits if d.kind != _CONSTANT]
        narrow |= {_variable(d, at): d.count for d in site.digits if d.kind != _CONSTANT}
        constant = math.prod(d.count for d in site.digits if d.kind == _CONSTANT)
        size, rest = divmod(size_of(wide, site), constant)
        if rest or size == 0:
            return []
        equations.append((unknown, size))
    found = []
    for sizes in _solutions(equations, {}):
        found.append(sizes)
        if len(found) >= _MOST_TRIES:
            break

    def rank(sizes: dict[_Variable, int]) -> tuple[int, int]:
        count = math.prod(v for (kind, _, _), v in sizes.items() if kind == RUNNING)
        return -count, sum(sizes[key] != value for key, value in narrow.items())

    found.sort(key=rank)
    if len(found) > 1:
        distinct: dict[object, dict[_Variable, int]] = {}
        for sizes in found:
            distinct.setdefault(_content(sized(family, sizes)), sizes)
        found = list(distinct.values())
    return found


def _solutions(
    equations: list[tuple[list[_Variable], int]],
    known: dict[_Variable, int],
) -> Iterator[dict[_Variable, int]]:
    """All whole numbers with given products."""
    open_: list[tuple[list[_Variable], int]] = []
    for unknown, size in equations:
        rest, remainder = divmod(size, math.prod(known[v] for v in unknown if v in known))
        left = [v for v in unknown if v not in known]
        if remainder or (not left and rest != 1):
            return
        if left:
            open_.append((left, rest))
    if not open_:
        yield dict(known)
        return
    left, rest = min(open_, key=lambda equation: len(equation[0]))
    choices = [rest] if len(left) == 1 else [d for d in range(1, rest + 1) if rest % d == 0]
    for value in choices:
        yield from _solutions(equations, known | {left[0]: value})


def _content(family: Pattern) -> object:
    """Equal for families of the same generators."""
    table = torch.cat([s.indices(family.running).sort(dim=1).values for s in family.sites], dim=1)
    rows = table.tolist()
    return tuple(sorted(map(tuple, rows)))
