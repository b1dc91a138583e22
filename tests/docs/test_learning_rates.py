"""docs/learning_rates.py: its records, the page's tables, and what a study does when resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import learning_rates as rates
import pytest
import torch
from learning_rates import METHODS, OMITTED, SEEDS, Scores, Study, Summary

ROWS = rates.read()
PAGE = Path(rates.__file__).with_suffix(".md").read_text(encoding="utf-8")
MEASURED = [(name, method) for name in SEEDS for method in METHODS if (name, method) not in OMITTED]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The records are of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def skip_other_texts(name: str, data: str) -> None:
    if rates.problem(name).fingerprint != data:
        pytest.skip("the records are of the documentation strings of another Python")


# --- records and page -----------------------------------------------------------------------------


@pytest.mark.parametrize("table", [rates.rates_to_try, rates.best_rates, rates.carried_rates])
def test_a_table_of_the_page_is_that_of_the_records(
    table: Callable[[dict[rates.Cell, rates.Row]], list[str]],
) -> None:
    lines = table(ROWS)
    assert len(lines) >= len(METHODS) - 3  # of the plain ones no rate is carried over
    assert "\n".join(lines) in PAGE


def test_no_run_is_missing() -> None:
    cells = {cell[:3] for cell in ROWS}
    assert {(name, method) for name, method, _ in cells} == set(MEASURED)
    assert set(ROWS) == {(*cell, seed) for cell in cells for seed in range(SEEDS[cell[0]])}


@pytest.mark.parametrize(("name", "method"), MEASURED)
def test_the_best_rate_is_inside_of_the_range(name: str, method: str) -> None:
    found = Summary.of(ROWS, name, method)
    measured = list(found.scores)
    assert found.best in found.good
    assert not {measured[0], measured[-1]} & set(found.good)


@pytest.mark.parametrize("name", list(SEEDS))
def test_other_weights_have_the_best_rate_of_adamw(name: str) -> None:
    assert rates.problem(name).rest == float(Summary.of(ROWS, name, "adamw").best)


FEW = ("adamw", "rsgd-scaled", "radam-norm-unit", "adamw-angle", "adamw-stiefel", "muon-unit")


@pytest.mark.thorough
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", list(SEEDS))
@pytest.mark.parametrize(
    "method", [m if m in FEW else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_records_are_of_the_optimizers_as_they_are(name: str, method: str) -> None:
    if (name, method) in OMITTED:
        pytest.skip("not run")
    best = Summary.of(ROWS, name, method).best
    row = ROWS[name, method, best, 0]
    skip_other_texts(name, row["data"])
    losses, _ = rates.train(name, method, float(best), 0, steps=rates.EARLY)
    assert len(losses) == rates.EARLY
    assert losses[-1] == pytest.approx(float(row["early"]), rel=1e-6)


@pytest.mark.thorough
@pytest.mark.usefixtures("one_thread")
def test_a_whole_run_is_reproduced() -> None:
    row = ROWS["digits", "sgd", Summary.of(ROWS, "digits", "sgd").best, 0]
    _, scores = rates.train("digits", "sgd", float(row["rate"]), 0)
    assert scores is not None
    assert scores.loss == pytest.approx(float(row["loss"]), rel=1e-2)  # other processors round


def test_a_run_that_diverges_has_no_scores() -> None:
    losses, scores = rates.train("digits", "sgd", 1e6, 0)
    assert scores is None
    assert len(losses) <= rates.problem("digits").steps


@pytest.mark.thorough
def test_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    rates.write_svg_pair(rates.picture(ROWS), tmp_path / "learning_rates")
    for name in ("learning_rates-light.svg", "learning_rates-dark.svg"):
        drawn, kept = (
            [e.tag for e in ET.parse(f / name).iter()] for f in (tmp_path, rates.RESULTS)
        )
        assert drawn == kept, f"{name} is not what the code draws: draw it again"


# --- a study --------------------------------------------------------------------------------------


def interrupted(runs: int, trained: list[int]) -> object:
    """Stand in for `train`: so many runs, then an interruption."""

    def train(name: str, method: str, rate: float, seed: int) -> tuple[list[float], Scores]:
        if len(trained) == runs:
            raise KeyboardInterrupt
        trained.append(seed)
        return [0.5] * 20, Scores(0.25, 0.125)

    return train


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.csv"
    trained: list[int] = []
    monkeypatch.setattr(rates, "train", interrupted(2, trained))
    with pytest.raises(KeyboardInterrupt):
        Study(path).run("digits", "sgd", "0.1")
    assert trained == [0, 1]
    monkeypatch.setattr(rates, "train", interrupted(3, trained))
    Study(path).run("digits", "sgd", "0.1")
    assert trained == [0, 1, 2]
    before = path.read_bytes()
    Study(path).run("digits", "sgd", "0.1")
    assert trained == [0, 1, 2]
    assert path.read_bytes() == before
    row = rates.read(path)["digits", "sgd", "0.1", 1]
    assert (row["loss"], row["error"], row["early"]) == ("0.25", "0.125", "0.5")


def test_a_sweep_widens_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, method: str, rate: float, seed: int) -> tuple[list[float], Scores | None]:
        scores = Scores(1.0, 0.1 * abs(math.log10(rate) - 1))  # best at 10
        return [1.0] * 20, scores if rate < 200 else None

    monkeypatch.setattr(rates, "train", train)
    study = Study(tmp_path / "records.csv")
    study.sweep("digits", "sgd")
    found = Summary.of(study.rows, "digits", "sgd")
    assert (found.best, found.good) == ("10", ("10",))
    assert list(found.scores) == ["0.03", "0.1", "0.3", "1", "3", "10", "30"]
    assert found.diverged == 0


def test_records_of_another_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    row = dict.fromkeys(rates.COLUMNS, "1") | {"problem": "text", "method": "sgd", "data": "0000"}
    rates.write({rates.cell(row): row}, path)
    with pytest.raises(SystemExit, match="another Python"):
        Study(path)


# --- summaries ------------------------------------------------------------------------------------


def records(name: str, method: str, scores: dict[str, list[float]]) -> dict[rates.Cell, rates.Row]:
    found = {}
    for rate, values in scores.items():
        for seed, value in enumerate(values):
            row = dict.fromkeys(rates.COLUMNS, "")
            row |= {"problem": name, "method": method, "rate": rate, "seed": str(seed)}
            if math.isfinite(value):
                row |= {"loss": str(value), "error": str(value)}
            found[rates.cell(row)] = row
    return found


def test_a_summary_has_the_rates_in_tolerance_around_the_best() -> None:
    losses = {
        "0.001": [2.0, 2.0],  # in tolerance, and apart from the best
        "0.003": [3.0, 3.0],
        "0.01": [2.03, 2.03],
        "0.03": [1.9, 2.1],
        "0.1": [1.0, math.inf],  # one run diverged
        "0.04": [0.1, 0.1],  # no half-decade
    }
    found = Summary.of(records("text", "sgd", losses), "text", "sgd")
    assert found.best == "0.001"
    assert found.good == ("0.001",)
    assert (found.diverged, found.runs) == (1, 10)
    del losses["0.001"]
    found = Summary.of(records("text", "sgd", losses), "text", "sgd")
    assert found.best == "0.03"
    assert found.good == ("0.01", "0.03")


@pytest.mark.parametrize(("name", "at", "beyond"), [("text", 2.04, 2.05), ("digits", 2.005, 2.006)])
def test_tolerances(name: str, at: float, beyond: float) -> None:
    assert not rates.out_of_tolerance(name, at, 2.0)
    assert rates.out_of_tolerance(name, beyond, 2.0)


def test_the_first_three_rates_hold_both_best_ones() -> None:
    text = records("text", "sgd", {"0.01": [3], "0.03": [2.5], "0.1": [2], "0.3": [3], "1": [3]})
    digits = {"0.01": [0.1], "0.03": [0.02], "0.1": [0.05], "0.3": [0.2], "1": [math.inf]}
    rows = text | records("digits", "sgd", digits)
    assert rates.first_three(rows, "sgd") == ["0.01", "0.03", "0.1"]
