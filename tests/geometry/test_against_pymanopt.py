"""Agreement with pymanopt, which has its own formulas and columns where we have rows."""

import math

import numpy as np
import pymanopt.manifolds
import pytest
import torch
from cases import few, point, seeds, sizes, tangent
from hypothesis import given

from manifoldnet.geometry import Oblique, Sphere

# Their last digits are lost to acos (near 0) and to an ε added to the quotient of `log`.
CLOSE = 1e-12


def pairs():
    """Our manifold, a shape, theirs, and the way to their layout."""
    for name in ("projective", "geodesic"):
        yield Oblique(0, 1.0, name), (5, 4), pymanopt.manifolds.Oblique(4, 5), np.transpose
        yield Oblique(1, 1.0, name), (4, 5), pymanopt.manifolds.Oblique(4, 5), np.asarray
        yield Sphere(1.0, name), (3, 4), pymanopt.manifolds.Sphere(3, 4), np.asarray
        yield Oblique(None, 1.0, name), (2, 3, 2), pymanopt.manifolds.Sphere(2, 3, 2), np.asarray


each_pair = pytest.mark.parametrize(
    ("ours", "shape", "theirs", "layout"),
    list(pairs()),
    ids=[f"{ours}" for ours, *_ in pairs()],
)


def close(ours, theirs, layout, size=1.0):
    np.testing.assert_allclose(layout(ours.numpy()), theirs, rtol=0, atol=CLOSE * size)


@each_pair
@few
@given(seed=seeds, size=sizes(1e-3, 1e3))
def test_metric_and_projections(ours, shape, theirs, layout, seed, size):
    x = point(ours, shape, seed)
    z = size * torch.randn(shape, dtype=torch.float64)
    u, v = (tangent(ours, x, seed + i, size) for i in (1, 2))
    p, g, a, b = (layout(t.numpy()) for t in (x, z, u, v))
    close(ours.proju(x, z), theirs.projection(p, g), layout, 1 + size)
    close(ours.egrad2rgrad(x, z), theirs.euclidean_to_riemannian_gradient(p, g), layout, 1 + size)
    inner = theirs.inner_product(p, a, b)
    assert float(ours.inner(x, u, v)) == pytest.approx(inner, abs=CLOSE * size**2)
    assert float(ours.norm(x, u)) == pytest.approx(theirs.norm(p, a), rel=CLOSE)


@each_pair
@few
@given(seed=seeds, size=sizes(1e-6, 30.0))
def test_steps(ours, shape, theirs, layout, seed, size):
    x = point(ours, shape, seed)
    u = tangent(ours, x, seed + 1, size)
    p, a = layout(x.numpy()), layout(u.numpy())
    close(ours.expmap(x, u), theirs.exp(p, a), layout)
    same = theirs.retraction if ours.retraction.name == "projective" else theirs.exp
    close(ours.retr(x, u), same(p, a), layout)


@each_pair
@few
@given(seed=seeds, size=sizes(0.1, 2.5))
def test_logarithm_and_distance(ours, shape, theirs, layout, seed, size):
    x = point(ours, shape, seed)
    y = ours.expmap(x, tangent(ours, x, seed + 1, size))
    p, q = layout(x.numpy()), layout(y.numpy())
    # Slices that move little are where acos loses digits: as many as 1/angle.
    moved = ours.component_inner(x, ours.logmap(x, y)).sqrt()
    worst = 1 + 1e-3 / float(moved.min())
    close(ours.logmap(x, y), theirs.log(p, q), layout, worst)
    assert float(ours.dist(x, y)) == pytest.approx(theirs.dist(p, q), abs=CLOSE * worst)


@each_pair
@few
@given(seed=seeds, size=sizes(1e-3, 3.0))
def test_transport(ours, shape, theirs, layout, seed, size):
    """Theirs projects: the two agree on what is orthogonal to the way, and along it by cos θ."""
    x = point(ours, shape, seed)
    u, v = tangent(ours, x, seed + 1, size), tangent(ours, x, seed + 2)
    squared = ours.component_inner(x, u)
    across = v - ours.component_inner(x, u, v) / squared * u
    y = ours.expmap(x, u)
    p, q = layout(x.numpy()), layout(y.numpy())
    slack = 1 / math.sin(max(math.pi - size, 0.1))
    close(ours.transp(x, y, across), theirs.transport(p, q, layout(across.numpy())), layout, slack)
    along = squared.sqrt().cos() * ours.transp(x, y, u)
    close(along, theirs.transport(p, q, layout(u.numpy())), layout, slack * size)


def test_same_dimension_and_points():
    x = Oblique().random(5, 4, dtype=torch.float64)
    theirs = pymanopt.manifolds.Oblique(4, 5)
    np.testing.assert_allclose(theirs.random_point().T.shape, x.shape)
    ours = torch.as_tensor(theirs.random_point().T.copy())
    assert Oblique().check_point_on_manifold(ours, tol=CLOSE)
