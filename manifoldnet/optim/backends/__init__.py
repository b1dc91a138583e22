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

from manifoldnet.geometry import Slices
from manifoldnet.optim import shards
from manifoldnet.optim.backends import cpp, torch_ops
from manifoldnet.optim.backends.cpp import Layout
from manifoldnet.optim.overflow import growing
from manifoldnet.optim.step import Gram, HyperParameters, StepInput

__all__ = ["Layout", "step"]


def step(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout | None]
) -> list[bool]:
    """Step weights in place, each by the kernel if it has a layout for it.

    Returns:
        For each weight, whether it may have a zero slice or a norm near overflow; only plain
        weights on processors are asked.
    """
    look = [False] * len(works)
    by_kernel: list[tuple[int, Layout]] = []
    by_torch: list[int] = []
    across: dict[shards.Groups, list[int]] = {}
    pieces = list(works)
    for place, (work, layout) in enumerate(zip(works, layouts, strict=True)):
        if shards.is_sharded(work.x):
            groups = shards.groups_of(work.x, work.geometry.dim)
            piece = pieces[place] = shards.localized(work)
            if not Slices(work.geometry.dim).count(piece.x.shape):
                continue  # the same in all processes of these groups
            if groups:
                across.setdefault(groups, []).append(place)
                continue
        if layout is None:
            by_torch.append(place)
        else:
            by_kernel.append((place, layout))
    for place, zero in zip(
        by_torch, torch_ops.step([pieces[place] for place in by_torch], hyper), strict=True
    ):
        look[place] = zero
    if by_kernel:
        chosen = [pieces[place] for place, _ in by_kernel]
        squares = cpp.step(chosen, hyper, [layout for _, layout in by_kernel])
        for (place, _), work, (least, most) in zip(by_kernel, chosen, squares, strict=True):
            look[place] = not least > 0 or growing(most, work.x.dtype)
    for groups, places in across.items():
        some = [pieces[place] for place in places]
        theirs = [own for place in places if (own := layouts[place]) is not None]
        torch_ops.step_across(
            some,
            hyper,
            partial(shards.add_over, groups),
            _kernel(some, hyper, theirs) if len(theirs) == len(some) else None,
        )
    return [
        found and not shards.is_sharded(work.x) for found, work in zip(look, works, strict=True)
    ]


def _kernel(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]
) -> torch_ops.Kernel:
    """Products and update of some weights by the compiled kernel."""

    def gram(places: Sequence[int], first: Sequence[Gram] | None) -> list[Gram]:
        chosen = [works[place] for place in places]
        return cpp.gram(chosen, hyper, [layouts[place] for place in places], first)

    return torch_ops.Kernel(gram, lambda found: cpp.update(works, found, layouts))
