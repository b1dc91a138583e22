"""Orthogonal layers: a tall one, a wide one, and a kernel as out × (in·kh·kw)."""

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import off_orthogonal
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn


def layers():
    torch.manual_seed(0)
    tall, wide, kernel = nn.Linear(8, 20), nn.Linear(20, 8), nn.Conv2d(3, 16, 3)
    return {"tall": tall, "wide": wide, "kernel": kernel}


def measure(setup):
    found = {}
    for name, layer in layers().items():
        try:
            optimizer = setup(layer)
        except ValueError:
            found[name] = "refused"
            continue
        shape = (64, 3, 5, 5) if name == "kernel" else (64, layer.in_features)
        for _ in range(20):
            optimizer.zero_grad()
            layer(torch.rand(shape)).square().mean().backward()
            optimizer.step()
        found[name] = off_orthogonal(layer.weight)
    return found


def manifoldnet(layer):
    """works"""
    mn.declare(layer, "weight", mn.Stiefel(), project=True)
    return mn.constrain(torch.optim.Adam(layer.parameters(), lr=0.01))


def geoopt(layer):
    """trap: wide layers are refused, a kernel gets a frame for each kh × kw"""
    stiefel = go.Stiefel()
    frame = stiefel.projx(layer.weight.detach())
    layer.weight = go.ManifoldParameter(frame, manifold=stiefel)
    return go.optim.RiemannianAdam(layer.parameters(), lr=0.01)


def geotorch(layer):
    """trap: a kernel gets a frame for each kh × kw; weights are drawn anew"""
    gt.orthogonal(layer, "weight")
    return torch.optim.Adam(layer.parameters(), lr=0.01)


def torch_parametrizations(layer):
    """trap: a kernel gets a frame for each kh × kw"""
    parametrizations.orthogonal(layer, "weight")
    return torch.optim.Adam(layer.parameters(), lr=0.01)


ABSENT = {"pymanopt": "no modules", "adamp": "no constraints"}
