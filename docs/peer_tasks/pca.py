"""PCA: the leading 5-dimensional subspace of a 100 × 100 matrix, by a second-order solver."""

import time

import geoopt as go
import geotorch as gt
import pymanopt as pm
import torch
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet.interop.pymanopt import minimize

torch.manual_seed(0)
FACTOR = torch.randn(100, 100, dtype=torch.float64)
MATRIX = FACTOR @ FACTOR.T / 100
BEST = float(torch.linalg.eigvalsh(MATRIX)[-5:].sum())


def captured(x):
    return (x * (MATRIX @ x)).sum()


def measure(setup):
    torch.manual_seed(1)
    start = time.perf_counter()
    x = torch.as_tensor(setup()).detach()
    seconds = time.perf_counter() - start
    return {"gap": BEST - float(captured(x)), "seconds": seconds}


def model():
    layer = nn.Module()
    layer.x = nn.Parameter(torch.linalg.qr(torch.randn(100, 5, dtype=torch.float64)).Q.contiguous())
    return layer


def manifoldnet():
    """works"""
    layer = model()
    mn.declare(layer, "x", mn.Stiefel())
    minimize(layer, lambda: -captured(layer.x), "trust-regions", verbosity=0)
    return layer.x


def geoopt():
    """trap: first-order only; 200 steps of its line search"""
    layer = model()
    layer.x = go.ManifoldParameter(layer.x.detach(), manifold=go.Stiefel())
    solver = go.optim.RiemannianLineSearch(layer.parameters())

    def closure():
        solver.zero_grad()
        loss = -captured(layer.x)
        loss.backward()
        return loss

    for _ in range(200):
        solver.step(closure)
    return layer.x


def lbfgs(layer):
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = -captured(layer.x)
        loss.backward()
        return loss

    solver.step(closure)
    return layer.x


def geotorch():
    """works (torch's L-BFGS)"""
    layer = model()
    gt.orthogonal(layer, "x")
    return lbfgs(layer)


def torch_parametrizations():
    """works (torch's L-BFGS)"""
    layer = model()
    parametrizations.orthogonal(layer, "x")
    return lbfgs(layer)


def pymanopt():
    """works"""
    manifold = pm.manifolds.Stiefel(100, 5)

    @pm.function.pytorch(manifold)
    def cost(x):
        return -captured(x)

    problem = pm.Problem(manifold, cost)
    return pm.optimizers.TrustRegions(verbosity=0).run(problem).point


ABSENT = {"adamp": "no constraints"}
