"""Keep a recurrent weight orthogonal and the rows of a wide weight orthonormal, by Stiefel."""

import torch
from torch import nn

import manifoldnet as mn


class Memory(nn.Module):  # recalls at the end the symbol that it read first
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(24, 16, bias=False)  # wide: 16 × 24, its rows orthonormal
        self.rnn = nn.RNN(16, 32, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        return self.head(self.rnn(self.project(x))[1][0])


torch.manual_seed(0)
labels = torch.arange(64) % 8
inputs = 0.01 * torch.randn(64, 40, 24)
inputs[torch.arange(64), 0, labels] = 1.0
model = Memory()
patterns = ["project.weight", "rnn.weight_hh_l0"]
mn.declare_all(model, dict.fromkeys(patterns, mn.Stiefel()), project=True)
optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=2e-2)
for _ in range(80):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()

values = torch.linalg.svdvals(model.rnn.weight_hh_l0.detach())
print(f"loss {loss:.2f}; singular values from {values.min():.5f} to {values.max():.5f}")
assert loss < 0.5
assert (values - 1).abs().max() < 1e-5
