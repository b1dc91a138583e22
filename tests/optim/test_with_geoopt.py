"""Both ways: geoopt's optimizers on our parameters, ours on geoopt's manifolds."""

from __future__ import annotations

from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor, nn

import manifoldnet as mn


def _descend(
    parameter: Tensor, optimizer: torch.optim.Optimizer, target: Tensor, steps: int
) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (parameter - target).square().sum()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("make", [geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam])
@pytest.mark.parametrize(
    "manifold",
    [
        mn.Oblique(),
        mn.Oblique(1, retraction="geodesic"),
        mn.Sphere(2.0),
        mn.ScaledEuclidean(),
        mn.Euclidean(),
    ],
    ids=repr,
)
def test_geoopts_optimizers_run_on_our_parameters(make: Any, manifold: mn.Manifold) -> None:
    torch.manual_seed(0)
    target = manifold.random(5, 4)
    p = mn.ManifoldParameter(manifold.random(5, 4), manifold)
    options: dict[str, Any] = {"lr": 0.02, "stabilize": 7}
    if make is geoopt.optim.RiemannianSGD:
        options["momentum"] = 0.5
    start = float((p.detach() - target).square().sum())
    end = _descend(p, make([p], **options), target, 500)
    assert end < 0.01 * start
    assert manifold.check_point_on_manifold(p.detach())


MANIFOLDS = [
    (geoopt.Stiefel(), 1e-4),
    (geoopt.EuclideanStiefel(), 1e-5),
    (geoopt.PoincareBall(), 1e-5),
    (geoopt.Sphere(), 1e-5),
]


@pytest.mark.parametrize(("base", "limit"), MANIFOLDS, ids=lambda v: str(v))
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (mn.RiemannianSGD, {"lr": 0.02}),
        (mn.RiemannianSGD, {"lr": 0.02, "momentum": 0.5}),
        (mn.RiemannianSGD, {"lr": 0.02, "momentum": 0.5, "nesterov": True}),
        (mn.RiemannianAdam, {"lr": 0.01}),
    ],
)
@pytest.mark.parametrize("how", ["declared", "geoopt.ManifoldParameter"])
@pytest.mark.thorough
def test_our_optimizers_run_on_geoopts_manifolds_and_stay_on_them(
    base: Any, limit: float, make: Any, options: dict[str, Any], how: str
) -> None:
    torch.manual_seed(0)
    manifold = mn.from_geoopt(base)
    x, target = manifold.random(6, 3), manifold.random(6, 3)
    module = nn.Module()
    if how == "declared":
        module.weight = nn.Parameter(x)
        mn.declare(module, "weight", base)
    else:
        module.weight = geoopt.ManifoldParameter(x, manifold=base)
    start = float((x - target).square().sum())
    end = _descend(module.weight, make(mn.param_groups(module), **options), target, 1000)
    assert end < 0.5 * start
    assert mn.violations(module)["weight"] < limit
    assert mn.manifolds(module) == {"weight": manifold}
