"""Steps inside a graph of `torch.compile`.

On an accelerator the operators of `torch_ops` are traced, and the compiler fuses them. On a
processor TorchInductor (2.13) fails with a KeyError in loops that read several tensors and write
some of them, so there a step is one operator, `manifoldnet::step`, which the graph calls and does
not look into: it runs the compiled kernel, or `torch_ops`. It takes rates, the other numbers of a
group and bias corrections as tensors, so that those that are tensors may change without compiling
anything again.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial

import torch
from torch import Tensor

from manifoldnet.optim import memory, shards
from manifoldnet.optim.backends import cpp, torch_ops
from manifoldnet.optim.step import HyperParameters, SliceGeometry, StepInput

__all__ = ["step"]


def step(works: Sequence[StepInput], hyper: HyperParameters, fused: bool) -> None:
    """Step weights in place, within a graph."""
    pieces, across = shards.partition(works)
    for (_, groups), places in across.items():
        some = [pieces.pop(place) for place in places]
        torch_ops.step_across(some, hyper, partial(shards.add_over, groups))
    here = [work for work in pieces.values() if work.x.device.type == "cpu"]
    elsewhere = [work for work in pieces.values() if work.x.device.type != "cpu"]
    if elsewhere:
        torch_ops.step(elsewhere, hyper)
    if here:
        beta2 = 0.0 if hyper.beta2 is None else hyper.beta2
        group = hyper.sign, hyper.nesterov, hyper.beta2 is not None, hyper.displacement
        numbers = [hyper.lr, hyper.keep, hyper.fresh, beta2, hyper.eps]
        numbers += [number for work in here for number in work.unbias]
        _step(
            [work.x for work in here],
            [work.g for work in here],
            [work.b for work in here if work.b is not None],
            [work.s for work in here if work.s is not None],
            [work.max_s for work in here if work.max_s is not None],
            [torch.as_tensor(number, dtype=torch.float64) for number in numbers],
            repr([(*astuple(work.geometry), work.first, work.s_factor) for work in here]),
            repr(group),
            fused,
        )


@torch.library.custom_op("manifoldnet::step", mutates_args=("x", "b", "s", "max_s"))
def _step(
    x: list[Tensor],
    g: list[Tensor],
    b: list[Tensor],
    s: list[Tensor],
    max_s: list[Tensor],
    numbers: list[Tensor],
    weights: str,
    group: str,
    fused: bool,
) -> None:
    """The same with plain types: buffers exist for all weights or for none."""
    lr, keep, fresh, beta2, eps, *unbias = (number.item() for number in numbers)
    sign, nesterov, adam, displacement = literal_eval(group)
    hyper = HyperParameters(
        lr, sign, keep, fresh, nesterov, beta2 if adam else None, eps, displacement
    )
    works = []
    for i, (*geometry, first, s_factor) in enumerate(literal_eval(weights)):
        buffers = (tensors[i] if tensors else None for tensors in (b, s, max_s))
        b_, s_, max_s_ = buffers
        unbiased = unbias[2 * i], unbias[2 * i + 1]
        works.append(
            StepInput(
                x[i], g[i], SliceGeometry(*geometry), b_, first, s_, max_s_, unbiased, s_factor
            )
        )
    given, works = works, [_fitting(work) for work in works]
    compiled = fused and cpp.is_available()
    layouts = [cpp.layout(work.x, work.geometry) if compiled else None for work in works]
    by_kernel = [(w, found) for w, found in zip(works, layouts, strict=True) if found is not None]
    if by_kernel:
        cpp.step([w for w, _ in by_kernel], hyper, [found for _, found in by_kernel])
    others = [work for work, found in zip(works, layouts, strict=True) if found is None]
    if others:
        torch_ops.step(others, hyper)
    for work, stepped in zip(given, works, strict=True):
        for old, new in zip(_buffers(work), _buffers(stepped), strict=True):
            if old is not None and new is not None and old is not new:
                old.copy_(new)


def _fitting(work: StepInput) -> StepInput:
    """The same with buffers in the form that a step needs, copied if necessary.

    A graph goes on with the tensors it was made with, which may be in another order of memory.
    """
    want = memory.expected_on(work.x, work.geometry)
    forms = want.whole, want.per_slice, want.per_slice
    b, s, max_s = (
        tensor if tensor is None else memory.fitted(lambda: "a weight", name, tensor, form)
        for name, tensor, form in zip(("b", "s", "max_s"), _buffers(work), forms, strict=True)
    )
    return work._replace(g=memory.laid_out(work.g, work.x), b=b, s=s, max_s=max_s)


def _buffers(work: StepInput) -> tuple[Tensor | None, ...]:
    return work.b, work.s, work.max_s
