"""Means with intervals, and differences paired over seeds.

Runs of the same seed share their split of the images, and cells of one architecture and depth their
start, so the difference of two updates is taken seed by seed; what a lucky split adds to both
cancels. Intervals are Student's: they assume that these differences are about normal, and make no
correction for how many comparisons a report has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it may be off.

    Attributes:
        mean: of the values; NaN without any.
        deviation: standard deviation of a sample (n − 1); NaN for fewer than two values.
        n: how many values.
        low: lower end of the interval for the mean; −∞ for fewer than two values.
        high: upper end; ∞ likewise.
    """

    mean: float
    deviation: float
    n: int
    low: float
    high: float


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, deviation and interval: mean ± t · deviation / √n."""
    n = len(values)
    if n < 2:
        return Estimate(values[0] if n else math.nan, math.nan, n, -math.inf, math.inf)
    from scipy.stats import t  # here, because it takes a second to import

    mean, deviation = fmean(values), stdev(values)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, deviation, n, mean - half, mean + half)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """The mean of ``one − other`` over the seeds that both have, with its interval."""
    return estimate([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
