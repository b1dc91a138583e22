"""Verdicts from the records: methods against each other, rates against widths, and starts.

Reads records only. Scores are those on the test data after the last iteration: losses of text,
errors of images (`Network.measure`). Of two methods the ratio of scores counts, paired over seeds:
one is lower or higher when the 95 % interval of the ratio lies on one side of 1, and the two are
within chance otherwise. Runs that diverged have no
part in ratios; a method with more of them than its opponent is never called lower, nor level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple, TypeVar

from manifoldnet.experiments.evidence.config import METHODS, NETWORKS, EvidenceConfig
from manifoldnet.experiments.evidence.records import (
    EvidenceRecord,
    EvidenceResult,
    Losses,
    Section,
    best,
    cell_of,
    losses,
)
from manifoldnet.experiments.statistics import Estimate, detectable, log_ratio

K = TypeVar("K")

LOWER, LEVEL, HIGHER, UNKNOWN = "lower", "within chance", "higher", "not known"


_LEAST = 1e-6  # of a score: a logarithm is taken


def _score(config: EvidenceConfig, result: EvidenceResult) -> float:
    of_text = NETWORKS[config.network].measure == "test loss"
    return result.test_loss if of_text else result.test_error


@dataclass(frozen=True)
class Standing:
    """The runs of a method at its rate, or of a method from a start."""

    method: str
    records: Sequence[EvidenceRecord]

    @property
    def scores(self) -> dict[int, float]:
        """The score by seed, of runs that did not diverge; at least `_LEAST`."""
        return {
            r.config.seed: max(_LEAST, _score(r.config, r.result))
            for r in self.records
            if r.result is not None and not r.result.diverged
        }

    @property
    def mean(self) -> float:
        """The mean score; infinite without any."""
        return fmean(self.scores.values()) if self.scores else math.inf

    @property
    def diverged(self) -> int:
        """The number of runs that diverged."""
        return sum(r.result is not None and r.result.diverged for r in self.records)

    def seconds(self, name: str = "iteration_seconds") -> float:
        """The median over epochs of an iteration's time, or of its part."""
        found = [getattr(epoch, name) for r in self.records for epoch in r.epochs]
        return median(found)


class Contest(NamedTuple):
    """A method against another one: the logarithm of the ratio of scores, and the verdict."""

    one: Standing
    other: Standing
    ratio: Estimate
    verdict: str

    @property
    def detectable(self) -> float:
        """The smallest change of the ratio that the pairs would show with probability 0.8."""
        return math.expm1(detectable(self.ratio.deviation, self.ratio.n))

    def __str__(self) -> str:
        """``muonh against muon (0.981, 0.970 to 0.992)``."""
        lost = self.one.diverged, self.other.diverged
        found = "{}, {}".format(*self.ratio.factor(3)) if self.ratio.n > 1 else "no two pairs"
        if any(lost):
            found += f"; diverged: {lost[0]} of {len(self.one.records)} and {lost[1]} of "
            found += f"{len(self.other.records)}"
        return f"{self.one.method} against {self.other.method} ({found})"


def contest(one: Standing, other: Standing) -> Contest:
    """Set a method against another one."""
    ratio = log_ratio(one.scores, other.scores)
    if one.diverged != other.diverged:
        verdict = HIGHER if one.diverged > other.diverged else LOWER
    elif ratio.n < 2:
        verdict = UNKNOWN
    else:
        verdict = LOWER if ratio.high < 0 else HIGHER if ratio.low > 0 else LEVEL
    return Contest(one, other, ratio, verdict)


def standings(section: Section) -> dict[str, Standing]:
    """The methods of a comparison, in the order of `METHODS`."""
    return _grouped(section.records, lambda config: config.method)


def against(found: Mapping[str, Standing], other: str | None = None) -> list[Contest]:
    """Each method against one, or against its own base."""
    pairs = [(one, METHODS[one.method].base if other is None else other) for one in found.values()]
    return [
        contest(one, found[name]) for one, name in pairs if name in found and name != one.method
    ]


