"""A second-order solver over a whole network with one weight on the sphere, all data at once."""

import geotorch as gt
import numpy as np
import pymanopt as pm
import torch
from peer_tasks.shared import LABELS, VECTORS, mlp, off_unit
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet.interop.pymanopt import minimize


def loss(model, decay=1e-3):
    """The cross-entropy with a penalty on free weights, so that there is a minimum."""
    free = model[2].weight.square().sum() + model[2].bias.square().sum()
    return nn.functional.cross_entropy(model(VECTORS.double()), LABELS) + decay * free


class Loss(nn.Module):
    """The loss as a module, whose weights torch can replace."""

    def __init__(self):
        super().__init__()
        self.model = mlp().double()

    def forward(self):
        return loss(self.model)


NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
NETWORK = Loss()


def loss_at(values):
    values = {f"model.{name}": value for name, value in values.items()}
    return torch.func.functional_call(NETWORK, values, ())


def measure(setup):
    model = mlp().double()
    with torch.no_grad():
        model[0].weight /= model[0].weight.norm(dim=1, keepdim=True)
    setup(model)
    values = {name: getattr(model[int(name[0])], name[2:]).detach() for name in NAMES}
    first, *rest = torch.func.grad(loss_at)(values).values()
    first = first - (first * values["0.weight"]).sum(1, keepdim=True) * values["0.weight"]
    gradient = torch.cat([g.flatten() for g in (first, *rest)]).norm().item()
    off = off_unit(model[0].weight)
    return {"loss": loss(model).item(), "gradient": gradient, "norms off by": off}


def manifoldnet(model):
    """works"""
    mn.declare(model, "0.weight", mn.Oblique())
    minimize(model, lambda: loss(model), "trust-regions", max_iterations=100, verbosity=0)


def geotorch(model):
    """trap: no Hessians; 300 iterations of torch's L-BFGS stop further from the minimum"""
    gt.sphere(model[0], "weight")
    lbfgs(model)


def torch_parametrizations(model):
    """trap: no Hessians; 300 iterations of torch's L-BFGS stop further from the minimum"""
    parametrizations.weight_norm(model[0])
    model[0].parametrizations.weight.original0.requires_grad_(False).fill_(1)
    lbfgs(model)


def lbfgs(model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    options = {"max_iter": 300, "line_search_fn": "strong_wolfe"}
    solver = torch.optim.LBFGS(trainable, **options)

    def closure():
        solver.zero_grad()
        value = loss(model)
        value.backward()
        return value

    solver.step(closure)


def pymanopt(model):
    """trap: a product of manifolds and the network as a function of arrays, by hand"""
    weights = list(model.parameters())
    sets = [pm.manifolds.Euclidean(*w.shape) for w in weights]
    sets[0] = pm.manifolds.Oblique(weights[0].shape[1], weights[0].shape[0])
    manifold = pm.manifolds.Product(sets)

    @pm.function.pytorch(manifold)
    def cost(*values):
        return loss_at(dict(zip(NAMES, (values[0].T, *values[1:]), strict=True)))

    start = [w.detach().numpy() for w in weights]
    problem = pm.Problem(manifold, cost)
    solver = pm.optimizers.TrustRegions(max_iterations=100, verbosity=0)
    point = solver.run(problem, initial_point=[start[0].T, *start[1:]]).point
    for weight, value in zip(weights, [point[0].T, *point[1:]], strict=True):
        weight.data = torch.from_numpy(np.array(value))


ABSENT = {"geoopt": "first-order only", "adamp": "no constraints"}
