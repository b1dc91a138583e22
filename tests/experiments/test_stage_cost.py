"""What a step with each classification stage costs: measuring it, and the file that it leaves."""

import pytest
import torch

from manifoldnet.experiments import RecordError
from manifoldnet.experiments.document import to_markdown
from manifoldnet.experiments.papers.scale_invariant import costs, times
from manifoldnet.experiments.papers.scale_invariant.config import METHODS, StageConfig
from manifoldnet.experiments.papers.scale_invariant.run import Run

MADE = {("rescaled", "128"): {1: 0.2, 2: 0.3}, ("logistic", ""): {1: 0.1, 2: 0.15}}


@pytest.mark.thorough
def test_every_stage_takes_its_turn_and_the_file_is_read_back(tmp_path, capsys, monkeypatch):
    assert times.TIMED.dataset == "mnist"
    monkeypatch.setattr(times, "TIMED", StageConfig(dataset="digits"))
    assert times.main(["--steps", "2", "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / costs.NAME}\n"
    found = costs.read(tmp_path)
    wide = {("rescaled", m) for m in ("10", "128", "1024")}
    assert set(found) == {(method, "") for method in METHODS if method != "rescaled"} | wide
    assert all(set(steps) == {1, 2} for steps in found.values())
    (*_, table) = costs.blocks(found)
    assert len(table.rows) == len(found)


@pytest.mark.thorough
def test_what_is_timed_is_training_and_everybody_comes_first_once(monkeypatch):
    made, order, images, labels = [], [], [], []

    class Watched(Run):
        def __init__(self, config, data):
            super().__init__(config, data)
            self.plain = Run(config, data)
            loss = self.loss
            self.network.register_forward_pre_hook(lambda _, given: self.see(given[0]))
            self.loss = lambda scores, right: (labels.append(right), loss(scores, right))[1]
            made.append(self)

        def see(self, batch):
            order.append(self)
            images.append(batch)

    monkeypatch.setattr(times, "Run", Watched)
    times.measure(2, StageConfig(dataset="digits", batch_size=10))
    turns = [order[i : i + len(made)] for i in range(0, len(order), len(made))]
    assert all(set(turn) == set(made) for turn in turns)
    assert {turn[0] for turn in turns} == set(made)
    run = made[0]
    for who, batch, right in zip(order, images, labels, strict=True):
        if who is run:
            run.plain.optimizer.zero_grad()
            run.plain.loss(run.plain.network(batch), right).backward()
            run.plain.optimizer.step()
    for ours, theirs in zip(run.network.parameters(), run.plain.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs)


def test_ratios_are_those_to_logistic_regression_within_a_turn():
    lines = [" ".join(line.split()) for line in to_markdown(list(costs.blocks(MADE))).splitlines()]
    assert "| rescaled, m = 128 | 250.0 | 2.000 | 2.000 to 2.000 | 2 |" in lines
    assert "| logistic | 125.0 | 1.000 | 1.000 to 1.000 | 2 |" in lines


def test_neighbouring_steps_are_one_measurement():
    slow = {step: 0.2 if step <= 10 else 0.4 for step in range(1, 31)}
    found = costs.blocks({("etf", ""): slow, ("logistic", ""): dict.fromkeys(range(1, 31), 0.1)})
    (row, _) = list(found)[-1].rows
    assert row[2] == f"{2 ** (5 / 3):.3f}"
    assert row[-1] == "3"


def test_nothing_measured_is_no_error(tmp_path):
    assert costs.read(tmp_path) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("0.2", "-0.2"), "line 2.*seconds is -0.2"),
        (lambda text: text.replace("0.200000", "inf"), "line 2.*seconds is inf"),
        (lambda text: text.replace("logistic", "etf"), "no steps of logistic regression"),
        (lambda text: text[: text.rindex("logistic")], "not as many of each stage"),
        (lambda text: text.replace("method", "what"), "the columns are what, m, step, seconds"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, spoil, message):
    text = costs.to_csv(MADE)
    assert spoil(text) != text
    (tmp_path / costs.NAME).write_text(spoil(text))
    with pytest.raises(RecordError, match=message):
        costs.read(tmp_path)


def test_one_step_is_no_measurement(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        times.main(["--steps", "1", "--out", str(tmp_path)])
    assert stopped.value.code == 2


def test_unknown_data_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(times, "TIMED", StageConfig(dataset="nothing"))
    assert times.main(["--out", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
