"""`Angles` of sharded weights: every rank measures what one process measures of the whole."""

from __future__ import annotations

import pytest
import torch
from layers import Layers, declare, split, train
from ranks import Ranks

import manifoldnet as mn


def measured(how: str | None) -> tuple[dict[str, float], dict[str, float]]:
    """Angles and norms of a step with momentum, after two steps, and of free weights as well."""
    net = Layers()
    declare(net)
    net.register_parameter("free", torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64)))
    if how is not None:
        split(net, how)
    optimizer = mn.RiemannianSGD(mn.param_groups(net), lr=0.1, momentum=0.9)
    train(net, optimizer, 2)
    angles = mn.optim.Angles(net)
    with angles:
        train(net, optimizer, 1, first=2)
    return angles.angle, angles.norm


@pytest.mark.parametrize("how", ["full", "tensor"])
@pytest.mark.thorough
def test_angles_are_those_of_one_process(two: Ranks, how: str) -> None:
    for found, expected in zip(two.agreed(measured, how), measured(None), strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
        assert len(found) == 5
