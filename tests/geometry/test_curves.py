"""Retractions, geodesics, transports: what is known of these manifolds beyond the laws of all."""

import math

import numpy as np
import pytest
import torch
from cases import (
    GEOMETRIES,
    MANIFOLDS,
    SCALED,
    SPHERES,
    away_from_zero,
    each_manifold,
    few,
    lengths,
    over,
    point,
    rows_of,
    seeds,
    sizes,
    tangent,
    unit,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from manifoldnet.geometry import (
    Additive,
    Euclidean,
    Geodesic,
    Oblique,
    Projective,
    ScaledEuclidean,
)

EPS = torch.finfo(torch.float64).eps
# Some tens of operations, sums of at most 36 products: 100 roundings are more than it takes.
ROUNDING = 100 * EPS

ROUND = [row for row in GEOMETRIES if row in SPHERES]
CYLINDERS = [row for row in GEOMETRIES if row in SCALED]

# Second derivatives take tens of milliseconds each.
fewer = settings(few, max_examples=2)


def derivative(curve, t):
    """Value and velocity of a curve at time t."""
    t = torch.tensor(t, dtype=torch.float64)
    return jvp(curve, (t,), (torch.ones_like(t),))


def acceleration(curve, t):
    return derivative(lambda s: jvp(curve, (s,), (torch.ones_like(s),))[1], t)[1]


# --- retractions ----------------------------------------------------------------------------------


@over([row for row in SPHERES + SCALED if not isinstance(row[0].retraction, Geodesic)])
@few
@given(seed=seeds)
def test_order_of_the_retraction(manifold, shape, seed):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1)
    times = np.array([2.0**-5, 2.0**-6, 2.0**-7])
    steps = [torch.as_tensor(t * u) for t in times]
    gaps = [float(manifold.dist(manifold.retr(x, s), manifold.expmap(x, s))) for s in steps]
    # On spheres θ − atan θ = θ³/3 − …; on the cylinder |ln(1 + z) − z| = |z|²/2 − …, z = a + iθ,
    # for every u ≠ 0. The next terms change the slope by θ² and by |z|: 1e-3 and 2e-2 here.
    order = {Projective: 3, Additive: 2}[type(manifold.retraction)]
    slope = np.polyfit(np.log(times), np.log(gaps), 1)[0]
    assert slope == pytest.approx(order, abs=0.05)


