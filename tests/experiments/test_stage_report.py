"""The scale-invariant paper's grids, choices, claims, report, pictures and commands."""

import csv
import dataclasses
import io
import math
import re

import pytest

from manifoldnet import cli
from manifoldnet.experiments import ConfigError, RecordError, store, study
from manifoldnet.experiments.papers.scale_invariant import config as grids
from manifoldnet.experiments.papers.scale_invariant import figures, records
from manifoldnet.experiments.papers.scale_invariant.claims import errors
from manifoldnet.experiments.papers.scale_invariant.config import Choice, StageConfig
from manifoldnet.experiments.papers.scale_invariant.records import (
    COSTS,
    StageEpoch,
    StageRecord,
    StageResult,
    at,
    best,
    by_setting,
    choices,
    edge_label,
    frame,
)
from manifoldnet.experiments.papers.scale_invariant.report import write_stage_report
from manifoldnet.experiments.papers.scale_invariant.times import to_csv

BINS = {"concentration": 4.0, "bin_count": (0, 4), "bin_right": (0, 3), "bin_sure": (0.0, 3.5)}
replace = dataclasses.replace


MEASURED = (
    {"violation": 0.0, "train_seconds": 1.0, "seconds": 2.0, "train_error": 0.5}
    | {"gradient_norm": 0.25, "largest_gradient_norm": 0.5, "step_ratio": 0.125}
    | {"largest_step_ratio": 0.75, "largest_loss": 2.5, "norm_error": 1e-7, "largest_weight": 3.0}
)


def record(errors, diverged=False, calibration=BINS, validation=None, **fields):
    """A made-up run; with `config`, of that configuration."""
    config = fields.pop("config", None) or StageConfig(epochs=len(errors), **fields)
    given = MEASURED | {"train_loss": 1.0, "lr": config.lr, "validation_error": validation}
    epochs = [StageEpoch(epoch=n, test_error=e, **given) for n, e in enumerate(errors, 1)]
    overflow = {"overflow": "loss, minibatch 7", "train_loss": math.nan}
    epochs[-1] = replace(epochs[-1], **(overflow if diverged else calibration))
    result = StageResult(
        status="diverged" if diverged else "finished",
        reason="",
        epochs=len(errors),
        seconds=2.0 * len(errors),
        test_error=errors[-1],
    )
    return StageRecord(config, {"manifoldnet": "0"}, "00", tuple(epochs), result)


def logistic(*errors, **fields):
    return record(errors, method="logistic", **fields)


def rescaled(*errors, **fields):
    return record(errors, method="rescaled", **fields)


def lost(**fields):
    return logistic(math.nan, diverged=True, **fields)


def short(error, **fields):
    """A run that chooses."""
    return record([math.nan], validation=error, train_size=100, validation_size=50, **fields)


def keep(place, *runs):
    (place / "records").mkdir(parents=True, exist_ok=True)
    for run in runs:
        store.keep(place, run)


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


