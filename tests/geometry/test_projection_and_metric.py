"""Projections, metrics, gradients: what must hold on every manifold."""

import math

import pytest
import torch
from cases import (
    GEOMETRIES,
    SCALED,
    SPHERES,
    apart,
    each_geometry,
    few,
    length,
    lengths,
    over,
    point,
    rows_of,
    scale_slices,
    seeds,
    sizes,
    source,
    tangent,
)
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.geometry import Oblique, ScaledEuclidean

EPS = torch.finfo(torch.float64).eps
# Sums of at most 36 products and a handful of operations on each: tens of roundings, not hundreds.
ROUNDING = 50 * EPS

# No retraction takes part in this file.
ROUND = [row for row in GEOMETRIES if row in SPHERES]
RELATIVE = [row for row in GEOMETRIES if row in SCALED]


def anything(shape, seed, size=1.0):
    return size * torch.randn(shape, dtype=torch.float64, generator=source(seed))


# --- to the set -----------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-30, 1e30))
def test_projx_is_idempotent_and_lands_on_the_manifold(manifold, shape, seed, size):
    y = manifold.projx(anything(shape, seed, size))
    # A norm of at most 36 squares, its root and one division.
    assert float(manifold.violation(y).max()) <= 8 * EPS
    assert apart(manifold.projx(y), y, manifold.dim) <= 8 * EPS


@each_geometry
@few
@given(seed=seeds)
def test_projx_leaves_points_where_they_are(manifold, shape, seed):
    x = point(manifold, shape, seed)
    assert apart(manifold.projx(x), x, manifold.dim) <= 8 * EPS


@over(ROUND)
@few
@given(seed=seeds, size=sizes(1e-3, 1e3))
def test_projx_finds_the_nearest_point(manifold, shape, seed, size):
    x, y = anything(shape, seed, size), point(manifold, shape, seed + 1)
    nearest = manifold.projx(x)
    here, there = (lengths(x - z, manifold.dim) for z in (nearest, y))
    assert torch.all(here <= there * (1 + ROUNDING))
    # … and at the distance |‖x‖ − ρ|; in absolute terms, as x may lie next to it.
    exact = (lengths(x, manifold.dim) - manifold.radius).abs()
    torch.testing.assert_close(here, exact, rtol=0, atol=ROUNDING * (size + manifold.radius) * 6)


