"""Steps on an accelerator by Triton: few launches, however many weights there are.

A bucket holds the weights of one device, type, geometry and algorithm. A table on the device has a
row for each: addresses, sizes and numbers. The work of one program is

    rows               a slice: products, coefficients, update                        1 launch
    columns, whole     a tile of slices over some rows: products, of which the last   2 launches
                       program of a tile makes coefficients; then the update

Inner products are formed and summed in double precision, where the products of smaller types are
exact: what is left of ‖v‖² − ⟨v,x⟩²/‖x‖² is good to the rounding of v itself. Weights in double
precision get their tangent parts formed and measured once more. Nothing waits for the device. The
formulas are those of `manifoldnet.optim.step`, names and all.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from manifoldnet.optim.step import HyperParameters, StepInput

__all__ = ["step"]

# The columns of the table: addresses, sizes, numbers.
_X, _G, _B, _S, _TOP, _LR_AT, _STEP_AT = (tl.constexpr(i) for i in range(7))
_OUTER, _COUNT, _INNER, _SLICE, _FIRST = (tl.constexpr(i) for i in range(7, 12))
_LR, _SIGN, _KEEP, _FRESH, _BETA2, _EPS, _UNBIAS1, _UNBIAS2, _SHARE, _RADIUS = (
    tl.constexpr(i) for i in range(12, 22)
)
_COLUMNS = tl.constexpr(22)

_LANES = 1024  # numbers that a program reads at once
_HIGH = 256  # rows of a tile that are one program's
_LONG = 1 << 15  # numbers of a long slice that are one program's

_RETRACTIONS = {"projective": 0, "geodesic": 1, "additive": 2}
_PROJECTIVE, _GEODESIC, _ADDITIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def _number(row, column: tl.constexpr):
    return tl.load(row + column).to(tl.float64, bitcast=True)


@triton.jit
def _double(x):
    if x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(tl.float64)


@triton.jit
def _carry(rr, s_u, s_n, uu, un, radius, SPHERE: tl.constexpr, RETRACTION: tl.constexpr):
    one = rr * 0 + 1
    if RETRACTION == _ADDITIVE:
        a, b, c, d, e = 1 + s_u, one, s_n, one * 0, one
    elif RETRACTION == _PROJECTIVE:
        r = tl.sqrt(rr)
        end = tl.sqrt(rr + uu)
        turn = -un / (end + r)
        a = radius / end
        b, c, d, e = a, turn * (1 / r + 1 / end), turn / end, one
    else:
        unit = rr
        if SPHERE:
            unit = one * (radius * radius)
        turned = tl.sqrt(uu / unit)
        angle = tl.minimum(turned, 4503599627370496.0)
        cos = tl.cos(angle)
        small = angle < 1e-150
        sinc = tl.where(small, 1.0, tl.sin(angle) / tl.where(small, 1.0, turned))
        half = tl.sin(angle / 2)
        one_minus_cos = tl.where(small, 0.5, 2 * half * half / tl.where(small, 1.0, uu / unit))
        p = un / unit
        if SPHERE:
            size = radius / tl.sqrt(cos * cos * rr + sinc * sinc * uu)
            a, b, c, d, e = size * cos, size * sinc, -p * sinc, -p * one_minus_cos, one
            # What rounding of the radius left along the new point.
            off = (a * c * rr + b * (d * uu + un)) / unit
            c -= off * a
            d -= off * b
        else:
            e = tl.exp(s_u)
            a, b = e * cos, e * sinc
            c, d = e * (s_n * cos - p * sinc), e * (s_n * sinc - p * one_minus_cos)
    return a, b, c, d, e


@triton.jit
def _coefficients(
    row,
    at,
    mask,
    xx,
    xg,
    gg,
    xb,
    gb,
    bb,
    STATE: tl.constexpr,
    TANGENT: tl.constexpr,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """`step.coefficients` of the slices `at` of a weight; second moments are updated."""
    sign, keep = _number(row, _SIGN), _number(row, _KEEP)
    first = tl.load(row + _FIRST)
    zero = xx == 0
    per = tl.where(zero, 0.0, 1 / tl.where(zero, 1.0, xx))
    scale = sign * (xx * 0 + 1)
    if not SPHERE:
        scale = sign * xx
    n_g, n_b = scale, 0.0
    if BUFFER:
        n_g = tl.where(first != 0, scale, scale * _number(row, _FRESH))
        n_b = tl.where(first != 0, 0.0, keep)
    along_g, along_b = xg * per, xb * per
    if not TANGENT:
        gg = tl.maximum(gg - along_g * xg, 0.0)
        gb = gb - along_g * xb
        bb = tl.maximum(bb - along_b * xb, 0.0)
    lr_at = tl.load(row + _LR_AT)
    lr = _number(row, _LR)
    if lr_at != 0:
        lr = tl.load(lr_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
    rate = lr * (xx * 0 + 1)
    if ADAM:
        squared = gg
        if not SPHERE:
            squared = xx * (gg + along_g * xg)
        s_at = tl.load(row + _S).to(tl.pointer_type(STATE)) + at
        beta2 = _number(row, _BETA2)
        s = tl.load(s_at, mask=mask, other=0.0).to(tl.float64)
        s = beta2 * s + (1 - beta2) * squared * _number(row, _SHARE)
        s = s.to(STATE).to(tl.float64)
        tl.store(s_at, s.to(STATE), mask=mask)
        if AMSGRAD:
            top_at = tl.load(row + _TOP).to(tl.pointer_type(STATE)) + at
            s = tl.maximum(tl.load(top_at, mask=mask, other=0.0).to(tl.float64), s)
            tl.store(top_at, s.to(STATE), mask=mask)
        unbias1, unbias2 = _number(row, _UNBIAS1), _number(row, _UNBIAS2)
        step_at = tl.load(row + _STEP_AT)
        if step_at != 0:
            t = tl.load(step_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
            unbias1 = 1 - tl.exp(t * tl.log(keep))
            unbias2 = 1 - tl.exp(t * tl.log(beta2))
        root = tl.sqrt(s / unbias2) + _number(row, _EPS)
        # Without eps: where there never was a gradient there is no step.
        rate = tl.where(root == 0, 0.0, lr / (tl.where(root == 0, 1.0, root) * unbias1))
    u_g, u_b = -rate * n_g, -rate * n_b
    if NESTEROV:
        u_g, u_b = -rate * (scale + keep * n_g), -rate * keep * n_b
    of_g, of_b = u_g * u_g * gg, u_b * u_b * bb
    uu = tl.maximum(of_g + 2 * u_g * u_b * gb + of_b, 0.0)
    un = u_g * n_g * gg + (u_g * n_b + u_b * n_g) * gb + u_b * n_b * bb
    s_u, s_n = xx * 0, xx * 0
    if not SPHERE:
        s_u, s_n = u_g * along_g + u_b * along_b, n_g * along_g + n_b * along_b
    a, b, c, d, e = _carry(xx, s_u, s_n, uu, un, _number(row, _RADIUS), SPHERE, RETRACTION)
    still = zero
    if SPHERE:
        still = zero | (uu == 0)
    x1 = tl.where(still, 1.0, a - b * (u_g * along_g + u_b * along_b))
    x2, x3 = tl.where(still, 0.0, b * u_g), tl.where(still, 0.0, b * u_b)
    t_g, t_b = d * u_g + e * n_g, d * u_b + e * n_b
    b1 = tl.where(zero, 0.0, c - (t_g * along_g + t_b * along_b))
    b2, b3 = tl.where(zero, 0.0, t_g), tl.where(zero, 0.0, t_b)
    return x1, x2, x3, b1, b2, b3


@triton.jit
def _read(row, at, mask, WEIGHT: tl.constexpr, STATE: tl.constexpr, BUFFER: tl.constexpr):
    """Weight, gradient and buffer at some places, in double precision."""
    x = tl.load(tl.load(row + _X).to(tl.pointer_type(WEIGHT)) + at, mask=mask, other=0.0)
    g = tl.load(tl.load(row + _G).to(tl.pointer_type(WEIGHT)) + at, mask=mask, other=0.0)
    x, g = _double(x), _double(g)
    b = x * 0
    if BUFFER:
        b = tl.load(tl.load(row + _B).to(tl.pointer_type(STATE)) + at, mask=mask, other=0.0)
        b = tl.where(tl.load(row + _FIRST) == 0, b.to(tl.float64), 0.0)
    return x, g, b


@triton.jit
def _write(
    row,
    at,
    mask,
    x1,
    x2,
    x3,
    b1,
    b2,
    b3,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
):
    x, g, b = _read(row, at, mask, WEIGHT, STATE, BUFFER)
    end = x1 * x + x2 * g + x3 * b
    if tl.float64 != WEIGHT:
        end = end.to(tl.float32)  # no conversion leads from double to half precision
    tl.store(tl.load(row + _X).to(tl.pointer_type(WEIGHT)) + at, end.to(WEIGHT), mask=mask)
    if BUFFER:
        carried = b1 * x + b2 * g + b3 * b
        tl.store(tl.load(row + _B).to(tl.pointer_type(STATE)) + at, carried.to(STATE), mask=mask)


@triton.jit
def _rows(
    table,
    weights,
    LANES: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """A step of one slice that lies in one piece."""
    program = tl.program_id(0)
    row = table + tl.load(weights + program).to(tl.int64) * _COLUMNS
    slice_ = program - tl.load(row + _SLICE)
    inner = tl.load(row + _INNER)
    start = slice_ * inner
    lanes = tl.arange(0, LANES)
    xx = tl.zeros([LANES], tl.float64)
    xg = tl.zeros([LANES], tl.float64)
    gg = tl.zeros([LANES], tl.float64)
    xb = tl.zeros([LANES], tl.float64)
    gb = tl.zeros([LANES], tl.float64)
    bb = tl.zeros([LANES], tl.float64)
    for place in range(0, inner, LANES):
        mask = place + lanes < inner
        x, g, b = _read(row, start + place + lanes, mask, WEIGHT, STATE, BUFFER)
        xx += x * x
        xg += x * g
        gg += g * g
        if BUFFER:
            xb += x * b
            gb += g * b
            bb += b * b
    xx, xg, gg = tl.sum(xx, 0), tl.sum(xg, 0), tl.sum(gg, 0)
    xb, gb, bb = tl.sum(xb, 0), tl.sum(gb, 0), tl.sum(bb, 0)
    if tl.float64 == WEIGHT:
        per = tl.where(xx == 0, 0.0, 1 / tl.where(xx == 0, 1.0, xx))
        gg_ = tl.zeros([LANES], tl.float64)
        gb_ = tl.zeros([LANES], tl.float64)
        bb_ = tl.zeros([LANES], tl.float64)
        for place in range(0, inner, LANES):
            mask = place + lanes < inner
            x, g, b = _read(row, start + place + lanes, mask, WEIGHT, STATE, BUFFER)
            g -= xg * per * x
            b -= xb * per * x
            gg_ += g * g
            gb_ += g * b
            bb_ += b * b
        gg, gb, bb = tl.sum(gg_, 0), tl.sum(gb_, 0), tl.sum(bb_, 0)
    x1, x2, x3, b1, b2, b3 = _coefficients(
        row, slice_, True, xx, xg, gg, xb, gb, bb,
        STATE, tl.float64 == WEIGHT, BUFFER, ADAM, NESTEROV, AMSGRAD, SPHERE, RETRACTION,
    )  # fmt: skip
    for place in range(0, inner, LANES):
        mask = place + lanes < inner
        _write(row, start + place + lanes, mask, x1, x2, x3, b1, b2, b3, WEIGHT, STATE, BUFFER)


# A slice is x[:, i, :] of (outer, count, inner). A tile is some slices side by side, with a lane for
# each of their numbers in one row; of slices longer than that, one, cut into chunks of lanes. A
# program has some rows of a tile.


@triton.jit
def _tile(row, tiles, program, LANES: tl.constexpr):
    """Where a program's tile is: its lanes in the first row, and how the rows go on."""
    outer, count, inner = tl.load(row + _OUTER), tl.load(row + _COUNT), tl.load(row + _INNER)
    first = tl.load(tiles + program * 3 + 1).to(tl.int64)
    part = tl.load(tiles + program * 3 + 2).to(tl.int64)
    lanes = tl.arange(0, LANES)
    chunks = (inner + LANES - 1) // LANES
    abreast = tl.where(chunks > 1, 1, tl.minimum(LANES // inner, count - first))
    return outer, count, inner, first, part, lanes, chunks, abreast


@triton.jit
def _at(count, inner, first, abreast, chunks, lanes, r, LANES: tl.constexpr):
    """The places of the lanes in a row, and which of them there are."""
    chunk = r % chunks
    at = (r // chunks) * count * inner + first * inner + chunk * LANES + lanes
    long = tl.where(chunks > 1, inner - chunk * LANES, abreast * inner)
    return at, lanes < long


@triton.jit
def _by_slice(v, scratch, lanes, inner, chunks, abreast, LANES: tl.constexpr):
    """The sums of slices, one a lane, from those of lanes."""
    if chunks > 1:
        return tl.sum(v, 0) + tl.zeros([LANES], tl.float64)
    if inner == 1:
        return v
    tl.store(scratch + lanes, v)
    tl.debug_barrier()
    found = tl.zeros([LANES], tl.float64)
    for j in range(inner):
        found += tl.load(scratch + lanes * inner + j, mask=lanes < abreast, other=0.0)
    tl.debug_barrier()
    return found


@triton.jit
def _gram(
    table,
    tiles,
    partial,
    counters,
    sums,
    coefficients,
    slices,
    LANES: tl.constexpr,
    HIGH: tl.constexpr,
    TANGENT: tl.constexpr,
    MIX: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """The products of slices that are strewn; with MIX, their coefficients."""
    program = tl.program_id(0)
    row = table + tl.load(tiles + program * 3).to(tl.int64) * _COLUMNS
    outer, count, inner, first, part, lanes, chunks, abreast = _tile(row, tiles, program, LANES)
    begin = tl.load(row + _SLICE) + first  # among the slices of the bucket
    xx = tl.zeros([LANES], tl.float64)
    xg = tl.zeros([LANES], tl.float64)
    gg = tl.zeros([LANES], tl.float64)
    xb = tl.zeros([LANES], tl.float64)
    gb = tl.zeros([LANES], tl.float64)
    bb = tl.zeros([LANES], tl.float64)
    along_g = tl.zeros([LANES], tl.float64)
    along_b = tl.zeros([LANES], tl.float64)
    if TANGENT:
        own = begin + tl.where(chunks > 1, 0, lanes // inner)
        there = lanes < tl.where(chunks > 1, LANES, abreast * inner)
        square = tl.load(sums + own, mask=there, other=0.0)
        per = tl.where(square == 0, 0.0, 1 / tl.where(square == 0, 1.0, square))
        along_g = per * tl.load(sums + slices + own, mask=there, other=0.0)
        if BUFFER:
            along_b = per * tl.load(sums + 3 * slices + own, mask=there, other=0.0)
    rows = outer * chunks
    for r in range(part * HIGH, tl.minimum((part + 1) * HIGH, rows)):
        at, mask = _at(count, inner, first, abreast, chunks, lanes, r, LANES)
        x, g, b = _read(row, at, mask, WEIGHT, STATE, BUFFER)
        if not TANGENT:
            xx += x * x
            xg += x * g
            xb += x * b
        g -= along_g * x
        b -= along_b * x
        gg += g * g
        gb += g * b
        bb += b * b
    mine = partial + program * 6 * LANES + lanes
    tl.store(mine, xx)
    tl.store(mine + LANES, xg)
    tl.store(mine + 2 * LANES, gg)
    tl.store(mine + 3 * LANES, xb)
    tl.store(mine + 4 * LANES, gb)
    tl.store(mine + 5 * LANES, bb)
    tl.debug_barrier()
    parts = (rows + HIGH - 1) // HIGH
    if tl.atomic_add(counters + program - part, 1) == parts - 1:
        # All parts of the tile are there: they are added in their order, so that it does not matter
        # who is last.
        xx = tl.zeros([LANES], tl.float64)
        xg = tl.zeros([LANES], tl.float64)
        gg = tl.zeros([LANES], tl.float64)
        xb = tl.zeros([LANES], tl.float64)
        gb = tl.zeros([LANES], tl.float64)
        bb = tl.zeros([LANES], tl.float64)
        for other in range(program - part, program - part + parts):
            theirs = partial + other * 6 * LANES + lanes
            xx += tl.load(theirs)
            xg += tl.load(theirs + LANES)
            gg += tl.load(theirs + 2 * LANES)
            xb += tl.load(theirs + 3 * LANES)
            gb += tl.load(theirs + 4 * LANES)
            bb += tl.load(theirs + 5 * LANES)
        scratch = partial + (program - part) * 6 * LANES
        tl.debug_barrier()
        xx = _by_slice(xx, scratch, lanes, inner, chunks, abreast, LANES)
        xg = _by_slice(xg, scratch, lanes, inner, chunks, abreast, LANES)
        gg = _by_slice(gg, scratch, lanes, inner, chunks, abreast, LANES)
        xb = _by_slice(xb, scratch, lanes, inner, chunks, abreast, LANES)
        gb = _by_slice(gb, scratch, lanes, inner, chunks, abreast, LANES)
        bb = _by_slice(bb, scratch, lanes, inner, chunks, abreast, LANES)
        mask = lanes < abreast
        if TANGENT:
            xx = tl.load(sums + begin + lanes, mask=mask, other=0.0)
            xg = tl.load(sums + slices + begin + lanes, mask=mask, other=0.0)
            xb = tl.load(sums + 3 * slices + begin + lanes, mask=mask, other=0.0)
        if MIX:
            _keep(
                coefficients, slices, begin + lanes, mask,
                *_coefficients(
                    row, first + lanes, mask, xx, xg, gg, xb, gb, bb,
                    STATE, TANGENT, BUFFER, ADAM, NESTEROV, AMSGRAD, SPHERE, RETRACTION,
                ),
            )  # fmt: skip
        else:
            _keep(sums, slices, begin + lanes, mask, xx, xg, gg, xb, gb, bb)


@triton.jit
def _keep(where, slices, at, mask, p, q, r, s, t, u):
    """Six numbers of each slice."""
    tl.store(where + at, p, mask=mask)
    tl.store(where + slices + at, q, mask=mask)
    tl.store(where + 2 * slices + at, r, mask=mask)
    tl.store(where + 3 * slices + at, s, mask=mask)
    tl.store(where + 4 * slices + at, t, mask=mask)
    tl.store(where + 5 * slices + at, u, mask=mask)


@triton.jit
def _update(
    table,
    tiles,
    coefficients,
    slices,
    LANES: tl.constexpr,
    HIGH: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
):
    """The update of slices that are strewn, from their coefficients."""
    program = tl.program_id(0)
    row = table + tl.load(tiles + program * 3).to(tl.int64) * _COLUMNS
    outer, count, inner, first, part, lanes, chunks, abreast = _tile(row, tiles, program, LANES)
    own = tl.load(row + _SLICE) + first + tl.where(chunks > 1, 0, lanes // inner)
    there = lanes < tl.where(chunks > 1, LANES, abreast * inner)
    x1 = tl.load(coefficients + own, mask=there, other=0.0)
    x2 = tl.load(coefficients + slices + own, mask=there, other=0.0)
    x3 = tl.load(coefficients + 2 * slices + own, mask=there, other=0.0)
    b1 = tl.load(coefficients + 3 * slices + own, mask=there, other=0.0)
    b2 = tl.load(coefficients + 4 * slices + own, mask=there, other=0.0)
    b3 = tl.load(coefficients + 5 * slices + own, mask=there, other=0.0)
    for r in range(part * HIGH, tl.minimum((part + 1) * HIGH, outer * chunks)):
        at, mask = _at(count, inner, first, abreast, chunks, lanes, r, LANES)
        _write(row, at, mask, x1, x2, x3, b1, b2, b3, WEIGHT, STATE, BUFFER)


class Layout(NamedTuple):
    """A slice as x[:, i, :] of (outer, count, inner), in the order of memory."""

    outer: int
    count: int
    inner: int


class _Options(NamedTuple):
    """What a kernel is compiled for."""

    weight: torch.dtype
    state: torch.dtype
    buffer: bool
    adam: bool
    nesterov: bool
    amsgrad: bool
    sphere: bool
    retraction: int

    def constants(self) -> dict[str, Any]:
        """The same as arguments of a kernel."""
        return {
            "WEIGHT": _TYPES[self.weight],
            "STATE": _TYPES[self.state],
            "BUFFER": self.buffer,
            "ADAM": self.adam,
            "NESTEROV": self.nesterov,
            "AMSGRAD": self.amsgrad,
            "SPHERE": self.sphere,
            "RETRACTION": self.retraction,
        }


def step(works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]) -> None:
    """Step weights of one bucket in place.

    Args:
        works: weights of one device, type and geometry, in memory without holes, with gradients and
            buffers in the same order.
        hyper: the numbers of all of them.
        layouts: theirs.
    """
    first = works[0]
    device = first.x.device
    state = torch.promote_types(first.x.dtype, torch.float32)
    options = _Options(
        first.x.dtype,
        state,
        first.b is not None,
        hyper.beta2 is not None,
        hyper.nesterov,
        hyper.amsgrad,
        first.geometry.radius is not None,
        _RETRACTIONS[first.geometry.way],
    )
    constants = options.constants()
    table = _table(works, hyper, layouts).to(device, non_blocking=True)
    if all(layout.outer == 1 and layout.count > 1 for layout in layouts):
        weights = _slices(tuple(layout.count for layout in layouts), device)
        lanes = min(_LANES, triton.next_power_of_2(max(layout.inner for layout in layouts)))
        _rows[(len(weights),)](table, weights, LANES=lanes, **constants)
        return
    tiles = _tiles(tuple(layouts), device)
    slices = sum(layout.count for layout in layouts)
    programs = len(tiles)
    numbers = torch.empty(12 * slices + programs * 6 * _ABREAST, dtype=torch.float64, device=device)
    sums, mixes, partial = numbers.split([6 * slices, 6 * slices, programs * 6 * _ABREAST])
    counters = torch.zeros(2, programs, dtype=torch.int32, device=device)
    shape = {"LANES": _ABREAST, "HIGH": _HIGH}
    double = options.weight is torch.float64
    for tangent in (False, True) if double else (False,):
        _gram[(programs,)](
            table, tiles, partial, counters[int(tangent)], sums, mixes, slices,
            TANGENT=tangent, MIX=tangent == double, **shape, **constants,
        )  # fmt: skip
    kept = {key: constants[key] for key in ("WEIGHT", "STATE", "BUFFER")}
    _update[(programs,)](table, tiles, mixes, slices, **shape, **kept)


_NUMBERS = struct.Struct("=10d")


def _table(works: Sequence[StepInput], hyper: HyperParameters, layouts: Sequence[Layout]) -> Tensor:
    """A row for each weight: addresses, sizes and numbers."""
    rows: list[int] = []
    begin = 0
    for work, layout in zip(works, layouts, strict=True):
        share = layout.count / work.x.numel() if hyper.rms else 1.0
        lr_at, lr = _address_or_number(hyper.lr)
        (unbias1, unbias2), step_at = work.unbias, 0
        if isinstance(unbias1, Tensor):
            raise NotImplementedError
        addresses = [
            0 if t is None else t.data_ptr() for t in (work.x, work.g, work.b, work.s, work.top)
        ]
        numbers = (
            lr, hyper.sign, hyper.keep, hyper.fresh, hyper.beta2 or 0.0, hyper.eps,
            unbias1, unbias2, share, work.geometry.radius or 0.0,
        )  # fmt: skip
        rows += [*addresses, lr_at, step_at, *layout, begin, int(work.first)]
        rows += struct.unpack("=10q", _NUMBERS.pack(*numbers))
        begin += layout.count
    return torch.tensor(rows, dtype=torch.int64)


def _address_or_number(value: float | Tensor) -> tuple[int, float]:
    return (value.data_ptr(), 0.0) if isinstance(value, Tensor) else (0, value)


_ABREAST = 256


@lru_cache(maxsize=64)
def _slices(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """For each slice of a bucket, the number of its weight."""
    repeats = torch.tensor(counts)
    return torch.arange(len(counts)).repeat_interleave(repeats).to(device, torch.int32)


@lru_cache(maxsize=64)
def _tiles(layouts: tuple[Layout, ...], device: torch.device) -> Tensor:
    """For each program: the number of its weight, the first slice of its tile, and its part."""
    programs = []
    for number, (outer, count, inner) in enumerate(layouts):
        chunks = -(-inner // _ABREAST)
        abreast = 1 if chunks > 1 else _ABREAST // inner
        parts = -(-outer * chunks // _HIGH)
        programs += [
            (number, first, part) for first in range(0, count, abreast) for part in range(parts)
        ]
    return torch.tensor(programs, dtype=torch.int32).to(device)
