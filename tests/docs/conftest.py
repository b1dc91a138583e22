"""The fixture of the benchmarks and of the measurements on a GPU."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def little_to_collect() -> Iterator[None]:
    """Garbage is collected before each step that is measured: not among all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
