"""The numbers that the paper prints, as data.

Table 2 of [badrinarayanan2015symmetry]: mean and standard deviation of the test error rate on MNIST
over ten runs, by cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from manifoldnet.experiments.papers.symmetry.cells import Cell


class Published(NamedTuple):
    """What the paper gives for a cell."""

    mean: float
    deviation: float


# One row per depth and schedule, in the paper's order of columns.
_COLUMNS = [(network, update) for network in ("arch1", "arch2") for update in ("b-sgd", "sm", "un")]
_ROWS = {
    (2, "exponential"): "0.0263 0.0079  0.0283 0.0062  0.0220 0.0057  "
    "0.0216 0.0038  0.0228 0.0051  0.0230 0.0036",
    (2, "bold-driver"): "0.0240 0.0026  0.0271 0.0076  0.0228 0.0038  "
    "0.0206 0.0024  0.0186 0.0024  0.0199 0.0046",
    (4, "exponential"): "0.0277 0.0045  0.0256 0.0038  0.0215 0.0049  "
    "0.0218 0.0028  0.0204 0.0050  0.0224 0.0065",
    (4, "bold-driver"): "0.0253 0.0060  0.0264 0.0056  0.0244 0.0101  "
    "0.0204 0.0027  0.0188 0.0033  0.0179 0.0025",
}


def _table() -> dict[Cell, Published]:
    table = {}
    for (depth, schedule), text in _ROWS.items():
        numbers = [float(number) for number in text.split()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        for (network, update), pair in zip(_COLUMNS, pairs, strict=True):
            table[Cell(network, depth, update, schedule)] = Published(*pair)
    return table


TABLE2: Mapping[Cell, Published] = MappingProxyType(_table())
"""Mean and deviation of each of the 24 cells."""
