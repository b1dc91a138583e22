import sys

import pytest

from manifoldnet import cli
from manifoldnet.cli import options
from manifoldnet.experiments import UPDATES, TrainConfig, records
from manifoldnet.experiments.papers.symmetry import comparison, run
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION

SHORT = ["--epochs", "2", "--seeds", "2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def complaint(capsys, *arguments):
    """The one line that a wrong request gives."""
    assert cli.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_compare_prints_the_table_and_names_the_picture(tmp_path, capsys):
    assert cli.main(["compare", *SHORT, "--csv", str(tmp_path / "all.csv")]) == 0
    out, err = capsys.readouterr()
    folder = "runs/digits-arch2-2-exponential-0.01"
    assert f"picture: {folder}/test_error.png" in out
    for update in ("b-sgd", "sm", "un"):
        assert f"| {update} " in out
        record = records.read(
            tmp_path / "here" / folder / update / "seed-1" / "record.jsonl", CLASSIFICATION
        )
        assert record.config == TrainConfig(update=update, seed=1, epochs=2)
    assert "all runs" in err
    assert "12/12" in err
    csv = (tmp_path / "here" / folder / "results.csv").read_text()
    assert csv == (tmp_path / "all.csv").read_text()
    assert csv.count("\n") == 7
    assert (tmp_path / "here" / folder / "table.md").read_text() in out


def test_compare_resumes_after_an_interruption(capsys, monkeypatch):
    train, done = comparison.train, []

    def interrupted(config, *rest, **options):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(config)
        return train(config, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train", interrupted)
        assert cli.main(["compare", *SHORT]) == 130
    err = capsys.readouterr().err
    assert err.endswith("Go on with: manifoldnet compare --epochs 2 --seeds 2 --resume\n")
    assert "already holds a run" in complaint(capsys, "compare", *SHORT)
    monkeypatch.setattr(
        run, "evaluate", lambda *_, real=run.evaluate: done.append(None) or real(*_)
    )
    assert cli.main(["compare", *SHORT, "--resume"]) == 0
    assert done.count(None) == 3 * 2 * 2  # three runs of two epochs: validation and test
    assert "6/12" in capsys.readouterr().err  # what was done before is not counted as progress


def test_overwrite_trains_again(capsys):
    arguments = ["train", "--epochs", "1", "--quiet"]
    assert cli.main(arguments) == 0
    assert "already holds a run" in complaint(capsys, *arguments)
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_a_wrong_directory_is_an_error_before_training(tmp_path, capsys):
    where = ["--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main(["compare", "--epochs", "1", "--seeds", "1", "--updates", "un", *where]) == 0
    line = complaint(capsys, "compare", *SHORT, "--updates", "sm", "un", "--resume", *where)
    assert "out/un/seed-0 belongs to another configuration (epochs 1 there, 2 here)" in line
    assert not (tmp_path / "out" / "sm").exists()


def test_train_trains_one_configuration(capsys):
    assert cli.main(["train", "--update", "sm-geodesic", "--epochs", "1", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("finished: test error 0.")
    path = "runs/digits-arch2-2-exponential-0.01/sm-geodesic/seed-4/record.jsonl"
    assert f"record: {path}" in out


def test_every_field_of_a_configuration_has_an_option_with_its_default():
    arguments = cli._parser().parse_args(["train"])
    assert options.values(arguments, TrainConfig) == TrainConfig()


def test_quiet_prints_nothing(capsys):
    assert cli.main(["train", "--epochs", "1", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lr", "-1"], "manifoldnet: lr is -1.0; it must be a number in (0, inf)"),
        (["train", "--lr", "nan"], "lr is nan"),
        (["train", "--update", "adam"], "choose one of b-sgd, sm, sm-geodesic, un"),
        (["compare", "--updates", "un", "un"], "the updates name one twice: un, un"),
        (["compare", "--updates", "no"], "update is 'no'; choose one of"),
        (["compare", "--seeds", "0"], "seeds is 0; it must be an integer, 1 or more"),
        (["compare", "--first-seed", "-3"], "seed is -3"),
        (["train", "--train-size", "9999"], "digits has 1438 images outside its test set"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere does not exist"),
    ],
)
def test_errors_are_one_line_and_leave_no_files(tmp_path, capsys, arguments, message):
    assert message in complaint(capsys, *arguments, "--quiet")
    assert not list((tmp_path / "here").iterdir())


def test_a_csv_that_cannot_be_merged_is_an_error_before_training(tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("a,b\n")
    line = complaint(capsys, "compare", *SHORT, "--csv", str(tmp_path / "mine.csv"))
    assert "mine.csv, line 1: the columns are a, b" in line
    assert not (tmp_path / "here" / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train", "--depth", "two"], ["train", "--lrr", "1"]]
)
def test_errors_of_argparse_have_exit_code_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_help_lists_every_update(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(update.summary in out for update in UPDATES.values())


@pytest.mark.thorough
def test_the_command_line_imports_no_heavy_package(fresh):
    """Time to the first progress bar: what only data, training or pictures need waits for them."""
    code = (
        "import sys, manifoldnet; before = set(sys.modules); import manifoldnet.cli; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = fresh(code).stdout.split()
    assert "manifoldnet.cli" in loaded
    assert not {"sklearn", "datasets", "matplotlib", "pandas", "tqdm"} & set(loaded)
    assert "manifoldnet.experiments.papers.symmetry.run" not in loaded


def test_an_unwritable_folder_is_an_error_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "below")
    assert cli.main(["train", "--epochs", "1", "--out", below]) == 2
    assert "manifoldnet: " in capsys.readouterr().err
    assert cli.main(["compare", "--epochs", "1", "--seeds", "1", "--csv", below]) == 2
    out, err = capsys.readouterr()
    assert "cannot be written" in err
    assert out == ""


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["compare", *SHORT], "matplotlib"),
        (["report", "."], "pandas"),
        (["reproduce", "symmetry", "table2"], "pandas"),
    ],
)
def test_a_missing_package_is_an_error_with_its_extra_before_training(
    tmp_path, monkeypatch, capsys, command, package
):
    monkeypatch.setitem(sys.modules, package, None)
    message = complaint(capsys, *command)
    assert package in message
    assert "pip install 'manifoldnet[experiments]'" in message
    assert not list((tmp_path / "here").iterdir())


def test_bench_refuses_a_last_minibatch_of_one(capsys):
    assert cli.main(["bench-epoch", "--train-size", "101", "--epochs", "1"]) == 2
    assert "last minibatch of one" in capsys.readouterr().err
