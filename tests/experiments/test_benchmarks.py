"""`manifoldnet bench`: who is timed at what, and the table and picture of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from manifoldnet import cli
from manifoldnet.experiments.benchmarks import measure, report, shapes, work
from manifoldnet.experiments.benchmarks.rows import BASE, IMPLEMENTATIONS, Cell
from manifoldnet.experiments.errors import RecordError


def _numbers(name: str) -> int:
    return sum(math.prod(shape) for shape in shapes.SHAPES[name])


def test_the_networks_have_as_many_numbers_as_they_are_known_for() -> None:
    assert _numbers("resnet50") == 25_557_032
    assert _numbers("gpt2") == 124_439_808
    assert _numbers("matrix") == 8192 * 4096
    assert len(shapes.SHAPES["mlp"]) == 5


@pytest.mark.parametrize("optimizer", work.OPTIMIZERS)
@pytest.mark.parametrize("manifold", work.MANIFOLDS)
def test_everybody_moves_the_weights_it_is_given(
    manifold: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": ((6, 4), (5, 3, 2, 2), (6,))})
    found = measure.measure(Cell("tiny", manifold, optimizer, 1), seconds=0.0)
    names = [row.implementation for row in found]
    ours = [name for name in IMPLEMENTATIONS if name not in ("weight_norm", "geotorch")]
    assert [name for name in names if name in ours] == ours
    assert ("weight_norm" in names) is manifold.startswith("oblique")
    assert all(row.median_ms > 0 for row in found)
    (base,) = (row for row in found if row.implementation == BASE)
    assert base.ratio == 1


def test_implementations_step_the_same_weights_alike() -> None:
    cell = Cell("mlp", "oblique rows", "momentum", 1)
    makers = work.steps(cell)
    steps = [makers[name]() for name in ("manifoldnet fused", "manifoldnet reference")]
    for step in steps:
        step()
    weights = [
        {p.data_ptr() for group in step.__self__.param_groups for p in group["params"]}
        for step in steps
    ]
    assert weights[0] == weights[1]


def test_a_run_goes_on_where_it_was_stopped_and_its_file_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": ((6, 4), (6,))})
    few = {name: work.MANIFOLDS[name] for name in ("oblique rows", "scaled, additive")}
    monkeypatch.setattr(work, "MANIFOLDS", few)
    monkeypatch.setattr(work, "OPTIMIZERS", {"sgd": {}, "adam": {}})
    before = torch.get_num_threads()
    argv = ["bench", "--shapes", "tiny", "--threads", "1", "--seconds", "0", "--quiet"]
    argv += ["--out", str(tmp_path)]
    stopped = []

    def some(cell: Cell, *rest: object) -> object:
        if len(stopped) == 2:
            raise KeyboardInterrupt
        stopped.append(cell)
        return inner(cell, *rest)

    inner = measure.measure
    monkeypatch.setattr(measure, "measure", some)
    assert cli.main(argv) == 130
    assert len({row.cell for row in report.read(tmp_path / report.NAME)}) == 2
    monkeypatch.setattr(measure, "measure", inner)
    assert cli.main(argv) == 0
    rows = report.read(tmp_path / report.NAME)
    assert {row.cell for row in rows} == set(work.cells(["tiny"], [1]))
    text = report.to_csv(rows)
    assert text == (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert "scaled, additive" in capsys.readouterr().out
    assert (tmp_path / "benchmarks_1.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == before
    (tmp_path / report.NAME).write_text(text.replace(",1.000,", ",one,", 1))
    with pytest.raises(RecordError, match="could not convert"):
        report.read(tmp_path / report.NAME)


def test_growth_is_of_size_and_of_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, weights in shapes.GROWTH.items():
        numbers = sum(math.prod(shape) for shape in weights)
        assert name in (f"size-{numbers}", f"count-{len(weights)}")
    assert max(math.prod(shape) for shape in shapes.GROWTH["size-100000000"]) == 10**8
    small = {
        "size-16": ((4, 4),),
        "size-64": ((8, 8),),
        "count-10": 10 * ((2, 2),),
        "count-1000": 1000 * ((2, 2),),
    }
    monkeypatch.setattr(shapes, "GROWTH", small)
    argv = ["bench", "--shapes", "growth", "--threads", "1", "--seconds", "0", "--quiet"]
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    rows = report.read(tmp_path / report.NAME)
    assert {row.cell.shapes for row in rows} == set(small)
    assert {row.cell.manifold for row in rows} == {"oblique rows"}
    assert "geoopt" not in {row.implementation for row in rows}
    ms = {
        (row.cell.shapes, row.implementation): row.median_ms
        for row in rows
        if row.cell.optimizer == "sgd"
    }
    factor = ms["count-1000", "manifoldnet"] / ms["count-10", "manifoldnet"]
    table = report.growth(rows)
    assert table.rows[-1][:2] == ("manifoldnet", f"{factor:.0f}")
    assert (tmp_path / "benchmarks_growth_1.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "benchmarks_1.png").exists()


def test_what_a_step_must_move() -> None:
    """The network's 25.6 million numbers, 53 thousand of them in vectors; of Adam, one second
    moment for each slice of a declared weight."""
    of = {
        (optimizer, name): shapes.least_bytes(Cell("resnet50", "sphere", optimizer, 1), name)
        for optimizer in work.OPTIMIZERS
        for name in (BASE, "manifoldnet fused")
    }
    numbers = _numbers("resnet50")
    vectors = sum(math.prod(shape) for shape in shapes.SHAPES["resnet50"] if len(shape) == 1)
    assert of["sgd", BASE] == of["sgd", "manifoldnet fused"] == 12 * numbers
    assert of["momentum", BASE] == of["momentum", "manifoldnet fused"] == 20 * numbers
    assert of["adam", BASE] == 28 * numbers
    assert of["adam", "manifoldnet fused"] == 20 * numbers + 8 * vectors


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--shapes", "vgg"], "there are no shapes 'vgg'"),
        (["--threads", "0"], "each must be 1 or more"),
        (["--seconds", "nan"], "it must be a number of seconds"),
    ],
)
def test_bad_requests(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 2
    assert said in capsys.readouterr().err
