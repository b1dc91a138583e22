"""Figure 3: lines, bands and axes, as they are handed to matplotlib."""

import pytest
from matplotlib.axes import Axes
from test_paper_report import record

from manifoldnet.experiments.papers.symmetry import results
from manifoldnet.experiments.papers.symmetry.cells import FIGURE3
from manifoldnet.experiments.papers.symmetry.trajectories import draw, trajectories

ARCH1 = [cell for cell in FIGURE3 if cell.architecture == "arch1"]
ARCH2 = [cell for cell in FIGURE3 if cell.architecture == "arch2"]


@pytest.fixture
def table():
    """b-sgd ends early, sm goes on longest, un diverges; on Arch2 one update alone."""
    return results.by_cell(
        [
            record(ARCH1[0], 0, [0.5, 0.3]),
            record(ARCH1[0], 1, [0.3, 0.1, 0.1]),
            record(ARCH1[0], 2, [0.9], "validation"),
            record(ARCH1[1], 0, [0.4, 0.3, 0.2, 0.1]),
            record(ARCH1[2], 0, [0.9, 0.9], "loss"),
            record(ARCH1[2], 1, [0.9, 0.9], "validation"),
            record(ARCH2[0], 0, [0.02, 0.01]),
        ]
    )


def test_a_line_goes_on_to_the_last_epoch_of_its_panel(table):
    b_sgd, sm, un = trajectories(table, "arch1")
    assert b_sgd.mean == pytest.approx((0.4, 0.2, 0.2, 0.2))
    assert b_sgd.deviation == pytest.approx((0.2 / 2**0.5,) * 4)
    assert (b_sgd.runs, b_sgd.shortest) == (2, 2)
    assert (sm.mean, sm.deviation) == ((0.4, 0.3, 0.2, 0.1), (0.0,) * 4)
    assert (un.mean, un.deviation, un.runs) == ((), (), 0)
    (alone,) = trajectories(table, "arch2")
    assert alone.mean == (0.02, 0.01)


@pytest.fixture
def drawn(table, monkeypatch):
    """What was drawn on each panel: its axes, and the bands."""
    panels, fill = {}, Axes.fill_between

    def note(axes, epochs, low, high, **options):
        panels.setdefault(axes, []).append((list(epochs), low, high))
        return fill(axes, epochs, low, high, **options)

    monkeypatch.setattr(Axes, "fill_between", note)
    draw(table)
    return panels


def test_the_band_is_one_deviation_to_either_side(drawn):
    (epochs, low, high), *_ = next(iter(drawn.values()))
    assert epochs == [1, 2, 3, 4]
    assert low == pytest.approx([40 - 14.142136, *[20 - 14.142136] * 3])
    assert high == pytest.approx([40 + 14.142136, *[20 + 14.142136] * 3])


def test_the_axes_begin_with_epoch_one_and_show_small_differences(drawn):
    first, second = drawn
    assert (first.get_xlim(), second.get_xlim()) == ((1, 4), (1, 2))
    for axes in drawn:
        assert axes.get_yscale() == "log"
        bottom, top = axes.get_ylim()
        assert (bottom, top) == pytest.approx((0.9, 44))  # from 1 % to 40 %


def test_a_line_is_dashed_where_its_last_errors_are_carried_on(drawn):
    solid, dashed, *_ = next(iter(drawn)).get_lines()
    assert (solid.get_linestyle(), list(solid.get_xdata())) == ("-", [1, 2])
    assert (dashed.get_linestyle(), list(dashed.get_xdata())) == ("--", [2, 3, 4])
    caption = next(iter(drawn)).get_figure().get_supxlabel()
    assert "dashed: some runs have ended, their last error is carried on" in caption


def test_the_legend_tells_what_diverged(drawn):
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn]
    assert legends == [
        ["b-sgd (n = 2, 1 diverged)", "sm (n = 1)", "un (all 2 diverged)"],
        ["b-sgd (n = 1)"],
    ]


@pytest.mark.parametrize("runs", [[], [record(ARCH1[0], 0, [0.1])], [record(ARCH1[0], 0, [0.0])]])
def test_little_is_drawn_as_well(runs):
    assert draw(results.by_cell(runs)).startswith(b"\x89PNG")
