# %% [markdown]
# # Batch solvers: all weights at once
#
# pymanopt's trust regions and conjugate gradients over a whole declared model, with cost, gradient
# and Hessian by autograd. The first problem has a known answer; the second is a network, from
# weights scaled by large factors.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments import load
from manifoldnet.interop.pymanopt import minimize

data = load("digits")
images = data.train_images.flatten(1).double() / data.white
labels = data.train_labels

# %% [markdown]
# ## Where the answer is known
#
# The direction of largest variance is the minimum of −‖Xw‖² on the unit sphere. A module with one
# parameter, declared there, and a loss without arguments:


# %%
class Direction(nn.Module):
    def __init__(self, size):
        super().__init__()
        sphere = mn.Sphere()
        self.w = mn.ManifoldParameter(sphere.random(size, dtype=torch.float64), sphere)


torch.manual_seed(0)
centred = images - images.mean(0)
model = Direction(64)
result = minimize(model, lambda: -(centred @ model.w).square().sum(), verbosity=0)
print(f"{result.iterations} iterations, gradient {result.gradient_norm:.1e}")
print(result.stopping_criterion)

_, vectors = torch.linalg.eigh(centred.mT @ centred)
off = abs(1 - abs(float(model.w.detach() @ vectors[:, -1])))
print(f"|cosine| with the first principal component: 1 up to {off:.1e}")
assert off < 1e-12

# %% [markdown]
# ## A network
#
# Linear, batch normalization of the whole batch, tanh, linear: the network is smooth, so its loss
# has a Hessian everywhere. The loss does not see the length of a filter. The solvers begin at one
# start as it is, and with each filter multiplied by a power of two between 1/1024 and 1024.

# %%
batch, targets = images[:300], labels[:300]


def network(update, scaled=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 16, bias=False),
        nn.BatchNorm1d(16, eps=1e-38),  # 0 but for torch, which refuses 0
        nn.Tanh(),
        nn.Linear(16, 10),
    ).double()
    if scaled:  # each filter by a power of two between 1/1024 and 1024
        powers = torch.randint(-10, 11, (16, 1), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            model[0].weight *= 2.0**powers
    if update == "scaled metric":
        mn.declare(model, "0.weight", mn.ScaledEuclidean())
    elif update == "unit norm":
        mn.declare(model, "0.weight", mn.Oblique(), project=True)
    return model


def solve(update, solver, scaled=False, iterations=25):
    model = network(update, scaled)
    result = minimize(
        model,
        lambda: cross_entropy(model(batch), targets),
        solver,
        max_iterations=iterations,
        verbosity=0,
    )
    return result.log["iterations"]


runs = {
    (update, solver, scaled): solve(update, solver, scaled)
    for update, solver in (
        ("Euclidean", "trust-regions"),
        ("scaled metric", "trust-regions"),
        ("scaled metric", "conjugate-gradient"),
        ("unit norm", "trust-regions"),
    )
    for scaled in (False, True)
}
for (update, solver, scaled), log in runs.items():
    start = "scaled  " if scaled else "original"
    print(f"{update:13s} {solver:18s} {start}  cost {log['cost'][-1]:.1e} after ", end="")
    print(f"{log['gradients'][-1]} gradients, {log['hessians'][-1]} Hessian products")

# %% alt="Cost by gradient, from original and scaled weights: apart for Euclidean weights only"
figure, panels = plt.subplots(1, 4, figsize=(10, 3), sharey=True)
names = dict.fromkeys((update, solver) for update, solver, _ in runs)
for axes, name in zip(panels, names, strict=True):
    for scaled, width, label in ((False, 5, "original weights"), (True, 1.5, "scaled weights")):
        axes.semilogy(runs[*name, scaled]["cost"], linewidth=width, label=label)
    axes.set_title("\n".join(name), fontsize="small")
    axes.set_xlabel("gradient")
panels[0].set_ylabel("cost")
panels[-1].legend(fontsize="small")
plt.show()

# %%
for name in names:
    one, other = (torch.tensor(runs[*name, scaled]["cost"]) for scaled in (False, True))
    steps = min(len(one), len(other))
    apart = ((one[:steps] - other[:steps]) / one[:steps]).abs().max().item()
    print(f"{' · '.join(name):34s} costs apart, relative: {apart:.1e}")
    assert (apart < 1e-9) == (name[0] != "Euclidean")
assert runs["Euclidean", "trust-regions", True]["cost"][-1] > 1

# %% [markdown]
# The scaled start is the same function. Under the scaled metric the solvers take the same course
# from it; on unit norms the two starts are one point; with Euclidean weights trust regions have
# hardly moved when the others are done.
#
# The classes can be separated, so the cost has no minimum, only an infimum of 0, and the curves
# show who gets near it first. How solvers compare in time and passes, with L-BFGS and SGD among
# them, is [measured](../docs/batch_solvers.md); there second order does not pay.
#
# API: [minimize](../docs/api/interop.md). Next: [a cell of Table 2](7-table-2.ipynb).
