"""Accuracy in the moving frame as data: twelve cells, and the choice of their rates.

The networks and the protocol are those of [badrinarayanan2015symmetry], Section 4, with two hidden
layers and the exponential schedule. A cell is a network, an optimizer, and the coordinates that the
optimizer steps in:

    plain           the weights
    scaled-metric   declared on ScaledEuclidean (Table 1): RiemannianSGD, or a constrained AdamW
    moving-frame    the moving frame of the network's whole scaling group (`make_invariant`)

Every cell has a rate of its own. Steps in a frame do not shrink by themselves as weights grow, so
that the rate of another cell is no fair one.

`TABLE` has the cells of Table 2 once more, for AdamW and for Muon, with these coordinates in the
place of the paper's updates; their protocol, the choice of the rate included, is that of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, NamedTuple

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.papers.symmetry.cells import DEPTHS, PROTOCOL
from manifoldnet.experiments.papers.symmetry.config import (
    ARCHITECTURES,
    SCHEDULES,
    Epoch,
    Result,
    TrainConfig,
)
from manifoldnet.experiments.records import RunRecord, Schema
from manifoldnet.experiments.study import repeated

OPTIMIZERS = ("sgd", "adamw")
COORDINATES = ("plain", "scaled-metric", "moving-frame")

_FIRST = range(-7, -2)  # rates 10^(k/2), from 3.2e-4 to 3.2e-2
_WIDEST = range(-12, 3)


@dataclass(frozen=True, kw_only=True)
class FrameConfig(TrainConfig):
    """One run of a cell.

    Attributes:
        update: the coordinates.
        optimizer: ``"sgd"``, without momentum as in the paper, ``"adamw"``, or ``"muon"``: Muon for
            the hidden layers' matrices, with steps of AdamW's size, and AdamW for the rest.
        weight_decay: of AdamW and Muon, on the numbers that they step; declared weights have none.
        retraction: of declared weights: ``"additive"`` as in the paper, or ``"geodesic"``.
    """

    experiment: ClassVar[str] = "moving-frame"

    update: str = field("plain", choices=COORDINATES)
    optimizer: str = field("sgd", choices=(*OPTIMIZERS, "muon"))
    weight_decay: float = field(0.01, at_least=0)
    retraction: str = field("additive", choices=("additive", "geodesic"), later=True)

    @property
    def label(self) -> str:
        """Its cell: ``arch1-adamw-moving-frame``."""
        return f"{self.architecture}-{self.optimizer}-{self.update}"


class Cell(NamedTuple):
    """Settings of runs that differ in rate and seed only."""

    architecture: str
    optimizer: str
    update: str


CELLS = tuple(Cell(*each) for each in product(ARCHITECTURES, OPTIMIZERS, COORDINATES))

FRAME = Schema(FrameConfig, Epoch, Result)
FrameRecord = RunRecord[FrameConfig, Epoch, Result]


@dataclass(frozen=True, kw_only=True)
class RescaledConfig(FrameConfig):
    """One run from a rescaled start.

    Attributes:
        spread: largest |ln factor| of a generator in the element that moves the start; 0 leaves it.
    """

    experiment: ClassVar[str] = "rescaled-start"

    spread: float = field(0.0, at_least=0)


RESCALED = Schema(RescaledConfig, Epoch, Result)
RescaledRecord = RunRecord[RescaledConfig, Epoch, Result]

AnyRecord = RunRecord[Any, Epoch, Result]
"""A run of any kind."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(FrameConfig):
    """One run of a cell of Table 2 with another optimizer."""

    experiment: ClassVar[str] = "table2-optimizers"

    @property
    def label(self) -> str:
        """Its cell: ``arch1-2-adamw-moving-frame-exponential``."""
        return "-".join(map(str, table_cell_of(self)))


TABLE_SCHEMA = Schema(TableConfig, Epoch, Result)
TableRecord = RunRecord[TableConfig, Epoch, Result]


class TableCell(NamedTuple):
    """Settings of runs that differ in seed only."""

    architecture: str
    depth: int
    optimizer: str
    update: str
    schedule: str


TABLE = tuple(
    TableCell(*each)
    for each in product(ARCHITECTURES, DEPTHS, ("adamw", "muon"), COORDINATES, SCHEDULES)
)
"""24 cells of each optimizer."""

