"""Training from rescaled starts: runs, the invariance that they show, and the report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from manifoldnet import cli
from manifoldnet.experiments import ConfigError
from manifoldnet.experiments.data import load
from manifoldnet.experiments.papers.symmetry.moving_frame import config, rescaled_report
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    CELLS,
    Cell,
    RescaledConfig,
)
from manifoldnet.experiments.papers.symmetry.moving_frame.rescaled import RescaledOptions, runs
from manifoldnet.experiments.papers.symmetry.moving_frame.rescaled_run import Run
from manifoldnet.experiments.papers.symmetry.run import images_for
from manifoldnet.symmetry import without_eps

SMALL = RescaledConfig(dataset="digits", features=4, epochs=1, train_size=200, validation_size=100)


def trained(made: RescaledConfig) -> list[float]:
    data = load("digits")
    run = Run(made, data)
    return [run.train_pass(images_for(made, data))["train_loss"] for _ in range(3)]


@pytest.mark.parametrize("architecture", ["arch1", "arch2"])
def test_a_moved_start_is_the_same_function_of_other_weights(architecture):
    made, data = replace(SMALL, architecture=architecture), load("digits")
    images = images_for(made, data).train
    usual, moved = (Run(replace(made, spread=spread), data).network for spread in (0.0, 3.0))
    with without_eps(usual), without_eps(moved):
        one, other = (each(images.vectors(torch.arange(len(images)))) for each in (usual, moved))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    for before, after in zip(usual.parameters(), moved.parameters(), strict=True):
        assert not torch.equal(before, after) or not before.any()


@pytest.mark.parametrize("optimizer", config.OPTIMIZERS)
def test_the_moving_frame_trains_alike_from_both_starts(optimizer):
    made = replace(SMALL, architecture="arch1", optimizer=optimizer, lr=1e-3)

    def apart(update: str) -> float:
        usual, moved = (
            trained(replace(made, update=update, spread=spread)) for spread in (0.0, 3.0)
        )
        return max(abs(a - b) for a, b in zip(usual, moved, strict=True))

    assert apart("moving-frame") < 1e-5
    assert apart("plain") > 1e-3


def test_the_seed_decides_the_element():
    made = replace(SMALL, architecture="arch1", spread=1.0)
    one, same, other = (
        Run(replace(made, seed=seed), load("digits")).network.head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_cell_has_every_rate_of_its_grid():
    grids = {0.0: config.first_grid(), 2.0: {CELLS[0]: [-4]}}
    made = runs(grids, RescaledOptions(repetitions=2, spread=2.0))
    assert len({each.identity() for each in made}) == len(made) == (12 * 5 + 1) * 2
    assert [each.seed for each in made] == sorted(each.seed for each in made)
    assert {each.spread for each in made} == {0.0, 2.0}
    assert {each.train_size for each in made} == {10_000}


def test_a_spread_is_not_negative():
    with pytest.raises(ConfigError, match="spread"):
        replace(SMALL, spread=-1.0)


@pytest.mark.thorough
@pytest.mark.usefixtures("in_process")
def test_the_command_goes_on_and_reports(tmp_path, monkeypatch, capsys):
    small = replace(config.PROTOCOL, dataset="digits", features=4, validation_size=100)
    monkeypatch.setattr(config, "PROTOCOL", small)
    for name in ("_FIRST", "_WIDEST"):
        monkeypatch.setattr(config, name, range(-5, -3))
    command = ["reproduce", "symmetry", "rescaled-start", "--out", str(tmp_path), "--jobs", "1"]
    command += ["--epochs", "1", "--train-size", "200", "--repetitions", "1", "--quiet"]
    assert cli.main(command) == 0
    found = {path.name: numbers(path) for path in (tmp_path / "records").iterdir()}
    assert len(found) == 2 * 2 * len(CELLS)
    for name in sorted(found)[::3]:  # as if a killed sweep had not come to these
        (tmp_path / "records" / name).unlink()
    assert cli.main(command) == 0
    assert {path.name: numbers(path) for path in (tmp_path / "records").iterdir()} == found
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--pack"]) == 0
    rows = list(csv.DictReader((tmp_path / "rescaled_start.csv").read_text().splitlines()))
    assert len(rows) == len(found)
    assert {row["spread"] for row in rows} == {"0", "3"}
    text = (tmp_path / "rescaled_start.md").read_text()
    assert text.count("| moved ") == len(CELLS)
    assert text.split("\n\n")[3].count("| moving-frame ") == 1
    for page in ("light", "dark"):
        assert (tmp_path / f"rescaled_start-{page}.svg").read_bytes().startswith(b"<?xml")
    assert cli.main(["report", str(tmp_path)]) == 0  # of packed records
    assert (tmp_path / "rescaled_start.md").read_text() == text


def numbers(path):
    """A record without its seconds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def test_diverged_runs_are_errors_of_the_choice_and_of_the_table():
    own = {1e-3: [made_up(1e-3, 0.2)], 1e-2: [made_up(1e-2, 0.1), made_up(1e-2, 0.1, True)]}
    assert rescaled_report._best(own) == 1e-3
    row = rescaled_report._summary(CELLS[0], {(CELLS[0], False): own, (CELLS[0], True): own})
    assert row == (
        *Cell("arch1", "sgd", "plain"),
        *("0.001", "0.2000", "0.2000", "0.2000 at 0.001", "1 usual, 1 moved"),
    )


def made_up(lr: float, error: float, diverged: bool = False):
    ended = SimpleNamespace(test_error=error, validation_error=error, diverged=diverged)
    return SimpleNamespace(config=replace(SMALL, **CELLS[0]._asdict(), lr=lr), lr=lr, result=ended)
