"""LoRA whose run does not depend on how the update is split into factors.

Two runs of AdamW begin at (A, B) and at (S A, B S⁻¹), cond S = 100, with the same product BA.
"""

import geotorch as gt
import torch
from peer_tasks.shared import LABELS, VECTORS
from torch import nn

import manifoldnet as mn


class Adapter(nn.Module):
    def __init__(self, split):
        super().__init__()
        torch.manual_seed(0)
        self.A, self.B = nn.Parameter(split @ torch.randn(2, 20)), nn.Parameter(torch.randn(4, 2))
        self.B.data = self.B.data @ split.inverse()

    def update(self):
        return self.B @ self.A

    def forward(self, x):
        return x @ self.update().T


def measure(setup):
    torch.set_default_dtype(torch.float64)
    try:
        one, other = (run(setup, torch.tensor([[1.0, 0.0], [0.5, s]])) for s in (1.0, 0.01))
    finally:
        torch.set_default_dtype(torch.float32)
    model = Adapter(torch.eye(2))
    setup(model)
    held = sum(value.numel() for value in model.state_dict().values())
    differences = [abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)]
    return {"losses differ by": max(differences), "numbers held": held}


def run(setup, split):
    model = Adapter(split)
    optimizer, losses = setup(model), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(VECTORS.double()), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def manifoldnet(model):
    """works"""
    mn.declare(model, mn.Pair("B", "A"))
    return mn.constrain(torch.optim.AdamW(model.parameters(), lr=0.02))


def geotorch(model):
    """trap: a full matrix of rank 2 by its singular vectors, ten times the numbers"""
    product = (model.B @ model.A).detach()
    del model.A, model.B
    model.register_parameter("delta", nn.Parameter(product.clone()))
    gt.low_rank(model, "delta", rank=2)
    model.delta = product
    model.update = lambda: model.delta
    return torch.optim.AdamW(model.parameters(), lr=0.02)


ABSENT = {
    "geoopt": "no set of fixed rank, no metric of a product",
    "torch_parametrizations": "no set of fixed rank",
    "pymanopt": "no modules, no minibatches (it has sets of fixed rank)",
    "adamp": "no constraints",
}
