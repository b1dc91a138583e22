"""The cells of Table 2 with AdamW and Muon: configurations, runs, the choice of rates, report."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments.data import load
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.cells import PROTOCOL, TABLE2
from manifoldnet.experiments.papers.symmetry.moving_frame import config, run, table, table_report
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    TABLE,
    TABLE_PROTOCOL,
    FrameConfig,
    TableCell,
)
from manifoldnet.experiments.papers.symmetry.run import images_for
from manifoldnet.symmetry import reparameterize

SMALL = replace(
    TABLE_PROTOCOL,
    dataset="digits",
    features=8,
    epochs=2,
    min_epochs=1,
    train_size=1000,
    validation_size=100,
    selection_epochs=1,
    selection_train_size=200,
    selection_validation_size=100,
    lr_candidates=(1e-2, 1e-5),
    diverged_above=1.0,
)


def test_the_cells_are_those_of_table_2_with_coordinates_for_updates() -> None:
    for optimizer in ("adamw", "muon"):
        own = [cell for cell in TABLE if cell.optimizer == optimizer]
        assert len(own) == len(TABLE2) == 24
        settings = {(cell.architecture, cell.depth, cell.schedule) for cell in own}
        assert settings == {(cell.architecture, cell.depth, cell.schedule) for cell in TABLE2}
    shared = vars(PROTOCOL).keys() - {"update", "lr_candidates"}
    assert {k: getattr(TABLE_PROTOCOL, k) for k in shared} == {
        k: getattr(PROTOCOL, k) for k in shared
    }
    assert len({c.identity() for c in config.table_runs(TABLE, 5)}) == 240


def test_records_of_earlier_cells_keep_their_names() -> None:
    one = FrameConfig(lr=1e-3, update="scaled-metric")
    fields = one.to_dict()
    del fields["retraction"]
    assert FrameConfig.from_dict(fields) == one
    assert replace(one, retraction="geodesic").identity() != one.identity()


@pytest.mark.parametrize(
    "cell", [c for c in TABLE if c.depth == 2], ids=lambda c: "-".join(map(str, c))
)
def test_every_cell_learns_and_moves_its_rate(cell: TableCell) -> None:
    data = load("digits")
    made = replace(SMALL, **cell._asdict(), lr=1e-2)
    parts = images_for(made, data)
    runs = [run.Run(made, data) for _ in range(2)]
    rows = [[each.epoch(n, parts) for n in (1, 2, 3)] for each in runs]
    assert [row.train_loss for row in rows[0]] == [row.train_loss for row in rows[1]]
    assert rows[0][-1].train_loss < rows[0][0].train_loss
    assert rows[0][0].violation == 0
    lrs = {group["lr"] for group in runs[0].optimizer.param_groups}
    assert len(lrs) == 1
    assert rows[0][-1].lr != rows[0][0].lr
    declared = {m.retraction.name for m in mn.manifolds(runs[0].network).values()}
    assert declared == ({"geodesic"} if cell.update == "scaled-metric" else set())


@pytest.mark.parametrize("architecture", ["arch1", "arch2"])
def test_muon_steps_hidden_matrices_and_adamw_the_rest(architecture: str) -> None:
    made = replace(SMALL, architecture=architecture, optimizer="muon", lr=1e-2)
    both = run.Run(made, load("digits")).optimizer
    assert isinstance(both, run.Together)
    muon, adamw = both.parts
    names = [[n for g in part.param_groups for n in g["param_names"]] for part in both.parts]
    assert isinstance(muon, mn.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [n.startswith("hidden.") and n.endswith("weight") for n in names[0]] == [True, True]
    assert "head.weight" in names[1]
    assert len(names[1]) == (1 if architecture == "arch1" else 5)


@pytest.mark.parametrize("update", ["plain", "scaled-metric", "moving-frame"])
def test_optimizers_that_step_together_go_on_from_their_state(update: str) -> None:
    data = load("digits")
    made = replace(SMALL, optimizer="muon", update=update, lr=1e-2)
    parts = images_for(made, data)
    first = run.Run(made, data)
    first.epoch(1, parts)
    states = copy.deepcopy(
        {
            n: p.get_state() if n == "generator" else p.state_dict()
            for n, p in first.stateful.items()
        }
    )
    second = run.Run(made, data)
    for name, part in second.stateful.items():
        (part.set_state if name == "generator" else part.load_state_dict)(states[name])
    rows = [each.epoch(2, parts) for each in (first, second)]
    assert rows[0].train_loss == rows[1].train_loss
    assert rows[0].lr == rows[1].lr != made.lr
    first.scheduler.optimizer.param_groups[-1]["lr"] = 7.0
    assert first.optimizer.parts[-1].param_groups[-1]["lr"] == 7.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_runs_in_the_moving_frame_do_not_see_the_scale_of_the_start(optimizer: str) -> None:
    data = load("digits")
    made = replace(SMALL, architecture="arch1", optimizer=optimizer, update="moving-frame", lr=1e-2)
    parts = images_for(made, data)

    class Moved(run.Run):
        def start(self, config, data):
            network = super().start(config, data)
            element = run.whole_group(network).sample(
                generator=torch.Generator().manual_seed(0), spread=2.0
            )
            return reparameterize(network, element, in_place=True)

    off = {}
    for each in (made, replace(made, update="plain")):
        losses = [kind(each, data).train_pass(parts)["train_loss"] for kind in (run.Run, Moved)]
        off[each.update] = abs(losses[1] - losses[0]) / losses[0]
    assert off["moving-frame"] < 1e-5 < 1e-3 < off["plain"]


def test_rates_are_chosen_by_runs_of_the_cell_itself() -> None:
    data = load("digits")
    made = replace(SMALL, optimizer="muon", lr=None)
    parts = run.TABLE.parts(made, data)
    assert run.TABLE.choose is not None
    chosen = run.TABLE.choose(made, data, parts)
    assert chosen.candidates == made.lr_candidates
    assert chosen.lr == 1e-2
    assert chosen.errors[0] < chosen.errors[1]


def test_unknown_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no cell 'arch3-\*'; there are arch1-2-adamw-plain-exp"):
        next(table._steps(table.TableOptions(cells=("arch3-*",))))
    sweep = next(table._steps(table.TableOptions(cells=("arch1-2-adamw-*", "*-muon-plain-*"))))
    assert len(sweep.configs) == 5 * (6 + 8)


def test_means_over_settings_are_paired_over_seeds() -> None:
    errors: dict[TableCell, dict[int, float]] = {cell: {} for cell in TABLE}
    for number, setting in enumerate(table_report.SETTINGS):
        for seed in range(3):
            base = 0.01 * number + 0.1 * seed
            errors[setting.cell("adamw", "plain")][seed] = base
            errors[setting.cell("adamw", "moving-frame")][seed] = base - 0.002 - 1e-4 * seed
    found = table_report.mean_difference(errors, "adamw", "moving-frame", "plain")
    assert (found.n, found.mean) == (3, pytest.approx(-0.0021))
    assert found.low == pytest.approx(-0.0021 - 4.303 * 1e-4 / 3**0.5, rel=1e-3)
    del errors[table_report.SETTINGS[0].cell("adamw", "moving-frame")][0]  # it diverged
    again = table_report.mean_difference(errors, "adamw", "moving-frame", "plain")
    assert again.mean == pytest.approx(found.mean)
    assert not table_report.mean_difference(errors, "muon", "moving-frame", "plain").n


@pytest.mark.thorough
@pytest.mark.usefixtures("in_process")
def test_the_command_trains_goes_on_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "TABLE_PROTOCOL", SMALL)
    command = ["reproduce", "symmetry", "table2-optimizers", "--out", str(tmp_path), "--jobs", "1"]
    command += ["--repetitions", "2", "--cells", "arch2-2-*", "--quiet"]
    assert cli.main(command) == 0
    assert "24 runs of 12 cells" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / f"{table_report.NAME}.csv").read_text().splitlines()))
    assert len(rows) == 24
    assert {row["lr"] for row in rows} <= {"0.01", "1e-05"}
    text = (tmp_path / f"{table_report.NAME}.md").read_text()
    assert "Muon: In the mean over settings, scaled-metric changes the error of plain by" in text
    assert "| AdamW     | all settings |" in text
    assert "Cells without runs: arch1-2-adamw-plain-exponential" in text
    for page in ("light", "dark"):
        picture = (tmp_path / f"{table_report.NAME}-{page}.svg").read_bytes()
        assert picture.startswith(b"<?xml")
    kept = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    assert cli.main(command) == 0  # nothing is trained again
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == kept
