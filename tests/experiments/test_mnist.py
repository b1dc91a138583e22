"""The real thing, where there is a folder of data sets (MANIFOLDNET_DATA)."""

from pathlib import Path

import pytest

from manifoldnet.experiments import TrainConfig, load, store, train
from manifoldnet.experiments.data import split
from manifoldnet.experiments.papers.symmetry.moving_frame.rescaled_run import EXPERIMENT
from manifoldnet.experiments.training import train_whole

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "rescaled-start"


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


def test_a_record_of_version_0_1_is_reproduced(mnist):
    found = store.read_all(RECORDS, EXPERIMENT.schema)
    kept = found["edd4326c65a0deb8"]
    assert kept.versions["manifoldnet"] == "0.1.0"
    again = train_whole(EXPERIMENT, kept.config, mnist)
    for ours, theirs in zip(again.epochs, kept.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)  # another processor
        assert ours.test_error == pytest.approx(theirs.test_error, abs=1e-3)
