"""The scale-invariant paper's grids, choices and report, from records alone."""

import csv
import dataclasses
import io
import math

import pytest

from manifoldnet import cli
from manifoldnet.experiments import ConfigError, RecordError, folder
from manifoldnet.experiments.papers.scale_invariant import (
    costs,
    figures,
    grids,
    noise,
    reliability,
    stability,
)
from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.experiments.papers.scale_invariant.curves import best, curves
from manifoldnet.experiments.papers.scale_invariant.report import to_csv, write_stage_report
from manifoldnet.experiments.papers.scale_invariant.rows import StageEpoch, StageRecord, StageResult
from manifoldnet.experiments.papers.scale_invariant.sections import Section

BINS = {"concentration": 4.0, "bin_count": (0, 4), "bin_right": (0, 3), "bin_sure": (0.0, 3.5)}


def record(errors, diverged=False, calibration=BINS, validation=None, **fields):
    """A made-up run."""
    config = StageConfig(epochs=max(len(errors), 1), **fields)
    epochs = tuple(
        StageEpoch(
            epoch=n,
            lr=config.lr,
            train_loss=math.nan if diverged and n == len(errors) else 1.0,
            violation=0.0,
            train_seconds=1.0,
            seconds=2.0,
            train_error=0.5,
            test_error=error,
            validation_error=validation,
            gradient_norm=0.25,
            largest_gradient_norm=0.5,
            step_ratio=0.125,
            largest_step_ratio=0.75,
            largest_loss=2.5,
            norm_error=1e-7,
            largest_weight=3.0,
            overflow="loss, minibatch 7" if diverged and n == len(errors) else "",
            **(calibration if n == len(errors) and not diverged else {}),
        )
        for n, error in enumerate(errors, 1)
    )
    result = StageResult(
        status="diverged" if diverged else "finished",
        reason="",
        epochs=len(errors),
        seconds=2.0 * len(errors),
        test_error=errors[-1],
    )
    return StageRecord(config, {"manifoldnet": "0"}, "00", epochs, result)


def logistic(*errors, **fields):
    return record(errors, method="logistic", **fields)


def rescaled(*errors, **fields):
    return record(errors, method="rescaled", **fields)


# Grids


def test_a_figure_has_every_rate_and_dimension():
    runs = grids.figure(5, "paper")
    amount = grids.PRESETS["paper"]
    own = [run for run in runs if run.method == "rescaled"]
    assert {(run.lr, run.embedding_dim) for run in own} == {
        (h, m) for h in amount.rates for m in amount.dimensions
    }
    assert [run.lr for run in runs if run.method == "logistic"] == list(amount.rates)
    assert {(run.dataset, run.architecture, run.train_size) for run in runs} == {
        ("mnist", "smaller", None)
    }
    assert len({run.identity() for run in runs}) == len(runs)


def test_the_six_figures_are_the_papers():
    assert [(f.dataset, f.architecture) for f in grids.FIGURES.values()] == [
        ("cifar10", "larger"),
        ("mnist", "larger"),
        ("imagenet10", "imagenet-larger"),
        ("cifar10", "smaller"),
        ("mnist", "smaller"),
        ("imagenet10", "imagenet-smaller"),
    ]
    with pytest.raises(ConfigError, match="there is no figure 7"):
        grids.figure(7, "cpu")
    with pytest.raises(ConfigError, match="there is no preset 'gpu'"):
        grids.figure(1, "gpu")
    with pytest.raises(ConfigError, match="repetitions is 0"):
        grids.repeated(grids.figure(1, "cpu"), 0)


def test_a_figures_size_is_that_of_its_preset():
    def sizes(number, preset):
        runs = grids.figure(number, preset)
        return {(r.epochs, r.train_size) for r in runs}, len({r.lr for r in runs})

    assert sizes(5, "paper") == sizes(2, "paper") == ({(100, None)}, 7)
    assert sizes(5, "cpu") == ({(6, 5000)}, 7)
    assert sizes(2, "cpu") == ({(5, 2000)}, 4)  # the larger network
    assert sizes(3, "cpu") == sizes(6, "cpu") == ({(5, None)}, 6)  # all thousand images
    assert sizes(3, "paper") == ({(100, None)}, 7)
    noisy = {preset: grids.noise(preset)[0] for preset in grids.PRESETS}
    assert {(r.epochs, r.train_size) for r in noisy.values()} == {(10, None), (6, 5000)}
    with pytest.raises(ConfigError, match="there is no preset 'gpu'"):
        grids.noise("gpu")


