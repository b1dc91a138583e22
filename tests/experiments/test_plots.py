import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_tables import run

from manifoldnet.experiments import MissingExtraError, plot_test_error, write_report
from manifoldnet.experiments.papers.symmetry.plots import curves, spread


def test_a_curve_is_the_mean_in_per_cent_between_the_best_and_the_worst_seed():
    (curve,) = curves([run(errors=(0.5, 0.1)), run(seed=1, errors=(0.3, 0.2))])
    assert curve.update == "un"
    assert curve.runs == 2
    assert curve.mean == pytest.approx((40, 15))
    assert curve.low == pytest.approx((30, 10))
    assert curve.high == pytest.approx((50, 20))


def test_runs_that_diverged_are_not_drawn():
    assert [c.runs for c in curves([run(), run(seed=1, status="diverged")])] == [1]
    assert curves([run(status="diverged")]) == []


@pytest.mark.parametrize(
    "records",
    [
        [run(), run("sm"), run("b-sgd", errors=(0.5, 0.1001))],
        [run(errors=(0.5,))],
        [run(errors=(0.5, 0.0))],
        [run(errors=(0.0, 0.0))],
        [run(status="diverged")],
    ],
    ids=["three", "one epoch", "an error of zero", "no errors", "nothing"],
)
def test_the_picture_is_drawn(tmp_path, records):
    plot_test_error(records, tmp_path / "picture.png", "title")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1152, 704)
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 20


def test_drawing_touches_no_global_state(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_test_error([run()], tmp_path / "picture.png", "title")
    assert ("matplotlib.pyplot" in sys.modules) == before


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted), st.floats(0.01, 0.2))
def test_labels_are_moved_apart_in_order_and_together_stay_where_they_were(heights, gap):
    moved = spread(heights, gap)
    assert all(b - a >= gap * (1 - 1e-9) for a, b in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights), abs=1e-9)
    if all(b - a >= gap for a, b in pairwise(heights)):
        assert moved == pytest.approx(heights)


def test_a_report_is_a_table_a_spreadsheet_and_a_picture(tmp_path):
    report = write_report([run("sm"), run("un", status="diverged")], tmp_path)
    assert report.files[0].read_text() == report.text
    assert "digits, Arch2 with 2 hidden layers, λ = 0.01 × 0.95 per epoch" in report.text
    assert "un, seed 0: diverged" in report.text
    assert [path.name for path in report.files] == ["table.md", "results.csv", "test_error.png"]
    assert all(path.exists() for path in report.files)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="manifoldnet\\[experiments\\]"):
        plot_test_error([run()], tmp_path / "picture.png", "title")
