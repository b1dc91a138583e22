"""Steps by a C++ kernel (`step.cpp`), compiled on this machine at first use.

It takes float32 and float64 on a processor, in any order of memory without holes, and many weights
in one call. `step` is products, coefficients and update of slices while they are in the cache.
`gram` and `update` are the first and the last of these alone, for slices that extend over several
processes, which add up products in between. The kernel is compiled once for each machine and
version, in seconds (`build.py`). Where it cannot be had there is a warning, once, and it takes
nothing. It runs on torch's threads, as many as `torch.set_num_threads` says.

Memory is read as the kernel is told: gradients and buffers must have the type and the order of
memory of their weight (`manifoldnet.optim.memory` sees to that).
"""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry import Slices
from manifoldnet.optim.backends.cpp.build import library
from manifoldnet.optim.backends.layout import Layout, dense_layout
from manifoldnet.optim.overflow import largest_norm
from manifoldnet.optim.step import (
    Coefficients,
    Gram,
    HyperParameters,
    SliceGeometry,
    StepInput,
    Unbias,
    is_zero,
)

__all__ = ["Repeated", "coordinates", "gram", "is_available", "layout", "step", "update"]

# The kernel's structures, field for field.
_OPTIONS = struct.Struct("=q15d")
_NOTHING = bytes(_OPTIONS.size)
_RETRACTIONS = {"projective": 0, "additive": 3}
_FRAME = 4  # of the enumeration of retractions
_PRODUCTS = ("xx", "xg", "gg", "xb", "gb", "bb")
_TYPES = {torch.float32: "float", torch.float64: "double"}


def is_available() -> bool:
    """Test whether the kernel can be used; compiles it first if necessary, in seconds."""
    return library() is not None


def layout(p: Tensor, geometry: SliceGeometry) -> Layout | None:
    """The order of memory of a weight; None if the kernel cannot step weights in it."""
    return dense_layout(p, geometry.dim, _TYPES) if p.device.type == "cpu" else None


def step(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout],
    ends: Sequence[Tensor] | None = None,
) -> list[tuple[float, float]]:
    """Step weights, in place if no other place is given.

    Args:
        works: weights that have a `layout`.
        hyper: the numbers of their group.
        layouts: theirs.
        ends: where the new weights go; the gradient may be that place.

    Returns:
        The least and the largest ‖x‖² of a slice of each, before the step.
    """
    squares = array.array("d", bytes(16 * len(works)))
    start, _ = squares.buffer_info()
    places = range(start, start + 16 * len(works), 16)
    _call("step", works, hyper, layouts, places, ends=ends)
    return list(zip(squares[::2], squares[1::2], strict=True))


class Repeated:
    """A step of the same weights again, wherever their memory is then.

    Args:
        works: weights of one type that have a `layout`, with values in their buffers. Tensors in
            them are not kept.
        layouts: theirs.
    """

    def __init__(self, works: Sequence[StepInput], layouts: Sequence[Layout]) -> None:
        self._options = [(w.geometry, w.b is not None, w.s_factor) for w in works]
        self._dtype = works[0].x.dtype
        self._name = f"step_{_TYPES[self._dtype]}"
        self._limits = [
            largest_norm(self._dtype) ** 2 if w.geometry.radius is None else math.inf for w in works
        ]
        self._squares = array.array("d", bytes(16 * len(works)))
        start, _ = self._squares.buffer_info()
        rows = [(*[0] * 5, *each, start + 16 * i, 0, 0) for i, each in enumerate(layouts)]
        self._width = len(rows[0])
        self._table = array.array("q", [number for row in rows for number in row])

    def __call__(
        self,
        addresses: Sequence[Sequence[int]],
        hyper: HyperParameters,
        unbias: Sequence[Unbias],
    ) -> list[bool]:
        """Take the step.

        Args:
            addresses: of x, g, b, s and their maxima, as far as there are any.
            hyper: the numbers of the group.
            unbias: the bias corrections of each weight; none for SGD.

        Returns:
            For each weight, whether it may have a zero slice or a norm near overflow.
        """
        for place, column in enumerate(addresses):
            if column:
                self._table[place :: self._width] = array.array("q", column)
        packed: list[bytes] = []
        last: Any = None  # most weights of a group have the same options
        for options, numbers in zip(self._options, unbias or repeat((1.0, 1.0)), strict=False):
            if last != (options, numbers):
                last = options, numbers
                geometry, buffered, s_factor = options
                bytes_ = _packed(geometry, buffered, numbers, s_factor, hyper)
            packed.append(bytes_)
        call = getattr(library(), self._name)
        call(b"".join(packed), self._table.buffer_info()[0], len(packed))
        squares = iter(self._squares)
        return [
            not least > 0 or not most <= limit
            for least, most, limit in zip(squares, squares, self._limits, strict=True)
        ]


