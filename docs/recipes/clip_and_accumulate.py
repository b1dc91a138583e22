"""Accumulate gradients over small batches, and clip them in the metric of the weights."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn

torch.manual_seed(0)
inputs = torch.randn(64, 16, dtype=torch.float64)
labels = inputs[:, :4].argmax(1)


def train(scale=1.0, parts=1, in_the_frame=True):
    def clip(*_):  # a hook returns nothing
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    torch.manual_seed(1)
    norm = nn.LayerNorm(32, eps=1e-30)  # the loss ignores the scale of the weight in front of it
    model = nn.Sequential(nn.Linear(16, 32, bias=False), norm, nn.ReLU(), nn.Linear(32, 4)).double()
    model[0].weight.data *= scale
    mn.declare(model, "0.weight", mn.ScaledEuclidean(dim=None))
    optimizer = mn.constrain(torch.optim.SGD(mn.param_groups(model), lr=0.1, momentum=0.9))
    if in_the_frame:  # a hook registered after `constrain` sees Riemannian gradients
        optimizer.register_step_pre_hook(clip)
    for _ in range(20):
        for x, y in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            (cross_entropy(model(x), y) / parts).backward()  # gradients add up to their mean
        if not in_the_frame:
            clip()
        optimizer.step()
        optimizer.zero_grad()
    return cross_entropy(model(inputs), labels).item()


base, clipped_before = train(), train(in_the_frame=False)
print(f"loss {base:.4f}, in four parts {train(parts=4):.4f}, from a scaled weight {train(10):.4f}")
assert max(abs(train(parts=4) - base), abs(train(10) - base)) < 1e-9
assert abs(train(10, in_the_frame=False) - clipped_before) > 1e-3  # this depends on the scale
