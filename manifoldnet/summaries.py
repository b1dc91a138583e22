"""A table of a model's weights: manifolds, violations, and the optimizers that step them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from manifoldnet.foreign import follows_declarations
from manifoldnet.geometry import Euclidean, Manifold, Slices, tolerance
from manifoldnet.geometry.settled import settle
from manifoldnet.names import name_pattern
from manifoldnet.registry import declared_parameters

__all__ = ["Summary", "WeightSummary", "summary"]

_FREE = "free"
_TITLES = ("weight", "shape", "manifold", "slices", "violation", "optimizer", "remarks")


class WeightSummary(NamedTuple):
    """One weight of a `Summary`.

    Attributes:
        shape: of the weight.
        manifold: it is declared on; None for a free weight.
        slices: number of the vectors that the manifold acts on; 0 for a free weight.
        violation: relative distance of the worst slice from the manifold; 0 for a free weight.
        optimizer: type of its optimizer and number of the group, as "AdamW, group 0"; empty if none
            was given, or none has it.
        remarks: reasons that it does not move, is off its manifold, or will leave it.
    """

    shape: tuple[int, ...]
    manifold: Manifold | None
    slices: int
    violation: float
    optimizer: str
    remarks: tuple[str, ...]


class Summary(dict[str, WeightSummary]):
    """Weights of a model by qualified name; printed, a table.

    Weights whose names differ only in numbers, and that agree in all else, share a row, such as
    `blocks.*.q.weight (12)`, with their largest violation.
    """

    def __str__(self) -> str:
        rows: dict[tuple[object, ...], list[str]] = {}
        for name, w in self.items():
            rows.setdefault((name_pattern(name), *w._replace(violation=0.0)), []).append(name)
        table = [_TITLES, *(self._row(names) for names in rows.values())]
        columns = [i for i in range(len(_TITLES)) if any(row[i] for row in table[1:])]
        widths = [max(len(row[i]) for row in table) for i in columns]
        right = {_TITLES.index("slices"), _TITLES.index("violation")}
        return "\n".join(
            "  ".join(
                row[i].rjust(width) if i in right else row[i].ljust(width)
                for i, width in zip(columns, widths, strict=True)
            ).rstrip()
            for row in table
        )

    __repr__ = __str__

    def _row(self, names: list[str]) -> tuple[str, ...]:
        """The columns of weights that agree."""
        w = self[names[0]]
        return (
            names[0] if len(names) == 1 else f"{name_pattern(names[0])} ({len(names)})",
            " × ".join(map(str, w.shape)),
            _FREE if w.manifold is None else str(w.manifold),
            str(w.slices) if w.slices else "",
            "" if w.manifold is None else f"{max(self[n].violation for n in names):.0e}",
            w.optimizer,
            "; ".join(w.remarks),
        )


@torch.no_grad()
def _of_slices(model: nn.Module) -> tuple[dict[str, int], dict[str, float]]:
    """The number of slices of each declared weight, and the largest violation among them."""
    counts, largest = {}, {}
    for name, (parameter, manifold) in declared_parameters(model).items():
        off = manifold.violation(parameter)
        counts[name] = off.numel()
        largest[name] = float(settle(Slices(None).largest(off)))
    return counts, largest


def summary(model: nn.Module, optimizers: Optimizer | Iterable[Optimizer] = ()) -> Summary:
    """Weights of a model, the manifolds they are declared on, and the optimizers that step them.

    Args:
        model: any module; a shared tensor appears once, under its first name.
        optimizers: one or several. With them, weights that none of them has are remarked on, and
            declared weights that one steps as if they were Euclidean.

    Returns:
        A dictionary that prints as a table.

    Raises:
        TypeError: for a model or optimizers of another type.
        RuntimeError: if a declared parameter is gone from its module.
    """
    if isinstance(optimizers, Optimizer):
        optimizers = (optimizers,)
    given = list(optimizers) if isinstance(optimizers, Iterable) else [optimizers]
    for each in given:
        if not isinstance(each, Optimizer):
            raise TypeError(
                "optimizers must be one torch.optim.Optimizer or several, not "
                f"{type(each).__name__}"
            )
    declared = {name: manifold for name, (_, manifold) in declared_parameters(model).items()}
    counts, distances = _of_slices(model)
    places: dict[int, list[tuple[Optimizer, int]]] = {}
    for each in given:
        for number, group in enumerate(each.param_groups):
            for p in group["params"]:
                places.setdefault(id(p), []).append((each, number))
    found = Summary()
    for name, p in model.named_parameters():
        manifold, distance = declared.get(name), distances.get(name, 0.0)
        stepped = places.get(id(p), [])
        remarks = []
        if not p.requires_grad:
            remarks.append("frozen")
        elif given and not stepped:
            remarks.append("in no optimizer")
        if len(stepped) > 1:
            remarks.append("stepped more than once")
        if is_lazy(p):
            remarks.append("of no shape before the first forward pass")
        if manifold is not None and not distance <= tolerance(p.dtype):
            remarks.append("off its manifold")
        if manifold is not None and not isinstance(manifold, Euclidean) and p.requires_grad:
            remarks += [
                f"{type(each).__name__} does not follow the manifold: constrain it"
                for each, _ in stepped
                if not follows_declarations(each)
            ]
        found[name] = WeightSummary(
            () if is_lazy(p) else tuple(p.shape),
            manifold,
            counts.get(name, 0),
            distance,
            "; ".join(f"{type(each).__name__}, group {number}" for each, number in stepped),
            tuple(dict.fromkeys(remarks)),
        )
    return found
