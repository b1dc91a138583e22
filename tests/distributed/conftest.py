"""Groups of two and of four processes, one of each for the tests of a module."""

from collections.abc import Iterator

import pytest
from ranks import Ranks


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    """Two processes."""
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    """Four processes, for meshes of two dimensions."""
    with Ranks(4) as ranks:
        yield ranks
