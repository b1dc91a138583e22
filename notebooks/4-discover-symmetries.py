# %% [markdown]
# # Discover your network's symmetries
#
# All scalings of rows, columns and entries of the weights that leave the loss of a model as it is,
# found from gradients alone; and which optimizer respects which of them. No layer is known by name.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

import manifoldnet as mn

# %% [markdown]
# ## A model that nobody has tabulated
#
# One head of attention, then a gated layer, then a classifier:


# %%
class Block(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = x + scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        x = x + self.down(silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(1))


torch.manual_seed(0)
model = Block()
batches = [(torch.randn(64, 5, 6), torch.randint(3, (64,)))]
group = mn.symmetry.discover(model, cross_entropy, batches)
print(group)
assert group.report.verified < 1e-9

# %% [markdown]
# Each row of the query against the same row of the key; each row of `up` against a column of
# `down`, but none of `gate`, behind which silu is not homogeneous; none of `value`, whose output
# goes into the residual stream. The trivial ones (all rows of a matrix up, all its columns down)
# change no weight. What is found has been verified on the model, with factors far from 1.

# %%
names = group.parameters
print(names)
assert set(names) == {"query.weight", "key.weight", "up.weight", "down.weight"}
assert group.dimension - group.trivial_dimension == 12

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
print(found)
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
# The singular values leave no doubt about what is zero. `discover` does the same with batches for
# models that couple samples, takes out the ε of normalization layers, and makes the basis sparse.
#
# ## Which optimizer respects them
#
# `explain` takes steps with random gradients that have the symmetry, and measures whether they
# commute with the scaling. B-SGD is plain SGD, SM the scaled metric where the group asks for it, UN
# unit norms, and `yours` the optimizer that you give.

# %%
table = mn.symmetry.explain(model, group.nontrivial, lambda m: torch.optim.AdamW(m.parameters()))
print(table)
first = table.rows[0].verdicts
assert (first["B-SGD"], first["yours"], first["SM"]) == ("ignores", "ignores", "respects")

# %% [markdown]
# ## Declare accordingly
#
# `rule` gives each weight the metric that its symmetries ask for. A weight that is scaled by rows
# in one symmetry and by columns in another can follow one of them only; what that leaves out is
# listed, here nothing.

# %%
rule = mn.symmetry.rule(group)
assert not rule.uncovered
declared = Block()
declared.load_state_dict(model.state_dict())
mn.declare_all(declared, rule)
for name, manifold in mn.manifolds(declared).items():
    print(name, manifold)

# %% [markdown]
# Fifty steps from these weights, and from weights scaled by an element of the group: the largest
# relative difference between the two runs, of losses and (once the scaling is undone) weights.

# %%
element = group.nontrivial.sample(generator=torch.Generator().manual_seed(1), spread=2.0)
batch = [(batches[0][0].double(), batches[0][1])]
differences = {}
for name, network, optimizer in (
    ("AdamW", model, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)),
    ("declared", declared, lambda m: mn.RiemannianSGD(mn.param_groups(m), lr=0.1, momentum=0.9)),
):
    differences[name] = mn.symmetry.invariance_error.trajectory(
        network.double(), element, cross_entropy, batch, optimizer, steps=50
    )
    print(f"{name:9s} {float(differences[name]):.1e}")
assert differences["declared"] < 1e-9 < 1e-2 < differences["AdamW"]

# %% [markdown]
# From a shell, for a function that returns model, loss and batches: `manifoldnet symmetries
# mymodule:factory`.
#
# API: [symmetry](../docs/api/symmetry.md), [how to use it](../docs/symmetry.md). Next: [a
# classifier that does not see scale](5-wrong-labels.ipynb).