# --- to the tangent space -------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-8, 1e8))
def test_proju_is_idempotent_and_lands_in_the_tangent_space(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = manifold.proju(x, anything(shape, seed + 1, size))
    # Relative to what was projected: little of it may be left (on a circle, almost nothing).
    assert float((manifold.proju(x, u) - u).abs().max()) <= ROUNDING * size
    normal = rows_of(x, manifold.dim) * rows_of(u, manifold.dim)
    if (manifold, shape) in SPHERES:
        assert float(normal.sum(1).abs().max()) <= ROUNDING * size * manifold.radius
    else:
        assert torch.equal(manifold.proju(x, normal := anything(shape, seed)), normal)


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-8, 1e8))
def test_proju_is_orthogonal_in_the_metric(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = anything(shape, seed + 1, size)
    v = tangent(manifold, x, seed + 2)
    rest = u - manifold.proju(x, u)
    bound = float(manifold.norm(x, u) * manifold.norm(x, v))
    assert abs(float(manifold.inner(x, rest, v))) <= ROUNDING * bound


@each_geometry
@few
@given(seed=seeds, size=sizes())
def test_proju_keeps_tangent_vectors(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    assert length(manifold, x, manifold.proju(x, u) - u) <= ROUNDING * size
    assert manifold.check_vector_on_tangent(x, u)


@over(ROUND)
@few
@given(seed=seeds, angle=st.floats(0, math.pi / 2))
def test_tangent_violation_is_the_share_that_is_not_tangent(manifold, shape, seed, angle):
    x = point(manifold, shape, seed)
    u = manifold.random_tangent(x, generator=source(seed + 1))
    u = scale_slices(u, manifold.radius / lengths(u, manifold.dim), manifold.dim)
    u = manifold.proju(x, u)  # of what was short before, more is normal than ε
    off = manifold.tangent_violation(x, math.cos(angle) * u + math.sin(angle) * x)
    exact = torch.full_like(off, math.sin(angle))
    torch.testing.assert_close(off, exact, rtol=0, atol=ROUNDING)


# --- the metric -----------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-8, 1e8), factor=st.floats(-1e3, 1e3))
def test_metric_is_symmetric_and_bilinear(manifold, shape, seed, size, factor):
    x = point(manifold, shape, seed)
    u, v, w = (tangent(manifold, x, seed + i, size) for i in (1, 2, 3))
    component = manifold.component_inner
    # The products are the same numbers in the same order.
    assert torch.equal(component(x, u, v), component(x, v, u))
    left = component(x, factor * u + v, w)
    right = factor * component(x, u, w) + component(x, v, w)
    bound = (abs(factor) + 1) * float(manifold.norm(x, u) + manifold.norm(x, v))
    atol = ROUNDING * bound * float(manifold.norm(x, w))
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-8, 1e8))
def test_metric_is_positive_definite(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    assert torch.all(manifold.component_inner(x, u) > 0)
    assert float(manifold.inner(x, torch.zeros_like(x))) == 0.0


@each_geometry
@few
@given(seed=seeds, size=sizes())
def test_inner_is_the_sum_of_its_components(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u, v = (tangent(manifold, x, seed + i, size) for i in (1, 2))
    parts = manifold.component_inner(x, u, v)
    assert torch.broadcast_shapes(parts.shape, x.shape) == x.shape
    assert parts.ndim == x.ndim
    whole = manifold.inner(x, u, v)
    assert whole.shape == ()
    bound = float(manifold.norm(x, u) * manifold.norm(x, v))
    assert abs(float(whole) - math.fsum(parts.flatten().tolist())) <= ROUNDING * bound
    assert torch.equal(manifold.component_inner(x, u), manifold.component_inner(x, u, u))
    torch.testing.assert_close(manifold.norm(x, u) ** 2, manifold.inner(x, u), rtol=8 * EPS, atol=0)
    for kept in (
        manifold.inner(x, u, v, keepdim=True),
        manifold.norm(x, u, keepdim=True),
        manifold.dist(x, x, keepdim=True),
        manifold.dist2(x, x, keepdim=True),
    ):
        assert kept.shape == (1,) * x.ndim


@pytest.mark.parametrize(
    ("dim", "components"), [(0, (4, 1, 1, 1)), (1, (1, 3, 1, 1)), (None, (1, 1, 1, 1))]
)
@pytest.mark.parametrize("kind", [Oblique, ScaledEuclidean])
def test_components_are_indexed_by_dim(kind, dim, components):
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    manifold = kind(dim=dim)
    assert manifold.component_inner(x, x).shape == components
    assert manifold.violation(x).shape == components
    slices = {0: x.flatten(1), 1: x.transpose(0, 1).flatten(1), None: x.reshape(1, -1)}[dim]
    norms = slices.pow(2).sum(1)
    exact = norms if kind is Oblique else torch.ones_like(norms)
    torch.testing.assert_close(
        manifold.component_inner(x, x).flatten(), exact, rtol=ROUNDING, atol=0
    )


@over(RELATIVE)
@few
@given(seed=seeds, size=sizes())
def test_scaled_metric_measures_relative_to_the_weight(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u, v = (tangent(manifold, x, seed + i, size) for i in (1, 2))
    w, a, b = (rows_of(z, manifold.dim) for z in (x, u, v))
    exact = (a * b).sum(1) / (w * w).sum(1)
    bound = (a.norm(dim=1) * b.norm(dim=1) / (w * w).sum(1)).max()
    torch.testing.assert_close(
        manifold.component_inner(x, u, v).flatten(), exact, rtol=0, atol=ROUNDING * float(bound)
    )


# --- the gradient ---------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds)
def test_gradient_represents_the_differential(manifold, shape, seed):
    x = point(manifold, shape, seed)
    v = tangent(manifold, x, seed + 1)
    linear, curved = anything(shape, seed + 2), anything(shape, seed + 3)

    def loss(x):
        return (linear * x + torch.tanh(curved * x)).sum()

    g = torch.func.grad(loss)(x)
    _, directional = torch.func.jvp(loss, (x,), (v,))
    gradient = manifold.egrad2rgrad(x, g)
    bound = float((g * v).abs().sum() + manifold.norm(x, gradient) * manifold.norm(x, v))
    assert abs(float(manifold.inner(x, gradient, v) - directional)) <= ROUNDING * bound
    size = float(manifold.norm(x, gradient))
    assert manifold.norm(x, manifold.proju(x, gradient) - gradient) <= ROUNDING * size + EPS * bound


@each_geometry
def test_arguments_are_not_changed(manifold, shape):
    x, y = (point(manifold, shape, seed) for seed in (0, 1))
    u, v = (tangent(manifold, x, seed) for seed in (2, 3))
    before = [t.clone() for t in (x, y, u, v)]
    manifold.projx(x)
    manifold.proju(x, u)
    manifold.egrad2rgrad(x, u)
    manifold.expmap_transp(x, u, v)
    manifold.retr_transp(x, u, v)
    manifold.logmap(x, y)
    manifold.transp(x, y, v)
    manifold.dist(x, y)
    manifold.norm(x, u)
    assert all(torch.equal(a, b) for a, b in zip((x, y, u, v), before, strict=True))


# --- random points --------------------------------------------------------------------------------


@each_geometry
def test_random_points_repeat_and_take_shapes_both_ways(manifold, shape):
    draws = [
        manifold.random(shape, generator=source(3)),
        manifold.random(*shape, generator=source(3)),
        manifold.random(torch.Size(shape), generator=source(3)),
    ]
    assert all(torch.equal(draw, draws[0]) for draw in draws)
    assert not torch.equal(manifold.random(shape, generator=source(4)), draws[0])
    torch.manual_seed(5)
    by_default = manifold.random(shape)
    torch.manual_seed(5)
    assert torch.equal(manifold.random(shape), by_default)


@each_geometry
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_random_points_are_points_of_the_asked_type(manifold, shape, dtype):
    x = manifold.random(shape, dtype=dtype, generator=source(0))
    assert x.dtype == dtype
    assert x.shape == shape
    assert type(x) is torch.Tensor
    assert float(manifold.violation(x).max()) <= 4 * torch.finfo(dtype).eps
    assert manifold.check_point_on_manifold(x)
    u = manifold.random_tangent(x, generator=source(1))
    assert torch.equal(u, manifold.random_tangent(x, generator=source(1)))
    assert u.dtype == dtype
    assert manifold.check_vector_on_tangent(x, u)


@pytest.mark.parametrize("dim", [0, 1])
def test_random_points_are_uniform_on_the_sphere(dim):
    n, count = 4, 20_000
    shape = (count, n) if dim == 0 else (n, count)
    x = rows_of(Oblique(dim=dim).random(shape, dtype=torch.float64, generator=source(0)), dim)
    # Means of `count` numbers of variance 1/n (and products of variance below it): 5 deviations.
    bound = 5 / math.sqrt(n * count)
    assert float(x.mean(0).abs().max()) <= bound
    second = x.mT @ x / count
    assert float((second - torch.eye(n, dtype=x.dtype) / n).abs().max()) <= bound


@over([row for row in GEOMETRIES if row not in SPHERES])
def test_random_points_are_gaussian_where_there_is_no_constraint(manifold, shape):
    x = manifold.random(shape, generator=source(0))
    assert torch.equal(x, torch.randn(shape, generator=source(0)))