def test_every_power_of_ten_is_500_steps():
    runs = grids.stability()
    rates = {r.lr for r in runs}
    assert (len(rates), min(rates), max(rates)) == (13, 1e-6, 1e6)
    assert {(r.train_size // r.batch_size, r.epochs) for r in runs} == {(500, 1)}
    kinds = {("rescaled", False), ("rescaled", True), ("logistic", False)}
    assert {(r.method, r.spheres) for r in runs} == kinds


def test_choices_never_see_test_images():
    for dataset in ("mnist", "cifar10", "imagenet10"):
        runs = grids.choice(dataset, "smaller", ["rescaled", "logistic"])
        assert all(run.validation_size > 0 and run.train_size for run in runs)
        assert dataset != "imagenet10" or sum((runs[0].validation_size, runs[0].train_size)) == 1000
        own = [(run.lr, run.embedding_dim) for run in runs if run.method == "rescaled"]
        rates = [run.lr for run in runs if run.method == "logistic"]
        assert own == [(h, m) for h in rates for m in (10, 128, 1024)]
        assert dataset == "imagenet10" or rates == [0.01, 0.03, 0.1, 0.3, 1, 3, 10]
    assert {(run.train_size, run.epochs) for run in grids.choice("mnist", "smaller", ["etf"])} == {
        (5000, 3)
    }


def test_the_chosen_are_compared_on_all_images():
    short = [
        rescaled(0.3, lr=0.1, embedding_dim=16),
        rescaled(0.2, lr=1.0, embedding_dim=32),
        logistic(0.4, lr=0.01),
        logistic(math.nan, lr=0.1, diverged=True),
    ]
    picked = grids.chosen(short, ["rescaled", "logistic"])
    runs = grids.comparison(picked, "mnist", "smaller", 10, 2)
    assert [(r.method, r.lr, r.embedding_dim, r.seed) for r in runs] == [
        ("rescaled", 1.0, 32, 0),
        ("logistic", 0.01, None, 0),
        ("rescaled", 1.0, 32, 1),
        ("logistic", 0.01, None, 1),
    ]
    assert all(run.train_size is None and run.validation_size == 0 for run in runs)
    with pytest.raises(RecordError, match="no short run of logistic ended"):
        grids.chosen(short[3:], ["logistic"])


def test_the_edge_of_a_grid_is_that_of_a_methods_own_rates():
    found = curves([logistic(0.2, lr=h) for h in (0.1, 0.3, 1.0)] + [rescaled(0.2, lr=3.0)])
    own = [curve for curve in found if curve.method == "logistic"]
    assert [grids.at_edge(curve, found) for curve in own] == [("h",), (), ("h",)]


def test_the_largest_dimension_is_an_edge_and_the_smallest_is_none():
    grid = [(h, m) for h in (0.1, 0.3, 1.0) for m in (10, 128)]
    found = curves([rescaled(0.2, lr=h, embedding_dim=m) for h, m in grid] + [logistic(0.1, lr=9)])
    edges = {curve.label: grids.at_edge(curve, found) for curve in found}
    assert edges == {
        "h = 0.1, m = 10": ("h",),
        "h = 0.1, m = 128": ("h", "m"),
        "h = 0.3, m = 10": (),
        "h = 0.3, m = 128": ("m",),
        "h = 1, m = 10": ("h",),
        "h = 1, m = 128": ("h", "m"),
        "h = 9": ("h",),
    }
    wide = [curve for curve in found if curve.embedding_dim == 128]
    told = [grids.edge_label(curve, found) for curve in wide]
    assert told[:2] == [
        "h = 0.1, m = 128 (edge of the grid: h, m)",
        "h = 0.3, m = 128 (edge of the grid: m)",
    ]


def test_corrupted_data_come_at_every_rate_for_both_methods():
    runs = grids.noise("cpu")
    settings = {(run.wrong_labels, run.outliers) for run in runs}
    assert settings == {(0, 0), (0.2, 0), (0.4, 0), (0.6, 0), (0, 0.1), (0, 0.3)}
    clean = [(r.method, r.lr, r.embedding_dim) for r in runs if not r.wrong_labels + r.outliers]
    odd = [(r.method, r.lr, r.embedding_dim) for r in runs if r.wrong_labels == 0.4]
    assert clean == odd
    counts = {method: sum(m == method for m, _, _ in odd) for method in ("rescaled", "logistic")}
    assert counts == {"rescaled": 14, "logistic": 7}
    assert {m for method, _, m in odd if method == "rescaled"} == {10, 128}
    lowest = {
        (share, method): min(r.lr for r in runs if (r.outliers, r.method) == (share, method))
        for share in (0, 0.1)
        for method in ("rescaled", "logistic")
    }
    assert lowest[0.1, "logistic"] == lowest[0.1, "rescaled"] == 1e-5  # gross outliers need that
    assert lowest[0, "logistic"] == 0.01
    assert all(run.validation_size == grids.NOISE_VALIDATION for run in runs)


def test_the_claim_is_run_with_more_seeds_at_the_chosen_rates():
    runs = [
        logistic(0.4, lr=0.1),
        logistic(0.3, lr=0.3),
        rescaled(0.2, lr=0.1),
        logistic(0.1, lr=0.1, wrong_labels=0.4),
        logistic(0.9, lr=0.3, wrong_labels=0.4),
        rescaled(0.3, lr=0.3, wrong_labels=0.4),
        rescaled(0.0, lr=0.7, wrong_labels=0.2),
        rescaled(0.0, lr=0.7, outliers=0.3),
    ]
    again = grids.noise_again(runs, 2)
    assert [(r.method, r.lr, r.wrong_labels, r.seed) for r in again] == [
        (method, lr, share, seed)
        for seed in (0, 1)
        for method, lr, share in (
            ("rescaled", 0.1, 0.0),
            ("logistic", 0.3, 0.0),
            ("rescaled", 0.3, 0.4),
            ("logistic", 0.1, 0.4),
        )
    ]


# Curves


def test_a_curve_is_the_mean_over_seeds_and_ends_where_a_run_does():
    (curve,) = curves(
        [logistic(0.4, 0.2, lr=0.1, seed=1), logistic(0.6, math.nan, lr=0.1, diverged=True)]
    )
    assert curve.errors()[0] == pytest.approx(0.5)
    assert math.isnan(curve.errors()[1])
    assert curve.diverged == 1
    assert curve.score({0, 1}) == math.inf
    assert curve.mean() == 0.2
    assert curve.final() == {1: 0.2}


def test_validation_images_choose_where_there_are_some():
    def judged(validation, test, **fields):
        run = logistic(test, validation_size=9, **fields)
        last = dataclasses.replace(run.epochs[-1], validation_error=validation)
        return dataclasses.replace(run, epochs=(last,))

    found = curves(
        [
            judged(0.2, 0.5, lr=0.1),
            judged(0.3, 0.1, lr=1.0),
            judged(0.01, 0.1, lr=1.0, seed=1),  # a seed that the other has not
        ]
    )
    chosen = best(found, "logistic")
    assert (chosen.lr, chosen.mean()) == (0.1, 0.5)


def test_the_best_is_that_of_the_lowest_final_error():
    found = curves([logistic(0.1, 0.3, lr=0.1), logistic(0.5, 0.2, lr=1.0), rescaled(0.1, 0.1)])
    assert best(found, "logistic").lr == 1.0
    assert best(found, "etf") is None
    alike = [rescaled(0.1, lr=h, embedding_dim=m) for h, m in ((1.0, 8), (0.1, 32), (0.1, 16))]
    assert best(curves(alike), "rescaled").label == "h = 0.1, m = 16"  # of equals the smallest


# The report


def test_the_csv_has_a_row_per_epoch():
    runs = [rescaled(0.5, 0.25, lr=0.1, embedding_dim=32, seed=3), logistic(0.4, lr=0.01)]
    text = to_csv([Section("figure5", "grid", runs)])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        *("figure", "dataset", "architecture", "method", "h", "m", "seed", "epoch", "test_error")
    ]
    assert [row["method"] for row in rows] == ["logistic", "rescaled", "rescaled"]
    assert [tuple(row.values()) for row in rows if row["method"] == "rescaled"] == [
        ("5", "mnist", "smaller", "rescaled", "0.1", "32", "3", "1", "0.5"),
        ("5", "mnist", "smaller", "rescaled", "0.1", "32", "3", "2", "0.25"),
    ]
    assert [tuple(row.values()) for row in rows if row["method"] == "logistic"] == [
        ("5", "mnist", "smaller", "logistic", "0.01", "", "0", "1", "0.4"),
    ]


@pytest.fixture
def some(tmp_path):
    """A figure, a comparison, corrupted data, and runs that choose a rate."""
    made = {
        "figure5": [rescaled(0.3, 0.2, lr=h, embedding_dim=m) for h in (0.1, 1.0) for m in (10, 32)]
        + [logistic(0.4, 0.3, lr=0.01), logistic(0.9, math.nan, lr=1.0, diverged=True)],
        "comparison": [
            run
            for seed in range(3)
            for run in (
                rescaled(0.1, 0.05, 0.02 + 0.001 * seed, lr=0.5, seed=seed),
                logistic(0.1, 0.06, 0.03 + 0.002 * seed, lr=0.01, seed=seed),
            )
        ],
        "label-noise": [
            run
            for share, bad, good in ((0.0, 0.1, 0.1), (0.4, 0.3, 0.2))
            for run in (
                logistic(bad, lr=0.01, wrong_labels=share, train_size=100),
                logistic(bad + 0.02, lr=0.01, wrong_labels=share, train_size=100, seed=1),
                logistic(bad + 0.1, lr=0.1, wrong_labels=share, train_size=100),
                rescaled(good, lr=0.1, wrong_labels=share, train_size=100),
                rescaled(good + share / 10, lr=0.1, wrong_labels=share, train_size=100, seed=1),
            )
        ],
        "stability": [
            dataclasses.replace(
                record([0.2], diverged=config.method == "logistic" and config.lr > 10),
                config=config,
            )
            for config in grids.stability()
        ],
        "choice": [
            record(
                [math.nan],
                validation=error,
                method="logistic",
                lr=h,
                train_size=100,
                validation_size=50,
            )
            for h, error in ((0.3, 0.77), (1.0, 0.88), (3.0, 0.99))
        ],
    }
    for name, runs in made.items():
        (tmp_path / name / "records").mkdir(parents=True)
        for run in runs:
            folder.keep(tmp_path / name, run)
    return tmp_path


def test_the_report_tells_of_all_there_is(some, capsys):
    report = write_stage_report(some)
    assert {path.name for path in report.files} == {
        *("scale_invariant.csv", "scale_invariant.md", "scale_invariant.html"),
        *("scale_invariant_figure5.png", "label_noise.png", "label_noise.csv"),
        *("scale_invariant_stability.png", "scale_invariant_reliability.png"),
    }
    assert all(path.exists() for path in report.files)
    lines = [" ".join(line.split()) for line in report.text.splitlines()]
    headings = [line for line in lines if line.startswith("#")]
    assert headings == [
        "# Scale-invariant learning and convolutional networks",
        "## In short",
        "## Test error at the chosen rates",
        "## Wrong labels and outliers: mnist, smaller: 100 images, 1 epoch",
        "## Every learning rate",
        "## Figure 5: mnist, smaller: all training images, 2 epochs",
        "## Rates and dimensions chosen",
        "## Confidence",
    ]
    data = "| mnist, smaller: all training images, 3 epochs | "
    assert data + "rescaled | 0.5 | – | – | 0.0210 ± 0.0010 | 3 | 0 |" in lines
    difference = "rescaled (h = 0.5) − logistic (h = 0.01) | -0.0110 | -0.0135 to -0.0085 | 3 |"
    assert data + difference in lines
    assert "| h | rescaled, m = 10 | rescaled, m = 32 | logistic |" in lines
    assert "| 0.01 | – | – | 0.3000 |" in lines
    assert "| 1 | 0.2000 | 0.2000 | diverged |" in lines
    start = "| wrong labels | 40 % | "
    chosen = "logistic | h = 0.01 (edge of the grid: h) | 2 |"
    assert start + chosen + " 0.3100 | +0.2000 | 2 | 0.25 | 0.5 |" in lines
    chosen = "rescaled | h = 0.1 (edge of the grid: h) | 1 |"
    assert start + chosen + " 0.2200 | +0.1200 | 2 | 0.25 | 0.5 |" in lines
    (apart,) = (line for line in lines if line.startswith(start + "-0.08"))
    assert apart.endswith("| 2 |")
    assert sum(line.startswith("| wrong labels | 0 % |") for line in lines) == 2  # not compared
    assert "| rescaled | 13 | 0 | 0.2000 | 2.5 | 1.0e-07 | 3 | 0.12 to 0.12 |" in lines
    spheres = "| rescaled, kernels on spheres | 13 | 0 |"
    assert spheres + " 0.2000 | 2.5 | 1.0e-07 | 3 | 0.12 to 0.12 |" in lines
    assert "| logistic | 13 | 5 | 0.2000 | 2.5 | – | 3 | 0.12 to 0.12 |" in lines
    assert "| 10 | 0.2000 | 0.2000 | 0.2000 | 0.12 | 0.12 | 0.12 |" in lines
    assert "| 100 | 0.2000 | 0.2000 | loss, minibatch 7 | 0.12 | 0.12 | – |" in lines
    assert "| mnist, smaller: all training images, 3 epochs | logistic | 4 | 0.1250 |" in lines
    chosen = "| mnist, smaller: 100 images, 1 epoch | logistic | h = 0.3 (edge of the grid: h) |"
    assert chosen + " 0.3 to 3 | – | 0.7700 |" in lines
    judged = csv.DictReader(io.StringIO((some / "scale_invariant.csv").read_text()))
    assert "choice" not in {row["figure"] for row in judged}  # they have seen no test images
    rows = list(csv.DictReader(io.StringIO((some / "label_noise.csv").read_text())))
    assert len(rows) == 10
    assert (rows[0]["kind"], rows[0]["share"], rows[0]["step_ratio"]) == (
        "wrong labels",
        "0",
        "0.125",
    )
    assert cli.main(["report", str(some)]) == 0
    assert "# Scale-invariant learning" in capsys.readouterr().out


def table(text, heading):
    """The rows of the first table below a heading, cell by cell."""
    (_, below) = text.split(f"\n## {heading}\n")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in below.split("\n## ")[0].split("\n\n![")[0].splitlines()
        if line.startswith("|")
    ]
    ends = [i for i, row in enumerate(rows) if row[0].startswith("---")]
    return [rows[0], *rows[2 : ends[1] - 1 if len(ends) > 1 else None]]


