# %% [markdown]
# # Declare a manifold parameter
#
# Declare a weight of an ordinary PyTorch model on a manifold, train the model, and copy, save and
# load it.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments import load

data = load("digits")  # scikit-learn's, 8x8 pixels
images = data.train_images.flatten(1) / data.white
labels = data.train_labels
test_images, test_labels = data.test_images.flatten(1) / data.white, data.test_labels


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


# %% [markdown]
# ## Off the manifold is an error
#
# `mn.Oblique()` is the set of matrices whose rows have norm 1. Rows of a fresh `nn.Linear` do not,
# and nothing is moved silently:

# %%
model = network()
try:
    mn.declare(model, "0.weight", mn.Oblique())
except ValueError as error:
    print(error)
else:
    raise AssertionError("rows of a fresh layer were taken for unit vectors")

# %% [markdown]
# `project=True` moves them. The classifier gets a metric instead of a constraint: under
# `ScaledEuclidean(dim=1)` the values stay as they are, and a step is measured relative to the
# column it moves. `dim` is the dimension that *indexes* the vectors: 0 for rows and filters, 1 for
# columns.

# %%
mn.declare(model, "0.weight", mn.Oblique(), project=True)
mn.declare(model, "2.weight", mn.ScaledEuclidean(dim=1))
print(mn.manifolds(model))
assert torch.allclose(model[0].weight.norm(dim=1), torch.ones(32))

# %% [markdown]
# ## Train as before
#
# `RiemannianSGD` takes the arguments of `torch.optim.SGD`. The second network is the same one
# without declarations, trained by torch's optimizer at the same rate. Do not
# compare their errors: one rate gives them steps of different sizes.
# [Table 2](../docs/results/table2.md) compares updates, each at its own best rate.


# %%
def train(model, optimizer, steps=600):
    order = torch.Generator().manual_seed(1)
    norms = []
    for _ in range(steps):
        batch = torch.randint(len(labels), (100,), generator=order)
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        norms.append(model[0].weight.detach().norm(dim=1))
    return torch.stack(norms)


def test_error(model):
    return float((model(test_images).argmax(1) != test_labels).float().mean())


plain = copy.deepcopy(model)
mn.undeclare(plain, "0.weight")
mn.undeclare(plain, "2.weight")

norms = train(model, mn.RiemannianSGD(mn.param_groups(model), lr=0.03, momentum=0.9))
plain_norms = train(plain, torch.optim.SGD(plain.parameters(), lr=0.03, momentum=0.9))
print(f"test error: declared {test_error(model):.1%}, plain {test_error(plain):.1%}")
print("off their manifolds by", mn.violations(model))
assert max(mn.violations(model).values()) < 1e-6
assert test_error(model) < 0.1

# %% [markdown]
# The norms of the 32 filters, step by step. Declared ones cannot leave the sphere: what the loss
# says about a filter goes into its direction.

# %% alt="Norms of 32 filters over 600 steps: all equal to 1 when declared, spreading when plain"
figure, (left, right) = plt.subplots(1, 2, sharey=True)
left.plot(norms, color="C0", linewidth=0.8)
left.set(title="declared on Oblique()", xlabel="step", ylabel="norm of a filter")
right.plot(plain_norms, color="C1", linewidth=0.8)
right.set(title="not declared", xlabel="step")
plt.show()
assert float(norms.std(dim=1).max()) < 1e-6 < float(plain_norms[-1].std())

# %% [markdown]
# ## Copies and checkpoints
#
# Declarations belong to the module, not to the tensor: a deep copy keeps them. A state dict holds
# nothing but tensors, and goes into any model; what it brings is checked before it is loaded.

# %%
twin = copy.deepcopy(model)
assert mn.manifolds(twin) == mn.manifolds(model)

mn.load_state_dict(twin, model.state_dict())
try:
    mn.load_state_dict(twin, plain.state_dict())  # its filters have other norms
except ValueError as error:
    print(error)
else:
    raise AssertionError("weights off the manifold were loaded")
mn.load_state_dict(twin, plain.state_dict(), project=True)
mn.verify(twin)  # raises for what is off its manifold

# %% [markdown]
# ## A new weight, and a whole network
#
# `ManifoldParameter` declares a weight where it is made. `declare_all` declares a network by a
# rule, here the scaled metric as in the symmetry paper's Table 1. The rule takes the name of the
# classifier, because the library cannot guess it.

# %%
layer = nn.Linear(64, 32)
layer.weight = mn.ManifoldParameter(mn.Oblique().random(32, 64), mn.Oblique())

whole = network()
mn.declare_all(whole, mn.rules.scaled_metric(classifier="2"))
for owner in (layer, whole):
    print(mn.manifolds(owner))
assert mn.manifolds(layer) == {"weight": mn.Oblique()}

# %% [markdown]
# API: [declarations and rules](../docs/api/parameters.md), [manifolds](../docs/api/geometry.md),
# [optimizers](../docs/api/optim.md). Next: [why it
# matters](2-sgd-feels-the-parameterization.ipynb).
