"""Steps by a C++ kernel (`step.cpp`), compiled on this machine at first use.

It takes float32 and float64 on a processor, in any order of memory without holes, and many weights
in one call. It is compiled once for each machine and version, in seconds (`build.py`). Where it
cannot be had there is a warning, once, and it takes nothing. It runs on torch's threads, as many as
`torch.set_num_threads` says.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry.slices import Dim
from manifoldnet.optim.backends.cpp.build import library
from manifoldnet.optim.step import HyperParameters, SliceGeometry, StepInput

__all__ = ["layout", "step", "there"]

# The kernel's structures, field for field.
_OPTIONS = struct.Struct("=6i10d")
_RETRACTIONS = {"projective": 0, "geodesic": 1, "additive": 2}
Layout = tuple[int, int, int]
_NAMES = {torch.float32: "step_float", torch.float64: "step_double"}


def there() -> bool:
    """Test whether the kernel can be used; compiles it first if necessary, in seconds."""
    return library() is not None


def layout(p: Tensor, geometry: SliceGeometry) -> Layout | None:
    """The order of memory of a weight; None if the kernel cannot step weights in it."""
    if p.dtype not in _NAMES or p.device.type != "cpu":
        return None
    return _layout(p.shape, p.stride(), geometry.dim)


def step(
    works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]
) -> list[tuple[float, float]]:
    """Step weights in place.

    The kernel reads memory as it is told: gradients and buffers must have the type and the order of
    memory of their weight (`manifoldnet.optim.memory` sees to that).

    Args:
        works: weights that have a `layout`.
        hyper: of all of them.
        layouts: theirs.

    Returns:
        The least and the largest ‖x‖² of a slice of each, before the step.
    """
    dtype = works[0].x.dtype
    if any(work.x.dtype is not dtype for work in works):
        return [
            square
            for work, layout in zip(works, layouts, strict=True)
            for square in step([work], hyper, [layout])
        ]
    options: list[bytes] = []
    numbers: list[int] = []
    like = None  # most weights of a group have the same options
    for (x, g, geometry, b, first, s, top, unbias, share), layout in zip(
        works, layouts, strict=True
    ):
        if like != (geometry, first, unbias, share):
            like = geometry, first, unbias, share
            packed = _packed(geometry, first, unbias, share, hyper)
        options.append(packed)
        numbers += (x.data_ptr(), g.data_ptr(), _address(b), _address(s), _address(top), *layout)
    addresses = array.array("q", numbers)
    squares = array.array("d", bytes(16 * len(works)))
    getattr(library(), _NAMES[dtype])(
        b"".join(options),
        addresses.buffer_info()[0],
        squares.buffer_info()[0],
        len(works),
    )
    return list(zip(squares[::2], squares[1::2], strict=True))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _packed(
    geometry: SliceGeometry,
    first: bool,
    unbias: tuple[Any, Any],
    share: float,
    hyper: HyperParameters,
) -> bytes:
    return _OPTIONS.pack(
        *(geometry.radius is None, _RETRACTIONS[geometry.retraction], hyper.beta2 is not None),
        *(hyper.nesterov, hyper.amsgrad, first),
        *(geometry.radius or 0.0, hyper.lr, hyper.sign, hyper.keep, hyper.fresh),
        *(hyper.beta2 or 0.0, hyper.eps, *unbias, share),
    )


@cache
def _layout(shape: torch.Size, stride: tuple[int, ...], dim: Dim) -> Layout | None:
    """A slice as x[:, i, :] of (outer, count, inner), in the order of memory; None with holes."""
    order = sorted(range(len(shape)), key=lambda d: (-stride[d], d))
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and stride[d] != expected:
            return None
        expected *= shape[d]
    if not isinstance(dim, int):
        return 1, 1, expected
    place = order.index(dim)
    outer = inner = 1
    for d in order[:place]:
        outer *= shape[d]
    for d in order[place + 1 :]:
        inner *= shape[d]
    return outer, shape[dim], inner
