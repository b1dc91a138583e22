"""Discovery at size: a CIFAR ResNet-18 of a quarter of its width. Minutes, so by hand only:

pytest --slow tests/symmetry/test_resnet.py -s
"""

import resource
import time

import pytest
import torch
from nets import CLASSES, ResNet, canonical, residual_generators
from torch.nn.functional import cross_entropy

from manifoldnet.symmetry import discover


@pytest.mark.slow
def test_resnet_within_five_minutes_and_four_gibibytes(capsys):
    model = ResNet(16, 32, 64, 128)
    batch = (torch.randn(64, 2, 32, 32), torch.randint(CLASSES, (64,)))
    began = time.perf_counter()
    group = discover(model, cross_entropy, [batch])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{group}\n{seconds:.0f} s, {peak:.2f} GiB")
    assert group.trivial_dimension == 21  # 20 convolutions and a classifier
    assert canonical(group.nontrivial.generators) == canonical(residual_generators(model))
    assert seconds < 300
    assert peak < 4
