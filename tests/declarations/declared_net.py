"""The network that declarations are made on, in every way there is, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geoopt
import torch
from torch import Tensor, nn

import manifoldnet as mn

MANIFOLDS: dict[str, mn.Manifold] = {
    "oblique": mn.Oblique(),
    "scaled": mn.ScaledEuclidean(dim=1),
    "sphere": mn.Sphere(radius=2.0, retraction="geodesic"),
    "stiefel": mn.from_geoopt(geoopt.Stiefel()),
    "orthonormal": mn.Stiefel(retraction="qr"),
}

Handed = Callable[[nn.Module], Any]

#: The ways to hand parameters to an optimizer.
HANDED: dict[str, Handed] = {
    "param_groups": mn.param_groups,
    "parameters": lambda model: model.parameters(),
}


class Net(nn.Module):
    """Two layers; the hidden one takes the declaration, the rest stays free."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))


def declared(manifold: mn.Manifold, way: str = "declared", seed: int = 1) -> Net:
    """A network, the same for each way, whose hidden weight is declared."""
    torch.manual_seed(seed)
    net = Net()
    if way == "declared":
        mn.declare(net.hidden, "weight", manifold, project=True)
    else:
        point = manifold.projx(net.hidden.weight.detach())
        net.hidden.weight = mn.ManifoldParameter(point, manifold)
    return net


def batch(like: Tensor) -> tuple[Tensor, Tensor]:
    """Always the same inputs and targets."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(16, 5, generator=generator)
    return x.to(like.dtype), torch.randint(3, (16,), generator=generator)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float]:
    """Some steps; the loss before each of them."""
    x, y = batch(next(model.parameters()))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(model: nn.Module, handed: Handed = mn.param_groups) -> mn.RiemannianSGD:
    return mn.RiemannianSGD(handed(model), lr=0.3, momentum=0.9)


def train(model: nn.Module, handed: Handed = mn.param_groups, steps: int = 3) -> list[float]:
    """Some steps with a new optimizer."""
    return fit(model, optimizer_of(model, handed), steps)


def tied(declare: str | None = "0.weight", manifold: mn.Manifold | None = None) -> nn.ModuleList:
    """Two layers with one weight, declared under one of its names."""
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    layers[1].weight = layers[0].weight
    if declare is not None:
        mn.declare(layers, declare, manifold or mn.Oblique(), project=True)
    return layers


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in a model."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)
