"""Gains and directions: against the product ℝ × Sⁿ⁻¹ itself, through zero, and at zero."""

import math

import pytest
import torch
from cases import POLAR, few, over, point, rows_of, seeds, sizes, source, tangent
from hypothesis import given

from manifoldnet.geometry import Oblique, Polar, WrongTensorError
from manifoldnet.geometry.oblique import angle
from manifoldnet.testing import GeodesicLaws, TransportLaws

EPS = torch.finfo(torch.float64).eps
ROUNDING = 200 * EPS
each_polar = over(POLAR)
ON_SPHERE = {dim: Oblique(dim, retraction="geodesic") for dim in (0, 1, None)}


def covector(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=source(seed))


# --- the product of gains and directions ----------------------------------------------------------


@each_polar
@few
@given(seed=seeds, size=sizes(1e-8, 30.0))
def test_geodesics_are_those_of_the_product(manifold, shape, seed, size):
    """Also through zero, from where a gain is negative."""
    x = point(manifold, shape, seed)
    u, v = tangent(manifold, x, seed + 1, size), tangent(manifold, x, seed + 2)
    sphere = ON_SPHERE[manifold.dim]
    r, d = manifold.split(x)
    (a, t), (b, tau) = ((manifold.slices.inner(d, w), sphere.proju(d, w)) for w in (u, v))
    y, w = manifold.expmap_transp(x, u, v)
    e, around = sphere.expmap_transp(d, t / r, tau / r)
    bound = {"rtol": ROUNDING * (1 + size), "atol": ROUNDING * (1 + size) ** 2}
    torch.testing.assert_close(y, (r + a) * e, **bound)
    torch.testing.assert_close(w, b * e + (r + a) * around, **bound)
    torch.testing.assert_close(manifold.retr(x, u), y, rtol=0, atol=0)


@each_polar
@few
@given(seed=seeds)
def test_the_distance_is_that_of_the_nearer_of_two_representatives(manifold, shape, seed):
    x, y = point(manifold, shape, seed), point(manifold, shape, seed + 1)
    x = 0.3 * x  # small gains, so that both cases occur
    (r, d), (s, e) = manifold.split(x), manifold.split(y)
    direct = (r - s) ** 2 + angle(manifold.slices, d, e) ** 2
    through = (r + s) ** 2 + angle(manifold.slices, d, -e) ** 2
    exact = torch.minimum(direct, through).sqrt()
    torch.testing.assert_close(manifold.component_dist(x, y), exact, rtol=ROUNDING, atol=ROUNDING)


def test_both_geodesics_occur():
    x = torch.tensor([[1.0, 0.0], [0.1, 0.0], [0.1, 0.0]], dtype=torch.float64)
    y = torch.tensor([[-1.0, 1.0], [-0.1, 0.0], [0.0, 0.1]], dtype=torch.float64)
    found = Polar().component_dist(x, y).flatten()
    exact = [math.hypot(math.sqrt(2) - 1, 3 * math.pi / 4), 0.2, math.pi / 2]
    assert found.tolist() == pytest.approx(exact)
    assert torch.allclose(Polar().logmap(x, y)[1], torch.tensor([-0.2, 0.0], dtype=torch.float64))
    assert torch.allclose(Polar().expmap(x, Polar().logmap(x, y)), y)


@each_polar
@few
@given(seed=seeds)
def test_the_metric_does_not_see_a_turn_of_the_space(manifold, shape, seed):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1)
    n = rows_of(x, manifold.dim).shape[1]
    turn = torch.linalg.qr(covector((n, n), seed + 2))[0]
    w, v = rows_of(x, manifold.dim) @ turn, rows_of(u, manifold.dim) @ turn
    torch.testing.assert_close(
        Polar().component_inner(w, v).flatten(), manifold.component_inner(x, u).flatten()
    )


class TestThroughZero(GeodesicLaws, TransportLaws):
    """Gains so small that many geodesics, and ways between two points, cross zero."""

    manifold, shape = Polar(), (5, 4)
    injectivity = math.pi / 2
    slack = 100.0  # near zero, where vectors across are divided by small gains

    def point(self, seed):
        return super().point(seed) / 4


# --- at zero --------------------------------------------------------------------------------------


def at_zero():
    """A weight with a zero row, and vectors."""
    x = point(Polar(), (4, 3), 0)
    x[1] = 0
    return x, covector((4, 3), 1), covector((4, 3), 2)


def test_a_zero_slice_is_a_point_where_all_is_euclidean():
    m = Polar()
    x, u, v = at_zero()
    assert m.validate(x) is None
    assert m.validate(torch.zeros(4, 3)) is None
    assert torch.equal(m.projx(x), x)
    assert torch.equal(m.egrad2rgrad(x, u)[1], u[1])
    assert torch.equal(m.expmap(x, u)[1], u[1])
    assert torch.equal(m.retr(x, u)[1], u[1])
    assert float(m.component_inner(x, u, v)[1]) == pytest.approx(float(u[1] @ v[1]))
    assert torch.equal(m.ehess2rhess(x, u, v, u)[1], v[1])
    y = point(m, (4, 3), 3)
    torch.testing.assert_close(m.logmap(x, y)[1], y[1])
    torch.testing.assert_close(m.logmap(y, x)[1], -y[1])
    for a, b in ((x, y), (y, x)):
        assert float(m.component_dist(a, b)[1]) == pytest.approx(float(y[1].norm()))
    assert not bool(m.logmap(x, x).any())
    assert float(m.dist(x, x)) == 0.0


