"""Steps of gains and directions: from zero, through zero, and a network that starts at zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import point
from sklearn.datasets import load_digits
from torch import Tensor, nn

import manifoldnet as mn

PATHS: dict[str, dict[str, Any]] = {
    "reference": {"foreach": False},
    "torch": {},
    "kernel": {"fused": True},
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def _layer(x: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(x.clone())
    mn.declare(module, "weight", mn.Polar())
    return module


def _stepped(x: Tensor, gradients: list[Tensor], make: Any, **options: Any) -> tuple[Tensor, Any]:
    module = _layer(x)
    optimizer = make(module.parameters(), **options)
    for g in gradients:
        module.weight.grad = g.clone()
        optimizer.step()
    return module.weight.detach(), optimizer


def _gradients(count: int, shape: tuple[int, ...] = (4, 6)) -> list[Tensor]:
    source = torch.Generator().manual_seed(10**6)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(count)]


def test_the_first_step_from_zero_follows_the_gradient() -> None:
    (g,) = _gradients(1)
    zero = torch.zeros(4, 6, dtype=torch.float64)
    weight, _ = _stepped(zero, [g], mn.RiemannianSGD, lr=0.1, momentum=0.9)
    assert torch.equal(weight, -0.1 * g)
    weight, _ = _stepped(zero, [g], mn.RiemannianAdam, lr=0.1, slice_scale="norm")
    torch.testing.assert_close(weight, -0.1 * g / g.norm(dim=1, keepdim=True))
    g[2] = 0  # and stays where there is none
    weight, _ = _stepped(zero, [g], mn.RiemannianAdam, lr=0.1)
    assert not bool(weight[2].any())
    assert bool(weight.isfinite().all())


def test_a_gradient_across_the_weight_turns_it_and_leaves_its_gain() -> None:
    x = point(mn.Polar(), (4, 6), 0)
    (g,) = _gradients(1)
    g = mn.Oblique().proju(x, g)
    weight, _ = _stepped(x, [g], mn.RiemannianSGD, lr=0.1)
    torch.testing.assert_close(weight.norm(dim=1), x.norm(dim=1))
    cosine = torch.cosine_similarity(weight, x, dim=1)
    torch.testing.assert_close(cosine.acos(), 0.1 * (x.norm(dim=1) * g.norm(dim=1)))


def test_a_gain_crosses_zero_with_its_momentum() -> None:
    """The radial part of two steps: as one number would move, and no less through zero."""
    x = torch.tensor([[0.05, 0.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    weight, optimizer = _stepped(x, [g, g, g], mn.RiemannianSGD, lr=0.03, momentum=0.5)
    plain = nn.Parameter(x.clone())
    same = torch.optim.SGD([plain], lr=0.03, momentum=0.5)
    for _ in range(3):
        plain.grad = g.clone()
        same.step()
    assert float(weight[0, 0]) < 0
    torch.testing.assert_close(weight, plain.detach())
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["momentum_buffer"], same.state[plain]["momentum_buffer"])


@each_path
@pytest.mark.parametrize("make", [mn.RiemannianSGD, mn.RiemannianAdam])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_path_takes_the_reference_step(
    dtype: torch.dtype, make: Any, path: dict[str, Any]
) -> None:
    x = point(mn.Polar(), (4, 6), 0)
    x[1] = 0
    gradients = [g.to(dtype) for g in _gradients(5)]
    ends = [_stepped(x.to(dtype), gradients, make, lr=0.02, **way)[0] for way in (path, {})]
    assert torch.equal(*ends)
    assert bool(ends[0].isfinite().all())
    assert bool(ends[0].any(1).all())


def test_a_run_goes_on_from_a_checkpoint() -> None:
    gradients = _gradients(6)
    zero = torch.zeros(4, 6, dtype=torch.float64)
    whole, _ = _stepped(zero, gradients, mn.RiemannianAdam, lr=0.02)
    half, optimizer = _stepped(zero, gradients[:3], mn.RiemannianAdam, lr=0.02)
    module = _layer(half)
    again = mn.RiemannianAdam(module.parameters(), lr=0.02)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in gradients[3:]:
        module.weight.grad = g.clone()
        again.step()
    assert torch.equal(module.weight.detach(), whole)


# --- a network ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual network whose branches end in projections that start at zero."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.inner = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for layer in self.outer:
            nn.init.zeros_(layer.weight)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(torch.relu(inner(x)))
        return self.head(x)


def _digits() -> tuple[Tensor, Tensor]:
    pixels, target = load_digits(return_X_y=True)
    return torch.tensor(pixels[:1000] / 16), torch.tensor(target[:1000])


def _trained(declared: bool, seed: int) -> float:
    """The loss after 60 steps, at the rate that is best for the free network."""
    pixels, target = _digits()
    torch.manual_seed(seed)
    model = Residual()
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=2e-2)
    if declared:
        for i in range(3):
            mn.declare(model, f"outer.{i}.weight", mn.Polar())
        groups = mn.param_groups(model, declared={"lr": 1e-2, "slice_scale": "rms"})
        optimizer = mn.RiemannianAdam(groups, lr=2e-2, error_if_nonfinite=True)
    for step in range(60):
        part = slice(step % 4 * 250, step % 4 * 250 + 250)
        loss = nn.functional.cross_entropy(model(pixels[part]), target[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(bool(layer.weight.any(1).all()) for layer in model.outer)
    return float(nn.functional.cross_entropy(model(pixels), target).detach())


@pytest.mark.thorough
def test_a_network_whose_projections_start_at_zero_trains_as_the_free_one() -> None:
    free, ours = (sum(_trained(declared, seed) for seed in range(3)) for declared in (False, True))
    assert ours < 1.05 * free
