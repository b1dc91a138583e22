"""Cost of a step with each classification stage: measuring it, and the file of the times."""

import pytest
import torch

from manifoldnet.experiments import RecordError
from manifoldnet.experiments.papers.scale_invariant import times
from manifoldnet.experiments.papers.scale_invariant.config import METHODS, StageConfig
from manifoldnet.experiments.papers.scale_invariant.records import COSTS, read_costs
from manifoldnet.experiments.papers.scale_invariant.report import cost_blocks
from manifoldnet.experiments.papers.scale_invariant.run import Run
from manifoldnet.experiments.report import to_markdown

MADE = {("rescaled", "128"): [0.2, 0.3], ("logistic", ""): [0.1, 0.15]}


def rows(folder, seconds):
    """The rows of the table of a made-up measurement."""
    (folder / COSTS).write_text(times.to_csv(seconds))
    lines = to_markdown(list(cost_blocks(read_costs(folder)))).splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("|")][2:]


def test_every_stage_is_timed_and_the_file_is_read_back(tmp_path, capsys, monkeypatch):
    assert read_costs(tmp_path) is None
    assert times.TIMED.dataset == "mnist"
    monkeypatch.setattr(times, "TIMED", StageConfig(dataset="digits", batch_size=10))
    assert times.main(["--steps", "2", "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / COSTS}\n"
    found = read_costs(tmp_path)
    wide = {("rescaled", m) for m in ("10", "128", "1024")}
    assert set(found) == {(method, "") for method in METHODS if method != "rescaled"} | wide
    assert list(found.index) == [1, 2]


def test_a_timed_step_is_a_training_step(monkeypatch):
    made, order, images, labels = [], [], [], []

    class Observed(Run):
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

    monkeypatch.setattr(times, "Run", Observed)
    times.measure(2, StageConfig(dataset="digits", batch_size=10))
    turns = [order[i : i + len(made)] for i in range(0, len(order), len(made))]
    assert all(set(turn) == set(made) for turn in turns)
    assert {turn[0] for turn in turns} == set(made)  # each comes first once
    run = made[0]
    for who, batch, right in zip(order, images, labels, strict=True):
        if who is run:
            run.plain.optimizer.zero_grad()
            run.plain.loss(run.plain.network(batch), right).backward()
            run.plain.optimizer.step()
    for ours, theirs in zip(run.network.parameters(), run.plain.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs)


def test_ratios_to_logistic_regression_are_geometric_means_over_blocks(tmp_path):
    assert rows(tmp_path, MADE) == [
        "| rescaled, m = 128 | 250.0 | 2.000 | 2.000 to 2.000 | 2 |",
        "| logistic | 125.0 | 1.000 | 1.000 to 1.000 | 2 |",
    ]
    slow = {("etf", ""): [0.2] * 10 + [0.4] * 20, ("logistic", ""): [0.1] * 30}
    ratio, *_, blocks = rows(tmp_path, slow)[0].strip(" |").split(" | ")[2:]
    assert (ratio, blocks) == (f"{2 ** (5 / 3):.3f}", "3")


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
    text = times.to_csv(MADE)
    assert spoil(text) != text
    (tmp_path / COSTS).write_text(spoil(text))
    with pytest.raises(RecordError, match=message):
        read_costs(tmp_path)


def test_one_step_and_unknown_data_are_refused(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        times.main(["--steps", "1", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    monkeypatch.setattr(times, "TIMED", StageConfig(dataset="nothing"))
    assert times.main(["--out", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