def test_the_part_along_the_step_is_transported():
    m = Polar()
    x, u, v = at_zero()
    along = (u[1] @ v[1]) / (u[1] @ u[1]) * u[1]
    torch.testing.assert_close(m.retr_transp(x, u, v)[1][1], along)
    torch.testing.assert_close(m.retr_transp(x, u, u)[1][1], u[1])
    torch.testing.assert_close(m.transp(x, u, v)[1], along)
    assert torch.equal(m.retr_transp(x, 0 * u, v)[1][1], v[1])
    # From elsewhere to zero: the part along the way.
    y = point(m, (4, 3), 3)
    along = (y[1] @ v[1]) / (y[1] @ y[1]) * y[1]
    torch.testing.assert_close(m.transp(y, x, v)[1], along)


def test_derivatives_at_zero_are_finite():
    m = Polar()
    x, u, v = at_zero()
    y = point(m, (4, 3), 3)
    for function, at in (
        (lambda z: m.expmap(z, u).sum(), x),
        (lambda w: m.expmap(x, w).sum(), u),
        (lambda w: m.expmap(x, w).sum(), torch.zeros_like(u)),
        (lambda w: m.norm(x, w), u),
        (lambda z: m.dist(z, y), x),
        (lambda z: m.dist(y, z), x),
        (lambda z: m.logmap(y, z).sum(), x),
        (lambda w: m.retr_transp(x, w, v)[1].sum(), torch.zeros_like(u)),
    ):
        z = at.clone().requires_grad_()
        (g,) = torch.autograd.grad(function(z), z)
        assert torch.all(g.isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 30.0])
def test_slices_of_any_size_step_to_finite_ones(dtype, scale):
    m = Polar()
    x = (scale * point(m, (4, 3), 0)).to(dtype)
    g = covector((4, 3), 1).to(dtype)
    y, w = m.retr_transp(x, -0.1 * m.egrad2rgrad(x, g), g)
    assert bool(y.isfinite().all())
    assert bool(w.isfinite().all())


# --- taken apart and joined -----------------------------------------------------------------------


@each_polar
@few
@given(seed=seeds)
def test_gradients_of_gains_and_directions_are_autograds(manifold, shape, seed):
    x, g = point(manifold, shape, seed), covector(shape, seed + 1)
    r, d = manifold.split(x)
    torch.testing.assert_close(manifold.join(r, d), x, rtol=4 * EPS, atol=4 * EPS)
    for sign in (1.0, -1.0):
        r_, d_ = (sign * r).requires_grad_(), (sign * d).requires_grad_()
        by_r, by_d = torch.autograd.grad((g * manifold.join(r_, d_)).sum(), (r_, d_))
        of_r, of_d = manifold.gradients(sign * r, sign * d, g)
        sphere = ON_SPHERE[manifold.dim]
        torch.testing.assert_close(of_r, by_r, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(of_d, sphere.proju(d, by_d), rtol=ROUNDING, atol=ROUNDING)
    # Together they are the Riemannian gradient.
    a, b = manifold.gradients(r, d, g)
    torch.testing.assert_close(manifold.egrad2rgrad(x, g), a * d + r * b)


def test_a_zero_slice_takes_its_direction_from_the_gradient():
    m = Polar()
    x, g, _ = at_zero()
    r, d = m.split(x, g)
    torch.testing.assert_close(d[1], -g[1] / g[1].norm())
    torch.testing.assert_close(d.norm(dim=1), torch.ones(4, dtype=torch.float64))
    of_r, of_d = m.gradients(r, d, g)
    assert float(of_r[1]) == pytest.approx(-float(g[1].norm()))
    assert not bool(of_d[1].any())
    assert not bool(m.split(x)[1][1].any())
    g[1] = 0
    assert not bool(m.split(x, g)[1][1].any())


def test_a_gain_below_zero_is_the_opposite_direction():
    m = Polar()
    r, d = m.split(point(m, (4, 3), 0))
    s, e = m.split(m.join(-2 * r, d))
    torch.testing.assert_close(s, 2 * r)
    torch.testing.assert_close(e, -d)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_split_in_single_precision(dtype):
    m = Polar()
    x, g = point(m, (4, 3), 0, dtype), covector((4, 3), 1).to(dtype)
    r, d = m.split(x, g)
    assert (r.dtype, d.dtype, r.shape) == (torch.float32, torch.float32, (4, 1))
    assert [t.dtype for t in m.gradients(r, d, g)] == [torch.float32] * 2


# --- bad input ------------------------------------------------------------------------------------


def test_slices_of_one_number_have_no_direction():
    with pytest.raises(WrongTensorError, match="slices of 1 number"):
        Polar().projx(torch.ones(4))
    with pytest.raises(WrongTensorError, match="no dimension 2"):
        Polar(2).projx(torch.ones(4, 3))


@pytest.mark.parametrize("dim", [-1, "rows", True, 1.0])
def test_invalid_dims(dim):
    with pytest.raises(ValueError if dim == -1 else TypeError, match="dim"):
        Polar(dim)
