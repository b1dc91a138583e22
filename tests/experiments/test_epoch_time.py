"""Epoch times: the updates in turn, and the ratio of the medians. No time is asserted."""

import pytest

from manifoldnet import cli
from manifoldnet.experiments import TrainConfig, epoch_times
from manifoldnet.experiments.data import Images
from manifoldnet.experiments.papers.symmetry import epoch_time
from manifoldnet.experiments.papers.symmetry.epoch_time import PLAIN, ratio_table
from manifoldnet.experiments.papers.symmetry.run import Run


def test_every_update_is_timed_against_plain_sgd() -> None:
    config = TrainConfig(epochs=3, train_size=200)
    rounds: list[tuple[int, int]] = []
    seconds = epoch_times(config, ["un", "sm"], on_round=lambda *told: rounds.append(told))
    assert list(seconds) == [PLAIN, "un", "sm"]
    assert all(len(times) == 3 and min(times) > 0 for times in seconds.values())
    assert rounds == [(1, 3), (2, 3), (3, 3)]


def test_every_image_is_trained_on_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_time, "_TURN", 60)
    seen: list[int] = []
    inner = Run.train_pass

    def train_pass(run: Run, images: Images) -> tuple[float, float]:
        seen.append(len(images))
        return inner(run, images)

    monkeypatch.setattr(Run, "train_pass", train_pass)
    epoch_times(TrainConfig(epochs=1, train_size=200), ["un"])
    assert seen == [60, 60, 60, 60, 60, 60, 20, 20]


def test_the_table_gives_medians_and_their_ratio() -> None:
    table = ratio_table({PLAIN: [1.0, 9.0, 2.0], "un": [3.0, 3.0, 100.0]})
    assert table.splitlines()[2:] == [
        "| torch.optim.SGD |            2.000 |  1.00 |",
        "| un              |            3.000 |  1.50 |",
    ]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench-epoch", "--epochs", "1", "--train-size", "200", "--updates", "un"]) == 0
    assert "| un  " in capsys.readouterr().out
    assert cli.main(["bench-epoch", "--epochs", "1", "--updates", "newton"]) == 2
    assert "newton" in capsys.readouterr().err
