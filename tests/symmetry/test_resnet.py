"""Discovery at size: a CIFAR ResNet-18 of a quarter of its width. Minutes, so by hand only:

pytest --slow tests/symmetry/test_resnet.py -s
"""

import resource
import time

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

from manifoldnet.symmetry import discover


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = nn.Identity()
        if stride != 1 or channels != width:
            self.skip = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        inner = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(inner)) + self.skip(x))


def resnet18(width):
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for i, stride in enumerate((1, 2, 2, 2)):
        out = width << i
        layers += [Block(channels, out, stride), Block(out, out, 1)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@pytest.mark.slow
def test_a_resnet_within_five_minutes_and_four_gibibytes(capsys):
    model = resnet18(16)
    filters = [p.shape[0] for p in model.parameters() if p.ndim == 4]
    batch = (torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    began = time.perf_counter()
    group = discover(model, cross_entropy, [batch])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{group}\n{seconds:.0f} s, {peak:.2f} GiB")
    # By hand: every filter, as batch normalization follows it; in each of 8 blocks, the scale and
    # shift of the inner normalization against the channels of the second convolution; in each of
    # 4 stages, the channels of the stream, tied across its skip connections; 20 convolutions and a
    # classifier whose rows can go up and columns down.
    inner = sum(2 * (16 << i) for i in range(4))
    stream = sum(16 << i for i in range(4))
    assert group.trivial_dimension == len(filters) + 1 == 21
    assert group.dimension == sum(filters) + inner + stream + 21
    tied = [g for g in group.generators if len(g.exponents) > 3 and not g.trivial]
    assert len(tied) == stream
    assert all(sum(e > 0 for e in g.exponents.values()) == 6 for g in tied)
    assert seconds < 300
    assert peak < 4
