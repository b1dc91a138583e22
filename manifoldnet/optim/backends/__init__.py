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
from manifoldnet.optim.step import (
    Gram,
    HyperParameters,
    SliceGeometry,
    StepInput,
    is_zero,
)

__all__ = [
    "Layout",
    "Plans",
    "Repeated",
    "coordinates",
    "has_kernel",
    "layout",
    "products",
    "repeated",
    "step",
]

coordinates = cpp.coordinates
Plans = triton.Plans
Repeated = cpp.Repeated


def has_kernel(device: torch.device) -> bool:
    """Test whether there are kernels for a device; those for processors may be compiled first."""
    return triton.is_available(device) or (device.type == "cpu" and cpp.is_available())


def layout(p: Tensor, geometry: SliceGeometry) -> Layout | None:
    """The order of memory of a weight, or of its piece here; None if no kernel can step it."""
    piece = shards.local(p)
    found: Layout | None = _kernels(piece.device).layout(piece, geometry)
    return found


def step(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout | None],
    plans: Plans,
    ends: Sequence[Tensor] | None = None,
) -> list[bool]:
    """Step weights, each by the kernel of its device if it has a layout for it.

    Args:
        works: the weights.
        hyper: the numbers of their group.
        layouts: theirs.
        plans: of the kernels.
        ends: where the new pieces go that are here, if not to the places of the old ones, which
            may be lost then; the gradient may be such a place.

    Returns:
        For each weight, whether it may have a zero slice or a norm near overflow; only plain
        weights on processors are asked.
    """
    look = [False] * len(works)
    pieces, across = shards.partition(works)
    elsewhere = {place for places in across.values() for place in places}
    chosen: dict[Any, list[int]] = {}
    for place, piece in pieces.items():
        backend = torch_ops if layouts[place] is None else _kernels(piece.x.device)
        if backend is triton and not is_zero(hyper.decay):
            backend = torch_ops
        if backend is not triton or place in elsewhere:
            pieces[place] = _unbiased(piece, hyper)
        if place not in elsewhere:
            chosen.setdefault(backend, []).append(place)
    for backend, places in chosen.items():
        some = [pieces[place] for place in places]
        if backend is torch_ops:
            for place, found in zip(places, torch_ops.step(some, hyper), strict=True):
                look[place] = found
            continue
        theirs: list[Any] = [layouts[place] for place in places]
        if backend is triton:
            counts = [count for work in some if (count := work.steps) is not None]
            triton.step(some, hyper, theirs, plans, counts or None)
            continue
        squares = cpp.step(some, hyper, theirs, ends and [ends[place] for place in places])
        for place, work, (least, most) in zip(places, some, squares, strict=True):
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
    if ends is not None:
        written = chosen.get(cpp, [])
        for place, piece in pieces.items():
            if place not in written:
                ends[place].copy_(piece.x)
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


def repeated(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout | None]
) -> Repeated | None:
    """The same step of the same weights again, if the kernel for processors takes it at once."""
    known = [layout for layout in layouts if layout is not None]
    alike = len(known) == len(works) and all(
        not (work.first or shards.is_sharded(work.x)) and _kernels(work.x.device) is cpp
        for work in works
    )
    counts = any(work.steps is not None for work in works)
    if not alike or counts or len({work.x.dtype for work in works}) > 1:
        return None
    if hyper.keep == 0 and works[0].b is not None:  # it would have to be cleared
        return None
    return Repeated(works, known)


def _kernels(device: torch.device) -> Any:
    """The backend whose kernels a device has, if it has any."""
    return triton if triton.is_available(device) else cpp


def _unbiased(work: StepInput, hyper: HyperParameters) -> StepInput:
    """The same with bias corrections from the step count, if that is on a device."""
    if work.steps is None or hyper.beta2 is None:
        return work
    return work._replace(unbias=(1 - hyper.keep**work.steps, 1 - hyper.beta2**work.steps))


def _kernel(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]
) -> torch_ops.Kernel:
    """Products and update of some weights by the kernel of their device."""
    backend = _kernels(works[0].x.device)

    def gram(places: Sequence[int], first: Sequence[Gram] | None) -> list[Gram]:
        chosen = [works[place] for place in places]
        found: list[Gram] = backend.gram(chosen, hyper, [layouts[p] for p in places], first)
        return found

    return torch_ops.Kernel(gram, lambda found: backend.update(works, found, layouts))
