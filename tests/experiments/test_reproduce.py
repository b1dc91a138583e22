"""`manifoldnet reproduce`: the runs of each command, and the commands themselves."""

import dataclasses
import math
from pathlib import Path

import pytest
from sweeps import SHORT, content

from manifoldnet import cli
from manifoldnet.cli import papers
from manifoldnet.experiments import ConfigError
from manifoldnet.experiments import sweep as sweeping
from manifoldnet.experiments.papers.scale_invariant.config import robustness
from manifoldnet.experiments.papers.scale_invariant.records import StageEpoch, StageResult
from manifoldnet.experiments.papers.symmetry import studies
from manifoldnet.experiments.papers.symmetry.cells import (
    FIGURE3,
    GEODESIC,
    PROTOCOL,
    TABLE2,
    Cell,
    configurations,
    named,
)
from manifoldnet.experiments.records import RunRecord


def test_the_table_has_24_cells_and_the_figure_six_of_them():
    assert len(TABLE2) == len({cell.name for cell in TABLE2}) == 24
    assert len(GEODESIC) == 8
    assert [cell.name for cell in FIGURE3] == [
        *(f"arch1-4-{update}-exponential" for update in ("b-sgd", "sm", "un")),
        *(f"arch2-4-{update}-bold-driver" for update in ("b-sgd", "sm", "un")),
    ]
    assert named(["arch1-2-un-*"]) == [
        Cell("arch1", 2, "un", "exponential"),
        Cell("arch1", 2, "un", "bold-driver"),
    ]


def test_the_protocol_is_the_papers():
    runs = configurations(TABLE2, 10)
    assert len({run.identity() for run in runs}) == 240
    assert (PROTOCOL.epochs, PROTOCOL.min_epochs, PROTOCOL.decay) == (60, 25, 0.95)
    assert (PROTOCOL.train_size, PROTOCOL.validation_size, PROTOCOL.batch_size) == (
        50000,
        10000,
        100,
    )
    assert PROTOCOL.lr is None
    assert PROTOCOL.lr_candidates == (1e-2, 1e-3, 1e-4, 1e-5)
    sizes = (PROTOCOL.selection_epochs, PROTOCOL.selection_train_size)
    assert (*sizes, PROTOCOL.selection_validation_size) == (50, 1000, 500)
    assert (PROTOCOL.stop_train_error, PROTOCOL.stop_validation_change) == (1e-5, 1e-5)
    assert PROTOCOL.stop_validation_epochs == 5
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)  # seed by seed


def test_a_pattern_stays_within_its_experiment():
    assert [cell.update for cell in named(["arch1-2-sm-*"])] == ["sm", "sm"]
    assert len(named(["arch2-4-*"])) == 6
    assert named(["arch2-4-*"], FIGURE3) == list(FIGURE3[3:])
    assert named(["*-geodesic-*"], FIGURE3) == list(GEODESIC)
    assert [cell.update for cell in named(["arch1-2-sm-*", GEODESIC[0].name])] == [
        *("sm", "sm"),
        "sm-geodesic",
    ]
    with pytest.raises(ConfigError, match="there is no cell 'arch1-2-un-exponential' here"):
        named(["arch1-2-un-exponential"], FIGURE3)


