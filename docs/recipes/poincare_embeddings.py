"""Embed a tree into the Poincaré ball: hyperbolic embeddings by a manifold of geoopt."""

import geoopt
import torch
from torch import nn

import manifoldnet as mn

torch.manual_seed(0)
nodes = 15  # a binary tree: the parent of node i is (i − 1) // 2
child = torch.arange(1, nodes)
parent = (child - 1) // 2
ball = geoopt.PoincareBall()
embedding = nn.Embedding(nodes, 2, dtype=torch.float64)
nn.init.uniform_(embedding.weight, -1e-3, 1e-3)  # inside the ball; the default start is outside
mn.declare(embedding, "weight", ball)
optimizer = mn.RiemannianAdam(mn.param_groups(embedding), lr=1e-1)
earlier = torch.arange(nodes) < child[:, None]  # the candidates for the parent of each node
for _ in range(100):
    optimizer.zero_grad()
    points = embedding.weight
    distances = ball.dist(points[child][:, None], points[None])
    scores = torch.where(earlier, -distances, -torch.inf)
    loss = nn.functional.cross_entropy(scores, parent)
    loss.backward()
    optimizer.step()

mn.verify(embedding)
right = (scores.argmax(1) == parent).double().mean()
print(f"loss {loss:.2f}; the parent is the nearest candidate of {right:.0%} of the nodes")
assert right > 0.9