@over(SPHERES + SCALED)
@few
@given(seed=seeds, size=sizes(30.0, 1e6))
def test_huge_steps_end_on_the_manifold(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    if (manifold, shape) in SCALED:
        # eᵃ overflows beyond a = 709; what is around the cylinder may be of any size.
        radial = manifold.component_inner(x, x, u)
        u = u - (radial if size > 100 else 0) * x
        u = away_from_zero(manifold, x, u)
    assert float(manifold.violation(manifold.retr(x, u)).max()) <= 8 * EPS
    assert float(manifold.violation(manifold.expmap(x, u)).max()) <= 8 * EPS


@each_manifold
def test_a_step_with_transport_is_the_same_step(manifold, shape):
    """Bit for bit: an optimizer may take either."""
    x = point(manifold, shape, 0)
    u, v = tangent(manifold, x, 1, 0.7), tangent(manifold, x, 2)
    y, transported = manifold.retr_transp(x, u, v)
    assert torch.equal(y, manifold.retr(x, u))
    assert torch.equal(manifold.transp_follow_retr(x, u, v), transported)
    assert torch.equal(manifold.expmap_transp(x, u, v)[0], manifold.expmap(x, u))
    if isinstance(manifold.retraction, Additive):
        assert torch.equal(transported, v)


# --- geodesics ------------------------------------------------------------------------------------


@over(CYLINDERS)
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_geodesics_of_cylinders_do_not_accelerate(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)

    def curve(t):
        return rows_of(manifold.expmap(x, t * u), manifold.slices.dim)

    def height(t):
        return torch.linalg.vector_norm(curve(t), dim=1).log()

    def direction(t):
        w = curve(t)
        return w / torch.linalg.vector_norm(w, dim=1, keepdim=True)

    for t in (0.7,):
        assert float(acceleration(height, t).abs().max()) <= _bend(size)
        d, bend = direction(torch.tensor(t, dtype=torch.float64)), acceleration(direction, t)
        along = bend - (bend * d).sum(1, keepdim=True) * d
        assert float(along.abs().max()) <= _bend(size)


def _bend(size):
    """Rounding of a second derivative of cos(tθ): it is of size θ², its phase of precision θε."""
    return ROUNDING * (size**2 * (1 + size) + size)


# --- logarithm and distance -----------------------------------------------------------------------


@over(ROUND + CYLINDERS)
@few
@given(seed=seeds, angle=st.floats(0.0, 2 * math.pi))
def test_angles_are_right_all_the_way_round(manifold, shape, seed, angle):
    """Built here from cos and sin alone: what goes around a circle once comes closer again."""
    x = point(manifold, shape, seed)
    w = rows_of(x, manifold.slices.dim)
    if w.shape[1] == 1:
        return
    side = rows_of(point(manifold, shape, seed + 1), manifold.slices.dim)
    side = side - (side * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
    side = side / side.norm(dim=1, keepdim=True) * w.norm(dim=1, keepdim=True)
    turned = math.cos(angle) * w + math.sin(angle) * side
    y = turned.reshape(x.shape) if manifold.slices.dim != 1 else _columns(turned, x)
    each = min(angle, 2 * math.pi - angle) * unit(manifold)
    exact = each * math.sqrt(len(w))
    # Near 0 and near π alike: acos would lose half of the digits there.
    assert float(manifold.dist(x, y)) == pytest.approx(exact, abs=ROUNDING * unit(manifold) * 5)


def _columns(rows, x):
    """The rows as the slices along dimension 1 of a tensor like x."""
    order = x.movedim(1, 0)
    return rows.reshape(order.shape).movedim(0, 1)


@over(ROUND + CYLINDERS)
@few
@given(seed=seeds)
def test_antipodes_have_a_distance_but_no_logarithm(manifold, shape, seed):
    x = point(manifold, shape, seed)
    slices = len(lengths(x, manifold.slices.dim))
    assert float(manifold.dist(x, -x)) == pytest.approx(
        math.pi * unit(manifold) * math.sqrt(slices), rel=ROUNDING
    )
    assert torch.all(manifold.logmap(x, -x).isnan())
    assert torch.all(manifold.transp(x, -x, tangent(manifold, x, seed + 1)).isnan())


# --- transport ------------------------------------------------------------------------------------


@over(ROUND + CYLINDERS)
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_transport_along_a_geodesic_is_parallel(manifold, shape, seed, size):
    """Its covariant derivative vanishes, which isometry alone does not say."""
    x = point(manifold, shape, seed)
    u, v = tangent(manifold, x, seed + 1, size), tangent(manifold, x, seed + 2)

    def unit_vectors(y):
        w = rows_of(y, manifold.slices.dim)
        return w / torch.linalg.vector_norm(w, dim=1, keepdim=True)

    def along(t):
        """The part along the cylinder (on a sphere: 0, as it is tangent), and the part around."""
        y, w = manifold.expmap_transp(x, t * u, v)
        r = torch.linalg.vector_norm(rows_of(y, manifold.slices.dim), dim=1, keepdim=True)
        d, w = unit_vectors(y), rows_of(w, manifold.slices.dim) / r
        a = (w * d).sum(1, keepdim=True)
        return a, w - a * d

    for t in (0.7,):
        _, (radial, around) = derivative(along, t)
        d = unit_vectors(manifold.expmap(x, t * u))
        around = around - (around * d).sum(1, keepdim=True) * d
        bound = ROUNDING * size * (1 + size)
        assert float(radial.abs().max()) <= bound
        assert float(around.abs().max()) <= bound


@pytest.mark.parametrize(("n", "least", "most"), [(2, 0.0, 1e-14), (3, 0.05, 2.0), (5, 0.05, 2.0)])
def test_the_scaled_metric_is_flat_for_slices_of_two_numbers_alone(n, least, most):
    """The holonomy: parallel transport around a geodesic triangle turns vectors where it is not."""
    manifold = ScaledEuclidean(dim=None)
    x, y, z = (point(manifold, (n,), seed) for seed in range(3))
    v = tangent(manifold, x, 3)
    w = manifold.transp(z, x, manifold.transp(y, z, manifold.transp(x, y, v)))
    assert least <= float(manifold.norm(x, w - v) / manifold.norm(x, v)) <= most


@pytest.mark.parametrize("manifold", [Oblique(retraction="geodesic"), ScaledEuclidean()])
def test_slices_move_by_themselves(manifold):
    """A parameter is a product: what happens to one row is nothing to the others."""
    shape = (4, 3)
    x, y = (point(manifold, shape, seed) for seed in (0, 1))
    u, v = (tangent(manifold, x, seed) for seed in (2, 3))
    for one in range(4):
        row = slice(one, one + 1)
        for name, arguments in [
            ("expmap", (x, u)),
            ("retr", (x, u)),
            ("logmap", (x, y)),
            ("transp", (x, y, v)),
            ("egrad2rgrad", (x, u)),
            ("proju", (x, y)),
        ]:
            whole = getattr(manifold, name)(*arguments)
            alone = getattr(manifold, name)(*(a[row] for a in arguments))
            torch.testing.assert_close(whole[row], alone, rtol=ROUNDING, atol=ROUNDING)


@over([row for row in MANIFOLDS if isinstance(row[0], Euclidean)])
def test_flat_space_is_flat(manifold, shape):
    x, y, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    assert torch.equal(manifold.expmap(x, v), x + v)
    assert torch.equal(manifold.logmap(x, y), y - x)
    assert torch.equal(manifold.transp(x, y, v), v)
    assert torch.equal(manifold.egrad2rgrad(x, v), v)
    assert float(manifold.dist(x, y)) == pytest.approx(float((y - x).norm()), rel=8 * EPS)
