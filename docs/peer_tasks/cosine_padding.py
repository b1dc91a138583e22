"""Embeddings compared by cosine, with a padding row that stays zero."""

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import off_unit
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import manifoldnet as mn

WORDS = torch.arange(48).reshape(6, 8) % 12


def measure(setup):
    torch.manual_seed(0)
    layer = nn.Embedding(12, 6, padding_idx=0)
    optimizer = setup(layer)
    for _ in range(10):
        optimizer.zero_grad()
        rows = layer(WORDS)
        (rows[:, 1:] * rows[:, :-1]).sum(-1).mean().backward()
        optimizer.step()
    weight = layer.weight.detach()
    return {"norms off by": off_unit(weight[1:]), "padding row": float(weight[0].norm())}


def manifoldnet(layer):
    """works"""
    mn.declare(layer, "weight", mn.Oblique(zero_slices=(0,)), project=True)
    return mn.constrain(torch.optim.Adam(layer.parameters(), lr=0.05))


def geoopt(layer):
    """no: the zero row becomes NaN, silently"""
    rows = go.Sphere().projx(layer.weight.detach())
    layer.weight = go.ManifoldParameter(rows, manifold=go.Sphere())
    return go.optim.RiemannianAdam(layer.parameters(), lr=0.05)


def geotorch(layer):
    """no: the padding row becomes a unit vector, silently"""
    gt.sphere(layer, "weight")
    return torch.optim.Adam(layer.parameters(), lr=0.05)


def torch_parametrizations(layer):
    """trap: weight_norm gives NaN for the zero row; a class of one's own"""

    class Rows(nn.Module):
        def forward(self, weight):
            return nn.functional.normalize(weight, dim=1)

    parametrize.register_parametrization(layer, "weight", Rows())
    return torch.optim.Adam(layer.parameters(), lr=0.05)


def weight_norm(layer):
    parametrizations.weight_norm(layer, dim=0)
    return torch.optim.Adam(layer.parameters(), lr=0.05)


ABSENT = {"pymanopt": "no modules", "adamp": "no constraints"}
