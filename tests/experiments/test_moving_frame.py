"""Accuracy in the moving frame: cells, the choice of rates, runs, and the report."""

from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments.data import load
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.moving_frame import config, report, run
from manifoldnet.experiments.papers.symmetry.moving_frame.config import CELLS, Cell, FrameConfig
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2
from manifoldnet.experiments.papers.symmetry.run import images_for

SMALL = FrameConfig(dataset="digits", features=8, epochs=1, train_size=1000, validation_size=100)


@pytest.mark.parametrize("kind", [Arch1, Arch2])
def test_the_whole_group_is_the_one_that_is_found(kind):
    torch.manual_seed(0)
    network = kind(6, 3, depth=2, features=4).double()
    batch = (torch.randn(96, 6, dtype=torch.float64), torch.randint(3, (96,)))
    found = mn.symmetry.discover(network, cross_entropy, [batch]).nontrivial
    written = run.whole_group(network)
    assert written.dimension == found.dimension
    for generator in found.generators:
        assert generator in written


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_every_cell_learns_and_is_reproducible(cell):
    data = load("digits")
    made = replace(SMALL, **cell._asdict(), lr=1e-3 if cell.optimizer == "sgd" else 1e-2)
    parts = images_for(made, data)
    losses = []
    for _ in range(2):
        training = run.Run(made, data)
        losses.append([training.train_pass(parts)["train_loss"] for _ in range(4)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_a_run_needs_a_rate():
    with pytest.raises(ConfigError, match="lr"):
        run.Run(replace(SMALL, lr=None), load("digits"))


def finished(cell: Cell, k: int, error: float, seed: int = 0, diverged: bool = False):
    made = replace(SMALL, **cell._asdict(), lr=config.rate(k), seed=seed)
    result = SimpleNamespace(validation_error=error, diverged=diverged)
    return SimpleNamespace(config=made, lr=made.lr, result=result)


def test_grids_are_widened_until_the_best_rate_is_inside():
    cell, other = CELLS[0], CELLS[1]
    records = [finished(cell, k, 0.1 + 0.01 * (k + 5)) for k in (-5, -4, -3)]
    records += [finished(other, k, e) for k, e in ((-5, 0.3), (-4, 0.1), (-3, 0.2))]
    grid = {cell: [-5, -4, -3], other: [-5, -4, -3]}
    assert config.widened(grid, records) == {cell: [-6, -5, -4, -3], other: [-5, -4, -3]}


def test_diverged_runs_count_as_errors_in_the_choice():
    cell = CELLS[0]
    records = [finished(cell, -3, 0.1), finished(cell, -3, 0.1, 1, True), finished(cell, -4, 0.2)]
    errors = config.validation_errors(records)[cell]
    assert errors == {config.rate(-4): 0.2, config.rate(-3): 0.55}
    assert config.best_rates(records) == {cell: config.rate(-4)}


def test_a_rate_that_longer_runs_do_not_stand_is_lowered():
    cell, other = CELLS[0], CELLS[1]
    rates = {cell: [config.rate(-4)], other: [config.rate(-4)]}
    records = [finished(cell, -4, 0.1, 0), finished(cell, -4, 0.1, 1, True)]
    records += [finished(other, -4, 0.1)]
    lower = config.lowered(rates, records)
    assert lower == {cell: [config.rate(-4), config.rate(-5)], other: [config.rate(-4)]}
    records += [finished(cell, -5, 0.12, seed) for seed in (0, 1)]
    assert config.lowered(lower, records) == lower
    assert config.best_rates(records)[cell] == config.rate(-5)
    assert len(config.comparison(lower, 3, 2)) == 2 * 3


def test_rates_fall_as_far_in_fewer_epochs():
    assert config.protocol(60).decay == pytest.approx(0.95)
    assert config.protocol(10).decay ** 10 == pytest.approx(0.95**60)


@pytest.mark.thorough
@pytest.mark.usefixtures("in_process")
def test_the_command_chooses_rates_compares_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "PROTOCOL", SMALL)
    monkeypatch.setattr(config, "_FIRST", range(-4, -3))
    monkeypatch.setattr(config, "_WIDEST", range(-4, -3))
    command = ["reproduce", "symmetry", "moving-frame", "--out", str(tmp_path), "--jobs", "1"]
    command += ["--epochs", "4", "--choice-epochs", "1", "--repetitions", "2", "--quiet"]
    assert cli.main(command) == 0
    assert "arch1 sgd plain: rate" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / f"{report.NAME}.csv").read_text().splitlines()))
    assert len(rows) >= 2 * len(CELLS)
    assert {row["update"] for row in rows} == set(config.COORDINATES)
    assert any(row["diverged"] == "False" for row in rows)
    text = (tmp_path / f"{report.NAME}.md").read_text()
    assert "| moving-frame − plain " in text
    for page in ("light", "dark"):
        assert (tmp_path / f"{report.NAME}-{page}.svg").read_bytes().startswith(b"<?xml")
    kept = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    assert cli.main(command) == 0  # nothing is trained again
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == kept
