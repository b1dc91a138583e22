"""A compiled model and bfloat16 autocast in a training step with one orthogonal weight.

The backend is "aot_eager": graphs as inductor gets them, without its minutes of compilation.
"""

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import LABELS, VECTORS, mlp, off_orthogonal
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn


def measure(setup):
    model = mlp(hidden=32)
    optimizer = setup(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(compiled(VECTORS), LABELS)
        loss.backward()
        optimizer.step()
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        seen = off_orthogonal(model[0].weight.bfloat16().float())
    found = {"off by": off_orthogonal(model[0].weight), "as the layer uses it": seen}
    return found | {"loss": loss.item()}


def manifoldnet(model):
    """works"""
    mn.declare(model, "0.weight", mn.Stiefel(), project=True)
    return mn.constrain(torch.optim.Adam(model.parameters(), lr=0.01))


def geoopt(model):
    """works"""
    frame = go.Stiefel().projx(model[0].weight.detach())
    model[0].weight = go.ManifoldParameter(frame, manifold=go.Stiefel())
    return go.optim.RiemannianAdam(model.parameters(), lr=0.01)


def geotorch(model):
    """works (the constraint is computed in bfloat16 as well)"""
    gt.orthogonal(model[0], "weight")
    return torch.optim.Adam(model.parameters(), lr=0.01)


def torch_parametrizations(model):
    """works (the constraint is computed in bfloat16 as well)"""
    parametrizations.orthogonal(model[0], "weight")
    return torch.optim.Adam(model.parameters(), lr=0.01)


ABSENT = {"pymanopt": "no minibatches", "adamp": "no constraints"}
