"""Train a GPT whose matrices have unit-norm rows or columns, as in nGPT."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

import manifoldnet as mn


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(n), nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.norm2, self.up, self.down = nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, h):
        q, k, v = self.qkv(self.norm1(h)).chunk(3, -1)
        h = h + self.out(scaled_dot_product_attention(q, k, v, is_causal=True))
        return h + self.down(gelu(self.up(self.norm2(h))))


torch.manual_seed(0)
gpt = nn.Sequential(nn.Embedding(7, 32), Block(32), Block(32), nn.LayerNorm(32), nn.Linear(32, 7))
start, stride = torch.randint(7, (2, 64, 1))
tokens = (start + stride * torch.arange(12)) % 7  # your text goes here
example = tokens[:1, :4]  # a forward pass shows which matrix reads the residual stream
report = mn.declare_all(gpt, mn.rules.transformer(example), project=True)
print(report)  # what is declared, what is left free, and why

optimizer = mn.RiemannianAdam(mn.param_groups(gpt), lr=1e-2)
for _ in range(80):
    optimizer.zero_grad()
    loss = cross_entropy(gpt(tokens[:, :-1])[:, 1:].flatten(0, 1), tokens[:, 2:].flatten())
    loss.backward()
    optimizer.step()
mn.verify(gpt)
print(f"loss {loss:.2f}, with {len(report)} matrices of unit-norm rows or columns")
assert loss < 0.5