def test_the_report_begins_with_answers(some):
    overflown = record([math.nan], method="logistic", lr=0.1, outliers=0.3, diverged=True)
    overflown = dataclasses.replace(
        overflown, config=dataclasses.replace(overflown.config, train_size=100)
    )
    folder.keep(some / "label-noise", overflown)
    folder.keep(some / "label-noise", rescaled(0.25, lr=0.1, outliers=0.3, train_size=100))
    _, *rows = table(write_stage_report(some).text, "In short")
    three, one = (
        "mnist, smaller: all training images, 3 epochs",
        "mnist, smaller: 100 images, 1 epoch",
    )
    assert rows[0] == [
        *("lower test error than logistic", three, "yes", "0.0210 ± 0.0010", "0.0320 ± 0.0020"),
        "-0.0110 (-0.0135 to -0.0085)",
    ]
    assert rows[1] == [
        "lower test error, best h and m of Figure 5",
        *("mnist, smaller: all training images, 2 epochs", "one seed", "0.2000", "0.3000"),
        "-0.1000",
    ]
    told = {row[0]: row[1:5] for row in rows[2:]}
    assert told["trains with 30 % outliers, where the other overflows"] == [
        *(one, "yes", "0.2500", "overflow at every h")
    ]
    assert told["loses less to 40 % wrong labels"] == [one, "undecided", "+0.1200", "+0.2000"]
    assert told["lower test error with 40 % wrong labels"][:2] == [one, "undecided"]
    assert told["finite at every h from 1e-06 to 1e+06"][1:] == [
        *("yes", "13 of 13 runs", "8 of 13 runs")
    ]
    assert len(told) == 4


