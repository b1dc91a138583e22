# %% [markdown]
# # Why SGD depends on the parameterization
#
# Two sets of weights can compute the same function, and plain gradient descent still trains them
# differently. This notebook shows this with two weights, then with a network. Under the scaled
# metric both are trained in the same way.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments import load

# %% [markdown]
# ## Two weights
#
# The model x ↦ a·b·x knows only the product ab. Scaling a up and b down moves along a hyperbola on
# which the function is the same; the loss (ab − 1)² is constant there. Three starts on *one*
# hyperbola are one and the same function.


# %%
class Product(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[a]]))
        self.b = nn.Parameter(torch.tensor([[b]]))

    def forward(self):
        return (self.a * self.b).squeeze()


def descend(scale, declared, steps=16, lr=0.15):
    """The path of (a, b) from one start, (0.5, 0.5) scaled up and down by `scale`."""
    model = Product(0.5 * scale, 0.5 / scale).double()
    if declared:
        mn.declare(model, "a", mn.ScaledEuclidean())
        mn.declare(model, "b", mn.ScaledEuclidean())
    optimizer = mn.RiemannianSGD(model.named_parameters(), lr=lr)
    path = []
    for _ in range(steps):
        path.append((model.a.item(), model.b.item()))
        optimizer.zero_grad()
        ((model() - 1) ** 2).backward()
        optimizer.step()
    return np.array(path)


scales = [0.5, 1, 2]
euclidean = {s: descend(s, declared=False) for s in scales}
scaled = {s: descend(s, declared=True) for s in scales}

# %% alt="Paths to the minima from three starts: Euclidean, and under the scaled metric"
figure, panels = plt.subplots(1, 2, figsize=(8, 4.3), sharex=True, sharey=True)
a, b = np.meshgrid(np.linspace(0.1, 2.6, 200), np.linspace(0.1, 2.6, 200))
for axes, paths, title in zip(
    panels, (euclidean, scaled), ("Euclidean", "scaled metric"), strict=True
):
    axes.contour(a, b, a * b, levels=np.arange(0.25, 1.8, 0.25), colors="#BBBBBB", linewidths=0.8)
    axes.contour(a, b, a * b, levels=[1], colors="#222222", linewidths=1.6)
    for s, path in paths.items():
        axes.plot(*path.T, marker="o", markersize=3, linewidth=1, label=f"a × {s:g}, b ÷ {s:g}")
        axes.plot(*path[5], marker="o", markersize=9, fillstyle="none", color="#222222")
    axes.set(title=title, xlabel="a", ylabel="b")
    axes.grid(False)
panels[0].legend()
plt.show()

# %% [markdown]
# Grey: where the function is constant; black: the minima. Dots are steps, and circles mark the
# fifth of each path. On the left the three paths are then at different functions. On the right they
# are at the same one, as at every step: the paths differ by the factors they began with.

# %%
spread = {
    name: np.ptp([path.prod(1) for path in paths.values()], axis=0).max()
    for name, paths in {"Euclidean": euclidean, "scaled metric": scaled}.items()
}
for name, value in spread.items():
    print(f"{name:15s} the functions differ by up to {value:.1e}")
assert spread["Euclidean"] > 0.1
assert spread["scaled metric"] < 1e-12
for s in scales:
    assert np.allclose(scaled[s], scaled[1] * [s, 1 / s], rtol=1e-12)

# %% [markdown]
# The reason: with a → sa, b → b/s the gradient by a shrinks by s while a grows by s. A Euclidean
# step is then off by s². The scaled metric measures a step relative to its weight, so its gradient
# is a²·∂L/∂a, which scales as a does.
#
# ## A network
#
# Behind a ReLU the same holds filter by filter. A network on the digits, from filters of norm 1 and
# from weights with hidden filters scaled by 4 and 1/4 (and the classifier back): three equal
# functions, one batch, one rate for each update, 150 steps.

# %%
data = load("digits")
images = data.train_images.flatten(1).double() / data.white
labels = data.train_labels


def network(scale, update):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False))
    model.double()
    with torch.no_grad():
        model[0].weight *= scale / model[0].weight.norm(dim=1, keepdim=True)
        model[2].weight /= scale * model[2].weight.norm(dim=0)
    if update == "scaled metric":
        mn.declare_all(model, mn.rules.scaled_metric(classifier="2"))
    return model


def losses(scale, update, steps=150):
    model = network(scale, update)
    if update == "AdamW":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    else:
        lr = 0.1 if update == "scaled metric" else 0.2  # relative to the weight, and not
        optimizer = mn.RiemannianSGD(model.named_parameters(), lr=lr)
    result = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return np.array(result)


starts = [0.25, 1, 4]
runs = {
    update: {s: losses(s, update) for s in starts}
    for update in ("Euclidean SGD", "AdamW", "scaled metric")
}
first = [curves[s][0] for curves in runs.values() for s in starts]
assert np.ptp(first) < 1e-12  # all of them begin as the same function

# %% alt="Training losses from three starts: three curves, three curves, and one (scaled metric)"
figure, panels = plt.subplots(1, 3, sharey=True)
for axes, (update, curves) in zip(panels, runs.items(), strict=True):
    for (s, curve), width in zip(curves.items(), (6, 3, 1.2), strict=True):
        axes.plot(curve, linewidth=width, label=f"filters × {s:g}")
    axes.set(title=update, xlabel="step")
panels[0].set_ylabel("training loss")
panels[0].legend()
plt.show()

# %%
apart = {update: np.ptp(list(curves.values()), axis=0).max() for update, curves in runs.items()}
for update, value in apart.items():
    print(f"{update:15s} largest difference of losses {value:.1e}")
assert apart["Euclidean SGD"] > 0.1
assert apart["AdamW"] > 0.1
assert apart["scaled metric"] < 1e-10

# %% [markdown]
# Scaling by powers of two is exact in floating point. Under the scaled metric the whole run is then
# exact as well.
#
# AdamW divides by the size of gradients, entry by entry: its steps have a length of their own,
# about the rate, whatever the length of the weight. So it depends on the scale as well.
#
# Unit-norm filters (`mn.rules.unit_norm`) are the other way out: of all these parameterizations the
# manifold admits one.
#
# The measure for a model and an optimizer of your own is one number, relative: 0 is invariant.

# %%
model = network(1, "scaled metric")
group = mn.symmetry.discover(model, cross_entropy, [(images, labels)])
element = group.nontrivial.sample(generator=torch.Generator().manual_seed(1), spread=2.0)


def sgd(model):
    return mn.RiemannianSGD(model.named_parameters(), lr=0.2)


errors = {
    update: mn.symmetry.invariance_error.trajectory(
        network(1, update), element, cross_entropy, [(images, labels)], sgd, steps=20
    )
    for update in ("Euclidean SGD", "scaled metric")
}
for update, error in errors.items():
    print(f"{update:15s} {float(error):.1e}")
assert errors["scaled metric"] < 1e-9 < 1e-2 < errors["Euclidean SGD"]

# %% [markdown]
# API: [scaled metric](../docs/api/geometry.md), [invariance in numbers](../docs/api/symmetry.md),
# [rules](../docs/api/parameters.md). Next: [the same as tests](3-invariance-tests.ipynb).
