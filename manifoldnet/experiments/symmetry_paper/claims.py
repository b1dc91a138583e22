"""The paper's claims, each tested on records. Trains nothing.

A claim is a list of comparisons, each a difference paired over seeds that the claim says is below
zero. Its verdict is a rule, not a reading:

    holds          every comparison's 95 % interval lies below zero
    contradicted   none does, and at least one lies above zero
    in part        some lie below zero, the others do not
    undecided      all contain zero
    no records     a cell that it needs has fewer than two runs that can be paired
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from manifoldnet.experiments.config import SCHEDULES
from manifoldnet.experiments.statistics import Estimate, paired
from manifoldnet.experiments.symmetry_paper.cells import DEPTHS, PAPER_UPDATES, Cell
from manifoldnet.experiments.symmetry_paper.results import CellRuns, Table

NOTICEABLE = 1.25
"""How many times B-SGD's seconds are a noticeable cost; the paper gives no number."""


@dataclass(frozen=True)
class Comparison:
    """One difference that a claim says is below zero.

    Attributes:
        text: what is subtracted from what.
        difference: with its interval.
        unit: ``"error"`` for differences of error rates, ``"time"`` for log-ratios of seconds.
    """

    text: str
    difference: Estimate
    unit: str = "error"


@dataclass(frozen=True)
class Claim:
    """One claim, tested.

    Attributes:
        text: what the paper says.
        comparisons: what it comes down to.
        note: how it was read, where that was not plain.
    """

    text: str
    comparisons: tuple[Comparison, ...]
    note: str = ""

    @property
    def verdict(self) -> str:
        """One of the words of the module's docstring."""
        differences = [comparison.difference for comparison in self.comparisons]
        if not differences or any(difference.n < 2 for difference in differences):
            return "no records"
        below = sum(difference.below_zero for difference in differences)
        if below == len(differences):
            return "holds"
        if below:
            return "in part"
        return "contradicted" if any(d.above_zero for d in differences) else "undecided"


def claims(table: Table) -> list[Claim]:
    """The five claims of Section 5 and of the abstract."""
    return [
        Claim(
            "Arch2 performs significantly better than Arch1",
            tuple(_architectures(table, update) for update in PAPER_UPDATES),
            "per update: the mean over both depths and schedules, seed by seed",
        ),
        Claim(
            "SM and UN beat B-SGD on Arch2 with the bold driver",
            tuple(
                _difference(
                    table,
                    Cell("arch2", depth, update, "bold-driver"),
                    Cell("arch2", depth, "b-sgd", "bold-driver"),
                )
                for update, depth in product(("sm", "un"), DEPTHS)
            ),
        ),
        Claim(
            "UN is the best with exponential decay on Arch1",
            tuple(
                _difference(
                    table,
                    Cell("arch1", depth, "un", "exponential"),
                    Cell("arch1", depth, other, "exponential"),
                )
                for depth, other in product(DEPTHS, ("b-sgd", "sm"))
            ),
        ),
        Claim(
            "Two layers with SM and the bold driver beat four layers with B-SGD and exponential "
            "decay",
            (
                _difference(
                    table,
                    Cell("arch2", 2, "sm", "bold-driver"),
                    Cell("arch2", 4, "b-sgd", "exponential"),
                ),
            ),
            "on Arch2, of which the paper speaks there",
        ),
        Claim(
            "No update costs noticeably more time than B-SGD",
            tuple(
                Comparison(
                    f"{update}: time of a training pass, over {NOTICEABLE:g} × B-SGD's",
                    time_ratio(table, update, NOTICEABLE),
                    "time",
                )
                for update in PAPER_UPDATES[1:]
            ),
            "from seconds measured while other workers ran; the ratio is paired over runs",
        ),
    ]


def time_ratio(table: Table, update: str, against: float = 1.0) -> Estimate:
    """The logarithm of how many times ``against`` × B-SGD's a pass of an update takes.

    Runs are paired that differ in nothing but the update; each gives the median of its passes, and
    what is averaged is the mean over the cells of a seed.
    """
    return _over_cells(
        table,
        [c for c in table if c.update == update],
        lambda cell: Cell(cell.architecture, cell.depth, "b-sgd", cell.schedule),
        lambda runs: {
            seed: math.log(seconds / (against if runs.cell.update == update else 1.0))
            for seed, seconds in runs.pass_seconds.items()
        },
    )


def _architectures(table: Table, update: str) -> Comparison:
    cells = [Cell("arch2", depth, update, schedule) for depth, schedule in _SETTINGS]
    difference = _over_cells(
        table,
        [cell for cell in cells if cell in table],
        lambda cell: Cell("arch1", cell.depth, cell.update, cell.schedule),
        lambda runs: runs.test_errors,
    )
    return Comparison(f"{update}: Arch2 − Arch1", difference)


_SETTINGS = tuple(product(DEPTHS, SCHEDULES))


def _over_cells(
    table: Table,
    cells: Sequence[Cell],
    partner: Callable[[Cell], Cell],
    values: Callable[[CellRuns], dict[int, float]],
) -> Estimate:
    """The paired difference between cells and their partners, averaged over cells seed by seed."""
    differences: dict[int, list[float]] = {}
    for cell in cells:
        if partner(cell) in table:
            one, other = values(table[cell]), values(table[partner(cell)])
            for seed in one.keys() & other.keys():
                differences.setdefault(seed, []).append(one[seed] - other[seed])
    means = {seed: fmean(each) for seed, each in differences.items()}
    return paired(means, dict.fromkeys(means, 0.0))


def _difference(table: Table, one: Cell, other: Cell) -> Comparison:
    text = f"{one.name} − {other.name}"
    if one not in table or other not in table:
        return Comparison(text, paired({}, {}))
    return Comparison(text, paired(table[one].test_errors, table[other].test_errors))
