"""Rows of norm 2 where unit rows belong: given at the start, and in a checkpoint."""

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import fit, mlp, off_unit
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn


def measure(setup):
    model = mlp()
    with torch.no_grad():
        model[0].weight *= 2 / model[0].weight.norm(dim=1, keepdim=True)
    given = model[0].weight.detach().clone()
    try:
        optimizer = setup(model)
    except ValueError:
        return {"at the start": "refused"}
    off = off_unit(model[0].weight)
    cosine = nn.functional.cosine_similarity(model[0].weight.detach(), given).min().item()
    fit(model, optimizer)
    found = {"at the start, off by": off, "least cosine to the given rows": cosine}
    return found | {"after 20 steps, off by": off_unit(model[0].weight)}


def manifoldnet(model):
    """works (refused by name, with the amount; project=True moves them)"""
    mn.declare(model, "0.weight", mn.Oblique())
    return mn.constrain(torch.optim.SGD(model.parameters(), lr=0.1))


def geoopt(model):
    """trap: accepted as they are until the first step"""
    model[0].weight = go.ManifoldParameter(model[0].weight.detach(), manifold=go.Sphere())
    return go.optim.RiemannianSGD(model.parameters(), lr=0.1)


def geotorch(model):
    """trap: replaced by random rows; what is assigned later is refused"""
    gt.sphere(model[0], "weight")
    return torch.optim.SGD(model.parameters(), lr=0.1)


def torch_parametrizations(model):
    """trap: weight_norm keeps them with a gain of 2"""
    parametrizations.weight_norm(model[0])
    return torch.optim.SGD(model.parameters(), lr=0.1)


ABSENT = {"pymanopt": "no modules", "adamp": "no constraints"}
