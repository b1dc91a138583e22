"""The paper's claims on made-up records: which verdict follows from what."""

import math
from itertools import product

import pytest
from runs import record

from manifoldnet.experiments.papers.symmetry.cells import PUBLISHED, TABLE2, Cell
from manifoldnet.experiments.papers.symmetry.claims import Claim, Comparison, claims, compare
from manifoldnet.experiments.papers.symmetry.results import NETWORKS, run_table
from manifoldnet.experiments.statistics import Estimate


def whole_table(error, seeds=4, diverged=lambda cell, seed: False, cells=TABLE2):
    """Runs of each of the 24 cells, which differ by a little from seed to seed."""
    wobble = (0.0, 1e-4, -1e-4, 5e-5)
    return run_table(
        record(
            cell,
            seed,
            [0.2, error(cell) + wobble[seed % 4] + 1e-5 * ((len(cell.name) * 7 + seed * 5) % 3)],
            "validation" if diverged(cell, seed) else "",
        )
        for cell, seed in product(cells, range(seeds))
    )


def costs(factors):
    """Seconds by network, update and pass: B-SGD's 1, 2, 3, 4, and others times their factor."""
    return {
        network: {
            update: {n: n * (factor + 0.001 * (n % 2)) for n in (1, 2, 3, 4)}
            for update, factor in {"b-sgd": 1.0, **factors}.items()
        }
        for network in NETWORKS
    }


CHEAP = costs({"sm": 1.02, "un": 1.1})


def verdicts(table, times=CHEAP):
    return [claim.verdict for claim in claims(table, times)]


def published(cell):
    return PUBLISHED[cell].mean


def test_claims_hold_for_the_means_of_the_paper():
    """Its means with hardly any spread; its deviations are another matter."""
    assert verdicts(whole_table(published)) == ["holds"] * 5


def test_verdicts_follow_the_records():
    same = whole_table(lambda cell: 0.02)
    assert set(verdicts(same)[:4]) <= {"undecided", "holds in part", "mixed", "contradicted"}
    worse = {"b-sgd": 0.01, "sm": 0.02, "un": 0.03}
    against = whole_table(
        lambda cell: worse[cell.update] + (0.01 if cell.architecture == "arch2" else 0.0)
    )
    assert verdicts(against) == [*["contradicted"] * 4, "holds"]
    assert verdicts(whole_table(published, seeds=1)) == [*["too few runs so far"] * 4, "holds"]
    assert verdicts(whole_table(published, 1), None)[-1] == "not measured"


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ({"sm": 1.2, "un": 1.24}, "holds"),
        ({"sm": 1.02, "un": 1.3}, "contradicted"),  # one above is enough
        ({"sm": 1.02, "un": 1.25}, "holds in part"),
    ],
)
def test_the_claim_on_time(factors, verdict):
    assert claims(whole_table(published, 1), costs(factors))[-1].verdict == verdict


def comparison(low, high, pairs=10, left=10, bound=0.0):
    middle = Estimate((low + high) / 2, 1.0, left, low, high)
    return Comparison("a − b", middle, pairs, (pairs - left, 0), bound)


BELOW, ABOVE, ACROSS = (-2, -1), (1, 2), (-1, 1)


@pytest.mark.parametrize(
    ("intervals", "verdict", "of_every"),
    [
        ((BELOW, BELOW), "holds", "holds"),
        ((BELOW, ABOVE), "mixed", "contradicted"),
        ((BELOW, ACROSS), "holds in part", "holds in part"),
        ((BELOW, ACROSS, ABOVE), "mixed", "contradicted"),
        ((ACROSS, ABOVE), "contradicted", "contradicted"),
        ((ACROSS, ACROSS), "undecided", "undecided"),
    ],
)
def test_verdicts_by_intervals(intervals, verdict, of_every):
    comparisons = tuple(comparison(*each) for each in intervals)
    assert Claim("", comparisons).verdict == verdict
    assert Claim("", comparisons, every=True).verdict == of_every
    shifted = tuple(comparison(low + 5, high + 5, bound=5.0) for low, high in intervals)
    assert Claim("", shifted).verdict == verdict


def test_verdicts_count_diverged_runs():
    assert Claim("", (comparison(*BELOW, left=8),)).verdict == "holds"
    assert Claim("", (comparison(*BELOW, left=7),)).verdict == "holds among survivors"
    both = (comparison(*BELOW), comparison(*ABOVE, left=3))
    assert Claim("", both).verdict == "mixed among survivors"
    lost = (comparison(*BELOW), comparison(-math.inf, math.inf, left=1))
    assert Claim("", lost).verdict == "cannot be tested: 9 diverged"
    few = (comparison(*BELOW), comparison(-math.inf, math.inf, pairs=1, left=1))
    assert Claim("", few).verdict == "too few runs so far"


def test_a_comparison_counts_its_pairs_and_diverged_runs():
    one, other = Cell("arch1", 2, "un", "exponential"), Cell("arch1", 2, "b-sgd", "exponential")
    runs = [record(one, seed, [0.1], "loss" if seed in (0, 1) else "") for seed in range(6)]
    runs += [record(other, seed, [0.1], "loss" if seed in (1, 2, 3) else "") for seed in range(5)]
    found = compare(run_table(runs), "", [(one, other)])
    assert (found.pairs, found.diverged, found.difference.n) == (5, (2, 3), 1)


def test_a_mean_over_cells_is_of_the_same_cells_for_every_seed():
    """The seed of a diverged run is left out: its other cells would shift the mean."""
    lost = Cell("arch1", 2, "sm", "exponential")
    table = whole_table(
        lambda cell: (0.05 if cell == lost else 0.02) + (0.01 if cell.update == "un" else 0),
        diverged=lambda cell, seed: (cell, seed) == (lost, 1),
    )
    found = {each.text.partition(":")[0]: each for each in claims(table)[0].comparisons}
    assert list(found) == [
        *("2 layers, exponential", "2 layers, bold-driver"),
        *("4 layers, exponential", "4 layers, bold-driver"),
        *("b-sgd", "sm", "un", "all"),
    ]
    counts = {name: (each.difference.n, each.pairs, each.diverged) for name, each in found.items()}
    hit = {"2 layers, exponential", "sm", "all"}
    assert counts == {n: (3, 4, (0, 1)) if n in hit else (4, 4, (0, 0)) for n in counts}
    means = {name: found[name].difference.mean for name in hit}
    assert means == pytest.approx(
        {"2 layers, exponential": -0.03 / 3, "sm": -0.03 / 4, "all": -0.03 / 12}, abs=1e-4
    )


def test_a_cell_without_runs_leaves_nothing_to_compare():
    lacking = [cell for cell in TABLE2 if cell != Cell("arch2", 4, "un", "bold-driver")]
    table = whole_table(published, cells=lacking)
    found = {each.text.partition(":")[0]: each.pairs for each in claims(table)[0].comparisons}
    assert {name for name, pairs in found.items() if not pairs} == {
        *("4 layers, bold-driver", "un", "all")
    }
