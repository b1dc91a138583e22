"""The scaled metric does not see the scale of a weight: everything commutes with w → αw.

Bit for bit when α is a power of two, as floating point is then multiplied without rounding; this
is what makes whole training runs equivariant.
"""

import pytest
import torch
from cases import (
    apart,
    away_from_zero,
    each_scaled,
    few,
    length,
    point,
    scale_slices,
    seeds,
    sizes,
    source,
    tangent,
)
from hypothesis import given
from hypothesis import strategies as st

DTYPES = [torch.float64, torch.float32]
signs = st.sampled_from([1.0, -1.0])


def factors_of(manifold, x, generator, power_of_two):
    """One factor for each slice: ±2^k, |k| ≤ 10, or any number of those sizes."""
    count = manifold.component_inner(x, x).numel()
    exponent = 20 * torch.rand(count, generator=generator, dtype=torch.float64) - 10
    if power_of_two:
        exponent = exponent.round()
    sign = torch.randint(2, (count,), generator=generator) * 2 - 1
    return (sign * 2.0**exponent).to(x.dtype)


def everything(manifold, x, y, u, v, g):
    """Points and tangent vectors, which scale like the weight; `g` scales the other way."""
    return {
        "egrad2rgrad": manifold.egrad2rgrad(x, g),
        "proju": manifold.proju(x, u),
        "projx": manifold.projx(x),
        "retr": manifold.retr(x, u),
        "expmap": manifold.expmap(x, u),
        "logmap": manifold.logmap(x, y),
        "transp": manifold.transp(x, y, v),
        "expmap_transp": manifold.expmap_transp(x, u, v)[1],
        "retr_transp": manifold.retr_transp(x, u, v)[1],
    }


def invariants(manifold, x, y, u, v):
    return {
        "component_inner": manifold.component_inner(x, u, v),
        "norm": manifold.norm(x, u),
        "coordinates in the frame": manifold.frame(x).enter(u).abs(),
        "dist": manifold.dist(x, y),
        "dist2": manifold.dist2(x, y),
    }


def draw(manifold, shape, seed, size, dtype):
    x = point(manifold, shape, seed, dtype)
    # A second point within reach, so that the way to it is well determined.
    y = manifold.expmap(x, tangent(manifold, x, seed + 1, 1.0))
    u, v = tangent(manifold, x, seed + 2, size), tangent(manifold, x, seed + 3)
    # The straight step may end in zero, where nothing is defined.
    u = away_from_zero(manifold, x, u)
    g = torch.randn(shape, dtype=dtype, generator=source(seed + 4))
    return x, y, u, v, g


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_scaled
@few
@given(seed=seeds, size=sizes(1e-4, 30.0))
def test_bitwise_for_powers_of_two(manifold, shape, dtype, seed, size):
    x, y, u, v, g = draw(manifold, shape, seed, size, dtype)
    alpha = factors_of(manifold, x, source(seed + 5), power_of_two=True)

    def times(z, by=alpha):
        return scale_slices(z, by, manifold.slices.dim)

    scaled = [times(z) for z in (x, y, u, v)]
    before, after = (
        everything(manifold, x, y, u, v, g),
        everything(manifold, *scaled, times(g, 1 / alpha)),
    )
    for name, value in before.items():
        assert torch.equal(after[name], times(value)), name
    same = invariants(manifold, *scaled)
    for name, value in invariants(manifold, x, y, u, v).items():
        assert torch.equal(same[name], value), name


@each_scaled
@few
@given(seed=seeds, size=sizes(1e-4, 30.0))
def test_to_rounding_for_any_factor(manifold, shape, seed, size):
    x, y, u, v, g = draw(manifold, shape, seed, size, torch.float64)
    alpha = factors_of(manifold, x, source(seed + 5), power_of_two=False)

    def times(z, by=alpha):
        return scale_slices(z, by, manifold.slices.dim)

    scaled = [times(z) for z in (x, y, u, v)]
    before, after = (
        everything(manifold, x, y, u, v, g),
        everything(manifold, *scaled, times(g, 1 / alpha)),
    )
    # Scaling rounds every entry by ε/2; a turn of `size` and a stretch by e^size magnify that,
    # and so does a small angle between near points (here of 1).
    tolerance = 100 * torch.finfo(torch.float64).eps * (1 + size)
    for name in ("egrad2rgrad", "proju", "projx", "retr", "expmap"):
        slack = tolerance * (1 + float(manifold.retraction.name == "additive") * 1e3)
        assert apart(after[name], times(before[name]), manifold.slices.dim) <= slack, name
    for name in ("logmap", "transp", "expmap_transp", "retr_transp"):
        foot = {"logmap": x, "transp": y}.get(name, manifold.expmap(x, u))
        if name == "retr_transp":
            foot = manifold.retr(x, u)
        off, of = after[name] - times(before[name]), length(manifold, foot, before[name])
        assert length(manifold, times(foot), off) <= tolerance * max(of, 1.0), name
    same = invariants(manifold, *scaled)
    for name, value in invariants(manifold, x, y, u, v).items():
        atol = tolerance * float(manifold.norm(x, u) * manifold.norm(x, v) + 1)
        torch.testing.assert_close(same[name], value, rtol=tolerance, atol=atol, msg=name)


@each_scaled
def test_a_run_is_equivariant(manifold, shape):
    """Fifty steps of descent with momentum on L(w), and on L(w/α) from the scaled weight."""

    def run(x, alpha):
        momentum = torch.zeros_like(x)
        trajectory = []
        for step in range(50):
            batch = torch.randn(shape, generator=source(step))
            g = scale_slices(
                batch * torch.tanh(scale_slices(x, 1 / alpha, manifold.slices.dim)),
                1 / alpha,
                manifold.slices.dim,
            )
            momentum = 0.9 * momentum - 1e-3 * manifold.egrad2rgrad(x, g)
            x, momentum = manifold.retr_transp(x, momentum, momentum)
            trajectory.append(x)
        return trajectory

    x = manifold.random(shape, generator=source(0))
    alpha = factors_of(manifold, x, source(1), power_of_two=True)
    plain = run(x, torch.ones_like(alpha))
    scaled = run(scale_slices(x, alpha, manifold.slices.dim), alpha)
    assert torch.all(plain[0] != plain[-1])
    for a, b in zip(scaled, plain, strict=True):
        assert torch.equal(a, scale_slices(b, alpha, manifold.slices.dim))
