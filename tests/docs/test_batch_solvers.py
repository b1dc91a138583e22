"""docs/batch_solvers.py: small measurements, and pictures from the committed files."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import batch_solvers
import numpy as np
import pandas as pd
import pytest
from batch_solvers import Moment
from PIL import Image

RESULTS = Path(batch_solvers.__file__).parent / "results"


@pytest.mark.thorough
def test_solvers_do_not_see_the_scale_of_filters_in_an_invariant_metric() -> None:
    rows = batch_solvers.rescaled(batch_solvers.digits(60), iterations=10, features=6)
    keys = ["solver", "update", "scaling"]
    costs = {key: list(map(float, part.cost)) for key, part in rows.groupby(keys)}
    assert len(costs) == 18
    for solver in batch_solvers.RESCALED:
        free = costs[solver, "b-sgd", "none"]
        assert costs[solver, "b-sgd", "any"][-1] != pytest.approx(free[-1], rel=1e-2)
        for update in ("sm-geodesic", "moving-frame"):
            own = costs[solver, update, "none"]
            assert costs[solver, update, "any"] == pytest.approx(own, rel=1e-6)
            assert own[-1] < 0.5 * own[0]
            assert free[0] == own[0]
        own = costs[solver, "sm-geodesic", "none"]
        assert costs[solver, "sm-geodesic", "powers of two"] == own


@pytest.mark.thorough
def test_a_contest_gives_the_course_of_every_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [s for s in batch_solvers.SOLVERS if s.solver != "sgd" or s.lr in (0.1, 0.3)]
    monkeypatch.setattr(batch_solvers, "SOLVERS", some)
    runs = batch_solvers.contest(batch_solvers.digits(50), 60, features=6)
    updates = [*batch_solvers.COLOURS]
    assert sorted(s[:2] for s in runs) == sorted(
        [("lbfgs-torch", "b-sgd"), *itertools.product(batch_solvers.FAMILIES, updates)]
    )
    starts = [course[0].cost for course in runs.values()]
    assert max(starts) == pytest.approx(min(starts), rel=1e-9)
    for course in runs.values():
        assert [m.cost for m in course] == sorted((m.cost for m in course), reverse=True)
        assert [m.passes for m in course] == sorted(m.passes for m in course)
        assert course[-1].cost < course[0].cost
        assert 40 < course[-1].passes <= 60


def test_a_cost_that_is_not_finite_ends_a_course() -> None:
    moments = [Moment(2, 3.0), Moment(4, 4.0), Moment(6, math.nan), Moment(8, 1.0)]
    assert batch_solvers.lowest(iter(moments)) == [Moment(2, 3.0), Moment(4, 3.0)]


def test_a_table_has_the_last_moment_of_a_long_course() -> None:
    course = [Moment(i, 1 / (i + 1)) for i in range(500)]
    table = batch_solvers.contest_table({batch_solvers.SOLVERS[-1]: course})
    assert 100 < len(table) <= 201
    assert table.passes.iloc[-1] == 499


@pytest.mark.thorough
def test_the_command_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PNG")
    rows = [{"image": {"bytes": stream.getvalue()}, "label": i % 10} for i in range(30)]
    (tmp_path / "mnist").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "mnist" / "train-0.parquet")
    pixels, labels = batch_solvers.mnist(tmp_path, 20)
    assert pixels.shape == (20, 64)
    assert float(pixels.max()) == pytest.approx(63 / 255)
    assert len(set(labels.tolist())) > 5

    monkeypatch.setattr(batch_solvers, "SOLVERS", batch_solvers.SOLVERS[2:3])
    fewer = batch_solvers.rescaled
    monkeypatch.setattr(batch_solvers, "rescaled", lambda batch: fewer(batch, 2))
    small = ["--passes", "20", "--rounds", "1", "--data-dir", str(tmp_path)]
    batch_solvers.main(["--out", str(tmp_path / "out"), *small])
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {path.name for path in RESULTS.glob("batch_*")}
    calls = pd.read_csv(tmp_path / "out" / "batch_overhead.csv")
    assert list(calls.call) == ["autograd", "minimize", "pymanopt"]
    assert (calls.seconds > 0).all()
    with pytest.raises(SystemExit):
        batch_solvers.main(["--passes", "0"])
