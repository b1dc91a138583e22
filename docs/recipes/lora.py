"""Fine-tune by LoRA: directions and gains, one for each rank, from a zero start; then merge."""

import torch
from torch import nn

import manifoldnet as mn


class LoRA(nn.Module):
    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, layer.in_features))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.A.T @ self.B.T


torch.manual_seed(0)
layers = nn.Linear(16, 32), nn.Linear(32, 4)  # your pretrained layers go here
model = nn.Sequential(LoRA(layers[0], rank=2), nn.Tanh(), LoRA(layers[1], rank=2))
inputs = torch.randn(128, 16)
targets = model(inputs).detach() + torch.sin(inputs @ torch.randn(16, 4) / 4)
mn.declare_all(model, {"*.A": mn.Oblique(), "*.B": mn.Polar(dim=1)}, project=True)
optimizer = mn.RiemannianAdam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
before = nn.functional.mse_loss(model(inputs), targets).item()
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
tuned = model(inputs)
for place, adapter in ((0, model[0]), (2, model[2])):
    adapter.layer.weight.data += adapter.B.detach() @ adapter.A.detach()
    model[place] = adapter.layer
after = nn.functional.mse_loss(model(inputs), targets).item()
print(f"loss {before:.3f} before, {after:.3f} after; merged into plain layers")
assert after < 0.5 * before
assert torch.allclose(model(inputs), tuned, atol=1e-5)
