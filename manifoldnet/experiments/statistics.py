"""Means, differences paired over seeds, and ratios, each with an interval and its text; power.

Runs of the same seed share their split of the images, and those of one network their start, so two
methods are compared seed by seed: a lucky split cancels in the difference. Intervals are Student's:
they assume that the differences are about normal, and make no correction for the number of
comparisons in a report.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval."""

    mean: float  # of the values; NaN without any
    deviation: float  # standard deviation of a sample (n − 1); NaN for fewer than two values
    n: int  # number of values
    low: float  # lower end of the interval for the mean; −∞ for fewer than two values
    high: float  # upper end; ∞ likewise

    def signed(self, digits: int = 4) -> tuple[str, str]:
        """A difference and its interval as text: ``("+0.0012", "-0.0003 to +0.0027")``."""
        mean = f"{self.mean:+z.{digits}f}" if self.n else "–"
        if self.n < 2:
            return mean, "–"
        return mean, f"{self.low:+z.{digits}f} to {self.high:+z.{digits}f}"

    def factor(self, digits: int = 2) -> tuple[str, str]:
        """The ratio whose logarithm this is, and its interval: ``("1.50", "0.55 to 4.11")``."""
        mean, low, high = (math.exp(value) for value in (self.mean, self.low, self.high))
        return f"{mean:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and interval of 95%: mean ± t · deviation / √n."""
    n = len(values)
    if n < 2:
        return Estimate(values[0] if n else math.nan, math.nan, n, -math.inf, math.inf)
    from scipy.stats import t  # here, because it takes a second to import

    mean, deviation = fmean(values), stdev(values)
    half = float(t.ppf((1 + 0.95) / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, deviation, n, mean - half, mean + half)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """The mean of ``one − other`` over the seeds (or passes) that both have, with its interval."""
    return estimate([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def log_ratio(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """The logarithm of the geometric mean of ``one ÷ other``, paired, with its interval."""
    return paired(*({key: math.log(v) for key, v in each.items()} for each in (one, other)))


def detectable(deviation: float, n: int, power: float = 0.8) -> float:
    """The smallest difference that n pairs would show with some probability.

    A two-sided t-test at 5% of the mean of n differences, whose true mean is δ, is significant with
    the probability

        P(|Z + δ√n/deviation| > t · √(V/(n − 1)))    Z normal, V chi-squared with n − 1 degrees

    Returned is the δ for which that is `power` ([cohen1988statistical], section 2.4).

    Args:
        deviation: standard deviation of the differences.
        n: their number; the difference is infinite for fewer than two.
        power: the probability, between the level 0.05 and 1.

    Raises:
        ValueError: for a power out of that range.
    """
    if not 0.05 < power < 1:
        raise ValueError(f"power is {power}; it must be between the level of 0.05 and 1")
    if n < 2:
        return math.inf
    from scipy.optimize import brentq
    from scipy.special import ndtr, roots_legendre
    from scipy.stats import chi, t

    spread = chi(n - 1, scale=1 / math.sqrt(n - 1))  # of the estimated deviation over the true one
    critical = float(t.ppf((1 + 0.95) / 2, n - 1))
    low, high = spread.ppf([1e-13, 1 - 1e-13])
    nodes, weights = roots_legendre(200)
    s = low + (high - low) * (nodes + 1) / 2
    weights = weights * (high - low) / 2 * spread.pdf(s)

    def excess(shift: float) -> float:
        significant = ndtr(shift - critical * s) + ndtr(-shift - critical * s)
        return float(weights @ significant) - power

    highest = 1.0
    while excess(highest) < 0:
        highest *= 2
    return float(brentq(excess, 0.0, highest)) * deviation / math.sqrt(n)


def pairs_needed(found: Estimate, most: int = 100) -> int | None:
    """The pairs that would show a difference as large as the one found, with probability 0.8.

    None if `most` are not enough, or two pairs are not there to tell the deviation from.
    """
    if found.n < 2 or detectable(found.deviation, most) > abs(found.mean):
        return None
    return bisect_left(
        range(most + 1), True, lo=2, key=lambda n: detectable(found.deviation, n) <= abs(found.mean)
    )


def mean_and_deviation(values: Iterable[float], digits: int = 4) -> str:
    """The text ``0.0195 ± 0.0013`` of the values that are not NaN; ``–`` without any."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    deviation = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{deviation}"