TABLE_PROTOCOL = TableConfig(
    **{
        **vars(PROTOCOL),
        "update": "plain",
        "lr_candidates": (0.1, *PROTOCOL.lr_candidates),
        "retraction": "geodesic",
    }
)
"""The protocol of Table 2. Rates have one more decade to choose from, as steps of AdamW and Muon
have other lengths. The retraction keeps norms, which additive steps of such lengths do not."""


def table_cell_of(config: TableConfig) -> TableCell:
    """The cell of a run."""
    return TableCell(*(getattr(config, name) for name in TableCell._fields))


def table_runs(cells: Sequence[TableCell], repetitions: int) -> list[TableConfig]:
    """The runs of some cells, seed by seed."""
    return repeated([replace(TABLE_PROTOCOL, **cell._asdict()) for cell in cells], repetitions)


def cell_of(config: FrameConfig) -> Cell:
    """The cell of a run."""
    return Cell(config.architecture, config.optimizer, config.update)


def protocol(epochs: int) -> FrameConfig:
    """Section 4 in fields, for so many epochs: the rate falls as far as in the paper's 60."""
    shared = {
        name: getattr(PROTOCOL, name)
        for name in ("dataset", "features", "batch_size", "train_size", "validation_size")
    }
    return FrameConfig(epochs=epochs, decay=0.95 ** (60 / epochs), depth=2, **shared)


def rate(k: int) -> float:
    """The rate 10^(k/2), to three digits."""
    return float(f"{10 ** (k / 2):.3g}")


def grid(exponents: Mapping[Cell, Sequence[int]], epochs: int, seeds: int) -> list[FrameConfig]:
    """Runs that choose rates: of each cell, the rates 10^(k/2) for some k."""
    return [
        replace(protocol(epochs), **cell._asdict(), lr=rate(k), seed=seed)
        for seed in range(seeds)
        for cell, own in exponents.items()
        for k in own
    ]


def first_grid() -> dict[Cell, list[int]]:
    """The exponents that every cell begins with."""
    return {cell: list(_FIRST) for cell in CELLS}


def validation_errors(records: Sequence[AnyRecord]) -> dict[Cell, dict[float, float]]:
    """Mean validation error by cell and rate; a diverged run counts as an error of 1."""
    found: dict[Cell, dict[float, list[float]]] = {}
    for record in records:
        if record.result is not None:
            bad = record.result.diverged
            own = found.setdefault(cell_of(record.config), {})
            own.setdefault(record.lr, []).append(1.0 if bad else record.result.validation_error)
    return {
        cell: {lr: sum(errors) / len(errors) for lr, errors in sorted(own.items())}
        for cell, own in found.items()
    }


def widened(
    exponents: Mapping[Cell, Sequence[int]], records: Sequence[FrameRecord]
) -> dict[Cell, list[int]]:
    """The exponents, with a neighbour where the best rate of a cell is at an edge of its grid."""
    errors = validation_errors(records)
    wider = {}
    for cell, own in exponents.items():
        best = min(own, key=lambda k: errors[cell][rate(k)])
        more = [k for k in (best - 1, best + 1) if k not in own and k in _WIDEST]
        wider[cell] = sorted([*own, *more])
    return wider


def comparison(
    rates: Mapping[Cell, Sequence[float]], epochs: int, repetitions: int
) -> list[FrameConfig]:
    """The runs of all cells at some rates, seed by seed."""
    return [
        replace(protocol(epochs), **cell._asdict(), lr=lr, seed=seed)
        for seed in range(repetitions)
        for cell, own in rates.items()
        for lr in own
    ]


def best_rates(records: Sequence[AnyRecord]) -> dict[Cell, float]:
    """The rate of lowest mean validation error, by cell."""
    errors = validation_errors(records)
    return {cell: min(own, key=own.__getitem__) for cell, own in errors.items()}


def lowered(
    rates: Mapping[Cell, Sequence[float]], records: Sequence[FrameRecord]
) -> dict[Cell, list[float]]:
    """The rates, with the next lower one where the best rate of a cell has diverged runs.

    The short runs of the choice may stand a rate that longer ones do not.
    """
    diverged = {
        (cell_of(record.config), record.lr)
        for record in records
        if record.result is not None and record.result.diverged
    }
    lower = {}
    for cell, lr in best_rates(records).items():
        own = list(rates[cell])
        k = round(2 * math.log10(lr)) - 1
        if (cell, lr) in diverged and k in _WIDEST and rate(k) not in own:
            own.append(rate(k))
        lower[cell] = own
    return lower
