"""Steps inside a graph of `torch.compile`.

On an accelerator the formulas of `plane` are traced, and the compiler fuses them. On a processor
TorchInductor (2.13) fails with a KeyError in loops that read several tensors and write some of
them, so there a step is one operator, `manifoldnet::step`, which the graph calls and does not look
into: it runs the compiled kernel, or `plane`. Rates and bias corrections that change are tensors,
so that no schedule compiles anything again.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from manifoldnet.optim import native, plane
from manifoldnet.optim.kind import Kind
from manifoldnet.optim.work import Rates, Work

__all__ = ["step"]


def step(works: Sequence[Work], rates: Rates, fused: bool) -> None:
    """Step weights in place, within a graph."""
    here = [work for work in works if work.x.device.type == "cpu"]
    elsewhere = [work for work in works if work.x.device.type != "cpu"]
    if elsewhere:
        plane.step(elsewhere, rates)
    if here:
        numbers = [rates.lr, *(number for work in here for number in work.unbias)]
        _step(
            [work.x for work in here],
            [work.g for work in here],
            [work.v for work in here if work.v is not None],
            [work.s for work in here if work.s is not None],
            [work.top for work in here if work.top is not None],
            [torch.as_tensor(number, dtype=torch.float64) for number in numbers],
            repr([(*astuple(work.kind), work.first) for work in here]),
            repr(tuple(rates._replace(lr=0.0))),
            fused,
        )


@torch.library.custom_op("manifoldnet::step", mutates_args=("x", "v", "s", "top"))
def _step(
    x: list[Tensor],
    g: list[Tensor],
    v: list[Tensor],
    s: list[Tensor],
    top: list[Tensor],
    numbers: list[Tensor],
    weights: str,
    group: str,
    fused: bool,
) -> None:
    """The same, of plain types: what is there of buffers, there is for every weight."""
    lr, *unbias = (number.item() for number in numbers)
    rates = Rates(*literal_eval(group))._replace(lr=lr)
    works = []
    for i, (*kind, first) in enumerate(literal_eval(weights)):
        buffers = (tensors[i] if tensors else None for tensors in (v, s, top))
        v_, s_, top_ = buffers
        work = Work(x[i], g[i], Kind(*kind), v_, first, s_, top_)
        works.append(work._replace(unbias=(unbias[2 * i], unbias[2 * i + 1])))
    layouts = [native.takes(work.x, work.kind) if fused else None for work in works]
    by_kernel = [(w, found) for w, found in zip(works, layouts, strict=True) if found is not None]
    if by_kernel:
        native.step([w for w, _ in by_kernel], rates, [found for _, found in by_kernel])
    others = [work for work, found in zip(works, layouts, strict=True) if found is None]
    if others:
        plane.step(others, rates)
