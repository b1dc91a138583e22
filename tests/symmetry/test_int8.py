"""Per-tensor INT8 of a network with depthwise layers: rescaled it guesses, balanced it does not."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from manifoldnet.experiments import load
from manifoldnet.symmetry import balanced, discover, reparameterize

# Percentage points of accuracy, of 897 images.
CLOSE, CHANCE = 0.5, 20.0


def separable_net():
    """A convolution, a depthwise and a pointwise one, a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@torch.no_grad()
def quantized(model):
    """Weights rounded to multiples of their largest magnitude over 127."""
    model = copy.deepcopy(model)
    for w in model.parameters():
        if w.ndim > 1:
            scale = w.abs().max() / 127
            w.copy_((w / scale).round() * scale)
    return model


@pytest.mark.thorough
def test_balanced_weights_keep_their_accuracy_in_int8():
    data = load("digits")
    images = torch.cat([data.train_images, data.test_images]) / data.white
    labels = torch.cat([data.train_labels, data.test_labels])
    torch.manual_seed(0)
    model = separable_net()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 25 * 15)
    for _ in range(25):
        for batch in torch.randperm(900).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def accuracy(network):
        return 100 * (network(images[900:]).argmax(1) == labels[900:]).double().mean().item()

    float32 = accuracy(model)
    assert float32 >= 95
    group = discover(model, cross_entropy, [(images[:128], labels[:128])]).nontrivial
    assert group.dimension == 16 + 16 + 32
    for seed in range(3):
        source = torch.Generator().manual_seed(seed)
        signs = 2 * torch.randint(2, (group.dimension,), generator=source) - 1
        rescaled = reparameterize(model, group.element(3.0 * signs))
        assert accuracy(rescaled) == pytest.approx(float32, abs=0.2)
        assert accuracy(quantized(rescaled)) < CHANCE
        for p in (2.0, math.inf):
            one, other = (balanced(each, group, p=p)[0] for each in (model, rescaled))
            for x, y in zip(one.parameters(), other.parameters(), strict=True):
                x, y = x.detach(), y.detach()
                assert float((x - y).abs().max()) <= 1e-6 * float(x.abs().max())
            for end in (one, other):
                assert accuracy(end) == pytest.approx(float32, abs=0.2)
                assert accuracy(quantized(end)) == pytest.approx(float32, abs=CLOSE)
