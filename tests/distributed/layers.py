"""A network that trainers shard, and the ways they do it."""

from __future__ import annotations

import warnings

import torch
from ranks import mesh
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import manifoldnet as mn


class Layers(nn.Module):
    """Rows, columns and a whole tensor, one of them with fewer rows than processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Linear(6, 8, dtype=torch.float64)
        self.columns = nn.Linear(8, 8, dtype=torch.float64)
        self.whole = nn.Linear(8, 5, dtype=torch.float64)
        self.gate = nn.Linear(5, 1, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.columns(torch.tanh(self.rows(x))))
        out: Tensor = self.gate(torch.tanh(self.whole(x)))
        return out


def declare(net: nn.Module) -> None:
    mn.declare(net, "rows.weight", mn.Oblique(), project=True)
    mn.declare(net, "columns.weight", mn.Oblique(1, retraction="geodesic"), project=True)
    mn.declare(net, "whole.weight", mn.ScaledEuclidean(None))
    mn.declare(net, "gate.weight", mn.Oblique(), project=True)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        source = torch.Generator().manual_seed(step)
        x, y = (torch.randn(16, n, generator=source, dtype=torch.float64) for n in (6, 1))
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()


def split(net: nn.Module, how: str) -> nn.Module:
    """A model sharded as trainers do."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    if how in ("tensor", "both"):
        devices = mesh() if how == "tensor" else mesh(2, 2, names=("data", "tensor"))["tensor"]
        styles = {"rows": ColwiseParallel(), "columns": RowwiseParallel()}
        parallelize_module(net, devices, styles)
    if how == "tensor":
        return net
    devices = mesh() if how == "full" else mesh(2, 2, names=("data", "tensor"))
    for module in (*net.children(), net):
        fully_shard(module, mesh=devices["data"] if how == "both" else devices)
    return net
