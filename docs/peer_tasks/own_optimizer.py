"""Keep an optimizer of torch (AdamW with weight decay, Muon) on orthogonal weights."""

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import fit, mlp, off_orthogonal
from torch.nn.utils import parametrizations

import manifoldnet as mn


def measure(setup):
    model = mlp(hidden=32)
    losses = fit(model, setup(model, torch.optim.AdamW, lr=0.01, weight_decay=0.1))
    found = {"AdamW, off by": off_orthogonal(model[0].weight), "loss": losses[-1]}
    model = mlp(hidden=32)
    for p in (model[0].bias, *model[2].parameters()):
        p.requires_grad_(False)
    losses = fit(model, setup(model, torch.optim.Muon, lr=0.01, weight_decay=0.0))
    return found | {"Muon, off by": off_orthogonal(model[0].weight), "Muon's loss": losses[-1]}


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def manifoldnet(model, kind, **options):
    """works"""
    mn.declare(model, "0.weight", mn.Stiefel(), project=True)
    return mn.constrain(kind(trainable(model), **options))


def geoopt(model, kind, **options):
    """no: other optimizers take Euclidean steps, silently"""
    frame = go.Stiefel().projx(model[0].weight.detach())
    model[0].weight = go.ManifoldParameter(frame, manifold=go.Stiefel())
    return kind(trainable(model), **options)


def geotorch(model, kind, **options):
    """works"""
    gt.orthogonal(model[0], "weight")
    return kind(trainable(model), **options)


def torch_parametrizations(model, kind, **options):
    """trap: weight 0 under decay or Muon; right with "matrix_exp" as third argument"""
    parametrizations.orthogonal(model[0], "weight")
    return kind(trainable(model), **options)


ABSENT = {"pymanopt": "its own solvers", "adamp": "no constraints"}
