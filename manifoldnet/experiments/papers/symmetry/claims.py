"""The paper's claims, each tested on records. Trains nothing.

A claim is a list of comparisons, each a paired difference that the claim says lies below a bound.
Its verdict is a rule, not a reading:

    holds                every comparison's 95 % interval lies below its bound
    contradicted         none does, and at least one lies above; of a claim about every update, as
                         soon as one lies above
    mixed                some lie below, some above
    in part              some lie below, none above
    undecided            all contain their bound
    … among survivors    one of these, where divergence took more than a fifth of the pairs of a
                         comparison
    cannot be tested     divergence left fewer than two pairs of a comparison
    too few runs so far  there are fewer than two pairs of a comparison, diverged ones counted
    not measured         it needs a measurement that is not there
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from manifoldnet.experiments.papers.symmetry.cells import DEPTHS, PAPER_UPDATES, Cell
from manifoldnet.experiments.papers.symmetry.config import SCHEDULES
from manifoldnet.experiments.papers.symmetry.costs import NETWORKS, Costs, log_ratio
from manifoldnet.experiments.papers.symmetry.results import CellRuns, Table
from manifoldnet.experiments.statistics import Estimate, paired

NOTICEABLE = 1.25
"""How many times B-SGD's seconds are a noticeable cost; the paper gives no number."""

ENOUGH = 0.8
"""The part of its pairs that divergence must leave a comparison."""


@dataclass(frozen=True)
class Comparison:
    """One difference that a claim says lies below a bound.

    Attributes:
        text: what is subtracted from what.
        difference: over the pairs that are left, with its interval.
        pairs: how many there are, with those lost to divergence.
        diverged: how many pairs are lost on the first side, and on the second; some on both.
        bound: of error rates 0, of a time the logarithm of a ratio.
    """

    text: str
    difference: Estimate
    pairs: int
    diverged: tuple[int, int] = (0, 0)
    bound: float = 0.0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below the bound."""
        return self.difference.high < self.bound

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above the bound."""
        return self.difference.low > self.bound


@dataclass(frozen=True)
class Claim:
    """One claim, tested.

    Attributes:
        text: what the paper says.
        comparisons: what it comes down to; none where they would need a measurement.
        note: how it was read, where that was not plain.
        every: whether a single comparison can contradict it.
        unit: ``"error"`` for differences of error rates, ``"time"`` for logarithms of ratios.
    """

    text: str
    comparisons: tuple[Comparison, ...]
    note: str = ""
    every: bool = False
    unit: str = "error"

    @property
    def verdict(self) -> str:
        """One of the words of the module's docstring."""
        if not self.comparisons:
            return "not measured"
        if any(each.pairs < 2 for each in self.comparisons):
            return "too few runs so far"
        lost = [sum(each.diverged) for each in self.comparisons if each.difference.n < 2]
        if lost:
            return f"cannot be tested: {max(lost)} diverged"
        few = any(each.difference.n < ENOUGH * each.pairs for each in self.comparisons)
        return self._word() + (" among survivors" if few else "")

    def _word(self) -> str:
        below = sum(each.below for each in self.comparisons)
        above = any(each.above for each in self.comparisons)
        if below == len(self.comparisons):
            return "holds"
        if above:
            return "mixed" if below and not self.every else "contradicted"
        return "in part" if below else "undecided"


def claims(table: Table, costs: Costs | None = None) -> list[Claim]:
    """The five claims of Section 5 and of the abstract.

    Args:
        table: the runs.
        costs: what the updates cost, for the last claim; None where it was not measured.
    """
    return [
        Claim(
            "Arch2 performs significantly better than Arch1",
            _architectures(table),
            "means over updates, over depths and schedules, and over all, of the seeds that have "
            "every run in them",
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
            () if costs is None else _times(costs),
            f"the ratio of the seconds of a training pass lies below {NOTICEABLE:g} for each; one "
            "above contradicts",
            every=True,
            unit="time",
        ),
    ]


def compare(table: Table, text: str, pairs: Sequence[tuple[Cell, Cell]]) -> Comparison:
    """The mean over pairs of cells of ``one − other``, seed by seed.

    Only seeds that have a run of every cell are compared, so that each mean is of the same cells.
    """
    sides = [
        [table.get(cell, CellRuns(cell, ())) for cell in side] for side in zip(*pairs, strict=True)
    ]
    seeds = set.intersection(*(runs.seeds for side in sides for runs in side))
    one, other = (_means([runs.test_errors for runs in side], seeds) for side in sides)
    lost = (len(seeds) - len(one), len(seeds) - len(other))
    return Comparison(text, paired(one, other), len(seeds), lost)


def _means(errors: Sequence[dict[int, float]], seeds: set[int]) -> dict[int, float]:
    whole = [seed for seed in seeds if all(seed in each for each in errors)]
    return {seed: fmean(each[seed] for each in errors) for seed in whole}


def _difference(table: Table, one: Cell, other: Cell) -> Comparison:
    return compare(table, f"{one.name} − {other.name}", [(one, other)])


def _architectures(table: Table) -> tuple[Comparison, ...]:
    pairs = [
        (Cell("arch2", *setting), Cell("arch1", *setting))
        for setting in product(DEPTHS, PAPER_UPDATES, SCHEDULES)
    ]
    groups = {
        f"{depth} layers, {schedule}": [
            pair for pair in pairs if (pair[0].depth, pair[0].schedule) == (depth, schedule)
        ]
        for depth, schedule in product(DEPTHS, SCHEDULES)
    }
    groups |= {update: [p for p in pairs if p[0].update == update] for update in PAPER_UPDATES}
    groups["all"] = pairs
    return tuple(compare(table, f"{name}: Arch2 − Arch1", each) for name, each in groups.items())


def _times(costs: Costs) -> tuple[Comparison, ...]:
    found = []
    for (architecture, depth), update in product(NETWORKS, PAPER_UPDATES[1:]):
        ratio = log_ratio(costs[architecture, depth], update)
        text = f"{update} ÷ b-sgd: {architecture}, {depth} layers"
        found.append(Comparison(text, ratio, ratio.n, bound=math.log(NOTICEABLE)))
    return tuple(found)
