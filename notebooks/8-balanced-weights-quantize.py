# %% [markdown]
# # Balanced weights quantize
#
# Many sets of weights give the same network with ReLU: a filter may grow if the weights that read
# it shrink. In float32 all of them compute the same function; in eight bits some compute nothing.
# `balance_` turns each of them into the same set, whose weights use the eight bits well. Here it
# is done to a network with depthwise-separable convolutions, from its gradients alone: no layer
# is known by name.

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments import load

# %% [markdown]
# ## A network
#
# Scikit-learn's digits, 900 images to train with and 897 to test.

# %%
data = load("digits")
images = torch.cat([data.train_images, data.test_images]) / data.white
labels = torch.cat([data.train_labels, data.test_labels])
images, test_images = images[:900], images[900:]
labels, test_labels = labels[:900], labels[900:]


def separable(inputs, outputs, stride=1):
    """A filter for each channel, then a mixture of channels."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs)
    return depthwise, nn.ReLU(), nn.Conv2d(inputs, outputs, 1), nn.ReLU()


@torch.no_grad()
def accuracy(model):
    return 100 * (model(test_images).argmax(1) == test_labels).double().mean().item()


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    *separable(16, 32, stride=2),
    *separable(32, 32),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 2 * 2, 10),
)
optimizer = torch.optim.AdamW(model.parameters())
epochs, batches = 25, torch.arange(len(images)).split(64)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs * len(batches))
for _ in range(epochs):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
float32 = accuracy(model)
print(f"float32: {float32:.1f} % of the test images")
assert float32 > 95

# %% [markdown]
# ## Its symmetries
#
# Each channel of each hidden layer: its filter and bias, against all that reads it. That is one
# filter of a depthwise layer, a column of a pointwise one, and four columns of the classifier,
# one for each place in the image. (For a network too large to be searched, search a narrow copy,
# and `widen` the group.)

# %%
group = mn.symmetry.discover(model, cross_entropy, [(images[:128], labels[:128])]).nontrivial
print(group)
assert group.dimension == 16 + 16 + 32 + 32 + 32

# %% [markdown]
# ## The same network, rescaled
#
# Every generator by a factor e³ or e⁻³, at random. In float32 nothing has changed but roundings.

# %%
signs = 2 * torch.randint(2, (group.dimension,), generator=torch.Generator().manual_seed(1)) - 1
rescaled = mn.symmetry.reparameterize(model, group.element(3.0 * signs))
with torch.no_grad():
    logits, same = model(test_images), rescaled(test_images)
apart = float((logits - same).abs().max() / logits.abs().max())
print(f"float32: {accuracy(rescaled):.1f} %, logits apart by {apart:.0e} of the largest")
assert accuracy(rescaled) == float32
assert apart < 1e-5

# %% [markdown]
# ## Eight bits
#
# Symmetric quantization with one scale for each tensor: the largest magnitude becomes 127, and the
# others are rounded. Weights are quantized, biases and activations are not.


# %%
@torch.no_grad()
def quantized(model, bits=8):
    model = copy.deepcopy(model)
    for w in model.parameters():
        if w.ndim > 1:
            scale = w.abs().max() / (2 ** (bits - 1) - 1)
            w.copy_((w / scale).round() * scale)
    return model


print(f"as trained: {accuracy(quantized(model)):.1f} %")
print(f"rescaled:   {accuracy(quantized(rescaled)):.1f} %")
assert accuracy(quantized(rescaled)) < 20

# %% [markdown]
# Rescaled, it guesses: the largest filter sets the scale, and the small ones are rounded to zero.
#
# ## Balance
#
# `balanced` returns the representative of the orbit: with p = 2 the norms of what a channel is
# made from and of what reads it are equal, up to a constant; with p = ∞ their largest magnitudes.
# From both ends it is the same set of weights.


# %%
def difference(one, other):
    """The largest difference of weights, relative to the largest weight of the tensor."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float(((x - y).abs().max() / x.abs().max()).detach()) for x, y in pairs)


print("from             as trained  rescaled  weights apart")
found = {}
for p in (2.0, math.inf):
    one, _ = mn.symmetry.balanced(model, group, p=p)
    other, _ = mn.symmetry.balanced(rescaled, group, p=p)
    ends = [accuracy(quantized(each)) for each in (one, other)]
    apart = difference(one, other)
    print(f"balanced, p={p:<3g}  {ends[0]:.1f} %      {ends[1]:.1f} %    {apart:.0e}")
    assert apart < 1e-6
    assert all(abs(each - float32) <= 0.5 for each in ends)
    found[p] = other

# %% [markdown]
# Left, the largest magnitude in each filter of the second depthwise layer; right, the accuracy with
# fewer bits. `balance_` does the same in place, and returns the element that leads back.

# %% alt="Ranges of filters, level when balanced; rescaled, no bits are enough"
figure, (left, right) = plt.subplots(1, 2)
bits = range(3, 9)
shown = {"as trained": model, "rescaled": rescaled, "balanced, p = ∞": found[math.inf]}
for (name, each), style in zip(shown.items(), ("o", "s", "D"), strict=True):
    left.semilogy(each[6].weight.detach().abs().flatten(1).amax(1), style, markersize=4, label=name)
    right.plot(bits, [accuracy(quantized(each, b)) for b in bits], f"{style}-", label=name)
left.set(xlabel="filter", ylabel="largest magnitude")
right.axhline(float32, color="0.6", linewidth=1, linestyle="--", zorder=0)
right.set(xlabel="bits", ylabel="test images right (%)", ylim=(0, 102))
right.legend(loc="center right")
plt.show()
assert accuracy(quantized(found[math.inf], bits=5)) > float32 - 2

# %% [markdown]
# These figures are of one small network. Its trained weights are so near to balance that eight bits
# do no harm to them. After balancing, eight bits do no harm to any parameterization. Ranges of
# activations are not treated here.
#
# API: [symmetry](../docs/api/symmetry.md), [how to use it](../docs/symmetry.md).
