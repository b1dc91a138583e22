"""Settings of all tests: no network, no screen, one thread a worker, repeatable examples."""

import os

# Before anything imports these libraries: they read their settings once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# `dev` looks for new examples at every call. `ci` (`make check`) and `quick` (`make test`, fewer
# of them) try the same ones each time, so that the verdict is about the change alone. Time limits
# say more about the machine than about the code.
hypothesis.settings.register_profile(
    "dev",
    deadline=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "ci",
    parent=hypothesis.settings.get_profile("dev"),
    derandomize=True,
    database=None,
    print_blob=True,
)
hypothesis.settings.register_profile(
    "quick", parent=hypothesis.settings.get_profile("ci"), max_examples=5
)
hypothesis.settings.load_profile("dev")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test starts from the same state of torch's generator."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="takes minutes: run it with --slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip)
        if {"site", "real_data"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.thorough)
