"""Save, resume, load strictly, tie weights, load by assignment: a tied embedding on the sphere."""

import copy

import geoopt as go
import geotorch as gt
import torch
from peer_tasks.shared import off_unit
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn

TOKENS = torch.arange(32) % 12


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.out = nn.Linear(6, 12, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.embed(tokens))


def train(model, optimizer, number):
    for _ in range(number):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(8 * model(TOKENS), TOKENS.roll(1))
        loss.backward()
        optimizer.step()
    return loss.item()


def measure(setup):
    def build():
        torch.manual_seed(0)
        model = Model()
        return model, setup(model)  # what makes the optimizer

    model, make = build()
    optimizer = make()
    train(model, optimizer, 5)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved = copy.deepcopy(saved)
    again, make_again = build()
    again.load_state_dict(saved["model"])
    resumed = make_again()
    resumed.load_state_dict(saved["optimizer"])
    found = {
        "resumed, losses differ by": abs(train(model, optimizer, 5) - train(again, resumed, 5)),
        "tied": torch.equal(model.out.weight, model.embed.weight),
        "keys of the plain model": saved["model"].keys() == Model().state_dict().keys(),
    }
    assigned, make = build()
    state = {key: value.clone() for key, value in saved["model"].items()}
    assigned.load_state_dict(state, assign=True)
    train(assigned, make(), 5)
    return found | {"on the set after assign=True": off_unit(assigned.embed.weight) < 1e-5}


def manifoldnet(model):
    """works"""
    mn.declare(model, "embed.weight", mn.Oblique(), project=True)
    return lambda: mn.constrain(torch.optim.Adam(model.parameters(), lr=0.05))


def geoopt(model):
    """trap: a plain parameter after assign=True, silently; a resumed run differs in rounding"""
    rows = go.Sphere().projx(model.embed.weight.detach())
    model.embed.weight = go.ManifoldParameter(rows, manifold=go.Sphere())
    model.out.weight = model.embed.weight
    return lambda: go.optim.RiemannianAdam(model.parameters(), lr=0.05)


def geotorch(model):
    """trap: the checkpoint has other keys; tied layers share their parametrizations by hand"""
    gt.sphere(model.embed, "weight")
    gt.sphere(model.out, "weight")
    model.out.parametrizations.weight = model.embed.parametrizations.weight
    return lambda: torch.optim.Adam(model.parameters(), lr=0.05)


def torch_parametrizations(model):
    """trap: the checkpoint has other keys; tied layers share their parametrizations by hand"""
    for layer in (model.embed, model.out):
        parametrizations.weight_norm(layer, dim=0)
        layer.parametrizations.weight.original0.requires_grad_(False).fill_(1)
    model.out.parametrizations.weight = model.embed.parametrizations.weight
    return lambda: torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)


ABSENT = {"pymanopt": "no modules, no state", "adamp": "no constraints"}
