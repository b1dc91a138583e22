"""Means, intervals and paired differences, against numbers by hand and printed tables."""

import math

import numpy as np
import pytest

from manifoldnet.experiments.statistics import (
    Estimate,
    detectable,
    estimate,
    log_ratio,
    mean_and_deviation,
    paired,
    pairs_needed,
)
from manifoldnet.experiments.timing import interleaved

# Upper 2.5 % points of Student's t, as tables print them.
PRINTED = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    4: 2.7764,
    5: 2.5706,
    9: 2.2622,
    10: 2.2281,
    29: 2.0452,
}


@pytest.mark.parametrize(("freedom", "value"), PRINTED.items())
def test_intervals_match_tables_of_the_t_distribution(freedom, value):
    """Values of deviation √n around 0, where the interval is ± t."""
    n = freedom + 1
    values = [math.sqrt(n * freedom / 2), -math.sqrt(n * freedom / 2), *[0.0] * (n - 2)]
    found = estimate(values)
    assert found.deviation == pytest.approx(math.sqrt(n))
    assert (found.low, found.high) == pytest.approx((-value, value), abs=5e-5)


def test_an_estimate_by_hand():
    """1, 2, 3, 4: mean 2.5, variance 5/3, interval 2.5 ± 3.1824 · √(5/3) / 2."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.n) == (2.5, 4)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-6)


def test_a_paired_difference_by_hand():
    """Seeds 0, 1, 2 give −1, −2, −3: mean −2, deviation 1, interval −2 ± 4.3027 / √3."""
    found = paired({0: 1.0, 1: 1.0, 2: 4.0, 7: 99.0}, {2: 7.0, 1: 3.0, 0: 2.0, 8: 0.0})
    assert (found.mean, found.deviation, found.n) == (-2, 1, 3)
    half = 4.302653 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half), abs=1e-6)


def test_pairing_removes_variance_shared_by_a_pair():
    shared = [0.1, 0.5, 0.9]
    one = {seed: value - 0.01 for seed, value in enumerate(shared)}
    found = paired(one, dict(enumerate(shared)))
    assert found.high == pytest.approx(-0.01)


def test_too_few_values_have_no_interval():
    assert math.isnan(estimate([]).mean)
    one = estimate([-3.0])
    assert (one.mean, one.low, one.high) == (-3, -math.inf, math.inf)
    assert paired({0: 1.0}, {1: 1.0}).n == 0


def test_differences_as_text():
    assert estimate([1.0, 2.0, 3.0, 4.0]).signed(1) == ("+2.5", "+0.4 to +4.6")
    assert estimate([-0.00001]).signed() == ("+0.0000", "–")  # no negative zero
    assert estimate([]).signed() == ("–", "–")


def test_a_ratio_is_a_geometric_mean():
    """Ratios 1, 3/2 and 9/4: the mean is 3/2, the interval exp(ln 3/2 · (1 ± 4.3027 / √3))."""
    found = log_ratio({1: 1.0, 2: 3.0, 3: 9.0}, {1: 1.0, 2: 2.0, 3: 4.0})
    assert math.exp(found.mean) == pytest.approx(1.5)
    assert found.factor() == ("1.50", "0.55 to 4.11")


# Numbers of pairs that tables give for a power of 0.8 at 5 %, two-sided, by effect size.
PAIRS = {0.2: 199, 0.5: 34, 0.8: 15, 1.0: 10}


@pytest.mark.parametrize(("effect", "n"), PAIRS.items())
def test_detectable_differences_match_tables_of_power(effect, n):
    assert detectable(1.0, n) <= effect < detectable(1.0, n - 1)
    for sign in (-1, 1):
        found = Estimate(2 * sign * effect, 2.0, 3, -math.inf, math.inf)
        assert pairs_needed(found, most=n) == n
        assert pairs_needed(found, most=n - 1) is None
    assert pairs_needed(estimate([1.0])) is None


@pytest.mark.parametrize(("n", "power"), [(2, 0.8), (5, 0.8), (5, 0.3)])
def test_a_detectable_difference_is_found_that_often(n, power):
    rng = np.random.default_rng(0)
    differences = 3 * rng.standard_normal((200_000, n)) + detectable(3.0, n, power)
    deviations = differences.std(axis=1, ddof=1)
    significant = abs(differences.mean(axis=1)) > PRINTED[n - 1] * deviations / math.sqrt(n)
    assert significant.mean() == pytest.approx(power, abs=0.005)


def test_detectable_differences_need_two_pairs_and_a_power():
    assert detectable(1.0, 1) == math.inf
    assert detectable(0.0, 5) == 0
    for power in (0.05, 1.0):
        with pytest.raises(ValueError, match="power"):
            detectable(1.0, 5, power)


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "–"), ([0.25], "0.25"), ([1.0, 2.0], "1.50 ± 0.71"), ([math.nan, 1.0], "1.00")],
)
def test_mean_and_deviation(values, text):
    assert mean_and_deviation(values, 2) == text


def test_callables_are_interleaved_and_each_is_first_once():
    order = []
    works = {name: lambda number, name=name: order.append(f"{number}{name}") for name in "abc"}
    seconds = interleaved(works, 3, lambda number: order.append(str(number)))
    assert " ".join(order) == "0 0a 0b 0c 1 1b 1c 1a 2 2c 2a 2b"
    assert [len(each) for each in seconds.values()] == [3, 3, 3]
