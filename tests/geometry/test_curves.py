"""Retractions, geodesics, distances and transports: what must hold on every manifold."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import (
    GEOMETRIES,
    MANIFOLDS,
    SCALED,
    SPHERES,
    apart,
    away_from_zero,
    each_geometry,
    each_manifold,
    few,
    length,
    lengths,
    over,
    point,
    rows_of,
    seeds,
    sizes,
    tangent,
    unit,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.func import jvp

from manifoldnet.geometry import Additive, Geodesic, Oblique, Projective, ScaledEuclidean

EPS = torch.finfo(torch.float64).eps
# Some tens of operations, sums of at most 36 products: 100 roundings are more than it takes.
ROUNDING = 100 * EPS

ROUND = [row for row in GEOMETRIES if row in SPHERES]
CYLINDERS = [row for row in GEOMETRIES if row in SCALED]

# Angles at which the end of a step is next to the antipode, at it, and past it; and whole turns.
AROUND_THE_ANTIPODE = [math.pi, math.pi - 1e-6, math.pi + 1e-6, 2 * math.pi, 3 * math.pi]


def steps(test):
    """Sizes of steps: from tiny to five turns, and always those that end around the antipode."""
    for angle in AROUND_THE_ANTIPODE:
        test = example(seed=0, size=angle)(test)
    return fewer(given(seed=seeds, size=sizes(1e-8, 30.0))(test))


# Second derivatives take tens of milliseconds each.
fewer = settings(few, max_examples=2)


def below_pi(test):
    """Sizes of steps below the injectivity radius."""
    return few(given(seed=seeds, size=sizes(1e-8, 3.1))(test))


def derivative(curve, t):
    """Value and velocity of a curve at time t."""
    t = torch.tensor(t, dtype=torch.float64)
    return jvp(curve, (t,), (torch.ones_like(t),))


def acceleration(curve, t):
    return derivative(lambda s: jvp(curve, (s,), (torch.ones_like(s),))[1], t)[1]


def relative(manifold, x, u, v):
    """How far apart two tangent vectors at x are, relative to the second."""
    return length(manifold, x, u - v) / max(length(manifold, x, v), 1e-300)


def two_points(manifold, shape, seed):
    """Two points with a geodesic between them: slices of one number need to have the same sign."""
    x, y = (point(manifold, shape, seed + i) for i in (0, 1))
    return (x, y) if rows_of(x, manifold.dim).shape[1] > 1 else (x, y.abs() * x.sign())


# --- retractions ----------------------------------------------------------------------------------


@each_manifold
@few
@given(seed=seeds)
def test_no_step_is_no_move(manifold, shape, seed):
    x = point(manifold, shape, seed)
    zero = torch.zeros_like(x)
    # A norm and a division.
    assert apart(manifold.retr(x, zero), x, manifold.dim) <= 8 * EPS
    assert apart(manifold.expmap(x, zero), x, manifold.dim) <= 8 * EPS


@each_manifold
@fewer
@given(seed=seeds, size=sizes(1e-8, 1e3))
def test_retraction_starts_with_the_velocity_asked_for(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    for move in (manifold.retr, manifold.expmap):
        _, velocity = derivative(lambda t, move=move: move(x, t * u), 0.0)
        assert relative(manifold, x, velocity, u) <= ROUNDING


@each_manifold
@few
@given(seed=seeds)
def test_retraction_agrees_with_the_geodesic_to_its_order(manifold, shape, seed):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1)
    times = np.array([2.0**-5, 2.0**-6, 2.0**-7])
    steps = [torch.as_tensor(t * u) for t in times]
    gaps = [float(manifold.dist(manifold.retr(x, s), manifold.expmap(x, s))) for s in steps]
    if isinstance(manifold.retraction, Geodesic) or (manifold, shape) not in SPHERES + SCALED:
        assert max(gaps) == 0.0
        return
    # On spheres θ − atan θ = θ³/3 − …; on the cylinder |ln(1 + z) − z| = |z|²/2 − …, z = a + iθ,
    # for every u ≠ 0. The next terms change the slope by θ² and by |z|: 1e-3 and 2e-2 here.
    order = {Projective: 3, Additive: 2}[type(manifold.retraction)]
    slope = np.polyfit(np.log(times), np.log(gaps), 1)[0]
    assert slope == pytest.approx(order, abs=0.05)


@each_manifold
@few
@given(seed=seeds, size=sizes(1e-8, 1e6))
def test_steps_of_any_size_end_on_the_manifold(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    if (manifold, shape) in SCALED:
        # eᵃ overflows beyond a = 709; what is around the cylinder may be of any size.
        radial = manifold.component_inner(x, x, u)
        u = u - (radial if size > 100 else 0) * x
        u = away_from_zero(manifold, x, u)
    assert float(manifold.violation(manifold.retr(x, u)).max()) <= 8 * EPS
    assert float(manifold.violation(manifold.expmap(x, u)).max()) <= 8 * EPS


# --- geodesics ------------------------------------------------------------------------------------


@each_geometry
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_geodesics_have_constant_speed_and_go_on_as_they_began(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    speed = manifold.component_inner(x, u)
    y, velocity = derivative(lambda t: manifold.expmap(x, t * u), 0.6)
    there = manifold.component_inner(y, velocity)
    torch.testing.assert_close(there, speed, rtol=ROUNDING * (1 + size), atol=0)
    # exp(x, u) = exp(γ(t), (1 − t) γ'(t)): it is one curve, not one for each starting point.
    tolerance = ROUNDING * (1 + size)
    assert (
        apart(manifold.expmap(y, 0.4 * velocity), manifold.expmap(x, u), manifold.dim) <= tolerance
    )


@over(ROUND)
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_geodesics_of_spheres_do_not_accelerate(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)

    def curve(t):
        return manifold.expmap(x, t * u)

    for t in (0.7,):
        y, bend = curve(t), acceleration(curve, t)
        # Towards the centre with |γ'|²/ρ, and nothing along the sphere.
        inwards = rows_of(u, manifold.dim).pow(2).sum(1, keepdim=True) / manifold.radius**2
        exact = -inwards * rows_of(y, manifold.dim)
        torch.testing.assert_close(
            rows_of(bend, manifold.dim), exact, rtol=0, atol=_bend(size) * manifold.radius
        )


@over(CYLINDERS)
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_geodesics_of_cylinders_do_not_accelerate(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)

    def curve(t):
        return rows_of(manifold.expmap(x, t * u), manifold.dim)

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


@each_geometry
@below_pi
def test_log_inverts_exp(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    back = manifold.logmap(x, manifold.expmap(x, u))
    # Absolute: y = exp(x, u) is rounded relative to x. Next to the antipode, at the distance
    # π − 3.1, a change of y turns the direction of log by 1/sin(3.1) = 24 times as much.
    assert length(manifold, x, back - u) <= ROUNDING * (24 if size > 1 else 1)
    # From 2e-8 on there are digits to compare: no more of them are lost than that.
    assert relative(manifold, x, back, u) <= ROUNDING * (24 + 1 / size)


@each_geometry
@few
@given(seed=seeds)
def test_exp_inverts_log(manifold, shape, seed):
    x, y = two_points(manifold, shape, seed)
    u = manifold.logmap(x, y)
    assert manifold.check_vector_on_tangent(x, u)
    assert apart(manifold.expmap(x, u), y, manifold.dim) <= ROUNDING


@each_geometry
@fewer
@given(seed=seeds, size=sizes(1e-8, 3.1))
def test_distance_is_the_length_of_the_geodesic(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    y = manifold.expmap(x, tangent(manifold, x, seed + 1, size))
    u = manifold.logmap(x, y)
    nodes, weights = np.polynomial.legendre.leggauss(2)
    travelled = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        z, velocity = derivative(lambda t: manifold.expmap(x, t * u), float(t))
        travelled += weight * float(manifold.norm(z, velocity))
    dist = float(manifold.dist(x, y))
    # Both see x and y rounded, which is what is left of a distance of 1e-8.
    tolerance = ROUNDING * (1 + 1 / size)
    assert dist == pytest.approx(travelled, rel=tolerance)
    assert dist == pytest.approx(float(manifold.norm(x, u)), rel=tolerance)
    assert dist**2 == pytest.approx(float(manifold.dist2(x, y)), rel=ROUNDING)


@each_geometry
@few
@given(seed=seeds, size=sizes())
def test_no_curve_is_shorter_than_the_distance(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u, bump = (tangent(manifold, x, seed + i, size) for i in (1, 2))
    # A wobbly way from x to exp(x, u), as the polygon of its points: dist ≤ any such sum.
    times = np.linspace(0, 1, 9)
    ways = [manifold.expmap(x, float(t) * u + 0.1 * math.sin(math.pi * t) * bump) for t in times]
    walked = sum(float(manifold.dist(a, b)) for a, b in itertools.pairwise(ways))
    assert float(manifold.dist(x, manifold.expmap(x, u))) <= walked * (1 + ROUNDING) + ROUNDING


@each_geometry
@few
@given(seed=seeds, near=sizes(1e-8, 3.0))
def test_distance_is_a_distance(manifold, shape, seed, near):
    x, y = two_points(manifold, shape, seed)
    z = manifold.expmap(x, tangent(manifold, x, seed + 2, near))
    dist = manifold.dist
    assert float(dist(x, x)) == 0.0
    assert float(dist(x, z)) > 0.0
    for a, b in ((x, y), (x, z), (y, z)):
        # Absolute: ln(‖y‖/‖x‖) of near points carries the rounding of the quotient.
        atol = 8 * EPS * unit(manifold)
        torch.testing.assert_close(dist(a, b), dist(b, a), rtol=8 * EPS, atol=atol)
    slack = ROUNDING * unit(manifold) * math.sqrt(x.numel())
    assert float(dist(x, y)) <= float(dist(x, z) + dist(z, y)) + slack
    assert float(dist(y, z)) <= float(dist(y, x) + dist(x, z)) + slack


@over(ROUND + CYLINDERS)
@few
@given(seed=seeds, angle=st.floats(0.0, 2 * math.pi))
def test_angles_are_right_all_the_way_round(manifold, shape, seed, angle):
    """Built here from cos and sin alone: what goes around a circle once comes closer again."""
    x = point(manifold, shape, seed)
    w = rows_of(x, manifold.dim)
    if w.shape[1] == 1:
        return
    side = rows_of(point(manifold, shape, seed + 1), manifold.dim)
    side = side - (side * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
    side = side / side.norm(dim=1, keepdim=True) * w.norm(dim=1, keepdim=True)
    turned = math.cos(angle) * w + math.sin(angle) * side
    y = turned.reshape(x.shape) if manifold.dim != 1 else _columns(turned, x)
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
    slices = len(lengths(x, manifold.dim))
    assert float(manifold.dist(x, -x)) == pytest.approx(
        math.pi * unit(manifold) * math.sqrt(slices), rel=ROUNDING
    )
    assert torch.all(manifold.logmap(x, -x).isnan())
    assert torch.all(manifold.transp(x, -x, tangent(manifold, x, seed + 1)).isnan())


# --- transport ------------------------------------------------------------------------------------


def check_transport(manifold, x, y, vectors, carried, tolerance):
    """Tangent at the end, and every inner product as before, slice by slice."""
    for v, w in zip(vectors, carried, strict=True):
        size = length(manifold, x, v)
        assert length(manifold, y, manifold.proju(y, w) - w) <= tolerance * size
        for a, b in zip(vectors, carried, strict=True):
            before, after = manifold.component_inner(x, v, a), manifold.component_inner(y, w, b)
            bound = size * length(manifold, x, a) * unit(manifold) ** 2
            torch.testing.assert_close(after, before, rtol=0, atol=tolerance * bound)


@each_geometry
@below_pi
def test_transport_between_points(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    vectors = [u, *(tangent(manifold, x, seed + i, 10.0**i) for i in (2, 3))]
    y = manifold.expmap(x, u)
    # At π − 3.1 from the antipode the transport turns 48 = 2/(π − 3.1) times as fast as the
    # points between which it leads: it magnifies their rounding.
    tolerance = ROUNDING * (48 if size > 1 else 1)
    carried = [manifold.transp(x, y, v) for v in vectors]
    check_transport(manifold, x, y, vectors, carried, tolerance)
    for v, w in zip(vectors, carried, strict=True):
        assert relative(manifold, x, manifold.transp(y, x, w), v) <= tolerance
        # … and it is the transport along the geodesic.
        assert relative(manifold, y, manifold.transp_follow_expmap(x, u, v), w) <= tolerance
    # The geodesic's velocity is carried to its velocity.
    ahead = manifold.transp(x, y, manifold.logmap(x, y))
    assert relative(manifold, y, -manifold.logmap(y, x), ahead) <= tolerance * (1 + 1 / size)


@each_geometry
@few
@given(seed=seeds, a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_transport_is_linear(manifold, shape, seed, a, b):
    x, y = two_points(manifold, shape, seed)
    u, v, w = (tangent(manifold, x, seed + i) for i in (2, 3, 4))
    u = away_from_zero(manifold, x, u)
    for carry, end in (
        (lambda v: manifold.transp(x, y, v), y),
        (lambda v: manifold.transp_follow_expmap(x, u, v), manifold.expmap(x, u)),
        (lambda v: manifold.transp_follow_retr(x, u, v), manifold.retr(x, u)),
    ):
        off = carry(a * v + b * w) - (a * carry(v) + b * carry(w))
        # Two random points may lie next to antipodes: transport magnifies there.
        assert length(manifold, end, off) <= 1e4 * ROUNDING * (abs(a) + abs(b) + 1e-300)


@each_geometry
@steps
def test_transport_along_a_geodesic(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    vectors = [u, *(tangent(manifold, x, seed + i, 10.0**i) for i in (2, 3))]
    tolerance = ROUNDING * (1 + size)
    y = manifold.expmap(x, u)
    results = [manifold.expmap_transp(x, u, v) for v in vectors]
    assert all(torch.equal(end, y) for end, _ in results)
    carried = [w for _, w in results]
    check_transport(manifold, x, y, vectors, carried, tolerance)
    # The velocity stays the velocity, and it leads all the way back.
    _, velocity = derivative(lambda t: manifold.expmap(x, t * u), 1.0)
    assert relative(manifold, y, carried[0], velocity) <= tolerance
    for v, w in zip(vectors, carried, strict=True):
        assert torch.equal(manifold.transp_follow_expmap(x, u, v), w)
        home, back = manifold.expmap_transp(y, -carried[0], w)
        assert apart(home, x, manifold.dim) <= tolerance
        assert relative(manifold, x, back, v) <= tolerance


@over(ROUND + CYLINDERS)
@fewer
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_transport_along_a_geodesic_is_parallel(manifold, shape, seed, size):
    """Its covariant derivative vanishes, which isometry alone does not say."""
    x = point(manifold, shape, seed)
    u, v = tangent(manifold, x, seed + 1, size), tangent(manifold, x, seed + 2)

    def unit_vectors(y):
        w = rows_of(y, manifold.dim)
        return w / torch.linalg.vector_norm(w, dim=1, keepdim=True)

    def along(t):
        """The part along the cylinder (on a sphere: 0, as it is tangent), and the part around."""
        y, w = manifold.expmap_transp(x, t * u, v)
        r = torch.linalg.vector_norm(rows_of(y, manifold.dim), dim=1, keepdim=True)
        d, w = unit_vectors(y), rows_of(w, manifold.dim) / r
        a = (w * d).sum(1, keepdim=True)
        return a, w - a * d

    for t in (0.7,):
        _, (radial, around) = derivative(along, t)
        d = unit_vectors(manifold.expmap(x, t * u))
        around = around - (around * d).sum(1, keepdim=True) * d
        bound = ROUNDING * size * (1 + size)
        assert float(radial.abs().max()) <= bound
        assert float(around.abs().max()) <= bound


@each_manifold
@few
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_transport_along_a_step(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    vectors = [u, *(tangent(manifold, x, seed + i, 10.0**i) for i in (2, 3))]
    y = manifold.retr(x, u)
    results = [manifold.retr_transp(x, u, v) for v in vectors]
    assert all(torch.equal(end, y) for end, _ in results)
    carried = [w for _, w in results]
    if isinstance(manifold.retraction, Additive):
        assert all(torch.equal(w, v) for v, w in zip(vectors, carried, strict=True))
    else:
        check_transport(manifold, x, y, vectors, carried, ROUNDING * (1 + size))


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


@over([row for row in MANIFOLDS if row not in SPHERES + SCALED])
def test_flat_space_is_flat(manifold, shape):
    x, y, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    assert torch.equal(manifold.expmap(x, v), x + v)
    assert torch.equal(manifold.logmap(x, y), y - x)
    assert torch.equal(manifold.transp(x, y, v), v)
    assert torch.equal(manifold.egrad2rgrad(x, v), v)
    assert float(manifold.dist(x, y)) == pytest.approx(float((y - x).norm()), rel=8 * EPS)
