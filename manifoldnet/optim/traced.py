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

from manifoldnet.optim import memory, native, plane
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
    """The same with plain types: buffers exist for all weights or for none."""
    lr, *unbias = (number.item() for number in numbers)
    rates = Rates(*literal_eval(group))._replace(lr=lr)
    works = []
    for i, (*kind, first) in enumerate(literal_eval(weights)):
        buffers = (tensors[i] if tensors else None for tensors in (v, s, top))
        v_, s_, top_ = buffers
        unbiased = unbias[2 * i], unbias[2 * i + 1]
        works.append(Work(x[i], g[i], Kind(*kind), v_, first, s_, top_, unbiased))
    given, works = works, [_fitting(work) for work in works]
    compiled = fused and native.there()
    layouts = [native.layout(work.x, work.kind) if compiled else None for work in works]
    by_kernel = [(w, found) for w, found in zip(works, layouts, strict=True) if found is not None]
    if by_kernel:
        native.step([w for w, _ in by_kernel], rates, [found for _, found in by_kernel])
    others = [work for work, found in zip(works, layouts, strict=True) if found is None]
    if others:
        plane.step(others, rates)
    for work, stepped in zip(given, works, strict=True):
        for old, new in zip(_buffers(work), _buffers(stepped), strict=True):
            if old is not None and new is not None and old is not new:
                old.copy_(new)


def _fitting(work: Work) -> Work:
    """The same with buffers in the form that a step needs, copied if necessary.

    A graph goes on with the tensors it was made with, which may be in another order of memory.
    """
    want = memory.expected_on(work.x, work.kind)
    forms = want.whole, want.per_slice, want.per_slice
    v, s, top = (
        tensor if tensor is None else memory.fitted(lambda: "a weight", name, tensor, form)
        for name, tensor, form in zip(("v", "s", "top"), _buffers(work), forms, strict=True)
    )
    return work._replace(g=memory.laid_out(work.g, work.x), v=v, s=s, top=top)


def _buffers(work: Work) -> tuple[Tensor | None, ...]:
    return work.v, work.s, work.top