@pytest.mark.thorough
def test_the_command_trains_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "configurations", lambda cells, n: configurations(cells, n, SHORT))
    command = [
        "reproduce",
        "symmetry",
        "table2",
        "--out",
        str(tmp_path / "o"),
        "--repetitions",
        "1",
    ]
    command += ["--jobs", "1", "--quiet", "--cells", "arch1-2-un-*"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert f"2 runs of 2 cells are in {tmp_path / 'o'}" in out
    assert err == ""
    kept = content(tmp_path / "o")
    assert len(kept) == 2
    assert cli.main(command) == 0
    assert content(tmp_path / "o") == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2", "--cells", "arch3-2-un-exponential"], "there is no cell 'arch3-2-un-exp"),
        (["table2", "--repetitions", "0"], "repetitions is 0"),
        (["table2", "--jobs", "0"], "jobs is 0"),
        (["figure3", "--data-dir", "nowhere"], "nowhere does not exist"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    assert (
        cli.main(["reproduce", "symmetry", *arguments, "--out", str(tmp_path / "o"), "--quiet"])
        == 2
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_ctrl_c_prints_how_to_resume(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", interrupted)
    assert cli.main(["reproduce", "symmetry", "table2", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        "\nmanifoldnet: interrupted; finished runs are kept. Go on with the same command\n"
    )


STEPS = [
    (["figure5"], 21, "figure5", {"purpose": "grid", "figure": "5"}),
    (["figure3", "--repetitions", "2"], 24, "figure3", {"purpose": "grid", "figure": "3"}),
    (["figure3", "--preset", "paper"], 28, "figure3", {"purpose": "grid", "figure": "3"}),
    (["figure4", "--preset", "paper"], 28, "figure4", {"purpose": "grid", "figure": "4"}),
    (["stability", "--repetitions", "2"], 78, "stability", {"purpose": "stability"}),
]


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """The sweeps of a command, each run of which has an error by its configuration, or ∞."""

    def run(command, error=lambda config: 0.1):
        def sweep(step, *_):
            sweeps.append(step)
            return [stage_record(config, error(config)) for config in step.configs]

        sweeps = []
        monkeypatch.setattr(papers, "_sweep", sweep)
        monkeypatch.chdir(tmp_path)
        assert cli.main(["reproduce", "scale-invariant", *command]) == 0
        return sweeps

    return run


def stage_record(config, error):
    measured = dict.fromkeys((f.name for f in dataclasses.fields(StageEpoch)), 0.0)
    measured |= {"epoch": 1, "overflow": "", "bin_count": (), "bin_right": (), "bin_sure": ()}
    epoch = StageEpoch(**measured | {"test_error": error, "validation_error": error})
    status = "diverged" if error == math.inf else "finished"
    result = StageResult(status=status, reason="", epochs=1, seconds=1.0, test_error=error)
    return RunRecord(config, {}, "00", (epoch,), result)


@pytest.mark.parametrize(("command", "runs", "where", "purpose"), STEPS)
def test_the_runs_of_each_command(swept, command, runs, where, purpose):
    (step,) = swept(command)
    assert step.folder == Path("runs", "scale-invariant", f"{where}-torch7")
    assert {config.start for config in step.configs} == {"torch7"}
    (first,) = swept([*command, "--start", "normal"])  # as in the first records
    assert first.folder == Path("runs", "scale-invariant", where)
    assert {config.start for config in first.configs} == {"normal"}
    assert len(step.configs) == runs
    assert all(config.validation_size == 0 for config in step.configs)
    assert step.purpose == purpose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stages", "--epochs", "0"], "epochs is 0"),
        (["stages", "--repetitions", "0"], "repetitions is 0"),
        (["stages", "--train-size", "-5"], "train_size is -5"),
        (["stages", "--methods", "best"], "methods is 'best'; choose one of rescaled"),
        (["label-noise", "--repetitions", "0"], "repetitions is 0"),
        (["stages", "--device", "tpu"], "device is 'tpu'; give a name such as 'cuda'"),
        (["stages", "--device", "cuda:64"], "device is 'cuda:64', but torch"),
        (["stability", "--jobs", "2", "--cluster", "tcp://x:1"], "give jobs or cluster"),
    ],
)
def test_an_invalid_sweep_stops_all_sweeps_of_a_study(
    monkeypatch, capsys, arguments, message, tmp_path
):
    monkeypatch.setattr(papers, "_sweep", lambda *_: pytest.fail("swept"))
    command = ["reproduce", "scale-invariant", *arguments, "--out", str(tmp_path)]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err


def test_stages_are_compared_at_the_rates_of_their_short_runs(swept, capsys):
    command = ["stages", "--dataset", "cifar10", "--methods", "logistic", "etf"]
    choice, comparison = swept(command, lambda c: 0.1 + abs(math.log10(c.lr) + 1) / 100)
    names = "choice-cifar10-torch7", "comparison-cifar10-torch7"
    assert (choice.folder.name, comparison.folder.name) == names
    assert comparison.purpose == {"purpose": "comparison", "chosen_by": names[0]}
    assert {config.start for config in (*choice.configs, *comparison.configs)} == {"torch7"}
    assert all(config.validation_size for config in choice.configs)
    assert {(c.method, c.lr, c.epochs) for c in comparison.configs} == {
        ("logistic", 0.1, 10),
        ("etf", 0.1, 10),
    }
    assert len(comparison.configs) == 6
    assert "logistic: h = 0.1\n" in capsys.readouterr().out
    command = ["stages", "--dataset", "imagenet10", "--train-size", "500", "--start", "normal"]
    choice, comparison = swept(command, lambda c: abs(math.log10(c.lr) + 1))
    assert comparison.folder.name == "comparison-imagenet10-500"
    runs = (*choice.configs, *comparison.configs)
    assert {config.architecture for config in runs} == {"imagenet-smaller"}
    assert {config.train_size for config in comparison.configs} == {500}


def test_a_grid_is_widened_until_its_best_rate_is_inside(swept, capsys):
    command = ["stages", "--methods", "logistic", "etf"]
    *choices, comparison = swept(
        command, lambda c: abs(math.log10(c.lr) - (-3 if c.method == "etf" else 0))
    )
    tried = [{run.lr for run in step.configs if run.method == "etf"} for step in choices]
    usual = {0.01, 0.03, 0.1, 0.3, 1, 3, 10}
    assert tried == [usual, usual | {0.003}, usual | {0.003, 0.001}, usual | {3e-3, 1e-3, 3e-4}]
    assert all(step.folder == choices[0].folder for step in choices)
    assert {run.lr for run in choices[-1].configs if run.method == "logistic"} == usual
    assert {(run.method, run.lr) for run in comparison.configs} == {("logistic", 1), ("etf", 1e-3)}
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["logistic: h = 1", "etf: h = 0.001"]


def test_a_grid_whose_best_rate_stays_at_the_edge_is_not_widened_for_ever(swept, capsys):
    *choices, _ = swept(["stages", "--methods", "etf"], lambda c: 1 / c.lr)
    assert max(run.lr for run in choices[-1].configs) == 1000
    assert capsys.readouterr().out == "etf: h = 1000 (edge of the grid: h)\n"


def test_rates_and_dimensions_at_the_edge_are_printed(swept, capsys):
    swept(["stages"], lambda c: abs(math.log10(c.lr)) / 10 + 1 / (c.embedding_dim or 10))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["rescaled: h = 1, m = 1024 (edge of the grid: m)", "logistic: h = 1"]


def test_a_comparison_goes_down_to_a_rate_at_which_no_run_diverges(swept, capsys):
    def error(c):
        long = not c.validation_size
        odd = c.method == "logistic" and (c.lr, c.seed) in {(1.0, 2), (0.3, 0)}
        return math.inf if long and odd else 0.1 + abs(math.log10(c.lr))

    command = ["stages", "--repetitions", "3"]
    *choice, first, second, last = swept(command, error)
    assert len(choice) == 1
    assert first.folder == second.folder == last.folder
    added = [set(b.configs) - set(a.configs) for a, b in ((first, second), (second, last))]
    assert [{(c.method, c.lr, c.seed) for c in runs} for runs in added] == [
        {("logistic", 0.3, seed) for seed in range(3)},
        {("logistic", 0.1, seed) for seed in range(3)},
    ]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "logistic: runs diverged at h = 1, so h = 0.1 counts"
    *_, last = swept(
        [*command, "--methods", "etf"],
        lambda c: abs(math.log10(c.lr)) if c.validation_size else math.inf,
    )
    assert {c.lr for c in last.configs} == {0.01, 0.03, 0.1, 0.3, 1}
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "etf: runs diverged at h = 1, so no rate counts"


def test_corrupted_data_are_run_at_the_chosen_rates_with_more_seeds(swept):
    command = ["label-noise", "--repetitions", "2", "--start", "normal"]
    first, again = swept(command, lambda config: config.lr / 100)
    assert first.folder == again.folder == Path("runs", "scale-invariant", "label-noise")
    assert first.purpose == again.purpose == {"purpose": "label noise"}
    assert first.configs == robustness("cpu")
    lowest = {(c.seed, c.lr, bool(c.outliers)) for c in again.configs}
    assert lowest == {(s, 1e-5 if odd else 0.01, odd) for s in (0, 1) for odd in (False, True)}
    assert len(again.configs) == 2 * 2 * 6


def test_start_sizes_are_compared_at_rates_of_their_own(swept):
    command = ["start-sizes", "--repetitions", "2", "--dimension", "64"]
    short, compared = swept(command, lambda c: abs(math.log10(c.lr / c.start_size)))
    names = [step.folder.name for step in (short, compared)]
    assert names == ["choice-start-sizes-torch7", "start-sizes-torch7"]
    assert len(short.configs) == 5 * 2 * 7
    assert all(run.validation_size and not run.seed for run in short.configs)
    assert {(run.start_size, run.lr) for run in compared.configs} == {
        *((0.1, 0.1), (0.3, 0.3), (1, 1), (3, 3), (10, 10))
    }
    assert len(compared.configs) == 5 * 2 * 2
    assert not any(run.validation_size for run in compared.configs)
    for run in (*short.configs, *compared.configs):
        assert run.embedding_dim == (64 if run.method == "rescaled" else None)


@pytest.mark.parametrize(
    ("paper", "name"),
    [(paper, name) for paper, studies in papers.PAPERS.items() for name in studies],
)
def test_every_command_has_help(capsys, paper, name):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["reproduce", paper, name, "--help"])
    assert "--repetitions N" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_a_report_packs_the_records_that_it_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "configurations", lambda cells, n: configurations(cells, n, SHORT))
    folder = str(tmp_path / "o")
    command = ["reproduce", "symmetry", "table2", "--out", folder, "--repetitions", "1"]
    command += ["--jobs", "1", "--quiet", "--cells", "arch1-2-un-*"]
    assert cli.main(command) == 0
    report = ["report", folder, "--out", str(tmp_path / "report")]
    assert cli.main(report) == 0
    text = (tmp_path / "report" / "table2.md").read_text()
    assert cli.main([*report, "--pack"]) == 0
    assert str(tmp_path / "o" / "records.jsonl.gz") in capsys.readouterr().out
    assert cli.main(command) == 0  # nothing is missing
    assert not list((tmp_path / "o").glob("records/*"))
    assert cli.main(report) == 0
    assert (tmp_path / "report" / "table2.md").read_text() == text
