# %% [markdown]
# # The symmetries of a transformer
#
# This notebook finds all changes of the weights of a small transformer that leave its loss
# unchanged: first the scalings of rows, columns and entries, then all linear maps. It uses
# gradients alone and knows no layer by name. It then shows what these symmetries mean, which
# optimizer respects them, and what gradient flow conserves because of them.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

import manifoldnet as mn

# %% [markdown]
# ## A model
#
# Seven tokens, a residual stream of width 6, two heads of size 3, a gated layer (SwiGLU), RMSNorm
# without gains in front of each. It predicts the token that follows the last one.


# %%
class Block(nn.Module):
    def __init__(self, width, heads=2, hidden=8):
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm(x)
        return x + self.down(silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    def __init__(self, tokens=7, width=6):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.block = Block(width)
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.block(self.embed(tokens))[:, -1]))


torch.manual_seed(0)
model = Transformer().double()
batch = torch.randint(7, (128, 6)), torch.randint(7, (128,))

# %% [markdown]
# ## Scalings

# %%
scalings = mn.symmetry.discover(model, cross_entropy, [batch]).nontrivial
print(scalings)
assert scalings.dimension == 6 + 6 + 8 + 1
assert scalings.report.verified < 1e-9

# %% [markdown]
# Each row of the query against the same row of the key (6); each row of the value against a column
# of the layer that reads it (6); each row of `up` against a column of `down` (8), but none of
# `gate`, behind which silu is not homogeneous. And the whole residual stream: normalization takes
# its scale out wherever it is read (1).
#
# ## Linear maps
#
# `kind="linear"` looks for matrices on the rows and on the columns of each weight, and for
# translations.

# %%
linear = mn.symmetry.discover(model, cross_entropy, [batch], kind="linear")
print(linear)
dimensions = {}
for block in linear.blocks:
    dimensions[block.kind] = dimensions.get(block.kind, 0) + block.dimension
print(dimensions)
assert dimensions == {"GL(3)": 36, "O(6)": 15, "scaling": 9, "shift": 7, "translation": 6}
assert all(generator in linear for generator in scalings.generators)

# %% [markdown]
# | | scalings | linear maps |
# |---|---|---|
# | query and key, in each of two heads | 3 | 9: any invertible 3 × 3 matrix, GL(3) |
# | value and output, in each of two heads | 3 | 9: GL(3) |
# | residual stream | 1 | 1, and 15 rotations, O(6) |
# | `up` and `down` | 8 | 8 |
# | logits | | 7 shifts and 6 translations: what all of them share |
# | in all | 21 | 67 and 6 |
#
# RMSNorm commutes with rotations, since it has no gains. With gains, the rotations are gone, and
# each gain scales against the columns that read it.
#
# ## Far from the identity
#
# To first order, invariance is a linear equation. What is found has been verified with finite
# elements, `matrix_exp` of the generators. Here once more, with singular values up to e³:

# %%
for name, group in (("scalings", scalings), ("linear maps", linear)):
    element = group.sample(generator=torch.Generator().manual_seed(1), spread=3.0)
    moved = mn.symmetry.reparameterize(model, element)
    with torch.no_grad():
        loss, same = (float(cross_entropy(each(batch[0]), batch[1])) for each in (model, moved))
        step = (moved.block.query.weight - model.block.query.weight).norm()
        size = step / model.block.query.weight.norm()
    print(f"{name:11s}  query moved by {size:.1f} of its norm, loss {loss:.6f} -> {same:.6f}")
    assert abs(loss - same) < 1e-9

# %% [markdown]
# ## How it is found
#
# If scaling slice i of the weights by e^(sᵢ t), for all i at once, never changes the loss L, then
# Σᵢ sᵢ ⟨wᵢ, ∂L/∂wᵢ⟩ = 0 for every sample and at every weight. That is one linear equation for s per
# sample. Written down for a small network with ReLU, in a cell:

# %%
relu = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
weights = [relu[0].weight, relu[2].weight]
rows = []
for _ in range(6):  # random weights
    for w in weights:
        nn.init.normal_(w)
    for x, y in zip(torch.randn(10, 6).double(), torch.randint(3, (10,)), strict=True):
        gradients = torch.autograd.grad(cross_entropy(relu(x), y), weights)
        products = [(w * g).detach() for w, g in zip(weights, gradients, strict=True)]
        rows.append(torch.cat([p.sum(dim) for p in products for dim in (1, 0)]))
sizes = torch.linalg.svdvals(torch.stack(rows))
found = mn.symmetry.discover(relu, cross_entropy, [(torch.randn(64, 6), torch.randint(3, (64,)))])
assert found.dimension == int((sizes < 1e-12 * sizes[0]).sum())

# %% alt="Singular values, falling slowly and then by more than ten orders of magnitude to rounding"
figure, axes = plt.subplots(figsize=(8, 2.8))
zero = len(sizes) - found.dimension
axes.semilogy(range(1, zero + 1), sizes[:zero], "o", label="equations")
axes.semilogy(range(zero + 1, len(sizes) + 1), sizes[zero:], "o", label="symmetries")
axes.set(xlabel="singular value", ylabel="size", xticks=range(1, len(sizes) + 1, 2))
axes.legend(loc="center left")
plt.show()
assert sizes[zero - 1] > 1e10 * sizes[zero]

