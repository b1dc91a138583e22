"""Projections, metrics, random points: what is known beyond the laws of every manifold."""

import math

import pytest
import torch
from cases import (
    GEOMETRIES,
    SCALED,
    SPHERES,
    STIEFEL,
    ZEROED,
    few,
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

from manifoldnet.geometry import Oblique, ScaledEuclidean, Sphere

EPS = torch.finfo(torch.float64).eps
# Sums of at most 36 products and a handful of operations on each: tens of roundings, not hundreds.
ROUNDING = 50 * EPS

# No retraction takes part in this file.
ROUND = [row for row in GEOMETRIES if row in SPHERES]
RELATIVE = [row for row in GEOMETRIES if row in SCALED]


def anything(shape, seed, size=1.0):
    return size * torch.randn(shape, dtype=torch.float64, generator=source(seed))


# --- to the set -----------------------------------------------------------------------------------


@over(ROUND)
@few
@given(seed=seeds, size=sizes(1e-3, 1e3))
def test_projx_finds_the_nearest_point(manifold, shape, seed, size):
    x, y = anything(shape, seed, size), point(manifold, shape, seed + 1)
    nearest = manifold.projx(x)
    here, there = (lengths(x - z, manifold.slices.dim) for z in (nearest, y))
    assert torch.all(here <= there * (1 + ROUNDING))
    # … and at the distance |‖x‖ − ρ|; in absolute terms, as x may lie next to it.
    exact = (lengths(x, manifold.slices.dim) - manifold.radius).abs()
    torch.testing.assert_close(here, exact, rtol=0, atol=ROUNDING * (size + manifold.radius) * 6)


# --- to the tangent space -------------------------------------------------------------------------


@over(ROUND)
@few
@given(seed=seeds, angle=st.floats(0, math.pi / 2))
def test_tangent_violation_is_the_share_that_is_not_tangent(manifold, shape, seed, angle):
    x = point(manifold, shape, seed)
    u = manifold.random_tangent(x, generator=source(seed + 1))
    u = scale_slices(u, manifold.radius / lengths(u, manifold.slices.dim), manifold.slices.dim)
    u = manifold.proju(x, u)  # of what was short before, more is normal than ε
    off = manifold.tangent_violation(x, math.cos(angle) * u + math.sin(angle) * x)
    exact = torch.full_like(off, math.sin(angle))
    torch.testing.assert_close(off, exact, rtol=0, atol=ROUNDING)


# --- the metric -----------------------------------------------------------------------------------


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
    w, a, b = (rows_of(z, manifold.slices.dim) for z in (x, u, v))
    exact = (a * b).sum(1) / (w * w).sum(1)
    bound = (a.norm(dim=1) * b.norm(dim=1) / (w * w).sum(1)).max()
    torch.testing.assert_close(
        manifold.component_inner(x, u, v).flatten(), exact, rtol=0, atol=ROUNDING * float(bound)
    )


# --- the gradient ---------------------------------------------------------------------------------


# --- random points --------------------------------------------------------------------------------


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


@over([row for row in GEOMETRIES if row not in SPHERES + STIEFEL + ZEROED])
def test_random_points_are_gaussian_where_there_is_no_constraint(manifold, shape):
    x = manifold.random(shape, generator=source(0))
    assert torch.equal(x, torch.randn(shape, generator=source(0)))


@over(GEOMETRIES)
def test_nan_in_a_vector_gives_a_nan_norm(manifold, shape):
    x = point(manifold, shape, 0)
    u = tangent(manifold, x, 1)
    u.view(-1)[-1] = math.nan
    assert math.isnan(float(manifold.norm(x, u)))


@over(GEOMETRIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_is_not_tangent(manifold, shape, bad):
    x = point(manifold, shape, 0)
    u = tangent(manifold, x, 1, 1.0)
    u.view(-1)[0] = bad
    assert bool(manifold.tangent_violation(x, u).max() == math.inf)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Sphere(), (1024, 2048)), (Oblique(0), (2, 1_000_000)), (Oblique(1), (1_000_000, 2))],
    ids=str,
)
def test_long_slices_in_float32(manifold, shape):
    """torch's vector_norm, which adds numbers in a row, is off by 3e-5 on the first of them."""
    x = manifold.projx(torch.rand(shape, generator=source(0)))
    over = tuple(d for d in (0, 1) if d != manifold.dim)
    assert x.double().norm(dim=over).sub(1).abs().max() < 1e-6
    assert manifold.violation(x).max() < 1e-6
    assert manifold.violation(x * 1.00001).max() > 9e-6


def test_the_norm_of_a_long_slice_of_zeros_has_the_gradient_zero():
    x = torch.zeros(1, 10_000, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Sphere().slices.norm(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))