def test_outliers_have_an_answer_where_neither_overflows(some):
    for run in (
        rescaled(0.25, lr=0.1, outliers=0.3, train_size=100),
        logistic(0.75, lr=0.001, outliers=0.3, train_size=100),
    ):
        folder.keep(some / "label-noise", run)
    _, *rows = table(write_stage_report(some).text, "In short")
    told = {row[0]: row[2:] for row in rows}
    answer = ["one seed", "0.2500", "0.7500", "-0.5000"]
    assert told["lower test error with 30 % outliers"] == answer


def test_an_interval_on_the_other_side_is_a_no(tmp_path):
    (tmp_path / "comparison" / "records").mkdir(parents=True)
    for seed in range(3):
        folder.keep(tmp_path / "comparison", rescaled(0.30 + seed / 100, lr=1.0, seed=seed))
        folder.keep(tmp_path / "comparison", logistic(0.20 + seed / 100, lr=1.0, seed=seed))
    lost = record([math.nan], method="logistic", lr=1.0, seed=3, diverged=True)
    folder.keep(tmp_path / "comparison", lost)
    _, row = table(write_stage_report(tmp_path).text, "In short")
    assert row[2] == "no, higher, 1 diverged"


# What counts of several choices


def keep(place, *runs):
    (place / "records").mkdir(parents=True, exist_ok=True)
    for run in runs:
        folder.keep(place, run)


