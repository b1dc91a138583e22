"""Clipping, accumulation, overflow and other events of training, on shards as on one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from layers import Layers, declare, split, train
from ranks import Ranks, mesh
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import manifoldnet as mn

Event = Callable[[nn.Module, Any, Any], None]


def _loss(net: nn.Module, number: int) -> Tensor:
    source = torch.Generator().manual_seed(number)
    dtype = next(net.parameters()).dtype
    x, y = (torch.randn(16, n, generator=source, dtype=torch.float64).to(dtype) for n in (6, 1))
    loss: Tensor = (net(x) - y).square().mean()
    return loss


def _clipped(net: nn.Module, optimizer: Any, sync: Any) -> None:
    for number in range(4):
        optimizer.zero_grad()
        _loss(net, number).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()


def _accumulated(net: nn.Module, optimizer: Any, sync: Any) -> None:
    for number in range(4):
        optimizer.zero_grad()
        sync(False)
        _loss(net, 2 * number).backward()
        sync(True)
        _loss(net, 2 * number + 1).backward()
        optimizer.step()


def _in_backward(net: nn.Module, optimizer: Any, sync: Any) -> None:
    """One optimizer for each parameter, which steps as soon as there is its gradient."""
    own = {p: type(optimizer)([p], lr=0.05, momentum=0.9) for p in net.parameters()}

    def step(p: Tensor) -> None:
        own[p].step()
        own[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    for number in range(4):
        _loss(net, number).backward()


def _overflowed(net: nn.Module, optimizer: Any, sync: Any) -> None:
    """A scaler skips a step whose gradients are infinite, on all processes."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(4):
        optimizer.zero_grad()
        scaler.scale(_loss(net, number) * (torch.inf if number == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()


EVENTS: dict[str, Event] = {
    "clipped": _clipped,
    "accumulated": _accumulated,
    "in backward": _in_backward,
    "overflowed": _overflowed,
}


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: x.full_tensor() if isinstance(x := p.detach(), DTensor) else x.clone()
        for name, p in net.named_parameters()
    }


def _optimizer(net: nn.Module) -> Any:
    return mn.RiemannianSGD(mn.param_groups(net), lr=0.05, momentum=0.9)


@cache
def _alone(event: str) -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    EVENTS[event](net, _optimizer(net), lambda on: None)
    return _weights(net)


def _sharded(event: str) -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    split(net, "full")
    EVENTS[event](net, _optimizer(net), net.set_requires_gradient_sync)
    mn.verify(net)
    return _weights(net)


def _same(found: dict[str, Tensor], alone: dict[str, Tensor], limit: float = 1e-12) -> None:
    for name, x in alone.items():
        assert float((found[name] - x).abs().max()) <= limit * float(x.abs().max()), name


@pytest.mark.parametrize("event", EVENTS)
def test_events_on_shards(two: Ranks, event: str) -> None:
    for found in two.run(_sharded, event):
        _same(found, _alone(event))


def _replicated_without_sync() -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    wrapped = DistributedDataParallel(net)
    optimizer = _optimizer(net)
    for number in range(4):
        optimizer.zero_grad()
        with wrapped.no_sync():
            _loss(wrapped, 2 * number).backward()
        _loss(wrapped, 2 * number + 1).backward()
        optimizer.step()
    return _weights(net)


def test_replicas_accumulate_without_sync(two: Ranks) -> None:
    for found in two.run(_replicated_without_sync):
        _same(found, _alone("accumulated"))


def _checkpointed() -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    for name in ("columns", "whole"):
        setattr(net, name, checkpoint_wrapper(getattr(net, name)))
    split(net, "full")
    train(net, _optimizer(net), 4)
    return {k.replace("_checkpoint_wrapped_module.", ""): x for k, x in _weights(net).items()}


def _swapped() -> dict[str, Tensor]:
    """An optimizer made before sharding, with its parameters replaced, as accelerate does."""
    net = Layers()
    declare(net)
    optimizer = _optimizer(net)
    names = {p: name for name, p in net.named_parameters()}
    split(net, "full")
    now = dict(net.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[p]] for p in group["params"]]
    train(net, optimizer, 4)
    return _weights(net)


@cache
def _trained() -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    train(net, _optimizer(net), 4)
    return _weights(net)


@pytest.mark.parametrize("how", [_checkpointed, _swapped])
def test_layers_that_are_wrapped_and_parameters_that_are_replaced(two: Ranks, how: Any) -> None:
    for found in two.run(how):
        _same(found, _trained())


def _half() -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    net.float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*net.children(), net):
        fully_shard(module, mesh=mesh(), mp_policy=policy)
    optimizer = _optimizer(net)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    assert max(mn.violations(net).values()) < 1e-6
    return _weights(net)


def test_weights_stay_on_the_manifold_in_mixed_precision(two: Ranks) -> None:
    one, other = two.run(_half)
    for name, x in one.items():
        assert torch.equal(x, other[name]), name
