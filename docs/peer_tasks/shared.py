"""Networks, data and the training loop that all libraries share."""

import torch
from torch import nn

torch.manual_seed(0)
IMAGES, LABELS = torch.rand(64, 3, 8, 8), torch.arange(64) % 4
VECTORS = torch.rand(64, 20)


def cnn():
    """Two convolutions with batch normalization, and a classifier named "6"."""
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4)),
    )


def mlp(hidden=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, hidden), nn.Tanh(), nn.Linear(hidden, 4))


def fit(model, optimizer, inputs=VECTORS, steps=20):
    """The losses of full-batch training."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def off_unit(*weights):
    """The largest distance of the norm of a row or filter from 1."""
    return max(float((w.detach().flatten(1).norm(dim=1) - 1).abs().max()) for w in weights)


def off_orthogonal(weight):
    """The largest distance of a singular value from 1, of the weight as out × (everything else)."""
    return float((torch.linalg.svdvals(weight.detach().flatten(1)) - 1).abs().max())
