"""The cost of the updates: measurement, file, and its part of the report."""

import dataclasses
from itertools import product

import pytest
from runs import record

from manifoldnet import cli
from manifoldnet.experiments import RecordError, TrainConfig, epoch_times, store
from manifoldnet.experiments.papers.symmetry import results, times
from manifoldnet.experiments.papers.symmetry.cells import TABLE2
from manifoldnet.experiments.papers.symmetry.report import write_paper_report
from manifoldnet.experiments.papers.symmetry.run import Run
from manifoldnet.experiments.papers.symmetry.times import PLAIN, ratio_table
from manifoldnet.experiments.papers.updates import UPDATES

# The ratios of sm are 1, 3/2 and 9/4, whose geometric mean is 3/2; those of un are all 6/5.
SECONDS = {"b-sgd": (1.0, 2.0, 4.0), "sm": (1.0, 3.0, 9.0), "un": (1.2, 2.4, 4.8)}


def measured():
    return {
        (*network, update, number): seconds
        for network, (update, each) in product(results.NETWORKS, SECONDS.items())
        for number, seconds in enumerate(each, 1)
    }


def test_times_round_trip(tmp_path):
    assert results.read_times(tmp_path) is None
    (tmp_path / "times.csv").write_text(results.times_csv(measured()))
    found = results.read_times(tmp_path)
    assert list(found) == [("arch1", 2), ("arch1", 4), ("arch2", 2), ("arch2", 4)]
    for updates in found.values():
        assert updates == {update: dict(enumerate(each, 1)) for update, each in SECONDS.items()}


def test_the_report_is_on_the_measurement(tmp_path):
    """ln 3/2 ± 4.3027 · ln 3/2 / √3 is −0.6018 to 1.4127, so 0.55 to 4.11."""
    store.keep(tmp_path, record(TABLE2[0], 0, [0.1], seconds=(77.0,)))
    (tmp_path / "times.csv").write_text(results.times_csv(measured()))
    text = write_paper_report(tmp_path).text
    for line in (
        "| arch2   | 4      | b-sgd  |            2.000 |             1 |             – |      3 |",
        "| arch2   | 4      | sm     |            3.000 |          1.50 |  0.55 to 4.11 |      3 |",
        "| arch2   | 4      | un     |            2.400 |          1.20 |  1.20 to 1.20 |      3 |",
        "| sm ÷ b-sgd: arch1, 2 layers |  1.50 |  0.55 to 4.11 | 3 |",
        "| un ÷ b-sgd: arch2, 4 layers |  1.20 |  1.20 to 1.20 | 3 |",
        "### No update costs noticeably more time than B-SGD: holds in part",
    ):
        assert line in text.splitlines()
    assert "lies below 1.25" in text
    assert "77.0" not in text
    assert "Indicative" not in text


HEADER = "architecture,depth,update,pass,seconds\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the columns are none"),
        (HEADER, "lacks arch1, 2 layers, b-sgd, pass 1: delete it, or measure again"),
        (HEADER + "arch1,2,un\n", "line 2: it does not have 5 fields"),
        (HEADER + "arch1,2,un,1,fast\n", "line 2: could not convert .*'fast'"),
        (HEADER + "arch1,2,un,1,-1\n", "line 2: seconds is -1, not a positive number"),
        (HEADER + "arch1,2,un,1,nan\n", "line 2: seconds is nan"),
        (HEADER + "arch1,2,un,0,1\n", "line 2: pass is 0; they count from 1"),
        (HEADER + "arch1,3,un,1,1\n", "line 2: the paper has no network arch1 with 3 layers"),
        (
            HEADER + "arch1,2,un,1,1\n" * 2,
            "line 3: it is the second of arch1, 2 layers, un, pass 1",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    store.keep(tmp_path, record(TABLE2[0], 0, [0.1]))
    (tmp_path / "times.csv").write_text(content)
    with pytest.raises(RecordError, match=f"times.csv,? {message}"):
        write_paper_report(tmp_path)


def test_a_truncated_measurement_is_named(tmp_path):
    lines = results.times_csv(measured()).splitlines(keepends=True)
    (tmp_path / "times.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RecordError, match="lacks arch2, 4 layers, un, pass 3"):
        results.read_times(tmp_path)


SMALL = TrainConfig(train_size=100, validation_size=100, features=4)


def test_every_update_is_timed_on_every_network():
    told = []
    seconds = times.measure(2, SMALL, on_progress=lambda *each: told.append(each))
    wanted = product(results.NETWORKS, (PLAIN, *UPDATES), (1, 2))
    assert set(seconds) == {(*network, update, n) for network, update, n in wanted}
    assert all(each > 0 for each in seconds.values())
    assert told[:3] == [("timing arch1 with 2 layers, pass", n, 3) for n in (1, 2, 3)]


def test_the_protocol_of_the_paper_is_timed():
    assert dataclasses.replace(times.TIMED, lr=None) == times.PROTOCOL


def test_the_command_writes_the_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(times, "TIMED", SMALL)
    assert times.main(["--out", str(tmp_path), "--passes", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'times.csv'}\n"
    assert list(results.read_times(tmp_path)["arch2", 4]) == [PLAIN, *UPDATES]
    with pytest.raises(SystemExit):
        times.main(["--out", str(tmp_path), "--passes", "1"])
    assert "--passes is 1; an interval needs two" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert times.main(["--out", str(tmp_path / "file"), "--passes", "2", "--quiet"]) == 2
    assert "file" in capsys.readouterr().err


def test_every_update_is_timed_against_plain_sgd():
    config = TrainConfig(epochs=3, train_size=200)
    rounds = []
    seconds = epoch_times(config, ["un", "sm"], on_round=lambda *told: rounds.append(told))
    assert list(seconds) == [PLAIN, "un", "sm"]
    assert all(len(times) == 3 and min(times) > 0 for times in seconds.values())
    assert rounds == [(1, 3), (2, 3), (3, 3)]


def test_every_image_is_trained_on_once_a_pass(monkeypatch):
    monkeypatch.setattr(times, "_TURN", 60)
    seen = []
    inner = Run.train_pass

    def train_pass(run, parts):
        seen.append(len(parts.train))
        return inner(run, parts)

    monkeypatch.setattr(Run, "train_pass", train_pass)
    epoch_times(TrainConfig(epochs=1, train_size=200), ["un"])
    assert seen == [60, 60, 60, 60, 60, 60, 20, 20]


def test_the_table_gives_medians_and_their_ratio():
    table = ratio_table({PLAIN: [1.0, 9.0, 2.0], "un": [3.0, 3.0, 100.0]})
    assert table.splitlines()[2:] == [
        "| torch.optim.SGD |            2.000 |  1.00 |",
        "| un              |            3.000 |  1.50 |",
    ]


def test_bench_epoch(capsys):
    assert cli.main(["bench-epoch", "--epochs", "1", "--train-size", "200", "--updates", "un"]) == 0
    assert "| un  " in capsys.readouterr().out
    assert cli.main(["bench-epoch", "--epochs", "1", "--updates", "newton"]) == 2
    assert "newton" in capsys.readouterr().err
