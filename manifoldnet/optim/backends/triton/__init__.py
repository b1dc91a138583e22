"""Steps on an accelerator by Triton: few launches, however many weights there are.

A bucket holds the weights of one device, type, geometry and algorithm. A table on the device has a
row for each of them: addresses, sizes and numbers (`kernels`). The work of one program is

    rows               a slice: products, coefficients, update                        1 launch
    columns, whole     a tile of slices over some rows: products, of which the last   2 launches
                       program of a tile makes coefficients; then the update

Long slices of which there are few go the way of columns. Nothing waits for the device, and nothing
is read from it. What does not change from one step to the next is kept in `Plans`; a step in which
nothing has changed copies nothing to the device, and may be captured into a CUDA graph.

Triton comes with torch's builds for CUDA and ROCm, and is imported at the first step. Its
interpreter (TRITON_INTERPRET=1) runs the kernels on a processor, slowly.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import Slices
from manifoldnet.geometry.slices import computed_in
from manifoldnet.optim.backends.layout import Layout, dense_layout
from manifoldnet.optim.overflow import largest_norm
from manifoldnet.optim.step import (
    Coefficients,
    Gram,
    HyperParameters,
    SliceGeometry,
    StepInput,
    is_zero,
)

__all__ = ["Plans", "gram", "is_available", "layout", "step", "update"]

_LANES = 1024  # numbers of a slice in one piece that its program reads at once
_ABREAST = 256  # lanes of a tile
_HEIGHT = 4  # rows of a tile that are read at once
_WARPS = 8
_PROGRAMS = 1 << 13  # that a bucket is divided into, about, if it is large enough
_MOST_PLANS = 256

_RETRACTIONS = {"projective": 0, "geodesic": 1, "additive": 2}
_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


@cache
def is_available(device: torch.device) -> bool:
    """Test whether the kernels run on a device: one of CUDA or ROCm, with Triton installed."""
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return False
    return _installed()


def layout(p: Tensor, geometry: SliceGeometry) -> Layout | None:
    """The order of memory of a weight; None if the kernels cannot step weights in it.

    They read addresses: a weight must be nothing but memory, without holes.
    """
    if p.is_meta or p.numel() == 0:
        return None
    return dense_layout(p, geometry.dim, _NAMES)


class Plans:
    """Tables and workspaces of the buckets of an optimizer, from one step to the next.

    A CUDA graph reads those that it was captured with: they live as long as this does.
    """

    def __init__(self) -> None:
        self._plans: dict[object, _Plan] = {}
        self._captured: list[_Plan] = []

    def alarming(self) -> set[int]:
        """Addresses of weights that had a zero slice, or whose norm is on its way to overflow.

        In some step since this was last asked. It waits for the device.
        """
        found: set[int] = set()
        for plan in [*self._plans.values(), *self._captured]:
            flags = plan.flags.view(-1, 2).any(1).tolist()
            found.update(x for x, flag in zip(plan.weights, flags, strict=True) if flag)
            plan.flags.zero_()
        return found

    def plan(self, bucket: _Bucket) -> _Plan:
        """The plan of a bucket, with a table of what it is to do now."""
        content = bucket.content()
        capturing = _capturing(bucket.device)
        key = bucket.options, bucket.device, tuple(bucket.layouts), bucket.weights()
        plan = self._plans.get(key)
        if plan is not None and plan.content == content:
            plan.captured = plan.captured or capturing
            return plan
        if capturing:
            raise RuntimeError(
                "a step that goes into a CUDA graph must have the addresses and numbers of the "
                "step before it: take some steps first, with capturable=True and lr as a tensor on "
                "the device, and keep gradients where they are (zero_grad(set_to_none=False))"
            )
        if plan is None or plan.captured:
            if plan is not None:
                self._captured.append(plan)
            elif len(self._plans) >= _MOST_PLANS:
                self._captured += [old for old in self._plans.values() if old.captured]
                self._plans.clear()
            plan = self._plans[key] = _Plan(bucket)
        plan.write(content)
        return plan


def step(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout],
    plans: Plans | None = None,
    counts: Sequence[Tensor] | None = None,
) -> None:
    """Step weights in place.

    The kernels read memory as they are told: gradients must have the type and the order of memory
    of their weight; buffers that order, in the type that the weight is computed in; second moments
    that type, contiguous (`manifoldnet.optim.memory` sees to that).

    Args:
        works: weights that have a `layout`. The learning rate and bias corrections may be tensors
            on their device: float32 or float64 are read there, when the kernels run.
        hyper: of all of them.
        layouts: theirs.
        plans: of their optimizer; without it, everything is made anew.
        counts: step counts on the device (float32 or float64), which bias corrections are computed
            from in place of `StepInput.unbias`.

    Raises:
        RuntimeError: while a CUDA graph is captured, if anything has changed since the last step.
    """
    plans = Plans() if plans is None else plans
    buckets = _buckets(works, hyper, layouts, counts)
    for bucket, plan in [(bucket, plans.plan(bucket)) for bucket in buckets]:
        with _on(bucket.device):
            _step(bucket.options, plan)


def gram(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout],
    first: Sequence[Gram] | None = None,
) -> list[Gram]:
    """The inner products of slices that a step depends on, in double precision.

    For slices that have other pieces elsewhere. One launch for each bucket.

    Args:
        works: weights that have a `layout`.
        hyper: of all of them.
        layouts: theirs.
        first: their products, to take what they have along x from the gradient and the buffer
            before these are multiplied (`Gram.refined`). Of use for float64 only: products of
            smaller types are exact.
    """
    found: dict[int, Gram] = {}
    for bucket in _buckets(works, hyper, layouts, pieces=True):
        plan = _Plan(bucket)
        known = None if first is None else [first[place] for place in bucket.places]
        kept = plan.write(bucket.content(), grams=known)
        with _on(bucket.device):
            _launch_gram(bucket.options, plan, tangent=known is not None, mix=False)
        del kept
        sums = plan.sums[6 if known else 0 :]
        for place, work, begin, (_, count, _) in zip(
            bucket.places, bucket.works, plan.begins, bucket.layouts, strict=True
        ):
            names = work.products(hyper)
            shape = Slices(work.geometry.dim).shape_of(work.x.shape)
            rows = sums[:6, begin : begin + count].reshape(6, *shape)
            products: dict[str, Any] = {name: rows[_PRODUCTS.index(name)] for name in names}
            found[place] = Gram(**products)
    return [found[place] for place in range(len(works))]


def update(
    works: Sequence[StepInput],
    coefficients: Sequence[Coefficients],
    layouts: Sequence[Layout],
) -> None:
    """Write weights, buffers and second moments by the coefficients of their slices.

    One launch for each bucket.
    """
    hyper = HyperParameters(lr=0.0, keep=1.0)  # a buffer that has a value is read
    for bucket in _buckets(works, hyper, layouts, pieces=True):
        plan = _Plan(bucket)
        chosen = [coefficients[place] for place in bucket.places]
        kept = plan.write(bucket.content(), coefficients=chosen)
        with _on(bucket.device):
            _launch_update(bucket.options, plan, moments=bucket.works[0].s is not None)
        del kept


# --- buckets ----------------------------------------------------------------------------------

_PRODUCTS = Gram._fields[:6]


class _Options(NamedTuple):
    """The constants of a kernel."""

    weight: torch.dtype
    buffer: bool
    adam: bool
    nesterov: bool
    amsgrad: bool
    sphere: bool
    displacement: bool
    retraction: int
    strided: bool

    def types(self) -> dict[str, Any]:
        """The element types as arguments of a kernel."""
        language = import_module("triton.language")
        weight, state = _NAMES[self.weight], _NAMES[computed_in(self.weight)]
        return {
            "WEIGHT": getattr(language, weight),
            "STATE": getattr(language, state),
            "BUFFER": self.buffer,
        }

    def constants(self) -> dict[str, Any]:
        """All as arguments of a kernel that makes coefficients."""
        return {
            **self.types(),
            "ADAM": self.adam,
            "NESTEROV": self.nesterov,
            "AMSGRAD": self.amsgrad,
            "SPHERE": self.sphere,
            "DISPLACEMENT": self.displacement,
            "RETRACTION": self.retraction,
        }


class _Bucket:
    """Weights that are stepped by the same launches."""

    def __init__(self, options: _Options, device: torch.device, hyper: HyperParameters) -> None:
        self.options, self.device, self.hyper = options, device, hyper
        self.places: list[int] = []
        self.works: list[StepInput] = []
        self.layouts: list[Layout] = []
        self.counts: list[Tensor | None] = []

    def weights(self) -> tuple[int, ...]:
        """The addresses of the weights."""
        return tuple(work.x.data_ptr() for work in self.works)

    def content(self) -> list[tuple[Any, ...]]:
        """The first columns of the table, a row for each weight: whole numbers, then others."""
        hyper = self.hyper
        lr_at, lr, lr_bit = _number(hyper.lr, self.device, 1)
        limit = largest_norm(self.options.weight) ** 2
        if self.options.sphere:
            limit = float("inf")
        mixes = hyper.beta2 is not None
        before, between = (lr, hyper.sign, hyper.keep), (hyper.beta2 or 0.0, hyper.eps)
        found = []
        begin = 0
        for work, layout_, count in zip(self.works, self.layouts, self.counts, strict=True):
            x, g, geometry, b, first, s, max_s, (unbias1, unbias2), s_factor, _ = work
            at1, number1, bit1 = _number(unbias1, self.device, 2)
            at2, number2, bit2 = _number(unbias2, self.device, 4)
            count_at, _, count_bit = (
                (0, 0.0, 0) if count is None else _number(count, self.device, 8)
            )
            carries = b is not None and not first and not is_zero(hyper.keep)
            found.append(
                (
                    *(x.data_ptr(), g.data_ptr(), _address(b), _address(s), _address(max_s)),
                    *(lr_at, at1, at2, count_at, lr_bit | bit1 | bit2 | count_bit),
                    *(*layout_, begin, carries),
                    *before,
                    hyper.fresh if mixes or carries else 1.0,
                    *between,
                    *(number1, number2, s_factor, geometry.radius or 0.0, limit),
                )
            )
            begin += layout_[1]
        return found


def _buckets(
    works: Sequence[StepInput],
    hyper: HyperParameters,
    layouts: Sequence[Layout],
    counts: Sequence[Tensor] | None = None,
    *,
    pieces: bool = False,
) -> Iterable[_Bucket]:
    """Weights by device, type, geometry and algorithm; with `pieces`, all are strided."""
    found: dict[object, _Bucket] = {}
    for place, (work, layout_) in enumerate(zip(works, layouts, strict=True)):
        x, geometry = work.x, work.geometry
        strided = pieces or not _in_one_piece(layout_)
        sphere, buffer, max_s = (
            geometry.radius is not None,
            work.b is not None,
            work.max_s is not None,
        )
        key = x.dtype, x.device, sphere, geometry.retraction, buffer, max_s, strided
        bucket = found.get(key)
        if bucket is None:
            options = _Options(
                x.dtype,
                buffer,
                hyper.beta2 is not None,
                hyper.nesterov,
                max_s,
                sphere,
                hyper.displacement,
                _RETRACTIONS[geometry.retraction],
                strided,
            )
            bucket = found[key] = _Bucket(options, x.device, hyper)
        bucket.places.append(place)
        bucket.works.append(work)
        bucket.layouts.append(layout_)
        bucket.counts.append(None if counts is None else counts[place])
    return found.values()


def _in_one_piece(layout_: Layout) -> bool:
    """Test for slices that a program each can step: long ones only if there are many."""
    outer, count, inner = layout_
    return outer == 1 and inner <= max(1 << 13, 64 * count)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _number(value: float | Tensor, device: torch.device, bit: int) -> tuple[int, float, int]:
    """The address of a number on the device, or the number; the bit if it is float32 there."""
    if not isinstance(value, Tensor):
        return 0, value, 0
    if value.device != device or value.dtype not in (torch.float32, torch.float64):
        return 0, float(value), 0
    return value.data_ptr(), 0.0, bit if value.dtype == torch.float32 else 0


# --- plans ------------------------------------------------------------------------------------


class _Plan:
    """The table of a bucket, and the memory that its launches work in.

    Attributes:
        weights: their addresses.
        content: what the table was made of.
        begins: where the slices of each weight begin among those of all.
        programs: how many there are.
        places: for each program, what it works on.
        sums: products and coefficients, six rows each.
        flags: two for each weight, of zero slices and of norms near overflow.
        captured: whether a CUDA graph reads this.
    """

    def __init__(self, bucket: _Bucket) -> None:
        self.device, layouts = bucket.device, bucket.layouts
        self.weights = bucket.weights()
        self.content: list[tuple[Any, ...]] = []
        self.captured = False
        self.flags = torch.zeros(2 * len(layouts), dtype=torch.int32, device=self.device)
        counts = [count for _, count, _ in layouts]
        self.begins = list(accumulate(counts, initial=0))[:-1]
        slices = sum(counts)
        if not bucket.options.strided:
            numbers = torch.arange(len(layouts)).repeat_interleave(torch.tensor(counts))
            self.programs, self.places = slices, numbers.to(self.device, torch.int32)
            widest = max(inner for _, _, inner in layouts)
            self.lanes = min(_LANES, 1 << max(5, (widest - 1).bit_length()))
            self.sums = torch.empty(0, dtype=torch.float64, device=self.device)
            return
        total = sum(outer * count * inner for outer, count, inner in layouts)
        rows = total // (_ABREAST * _PROGRAMS)
        self.high = min(max(32, 1 << rows.bit_length()), 1024)
        tiles, length = _tiles(layouts, self.high)
        self.programs = len(tiles)
        self.places = torch.tensor(tiles, dtype=torch.int32).to(self.device)
        self.sums, self.partial = (
            torch.empty(size, dtype=torch.float64, device=self.device)
            for size in ((12, slices), (length,))
        )
        self.counters = torch.zeros(len(tiles), dtype=torch.int32, device=self.device)

    def write(
        self,
        content: list[tuple[Any, ...]],
        *,
        grams: Sequence[Gram] | None = None,
        coefficients: Sequence[Coefficients] | None = None,
    ) -> list[Tensor]:
        """Make the table; return tensors that it has addresses of, to keep until the launch.

        Args:
            content: of the bucket.
            grams: first products, in place of those that the plan has room for.
            coefficients: in place of those that the plan has room for.
        """
        kept: list[Tensor] = []

        def at(tensor: Tensor | float | None) -> int:
            if not isinstance(tensor, Tensor):
                return 0
            kept.append(tensor.to(torch.float64).contiguous())
            return kept[-1].data_ptr()

        rows = bytearray()
        for place, (fields, begin) in enumerate(zip(content, self.begins, strict=True)):
            ours = [row.data_ptr() + 8 * begin for row in self.sums] or [0] * 12
            products, mixes, same, moments = ours[:6], ours[6:], [0.0] * 6, [0, 0]
            if grams is not None:
                products = [at(product) for product in grams[place][:6]]
            if coefficients is not None:
                found = coefficients[place]
                mixes = [at(number) for number in found[:6]]
                same = [0.0 if isinstance(n, Tensor) else float(n) for n in found[:6]]
                moments = [at(found.s), at(found.max_s)]
            rows += _ROW.pack(*fields, *products, *mixes, *same, *moments)
        table = torch.frombuffer(rows, dtype=torch.int64)
        # From ordinary memory a copy would wait for the device.
        table = table.pin_memory() if self.device.type == "cuda" else table
        self.table = table.to(self.device, non_blocking=True, copy=True)
        self.content = content
        return kept


# The columns of the table (`kernels`).
_ROW = struct.Struct("=15q11d12q6d2q")


def _tiles(layouts: Sequence[Layout], high: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """The programs of strided slices, and the length of their partial sums.

    For each: the number of its weight, the first slice of its tile, its place among the programs of
    the tile, and where the partial sums of the tile begin.
    """
    programs: list[tuple[int, int, int, int]] = []
    length = 0
    for number, (outer, count, inner) in enumerate(layouts):
        alone = 2 * inner > _ABREAST
        abreast, width = (1, 1) if alone else (_ABREAST // inner, _ABREAST)
        parts = -(-outer * -(-inner // _ABREAST) // high)
        for first in range(0, count, abreast):
            programs += [(number, first, part, length) for part in range(parts)]
            length += parts * 6 * width
    return programs, length


# --- launches ---------------------------------------------------------------------------------


def _step(options: _Options, plan: _Plan) -> None:
    if not options.strided:
        warps = max(1, plan.lanes // 256)
        _kernels().rows[(plan.programs,)](
            plan.table,
            plan.places,
            plan.flags,
            LANES=plan.lanes,
            num_warps=warps,
            **options.constants(),
        )
        return
    _launch_gram(options, plan, tangent=False, mix=True)
    _launch_update(options, plan, moments=False)


def _launch_gram(options: _Options, plan: _Plan, *, tangent: bool, mix: bool) -> None:
    _kernels().gram[(plan.programs,)](
        plan.table,
        plan.places,
        plan.partial,
        plan.counters,
        plan.flags,
        plan.high,
        LANES=_ABREAST,
        HEIGHT=_HEIGHT,
        num_warps=_WARPS,
        TANGENT=tangent,
        MIX=mix,
        **options.constants(),
    )


def _launch_update(options: _Options, plan: _Plan, *, moments: bool) -> None:
    _kernels().update[(plan.programs,)](
        plan.table,
        plan.places,
        plan.high,
        LANES=_ABREAST,
        HEIGHT=_HEIGHT,
        num_warps=_WARPS,
        STORE=moments,
        AMSGRAD=options.amsgrad,
        **options.types(),
    )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """The context of a device: Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _capturing(device: torch.device) -> bool:
    """Test whether launches go into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _kernels() -> Any:
    return import_module("manifoldnet.optim.backends.triton.kernels")