def undrawn(place):
    """The report with empty pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("grid", "comparison", "robustness", "stability", "reliability"):
            patch.setattr(figures, f"draw_{name}", lambda *_: b"")
        return write_stage_report(place)


def text_of(place):
    return undrawn(place).text


def csv_rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


# Grids


def test_a_figure_has_every_rate_and_dimension():
    runs, amount = grids.figure(5, "paper"), grids.PRESETS["paper"]
    own = [(run.lr, run.embedding_dim) for run in runs if run.method == "rescaled"]
    assert own == [(h, m) for h in amount.rates for m in amount.dimensions]
    assert [run.lr for run in runs if run.method == "logistic"] == list(amount.rates)
    assert {(run.dataset, run.architecture) for run in runs} == {("mnist", "smaller")}
    assert len({run.identity() for run in runs}) == len(runs)
    assert [(f.dataset, f.architecture) for f in grids.FIGURES.values()] == [
        *(("cifar10", "larger"), ("mnist", "larger"), ("imagenet10", "imagenet-larger")),
        *(("cifar10", "smaller"), ("mnist", "smaller"), ("imagenet10", "imagenet-smaller")),
    ]


@pytest.mark.parametrize(
    ("preset", "number", "epochs", "size", "rates"),
    [
        *(("paper", number, 100, None, 7) for number in (2, 3, 5)),
        ("cpu", 5, 6, 5000, 7),
        ("cpu", 2, 5, 2000, 4),  # the larger network
        *(("cpu", number, 5, None, 6) for number in (3, 6)),  # all thousand images
    ],
)
def test_a_figures_size_is_that_of_its_preset(preset, number, epochs, size, rates):
    runs = grids.figure(number, preset)
    assert {(run.epochs, run.train_size) for run in runs} == {(epochs, size)}
    assert len({run.lr for run in runs}) == rates


def test_unknown_figures_presets_and_no_repetitions_are_refused():
    for wrong in (
        lambda: grids.figure(7, "cpu"),
        lambda: grids.figure(1, "gpu"),
        lambda: grids.robustness("gpu"),
        lambda: study.repeated(grids.figure(1, "cpu"), 0),
        lambda: grids.choice(StageConfig(), ["logistic"], epochs=0),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_the_stability_grid_has_500_steps_at_every_power_of_ten():
    runs = grids.stability()
    assert sorted({run.lr for run in runs}) == [10.0**power for power in range(-6, 7)]
    assert {(run.train_size // run.batch_size, run.epochs) for run in runs} == {(500, 1)}
    variants = {(run.method, run.spheres) for run in runs}
    assert variants == {("rescaled", False), ("rescaled", True), ("logistic", False)}
    assert len(runs) == 39


def test_choices_hold_out_validation_images():
    for dataset in ("mnist", "cifar10", "imagenet10"):
        of = StageConfig(dataset=dataset, architecture="larger", epochs=30)
        runs = grids.choice(of, ["rescaled", "logistic"])
        assert {run.architecture for run in runs} == {"larger"}
        assert all(run.validation_size > 0 and run.train_size for run in runs)
        assert dataset != "imagenet10" or runs[0].validation_size + runs[0].train_size == 1000
        own = [(run.lr, run.embedding_dim) for run in runs if run.method == "rescaled"]
        rates = [run.lr for run in runs if run.method == "logistic"]
        assert own == [(h, m) for h in rates for m in (10, 32, 128, 512, 1024)]
        assert dataset == "imagenet10" or rates == [0.01, 0.03, 0.1, 0.3, 1, 3, 10]
    (runs, longer) = (grids.choice(StageConfig(), ["etf"], *length) for length in ((), (50_000, 2)))
    assert {(run.train_size, run.epochs) for run in runs} == {(5000, 3)}
    assert longer == [replace(run, train_size=50_000, epochs=2) for run in runs]


def test_corrupted_data_come_at_every_rate_for_both_methods():
    runs = grids.robustness("cpu")
    assert {(r.epochs, r.train_size) for r in runs} == {(6, 5000)}
    assert {(r.epochs, r.train_size) for r in grids.robustness("paper")} == {(10, None)}
    settings = {(run.wrong_labels, run.outliers) for run in runs}
    assert settings == {(0, 0), (0.2, 0), (0.4, 0), (0.6, 0), (0, 0.1), (0, 0.3)}
    clean = [run for run in runs if not run.wrong_labels + run.outliers]
    odd = [run for run in runs if run.wrong_labels == 0.4]
    assert clean == [replace(run, wrong_labels=0.0) for run in odd]
    assert [run.method for run in odd].count("rescaled") == 14
    assert {run.embedding_dim for run in odd if run.method == "rescaled"} == {10, 128}
    for method in ("rescaled", "logistic"):  # gross outliers need smaller rates
        assert min(r.lr for r in runs if (r.outliers, r.method) == (0.1, method)) == 1e-5
        assert min(r.lr for r in odd if r.method == method) == 0.01
    assert all(run.validation_size == grids.ROBUSTNESS_VALIDATION for run in runs)


def test_the_chosen_are_compared_on_all_images():
    runs = [
        rescaled(0.3, lr=0.1, embedding_dim=16),
        rescaled(0.2, lr=1.0, embedding_dim=32),
        logistic(0.4, lr=0.01),
        lost(lr=0.1),
    ]
    picked = records.chosen(runs, ["rescaled", "logistic"])
    compared = grids.comparison(picked, StageConfig(epochs=10), 2)
    assert [(r.method, r.lr, r.embedding_dim, r.seed) for r in compared] == [
        (method, h, m, seed)
        for seed in (0, 1)
        for method, h, m in (("rescaled", 1.0, 32), ("logistic", 0.01, None))
    ]
    assert all(run.train_size is None and run.validation_size == 0 for run in compared)
    with pytest.raises(RecordError, match="no short run of logistic ended"):
        records.chosen(runs[3:], ["logistic"])


def test_each_setting_is_run_with_more_seeds_at_its_chosen_rates():
    runs = [
        logistic(0.4, lr=0.1),
        logistic(0.3, lr=0.3),
        rescaled(0.2, lr=0.1),
        logistic(0.1, lr=0.1, wrong_labels=0.4),
        logistic(0.9, lr=0.3, wrong_labels=0.4),
        rescaled(0.3, lr=0.3, wrong_labels=0.4),
        rescaled(0.0, lr=0.7, outliers=0.3),
    ]
    again = records.best_of_each(runs, 2, "wrong_labels", "outliers")
    assert [(r.method, r.lr, r.wrong_labels, r.outliers, r.seed) for r in again] == [
        (*one, seed)
        for seed in (0, 1)
        for one in (
            *(("rescaled", 0.1, 0.0, 0.0), ("logistic", 0.3, 0.0, 0.0)),
            ("rescaled", 0.7, 0.0, 0.3),  # the other method was not run there
            *(("rescaled", 0.3, 0.4, 0.0), ("logistic", 0.1, 0.4, 0.0)),
        )
    ]


# Choices


def test_an_edge_is_that_of_a_methods_own_grid():
    grid = [(h, m) for h in (0.1, 0.3, 1.0) for m in (10, 128)]
    runs = frame(
        [rescaled(0.2, lr=h, embedding_dim=m) for h, m in grid]
        + [logistic(0.1, lr=h) for h in (0.1, 1.0, 9.0)]
    )
    labels = {
        method: [edge_label(runs, method, one) for one in choices(runs, method)]
        for method in ("rescaled", "logistic")
    }
    assert labels == {
        "rescaled": [
            "h = 0.1, m = 10 (edge of the grid: h)",
            "h = 0.1, m = 128 (edge of the grid: h, m)",
            "h = 0.3, m = 10",  # the smallest m is no edge
            "h = 0.3, m = 128 (edge of the grid: m)",
            "h = 1, m = 10 (edge of the grid: h)",
            "h = 1, m = 128 (edge of the grid: h, m)",
        ],
        "logistic": ["h = 0.1 (edge of the grid: h)", "h = 1", "h = 9 (edge of the grid: h)"],
    }


def test_the_best_has_the_lowest_score_over_shared_seeds_and_no_divergence():
    def judged(validation, test, **fields):
        return logistic(test, validation_size=9, validation=validation, **fields)

    runs = frame(
        [
            judged(0.2, 0.5, lr=0.1),
            judged(0.3, 0.1, lr=1.0),
            judged(0.01, 0.1, lr=1.0, seed=1),  # a seed that the other has not
        ]
    )
    assert best(runs, "logistic") == (0.1, 0)  # validation images choose where there are some
    assert best(runs, "etf") is None
    final = [logistic(0.1, 0.3, lr=0.1), logistic(0.5, 0.2, lr=1.0)]
    assert best(frame(final), "logistic") == (1.0, 0)  # after the last epoch
    assert best(frame([*final, lost(lr=1.0, seed=1)]), "logistic") == (0.1, 0)
    assert best(frame([lost(lr=1.0)]), "logistic") is None
    alike = [rescaled(0.1, lr=h, embedding_dim=m) for h, m in ((1.0, 8), (0.1, 32), (0.1, 16))]
    assert best(frame(alike), "rescaled") == (0.1, 16)  # of equals the smallest
    curve = at(frame([logistic(0.2, lr=0.1, seed=1), lost(lr=0.1)]), "logistic", Choice(0.1, 0))
    assert errors(curve) == {1: 0.2}


# The report


@pytest.fixture
def some(tmp_path):
    """A figure, a comparison, corrupted data, and runs that choose a rate."""
    keep(
        tmp_path / "figure5",
        *(rescaled(0.3, 0.2, lr=h, embedding_dim=m) for h in (0.1, 1.0) for m in (10, 32)),
        logistic(0.4, 0.3, lr=0.01),
        logistic(0.9, math.nan, lr=1.0, diverged=True),
    )
    for seed in range(3):
        keep(
            tmp_path / "comparison",
            rescaled(0.1, 0.05, 0.02 + 0.001 * seed, lr=0.5, seed=seed),
            logistic(0.1, 0.06, 0.03 + 0.002 * seed, lr=0.01, seed=seed),
        )
    for share, bad, good in ((0.0, 0.1, 0.1), (0.4, 0.3, 0.2)):
        given = {"wrong_labels": share, "train_size": 100}
        keep(
            tmp_path / "label-noise",
            logistic(bad, lr=0.01, **given),
            logistic(bad + 0.02, lr=0.01, **given, seed=1),
            logistic(bad + 0.1, lr=0.1, **given),
            rescaled(good, lr=0.1, **given),
            rescaled(good + share / 10, lr=0.1, **given, seed=1),
        )
    keep(tmp_path / "stability", *(stable(config) for config in grids.stability()))
    tried = ((0.3, 0.77), (1.0, 0.88), (3.0, 0.99))
    keep(tmp_path / "choice", *(short(error, method="logistic", lr=h) for h, error in tried))
    return tmp_path


def stable(config):
    return record([0.2], diverged=config.method == "logistic" and config.lr > 10, config=config)


def test_the_report_has_every_section_table_and_file(some, capsys):
    report = write_stage_report(some)
    assert {path.name for path in report.files} == {
        *("scale_invariant.csv", "scale_invariant.md", "scale_invariant.html"),
        "label_noise.csv",
        *(
            f"{name}-{page}.svg"
            for page in ("light", "dark")
            for name in (
                *("scale_invariant_figure5", "scale_invariant_comparison", "label_noise"),
                *("scale_invariant_stability", "scale_invariant_reliability"),
            )
        ),
    }
    assert all(path.exists() for path in report.files)
    lines = [" ".join(line.split()) for line in report.text.splitlines()]
    assert [line for line in lines if line.startswith("#")] == [
        "# All numbers of the scale-invariant paper",
        "## In short",
        "## Test error at the chosen rates",
        "## Wrong labels and outliers: mnist, smaller: 100 images, 1 epoch",
        "## Every learning rate",
        "## Figure 5: mnist, smaller: all training images, 2 epochs",
        "## Rates and dimensions chosen",
        "## Confidence",
    ]
    data = "| mnist, smaller: all training images, 3 epochs |"
    difference = "rescaled (h = 0.5) − logistic (h = 0.01) | -0.0110 | -0.0135 to -0.0085 | 3 |"
    noisy, own = "| wrong labels | 40 % |", "2 | 0.25 | 0.5 |"
    assert {
        f"{data} rescaled | 0.5 | – | – | 0.0210 ± 0.0010 | 3 | 0 |",
        f"{data} {difference}",
        f"{data} logistic | 4 | 0.1250 |",
        "| h | rescaled, m = 10 | rescaled, m = 32 | logistic |",
        "| 0.01 | – | – | 0.3000 |",
        "| 1 | 0.2000 | 0.2000 | diverged |",
        f"{noisy} logistic | h = 0.01 (edge of the grid: h) | 2 | 0.3100 | +0.2000 | {own}",
        f"{noisy} rescaled | h = 0.1 (edge of the grid: h) | 1 | 0.2200 | +0.1200 | {own}",
        "| rescaled | 13 | 0 | 0.2000 | 2.5 | 1.0e-07 | 3 | 0.12 to 0.12 |",
        "| rescaled, kernels on spheres | 13 | 0 | 0.2000 | 2.5 | 1.0e-07 | 3 | 0.12 to 0.12 |",
        "| logistic | 13 | 5 | 0.2000 | 2.5 | – | 3 | 0.12 to 0.12 |",
        "| 10 | 0.2000 | 0.2000 | 0.2000 | 0.12 | 0.12 | 0.12 |",
        "| 100 | 0.2000 | 0.2000 | loss, minibatch 7 | 0.12 | 0.12 | – |",
        "| mnist, smaller: 100 images, 1 epoch | logistic | h = 0.3 (edge of the grid: h) "
        "| 0.3 to 3 | – | 0.7700 |",
    } <= set(lines)
    (apart,) = (line for line in lines if line.startswith(f"{noisy} -0.08"))
    assert apart.endswith("| 2 |")
    assert sum(line.startswith("| wrong labels | 0 % |") for line in lines) == 2  # not compared
    assert cli.main(["report", str(some)]) == 0
    assert "# All numbers" in capsys.readouterr().out


def test_the_spreadsheets_have_a_row_per_epoch_or_run(some):
    text_of(some)
    rows = [tuple(row.values()) for row in csv_rows(some / "scale_invariant.csv")]
    assert {row[0] for row in rows} == {"5", "comparison", "stability"}  # those with test images
    assert [row for row in rows if row[0] == "5" and row[5] in ("", "32")] == [
        ("5", "mnist", "smaller", "logistic", "0.01", "", "0", "1", "0.4"),
        ("5", "mnist", "smaller", "logistic", "0.01", "", "0", "2", "0.3"),
        ("5", "mnist", "smaller", "logistic", "1", "", "0", "1", "0.9"),
        ("5", "mnist", "smaller", "logistic", "1", "", "0", "2", ""),
        *(
            ("5", "mnist", "smaller", "rescaled", h, "32", "0", str(n), error)
            for h in ("0.1", "1")
            for n, error in ((1, "0.3"), (2, "0.2"))
        ),
    ]
    assert {row[3] for row in rows} == {"rescaled", "rescaled-spheres", "logistic"}
    noisy = csv_rows(some / "label_noise.csv")
    assert len(noisy) == 10
    assert {row["kind"] for row in noisy} == {"wrong labels"}
    assert [row["share"] for row in noisy] == ["0"] * 5 + ["0.4"] * 5


def test_sizes_of_the_start_have_a_table_and_a_picture(tmp_path):
    for size in (0.3, 1.0):
        for h in (0.1, 1.0):
            given = {"lr": h, "start_size": size, "start": "torch7"}
            runs = [short(0.5 - h / 10, method=m, **given) for m in ("rescaled", "logistic")]
            purpose = {"purpose": "choice of start sizes"}
            keep(tmp_path / "choice-start-sizes", *(replace(run, sweep=purpose) for run in runs))
        for seed in range(2):
            given = {"lr": 1.0, "start_size": size, "start": "torch7", "seed": seed}
            runs = rescaled(0.1 * size, **given), logistic(0.2, **given)
            purpose = {"purpose": "start sizes"}
            keep(tmp_path / "start-sizes", *(replace(run, sweep=purpose) for run in runs))
    report = write_stage_report(tmp_path)
    what = "mnist, smaller: all training images, 1 epoch, Torch7's start"
    rows = table(report.text, f"Kernels that start smaller or larger: {what}")
    assert [row[:5] for row in rows[1:]] == [
        ["0.3", "1", "0.0300 ± 0.0000", "1", "0.2000 ± 0.0000"],
        ["1", "1", "0.1000 ± 0.0000", "1", "0.2000 ± 0.0000"],
    ]
    assert [row[5] for row in rows[1:]] == ["-0.1700", "-0.1000"]
    assert "scale_invariant_start_sizes-dark.svg" in {path.name for path in report.files}


def test_answers_come_first(some):
    overflown = lost(lr=0.1, outliers=0.3, train_size=100)
    keep(some / "label-noise", overflown, rescaled(0.25, lr=0.1, outliers=0.3, train_size=100))
    _, *rows = table(text_of(some), "In short")
    epochs = "mnist, smaller: all training images, {} epochs"
    assert rows[0] == [
        *("lower test error than logistic", epochs.format(3), "yes"),
        *("0.0210 ± 0.0010", "0.0320 ± 0.0020", "-0.0110 (-0.0135 to -0.0085)"),
        "–",
    ]
    assert rows[1] == [
        *("lower test error, best h and m of Figure 5", epochs.format(2), "one seed"),
        *("0.2000", "0.3000", "-0.1000", "more seeds"),
    ]
    one = "mnist, smaller: 100 images, 1 epoch"
    told = {row[0]: row[1:5] for row in rows[2:]}
    needed = {row[0]: row[6] for row in rows if row[2] == "undecided"}
    assert set(needed) == {
        f"{what} 40 % wrong labels" for what in ("loses less to", "lower test error with")
    }
    assert all(re.fullmatch(r"\d+ seeds", text) for text in needed.values())
    assert told.pop("lower test error with 40 % wrong labels")[:2] == [one, "undecided"]
    assert told.pop("finite at every h from 1e-06 to 1e+06")[1:] == [
        *("yes", "13 of 13 runs", "8 of 13 runs")
    ]
    assert told == {
        "trains with 30 % outliers, where the other overflows": [
            *(one, "yes", "0.2500", "overflow at every h")
        ],
        "loses less to 40 % wrong labels": [one, "undecided", "+0.1200", "+0.2000"],
    }


def test_answers_of_one_seed_and_negative_answers(some, tmp_path):
    given = {"outliers": 0.3, "train_size": 100}
    keep(some / "label-noise", rescaled(0.25, lr=0.1, **given), logistic(0.75, lr=0.001, **given))
    told = {row[0]: row[2:] for row in table(text_of(some), "In short")}
    answer = ["one seed", "0.2500", "0.7500", "-0.5000", "more seeds"]
    assert told["lower test error with 30 % outliers"] == answer
    place = tmp_path / "other" / "comparison"
    for seed in range(3):
        keep(place, rescaled(0.3 + seed / 100, seed=seed), logistic(0.2 + seed / 100, seed=seed))
    keep(place, lost(seed=3))
    _, row = table(text_of(tmp_path / "other"), "In short")
    assert row[2] == "no, higher, 1 diverged"


# Several choices


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


def test_the_current_choice_counts_and_earlier_ones_stay(rechosen):
    text = text_of(rechosen)
    heading, *rows = table(text, "Test error at the chosen rates")
    assert heading[1:] == ["method", "h", "m", "chosen", "test error", "n", "diverged"]
    assert [row[1:6] for row in rows] == [
        ["rescaled", "3", "128", "before", "0.3050 ± 0.0071"],
        ["rescaled", "3", "1024", "now", "0.1050 ± 0.0071"],
        ["logistic", "0.1", "–", "now", "0.2050 ± 0.0071"],
    ]
    (line,) = (" ".join(line.split()) for line in text.splitlines() if "− logistic (h" in line)
    assert "| rescaled (h = 3, m = 1024) − logistic (h = 0.1) | -0.1000 |" in line
    assert [row[1] for row in table(text, "Confidence")[1:]] == ["rescaled", "logistic"]
    _, answer = table(text, "In short")
    assert answer[2:5] == ["yes", "0.1050 ± 0.0071", "0.2050 ± 0.0071"]
    assert "scale_invariant_comparison-mnist-light.svg" not in text  # no figure
    alone = text_of(rechosen / "comparison-mnist")  # the short runs are not known
    assert {row[4] for row in table(alone, "Test error at the chosen rates")[1:]} == {"–"}
    assert "− logistic" not in alone


def test_a_choice_without_runs_is_a_row_without_numbers(rechosen):
    keep(rechosen / "choice-mnist", short(0.05, method="logistic", lr=0.3))
    text = text_of(rechosen)
    _, *rows = table(text, "Test error at the chosen rates")
    assert [row[1:] for row in rows[2:]] == [
        ["logistic", "0.1", "–", "before", "0.2050 ± 0.0071", "2", "0"],
        ["logistic", "0.3", "–", "now", "–", "0", "0"],
    ]
    assert table(text, "In short")[1][2] == "yes, at an earlier choice"
    keep(rechosen / "choice-mnist", short(0.01, method="rescaled", lr=1.0, embedding_dim=10))
    text = text_of(rechosen)
    assert "− logistic" not in text  # of two earlier ones neither counts
    assert "## In short" not in text


def test_where_a_run_diverged_the_next_lower_rate_counts(rechosen):
    keep(
        rechosen / "choice-mnist",
        *(short(0.1, method="logistic", lr=h) for h in (0.03, 0.3)),
        short(0.05, method="logistic", lr=1.0),
    )
    place = rechosen / "comparison-mnist"
    keep(place, *(logistic(0.2, lr=1.0, seed=seed, diverged=seed == 1) for seed in range(2)))
    rows = table(text_of(rechosen), "Test error at the chosen rates")[3:]
    assert [row[2:] for row in rows] == [
        ["0.1", "–", "before", "0.2050 ± 0.0071", "2", "0"],
        ["1", "–", "diverged", "0.2000", "1", "1"],
        ["0.3", "–", "now", "–", "0", "0"],
    ]
    keep(place, *(logistic(0.3 + seed / 100, lr=0.3, seed=seed) for seed in range(2)))
    text = text_of(rechosen)
    assert [row[2:4] for row in table(text, "Test error at the chosen rates")[3:]] == [
        ["0.1", "–"],
        ["0.3", "–"],
        ["1", "–"],
    ]
    answer = table(text, "In short")[1]
    assert answer[2:5] == [
        "yes; 1 of 2 logistic runs diverged at h = 1",
        "0.1050 ± 0.0071",
        "0.3050 ± 0.0071",
    ]


def test_a_choice_at_which_a_run_diverged_never_counts(tmp_path):
    keep(tmp_path / "choice-mnist", short(0.1, lr=3.0), short(0.1, method="logistic", lr=1.0))
    for seed in range(3):
        keep(
            tmp_path / "comparison-mnist",
            rescaled(0.1 + seed / 100, lr=3.0, seed=seed),
            logistic(0.2, lr=1.0, seed=seed, diverged=seed == 1),
        )
    assert "− logistic" not in text_of(tmp_path)


def test_a_comparison_belongs_to_its_own_way_of_choosing(rechosen):
    names = grids.folder_names(StageConfig(train_size=5000), 50_000, 2)
    assert names == ("choice-mnist-50000-2", "comparison-mnist-5000-by-50000-2")
    assert grids.choice_of(names[1], "mnist") == names[0]
    assert grids.folder_names(StageConfig(), None) == ("choice-mnist", "comparison-mnist")
    assert grids.folder_names(StageConfig(architecture="larger", epochs=30)) == (
        "choice-mnist-larger",
        "comparison-mnist-larger-30-epochs",
    )
    assert grids.choice_of("comparison-mnist-5000", "mnist") == "choice-mnist"
    for h in (1.0, 2.0):
        given = {"method": "rescaled", "lr": h, "embedding_dim": 128}
        keep(rechosen / "choice-mnist-50000-2", short(0.4, **given))
        keep(rechosen / "comparison-mnist-by-50000-2", record([0.4], **given))
    _, *rows = table(text_of(rechosen), "Test error at the chosen rates")
    own = [row for row in rows if row[0].endswith("(comparison-mnist-by-50000-2)")]
    assert [row[2:5] for row in own] == [["1", "128", "now"], ["2", "128", "before"]]
    assert sum(row[0].endswith("(comparison-mnist)") for row in rows) == 3


def test_other_stages_have_a_table_of_their_own(tmp_path):
    place, title = tmp_path / "comparison-mnist-5000", "mnist, smaller: 5,000 images, 1 epoch"
    for seed in range(2):
        more = {"seed": seed, "train_size": 5000}
        keep(
            place,
            rescaled(0.10 + seed / 100, lr=1.0, embedding_dim=1024, **more),
            logistic(0.20 + seed / 100, lr=0.1, **more),
            record([0.15 + seed / 100], method="cosine", lr=0.3, **more),
            record([0.05 + seed / 50], method="etf", lr=0.3, calibration={}, **more),
        )
    measured = {("rescaled", "1024"): [0.2, 0.3], ("logistic", ""): [0.1, 0.15]}
    (tmp_path / COSTS).write_text(to_csv(measured))
    text = text_of(tmp_path)
    assert "## What a training step costs" in text
    heading, *rows = table(text, f"Beyond the paper: {title}")
    assert heading[4:] == ["test error", "n", "diverged", "calibration error", "ms/step"]
    assert rows == [
        ["rescaled", "1", "1024", "–", "0.1050 ± 0.0071", "2", "0", "0.1250", "250.0"],
        ["logistic", "0.1", "–", "–", "0.2050 ± 0.0071", "2", "0", "0.1250", "125.0"],
        ["cosine", "0.3", "–", "–", "0.1550 ± 0.0071", "2", "0", "0.1250", "–"],
        ["etf", "0.3", "–", "–", "0.0600 ± 0.0141", "2", "0", "–", "–"],
    ]
    assert "## Test error at the chosen rates" not in text
    assert [(row[0][22:], row[2]) for row in table(text, "In short")[1:]] == [
        *(("logistic", "yes"), ("cosine", "yes"), ("etf", "undecided"))
    ]
    keep(tmp_path / "choice-mnist", short(0.1, method="smoothing", lr=0.1))
    keep(place, record([0.3], method="smoothing", lr=0.01, train_size=5000))
    rows = table(text_of(tmp_path), f"Beyond the paper: {title}")
    assert [row for row in rows if row[0] == "smoothing"] == [
        ["smoothing", "0.01", "–", "before", "0.3000", "1", "0", "0.1250", "–"],
        ["smoothing", "0.1", "–", "now", "–", "0", "0", "–", "–"],
    ]


# Sweeps


def test_one_sweep_alone_can_be_reported_but_no_choice(some, tmp_path):
    report = write_stage_report(some / "comparison", tmp_path / "out")
    assert {path.parent for path in report.files} == {tmp_path / "out"}
    assert not any("figure" in path.name for path in report.files)  # one rate is no grid
    for nothing in (some / "choice", tmp_path / "nowhere"):
        with pytest.raises(RecordError, match="holds no records with test errors"):
            write_stage_report(nothing)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"train_size": 200}, "train_size"),
        ({"outliers": 0.1, "outlier_kind": "contrast"}, "outlier_kind"),
        ({"spheres": True}, "spheres"),
        ({"outliers": 0.1, "wrong_labels": 0.1}, "wrong labels and outliers"),
        ({"data": "01"}, "data"),
    ],
)
def test_a_sweep_is_of_one_protocol_and_one_set_of_images(some, odd, message):
    run = logistic(0.1, lr=7.0, **{"train_size": 100} | {k: odd[k] for k in odd if k != "data"})
    keep(some / "label-noise", replace(run, data=odd.get("data", "00")))
    with pytest.raises(RecordError, match=f"(?s)label-noise.*{message}.*another folder"):
        write_stage_report(some)


def test_sweeps_with_one_purpose_have_separate_files(some):
    run = logistic(0.7, lr=0.1, wrong_labels=0.3)
    keep(some / "label-noise-again", replace(run, versions={"torch": "9"}))
    keep(some / "stability-again", stable(grids.stability()[0]))
    long = [logistic(0.1, 0.1, 0.1, 0.1, lr=h, train_size=50_000) for h in (0.1, 0.2)]
    keep(some / "figure5-long", *long)
    report = undrawn(some)
    names = [path.name for path in report.files]
    assert len(set(names)) == len(names)
    for end in ("label-noise", "label-noise-again", "stability-again", "figure5", "figure5-long"):
        assert any(name.endswith(f"_{end}-dark.svg") for name in names)
    assert len(csv_rows(some / "label_noise_label-noise.csv")) == 10
    assert len(csv_rows(some / "label_noise_label-noise-again.csv")) == 1
    assert "Made with manifoldnet 0; torch 9." in report.text
    keys = [tuple(row.values())[:8] for row in csv_rows(some / "scale_invariant.csv")]
    assert len(set(keys)) == len(keys)


def test_sections_take_the_purpose_in_the_records(tmp_path):
    def purposes(**sweep):
        keep(tmp_path / "runs", replace(logistic(0.1, lr=0.1), sweep=sweep))
        return [section.purpose for section in records.read(tmp_path)]

    assert purposes() == ["comparison"]  # guessed: one choice of each method
    assert purposes(purpose="grid") == ["grid"]


def test_corrupted_runs_have_the_measurements_of_their_last_epoch(tmp_path):
    runs = [logistic(0.4, 0.2, lr=0.1, outliers=0.1, seed=seed) for seed in (0, 1)]
    last = replace(runs[1].epochs[-1], largest_gradient_norm=8.0, step_ratio=0.5)
    keep(tmp_path / "label-noise", runs[0], replace(runs[1], epochs=(runs[1].epochs[0], last)))
    text = text_of(tmp_path)
    rows = csv_rows(tmp_path / "label_noise.csv")
    assert [(row["test_error"], row["step_ratio"]) for row in rows] == [
        *(("0.2", "0.125"), ("0.2", "0.5"))
    ]
    (line,) = (line for line in text.splitlines() if line.startswith("| outliers"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[6:] == ["–", "2", "0.25", "8"]  # no clean runs to compare with


# Pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    found = []
    monkeypatch.setattr(figures, "svg", found.append)
    return found


def panels(figure):
    """The lines with a name, panel by panel."""
    return [
        {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
        for axes in figure.axes
    ]


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_legends_overlap_no_curve(drawn, preset):
    runs = [record([0.9, 0.1], config=config) for config in grids.figure(5, preset)]
    figures.draw_grid(frame(runs[1:]), "one combination is missing")
    (figure,) = drawn
    figure.canvas.draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert not any(legend.overlaps(panel.get_window_extent()) for panel in figure.axes)
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert sorted(set(names) - {" "}) == sorted(line.get_label() for line in axes.lines)
    first = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    rates = grids.PRESETS[preset].rates
    assert first[: len(rates)] == [" ", *(f"h = {h:g}, m = 10" for h in rates[1:])]


def test_a_figure_has_a_line_style_for_every_rate_and_means_over_seeds(drawn):
    rates = grids.PRESETS["paper"].rates
    runs = [
        rescaled(0.5, 0.1 * n, lr=h, embedding_dim=m)
        for n, h in enumerate(rates, 1)
        for m in (10, 32)
    ]
    runs += [logistic(0.5, 0.3, lr=0.1), logistic(0.3, 0.1, lr=0.1, seed=1)]
    runs += [logistic(0.5, math.nan, lr=1.0, diverged=True), logistic(0.7, 0.1, lr=1.0, seed=1)]
    figures.draw_grid(frame(runs), "title")
    first, second, both = panels(drawn[0])
    looks = {(line.get_color(), line.get_linestyle()) for line in first.values()}
    assert (len(first), len(looks)) == (14, 14)
    assert list(second) == ["h = 0.1", "h = 1 (1 of 2 diverged)"]
    (one, ended) = map(points, second.values())
    assert (one, ended[0]) == ([(1, 40), (2, 20)], (1, 60))
    assert math.isnan(ended[1][1])  # a line ends where a run does
    assert points(both["rescaled, h = 0.001, m = 10"]) == [(1, 50), (2, 10)]
    assert points(both["logistic, h = 0.1"]) == one


def test_panels_have_the_same_epochs_where_one_is_empty(drawn):
    figures.draw_grid(frame([record([0.3, 0.2, 0.1], lr=0.1), lost(lr=0.1)]), "title")
    left, middle, _ = (axes.get_xlim() for axes in drawn[0].axes)
    assert left == middle


def test_every_rate_has_points_around_a_median_and_crosses_for_overflows(drawn):
    runs = [
        logistic(error, lr=h, seed=seed)
        for h, found in ((0.1, (0.2, 0.5, 0.3)), (1.0, (0.6, 0.4, 0.9)))
        for seed, error in enumerate(found)
    ]
    figures.draw_stability(frame([*runs, logistic(0.7, lr=10.0), lost(lr=10.0, seed=1)]))
    error, loss, step = drawn[0].axes
    line, singles, crosses = error.lines
    assert points(line) == [(0.1, 30), (1, 60)]  # none where a seed overflowed
    assert points(singles) == [
        *((0.1, y) for y in (20, 50, 30)),
        *((1, y) for y in (60, 40, 90)),
        (10, 70),
    ]
    assert singles.get_linestyle() == "None"
    assert (points(crosses), crosses.get_label()) == ([(10, 100)], "logistic: overflow")
    assert points(loss.lines[0]) == [(0.1, 2.5), (1, 2.5)]
    assert points(step.lines[0]) == [(0.1, 0.125), (1, 0.125)]


def test_confidence_is_drawn_against_accuracy_and_pooled(drawn):
    bins = {"bin_count": (12, 2), "bin_right": (3, 2), "bin_sure": (4.8, 1.0)}
    runs = frame([record([0.2]), record([0.2], calibration=BINS | bins, seed=1)])
    pooled = records.reliability(runs)
    assert pooled.count == (12, 6)
    assert pooled.confidence == pytest.approx((0.4, 0.75))
    assert pooled.accuracy == pytest.approx((0.25, 5 / 6))
    figures.draw_reliability({"title": {"etf": runs}})
    (panel,) = panels(drawn[0])
    (line,) = panel.values()
    assert points(line) == [pytest.approx((40, 25))]  # the other bin has six samples


def test_corrupted_data_are_drawn_at_their_share_with_crosses_for_overflows(drawn):
    runs = [rescaled(0.1, lr=0.1), rescaled(0.2, lr=0.1, outliers=0.3), logistic(0.1, lr=0.1)]
    runs += [lost(lr=h, outliers=0.3) for h in (0.1, 1.0)]
    figures.draw_robustness(by_setting(frame(runs)))
    figures.draw_robustness(by_setting(frame([*runs, logistic(0.9, lr=0.01, outliers=0.3)])))
    (panel,), (other,) = map(panels, drawn)
    assert points(panel["rescaled"]) == [(0, 10), (30, 20)]
    cross = panel["logistic: overflow at every rate"]
    assert points(cross) == [(30, 1)]
    assert cross.get_transform() == cross.axes.get_xaxis_transform()  # 1 is the top of the panel
    assert set(other) == {"rescaled", "logistic"}  # a rate at which it did not overflow
