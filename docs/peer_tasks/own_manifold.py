"""A set of one's own: positive weights with relative steps, the metric uv/x²."""

from dataclasses import dataclass

import geoopt as go
import pymanopt as pm
import torch
from torch import nn
from torch.nn.utils import parametrize

import manifoldnet as mn
from manifoldnet.geometry import (
    Additive,
    Geodesics,
    Manifold,
    Metric,
    Projection,
    Retraction,
    Slices,
    resolve_retraction,
)

TARGET = torch.logspace(-2, 1, 12, dtype=torch.float64).reshape(4, 3)


def mismatch(x):
    return (x / TARGET).log().square().sum() / 2


def measure(setup):
    layer = nn.Linear(3, 4, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    optimizer = setup(layer)
    for _ in range(50 if optimizer else 0):
        optimizer.zero_grad()
        mismatch(layer.weight).backward()
        optimizer.step()
    return {"mismatch": mismatch(layer.weight).item(), "least": layer.weight.min().item()}


def manifoldnet(layer):
    """works (its mathematics has ready tests)"""

    @dataclass(frozen=True)
    class Relative(Metric):
        def component_inner(self, x, u, v):
            return (u / x) * (v / x)

        def sharp(self, x, g):
            return x * x * g

    @dataclass(frozen=True)
    class HalfLines(Projection):
        def to_set(self, x):
            return x.abs()

        def to_tangent(self, x, u):
            return u

        def violation(self, x):
            return torch.where(x > 0, 0.0, torch.inf).to(x.dtype)

        def tangent_violation(self, x, u):
            return torch.where(u.isfinite(), 0.0, torch.inf).to(u.dtype)

    @dataclass(frozen=True)
    class Logarithmic(Geodesics):
        def exp(self, x, u):
            return x * (u / x).exp()

        def exp_transport(self, x, u, v):
            y = self.exp(x, u)
            return y, self.transport(x, y, v)

        def log(self, x, y):
            return x * (y / x).log()

        def component_dist(self, x, y):
            return (y / x).log().abs()

        def transport(self, x, y, v):
            return v * (y / x)

    @dataclass(frozen=True, init=False)
    class Positive(Manifold):
        retraction: Retraction

        def __init__(self, retraction="geodesic"):
            retraction = resolve_retraction(retraction, refused=Additive, owner="Positive")
            super().__init__(
                slices=Slices("elements"),
                metric=Relative(),
                projection=HalfLines(),
                retraction=retraction,
                geodesics=Logarithmic(),
            )

    mn.declare(layer, "weight", Positive())
    return mn.RiemannianSGD(mn.param_groups(layer), lr=0.5)


def geoopt(layer):
    """works"""

    class Positive(go.Manifold):
        name, ndim, reversible = "Positive", 0, False

        def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
            return bool((x > 0).all()), "not positive"

        def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
            return True, None

        def projx(self, x):
            return x.abs()

        def proju(self, x, u):
            return u

        def egrad2rgrad(self, x, u):
            return x * x * u

        def inner(self, x, u, v=None, *, keepdim=False):
            return (u / x) * ((u if v is None else v) / x)

        def expmap(self, x, u):
            return x * (u / x).exp()

        retr = expmap

        def logmap(self, x, y):
            return x * (y / x).log()

        def transp(self, x, y, v):
            return v * (y / x)

    layer.weight = go.ManifoldParameter(layer.weight.detach(), manifold=Positive())
    return go.optim.RiemannianSGD(layer.parameters(), lr=0.5)


def torch_parametrizations(layer):
    """works (a map onto the set; its coordinates are the metric)"""

    class Positive(nn.Module):
        def forward(self, v):
            return v.exp()

        def right_inverse(self, x):
            return x.log()

    parametrize.register_parametrization(layer, "weight", Positive())
    return torch.optim.SGD(layer.parameters(), lr=0.5)


geotorch = torch_parametrizations


def pymanopt(layer):
    """works (has this set: Positive)"""
    manifold = pm.manifolds.Positive(4, 3)

    @pm.function.pytorch(manifold)
    def cost(x):
        return mismatch(x)

    start = layer.weight.detach().numpy()
    solver = pm.optimizers.ConjugateGradient(verbosity=0, max_iterations=50)
    point = solver.run(pm.Problem(manifold, cost), initial_point=start).point
    layer.weight.data = torch.from_numpy(point)


ABSENT = {"adamp": "no constraints"}