def short(error, **fields):
    """A run that chooses."""
    return record([math.nan], validation=error, train_size=100, validation_size=50, **fields)


@pytest.fixture
def rechosen(tmp_path):
    """A comparison at m = 128, and at m = 1024 after the grid was widened."""
    for seed in range(2):
        keep(
            tmp_path / "comparison-mnist",
            rescaled(0.30 + seed / 100, lr=3.0, embedding_dim=128, seed=seed),
            rescaled(0.10 + seed / 100, lr=3.0, embedding_dim=1024, seed=seed),
            logistic(0.20 + seed / 100, lr=0.1, seed=seed),
        )
    keep(
        tmp_path / "choice-mnist",
        short(0.2, method="rescaled", lr=3.0, embedding_dim=128),
        short(0.1, method="rescaled", lr=3.0, embedding_dim=1024),
        short(0.3, method="logistic", lr=0.1),
    )
    return tmp_path


def test_earlier_choices_stay_and_the_one_of_now_counts(rechosen):
    text = write_stage_report(rechosen).text
    heading, *rows = table(text, "Test error at the chosen rates")
    assert heading[1:] == ["method", "h", "m", "chosen", "test error", "n", "diverged"]
    assert [row[1:6] for row in rows] == [
        ["rescaled", "3", "128", "before", "0.3050 ± 0.0071"],
        ["rescaled", "3", "1024", "now", "0.1050 ± 0.0071"],
        ["logistic", "0.1", "–", "now", "0.2050 ± 0.0071"],
    ]
    differences = [line for line in text.splitlines() if "− logistic (h" in line]
    (line,) = (" ".join(line.split()) for line in differences)
    assert "| rescaled (h = 3, m = 1024) − logistic (h = 0.1) | -0.1000 |" in line
    assert "those from before are of earlier choices" in text
    confident = [row[1] for row in table(text, "Confidence")[1:]]
    assert confident == ["rescaled", "logistic"]
    _, answer = table(text, "In short")
    assert answer[2:5] == ["yes", "0.1050 ± 0.0071", "0.2050 ± 0.0071"]
    assert "scale_invariant_comparison-mnist.png" not in text  # no figure


def test_a_choice_that_has_not_been_run_is_a_row_without_runs(rechosen):
    keep(rechosen / "choice-mnist", short(0.05, method="logistic", lr=0.3))
    text = write_stage_report(rechosen).text
    _, *rows = table(text, "Test error at the chosen rates")
    assert [row[1:] for row in rows[2:]] == [
        ["logistic", "0.1", "–", "before", "0.2050 ± 0.0071", "2", "0"],
        ["logistic", "0.3", "–", "now", "–", "0", "0"],
    ]
    _, answer = table(text, "In short")
    assert answer[2] == "yes, at an earlier choice"
    keep(rechosen / "choice-mnist", short(0.01, method="rescaled", lr=1.0, embedding_dim=10))
    text = write_stage_report(rechosen).text
    assert "− logistic" not in text  # of two earlier ones neither counts
    assert "## In short" not in text


