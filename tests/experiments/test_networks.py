import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, max_pool1d

from manifoldnet.experiments import Arch1, Arch2
from manifoldnet.experiments.models import MaxPoolPairs

BOTH = pytest.mark.parametrize("network", [Arch1, Arch2])


def weights(model):
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


@BOTH
def test_shapes_are_those_of_the_paper(network):
    model = network(784, 10, depth=4)
    assert [tuple(p.shape) for p in weights(model).values()] == [
        (64, 784),
        (64, 32),
        (64, 32),
        (64, 32),
        (10, 32),
    ]
    assert model(torch.rand(7, 784)).shape == (7, 10)


def test_only_arch2_has_more_than_weight_matrices():
    assert [p.ndim for p in Arch1(16, 3).parameters()] == [2, 2, 2]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in Arch2(16, 3).modules()) == 2


@BOTH
def test_starts_with_unit_filters_and_unit_class_vectors(network):
    for weight in weights(network(784, 10)).values():
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)), rtol=0, atol=1e-6)


@BOTH
def test_the_start_is_the_generators_and_leaves_the_global_one_alone(network):
    before = torch.get_rng_state()
    one, same, other = (
        network(16, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32))
def test_pooling_is_torchs(rows, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 2 * pairs, generator=generator)
    assert torch.equal(MaxPoolPairs()(features), max_pool1d(features, 2))


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_arch2_has_the_symmetry_3_of_the_paper(seed, depth):
    """Rows of hidden weights may be scaled by positive factors, up to batch normalization's ε."""
    generator = torch.Generator().manual_seed(seed)
    model = Arch2(20, 4, depth=depth, features=8, generator=generator).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-38
    images = torch.rand(50, 20, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (50,), generator=generator)
    before = cross_entropy(model(images), labels, reduction="sum")
    with torch.no_grad():
        for name, weight in weights(model).items():
            if name != "head.weight":
                weight *= torch.empty(len(weight), 1).uniform_(-3, 3, generator=generator).exp()
    after = cross_entropy(model(images), labels, reduction="sum")
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_arch1_has_the_symmetry_1_and_2_of_the_paper_and_not_3():
    generator = torch.Generator().manual_seed(0)
    model = Arch1(20, 4, features=8, generator=generator).double()
    first, second = (m for m in model.hidden if isinstance(m, nn.Linear))
    images = torch.rand(50, 20, generator=generator, dtype=torch.float64)
    before = model(images)
    pairs = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
    with torch.no_grad():
        first.weight *= 3
        second.weight *= pairs.repeat_interleave(2)[:, None]
        assert not torch.allclose(model(images), before)
        model.head.weight /= 3 * pairs
    torch.testing.assert_close(model(images), before)
