"""Declarations through data parallelism, sharding and distributed checkpoints."""

from typing import Any

import pytest
import torch
from ranks import Ranks, mesh, rank
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import manifoldnet as mn
from manifoldnet.geometry.settled import settle

MANIFOLDS = {
    "first.weight": mn.Oblique(0),
    "second.weight": mn.Oblique(1),
    "third.weight": mn.Sphere(),
}


class Net(nn.Module):
    """Three declared layers and a free one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(4, 6, bias=False, dtype=torch.float64)
        self.second = nn.Linear(6, 5, bias=False, dtype=torch.float64)
        self.third = nn.Linear(5, 3, dtype=torch.float64)
        self.last = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(self.second(self.first(x).tanh()).tanh()).tanh())


def _declare(net: nn.Module) -> None:
    for name, manifold in MANIFOLDS.items():
        mn.declare(net, name, manifold, project=True)


def _sharded(net: Net) -> Net:
    for layer in net.children():
        fully_shard(layer, mesh=mesh())
    fully_shard(net, mesh=mesh())
    return net


def _batch(step: int, part: int | None = None) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=source, dtype=torch.float64)
    y = torch.randn(8, 2, generator=source, dtype=torch.float64)
    return (x, y) if part is None else (x[4 * part : 4 * part + 4], y[4 * part : 4 * part + 4])


def _train(
    net: nn.Module, optimizer: Any, steps: int, part: int | None = None, first: int = 0
) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        x, y = _batch(step, part)
        (net(x) - y).square().mean().backward()
        optimizer.step()


def _optimizer(net: nn.Module, kind: str, **options: Any) -> Any:
    groups = mn.param_groups(net, lr=0.05, **options)
    if kind == "adam":
        return mn.RiemannianAdam(groups, foreach=False)
    return mn.RiemannianSGD(groups, momentum=0.9, foreach=False)


def _values(net: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("module."): settle(p.detach()) for n, p in net.named_parameters()}


def _alone(kind: str = "sgd", steps: int = 3) -> dict[str, Tensor]:
    net = Net()
    _declare(net)
    _train(net, _optimizer(net, kind), steps)
    return _values(net)


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12, msg=name)


# --- replicated weights -----------------------------------------------------------------------


def _data_parallel(declared: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    net = Net()
    if declared == "before":
        _declare(net)
    wrapped = DistributedDataParallel(net)
    if declared == "after":
        _declare(wrapped)  # by the names of the plain model
    elif declared == "after, in full":
        for name, manifold in MANIFOLDS.items():
            mn.declare(wrapped, f"module.{name}", manifold, project=True)
    _train(wrapped, _optimizer(wrapped, kind), 3, rank())
    mn.verify(wrapped)
    return _values(wrapped), mn.spec(wrapped)


@pytest.mark.parametrize("declared", ["before", "after", "after, in full"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_data_parallel_training_is_that_of_one_process(
    two: Ranks, declared: str, kind: str
) -> None:
    for values, spec in two.run(_data_parallel, declared, kind):
        _assert_equal(values, _alone(kind))
        assert spec == {name: manifold.spec() for name, manifold in MANIFOLDS.items()}


def _zero_redundancy(by_groups: bool) -> tuple[dict[str, Tensor], list[Any]]:
    net = Net()
    _declare(net)
    wrapped = DistributedDataParallel(net)
    options = {"lr": 0.05, "momentum": 0.9, "foreach": False}
    params = mn.param_groups(net, names=False) if by_groups else list(net.parameters())
    optimizer = ZeroRedundancyOptimizer(params, mn.RiemannianSGD, **options)
    _train(wrapped, optimizer, 3, rank())
    optimizer.consolidate_state_dict(0)
    saved = optimizer.state_dict() if rank() == 0 else {"state": {}}
    return _values(net), sorted(saved["state"])


@pytest.mark.parametrize("by_groups", [True, False])
def test_zero_redundancy_training_is_that_of_one_process(two: Ranks, by_groups: bool) -> None:
    found = two.run(_zero_redundancy, by_groups)
    for values, _ in found:
        _assert_equal(values, _alone())
    assert len(found[0][1]) == 6  # of all parameters, on the first rank


# --- sharded weights --------------------------------------------------------------------------


def _fully_sharded(declared: str, kind: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    net = Net()
    if declared == "before":
        _declare(net)
    _sharded(net)
    if declared == "after":
        _declare(net)
    assert mn.manifolds(net) == MANIFOLDS
    _train(net, _optimizer(net, kind), 3, rank())
    return _values(net), mn.violations(net)


@pytest.mark.parametrize("declared", ["before", "after"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_sharded_training_is_that_of_one_process(two: Ranks, declared: str, kind: str) -> None:
    found = two.run(_fully_sharded, declared, kind)
    for values, violations in found:
        _assert_equal(values, _alone(kind))
        assert violations == found[0][1]
        assert max(violations.values()) < 1e-14


def _tensor_parallel(declared: str) -> dict[str, Tensor]:
    net = Net()
    if declared == "before":
        _declare(net)
    parallelize_module(net, mesh(), {"first": ColwiseParallel(), "second": RowwiseParallel()})
    if declared == "after":
        _declare(net)
    assert mn.manifolds(net) == MANIFOLDS
    _train(net, _optimizer(net, "sgd"), 3)
    mn.verify(net)
    return _values(net)


@pytest.mark.parametrize("declared", ["before", "after"])
def test_tensor_parallel_training_is_that_of_one_process(two: Ranks, declared: str) -> None:
    for values in two.run(_tensor_parallel, declared):
        _assert_equal(values, _alone())


def _before_sharding() -> None:
    net = Net()
    _declare(net)
    optimizer = _optimizer(net, "sgd")
    _train(_sharded(net), optimizer, 1, rank())


def test_an_optimizer_made_before_sharding_is_refused(two: Ranks) -> None:
    error = two.agreed(_before_sharding)
    assert isinstance(error, RuntimeError)
    assert "optimizer" in str(error)


# --- distributed checkpoints --------------------------------------------------------------------


def _resumed(kind: str, full: bool) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=full, cpu_offload=full, broadcast_from_rank0=full)
    net = Net()
    _declare(net)
    _sharded(net)
    optimizer = _optimizer(net, kind)
    _train(net, optimizer, 2, rank())
    model_state, state = get_state_dict(net, optimizer, options=options)

    other = _sharded(Net())
    _declare(other)
    again = _optimizer(other, kind)
    # Each by itself: of both at once, torch takes an empty model state for none to be loaded.
    set_model_state_dict(other, model_state, options=options)
    set_optimizer_state_dict(other, again, state, options=options)
    mn.verify(other)
    assert mn.manifolds(other) == MANIFOLDS
    _train(other, again, 1, rank(), first=2)
    return _values(other)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_distributed_checkpoint_goes_on_where_it_ended(two: Ranks, kind: str, full: bool) -> None:
    for values in two.run(_resumed, kind, full):
        _assert_equal(values, _alone(kind))


def _spoiled(name: str) -> None:
    net = Net()
    _declare(net)
    _sharded(net)
    state = get_model_state_dict(net)
    with torch.no_grad():
        spoiled = {**state, name: 2 * state[name]}
    mn.load_state_dict(net, spoiled)


@pytest.mark.parametrize("name", list(MANIFOLDS))
def test_a_sharded_state_off_its_manifold_is_refused_alike(two: Ranks, name: str) -> None:
    error = two.agreed(_spoiled, name)
    assert isinstance(error, ValueError)
    assert "nothing was loaded" in str(error)