def test_without_the_short_runs_several_rows_are_not_compared(rechosen):
    text = write_stage_report(rechosen / "comparison-mnist").text
    _, *rows = table(text, "Test error at the chosen rates")
    assert [row[4] for row in rows] == ["–", "–", "–"]
    assert "− logistic" not in text


def test_a_comparison_belongs_to_its_own_way_of_choosing(rechosen):
    names = grids.folder_names("mnist", 5000, 50_000, 2)
    assert names == ("choice-mnist-50000-2", "comparison-mnist-5000-by-50000-2")
    assert grids.choice_of(names[1], "mnist") == names[0]
    assert grids.folder_names("mnist", None, None, None) == ("choice-mnist", "comparison-mnist")
    assert grids.choice_of("comparison-mnist-5000", "mnist") == "choice-mnist"
    keep(
        rechosen / "choice-mnist-50000-2",
        *(short(0.4, method="rescaled", lr=h, embedding_dim=128) for h in (1.0, 2.0)),
    )
    keep(
        rechosen / "comparison-mnist-by-50000-2",
        *(rescaled(0.4, lr=h, embedding_dim=128) for h in (1.0, 2.0)),
    )
    _, *rows = table(write_stage_report(rechosen).text, "Test error at the chosen rates")
    told = {
        tuple(row[2:4]): row[4] for row in rows if row[0].endswith("(comparison-mnist-by-50000-2)")
    }
    assert told == {("1", "128"): "now", ("2", "128"): "before"}
    assert sum(row[0].endswith("(comparison-mnist)") for row in rows) == 3


# Beyond the paper


def test_other_stages_have_a_table_of_their_own(tmp_path):
    place = tmp_path / "comparison-mnist-5000"
    for seed in range(2):
        more = {"seed": seed, "train_size": 5000}
        keep(
            place,
            rescaled(0.10 + seed / 100, lr=1.0, embedding_dim=1024, **more),
            logistic(0.20 + seed / 100, lr=0.1, **more),
            record([0.15 + seed / 100], method="cosine", lr=0.3, **more),
            record([0.05 + seed / 50], method="etf", lr=0.3, calibration={}, **more),
        )
    measured = {("rescaled", "1024"): {1: 0.2, 2: 0.3}, ("logistic", ""): {1: 0.1, 2: 0.15}}
    (tmp_path / costs.NAME).write_text(costs.to_csv(measured))
    text = write_stage_report(tmp_path).text
    heading, *rows = table(text, "Beyond the paper: mnist, smaller: 5,000 images, 1 epoch")
    assert heading == [
        *("stage", "h", "m", "chosen", "test error", "n", "diverged", "calibration error"),
        "ms/step",
    ]
    assert rows == [
        ["rescaled", "1", "1024", "–", "0.1050 ± 0.0071", "2", "0", "0.1250", "250.0"],
        ["logistic", "0.1", "–", "–", "0.2050 ± 0.0071", "2", "0", "0.1250", "125.0"],
        ["cosine", "0.3", "–", "–", "0.1550 ± 0.0071", "2", "0", "0.1250", "–"],
        ["etf", "0.3", "–", "–", "0.0600 ± 0.0141", "2", "0", "–", "–"],
    ]
    assert "## Test error at the chosen rates" not in text
    answers = {row[0]: row[2] for row in table(text, "In short")[1:]}
    assert answers == {
        "lower test error than logistic": "yes",
        "lower test error than cosine": "yes",
        "lower test error than etf": "undecided",
    }
    keep(tmp_path / "choice-mnist", short(0.1, method="smoothing", lr=0.1))
    keep(place, record([0.3], method="smoothing", lr=0.01, train_size=5000))
    text = write_stage_report(tmp_path).text
    _, *rows = table(text, "Beyond the paper: mnist, smaller: 5,000 images, 1 epoch")
    assert [row for row in rows if row[0] == "smoothing"] == [
        ["smoothing", "0.01", "–", "before", "0.3000", "1", "0", "0.1250", "–"],
        ["smoothing", "0.1", "–", "now", "–", "0", "0", "–", "–"],
    ]


def test_one_sweep_alone_can_be_reported(some, tmp_path):
    report = write_stage_report(some / "comparison", tmp_path / "out")
    assert {path.parent for path in report.files} == {tmp_path / "out"}
    assert not any("figure" in path.name for path in report.files)  # one rate is no grid


def test_nothing_to_report(some, tmp_path):
    with pytest.raises(RecordError, match="holds no records with test errors"):
        write_stage_report(some / "choice")
    with pytest.raises(RecordError, match="holds no records with test errors"):
        write_stage_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"train_size": 200}, "train_size"),
        ({"outliers": 0.1, "outlier_kind": "contrast", "train_size": 100}, "outlier_kind"),
        ({"spheres": True, "train_size": 100}, "spheres"),
    ],
)
def test_a_sweep_is_of_one_protocol(some, odd, message):
    folder.keep(some / "label-noise", logistic(0.1, lr=0.1, **odd))
    with pytest.raises(RecordError, match=f"label-noise are of more than one protocol .*{message}"):
        write_stage_report(some)


