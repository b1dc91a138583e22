"""Implementations of a step, and the choice between them.

Each computes products, coefficients and update (`manifoldnet.optim.step`) in its own way:

    torch_ops   operators of torch, on any device
    cpp         a kernel for processors, compiled at first use
    triton      kernels for accelerators: a launch or two for all weights of a bucket

Pieces of weights whose slices extend over several processes have their products added in between
(`manifoldnet.optim.shards`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manifoldnet.optim import shards
from manifoldnet.optim.backends import cpp, torch_ops, triton
from manifoldnet.optim.backends.layout import Layout
from manifoldnet.optim.overflow import growing
from manifoldnet.optim.step import Gram, HyperParameters, SliceGeometry, StepInput

__all__ = ["Layout", "Plans", "has_kernel", "layout", "products", "step"]

Plans = triton.Plans


def has_kernel(device: torch.device) -> bool:
    """Test whether there are kernels for a device; those for processors may be compiled first."""
    return triton.is_available(device) or (device.type == "cpu" and cpp.is_available())


def layout(p: Tensor, geometry: SliceGeometry) -> Layout | None:
    """The order of memory of a weight, or of its piece here; None if no kernel can step it."""
    piece = shards.local(p)
    backend = triton if triton.is_available(piece.device) else cpp
    return backend.layout(piece, geometry)


def step(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout | None],
    plans: Plans,
) -> list[bool]:
    """Step weights in place, each by the kernel of its device if it has a layout for it.

    Returns:
        For each weight, whether it may have a zero slice or a norm near overflow; only plain
        weights on processors are asked.
    """
    look = [False] * len(works)
    pieces, across = shards.partition(works)
    elsewhere = {place for places in across.values() for place in places}
    by_torch: list[int] = []
    by_kernel: dict[Any, list[tuple[int, Layout]]] = {}
    for place, piece in pieces.items():
        how = layouts[place]
        kernel = triton if how is not None and triton.is_available(piece.x.device) else cpp
        if kernel is cpp or place in elsewhere:
            pieces[place] = _unbiased(piece, hyper)
        if place in elsewhere:
            continue
        if how is None:
            by_torch.append(place)
        else:
            by_kernel.setdefault(kernel, []).append((place, how))
    for place, zero in zip(
        by_torch, torch_ops.step([pieces[place] for place in by_torch], hyper), strict=True
    ):
        look[place] = zero
    for kernel, numbered in by_kernel.items():
        chosen, theirs = [pieces[place] for place, _ in numbered], [how for _, how in numbered]
        if kernel is triton:
            counts = [count for work in chosen if (count := work.steps) is not None]
            triton.step(chosen, hyper, theirs, plans, counts or None)
            continue
        squares = cpp.step(chosen, hyper, theirs)
        for (place, _), work, (least, most) in zip(numbered, chosen, squares, strict=True):
            look[place] = not least > 0 or growing(most, work.x.dtype)
    for (_, groups), places in across.items():
        some = [pieces[place] for place in places]
        known = [how for place in places if (how := layouts[place]) is not None]
        torch_ops.step_across(
            some,
            hyper,
            partial(shards.add_over, groups),
            _kernel(some, hyper, known) if len(known) == len(some) else None,
        )
    return [
        found and not shards.is_sharded(work.x) for found, work in zip(look, works, strict=True)
    ]


def products(works: Sequence[StepInput], names: Sequence[Sequence[str]]) -> list[Gram | None]:
    """Inner products of slices, added up over the processes that share them.

    Args:
        works: weights, of which weight and gradient are read.
        names: of the products of each, as in `Gram`.

    Returns:
        The products of the slices that are here; None where there are none, and where none is
        asked for.
    """
    pieces, across = shards.partition(works)
    found: list[Any] = [None] * len(works)
    for place, piece in pieces.items():
        if names[place]:
            found[place] = torch_ops.gram(next(torch_ops.batches_of(piece, one=True)), names[place])
    for (_, groups), places in across.items():
        some = [place for place in places if names[place]]
        if some:
            add = partial(shards.add_over, groups)
            sums = torch_ops.added([found[place] for place in some], add)
            for place, own in zip(some, sums, strict=True):
                found[place] = own
    return found


def _unbiased(work: StepInput, hyper: HyperParameters) -> StepInput:
    """The same with bias corrections from the step count, if that is on a device."""
    if work.steps is None or hyper.beta2 is None:
        return work
    return work._replace(unbias=(1 - hyper.keep**work.steps, 1 - hyper.beta2**work.steps))


def _kernel(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]
) -> torch_ops.Kernel:
    """Products and update of some weights by the kernel of their device."""
    backend: Any = triton if triton.is_available(works[0].x.device) else cpp

    def gram(places: Sequence[int], first: Sequence[Gram] | None) -> list[Gram]:
        chosen = [works[place] for place in places]
        found: list[Gram] = backend.gram(chosen, hyper, [layouts[p] for p in places], first)
        return found

    return torch_ops.Kernel(gram, lambda found: backend.update(works, found, layouts))
