"""The claims of the paper, tested on records.

A claim is a list of comparisons, each a paired difference that the claim says lies below a bound.
Its verdict follows by rule:

    holds                every comparison's 95 % interval lies below its bound
    contradicted         none does, and at least one lies above; of a claim about every update, as
                         soon as one lies above
    mixed                some lie below, some above
    holds in part        some lie below, none above
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
from typing import TYPE_CHECKING, Any

from manifoldnet.experiments.papers.symmetry.cells import DEPTHS, PAPER_UPDATES, Cell
from manifoldnet.experiments.papers.symmetry.config import SCHEDULES
from manifoldnet.experiments.papers.symmetry.results import BASE, NETWORKS, Costs
from manifoldnet.experiments.statistics import Estimate, log_ratio, paired

if TYPE_CHECKING:
    import pandas as pd

NOTICEABLE = 1.25
"""The ratio to B-SGD's seconds from which a cost is noticeable; the paper gives no number."""

ENOUGH = 0.8
"""The share of the pairs of a comparison that must not have diverged."""


@dataclass(frozen=True)
class Comparison:
    """A difference that a claim says lies below a bound, over the pairs that did not diverge.

    `diverged` counts those that did on the first side, and on the second. The bound is 0 for error
    rates, the logarithm of a ratio for times.
    """

    text: str
    difference: Estimate
    pairs: int
    diverged: tuple[int, int] = (0, 0)
    bound: float = 0.0

    @property
    def below(self) -> bool:
        """True if the whole interval lies below the bound."""
        return self.difference.high < self.bound

    @property
    def above(self) -> bool:
        """True if the whole interval lies above the bound."""
        return self.difference.low > self.bound


@dataclass(frozen=True)
class Claim:
    """A claim in the words of the paper, tested.

    The note interprets what the paper leaves open. With `every`, a single comparison can contradict
    the claim. The unit is ``"error"``, or ``"time"`` for logarithms of ratios.
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
        below = sum(each.below for each in self.comparisons)
        if below == len(self.comparisons):
            word = "holds"
        elif any(each.above for each in self.comparisons):
            word = "mixed" if below and not self.every else "contradicted"
        else:
            word = "holds in part" if below else "undecided"
        return word + (" among survivors" if few else "")


def claims(table: pd.DataFrame, costs: Costs | None = None) -> list[Claim]:
    """The five claims of Section 5 and of the abstract."""
    return [
        Claim(
            "Arch2 performs significantly better than Arch1",
            _architectures(table),
            "means over updates, over depths and schedules, and over all, of the seeds that have "
            "every run in them",
        ),
        Claim(
            "SM and UN beat B-SGD on Arch2 with the bold driver",
            _differences(
                table,
                [
                    (("arch2", depth, update, "bold-driver"), ("arch2", depth, BASE, "bold-driver"))
                    for update, depth in product(("sm", "un"), DEPTHS)
                ],
            ),
        ),
        Claim(
            "UN is the best with exponential decay on Arch1",
            _differences(
                table,
                [
                    (("arch1", depth, "un", "exponential"), ("arch1", depth, other, "exponential"))
                    for depth, other in product(DEPTHS, (BASE, "sm"))
                ],
            ),
        ),
        Claim(
            "Two layers with SM and the bold driver beat four layers with B-SGD and exponential "
            "decay",
            _differences(
                table, [(("arch2", 2, "sm", "bold-driver"), ("arch2", 4, BASE, "exponential"))]
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


def compare(table: pd.DataFrame, text: str, pairs: Sequence[tuple[Cell, Cell]]) -> Comparison:
    """The mean over pairs of cells of ``one − other``, seed by seed.

    Only seeds that have a run of every cell are compared, so that each mean is of the same cells.
    """
    sides = [[cell.name for cell in side] for side in zip(*pairs, strict=True)]
    errors = table.pivot(index="seed", columns="label", values="test_error")
    diverged = table.pivot(index="seed", columns="label", values="diverged")
    diverged = diverged.reindex(columns=sides[0] + sides[1]).dropna().astype(bool)
    errors = errors.reindex(index=diverged.index, columns=diverged.columns).mask(diverged)
    one, other = (errors[side].mean(axis=1, skipna=False).dropna() for side in sides)
    lost = (len(errors) - len(one), len(errors) - len(other))
    return Comparison(text, paired(one.to_dict(), other.to_dict()), len(errors), lost)


def _differences(table: pd.DataFrame, pairs: Sequence[tuple[Any, Any]]) -> tuple[Comparison, ...]:
    cells = [(Cell(*one), Cell(*other)) for one, other in pairs]
    return tuple(compare(table, f"{a.name} − {b.name}", [(a, b)]) for a, b in cells)


def _architectures(table: pd.DataFrame) -> tuple[Comparison, ...]:
    pairs = [
        (Cell("arch2", *setting), Cell("arch1", *setting))
        for setting in product(DEPTHS, PAPER_UPDATES, SCHEDULES)
    ]
    groups = {
        f"{n} layers, {way}": [p for p in pairs if (p[0].depth, p[0].schedule) == (n, way)]
        for n, way in product(DEPTHS, SCHEDULES)
    }
    groups |= {update: [p for p in pairs if p[0].update == update] for update in PAPER_UPDATES}
    groups["all"] = pairs
    return tuple(compare(table, f"{name}: Arch2 − Arch1", each) for name, each in groups.items())


def _times(costs: Costs) -> tuple[Comparison, ...]:
    found = []
    for (architecture, depth), update in product(NETWORKS, PAPER_UPDATES[1:]):
        ratio = log_ratio(costs[architecture, depth][update], costs[architecture, depth][BASE])
        text = f"{update} ÷ b-sgd: {architecture}, {depth} layers"
        found.append(Comparison(text, ratio, ratio.n, bound=math.log(NOTICEABLE)))
    return tuple(found)
