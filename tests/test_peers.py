"""The statements of README.md about other libraries hold with the pinned versions."""

from __future__ import annotations

from typing import Any

import geoopt
import pytest
import torch
from adamp import AdamP
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import manifoldnet as mn


def kernel() -> Tensor:
    return torch.randn(6, 3, 5, 5)


def test_one_vector_per_filter() -> None:
    ours = mn.Oblique(dim=0).projx(kernel())
    theirs = geoopt.Sphere().projx(kernel())
    torch.testing.assert_close(ours.flatten(1).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(theirs.norm(dim=-1), torch.ones(6, 3, 5))  # rows of a filter
    layer = weight_norm(nn.Conv2d(3, 6, 5), dim=0)
    assert layer.parametrizations.weight.original0.shape == (6, 1, 1, 1)


def first_step(make: Any, parameter: Tensor, momentum: float) -> Tensor:
    optimizer = make([parameter], lr=1e-2, momentum=momentum)
    (parameter * torch.arange(1.0, 6.0)).sum().backward()
    optimizer.step()
    return parameter.detach()


def test_the_first_step_with_momentum_is_that_without() -> None:
    x = mn.Sphere().random(5)
    ours, theirs = (
        [first_step(make, parameter(x.clone(), on), momentum) for momentum in (0.9, 0.0)]
        for make, parameter, on in (
            (mn.RiemannianSGD, mn.ManifoldParameter, mn.Sphere()),
            (geoopt.optim.RiemannianSGD, geoopt.ManifoldParameter, geoopt.Sphere()),
        )
    )
    torch.testing.assert_close(*ours)
    assert not torch.allclose(*theirs, atol=1e-3)


def free_weights(make: Any) -> Tensor:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20))
    optimizer = make([parameter], lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        parameter.pow(4).sum().backward()
        optimizer.step()
    return parameter.detach()


def test_free_weights_move_as_with_torch() -> None:
    plain = free_weights(torch.optim.SGD)
    assert torch.equal(free_weights(mn.RiemannianSGD), plain)
    assert not torch.allclose(free_weights(geoopt.optim.RiemannianSGD), plain)


@pytest.mark.parametrize(
    ("make", "ascends"), [(mn.RiemannianAdam, True), (geoopt.optim.RiemannianAdam, False)]
)
def test_maximize(make: Any, ascends: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make([parameter], lr=0.1, maximize=True)
    parameter.sum().backward()
    optimizer.step()
    assert (float(parameter.detach()) > 0) is ascends


def test_a_declaration_survives_assignment() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    mn.declare(ours, "weight", mn.Oblique(), project=True)
    theirs.weight = geoopt.ManifoldParameter(ours.weight.detach().clone(), geoopt.Sphere())
    for layer in (ours, theirs):
        plain = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        layer.load_state_dict({k: nn.Parameter(v) for k, v in plain.items()}, assign=True)
    assert mn.manifolds(ours) == {"weight": mn.Oblique()}
    assert not isinstance(theirs.weight, geoopt.ManifoldParameter)


def test_what_is_off_a_manifold() -> None:
    with pytest.raises(ValueError, match="is not on"):
        mn.ManifoldParameter(2 * torch.ones(3), mn.Sphere())
    geoopt.ManifoldParameter(2 * torch.ones(3), geoopt.Sphere())  # accepted as it is


def test_a_distance_of_zero() -> None:
    x = geoopt.Sphere().projx(torch.randn(50, 64))
    assert float(mn.Oblique().dist(x, x)) == 0
    assert float(geoopt.Sphere().dist(x, x).max()) > 1e-4


def growth(layer: nn.Module, weight: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """The growth of filters in 100 steps under a loss that ignores their length."""
    images, labels = torch.randn(128, 20), torch.randint(4, (128,))
    start = weight.detach().norm(dim=1)
    for _ in range(100):
        optimizer.zero_grad()
        scores = nn.functional.normalize(layer.weight, dim=1)
        nn.functional.cross_entropy(5 * images @ scores.T, labels).backward()
        optimizer.step()
    return float((weight.detach().norm(dim=1) / start).mean())


def test_lengths_that_the_loss_ignores() -> None:
    options = {"lr": 0.5, "momentum": 0.9}
    declared = nn.Linear(20, 4, bias=False)
    mn.declare(declared, "weight", mn.Oblique(), project=True)
    ours = growth(declared, declared.weight, mn.RiemannianSGD(mn.param_groups(declared), **options))
    normed = weight_norm(nn.Linear(20, 4, bias=False), dim=0)
    v = normed.parametrizations.weight.original1
    reparameterized = growth(normed, v, torch.optim.SGD(normed.parameters(), **options))
    projected = nn.Linear(20, 4, bias=False)
    adamp = growth(projected, projected.weight, AdamP(projected.parameters(), lr=0.01))
    assert ours == pytest.approx(1, abs=1e-5)
    assert reparameterized > 1.05
    assert adamp > 1.05
