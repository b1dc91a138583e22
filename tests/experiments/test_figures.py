"""Pictures of runs: lines, bands and axes, as they are handed to matplotlib."""

import re
import sys

import pytest
from matplotlib.axes import Axes
from PIL import Image
from runs import record, run

from manifoldnet.experiments import MissingExtraError, plot_test_error, plotting, write_report
from manifoldnet.experiments.papers.symmetry.cells import FIGURE3
from manifoldnet.experiments.papers.symmetry.figures import curves, figure3, trajectories
from manifoldnet.experiments.papers.symmetry.results import by_cell, figure3_table, run_table

ARCH1 = [cell for cell in FIGURE3 if cell.architecture == "arch1"]
ARCH2 = [cell for cell in FIGURE3 if cell.architecture == "arch2"]

# b-sgd ends early, sm goes on longest, un diverges; on Arch2 one update alone.
RUNS = [
    record(ARCH1[0], 0, [0.5, 0.3]),
    record(ARCH1[0], 1, [0.3, 0.1, 0.1]),
    record(ARCH1[0], 2, [0.9], "validation"),
    record(ARCH1[1], 0, [0.4, 0.3, 0.2, 0.1]),
    record(ARCH1[2], 0, [0.9, 0.9], "loss"),
    record(ARCH1[2], 1, [0.9, 0.9], "validation"),
    record(ARCH2[0], 0, [0.02, 0.01]),
]


def draw(records):
    return figure3(figure3_table(records), by_cell(run_table(records)))


def test_a_line_goes_on_to_the_last_epoch_of_its_panel():
    lines = trajectories(figure3_table(RUNS), [cell.name for cell in ARCH1])
    b_sgd, sm, un = lines.values()
    assert b_sgd.mean(axis=1).tolist() == pytest.approx([40, 20, 20, 20])
    assert (b_sgd.shape, b_sgd.attrs["lengths"]) == ((4, 2), [2, 3])
    assert sm[0].tolist() == pytest.approx([40, 30, 20, 10])
    assert un.empty


@pytest.fixture(scope="module")
def drawn():
    """The bands that were drawn, by the axes of their panel."""
    panels, fill = {}, Axes.fill_between

    def note(axes, epochs, low, high, **options):
        panels.setdefault(axes, []).append((list(epochs), low, high))
        return fill(axes, epochs, low, high, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "fill_between", note)
        draw(RUNS)
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
        assert axes.get_ylim() == pytest.approx((0.9, 44))  # from 1 % to 40 %


def test_a_line_is_dashed_where_final_errors_are_extended(drawn):
    solid, dashed, *_ = next(iter(drawn)).get_lines()
    assert (solid.get_linestyle(), list(solid.get_xdata())) == ("-", [1, 2])
    assert (dashed.get_linestyle(), list(dashed.get_xdata())) == ("--", [2, 3, 4])


def test_the_legend_counts_diverged_runs(drawn):
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn]
    assert legends == [
        [
            "plain SGD (n = 2, 1 diverged)",
            "scaled metric, additive (n = 1)",
            "unit norm (all 2 diverged)",
        ],
        ["plain SGD (n = 1)"],
    ]


@pytest.mark.parametrize("errors", [[0.1], [0.0]])
def test_figures_of_few_points_are_drawn(errors):
    assert draw([record(ARCH1[0], 0, errors)]).startswith(b"<?xml")
    assert draw([record(FIGURE3[0], 0, errors, "loss")]).startswith(b"<?xml")


def line(colour):
    """A figure of one line; its title has matplotlib's own colour."""
    figure = plotting.new_figure(2, 1)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=colour)
    axes.set_title("black by default")
    plotting.style(axes)
    return figure


def test_a_dark_picture_differs_in_its_colours_only():
    light = plotting.svg(line(plotting.RED))
    dark = plotting.on_dark(light)
    colour = re.compile(rb": #\w{6}")
    assert [len(set(colour.findall(each))) for each in (light, dark)] == [3, 3]  # red, ink, faint
    assert not set(colour.findall(light)) & set(colour.findall(dark))
    assert colour.sub(b"", light) == colour.sub(b"", dark)
    assert plotting.svg(line(plotting.RED)) == light


def test_a_colour_without_a_dark_one_is_refused():
    with pytest.raises(ValueError, match="#123456"):
        plotting.on_dark(plotting.svg(line("#123456")))


def test_a_curve_has_the_epochs_of_all_runs_that_did_not_diverge():
    runs = [run(errors=(0.5, 0.1)), run(seed=1, errors=(0.3, 0.2, 0.1)), run(seed=2, diverged=True)]
    (curve,) = curves([*runs, run("sm", diverged=True)]).values()
    assert curve.mean(axis=1).tolist() == pytest.approx([40, 15])
    assert curve.shape == (2, 2)


@pytest.mark.parametrize(
    "records",
    [
        [run(), run("sm"), run("b-sgd", errors=(0.5, 0.1001))],
        [run(errors=(0.5,))],
        [run(errors=(0.5, 0.0))],
        [run(diverged=True)],
    ],
    ids=["three", "one epoch", "an error of zero", "nothing"],
)
def test_the_picture_is_drawn_without_global_state(tmp_path, records):
    before = "matplotlib.pyplot" in sys.modules
    plot_test_error(records, tmp_path / "picture.png", "title")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (1152, 704)
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 20
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_report_has_a_table_a_csv_and_a_picture(tmp_path):
    report = write_report([run("sm"), run("un", diverged=True)], tmp_path)
    assert report.files[0].read_text() == report.text
    assert "digits, Arch2 with 2 hidden layers, λ = 0.01 × 0.95 per epoch" in report.text
    assert "un, seed 0: diverged" in report.text
    assert [path.name for path in report.files] == ["table.md", "results.csv", "test_error.png"]
    assert all(path.exists() for path in report.files)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="manifoldnet\\[experiments\\]"):
        plot_test_error([run()], tmp_path / "picture.png", "title")
