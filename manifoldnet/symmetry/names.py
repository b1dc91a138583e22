"""What a reader calls slices and generators.

    describe_slices("hidden.weight", 0, [0, 1], ndim=2)   hidden.weight[rows 0,1]
    describe(exponents, shapes)                           …[rows 0,1] × s, head.weight[column 0] ÷ s

They are for people: no name is ever parsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from manifoldnet.symmetry.scaling import Slice

__all__ = ["describe", "describe_slices", "fraction"]


def describe(exponents: Mapping[Slice, float], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s`, in the order of the model."""
    order = {name: i for i, name in enumerate(shapes)}
    found: dict[tuple[int, str, int | None, float], list[int]] = {}
    for where, exponent in exponents.items():
        key = (order[where.parameter], where.parameter, where.dim, exponent)
        found.setdefault(key, []).append(where.index)
    words = []
    for _, name, dim, exponent in sorted(found, key=lambda k: (k[3] < 0, k[0], str(k[2]), -k[3])):
        indices = found[order[name], name, dim, exponent]
        shape = shapes[name]
        size = None if dim is None else shape[dim]
        label = describe_slices(name, dim, indices, len(shape), size)
        power = fraction(abs(exponent))
        words.append(
            f"{label} {'×' if exponent > 0 else '÷'} s" + ("" if power == 1 else f"^{power}")
        )
    return ", ".join(words)


def describe_slices(
    parameter: str, dim: int | None, indices: Sequence[int], ndim: int, size: int | None = None
) -> str:
    """What a reader calls some slices of a parameter: "hidden.weight[rows 0,1]".

    Args:
        parameter: its name.
        dim: the dimension that indexes them.
        indices: which; runs of three or more are shortened ("0–7").
        ndim: the order of the parameter, which decides between entries, rows and filters.
        size: how many slices there are; if these are all of them (and more than two), "all rows".
    """
    if dim is None:
        return parameter
    one, many = _kind(dim, ndim)
    if 2 < len(indices) == size:
        return f"{parameter}[all {many}]"
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    words = [f"{r[0]}–{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs]
    return f"{parameter}[{one if len(indices) == 1 else many} {','.join(words)}]"


def _kind(dim: int, ndim: int) -> tuple[str, str]:
    if ndim == 1:
        return "entry", "entries"
    if dim > 1:
        return f"slice of dim {dim}", f"slices of dim {dim}"
    if ndim == 2:
        return [("row", "rows"), ("column", "columns")][dim]
    return [("filter", "filters"), ("channel", "channels")][dim]


def fraction(exponent: float) -> Fraction:
    """An exponent as the small fraction that it stands for."""
    return Fraction(exponent).limit_denominator(1000)
