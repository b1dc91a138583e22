# mypy: ignore-errors
"""The kernels of the Triton backend: products, coefficients, update, for slices of many weights.

A table has a row of 64-bit numbers for each weight: addresses, sizes, and numbers in double
precision. Inner products are formed and summed in double precision, where the products of smaller
types are exact. Where ⟨v,v⟩ − ⟨x,v⟩²/⟨x,x⟩ cancels all the same, tangent parts are formed and
measured (`Gram.refined`). The formulas are those of `manifoldnet.optim.step`, names and all.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The columns of the table. First addresses: of the weight, its gradient and state, …
_X, _G, _B, _S, _MAX_S = (tl.constexpr(i) for i in range(5))
# … of numbers that lie on the device, and bits that say which of these are float32; …
_LR_AT, _UNBIAS1_AT, _UNBIAS2_AT, _COUNT_AT, _NARROW = (tl.constexpr(i) for i in range(5, 10))
# … a slice as x[:, i, :] of (outer, count, inner), its place among the slices of the bucket, and
# whether the buffer has a value that counts; …
_OUTER, _COUNT, _INNER, _BEGIN, _CARRIES = (tl.constexpr(i) for i in range(10, 15))
# … numbers in double precision; …
_LR, _SIGN, _KEEP, _FRESH, _BETA2, _EPS = (tl.constexpr(i) for i in range(15, 21))
_UNBIAS1, _UNBIAS2, _SHARE, _RADIUS, _LIMIT = (tl.constexpr(i) for i in range(21, 26))
# … addresses of products and of coefficients, six each and of one number per slice; coefficients
# that are the same in all slices, where there is no address; addresses of new second moments.
_GRAM, _MIX, _SAME, _NEW_S, _NEW_MAX_S = (tl.constexpr(i) for i in (26, 32, 38, 44, 45))
_COLUMNS = tl.constexpr(46)

# The columns of `tiles`: the number of a weight, the first slice of the tile, the number of the
# program among those of the tile, the place of the tile's partial sums.
_TILE = tl.constexpr(4)

_PROJECTIVE, _ADDITIVE = tl.constexpr(0), tl.constexpr(2)
# The bits of _NARROW.
_LR_BIT, _UNBIAS1_BIT, _UNBIAS2_BIT, _COUNT_BIT = (tl.constexpr(1 << i) for i in range(4))


# --- numbers ----------------------------------------------------------------------------------


@triton.jit
def _number(row, column: tl.constexpr):
    return tl.load(row + column).to(tl.float64, bitcast=True)


@triton.jit
def _read_number(address, row, narrow: tl.constexpr):
    """A number on the device, in double precision."""
    if (tl.load(row + _NARROW) & narrow) != 0:
        value = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    else:
        value = tl.load(address.to(tl.pointer_type(tl.float64)))
    return value


@triton.jit
def _number_at(row, at: tl.constexpr, column: tl.constexpr, narrow: tl.constexpr):
    """A number that lies on the device, or in the table where there is no address."""
    value = _number(row, column)
    address = tl.load(row + at)
    if address != 0:
        value = _read_number(address, row, narrow)
    return value


@triton.jit
def _one_minus_power(beta, t):
    base = tl.where(beta > 0, beta, 1.0)
    return tl.where(beta > 0, 1 - tl.exp(t * tl.log(base)), 1.0)


@triton.jit
def _nonnegative(x):
    return tl.where(x < 0, 0.0, x)  # NaN stays


@triton.jit
def _per(xx):
    return tl.where(xx == 0, 0.0, 1 / tl.where(xx == 0, 1.0, xx))


@triton.jit
def _double(x):
    if x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(tl.float64)


# --- coefficients -----------------------------------------------------------------------------


@triton.jit
def _carry(rr, rate, s_m, s_n, mm, mn, radius, SPHERE: tl.constexpr, RETRACTION: tl.constexpr):
    """The numbers a to e of `step._carry`."""
    zero = rr * 0
    if RETRACTION == _PROJECTIVE:
        r = tl.sqrt(rr)
        t = rate * tl.sqrt(mm)
        larger = tl.where(t > r, t, r)
        larger = tl.where(larger == 0, 1.0, larger)
        ratio = tl.where(t > r, r, t) / larger
        end = larger * tl.sqrt(1 + ratio * ratio)
        per = rate / end
        turn = rate / (end + r) * mn
        a, b = radius / end, -radius * per
        c, d, e = turn * (1 / tl.where(r == 0, 1.0, r) + 1 / end), -turn * per, zero + 1
    else:
        unit = tl.where(rr == 0, 1.0, rr)
        if SPHERE:
            unit = zero + radius * radius
        turned = rate * tl.sqrt(mm / unit)
        angle = tl.where(turned > 4503599627370496.0, 4503599627370496.0, turned)
        some = tl.where(turned < 1e-150, 1.0, turned)
        cos = tl.cos(angle)
        sine = rate * tl.where(turned < 1e-150, 1.0, tl.sin(angle) / some)
        half = tl.sin(angle / 2)
        c = sine * mn / unit
        d = -2 * half * half * mn / tl.where(mm < 1e-300, 1e-300, mm)
        if SPHERE:
            k = radius / tl.sqrt(tl.where(rr == 0, 1.0, cos * cos * rr + sine * sine * mm))
            a, b, e = k * cos, -k * sine, zero + 1
            # What rounding of the radius left along the new point.
            off = (a * c * rr + b * (d * mm + mn)) / unit
            c, d = c - off * a, d - off * b
        else:
            e = tl.exp(-rate * s_m)
            a, b = e * cos, -e * sine
            c, d = e * (s_n * cos + c), e * (d - s_n * sine)
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
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    DISPLACEMENT: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """`step.coefficients` of the slices `at` of a weight; second moments are updated.

    Products without x are those of tangent parts.
    """
    keep = _number(row, _KEEP)
    zero = xx == 0
    per = _per(xx)
    scale = xx * 0 + _number(row, _SIGN)
    if not SPHERE:
        scale = (tl.sqrt(xx) if DISPLACEMENT else xx) * _number(row, _SIGN)
    n_g, n_b = scale * _number(row, _FRESH), xx * 0
    if BUFFER:
        n_b += tl.where(tl.load(row + _CARRIES) != 0, keep, 0.0)
    along_g, along_b = xg * per, xb * per
    rate = xx * 0 + _number_at(row, _LR_AT, _LR, _LR_BIT)
    if ADAM:
        squared = gg
        if not SPHERE:
            squared = xx * (gg + along_g * xg)
        s_at = tl.load(row + _S).to(tl.pointer_type(STATE)) + at
        beta2 = _number(row, _BETA2)
        s = tl.load(s_at, mask=mask, other=0.0).to(tl.float64)
        s = beta2 * s + (1 - beta2) * (squared * _number(row, _SHARE))
        tl.store(s_at, s.to(STATE), mask=mask)
        if AMSGRAD:
            max_s_at = tl.load(row + _MAX_S).to(tl.pointer_type(STATE)) + at
            max_s = tl.load(max_s_at, mask=mask, other=0.0).to(tl.float64)
            s = tl.where((max_s > s) | (max_s != max_s), max_s, s)
            tl.store(max_s_at, s.to(STATE), mask=mask)
        unbias1 = _number_at(row, _UNBIAS1_AT, _UNBIAS1, _UNBIAS1_BIT)
        unbias2 = _number_at(row, _UNBIAS2_AT, _UNBIAS2, _UNBIAS2_BIT)
        count_at = tl.load(row + _COUNT_AT)
        if count_at != 0:
            t = _read_number(count_at, row, _COUNT_BIT)
            unbias1, unbias2 = _one_minus_power(keep, t), _one_minus_power(beta2, t)
        root = tl.sqrt(s / unbias2) + _number(row, _EPS)
        # Without eps: where there never was a gradient there is no step.
        rate = tl.where(root == 0, 0.0, rate / (tl.where(root == 0, 1.0, root) * unbias1))
    m_g, m_b = n_g, n_b
    if NESTEROV:
        m_g, m_b = scale + keep * n_g, keep * n_b
    if RETRACTION == _ADDITIVE:
        x1, x2, x3 = xx * 0 + 1, -rate * m_g, tl.where(zero, 0.0, -rate * m_b)
        b1, b2, b3 = xx * 0, n_g, tl.where(zero, 0.0, n_b)
    else:
        mm = _nonnegative(m_g * gg * m_g + 2 * m_g * gb * m_b + m_b * bb * m_b)
        mn = mm
        if NESTEROV:
            mn = m_g * gg * n_g + (m_g * n_b + m_b * n_g) * gb + m_b * bb * n_b
        s_m, s_n = m_g * along_g + m_b * along_b, n_g * along_g + n_b * along_b
        radius = _number(row, _RADIUS)
        a, b, c, d, e = _carry(xx, rate, s_m, s_n, mm, mn, radius, SPHERE, RETRACTION)
        still = zero
        if SPHERE:
            still = zero | (rate * mm == 0)
        x1 = tl.where(still, 1.0, a - b * s_m)
        x2, x3 = tl.where(still, 0.0, b * m_g), tl.where(still, 0.0, b * m_b)
        b2, b3 = d * m_g + e * n_g, d * m_b + e * n_b
        b1 = tl.where(zero, 0.0, c - b2 * along_g - b3 * along_b)
        b2, b3 = tl.where(zero, 0.0, b2), tl.where(zero, 0.0, b3)
    return x1, x2, x3, b1, b2, b3


@triton.jit
def _watch(flags, number, row, at, mask, xx):
    """Mark a weight that has a zero slice, or one on its way to overflow."""
    flag = flags + 2 * number + at * 0
    tl.store(flag, 1, mask=mask & (xx == 0))
    growing = (xx > _number(row, _LIMIT)) | (xx != xx)
    tl.store(flag + 1, 1, mask=mask & growing)


# --- vectors ----------------------------------------------------------------------------------


@triton.jit
def _read(row, at, mask, WEIGHT: tl.constexpr, STATE: tl.constexpr, BUFFER: tl.constexpr):
    """Weight, gradient and buffer at some places, in double precision."""
    x = tl.load(tl.load(row + _X).to(tl.pointer_type(WEIGHT)) + at, mask=mask, other=0.0)
    g = tl.load(tl.load(row + _G).to(tl.pointer_type(WEIGHT)) + at, mask=mask, other=0.0)
    x, g = _double(x), _double(g)
    b = x * 0
    if BUFFER:
        b = tl.load(tl.load(row + _B).to(tl.pointer_type(STATE)) + at, mask=mask, other=0.0)
        b = tl.where(tl.load(row + _CARRIES) != 0, b.to(tl.float64), 0.0)
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
def _add_products(
    xx,
    xg,
    gg,
    xb,
    gb,
    bb,
    x,
    g,
    b,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    xx += x * x
    if RETRACTION != _ADDITIVE:
        xg += x * g
        if BUFFER:
            xb += x * b
            gb += g * b
            bb += b * b
    if RETRACTION != _ADDITIVE or ADAM:
        gg += g * g
    return xx, xg, gg, xb, gb, bb


@triton.jit
def _tangent(xx, xg, gg, xb, gb, bb):
    """Products without x less what both have along x."""
    along_g, along_b = xg * _per(xx), xb * _per(xx)
    gg, gb, bb = gg - along_g * xg, gb - along_g * xb, bb - along_b * xb
    return _nonnegative(gg), gb, _nonnegative(bb)


@triton.jit
def _cancelled(xx, xg, gg, xb, gb, bb, WEIGHT: tl.constexpr):
    """Test slices for tangent parts that differences do not give well enough (1, else 0)."""
    left: tl.constexpr = 1e-2 if tl.float64 == WEIGHT else 1e-8
    gg_, _, bb_ = _tangent(xx, xg, gg, xb, gb, bb)
    return tl.where((gg_ < left * gg) | (bb_ < left * bb), 1, 0)


@triton.jit
def _refined(along_g, along_b, xx, xg, gg, xb, gb, bb):
    """`Gram.refined`: from products of x and of g and b less what they have along x."""
    gg, gb, bb = _tangent(xx, xg, gg, xb, gb, bb)
    return xx, xg + along_g * xx, gg, xb + along_b * xx, gb, bb


# --- slices in one piece ----------------------------------------------------------------------


@triton.jit
def rows(
    table,
    weights,
    flags,
    LANES: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    DISPLACEMENT: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """A step of one slice that lies in one piece."""
    program = tl.program_id(0)
    number = tl.load(weights + program).to(tl.int64)
    row = table + number * _COLUMNS
    slice_ = program - tl.load(row + _BEGIN)
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
        xx, xg, gg, xb, gb, bb = _add_products(
            xx, xg, gg, xb, gb, bb, x, g, b, BUFFER, ADAM, RETRACTION
        )
    xx, xg, gg = tl.sum(xx, 0), tl.sum(xg, 0), tl.sum(gg, 0)
    xb, gb, bb = tl.sum(xb, 0), tl.sum(gb, 0), tl.sum(bb, 0)
    if RETRACTION != _ADDITIVE:
        along_g, along_b = xg * _per(xx), xb * _per(xx)
        if _cancelled(xx, xg, gg, xb, gb, bb, WEIGHT) != 0:
            xx_ = tl.zeros([LANES], tl.float64)
            xg_ = tl.zeros([LANES], tl.float64)
            gg_ = tl.zeros([LANES], tl.float64)
            xb_ = tl.zeros([LANES], tl.float64)
            gb_ = tl.zeros([LANES], tl.float64)
            bb_ = tl.zeros([LANES], tl.float64)
            for place in range(0, inner, LANES):
                mask = place + lanes < inner
                x, g, b = _read(row, start + place + lanes, mask, WEIGHT, STATE, BUFFER)
                xx_, xg_, gg_, xb_, gb_, bb_ = _add_products(
                    xx_, xg_, gg_, xb_, gb_, bb_, x, g - along_g * x, b - along_b * x,
                    BUFFER, ADAM, RETRACTION,
                )  # fmt: skip
            xx, xg, gg, xb, gb, bb = _refined(
                along_g, along_b, tl.sum(xx_, 0), tl.sum(xg_, 0), tl.sum(gg_, 0),
                tl.sum(xb_, 0), tl.sum(gb_, 0), tl.sum(bb_, 0),
            )  # fmt: skip
        else:
            gg, gb, bb = _tangent(xx, xg, gg, xb, gb, bb)
    _watch(flags, number, row, slice_, slice_ >= 0, xx)
    x1, x2, x3, b1, b2, b3 = _coefficients(
        row, slice_, slice_ >= 0, xx, xg, gg, xb, gb, bb,
        STATE, BUFFER, ADAM, NESTEROV, AMSGRAD, SPHERE, DISPLACEMENT, RETRACTION,
    )  # fmt: skip
    for place in range(0, inner, LANES):
        mask = place + lanes < inner
        _write(row, start + place + lanes, mask, x1, x2, x3, b1, b2, b3, WEIGHT, STATE, BUFFER)


# --- slices that are strided ------------------------------------------------------------------

# A tile is some slices side by side: a lane for each of their numbers in one row of memory, and
# `outer` rows. A slice of which a row has no room for two is a tile, its row cut into chunks of
# lanes that count as rows. A program has `high` rows of a tile, HEIGHT of them at once.


@triton.jit
def _tile(row, first, lanes, LANES: tl.constexpr):
    """The sizes of a tile: chunks of a row, slices abreast, and how many rows there are."""
    count, inner = tl.load(row + _COUNT), tl.load(row + _INNER)
    chunks = (inner + LANES - 1) // LANES
    alone = 2 * inner > LANES
    abreast = tl.where(alone, 1, tl.minimum(LANES // inner, count - first))
    return count, inner, chunks, alone, abreast, tl.load(row + _OUTER) * chunks


@triton.jit
def _at(count, inner, first, abreast, chunks, lanes, r, end, LANES: tl.constexpr):
    """The places of the lanes in some rows, and which of them there are."""
    chunk = r % chunks
    at = (r // chunks) * count * inner + first * inner + chunk * LANES + lanes
    long = tl.where(r < end, tl.minimum(abreast * inner - chunk * LANES, LANES), 0)
    return at, lanes < long


@triton.jit
def _by_slice(v, scratch, lanes, inner, abreast, LANES: tl.constexpr):
    """The sums of slices, one a lane, from those of lanes."""
    if inner > 1:
        tl.store(scratch + lanes, v)
        tl.debug_barrier()
        v = tl.zeros([LANES], tl.float64)
        for j in range(inner):
            v += tl.load(scratch + lanes * inner + j, mask=lanes < abreast, other=0.0)
        tl.debug_barrier()
    return v


@triton.jit
def _sum(v, scratch, lanes, inner, alone, abreast, LANES: tl.constexpr):
    """The sums of slices, one a lane, from those of lanes and rows."""
    v = tl.sum(v, 0)
    if alone:
        v = tl.sum(v, 0) + tl.zeros([LANES], tl.float64)
    else:
        v = _by_slice(v, scratch, lanes, inner, abreast, LANES)
    return v


@triton.jit
def _by_lane(v, scratch, lanes, inner, alone, LANES: tl.constexpr):
    """The number of a slice in each of its lanes."""
    if inner > 1 and not alone:
        tl.store(scratch + lanes, v)
        tl.debug_barrier()
        v = tl.load(scratch + lanes // inner)
        tl.debug_barrier()
    return v


@triton.jit
def _of_slices(row, column: tl.constexpr, at, mask):
    """Numbers of slices, at an address in the table; zeros where there is none."""
    address = tl.load(row + column)
    where = address.to(tl.pointer_type(tl.float64)) + at
    return tl.load(where, mask=mask & (address + at * 0 != 0), other=0.0)


@triton.jit
def _keep(row, column: tl.constexpr, at, mask, value):
    """Put numbers of slices to an address in the table, if there is one."""
    address = tl.load(row + column)
    where = address.to(tl.pointer_type(tl.float64)) + at
    tl.store(where, value, mask=mask & (address + at * 0 != 0))


@triton.jit
def gram(
    table,
    tiles,
    partial,
    counters,
    flags,
    high,
    LANES: tl.constexpr,
    HEIGHT: tl.constexpr,
    TANGENT: tl.constexpr,
    MIX: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SPHERE: tl.constexpr,
    DISPLACEMENT: tl.constexpr,
    RETRACTION: tl.constexpr,
):
    """The products of strided slices; with MIX, their coefficients instead.

    With TANGENT (and without MIX), the products are those of the parts of g and b that are left
    when what the first products have found along x is taken off, and go where coefficients do.
    """
    program = tl.program_id(0)
    number = tl.load(tiles + program * _TILE).to(tl.int64)
    first = tl.load(tiles + program * _TILE + 1).to(tl.int64)
    part = tl.load(tiles + program * _TILE + 2)
    base = tl.load(tiles + program * _TILE + 3).to(tl.int64)
    row = table + number * _COLUMNS
    lanes = tl.arange(0, LANES)
    count, inner, chunks, alone, abreast, height = _tile(row, first, lanes, LANES)
    along_g = tl.zeros([LANES], tl.float64)
    along_b = tl.zeros([LANES], tl.float64)
    if TANGENT:
        slices = first + tl.where(alone, 0, lanes // inner)
        there = lanes < tl.minimum(abreast * inner, LANES)
        per = _per(_of_slices(row, _GRAM, slices, there))
        along_g = per * _of_slices(row, _GRAM + 1, slices, there)
        along_b = per * _of_slices(row, _GRAM + 3, slices, there)
    xx = tl.zeros([HEIGHT, LANES], tl.float64)
    xg = tl.zeros([HEIGHT, LANES], tl.float64)
    gg = tl.zeros([HEIGHT, LANES], tl.float64)
    xb = tl.zeros([HEIGHT, LANES], tl.float64)
    gb = tl.zeros([HEIGHT, LANES], tl.float64)
    bb = tl.zeros([HEIGHT, LANES], tl.float64)
    begin = part.to(tl.int64) * high
    end = tl.minimum(begin + high, height)
    for r in range(begin, end, HEIGHT):
        several = r + tl.arange(0, HEIGHT)[:, None]
        at, mask = _at(count, inner, first, abreast, chunks, lanes[None, :], several, end, LANES)
        x, g, b = _read(row, at, mask, WEIGHT, STATE, BUFFER)
        if TANGENT:
            g -= along_g[None, :] * x
            b -= along_b[None, :] * x
        xx, xg, gg, xb, gb, bb = _add_products(
            xx, xg, gg, xb, gb, bb, x, g, b, BUFFER, ADAM, RETRACTION
        )
    xx, xg, gg = tl.sum(xx, 0), tl.sum(xg, 0), tl.sum(gg, 0)
    xb, gb, bb = tl.sum(xb, 0), tl.sum(gb, 0), tl.sum(bb, 0)
    # The sums of a tile's program: one of each product for each lane, or one if the tile is one
    # slice.
    width = tl.where(alone, 1, LANES)
    if alone:
        xx = tl.sum(xx, 0) + tl.zeros([LANES], tl.float64)
        xg = tl.sum(xg, 0) + tl.zeros([LANES], tl.float64)
        gg = tl.sum(gg, 0) + tl.zeros([LANES], tl.float64)
        xb = tl.sum(xb, 0) + tl.zeros([LANES], tl.float64)
        gb = tl.sum(gb, 0) + tl.zeros([LANES], tl.float64)
        bb = tl.sum(bb, 0) + tl.zeros([LANES], tl.float64)
    mine = partial + base + part * 6 * width + lanes
    mask = lanes < width
    tl.store(mine, xx, mask=mask)
    tl.store(mine + width, xg, mask=mask)
    tl.store(mine + 2 * width, gg, mask=mask)
    tl.store(mine + 3 * width, xb, mask=mask)
    tl.store(mine + 4 * width, gb, mask=mask)
    tl.store(mine + 5 * width, bb, mask=mask)
    tl.debug_barrier()
    parts = (height + high - 1) // high
    if tl.atomic_add(counters + program - part, 1) == parts - 1:
        # All programs of the tile are through: their sums are added in their order, so that it
        # does not matter which is the last. The count is left as the next launch needs it.
        tl.store(counters + program - part, 0)
        xx = tl.zeros([LANES], tl.float64)
        xg = tl.zeros([LANES], tl.float64)
        gg = tl.zeros([LANES], tl.float64)
        xb = tl.zeros([LANES], tl.float64)
        gb = tl.zeros([LANES], tl.float64)
        bb = tl.zeros([LANES], tl.float64)
        if alone:
            for other in range(0, parts, LANES):
                mask = other + lanes < parts
                theirs = partial + base + (other + lanes) * 6
                xx += tl.load(theirs, mask=mask, other=0.0)
                xg += tl.load(theirs + 1, mask=mask, other=0.0)
                gg += tl.load(theirs + 2, mask=mask, other=0.0)
                xb += tl.load(theirs + 3, mask=mask, other=0.0)
                gb += tl.load(theirs + 4, mask=mask, other=0.0)
                bb += tl.load(theirs + 5, mask=mask, other=0.0)
            xx = tl.sum(xx, 0) + tl.zeros([LANES], tl.float64)
            xg = tl.sum(xg, 0) + tl.zeros([LANES], tl.float64)
            gg = tl.sum(gg, 0) + tl.zeros([LANES], tl.float64)
            xb = tl.sum(xb, 0) + tl.zeros([LANES], tl.float64)
            gb = tl.sum(gb, 0) + tl.zeros([LANES], tl.float64)
            bb = tl.sum(bb, 0) + tl.zeros([LANES], tl.float64)
        else:
            for other in range(parts):
                theirs = partial + base + other * 6 * LANES + lanes
                xx += tl.load(theirs)
                xg += tl.load(theirs + LANES)
                gg += tl.load(theirs + 2 * LANES)
                xb += tl.load(theirs + 3 * LANES)
                gb += tl.load(theirs + 4 * LANES)
                bb += tl.load(theirs + 5 * LANES)
            tl.debug_barrier()
            scratch = partial + base
            xx = _by_slice(xx, scratch, lanes, inner, abreast, LANES)
            xg = _by_slice(xg, scratch, lanes, inner, abreast, LANES)
            gg = _by_slice(gg, scratch, lanes, inner, abreast, LANES)
            xb = _by_slice(xb, scratch, lanes, inner, abreast, LANES)
            gb = _by_slice(gb, scratch, lanes, inner, abreast, LANES)
            bb = _by_slice(bb, scratch, lanes, inner, abreast, LANES)
        mask = lanes < abreast
        at = first + lanes
        column: tl.constexpr = _MIX if TANGENT or MIX else _GRAM
        if MIX and RETRACTION != _ADDITIVE:
            cancelled = tl.max(_cancelled(xx, xg, gg, xb, gb, bb, WEIGHT), 0)
            if cancelled != 0:
                # Rare, and slow: this program measures the tangent parts of the whole tile.
                along_g, along_b = xg * _per(xx), xb * _per(xx)
                scratch = partial + base
                lanes_g = _by_lane(along_g, scratch, lanes, inner, alone, LANES)
                lanes_b = _by_lane(along_b, scratch, lanes, inner, alone, LANES)
                xx_ = tl.zeros([HEIGHT, LANES], tl.float64)
                xg_ = tl.zeros([HEIGHT, LANES], tl.float64)
                gg_ = tl.zeros([HEIGHT, LANES], tl.float64)
                xb_ = tl.zeros([HEIGHT, LANES], tl.float64)
                gb_ = tl.zeros([HEIGHT, LANES], tl.float64)
                bb_ = tl.zeros([HEIGHT, LANES], tl.float64)
                for r in range(0, height, HEIGHT):
                    several = r + tl.arange(0, HEIGHT)[:, None]
                    places, present = _at(
                        count, inner, first, abreast, chunks, lanes[None, :], several, height, LANES
                    )
                    x, g, b = _read(row, places, present, WEIGHT, STATE, BUFFER)
                    g -= lanes_g[None, :] * x
                    b -= lanes_b[None, :] * x
                    xx_, xg_, gg_, xb_, gb_, bb_ = _add_products(
                        xx_, xg_, gg_, xb_, gb_, bb_, x, g, b, BUFFER, ADAM, RETRACTION
                    )
                xx, xg, gg, xb, gb, bb = _refined(
                    along_g,
                    along_b,
                    _sum(xx_, scratch, lanes, inner, alone, abreast, LANES),
                    _sum(xg_, scratch, lanes, inner, alone, abreast, LANES),
                    _sum(gg_, scratch, lanes, inner, alone, abreast, LANES),
                    _sum(xb_, scratch, lanes, inner, alone, abreast, LANES),
                    _sum(gb_, scratch, lanes, inner, alone, abreast, LANES),
                    _sum(bb_, scratch, lanes, inner, alone, abreast, LANES),
                )
            else:
                gg, gb, bb = _tangent(xx, xg, gg, xb, gb, bb)
        if MIX:
            _watch(flags, number, row, at, mask, xx)
            xx, xg, gg, xb, gb, bb = _coefficients(
                row, at, mask, xx, xg, gg, xb, gb, bb,
                STATE, BUFFER, ADAM, NESTEROV, AMSGRAD, SPHERE, DISPLACEMENT, RETRACTION,
            )  # fmt: skip
        _keep(row, column, at, mask, xx)
        _keep(row, column + 1, at, mask, xg)
        _keep(row, column + 2, at, mask, gg)
        _keep(row, column + 3, at, mask, xb)
        _keep(row, column + 4, at, mask, gb)
        _keep(row, column + 5, at, mask, bb)


@triton.jit
def _coefficient(row, place: tl.constexpr, at, mask):
    """A coefficient of slices; without an address, one number for all of them."""
    return _of_slices(row, _MIX + place, at, mask) + _number(row, _SAME + place)


@triton.jit
def update(
    table,
    tiles,
    high,
    LANES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WEIGHT: tl.constexpr,
    STATE: tl.constexpr,
    BUFFER: tl.constexpr,
    STORE: tl.constexpr,
    AMSGRAD: tl.constexpr,
):
    """The update of strided slices, from their coefficients; with STORE, of second moments too."""
    program = tl.program_id(0)
    number = tl.load(tiles + program * _TILE).to(tl.int64)
    first = tl.load(tiles + program * _TILE + 1).to(tl.int64)
    part = tl.load(tiles + program * _TILE + 2)
    row = table + number * _COLUMNS
    lanes = tl.arange(0, LANES)
    count, inner, chunks, alone, abreast, height = _tile(row, first, lanes, LANES)
    if STORE:
        once = (lanes < abreast) & (part + lanes * 0 == 0)
        s = _of_slices(row, _NEW_S, first + lanes, once).to(STATE)
        tl.store(tl.load(row + _S).to(tl.pointer_type(STATE)) + first + lanes, s, mask=once)
        if AMSGRAD:
            max_s = _of_slices(row, _NEW_MAX_S, first + lanes, once).to(STATE)
            tl.store(
                tl.load(row + _MAX_S).to(tl.pointer_type(STATE)) + first + lanes, max_s, mask=once
            )
    slices = first + tl.where(alone, 0, lanes // inner)
    there = lanes < tl.minimum(abreast * inner, LANES)
    x1 = _coefficient(row, 0, slices, there)[None, :]
    x2 = _coefficient(row, 1, slices, there)[None, :]
    x3 = _coefficient(row, 2, slices, there)[None, :]
    b1 = _coefficient(row, 3, slices, there)[None, :]
    b2 = _coefficient(row, 4, slices, there)[None, :]
    b3 = _coefficient(row, 5, slices, there)[None, :]
    begin = part.to(tl.int64) * high
    end = tl.minimum(begin + high, height)
    for r in range(begin, end, HEIGHT):
        several = r + tl.arange(0, HEIGHT)[:, None]
        at, mask = _at(count, inner, first, abreast, chunks, lanes[None, :], several, end, LANES)
        _write(row, at, mask, x1, x2, x3, b1, b2, b3, WEIGHT, STATE, BUFFER)
