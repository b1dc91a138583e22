"""`manifoldnet reproduce`: the cells of Table 2, by name, and the command that runs them."""

import pytest
from sweeps import SHORT, content

from manifoldnet import cli
from manifoldnet.experiments import ConfigError
from manifoldnet.experiments import sweep as sweeping
from manifoldnet.experiments.papers.symmetry.cells import (
    FIGURE3,
    GEODESIC,
    PROTOCOL,
    TABLE2,
    Cell,
    configurations,
    named,
)


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
def test_the_command_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "manifoldnet.cli.papers.configurations", lambda cells, n: configurations(cells, n, SHORT)
    )
    command = ["reproduce", "table2", "--out", str(tmp_path / "o"), "--repetitions", "1"]
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
def test_a_wrong_request_is_one_line(tmp_path, capsys, arguments, message):
    assert cli.main(["reproduce", *arguments, "--out", str(tmp_path / "o"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", interrupted)
    assert cli.main(["reproduce", "table2", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        "\nmanifoldnet: interrupted; finished runs are kept. Go on with the same command\n"
    )
