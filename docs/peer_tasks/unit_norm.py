"""Unit-norm filters in every convolution of a network."""

import geoopt as go
import geotorch as gt
import torch
from adamp import SGDP
from peer_tasks.shared import IMAGES, cnn, fit, off_unit
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import manifoldnet as mn


def measure(setup):
    model = cnn()
    losses = fit(model, setup(model), IMAGES)
    assert losses[-1] < losses[0]
    return {"norms off by": off_unit(model[0].weight, model[3].weight)}


def manifoldnet(model):
    """works"""
    mn.declare_all(model, mn.rules.unit_norm(classifier="6"), project=True)
    return mn.constrain(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def geoopt(model):
    """trap: Sphere alone takes each row of a kernel, so filters are kept flat and reshaped"""
    for layer in (model[0], model[3]):
        shape = layer.weight.shape
        view = nn.Unflatten(1, shape[1:])
        view.right_inverse = lambda weight: weight.flatten(1)
        parametrize.register_parametrization(layer, "weight", view, unsafe=True)
        flat = go.Sphere().projx(layer.parametrizations.weight.original.detach())
        flat = go.ManifoldParameter(flat, manifold=go.Sphere())
        layer.parametrizations.weight.original = flat
    return go.optim.RiemannianSGD(model.parameters(), lr=0.1, momentum=0.9)


def geotorch(model):
    """trap: sphere() alone takes each row of a kernel, so the set is wrapped; weights drawn anew"""

    class Filters(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.sphere = gt.Sphere((shape[0], shape[1:].numel()))

        def forward(self, v):
            return self.sphere(v.flatten(1)).view_as(v)

    for layer in (model[0], model[3]):
        parametrize.register_parametrization(layer, "weight", Filters(layer.weight.shape))
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def torch_parametrizations(model):
    """trap: weight_norm has a gain, which is set to 1 and frozen; lengths underneath grow"""
    for layer in (model[0], model[3]):
        parametrizations.weight_norm(layer, dim=0)
        gain = layer.parametrizations.weight.original0
        gain.requires_grad_(False).fill_(1)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamp(model):
    """no: SGDP slows the growth of norms and constrains nothing"""
    return SGDP(model.parameters(), lr=0.1, momentum=0.9)


ABSENT = {"pymanopt": "problems in arrays, no modules, no minibatches"}
