import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.experiments import ConfigError, Dataset
from manifoldnet.experiments.data import Images, seeded_generator, split


def test_digits_are_complete_and_their_split_is_fixed(digits):
    assert len(digits.train_labels) == 1438
    assert len(digits.test_labels) == 359
    assert digits.inputs == 64
    assert digits.classes == tuple("0123456789")
    assert digits.train_images.dtype == torch.uint8
    assert digits.fingerprint() == "1ae4e2a8"


def test_pixels_become_floats_in_0_1(digits):
    images = split(digits, seed=0).train
    vectors = images.vectors(torch.arange(len(images)))
    assert vectors.dtype == torch.float32
    assert vectors.shape == (1199, 64)
    assert (vectors.min(), vectors.max()) == (0, 1)


@given(st.integers(0, 2**40), st.integers(1, 60), st.integers(1, 40))
def test_a_split_takes_different_images_and_depends_on_the_seed_alone(seed, train, validation):
    images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)
    labels = images.flatten().long()
    data = Dataset("numbers", images, labels, images, labels, tuple(map(str, range(100))))
    parts = split(data, seed, train, validation)
    taken = torch.cat([parts.train.labels, parts.validation.labels])
    assert (len(parts.train), len(parts.validation)) == (train, validation)
    assert len(taken.unique()) == train + validation
    assert torch.equal(parts.train.pixels.flatten().long(), parts.train.labels)
    assert torch.equal(split(data, seed, train, validation).train.labels, parts.train.labels)


def test_a_sixth_is_for_validation_by_default(tiny):
    parts = split(tiny, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (150, 30, 60)
    assert len(split(tiny, seed=0, train_size=20).train) == 20


@pytest.mark.parametrize("sizes", [(151, 30), (None, 180), (200, None)])
def test_a_split_larger_than_the_set_is_an_error_with_its_size(tiny, sizes):
    with pytest.raises(ConfigError, match="tiny has 180 images outside its test set"):
        split(tiny, 0, *sizes)


def test_random_streams_differ_by_seed_and_purpose():
    draws = {
        (seed, purpose): torch.rand(1, generator=seeded_generator(seed, purpose)).item()
        for seed in (0, 1)
        for purpose in ("split", "start", "order")
    }
    assert len(set(draws.values())) == len(draws)


def test_a_minibatch_has_the_given_rows():
    images = Images(torch.tensor([[0, 8], [16, 4]], dtype=torch.uint8), torch.tensor([0, 1]), 16)
    assert images.vectors(torch.tensor([1])).tolist() == [[1.0, 0.25]]