def gram(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout],
    first: Sequence[Gram] | None = None,
) -> list[Gram]:
    """The inner products of slices that a step depends on.

    Args:
        works: weights, or pieces of them, that have a `layout`.
        hyper: the numbers of their group.
        layouts: theirs.
        first: the products of the whole slices, to take what they have along x from gradients and
            buffers before these are multiplied (`Gram.refined`).

    Returns:
        The products of each in float64, one number per slice, dimensions kept.
    """
    names = [work.products(hyper) for work in works]
    counts = [count for _, count, _ in layouts]
    flat = [
        torch.zeros((6 if "xb" in some else 3) * count, dtype=torch.float64)
        for some, count in zip(names, counts, strict=True)
    ]
    along = [0] * len(works)
    if first is not None:
        factors = [_flat(f.along(f.xx == 0), count) for f, count in zip(first, counts, strict=True)]
        along = [factor.data_ptr() for factor in factors]
    read = [
        work if "xb" in some else work._replace(b=None)
        for work, some in zip(works, names, strict=True)
    ]
    places = [numbers.data_ptr() for numbers in flat]
    _call("gram", read, hyper, layouts, places, along)
    grams = []
    for work, some, count, numbers in zip(works, names, counts, flat, strict=True):
        shape = Slices(work.geometry.dim).shape_of(work.x.shape)
        products = dict(zip(_PRODUCTS, numbers.split(count), strict=False))
        grams.append(Gram(**{name: products[name].view(shape) for name in some}))
    return grams


def coordinates(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    geometries: Sequence[SliceGeometry],
    layouts: Sequence[Layout],
    ends: Sequence[Tensor],
) -> None:
    """Write the Riemannian gradients of weights, in the frames of their metrics, to `ends`.

    That is `g − ⟨x,g⟩/⟨x,x⟩ x` for each slice on a sphere, `‖x‖ g` under the scaled metric.

    Args:
        weights: that have a `layout`.
        gradients: in their type and order of memory.
        geometries: of their slices.
        layouts: theirs.
        ends: in their type and order of memory.
    """
    works = [
        StepInput(g, x, geometry)
        for x, g, geometry in zip(weights, gradients, geometries, strict=True)
    ]
    squares = array.array("d", bytes(16 * len(works)))
    start, _ = squares.buffer_info()
    places = range(start, start + 16 * len(works), 16)
    _call("step", works, HyperParameters(0.0), layouts, places, ends=ends, retraction=_FRAME)


def update(
    works: Sequence[StepInput], found: Sequence[Coefficients], layouts: Sequence[Layout]
) -> None:
    """Write weights, buffers and second moments by the coefficients of their slices, in float64.

    Args:
        works: weights, or pieces of them, that have a `layout`.
        found: the coefficients of their steps.
        layouts: theirs.
    """
    flat = []
    for work, c, (_, count, _) in zip(works, found, layouts, strict=True):
        for state, value in ((work.s, c.s), (work.max_s, c.max_s)):
            if state is not None and value is not None:
                state.copy_(value)
        if work.b is not None and is_zero(c.x3) and is_zero(c.b3):
            work.b.zero_()  # it has no value, or none that counts
        flat.append(_flat(c[:6], count))
    _call("update", works, None, layouts, [numbers.data_ptr() for numbers in flat])


