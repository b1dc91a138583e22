"""Settings of all tests: no network, no screen, one thread a worker, repeatable examples."""

import os
import random
from collections.abc import Iterator
from typing import Any

# Before anything imports these libraries: they read their settings once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from fresh import Forks
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

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


@pytest.fixture(scope="session")
def fresh() -> Iterator[Forks]:
    """Runs programs in processes of their own."""
    forks = Forks()
    yield forks
    forks.end()


class _OnDevice(TorchFunctionMode):
    """Makes tensors on the processor, with the numbers of its generators, and moves them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        moves = func in _device_constructors() and kwargs.get("device") is None
        if not moves or "out" in kwargs:
            return func(*args, **kwargs)
        differentiable = kwargs.pop("requires_grad", False)
        found = func(*args, **kwargs).to(self.device)
        return found.requires_grad_() if differentiable else found


@pytest.fixture(autouse=True)
def _on_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --device, tests of optim make their tensors there."""
    device = request.config.getoption("--device")
    if device is None or request.path.parent.name != "optim":
        yield
        return
    with _OnDevice(device):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")
    parser.addoption("--device", help="where tests/optim make their tensors (make gpu)")
    parser.addoption(
        "--cases", type=int, metavar="N", help="at most N cases, drawn, of a test of the package"
    )


# The folders of tests whose cases `--cases` draws. In the others each is another page or script.
DRAWN = {"geometry", "declarations", "optim", "symmetry", "distributed", "interop", "nn"}
DRAWN.add("experiments")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="takes minutes: run it with --slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip)
        if {"site", "real_data"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.thorough)
    if (most := config.getoption("--cases")) is not None:
        drawn = _drawn(items, most, config.getoption("--slow"))
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]


def _drawn(items: list[pytest.Item], most: int, slow: bool) -> set[pytest.Item]:
    """At most so many cases of each test in those folders, the same in every process and run.

    Those that would be skipped are not drawn.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "slow" in item.keywords and not slow:
            continue
        name = item.nodeid.partition("[")[0] if item.path.parent.name in DRAWN else item.nodeid
        cases.setdefault(name, []).append(item)
    kept = (random.Random(n).sample(c, min(most, len(c))) for n, c in cases.items())
    return {item for some in kept for item in some}
