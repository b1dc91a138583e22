"""A step of sharded weights is that of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks, mesh
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import manifoldnet as mn

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9, "maximize": True}),
    "dampened": (mn.RiemannianSGD, {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (mn.RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (mn.RiemannianAdam, {}),
    "amsgrad": (mn.RiemannianAdam, {"amsgrad": True, "slice_scale": "rms"}),
}
PATHS: dict[str, dict[str, Any]] = {
    "reference": {"foreach": False},
    "torch": {},
    "kernel": {"fused": True},
}
# Two small ones alike, uneven ones, some with fewer rows or columns than processes.
SMALL = [(8, 6), (8, 6), (7, 5), (1, 4), (4, 1), (3, 9)]
LARGE = [(700, 601)]

LINES: dict[str, list[Any]] = {
    "rows": [Shard(0)],
    "columns": [Shard(1)],
    "copies": [Replicate()],
}
MESHES: dict[str, list[Any]] = {
    "hybrid": [Replicate(), Shard(0)],
    "both": [Shard(0), Shard(1)],
}


def _manifolds() -> list[mn.Manifold]:
    found: list[mn.Manifold] = []
    for dim in (0, 1, None):
        found += [
            mn.Oblique(dim),
            mn.Oblique(dim, 2.0, "geodesic"),
            mn.ScaledEuclidean(dim),
            mn.ScaledEuclidean(dim, "additive"),
        ]
    return found


class Net(nn.Module):
    """Declared weights of some shapes and a free one."""

    def __init__(self, manifold: mn.Manifold, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        for i, shape in enumerate(shapes):
            if manifold.slices.size(torch.Size(shape)) < 2:
                continue  # a unit vector of one number has nowhere to go
            w = torch.randn(shape, generator=source, dtype=torch.float64)
            self.register_parameter(f"w{i}", nn.Parameter(w))
            mn.declare(self, f"w{i}", manifold, project=True)
        self.free = nn.Parameter(torch.randn(6, 3, generator=source, dtype=torch.float64))


def _placed(x: Tensor, placements: list[Any], shape: tuple[int, ...]) -> Tensor:
    return distribute_tensor(x, mesh(*shape), placements)


def _steps(
    net: nn.Module,
    make: Any,
    options: dict[str, Any],
    steps: int,
    place: Any = None,
    length: float = 0.1,
) -> tuple[dict[str, Tensor], Any]:
    """The weights after some steps with gradients that depend on the weights."""
    optimizer = make(mn.param_groups(net), lr=0.05, **options)
    for step in range(steps):
        for i, p in enumerate(net.parameters()):
            source = torch.Generator().manual_seed(10**6 + 100 * step + i)
            g = torch.randn(p.shape, generator=source, dtype=torch.float64) * length
            if place is None:
                p.grad = g + 0.01 * p.detach()
            else:
                p.grad = place(g).redistribute(p.device_mesh, p.placements) + 0.01 * p.detach()
        optimizer.step()
    whole = {
        name: p.detach() if place is None else p.detach().full_tensor()
        for name, p in net.named_parameters()
    }
    return whole, optimizer


def _shard(net: nn.Module, place: Any) -> None:
    for name, p in list(net.named_parameters()):
        setattr(net, name, nn.Parameter(place(p.detach())))


def _worst(
    placements: list[Any], shape: tuple[int, ...], sizes: list[tuple[int, ...]], path: str
) -> dict[str, float]:
    """The largest error of each geometry and algorithm."""

    def place(x: Tensor) -> Tensor:
        return _placed(x, placements, shape)

    found = {}
    for manifold in _manifolds():
        for kind, (make, options) in ALGORITHMS.items():
            alone, _ = _steps(Net(manifold, sizes), make, options, 5)
            net = Net(manifold, sizes)
            _shard(net, place)
            here, _ = _steps(net, make, {**options, **PATHS[path]}, 5, place)
            off = max(float((here[k] - alone[k]).abs().max() / alone[k].abs().max()) for k in here)
            if not off <= 1e-12:
                found[f"{manifold} {kind}"] = off
    return found


@pytest.mark.parametrize("path", ["torch", "kernel"])
@pytest.mark.parametrize("placements", LINES.values(), ids=LINES)
def test_small_weights_on_two_processes(two: Ranks, placements: list[Any], path: str) -> None:
    assert two.agreed(_worst, placements, (2,), SMALL, path) == {}


@pytest.mark.parametrize("path", ["torch", "kernel"])
@pytest.mark.parametrize("placements", MESHES.values(), ids=MESHES)
def test_small_weights_on_four_processes(four: Ranks, placements: list[Any], path: str) -> None:
    assert four.agreed(_worst, placements, (2, 2), SMALL, path) == {}


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["torch", "kernel"])
@pytest.mark.parametrize("placements", LINES.values(), ids=LINES)
def test_large_weights_on_two_processes(two: Ranks, placements: list[Any], path: str) -> None:
    assert two.agreed(_worst, placements, (2,), LARGE, path) == {}


def _messages(manifold: mn.Manifold, kind: str, count: int) -> int:
    """The number of collectives of one step of many weights, sharded by rows."""

    def place(x: Tensor) -> Tensor:
        return _placed(x, [Shard(0)], (2,))

    make, options = ALGORITHMS[kind]
    net = Net(manifold, [(8, 6)] * count)
    _shard(net, place)
    _, optimizer = _steps(net, make, options, 1, place)
    with CommDebugMode() as messages:
        optimizer.step()
    return int(messages.get_total_counts())


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_communication(two: Ranks, kind: str) -> None:
    """Rows need none; a message or three serve all columns of a step."""
    assert two.agreed(_messages, mn.Oblique(0), kind, 5) == 0
    for dim in (1, None):
        assert 1 <= two.agreed(_messages, mn.Oblique(dim), kind, 50) <= 3
        assert two.agreed(_messages, mn.ScaledEuclidean(dim, "additive"), kind, 50) == 1
