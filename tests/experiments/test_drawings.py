"""The documentation's pictures: what they show is so, and the files are there for both schemes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from manifoldnet.experiments.drawings import cylinder, paths, sphere, verdicts
from manifoldnet.experiments.drawings.__main__ import PICTURES, main

COMMITTED = Path(__file__).parents[2] / "docs" / "pictures"


def test_both_ways_back_end_on_the_sphere_and_on_one_circle() -> None:
    seen = sphere.step()
    x, u = seen["x"], seen["u"]
    assert abs(float(x @ u)) < 1e-12
    for name in ("projective", "geodesic"):
        assert float(seen[name].norm()) == pytest.approx(1)
        assert abs(float(torch.linalg.det(torch.stack([x, u, seen[name]])))) < 1e-12
    angle = torch.acos(x @ seen["geodesic"])
    assert float(angle) == pytest.approx(float(u.norm()))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_geodesics_are_straight_on_the_cylinder(scale: float) -> None:
    for curve in cylinder.curves(scale):
        cosine, sine, height = cylinder.rolled(curve).T
        for along in (torch.atan2(sine, cosine), height):
            torch.testing.assert_close(along.diff().diff(), torch.zeros(118).double())


def test_only_the_scaled_metric_takes_the_same_steps() -> None:
    for scaled_metric, same in ((True, True), (False, False)):
        one, other = (paths.path(scale, scaled_metric) for scale in paths.SCALES)
        assert torch.allclose(paths.SCALES[1] * one, other) is same


def test_the_table_is_that_of_the_paper() -> None:
    first, second = (
        [row.verdicts for row in verdicts.measure(name).rows if not row.trivial]
        for name in ("arch1", "arch2")
    )
    assert [row["SM"] for row in first] == ["ignores", "respects"]
    assert [row["SM"] for row in second] == ["respects", "ignores"] * 2
    assert {row["yours"] for row in first + second} == {"ignores"}


def test_every_picture_is_drawn_and_kept(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == sorted(f"{name}-{page}.svg" for name in PICTURES for page in ("dark", "light"))
    assert drawn == sorted(path.name for path in COMMITTED.glob("*.svg"))
    for name in drawn:
        shapes = [
            [element.tag for element in ET.parse(folder / name).iter()]
            for folder in (tmp_path, COMMITTED)
        ]
        assert shapes[0] == shapes[1], f"{name} is not what the code draws: draw it again"