def _call(
    task: str,
    works: Sequence[StepInput],
    hyper: HyperParameters | None,
    layouts: Sequence[Layout],
    numbers: Sequence[int],
    along: Sequence[int] | None = None,
    ends: Sequence[Tensor] | None = None,
    retraction: int | None = None,
) -> None:
    """Call the kernel, once for each type.

    Args:
        task: the function.
        works: weights.
        hyper: the numbers of their group; None for an update, which has the coefficients.
        layouts: theirs.
        numbers: the addresses of what is computed or given slice by slice.
        along: those of what g and b have along x.
        ends: where new weights go, if not to the place of the old ones.
        retraction: the kernel's number of it, if it is not that of the weights.
    """
    along = [0] * len(works) if along is None else along
    out = [0] * len(works) if ends is None else [end.data_ptr() for end in ends]
    empty = hyper is not None and hyper.keep == 0
    calls: dict[torch.dtype, tuple[list[bytes], array.array[int]]] = {}
    like, packed = None, _NOTHING  # most weights of a group have the same options
    for work, layout, place, part, end in zip(works, layouts, numbers, along, out, strict=True):
        x, g, geometry, b, first, s, max_s, unbias, s_factor, _ = work
        if hyper is not None:
            alike = geometry, b is None, first, unbias, s_factor
            if like != alike:
                carries = b is not None and not first
                like = alike
                packed = _packed(geometry, carries, unbias, s_factor, hyper, retraction)
            if b is not None and (first or empty):
                b.zero_()  # it has no value, or none that counts
        if (call := calls.get(x.dtype)) is None:
            call = calls[x.dtype] = [], array.array("q")
        options, table = call
        options.append(packed)
        table.extend(
            (
                *(x.data_ptr(), g.data_ptr(), _address(b), _address(s), _address(max_s)),
                *(*layout, place, part, end),
            )
        )
    for dtype, (options, table) in calls.items():
        function = getattr(library(), f"{task}_{_TYPES[dtype]}")
        function(b"".join(options), table.buffer_info()[0], len(options))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _flat(values: Iterable[Any], count: int) -> Tensor:
    """Numbers of slices, kind by kind; None stands for zeros."""
    parts = [
        torch.as_tensor(0.0 if value is None else value, dtype=torch.float64).flatten()
        for value in values
    ]
    return torch.cat([part.expand(count) for part in parts])


def _packed(
    geometry: SliceGeometry,
    buffered: bool,
    unbias: Unbias,
    s_factor: float,
    hyper: HyperParameters,
    retraction: int | None = None,
) -> bytes:
    """The numbers of a group and of a weight, as the kernel combines them.

    The gradient is d = (constant + root ‖x‖ + linear ⟨x,x⟩) g, the buffer n = fresh d + keep b,
    the step −lr (direct d + heavy n).

    Args:
        geometry: of the slices.
        buffered: whether there is a buffer that has values.
        unbias: the bias corrections.
        s_factor: of ⟨d, d⟩ in the second moment.
        hyper: the numbers of the group.
        retraction: the kernel's number of it, if it is not that of the geometry.
    """
    radius, adam = geometry.radius, hyper.beta2 is not None
    factors = [0.0, 0.0, 0.0]
    factors[0 if radius is not None else 1 if hyper.displacement else 2] = hyper.sign
    carries = buffered and hyper.keep != 0
    way = _RETRACTIONS.get(geometry.retraction, 2 if radius is None else 1)
    way = way if retraction is None else retraction
    return _OPTIONS.pack(
        *(way, radius or 0.0, hyper.lr),
        *factors,
        *(hyper.keep if carries else 0.0, hyper.fresh if carries or adam else 1.0),
        *((1.0, hyper.keep) if hyper.nesterov else (0.0, 1.0)),
        *(hyper.beta2 or 0.0, hyper.eps, *unbias, hyper.decay, s_factor),
    )
