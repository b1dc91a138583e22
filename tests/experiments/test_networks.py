from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, max_pool1d

from manifoldnet.experiments import Arch1, Arch2, ConfigError, ConvArch1, ConvArch2
from manifoldnet.experiments.papers.symmetry.networks import MaxPoolPairs
from manifoldnet.symmetry import (
    ScalingElement,
    Slice,
    discover,
    invariance_error,
    without_eps,
)

ALL = [Arch1, Arch2, ConvArch1, ConvArch2]
NORMALIZED = [Arch2, ConvArch2]
DENSE = pytest.mark.parametrize("network", [Arch1, Arch2])
FOUR = pytest.mark.parametrize("network", ALL)

CLASSES, FEATURES = 4, 6
INPUT = {Arch1: 20, Arch2: 20, ConvArch1: (2, 9, 8), ConvArch2: (2, 9, 8)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def make(network, depth=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    model = network(INPUT[network], CLASSES, depth=depth, features=FEATURES, generator=generator)
    return model.to(dtype)


def batch(network, seed=0, dtype=torch.float64, size=40):
    generator = torch.Generator().manual_seed(seed)
    shape = INPUT[network] if isinstance(INPUT[network], tuple) else (INPUT[network],)
    images = torch.randn(size, *shape, generator=generator, dtype=dtype)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def loss_fn(scores, labels):
    return cross_entropy(scores, labels, reduction="sum")


def weights(model):
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


# --- what they are made of -------------------------------------------------------------------


@DENSE
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


@pytest.mark.parametrize("network", [ConvArch1, ConvArch2])
def test_convolutions_keep_the_size_and_pooling_halves_it(network):
    model = network((3, 32, 30), 10, depth=3)
    assert [tuple(p.shape) for p in weights(model).values()] == [
        (64, 3, 3, 3),
        (64, 64, 3, 3),
        (64, 64, 3, 3),
        (10, 64 * 4 * 3),
    ]
    assert model(torch.rand(7, 3, 32, 30)).shape == (7, 10)


def test_images_too_small_for_the_poolings_are_refused():
    with pytest.raises(ConfigError, match="depth is 4: .* leaves nothing of 8x32 images"):
        ConvArch1((1, 8, 32), 10, depth=4)


@FOUR
def test_only_normalized_networks_have_scales_and_shifts(network):
    model = make(network, depth=3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (3 if network in NORMALIZED else 0)
    assert len(list(model.parameters())) == 4 + 2 * len(norms)


@FOUR
def test_starts_with_unit_filters_and_unit_class_vectors(network):
    for weight in weights(make(network)).values():
        norms = weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


@FOUR
def test_initialization_uses_the_generator_given_only(network):
    before = torch.get_rng_state()
    one, same, other = (make(network, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32))
def test_pooling_equals_torchs(rows, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 2 * pairs, generator=generator)
    assert torch.equal(MaxPoolPairs()(features), max_pool1d(features, 2))


# --- their symmetries ------------------------------------------------------------------------


@FOUR
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 3))
def test_the_loss_does_not_change_with_scalings_of_the_group(network, dtype, seed, depth):
    """In training, and in evaluation after some minibatches have moved the running averages."""
    model = make(network, depth, seed, dtype)
    for i in range(3):
        model(batch(network, seed + i, dtype)[0])
    element = model.symmetries().sample(
        generator=torch.Generator().manual_seed(seed), spread=log(1e3)
    )
    with without_eps(model):
        for training in (True, False):
            model.train(training)
            error = invariance_error.loss(model, element, loss_fn, batch(network, seed, dtype))
            assert error <= TOLERANCE[dtype], (error.where, training)


@FOUR
@given(st.data())
def test_each_generator_alone_is_a_symmetry_with_factors_of_a_thousand(network, data):
    model = make(network)
    generator = data.draw(st.sampled_from(model.symmetries().generators))
    element = generator.element(data.draw(st.sampled_from([1e-3, 1e3])))
    with without_eps(model):
        assert invariance_error.loss(model, element, loss_fn, batch(network)) <= 1e-9


@pytest.mark.parametrize(
    ("network", "dimension"),
    # depth − 1 + what pooling leaves of the last layer; or every filter of every hidden layer
    [(Arch1, 2 + FEATURES // 2), (ConvArch1, 2 + FEATURES), (Arch2, 18), (ConvArch2, 18)],
)
def test_dimensions_of_the_groups(network, dimension):
    group = make(network, depth=3).symmetries()
    assert group.dimension == dimension
    assert group.trivial_dimension == 0


def test_with_eight_filters_arch1_has_the_paper_s_five_dimensions():
    group = Arch1(20, 4, depth=2, features=8).symmetries()
    assert group.dimension == 5
    assert [generator.name for generator in group.generators][:2] == [
        "hidden.0.weight[all rows] × s, head.weight[all columns] ÷ s",
        "hidden.3.weight[rows 0,1] × s, head.weight[column 0] ÷ s",
    ]


@FOUR
def test_the_group_lies_inside_the_discovered_one(network):
    model = make(network)
    found = discover(model, loss_fn, [batch(network, seed) for seed in range(4)])
    own = model.symmetries()
    assert own in found  # what it does to running averages, which no gradient knows of, aside
    # Arch1 has rows of W1 against columns of W2 besides, Arch2 scales and shifts against what
    # follows: the paper's groups are not all there is.
    assert own.dimension < found.dimension - found.trivial_dimension


@pytest.mark.parametrize("network", NORMALIZED)
@pytest.mark.parametrize("training", [True, False])
def test_a_negative_factor_is_no_symmetry_unless_the_scale_takes_its_sign_back(network, training):
    """(3) of the paper says "any real number"."""
    model = make(network)
    model(batch(network, 1)[0])
    model.train(training)
    filter_ = model.symmetries().generators[1]
    negative = ScalingElement(
        {where: (-2.0) ** exponent for where, exponent in filter_.exponents.items()}, signed=True
    )
    sign = ScalingElement({Slice("hidden.1.weight", 0, 1): -1.0}, signed=True)
    with without_eps(model):
        assert invariance_error.loss(model, negative, loss_fn, batch(network)) > 1e-3
        assert invariance_error.loss(model, negative * sign, loss_fn, batch(network)) <= 1e-9


def test_arch1_lacks_the_symmetry_3_of_arch2():
    model = make(Arch1)
    one_row = ScalingElement({Slice("hidden.3.weight", 0, 0): 3.0})
    assert invariance_error.loss(model, one_row, loss_fn, batch(Arch1)) > 1e-3
