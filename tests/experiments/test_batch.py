"""The measurements of batch solvers: small ones, and what is drawn of them."""

import csv
import math

import pytest

from manifoldnet.experiments import load
from manifoldnet.experiments.batch import contest, measure, overhead, report, rescaling
from manifoldnet.experiments.batch.rows import Contestant, Course, Point


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_trust_regions_do_not_see_the_scale_of_filters_under_the_scaled_metric(digits):
    courses = {
        (c.update, c.scaling): c.costs
        for c in rescaling.rescaled(digits, iterations=12, size=60, features=6)
    }
    assert len(courses) == 6
    own = courses["sm-geodesic", "none"]
    assert courses["sm-geodesic", "powers of two"] == own
    assert courses["sm-geodesic", "any"] == pytest.approx(own, rel=1e-6)
    assert own[-1] < 0.5 * own[0]
    assert courses["b-sgd", "none"][0] == own[0]
    assert courses["b-sgd", "any"][-1] != pytest.approx(courses["b-sgd", "none"][-1], rel=1e-2)


def test_a_contest_gives_the_course_of_every_solver(digits, monkeypatch):
    monkeypatch.setattr(
        contest, "CONTESTANTS", (*contest.CONTESTANTS[:5], *contest.CONTESTANTS[6:8])
    )
    runs = contest.contest(digits, 0.5, size=50, features=6)
    assert [c.solver for c in runs] == [
        *("trust-regions", "trust-regions", "conjugate-gradient", "conjugate-gradient"),
        *("lbfgs", "sgd"),
    ]
    starts = {points[0].cost for points in runs.values()}
    assert max(starts) == pytest.approx(min(starts), rel=1e-9)
    for points in runs.values():
        costs, passes = [p.cost for p in points], [p.passes for p in points]
        assert costs == sorted(costs, reverse=True)
        assert passes == sorted(passes)
        assert costs[-1] < costs[0]


def test_what_is_not_finite_ends_a_course():
    points = [Point(0, 2, 3.0), Point(1, 4, 4.0), Point(2, 6, math.nan), Point(3, 8, 1.0)]
    assert contest._lowest(iter(points)) == [Point(0, 2, 3.0), Point(1, 4, 3.0)]


def test_overhead_is_timed_of_all_three(digits):
    seconds = overhead.overhead(digits, 2, size=20, features=4)
    assert list(seconds) == ["autograd", "minimize", "pymanopt"]
    assert all(value > 0 for value in seconds.values())


def test_tables_pictures_and_a_summary():
    runs = {
        Contestant("trust-regions", "un"): [Point(0.1 * i, i, 1 / (i + 1)) for i in range(500)],
        Contestant("sgd", "un", 0.1): [Point(0.0, 2, 0.5)],
    }
    rows = list(csv.DictReader(report.contest_csv(runs).splitlines()))
    assert len([row for row in rows if row["solver"] == "trust-regions"]) <= 201
    assert rows[-2]["passes"] == "499"  # the last one is always there
    assert (rows[-1]["lr"], rows[-2]["lr"]) == ("0.1", "")
    courses = [
        Course("sm-geodesic", "none", (1.0, 0.5)),
        Course("sm-geodesic", "any", (1.0, 0.25, 0.1)),
        Course("b-sgd", "none", (1.0,)),
    ]
    assert len(report.rescaling_csv(courses).splitlines()) == 7
    for drawn in (report.draw_contest(runs), report.draw_rescaling(courses)):
        assert drawn.startswith(b"\x89PNG")
    text = report.summary(runs, courses, {"autograd": 0.01, "pymanopt": 0.015})
    assert "trust-regions       un           loss 0.002 after 50 s, 499 passes" in text
    assert (
        "scaled by any: losses up to 5.0e-01 apart, relatively; last 0.5 and 0.1, 2 and 3" in text
    )
    assert "pymanopt: 15.0 ms, 1.50 times autograd" in text


def test_the_command_writes_all_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contest, "CONTESTANTS", contest.CONTESTANTS[2:3])
    small = ["--seconds", "0.2", "--rounds", "1", "--dataset", "digits", "--quiet"]
    monkeypatch.setattr(
        rescaling,
        "rescaled",
        lambda data, on_progress: [Course(u, "none", (1.0, 0.5)) for u in rescaling.UPDATES],
    )
    assert measure.main(["--out", str(tmp_path), *small]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("batch_solvers.csv", "batch_solvers.png", "batch_rescaled.csv", "batch_rescaled.png"),
        "batch_overhead.csv",
    }
    assert "conjugate-gradient" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measure.main(["--out", str(tmp_path), "--seconds", "0"])
    assert measure.main(["--out", str(tmp_path), *small, "--dataset", "nothing"]) == 2