def test_a_sweep_is_of_one_set_of_images(some):
    other = dataclasses.replace(logistic(0.1, lr=7.0, train_size=100), data="01")
    folder.keep(some / "label-noise", other)
    with pytest.raises(RecordError, match="the records of label-noise are of different data"):
        write_stage_report(some)


def test_two_sweeps_of_corrupted_data_and_of_every_rate_keep_their_files(some):
    for name in ("label-noise", "stability"):
        (some / f"{name}-again" / "records").mkdir(parents=True)
    run = logistic(0.7, lr=0.1, wrong_labels=0.3)
    folder.keep(some / "label-noise-again", dataclasses.replace(run, versions={"torch": "9"}))
    folder.keep(some / "stability-again", dataclasses.replace(run, config=grids.stability()[0]))
    report = write_stage_report(some)
    names = [path.name for path in report.files]
    assert len(set(names)) == len(names)
    for kind in ("label-noise", "stability"):
        assert any(f"{kind}.png" in name for name in names)
        assert any(f"{kind}-again.png" in name for name in names)
    rows = {
        name: list(csv.DictReader(io.StringIO((some / f"label_noise_{name}.csv").read_text())))
        for name in ("label-noise", "label-noise-again")
    }
    assert (len(rows["label-noise"]), len(rows["label-noise-again"])) == (10, 1)
    assert "Made with manifoldnet 0; torch 9." in report.text


def test_two_figures_of_one_kind_stand_beside_each_other(some):
    (some / "figure5-long" / "records").mkdir(parents=True)
    for h in (0.1, 0.2):
        folder.keep(some / "figure5-long", logistic(0.1, 0.1, 0.1, 0.1, lr=h, train_size=7))
    report = write_stage_report(some)
    names = [path.name for path in report.files]
    assert {"scale_invariant_figure5.png", "scale_invariant_figure5-long.png"} < set(names)
    assert len(set(names)) == len(names)
    with (some / "scale_invariant.csv").open() as stream:
        keys = [tuple(row.values())[:8] for row in csv.DictReader(stream)]
    assert len(set(keys)) == len(keys)
    assert {key[0] for key in keys} == {"5", "5-long", "comparison", "stability"}


def test_corrupted_runs_without_clean_ones_are_reported(tmp_path):
    (tmp_path / "label-noise" / "records").mkdir(parents=True)
    folder.keep(tmp_path / "label-noise", logistic(0.3, lr=0.1, outliers=0.1))
    text = write_stage_report(tmp_path).text
    (line,) = (line for line in text.splitlines() if line.startswith("| outliers"))
    assert line.split("|")[7].strip() == "–"  # nothing to compare with


def test_corrupted_runs_are_told_by_their_last_epoch_and_largest_gradient():
    runs = [logistic(0.4, 0.2, lr=0.1, outliers=0.1, seed=seed) for seed in (0, 1)]
    last = dataclasses.replace(runs[1].epochs[-1], largest_gradient_norm=8.0, step_ratio=0.5)
    runs[1] = dataclasses.replace(runs[1], epochs=(runs[1].epochs[0], last))
    found = noise.by_setting(runs)
    rows = list(csv.DictReader(io.StringIO(noise.to_csv(found))))
    assert [row["test_error"] for row in rows] == ["0.2", "0.2"]
    assert [row["step_ratio"] for row in rows] == ["0.125", "0.5"]
    (table,) = list(noise.blocks(found))[1:]
    assert table.rows[0][-2:] == ("0.25", "8")


def test_a_grid_that_shares_a_rate_with_every_rate_is_a_grid(tmp_path):
    (tmp_path / "figure5" / "records").mkdir(parents=True)
    for h in (0.1, 0.3):
        folder.keep(tmp_path / "figure5", logistic(0.1, lr=h, train_size=50_000))
    report = write_stage_report(tmp_path)
    assert "scale_invariant_figure5.png" in {path.name for path in report.files}


# Pictures


