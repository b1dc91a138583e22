"""The real thing, where there is a folder of data sets (MANIFOLDNET_DATA)."""

import pytest

from manifoldnet.experiments import TrainConfig, load, train
from manifoldnet.experiments.data import split


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def mnist(real_data, cache_home, monkeypatch):
    monkeypatch.setenv("MANIFOLDNET_CACHE", str(cache_home))
    return load("mnist", real_data)


def test_mnist_is_complete(mnist):
    assert mnist.train_images.shape == (60_000, 1, 28, 28)
    assert mnist.test_images.shape == (10_000, 1, 28, 28)
    assert mnist.inputs == 784
    assert mnist.classes == tuple("0123456789")
    assert mnist.train_labels.bincount().min() > 5_000


def test_the_default_split_is_the_papers(mnist):
    parts = split(mnist, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (50_000, 10_000, 10_000)


def test_one_epoch_reaches_88_percent(mnist, tmp_path):
    record = train(TrainConfig(dataset="mnist", update="sm", epochs=1), tmp_path, mnist)
    assert record.result.test_error < 0.12
