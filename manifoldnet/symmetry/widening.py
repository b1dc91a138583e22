"""Scaling groups of a wide or deep model, from those of a narrow copy.

Generators of one family are a pattern over indices. On every axis that the family scales,

    index = offset + Σ strideₐ · digitₐ,

with digits that number the generators (of all axes in common) and digits that run over the slices
of one generator. So an axis is a mixed-radix number: an attention head's pairs of rotated rows, for
example, are (pair, half, head), where `pair` and `head` number the generators. Another width is
another size of these digits, whose product is the size of the axis. Where sizes do not determine
them, all factorizations are tried, those with the most generators first, and the first one that
holds on the wide model is taken.

Another depth repeats blocks: a family of block i (or i and i + 1, or all of them) is written for
every block, those of the first and last block for these.

    narrow exponents -> families -> deepened families -> widened families, verified
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.batches import Batch, as_pair, cast
from manifoldnet.symmetry.losses import LossFunction, RepeatableLoss, evaluate, relative_change
from manifoldnet.symmetry.reparameterize import named_tensors
from manifoldnet.symmetry.scaling import Slice
from manifoldnet.symmetry.working_copy import working_copy, working_loss

__all__ = ["Structure", "Widened", "WrongPatternError", "widen"]

Structure = tuple[tuple[str, str], ...]
"""(name, class) of every module of a model."""

Shapes = Mapping[str, tuple[int, ...]]
Exponents = dict[Slice, float]

_Key = tuple[str, int | None, float]  # name, dimension and exponent of an axis
_Variable = tuple[str, int, int]  # name of an unknown count

# Largest |ln factor| of one generator in a verification.
_SPREAD = 1.0
# Largest relative change of the loss, by the type it is computed in.
_VERIFIED = {torch.float64: 1e-8, torch.float32: 1e-4}
# Numbers above which losses are computed in float32: three copies in float64 need 12 GiB.
_MOST_FLOAT64 = 500_000_000
# Repeated blocks of a narrow copy that tell the first, the last and the others apart.
_FEWEST_BLOCKS = 3
# Factorizations that are tried for one family.
_MOST_TRIES = 500
# Smallest relative change of the loss that shows that it depends on a family.
_RESPONSE = 1e-6
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


class WrongPatternError(Exception):
    """A family that is no symmetry of the wide model.

    Attributes:
        exponents: the first generator of the family.
        deviation: relative change of the loss under a finite element of it.
    """

    def __init__(self, message: str, exponents: Exponents, deviation: float) -> None:
        super().__init__(message)
        self.exponents, self.deviation = exponents, deviation


@dataclass(frozen=True)
class Widened:
    """Result of `widen`.

    Attributes:
        exponents: of the non-trivial generators, in the order of the model.
        matrices: names of the parameters that have a trivial generator.
        families: number of families.
        verified: largest relative change of the loss under a random element of any family.
        dtype: type that losses were computed in.
    """

    exponents: list[Exponents]
    matrices: list[str]
    families: int
    verified: float
    dtype: torch.dtype


def widen(
    generators: Sequence[Mapping[Slice, float]],
    matrices: Iterable[str],
    shapes: Shapes,
    structure: Structure,
    unreached: Iterable[Slice],
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: Batch,
    *,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Widened:
    """Generators of a model of another width or depth.

    Args:
        generators: exponents of the non-trivial generators of the narrow copy.
        matrices: its parameters with a trivial generator.
        shapes: shapes of its tensors.
        structure: its modules; without them, names of tensors tell repeated blocks.
        unreached: slices of the copy that no gradient reached. A generator of all other slices of
            an axis scales these, too.
        model: the wide model; it is not changed.
        loss_fn: `loss_fn(output, target)`, or None (`evaluate`).
        batch: one batch for the wide model.
        seed: decides the random elements and weights.
        on_progress: as in `discover`.

    Raises:
        ValueError: if the models are not of one architecture, a family is no pattern that can be
            written for the wide model, or the narrow copy does not determine it.
        WrongPatternError: if a family changes the loss, however it is written.
    """
    on_progress = on_progress or (lambda *_: None)
    wide = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    modules = tuple((name, type(m).__qualname__) for name, m in model.named_modules())
    families = _families(generators, shapes, unreached)
    families, counterpart = _deepen(families, dict(shapes), structure, wide, modules)
    _check_names(counterpart, shapes, wide)
    templates: dict[object, list[_Family]] = {}
    for family in families:
        templates.setdefault(family.template(wide), []).append(family)
    check = _Check(model, loss_fn, batch, seed)
    found: list[Exponents] = []
    worst = 0.0
    for i, members in enumerate(templates.values()):
        on_progress("widening", i, len(templates))
        for written, deviation in _written(members, wide, check):
            found += written.exponents()
            worst = max(worst, deviation)
    on_progress("widening", len(templates), len(templates))
    check.repeatable.check()
    _check_modules(counterpart, structure, modules)
    order = {name: i for i, name in enumerate(wide)}
    found.sort(key=lambda one: [(order[w.parameter], w.dim or 0, w.index) for w in one])
    own = set(matrices)
    return Widened(
        found,
        [name for name in wide if counterpart[name] in own],
        len(families),
        worst,
        check.dtype,
    )


# --- patterns ------------------------------------------------------------------------------------

# A digit of an axis: the running number `key` of the generators, the number `key` among the slices
# of one generator, or a constant.
_RUNNING, _MEMBER, _CONSTANT = "running", "member", "constant"


@dataclass(frozen=True)
class _Digit:
    kind: str
    key: int
    count: int


@dataclass(frozen=True)
class _Site:
    """Slices of one axis with one exponent, as a mixed-radix number, its lowest digit first.

    `key` of a constant digit is its value.
    """

    name: str
    dim: int | None
    exponent: float
    digits: tuple[_Digit, ...]

    def sized(self, sizes: Mapping[_Variable, int], at: int) -> _Site:
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
        members = [d for d in self.digits if d.kind == _MEMBER]
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
                    if digit.kind == _RUNNING
                    else len(shape) - 1 - digit.key
                )
                total += values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            stride *= digit.count
        return total.reshape(math.prod(running), -1)


@dataclass(frozen=True)
class _Family:
    """Generators that differ in their indices only.

    Attributes:
        running: counts of the running digits, the lowest first; their product is the number of
            generators.
        sites: the scaled axes.
    """

    running: tuple[int, ...]
    sites: tuple[_Site, ...]

    @property
    def count(self) -> int:
        return math.prod(self.running)

    def renamed(self, name: Callable[[str], str]) -> _Family:
        return replace(self, sites=tuple(replace(s, name=name(s.name)) for s in self.sites))

    def template(self, wide: Shapes) -> object:
        """Equal for families that are written alike."""
        return (
            self.running,
            tuple(
                (_NUMBER.sub("#", s.name), s.dim, s.exponent, s.digits, _size(wide, s))
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
        names = {(s.exponent < 0, s.name): None for s in self.sites}
        up, down = ([n for low, n in names if low == sign] for sign in (False, True))
        return " and ".join(up) + (f" against {' and '.join(down)}" if down else "")


def _variable(digit: _Digit, at: int) -> _Variable:
    """Name of an unknown count: running digits are common to all sites."""
    return (_RUNNING, digit.key, 0) if digit.kind == _RUNNING else (_MEMBER, digit.key, at)


def _size(shapes: Shapes, site: _Site) -> int:
    shape = shapes[site.name]
    if site.dim is None:
        return 1
    return shape[site.dim] if site.dim < len(shape) else 0


def _families(
    generators: Sequence[Mapping[Slice, float]], shapes: Shapes, unreached: Iterable[Slice] = ()
) -> list[_Family]:
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


def _pattern(members: list[dict[_Key, list[int]]], shapes: Shapes) -> _Family | None:
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
            sites.append(_Site(*key, digits))
        else:
            family = _Family(tuple(c for c, _ in running), tuple(sites))
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
) -> tuple[_Digit, ...] | None:
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
        (stride, _Digit(_RUNNING, q, count))
        for q, (count, stride) in enumerate(zip(counts, strides, strict=True))
        if stride
    ]
    used += [(int(step[0]), _Digit(_MEMBER, r, count)) for r, (count, step) in enumerate(members)]
    offset, reach = int(table[0, 0]), 1
    digits: list[_Digit] = []
    for stride, digit in sorted([*used, (size, None)], key=lambda pair: pair[0]):
        if stride < 1 or stride % reach:
            return None
        if hidden := stride // reach - 1:
            digits.append(_Digit(_CONSTANT, (offset // reach) % (hidden + 1), hidden + 1))
        if digit is not None:
            digits.append(digit)
            reach = stride * digit.count
    return tuple(digits)


# --- depth ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """Children of a module that repeat: `head`, then `period` children `few` or `many` times.

    Attributes:
        prefix: name of the module with a dot at its end; empty for the model itself.
        head: number of children before the repeated ones.
        period: children of one block.
        few: blocks of the narrow copy.
        many: blocks of the wide model.
    """

    prefix: str
    head: int
    period: int
    few: int
    many: int

    def split(self, name: str, blocks: int) -> tuple[int | None, int, str]:
        """Block, child within the block (or distance from the last block) and rest of a name.

        The block is None for a name outside of the stack, −1 in front of the blocks and `blocks`
        behind them.
        """
        local = name[len(self.prefix) :] if name.startswith(self.prefix) else ""
        number, _, rest = local.partition(".")
        if not number.isdigit():
            return None, 0, name
        child = int(number) - self.head
        if child < 0:
            return -1, child, rest
        if child >= blocks * self.period:
            return blocks, child - blocks * self.period, rest
        return child // self.period, child % self.period, rest

    def name(self, block: int, child: int, rest: str) -> str:
        number = self.head + block * self.period + child
        return f"{self.prefix}{number}" + (f".{rest}" if rest else "")

    def moved(self, name: str, before: int, block: int, after: int) -> str:
        """Name in another number of blocks: those of a block move to a given one.

        Args:
            name: a name among `before` blocks.
            before: number of blocks there.
            block: block that names of a block move to.
            after: number of blocks here.
        """
        where, child, rest = self.split(name, before)
        if where is None:
            return rest
        if where < 0:
            return self.name(0, child, rest)
        return self.name(after if where == before else block, child, rest)

    def narrow_block(self, block: int) -> int:
        """Block of the narrow copy that a block of the wide model corresponds to."""
        return 0 if block == 0 else self.few - 1 if block == self.many - 1 else 1


def _deepen(
    families: list[_Family],
    shapes: dict[str, tuple[int, ...]],
    structure: Structure,
    wide: Shapes,
    modules: Structure,
) -> tuple[list[_Family], dict[str, str]]:
    """Families of as many blocks as the wide model has.

    Returns:
        The families, and the name in the narrow copy of every tensor and module of the wide model.

    Raises:
        ValueError: if children do not repeat, or too few do in the narrow copy.
    """
    names = dict.fromkeys([*wide, *(name for name, _ in modules)])
    counterpart = {name: name for name in names}
    # By classes or, where a module was replaced (which verification shows), by tensors alone.
    few = [_kinds(shapes, structure), _kinds(shapes, ())]
    many = [_kinds(wide, modules if structure else ()), _kinds(wide, ())]
    for prefix in many[0]:
        lists = [
            (a[prefix], b[prefix])
            for a, b in zip(few, many, strict=True)
            if prefix in a.keys() & b.keys()
        ]
        if all(len(a) == len(b) for a, b in lists):
            continue
        stack = next(filter(None, (_stack(prefix, a, b) for a, b in lists)), None)
        if stack is None:
            raise ValueError(
                f"{prefix.rstrip('.') or 'the model'} has {len(lists[0][0])} numbered children in "
                f"the narrow copy and {len(lists[0][1])} in the model, which are not the same "
                "blocks repeated: narrow a copy of the same architecture"
            )
        for name in counterpart:
            block, _, _ = stack.split(name, stack.many)
            inside = block is not None and 0 <= block < stack.many
            target = stack.narrow_block(block) if inside and block is not None else 0
            if block is not None:
                counterpart[name] = stack.moved(name, stack.many, target, stack.few)
        families = _repeated(families, stack)
    return families, counterpart


def _kinds(shapes: Shapes, structure: Structure) -> dict[str, list[object]]:
    """By prefix, the kinds of its numbered children: classes and tensors inside."""
    found: dict[str, dict[int, set[tuple[str, str]]]] = {}
    entries = [(name, "") for name in shapes] + list(structure)
    for name, kind in entries:
        for match in _NUMBER.finditer(name):
            prefix, rest = name[: match.start()], _NUMBER.sub("#", name[match.end() :])
            children = found.setdefault(prefix, {})
            children.setdefault(int(match.group()), set()).add((rest, kind))
    return {
        prefix: [frozenset(children.get(i, ())) for i in range(max(children) + 1)]
        for prefix, children in found.items()
    }


def _stack(prefix: str, few: list[Any], many: list[Any]) -> _Stack | None:
    """Repeated children of a module; None if one list is not the other with more or fewer of them.

    Raises:
        ValueError: if there are too few to tell the first, the last and the others apart.
    """
    label = repr(prefix.rstrip(".") or "the model")
    for period in range(1, len(few) + 1):
        more, rest = divmod(len(many) - len(few), period)
        if rest:
            continue
        best: _Stack | None = None
        for head in range(len(few) - period + 1):
            unit = few[head : head + period]
            count = 1
            while few[head + count * period : head + (count + 1) * period] == unit:
                count += 1
            tail = few[head + count * period :]
            if count + more < 1 or few[:head] + unit * (count + more) + tail != many:
                continue
            if best is None or count > best.few:
                best = _Stack(prefix, head, period, count, count + more)
        if best is not None:
            if best.few < _FEWEST_BLOCKS or best.many < _FEWEST_BLOCKS:
                raise ValueError(
                    f"{label} has {best.few} repeated blocks in the narrow copy and {best.many} "
                    f"in the model: with fewer than {_FEWEST_BLOCKS} the first, the last and those "
                    "between are not told apart. Discover a narrow copy with at least "
                    f"{_FEWEST_BLOCKS}, or with as many as the model has"
                )
            return best
    return None


def _repeated(families: list[_Family], stack: _Stack) -> list[_Family]:
    """Families of `stack.many` blocks, from those of `stack.few`.

    Raises:
        ValueError: for families of some blocks only, neither the first, the last nor all between.
    """
    few, many = stack.few, stack.many
    result: list[_Family] = []
    windows: dict[object, dict[int, _Family]] = {}
    widths: dict[object, int] = {}
    for family in families:
        blocks = sorted(
            {
                b
                for s in family.sites
                if (b := stack.split(s.name, few)[0]) is not None and 0 <= b < few
            }
        )
        if not blocks:
            result.append(family.renamed(lambda name: stack.moved(name, few, 0, many)))
        elif len(blocks) == few:
            result.append(_all_blocks(family, stack))
        else:
            start, width = blocks[0], blocks[-1] - blocks[0] + 1
            relative = frozenset(
                (
                    None if b is None else (b - start if 0 <= b < few else b),
                    child,
                    rest,
                    site.dim,
                    site.exponent,
                    site.digits,
                )
                for site in family.sites
                for b, child, rest in [stack.split(site.name, few)]
            )
            signature = (relative, family.running)
            windows.setdefault(signature, {})[start] = family
            widths[signature] = width
    for key, starts in windows.items():
        last_few, last_many = few - widths[key], many - widths[key]
        between = [start for start in range(1, last_few) if start in starts]
        if between and len(between) != max(last_few - 1, 0):
            raise ValueError(
                f"{next(iter(starts.values())).describe()}: blocks {sorted(starts)} of {few} have "
                "such generators, and others have not. Discover a narrow copy of as many blocks as "
                "the model has"
            )
        # Where no start lies between, both ends stand for those of a deeper model.
        every = bool(between) or (last_few == 1 and len(starts) == 2)
        targets = {0: 0} if 0 in starts else {}
        if last_few in starts:
            targets[last_many] = last_few
        if every:
            targets |= dict.fromkeys(range(1, last_many), between[0] if between else 0)
        for target, start in sorted(targets.items()):
            result.append(starts[start].renamed(_shifted(stack, target - start)))
    return result


def _shifted(stack: _Stack, shift: int) -> Callable[[str], str]:
    def name(old: str) -> str:
        block, _, _ = stack.split(old, stack.few)
        inside = block is not None and 0 <= block < stack.few
        return stack.moved(old, stack.few, (block or 0) + shift if inside else 0, stack.many)

    return name


def _all_blocks(family: _Family, stack: _Stack) -> _Family:
    """Family that scales all blocks at once, of more blocks.

    Raises:
        ValueError: if the blocks between the first and the last are not scaled alike.
    """
    outside: list[_Site] = []
    blocks: list[list[_Site]] = [[] for _ in range(stack.few)]
    for site in family.sites:
        block, _, _ = stack.split(site.name, stack.few)
        if block is not None and 0 <= block < stack.few:
            blocks[block].append(site)
        else:
            outside.append(replace(site, name=stack.moved(site.name, stack.few, 0, stack.many)))

    def to(sites: list[_Site], block: int) -> list[_Site]:
        return [replace(s, name=stack.moved(s.name, stack.few, block, stack.many)) for s in sites]

    middle = to(blocks[1], 1)
    if any(to(block, 1) != middle for block in blocks[2:-1]):
        raise ValueError(
            f"{family.describe()}: the blocks between the first and the last are not scaled "
            "alike. Discover a narrow copy of as many blocks as the model has"
        )
    sites = outside + to(blocks[0], 0)
    for block in range(1, stack.many - 1):
        sites += to(blocks[1], block)
    return replace(family, sites=tuple(sites + to(blocks[-1], stack.many - 1)))


def _check_names(counterpart: Mapping[str, str], narrow: Shapes, wide: Shapes) -> None:
    """Raise a ValueError unless tensors correspond to each other, in the same orders."""
    for name, shape in wide.items():
        other = narrow.get(counterpart[name])
        if other is None:
            raise ValueError(
                f"the model has {name}, and the narrow copy has nothing that corresponds to it (it "
                f"has: {', '.join(narrow)}). Narrow a copy of the same architecture"
            )
        if len(other) != len(shape):
            raise ValueError(
                f"{name} has the shape {shape}, and {counterpart[name]} of the narrow copy "
                f"{other}: narrow a copy of the same architecture"
            )
    # Of a shallower model, not every block of the narrow copy is the counterpart.
    covered = {_NUMBER.sub("#", name) for name in counterpart.values()}
    missing = {name for name in narrow if _NUMBER.sub("#", name) not in covered}
    if missing:
        raise ValueError(
            f"the narrow copy has {', '.join(sorted(missing))}, and the model has nothing that "
            "corresponds to it. Narrow a copy of the same architecture"
        )


def _check_modules(counterpart: Mapping[str, str], structure: Structure, wide: Structure) -> None:
    """Raise a ValueError if a module is of another class than in the narrow copy."""
    known = dict(structure)
    for name, kind in wide if structure else ():
        other = known.get(counterpart[name])
        if other != kind:
            raise ValueError(
                f"the module {name!r} is a {kind}, and in the narrow copy "
                f"{'there is none' if other is None else f'a {other}'}: the group that was found "
                "there holds, but the model may have more symmetries. Narrow a copy of the same "
                "architecture"
            )


# --- width ---------------------------------------------------------------------------------------


def _written(
    members: list[_Family], wide: Shapes, check: _Check
) -> Iterator[tuple[_Family, float]]:
    """Families of one template, written for the wide model and verified.

    Raises:
        ValueError: if sizes do not fit, or a family of one generator could be divided.
        WrongPatternError: if a family holds in no way.
    """
    first = members[0]
    ways = _ways(first, wide)
    if not ways:
        raise ValueError(
            f"{first.describe()}: the sizes "
            + ", ".join(f"{s.name}[dim={s.dim}]={_size(wide, s)}" for s in first.sites)
            + " do not follow the pattern of the narrow copy. It may be too narrow (one head, one "
            "group, one head per key head: take at least two of each), or of another architecture"
        )
    # All families at once first: blocks of one architecture are written in one way.
    for sizes in ways:
        sized = [_sized(family, sizes) for family in members]
        deviation = check.deviation(sized)
        if deviation <= check.tolerance:
            if first.count == 1:
                _check_whole(sized, check)
            check.respond(sized)
            yield from ((family, deviation) for family in sized)
            return
    for family in members:
        least: tuple[float, _Family] | None = None
        for sizes in ways if len(members) > 1 else ways[:0]:
            sized_one = _sized(family, sizes)
            deviation = check.deviation([sized_one])
            if deviation <= check.tolerance:
                check.respond([sized_one])
                yield sized_one, deviation
                break
            if least is None or deviation < least[0]:
                least = deviation, sized_one
        else:
            if least is None:
                closest = _sized(family, ways[-1])
                least = check.deviation([closest]), closest
            raise WrongPatternError(
                f"the family of {least[1].count} generators on {family.describe()} does not hold "
                f"on the model: factors up to e change the loss by {least[0]:.2g} relative"
                + (f" ({len(ways)} ways to write it were tried)" if len(ways) > 1 else "")
                + ". The narrow copy is of another architecture (an activation, a normalization), "
                "or so narrow that it has symmetries of its own",
                least[1].exponents()[0],
                least[0],
            )


def _sized(family: _Family, sizes: Mapping[_Variable, int]) -> _Family:
    return _Family(
        tuple(sizes[_RUNNING, q, 0] for q in range(len(family.running))),
        tuple(site.sized(sizes, at) for at, site in enumerate(family.sites)),
    )


def _ways(family: _Family, wide: Shapes) -> list[dict[_Variable, int]]:
    """Counts of all digits that fit the sizes of the axes, those with the most generators first."""
    equations: list[tuple[list[_Variable], int]] = []
    narrow: dict[_Variable, int] = {}
    for at, site in enumerate(family.sites):
        unknown = [_variable(d, at) for d in site.digits if d.kind != _CONSTANT]
        narrow |= {_variable(d, at): d.count for d in site.digits if d.kind != _CONSTANT}
        constant = math.prod(d.count for d in site.digits if d.kind == _CONSTANT)
        size, rest = divmod(_size(wide, site), constant)
        if rest or size == 0:
            return []
        equations.append((unknown, size))
    found = []
    for sizes in _solutions(equations, {}):
        found.append(sizes)
        if len(found) >= _MOST_TRIES:
            break

    def rank(sizes: dict[_Variable, int]) -> tuple[int, int]:
        count = math.prod(v for (kind, _, _), v in sizes.items() if kind == _RUNNING)
        return -count, sum(sizes[key] != value for key, value in narrow.items())

    found.sort(key=rank)
    if len(found) > 1:
        distinct: dict[object, dict[_Variable, int]] = {}
        for sizes in found:
            distinct.setdefault(_content(_sized(family, sizes)), sizes)
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


def _content(family: _Family) -> object:
    """Equal for families of the same generators."""
    table = torch.cat([s.indices(family.running).sort(dim=1).values for s in family.sites], dim=1)
    rows = table.tolist()
    return tuple(sorted(map(tuple, rows)))


def _check_whole(families: list[_Family], check: _Check) -> None:
    """Raise a ValueError if families of one generator hold in parts, too.

    A narrow copy with one group of channels does not show that there may be several.
    """
    family = families[0]
    digits = [s.digits for s in family.sites if s.dim is not None and s.digits]
    if not digits or any(len(d) != 1 or d[0].kind != _MEMBER for d in digits):
        return
    common = math.gcd(*(d[0].count for d in digits))
    if common < 2:
        return
    parts = next(p for p in range(2, common + 1) if common % p == 0)
    for inner in (False, True):
        divided = []
        for family in families:
            sites = []
            for site in family.sites:
                if site.digits:
                    running = _Digit(_RUNNING, 0, parts)
                    rest = _Digit(_MEMBER, 0, site.digits[0].count // parts)
                    site = replace(site, digits=(running, rest) if inner else (rest, running))
                sites.append(site)
            divided.append(_Family((parts,), tuple(sites)))
        if check.deviation(divided) <= check.tolerance:
            raise ValueError(
                f"{family.describe()} scale as a whole in the narrow copy, and in {parts} parts or "
                "more in the model: it has several groups or heads there. Discover a narrow copy "
                "with at least two of each"
            )


class _Check:
    """Changes of a wide model's loss under families, at its own weights and at perturbed ones.

    Args:
        model: it is not changed.
        loss_fn: `loss_fn(output, target)`, or None.
        batch: one batch.
        seed: decides weights and elements.

    Attributes:
        dtype: type of the losses.
        tolerance: largest relative change of an invariant loss.
        repeatable: the loss of the batch, to be checked again at the end.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, batch: Batch, seed: int
    ) -> None:
        self.source = torch.Generator().manual_seed(seed)
        device = next(model.parameters()).device
        numbers = sum(p.numel() for p in model.parameters())

        def prepare(dtype: torch.dtype) -> None:
            self.dtype, self.tolerance = dtype, _VERIFIED[dtype]
            self.loss_fn = working_loss(loss_fn, dtype, device)
            self.batch = cast(as_pair(batch, loss_fn is None), dtype, device)
            self.model = working_copy(model, dtype, keep_eps=False)
            self.repeatable = RepeatableLoss(self.model, self.loss_fn, self.batch)

        try:
            prepare(torch.float64 if numbers <= _MOST_FLOAT64 else torch.float32)
        except RuntimeError:  # numbers of another type inside the model or the loss function
            prepare(torch.float32)
        own = {name: p.detach() for name, p in self.model.named_parameters()}
        self.weights = [own, {name: self._near(w) for name, w in own.items()}]
        self.losses = [self._loss(weights) for weights in self.weights]
        # A model in evaluation mode has its running averages in the loss; they scale, too.
        self.buffers = {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}

    def deviation(self, families: Iterable[_Family]) -> float:
        """Largest relative change of the loss under a random element of all families."""
        logs: dict[tuple[str, int | None], Tensor] = {}
        for family in families:
            largest = max(abs(site.exponent) for site in family.sites)
            scales = 2 * torch.rand(family.count, generator=self.source, dtype=torch.float64) - 1
            self._add(logs, family.sites, family.running, scales * (_SPREAD / largest))
        return max(self._changes(logs))

    def respond(self, families: list[_Family]) -> None:
        """Raise a ValueError if the loss does not depend on a family that scales up and down."""
        logs: dict[tuple[str, int | None], Tensor] = {}
        for family in families:
            up = [site for site in family.sites if site.exponent > 0]
            if len(up) in (0, len(family.sites)):
                return
            scales = torch.rand(family.count, generator=self.source, dtype=torch.float64)
            self._add(logs, up, family.running, 0.5 + scales)
        # One of several weights is enough; the loss may not be finite far from the symmetry.
        changes = self._changes(logs, stop=False)
        if max(changes) < _RESPONSE:
            raise ValueError(
                f"the loss hardly depends on {families[0].describe()} (it changes by "
                f"{max(changes):.1e} relative), so that nothing can be verified there: give a "
                "batch of more samples, or inputs of ordinary size"
            )

    def _add(
        self,
        logs: dict[tuple[str, int | None], Tensor],
        sites: Iterable[_Site],
        running: Sequence[int],
        scales: Tensor,
    ) -> None:
        for site in sites:
            tensor = self.weights[0].get(site.name, self.buffers.get(site.name))
            if tensor is None:  # a running average, which does not enter the loss
                continue
            size = 1 if site.dim is None else tensor.shape[site.dim]
            log = logs.setdefault((site.name, site.dim), torch.zeros(size, dtype=torch.float64))
            indices = site.indices(running)
            values = (site.exponent * scales)[:, None].expand(indices.shape)
            log.index_add_(0, indices.flatten(), values.flatten())

    def _changes(
        self, logs: Mapping[tuple[str, int | None], Tensor], stop: bool = True
    ) -> list[float]:
        """Relative changes of the loss, by weights; up to the first one that is too large."""
        factors: dict[str, Tensor] = {}
        for (name, dim), log in logs.items():
            tensor = self.weights[0].get(name, self.buffers.get(name))
            assert tensor is not None
            shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
            factors[name] = factors.get(name, 0.0) + log.reshape(shape)
        changes = []
        for weights, before in zip(self.weights, self.losses, strict=True):
            every = self.buffers | weights
            scaled = {
                name: every[name] * factor.exp().to(every[name]) for name, factor in factors.items()
            }
            try:
                after = self._loss(weights | scaled)
            except ValueError:
                changes.append(math.inf)
            else:
                changes.append(relative_change(before, after))
            if stop and changes[-1] > self.tolerance:
                break
        return changes

    def _loss(self, weights: Mapping[str, Tensor]) -> float:
        return evaluate(self.model, self.loss_fn, self.batch, weights)

    def _near(self, w: Tensor) -> Tensor:
        """Weights of the same size, none of them zero."""
        size = float(w.square().mean().sqrt()) if w.numel() else 0.0
        jitter, fresh = (
            torch.randn(w.shape, generator=self.source, dtype=w.dtype).to(w.device)
            for _ in range(2)
        )
        return w * (0.3 * jitter).exp() + 0.3 * (size or 1.0) * fresh
