"""The cells of Table 2, their protocol, and the numbers that the paper prints.

A cell is a network, a depth, a weight update and a schedule; its runs differ in their seed. The
protocol is Section 4 of [badrinarayanan2015symmetry]; what the paper leaves open is a documented
field of `TrainConfig`, and stands here only where it is not the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES, SCHEDULES, TrainConfig
from manifoldnet.experiments.study import repeated

REPETITIONS = 10
DEPTHS = (2, 4)
PAPER_UPDATES = ("b-sgd", "sm", "un")

# The fields in which runs of one folder may differ: those of a cell, and the repetition.
AXES = ("architecture", "depth", "update", "schedule", "seed")

PROTOCOL = TrainConfig(
    dataset="mnist",
    features=64,
    lr=None,
    batch_size=100,
    epochs=60,
    min_epochs=25,
    train_size=50_000,
    validation_size=10_000,
    decay=0.95,
)
"""Section 4, in fields."""


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Attributes:
        architecture: ``"arch1"`` or ``"arch2"``.
        depth: hidden layers.
        update: a key of `UPDATES`.
        schedule: ``"exponential"`` or ``"bold-driver"``.
    """

    architecture: str
    depth: int
    update: str
    schedule: str

    @property
    def name(self) -> str:
        """The label of its runs: ``arch1-2-b-sgd-exponential``."""
        return "-".join(map(str, astuple(self)))


def _cells(updates: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(*each) for each in product(ARCHITECTURES, DEPTHS, updates, SCHEDULES))


TABLE2 = _cells(PAPER_UPDATES)
"""The 24 cells of the paper."""

GEODESIC = _cells(["sm-geodesic"])
"""Eight cells that the paper does not have: the scaled metric with its exact retraction."""

FIGURE3 = tuple(
    cell
    for cell in TABLE2
    if cell.depth == 4
    and (cell.architecture, cell.schedule) in (("arch1", "exponential"), ("arch2", "bold-driver"))
)
"""The six cells whose trajectories the paper draws."""


def named(patterns: Sequence[str], cells: Sequence[Cell] = TABLE2) -> list[Cell]:
    """The cells that have one of these names; shell patterns such as ``arch1-*`` are expanded."""
    found: set[Cell] = set()
    for pattern in patterns:
        known = [*cells, *(GEODESIC if "geodesic" in pattern else ())]
        fitting = {cell for cell in known if fnmatchcase(cell.name, pattern)}
        if not fitting:
            raise ConfigError(
                f"there is no cell {pattern!r} here: a name is "
                f"ARCHITECTURE-DEPTH-UPDATE-SCHEDULE, as in {cells[0].name}, with "
                "arch1 or arch2, 2 or 4, b-sgd, sm, sm-geodesic or un, exponential or bold-driver; "
                "patterns such as 'arch1-4-*' work"
            )
        found |= fitting
    return [cell for cell in (*cells, *GEODESIC) if cell in found]


def configurations(
    cells: Sequence[Cell], repetitions: int, protocol: TrainConfig = PROTOCOL
) -> list[TrainConfig]:
    """The runs of some cells, seed by seed: stopped early, all cells have as many runs."""
    if not cells:
        raise ConfigError("there are no cells to run")
    return repeated([replace(protocol, **vars(cell)) for cell in cells], repetitions)


class Published(NamedTuple):
    """Mean and standard deviation of the test error rate on MNIST over ten runs."""

    mean: float
    deviation: float


# A row per depth and schedule; columns are networks and updates, in the order of the paper.
_PRINTED = {
    (2, "exponential"): "0.0263 0.0079  0.0283 0.0062  0.0220 0.0057  "
    "0.0216 0.0038  0.0228 0.0051  0.0230 0.0036",
    (2, "bold-driver"): "0.0240 0.0026  0.0271 0.0076  0.0228 0.0038  "
    "0.0206 0.0024  0.0186 0.0024  0.0199 0.0046",
    (4, "exponential"): "0.0277 0.0045  0.0256 0.0038  0.0215 0.0049  "
    "0.0218 0.0028  0.0204 0.0050  0.0224 0.0065",
    (4, "bold-driver"): "0.0253 0.0060  0.0264 0.0056  0.0244 0.0101  "
    "0.0204 0.0027  0.0188 0.0033  0.0179 0.0025",
}


PUBLISHED: Mapping[Cell, Published] = MappingProxyType(
    {
        Cell(network, depth, update, schedule): Published(*map(float, numbers))
        for (depth, schedule), text in _PRINTED.items()
        for (network, update), *numbers in zip(
            product(ARCHITECTURES, PAPER_UPDATES), *[iter(text.split())] * 2, strict=True
        )
    }
)
"""The paper's Table 2, by cell."""