# %% [markdown]
# The singular values leave no doubt about what is zero. Linear maps are found alike, from the
# products of weights and gradients as matrices.
#
# ## Which optimizer respects them
#
# `explain` takes steps with random gradients that have the symmetry, and measures whether they
# commute with it. The columns are plain SGD, SGD under the scaled metric where the group asks for
# it, SGD on unit norms, and `yours`, the optimizer that you give.


# %%
def adamw(m):
    return torch.optim.AdamW(m.parameters(), lr=0.01)


def in_the_frame(m):
    return mn.symmetry.make_invariant(adamw(m), m, scalings)


table = mn.symmetry.explain(model, scalings, adamw)
print(table)
framed = mn.symmetry.explain(model, scalings, in_the_frame)
assert {row.verdicts["yours"] for row in table.rows} == {"ignores"}
assert {row.verdicts["yours"] for row in framed.rows} == {"respects"}
assert not mn.symmetry.rule(scalings).uncovered

# %% [markdown]
# The scaled metric respects all of these. With `make_invariant` AdamW does so as well: it steps
# balanced weights, which are the same for all parameterizations.
#
# ## Runs
#
# Fifty steps from these weights, and from weights that an element of a block has moved: the largest
# relative difference of the losses. `Pair` declares the two factors of each head's products.


# %%
def muon(m):
    return mn.optim.Muon(m.parameters(), lr=0.01)


def with_pairs(m):
    mn.declare(m, mn.Pair("block.query.weight", "block.key.weight", heads=2, shared=(0, 0)))
    mn.declare(m, mn.Pair("block.out.weight", "block.value.weight", heads=2))
    return mn.constrain(torch.optim.AdamW(mn.param_groups(m), lr=0.01))


def losses(start, make):
    network, seen = copy.deepcopy(start), []
    optimizer = make(network)
    for _ in range(50):
        optimizer.zero_grad()
        loss = cross_entropy(network(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return torch.tensor(seen, dtype=torch.float64)


def part(kind):
    return linear.subgroup([block for block in linear.blocks if block.kind == kind])


groups = {
    "scalings": scalings,
    "GL(3)": part("GL(3)"),
    "O(6)": part("O(6)"),
    "shift": part("shift"),
}
optimizers = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "Muon": muon,
    "AdamW": adamw,
    "AdamW, make_invariant": in_the_frame,
    "AdamW, pairs": with_pairs,
}
moved = {
    name: mn.symmetry.reparameterize(
        model, group.sample(generator=torch.Generator().manual_seed(1), spread=2.0)
    )
    for name, group in groups.items()
}
print(" " * 22 + "".join(f"{name:>10s}" for name in groups))
apart = {}
for name, make in optimizers.items():
    plain = losses(model, make)
    row = [float((losses(each, make) / plain - 1).abs().max()) for each in moved.values()]
    print(f"{name:22s}" + "".join(f"{each:10.0e}" for each in row))
    apart |= {(name, group): each for group, each in zip(groups, row, strict=True)}
covered = {pair for pair, each in apart.items() if each < 1e-10}
assert covered == {
    ("SGD", "O(6)"),
    ("Muon", "O(6)"),
    ("AdamW, make_invariant", "scalings"),
    ("AdamW, pairs", "GL(3)"),
} | {(name, "shift") for name in optimizers}
assert all(each > 1e-3 for pair, each in apart.items() if pair not in covered)

# %% [markdown]
# The shifts change no gradient. SGD and Muon commute with rotations, AdamW does not, which divides
# each entry by its own size. The frame covers the scalings, pairs cover the heads, and no update
# here covers everything. What invariance is worth in accuracy is another question.
#
# ## What gradient flow conserves
#
# Each symmetric generator and each translation gives a quantity that gradient flow keeps: between
# query and key the entries of Q Qᵀ − K Kᵀ of a head, six of them. Rotations give none.

# %%
laws = mn.symmetry.conserved(model, linear)
print(f"{len(laws)} laws, {laws.rank(model)} of them independent")
assert len(laws) == 4 * 6 + 9 + 1 + 6  # GL(3), scalings, the symmetric shift, translations
assert laws.rank(model) == len(laws) - 1  # that shift's law is a function of the translations'

# %% [markdown]
# Steps of a finite rate drift, in proportion to the rate: half the rate, half the drift after the
# same time.

# %% alt="Drift of the laws over time, at a rate and at half of it: a factor of two apart"
figure, axes = plt.subplots(figsize=(8, 2.8))
drift = {}
for lr in (0.05, 0.025):
    network = copy.deepcopy(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    log = mn.symmetry.watch(optimizer, network, laws)
    for _ in range(round(5 / lr)):
        optimizer.zero_grad()
        cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()
    largest = log.drift.abs().amax(1)
    axes.semilogy(lr * torch.tensor(log.steps[1:]), largest[1:], label=f"rate {lr}")
    drift[lr] = float(largest[-1])
axes.set(xlabel="rate × steps", ylabel="largest drift")
axes.legend()
plt.show()
print(f"drift at the end: {drift[0.05]:.1e} and {drift[0.025]:.1e}")
assert 1.8 < drift[0.05] / drift[0.025] < 2.2

# %% [markdown]
# From a shell, for a function that returns model, loss and batches: `manifoldnet symmetries
# mymodule:factory`.
#
# API: [symmetry](../docs/api/symmetry.md), [how to use it](../docs/symmetry.md). Next: [a
# classifier that does not see scale](5-wrong-labels.ipynb).
