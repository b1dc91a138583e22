"""Small data for the experiments, and a world without the user's data folder or cache."""

import dataclasses
import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from manifoldnet.cache import cache_folder
from manifoldnet.experiments import Dataset, load
from manifoldnet.experiments.checkpoint import checkpoint_path
from manifoldnet.experiments.training import train_in

# Remembered before `_own_world` hides them from the tests.
_REAL_DATA = os.environ.get("MANIFOLDNET_DATA")
_KERNELS = cache_folder()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for decoded data sets, with the kernels that are compiled already."""
    folder = tmp_path_factory.mktemp("cache")
    for kernel in _KERNELS.glob("*.so"):
        shutil.copy2(kernel, folder)
    return folder


@pytest.fixture(autouse=True)
def _own_world(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANIFOLDNET_DATA", raising=False)
    monkeypatch.setenv("MANIFOLDNET_CACHE", str(cache))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of commands train in this process: a worker takes seconds to start."""
    from sweeps import Here

    module = import_module("manifoldnet.experiments.sweep")
    monkeypatch.setattr(module, "Processes", lambda jobs: Here())


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """Three classes of 4x4 images that a network learns in a few steps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    images = torch.randint(0, 120, (240, 1, 4, 4), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, 0, label] += 100
    return Dataset("tiny", images[:180], labels[:180], images[180:], labels[180:], ("a", "b", "c"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets."""
    if not _REAL_DATA:
        pytest.skip("MANIFOLDNET_DATA does not name a folder of data sets")
    return Path(_REAL_DATA)


class Stop(Exception):
    """Ends a run after an epoch."""


def without_clocks(epoch) -> str:
    """A row as text, so that NaN equals itself."""
    clocks = {name: 0.0 for name in vars(epoch) if name.endswith("seconds")}
    return repr(dataclasses.replace(epoch, **clocks))


@pytest.fixture
def assert_resumes(tmp_path: Path):
    """A check that a run stopped after its first epoch goes on bit for bit, rows and weights."""

    def stop(_) -> None:
        raise Stop

    def check(experiment, config, data) -> None:
        with pytest.raises(Stop):
            train_in(experiment, config, tmp_path / "stopped", data, on_epoch=stop)
        rows, weights = [], []
        for name, resume in (("stopped", True), ("whole", False)):
            record = train_in(experiment, config, tmp_path / name, data, resume=resume)
            rows.append([without_clocks(epoch) for epoch in record.epochs])
            checkpoint = torch.load(checkpoint_path(tmp_path / name), weights_only=True)
            weights.append(checkpoint["states"]["model"])
        assert rows[0] == rows[1]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    return check
