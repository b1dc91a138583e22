"""A Poincaré embedding of a binary tree: distances in the ball fit those of the tree."""

import geoopt as go
import pymanopt as pm
import torch
from torch import nn
from torch.nn.utils import parametrize

import manifoldnet as mn

NODES = 15
BALL = go.PoincareBall()
ROWS, COLUMNS = torch.triu_indices(NODES, NODES, 1)


def tree(i, j):
    """The number of edges between two nodes, the children of k being 2k + 1 and 2k + 2."""
    steps = 0
    while i != j:
        i, j, steps = *((i, (j - 1) // 2) if j > i else ((i - 1) // 2, j)), steps + 1
    return steps


EDGES = torch.tensor([tree(int(i), int(j)) for i, j in zip(ROWS, COLUMNS, strict=True)])


def stress(points):
    return (BALL.dist(points[ROWS], points[COLUMNS]) - EDGES).square().mean()


def measure(setup):
    """The least stress of three rates (a solver of pymanopt has none)."""
    return {"stress": min(train(setup, lr) for lr in (0.03, 0.1, 0.3))}


def train(setup, lr):
    torch.manual_seed(0)
    layer = nn.Embedding(NODES, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight *= 0.05
    optimizer = setup(layer, lr)
    for _ in range(150 if optimizer else 0):
        optimizer.zero_grad()
        stress(layer.weight).backward()
        optimizer.step()
    assert float(layer.weight.detach().norm(dim=1).max()) < 1
    return stress(layer.weight).item()


def manifoldnet(layer, lr):
    """works"""
    mn.declare(layer, "weight", go.PoincareBall())
    return mn.RiemannianAdam(mn.param_groups(layer), lr=lr)


def geoopt(layer, lr):
    """works"""
    points = layer.weight.detach()
    layer.weight = go.ManifoldParameter(points, manifold=go.PoincareBall())
    return go.optim.RiemannianAdam(layer.parameters(), lr=lr)


def torch_parametrizations(layer, lr):
    """trap: no such set; a map onto the ball by hand, plain gradients in its coordinates"""

    class Ball(nn.Module):
        def forward(self, v):
            return v.norm(dim=-1, keepdim=True).tanh() * nn.functional.normalize(v, dim=-1)

        def right_inverse(self, x):
            return x.norm(dim=-1, keepdim=True).atanh() * nn.functional.normalize(x, dim=-1)

    parametrize.register_parametrization(layer, "weight", Ball())
    return torch.optim.Adam(layer.parameters(), lr=lr)


def pymanopt(layer, lr):
    """works (all data at once)"""
    manifold = pm.manifolds.PoincareBall(2, k=NODES)

    @pm.function.pytorch(manifold)
    def cost(points):
        return stress(points)

    problem = pm.Problem(manifold, cost)
    solver = pm.optimizers.SteepestDescent(verbosity=0, max_iterations=150)
    result = solver.run(problem, initial_point=layer.weight.detach().numpy())
    layer.weight.data = torch.from_numpy(result.point)


ABSENT = {"geotorch": "no hyperbolic set", "adamp": "no constraints"}