@pytest.fixture
def lines(monkeypatch):
    """The lines of what a module draws: panel by panel, what they are called and where they go."""

    def read(module, *given):
        drawn = []
        monkeypatch.setattr(module, "png", drawn.append)
        module.draw(*given)
        return [
            {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
            for axes in drawn[0].axes
        ]

    return read


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_the_legends_of_a_figure_cover_no_curve(monkeypatch, preset):
    drawn = []
    monkeypatch.setattr(figures, "png", drawn.append)
    runs = [dataclasses.replace(record([0.9, 0.1]), config=c) for c in grids.figure(5, preset)]
    figures.draw(curves(runs[1:]), "one combination is missing")
    (figure,) = drawn
    figure.canvas.draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert not any(legend.overlaps(panel.get_window_extent()) for panel in figure.axes)
        texts = [
            text.get_text() for text in axes.get_legend().get_texts() if text.get_text() != " "
        ]
        assert sorted(texts) == sorted(line.get_label() for line in axes.lines)
    first, *_ = (axes.get_legend().get_texts() for axes in figure.axes)
    rates = grids.PRESETS[preset].rates
    assert (
        [text.get_text() for text in first[: len(rates)]]
        == [
            " ",  # a column for each m
            *(f"h = {h:g}, m = 10" for h in rates[1:]),
        ]
    )


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


def test_a_figure_tells_every_rate_from_the_others(lines):
    rates = grids.PRESETS["paper"].rates
    runs = [
        rescaled(0.5, 0.1 * n, lr=h, embedding_dim=m)
        for n, h in enumerate(rates, 1)
        for m in (10, 32)
    ]
    runs += [logistic(0.5, 0.3, lr=0.1), logistic(0.5, math.nan, lr=1.0, diverged=True)]
    first, second, both = lines(figures, curves(runs), "title")
    looks = {(line.get_color(), line.get_linestyle()) for line in first.values()}
    assert (len(first), len(looks)) == (14, 14)
    assert list(second) == ["h = 0.1", "h = 1 (1 of 1 diverged)"]
    assert points(both["rescaled, h = 0.001, m = 10"]) == [(1, 50), (2, 10)]
    assert points(both["logistic, h = 0.1"]) == [(1, 50), (2, 30)]


def test_a_run_that_overflowed_has_a_cross_and_no_point(lines):
    runs = [
        dataclasses.replace(record([0.2], diverged=config.lr > 10), config=config)
        for config in grids.stability()
        if config.method == "logistic"
    ]
    error, loss, step = lines(stability, runs)
    finite = [10.0**power for power in range(-6, 2)]
    assert points(error["logistic"]) == [(h, 20) for h in finite]
    assert points(error["logistic: overflow"]) == [(10.0**power, 100) for power in range(2, 7)]
    assert points(loss["logistic"]) == [(h, 2.5) for h in finite]
    assert points(step["logistic"]) == [(h, 0.125) for h in finite]


def test_runs_with_several_seeds_are_points_around_their_median(monkeypatch):
    drawn = []
    monkeypatch.setattr(stability, "png", drawn.append)
    runs = [
        logistic(error, lr=h, seed=seed)
        for h, errors in ((0.1, (0.2, 0.5, 0.3)), (1.0, (0.6, 0.4, 0.9)))
        for seed, error in enumerate(errors)
    ]
    runs += [
        logistic(0.7, lr=10.0),
        record([0.9], method="logistic", lr=10.0, seed=1, diverged=True),
    ]
    stability.draw(runs)
    line, singles, crosses = drawn[0].axes[0].lines
    assert points(line) == [(0.1, 30), (1, 60)]  # none where a seed overflowed
    assert points(singles) == [
        *((0.1, y) for y in (20, 50, 30)),
        *((1, y) for y in (60, 40, 90)),
        (10, 70),
    ]
    assert singles.get_linestyle() == "None"
    assert (points(crosses), crosses.get_label()) == ([(10, 100)], "logistic: overflow")


def test_panels_have_the_same_epochs_where_one_is_empty(lines):
    lost = record([math.nan], method="logistic", lr=0.1, diverged=True)
    panels = lines(figures, curves([record([0.3, 0.2, 0.1], lr=0.1), lost]), "title")
    left, middle, _ = ({line.axes.get_xlim() for line in panel.values()} for panel in panels)
    assert left == middle


def test_confidence_is_drawn_against_accuracy_and_pooled(lines):
    last = record([0.2]).epochs[0]
    other = dataclasses.replace(last, bin_count=(12, 2), bin_right=(3, 2), bin_sure=(4.8, 1.0))
    pooled = reliability.reliability([last, other])
    assert pooled.count == (12, 6)
    assert pooled.confidence == pytest.approx((0.4, 0.75))
    assert pooled.accuracy == pytest.approx((0.25, 5 / 6))
    (panel,) = lines(reliability, {"title": {"etf": [last, other]}})
    (drawn,) = panel.values()
    assert points(drawn) == [pytest.approx((40, 25))]  # the other bin has six samples


def test_corrupted_data_are_drawn_at_their_share(lines):
    runs = [rescaled(0.1, lr=0.1), rescaled(0.3, lr=0.1, wrong_labels=0.4)]
    (panel,) = lines(noise, noise.by_setting(runs))
    assert points(panel["rescaled"]) == [(0, 10), (40, 30)]


def test_what_overflowed_at_every_rate_has_a_cross_at_the_top(lines):
    lost = {"method": "logistic", "diverged": True, "outliers": 0.3}
    runs = [rescaled(0.1, lr=0.1), rescaled(0.2, lr=0.1, outliers=0.3), logistic(0.1, lr=0.1)]
    runs += [record([math.nan], lr=h, **lost) for h in (0.1, 1.0)]
    (panel,) = lines(noise, noise.by_setting(runs))
    assert set(panel) == {"rescaled", "logistic", "logistic: overflow at every rate"}
    cross = panel["logistic: overflow at every rate"]
    assert points(cross) == [(30, 1)]
    assert cross.get_transform() == cross.axes.get_xaxis_transform()  # 1 is the top of the panel
    (panel,) = lines(noise, noise.by_setting([*runs, logistic(0.9, lr=0.01, outliers=0.3)]))
    assert set(panel) == {"rescaled", "logistic"}  # a rate at which it did not
