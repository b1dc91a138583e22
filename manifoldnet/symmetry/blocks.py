"""Families of generators of a model with more, or fewer, repeated blocks.

A family of block i (or i and i + 1, or all of them) is written for every block, those of the first
and last block for these. Blocks are numbered children of a module that have the same classes and
tensors inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from manifoldnet.symmetry.patterns import NUMBER, Pattern, Shapes, Site

__all__ = ["Structure", "check_modules", "check_names", "deepen"]

Structure = tuple[tuple[str, str], ...]
"""(name, class) of every module of a model."""

# Repeated blocks of a narrow copy that tell the first, the last and the others apart.
_FEWEST_BLOCKS = 3


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


def deepen(
    families: list[Pattern],
    shapes: dict[str, tuple[int, ...]],
    structure: Structure,
    wide: Shapes,
    modules: Structure,
) -> tuple[list[Pattern], dict[str, str]]:
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
        for match in NUMBER.finditer(name):
            prefix, rest = name[: match.start()], NUMBER.sub("#", name[match.end() :])
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


def _repeated(families: list[Pattern], stack: _Stack) -> list[Pattern]:
    """Families of `stack.many` blocks, from those of `stack.few`.

    Raises:
        ValueError: for families of some blocks only, neither the first, the last nor all between.
    """
    few, many = stack.few, stack.many
    result: list[Pattern] = []
    windows: dict[object, dict[int, Pattern]] = {}
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


def _all_blocks(family: Pattern, stack: _Stack) -> Pattern:
    """Family that scales all blocks at once, of more blocks.

    Raises:
        ValueError: if the blocks between the first and the last are not scaled alike.
    """
    outside: list[Site] = []
    blocks: list[list[Site]] = [[] for _ in range(stack.few)]
    for site in family.sites:
        block, _, _ = stack.split(site.name, stack.few)
        if block is not None and 0 <= block < stack.few:
            blocks[block].append(site)
        else:
            outside.append(replace(site, name=stack.moved(site.name, stack.few, 0, stack.many)))

    def to(sites: list[Site], block: int) -> list[Site]:
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


def check_names(counterpart: Mapping[str, str], narrow: Shapes, wide: Shapes) -> None:
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
    covered = {NUMBER.sub("#", name) for name in counterpart.values()}
    missing = {name for name in narrow if NUMBER.sub("#", name) not in covered}
    if missing:
        raise ValueError(
            f"the narrow copy has {', '.join(sorted(missing))}, and the model has nothing that "
            "corresponds to it. Narrow a copy of the same architecture"
        )


def check_modules(counterpart: Mapping[str, str], structure: Structure, wide: Structure) -> None:
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