class Start(NamedTuple):
    """A start: factor of the first matrices, and spread of the element that moves them."""

    size: float
    spread: float

    def __str__(self) -> str:
        if self.spread:
            return f"rescaled by up to {math.exp(self.spread):.0f}"
        known = {1: "usual", 2: "twice as large", 4: "four times as large", 0.5: "half as large"}
        return known.get(self.size, f"{self.size:g} times as large")


def starts(section: Section) -> dict[str, dict[Start, Standing]]:
    """Runs by method and start, the usual start first."""
    found = _grouped(section.records, lambda config: config.method)
    return {
        method: dict(
            sorted(
                _grouped(
                    standing.records, lambda config: Start(config.start_size, config.spread)
                ).items(),
                key=lambda item: (item[0] != Start(1, 0), -item[0].spread, item[0].size),
            )
        )
        for method, standing in found.items()
    }


def _grouped(
    records: Iterable[EvidenceRecord], key: Callable[[EvidenceConfig], K]
) -> dict[K, Standing]:
    order = list(METHODS)
    grouped: dict[K, list[EvidenceRecord]] = {}
    for record in sorted(records, key=lambda r: (order.index(r.config.method), r.config.seed)):
        grouped.setdefault(key(record.config), []).append(record)
    return {name: Standing(own[0].config.method, own) for name, own in grouped.items()}


class Move(NamedTuple):
    """The best rates of a method by width, and by how much they move."""

    method: str
    rates: dict[int, float]  # the best ones that were tried, by width
    half_decades: float  # from the lowest to the highest of the best rates
    carried: float  # loss at the largest width at the smallest one's rate, over the best there


def moves(section: Section) -> list[Move]:
    """The best rates of each method at each width. Between half-decades, by a parabola."""
    found = losses(section.records)
    by_method: dict[str, dict[int, Mapping[float, float]]] = {}
    for cell, own in found.items():
        by_method.setdefault(cell.method, {})[cell.width] = own
    moved = []
    for method in METHODS:
        widths = dict(sorted(by_method.get(method, {}).items()))
        if len(widths) > 1:
            tops = [2 * math.log10(vertex(own)) for own in widths.values()]
            narrow, *_, wide = widths.values()
            carried = wide.get(best(narrow), math.nan) / wide[best(wide)]
            rates = {width: best(own) for width, own in widths.items()}
            moved.append(Move(method, rates, max(tops) - min(tops), carried))
    return moved


def vertex(own: Mapping[float, float]) -> float:
    """The rate at the lowest point of the parabola through the best loss and its neighbours.

    It is the best rate itself where a neighbour is missing, or diverged.
    """
    rates = sorted(own)
    k = rates.index(best(own))
    if not 0 < k < len(rates) - 1 or math.isinf(own[rates[k - 1]] + own[rates[k + 1]]):
        return rates[k]
    x, y = ([f(r) for r in rates[k - 1 : k + 2]] for f in (math.log10, own.__getitem__))
    # Divided differences.
    first = (y[1] - y[0]) / (x[1] - x[0])
    second = ((y[2] - y[1]) / (x[2] - x[1]) - first) / (x[2] - x[0])
    return rates[k] if second <= 0 else 10 ** ((x[0] + x[1]) / 2 - first / (2 * second))


def tried(section: Section) -> Losses:
    """Validation losses by cell and rate."""
    order = list(METHODS)
    found = losses(section.records)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0].method)))


def lost(section: Section) -> dict[EvidenceConfig, int]:
    """The number of runs of each cell that diverged."""
    count: dict[EvidenceConfig, int] = {}
    for record in section.records:
        diverged = record.result is not None and record.result.diverged
        cell = cell_of(record.config)
        count[cell] = count.get(cell, 0) + diverged
    return count
