"""docs/benchmarks.py: implementations, bytes, and the report as a function of the file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import benchmarks
import pandas as pd
import pytest
import torch
from benchmarks import BASE, OURS, Cell

pytestmark = pytest.mark.usefixtures("little_to_collect")

RESULTS = Path(benchmarks.__file__).parent / "results"
TINY = [(6, 4), (5, 3, 2, 2), (6,)]


def numbers(name: str) -> int:
    return sum(map(math.prod, benchmarks.SHAPES[name]))


def test_networks_have_as_many_numbers_as_they_are_known_for() -> None:
    assert numbers("resnet50") == 25_557_032
    assert numbers("gpt2") == 124_439_808
    for name, weights in benchmarks.GROWTH.items():
        assert name in (f"size-{sum(map(math.prod, weights))}", f"count-{len(weights)}")


# Each manifold once, each optimizer at least once: every cell compiles some steps.
@pytest.mark.parametrize(
    ("manifold", "optimizer"),
    list(zip(benchmarks.MANIFOLDS, itertools.cycle(benchmarks.OPTIMIZERS), strict=False)),
)
@pytest.mark.thorough
def test_every_implementation_takes_a_step(
    manifold: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmarks.SHAPES, "tiny", TINY)
    found = {
        row["implementation"]: row for row in benchmarks.measure(_tiny(manifold, optimizer), 0)
    }
    assert set(found) >= {BASE, "torch foreach", "torch loop", "manifoldnet", OURS, "geoopt"}
    assert ("weight_norm" in found) is manifold.startswith("oblique")
    assert all(float(row["median_ms"]) > 0 for row in found.values())
    assert found[BASE]["ratio_to_fused_sgd_or_adam"] == "1.000"


def _tiny(manifold: str, optimizer: str) -> Cell:
    return Cell("tiny", manifold, optimizer, 1)


def test_what_is_declared_is_stepped_as_such() -> None:
    for name, make in benchmarks.steps(Cell("mlp", "oblique rows", "adam", 1)).items():
        if name.startswith("manifoldnet"):
            optimizer = make().__self__
            assert any(weight is not None for weight in optimizer.param_groups[0]["manifolds"])


def test_implementations_share_the_memory_of_weights() -> None:
    makers = benchmarks.steps(Cell("mlp", "oblique rows", "momentum", 1))
    addresses = [
        {p.data_ptr() for group in step.__self__.param_groups for p in group["params"]}
        for step in (makers[name]() for name in (OURS, "manifoldnet reference"))
    ]
    assert addresses[0] == addresses[1]


@pytest.mark.thorough
def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmarks.SHAPES, "tiny", TINY)
    few = {name: benchmarks.MANIFOLDS[name] for name in ("oblique rows", "scaled, additive")}
    monkeypatch.setattr(benchmarks, "MANIFOLDS", few)
    one = {"momentum": benchmarks.OPTIMIZERS["momentum"]}
    monkeypatch.setattr(benchmarks, "OPTIMIZERS", one)
    measured: list[Cell] = []

    def stopped(cell: Cell, seconds: float) -> object:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(cell)
        return inner(cell, seconds)

    inner, threads = benchmarks.measure, torch.get_num_threads()
    monkeypatch.setattr(benchmarks, "measure", stopped)
    argv = ["--shapes", "tiny", "--threads", "1", "--seconds", "0", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        benchmarks.main(argv)
    before = (tmp_path / "benchmarks.csv").read_text()
    monkeypatch.setattr(benchmarks, "measure", inner)
    benchmarks.main(argv)
    after = (tmp_path / "benchmarks.csv").read_text()
    assert after.startswith(before)
    found = pd.read_csv(tmp_path / "benchmarks.csv")
    assert {cell for cell, _ in benchmarks.by_cell(found, "median_ms")} == set(
        benchmarks.cells(["tiny"], [1])
    )
    assert torch.get_num_threads() == threads


@pytest.mark.thorough
def test_the_report_is_that_of_the_committed_file(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.csv").write_bytes((RESULTS / "benchmarks.csv").read_bytes())
    benchmarks.main(["--out", str(tmp_path)])
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert text == (RESULTS / "benchmarks.md").read_text(encoding="utf-8")
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in RESULTS.glob("benchmarks*.svg")}


def test_bytes_that_a_step_must_move() -> None:
    """12 a number for SGD, 8 more for each buffer; Adam has one second moment for a slice."""
    of = {
        (optimizer, name): benchmarks.least_bytes(Cell("resnet50", "sphere", optimizer, 1), name)
        for optimizer in benchmarks.OPTIMIZERS
        for name in (BASE, OURS)
    }
    every = numbers("resnet50")
    vectors = sum(shape[0] for shape in benchmarks.SHAPES["resnet50"] if len(shape) == 1)
    assert of["sgd", BASE] == of["sgd", OURS] == 12 * every
    assert of["momentum", BASE] == of["momentum", OURS] == 20 * every
    assert of["adam", BASE] == 28 * every
    assert of["adam", OURS] == 20 * every + 8 * vectors


@pytest.mark.parametrize("argv", [["--shapes", "vgg"], ["--threads", "0"], ["--seconds", "nan"]])
def test_bad_requests(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmarks.main(argv)
    assert caught.value.code == 2
