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

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, deviation and interval: mean ± t · deviation / √n."""
    n = len(values)
    if n < 2:
        return Estimate(values[0] if n else math.nan, math.nan, n, -math.inf, math.inf)
    mean, deviation = fmean(values), stdev(values)
    half = student_quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, deviation, n, mean - half, mean + half)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """The mean of ``one − other`` over the seeds that both have, with its interval."""
    return estimate([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def student_cdf(t: float, freedom: int) -> float:
    """Distribution function of Student's t with a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4, in θ = atan(t / √freedom).
    """
    theta = math.atan2(abs(t), math.sqrt(freedom))
    cos, term, total = math.cos(theta), 1.0, 0.0
    if freedom % 2:
        term = cos
        for k in range(2, freedom, 2):
            total += term
            term *= cos * cos * k / (k + 1)
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        for k in range(1, freedom, 2):
            total += term
            term *= cos * cos * k / (k + 1)
        inside = math.sin(theta) * total
    return 0.5 + math.copysign(inside / 2, t)


def student_quantile(probability: float, freedom: int) -> float:
    """The inverse of `student_cdf` for a probability in (0.5, 1), by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
