"""Names of the blocks of a linear group: "0, head 1: GL(3) on q/k", "shift of all logits".

Names are for people; they are never parsed. Layers are called by their parameters' paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from manifoldnet.symmetry.linear import LinearGenerator
from manifoldnet.symmetry.scaling import describe_slices

__all__ = ["name_block", "name_shift"]

# Local names of the maps of attention.
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
_PACKED = ("in_proj_weight", "in_proj_bias")
_PLURALS = {"scaling": "scalings", "other": "further generators"}


class _Factor(Protocol):
    """Rows or columns of a parameter that a block mixes."""

    @property
    def parameter(self) -> str:
        """Name of the parameter."""

    @property
    def dim(self) -> int:
        """0 for rows, 1 for columns."""

    @property
    def indices(self) -> tuple[int, ...]:
        """Their numbers."""


def name_block(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    kind: str,
    factors: Sequence[_Factor],
    dimension: int,
) -> tuple[str, str]:
    """Name of a block and the slices that it mixes, formatted.

    Args:
        model: for the types of layers in between.
        shapes: shapes of the parameters.
        kind: "GL(3)".
        factors: its representations.
        dimension: number of its generators.
    """
    sides: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for f in factors:
        sides[f.dim][_layer(f, shapes)] = None
    layers = list(dict.fromkeys([*sides[0], *sides[1]]))
    prefix = _common_path(layers)
    rows, columns = ([_short(layer, prefix) for layer in side] for side in sides)
    if kind.startswith(("scaling", "other")):
        title = _PLURALS[kind] if dimension > 1 else kind.replace("other", "further generator")
        title = f"{dimension} {title}" if dimension > 1 else title
    else:
        title = kind if dimension == 1 or not kind.startswith("O(2)") else f"{dimension} × {kind}"
    if rows and columns:
        place = f"between {'/'.join(rows)} and {'/'.join(columns)}"
        place += _in_between(model, list(sides[0]), list(sides[1]))
    else:
        place = f"on {'/'.join(rows or columns)}" + (" (columns)" if columns else "")
    head = _head(factors, shapes)
    where = ", ".join(part for part in (prefix, head) if part)
    slices: dict[tuple[str, int], set[int]] = {}
    for f in factors:
        slices.setdefault((f.parameter, f.dim), set()).update(f.indices)
    formatted = [
        describe_slices(
            name,
            dim if shapes[name] else None,
            sorted(indices),
            len(shapes[name]),
            shapes[name][dim] if shapes[name] else None,
        )
        for (name, dim), indices in slices.items()
    ]
    return (f"{where}: " if where else "") + f"{title} {place}", ", ".join(formatted)


def name_shift(model: nn.Module, generator: LinearGenerator, kind: str) -> tuple[str, str]:
    """Name of a block of shifts or translations, and the parameters that it moves.

    Args:
        model: for the order of its layers.
        generator: the first generator of the block.
        kind: "shift" or "translation".
    """
    parameters = generator.parameters
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))
    where = ", ".join(parameters)
    part = generator.translation if generator.is_translation else generator.left
    names = [n for n, p in model.named_parameters() if p.ndim > 1] or [*parameters]
    last = names[-1].rpartition(".")[0] or names[-1]
    if part and len(layers) == 1 and all(_same_rows(t) for t in part.values()):
        of = "all logits" if layers == [last] else f"all outputs of {layers[0]}"
        how = "by constants" if generator.is_translation else "by multiples of them"
        return f"shift of {of}, {how}", where
    if kind == "translation":
        return f"translation of {'/'.join(layers)}", where
    return f"maps of {'/'.join(layers)} into its translations", where


def _same_rows(t: Tensor) -> bool:
    """True if all slices along dim 0 are alike, and there are several."""
    if t.ndim == 0 or len(t) < 2:
        return False
    return bool(((t - t[:1]).abs() <= 1e-7 * t.abs().max()).all())


def _layer(factor: _Factor, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Path of the layer that a parameter belongs to; the third of a packed projection."""
    path, _, local = factor.parameter.rpartition(".")
    if local in _PACKED and factor.dim == 0:
        third = factor.indices[0] * 3 // shapes[factor.parameter][0]
        return ".".join(part for part in (path, ("query", "key", "value")[third]) if part)
    if local in ("weight", "bias"):
        return path or local
    return factor.parameter.removesuffix("_weight").removesuffix("_bias")


def _common_path(layers: Sequence[str]) -> str:
    """Longest common path of several layers, each of which has a name below it."""
    parts = [layer.split(".") for layer in layers]
    if len(parts) < 2:
        return ""
    common: list[str] = []
    for level in zip(*(p[:-1] for p in parts), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _short(layer: str, prefix: str) -> str:
    local = layer.removeprefix(f"{prefix}.") if prefix else layer
    stem = local.removesuffix("_proj").removesuffix("_weight")
    return _ATTENTION.get(stem, stem)


def _head(factors: Sequence[_Factor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The number of a head, where rows are consecutive parts of a query, key or value."""
    attention = [
        f
        for f in factors
        if f.dim == 0
        and _short(_layer(f, shapes), _layer(f, shapes).rpartition(".")[0])
        in ("query", "key", "value")
    ]
    if not attention or len(attention) < len([f for f in factors if f.dim == 0]):
        return ""
    first = attention[-1]
    size, start = len(first.indices), first.indices[0]
    rows = shapes[first.parameter][0]
    if first.parameter.rpartition(".")[2] in _PACKED:
        rows //= 3
    start %= rows
    consecutive = first.indices == tuple(range(first.indices[0], first.indices[0] + size))
    if size < 2 or size == rows or start % size or not consecutive:
        return ""
    return f"head {start // size}"


def _in_between(model: nn.Module, above: Sequence[str], below: Sequence[str]) -> str:
    """Types of the layers between two in the order of the model, " with RMSNorm"."""
    leaves = [(n, type(m).__name__) for n, m in model.named_modules() if not list(m.children())]
    names = [name for name, _ in leaves]
    if not set(above) | set(below) <= set(names):
        return ""
    start, end = max(map(names.index, above)), min(map(names.index, below))
    types = list(dict.fromkeys(kind for _, kind in leaves[start + 1 : end] if kind != "Identity"))
    return f" with {', '.join(types)}" if 0 < len(types) < 4 else ""
