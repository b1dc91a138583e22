"""Derivatives through the geometry: finite and right, above all where a norm is zero."""

import pytest
import torch
from cases import (
    POLAR,
    SPHERES,
    STIEFEL,
    ZEROED,
    each_geometry,
    each_logarithm,
    each_manifold,
    few,
    point,
    rows_of,
    seeds,
    source,
    tangent,
)
from hypothesis import given, settings
from torch.func import grad, jvp

EPS = torch.finfo(torch.float64).eps
ROUNDING = 200 * EPS

two = settings(few, max_examples=2)


def gradient(function, at):
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def covector(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=source(seed))


def bound(*vectors):
    total = torch.ones((), dtype=torch.float64)
    for v in vectors:
        total = total * v.norm()
    return ROUNDING * float(total)


@each_manifold
@few
@given(seed=seeds)
def test_steps_of_zero_have_the_identity_as_derivative(manifold, shape, seed):
    x, c = point(manifold, shape, seed), covector(shape, seed + 1)
    v = tangent(manifold, x, seed + 2)
    for move in (manifold.expmap, manifold.retr):
        g = gradient(lambda u, move=move: (c * move(x, u)).sum(), torch.zeros_like(x))
        assert torch.all(g.isfinite())
        assert abs(float((g * v).sum() - (c * v).sum())) <= bound(c, v)
        # The same where only some slices stand still.
        some = tangent(manifold, x, seed + 3)
        some[0] = 0
        assert torch.all(gradient(lambda u, move=move: (c * move(x, u)).sum(), some).isfinite())


@each_manifold
@few
@given(seed=seeds)
def test_points_that_stand_still_have_the_identity_as_derivative(manifold, shape, seed):
    x, c = point(manifold, shape, seed), covector(shape, seed + 1)
    v, zero = tangent(manifold, x, seed + 2), torch.zeros(shape, dtype=torch.float64)
    for move in (manifold.expmap, manifold.retr):
        g = gradient(lambda y, move=move: (c * move(y, zero)).sum(), x)
        assert torch.all(g.isfinite())
        assert abs(float((g * v).sum() - (c * v).sum())) <= bound(c, v)


@each_geometry
@two
@given(seed=seeds)
def test_second_derivatives_of_the_exponential_map_at_zero(manifold, shape, seed):
    x, c = point(manifold, shape, seed), covector(shape, seed + 1)
    v = tangent(manifold, x, seed + 2)
    zero = torch.zeros_like(x)
    # By reverse mode twice, as users do it.
    u = zero.clone().requires_grad_()
    (first,) = torch.autograd.grad((c * manifold.expmap(x, u)).sum(), u, create_graph=True)
    second = zero  # Euclidean space, where the first one is constant
    if first.requires_grad:
        (second,) = torch.autograd.grad((first * v).sum(), u)
    assert torch.all(second.isfinite())
    w, t = rows_of(x, manifold.slices.dim), rows_of(v, manifold.slices.dim)
    if (manifold, shape) in SPHERES:
        # −‖v‖²/ρ² x
        bend = -t.pow(2).sum(1, keepdim=True) / manifold.radius**2 * w
    elif (manifold, shape) in STIEFEL:
        # −x vᵀv of tall matrices
        w, t = rows_of(x, manifold.dim), rows_of(v, manifold.dim)
        bend = -(w @ t.mT @ t if len(w) > w.shape[1] else t @ t.mT @ w)
    elif manifold.slices.dim == "elements":
        bend = torch.zeros_like(w)
    elif (manifold, shape) in ZEROED:
        return
    elif (manifold, shape) in POLAR:
        # −θ² x + 2 a t/r, with v = a x/r + t
        r = w.norm(dim=1, keepdim=True)
        a = (w * t).sum(1, keepdim=True) / r
        t = t - a * w / r
        bend = -t.pow(2).sum(1, keepdim=True) / r**2 * w + 2 * a * t / r
    else:
        # (a² − θ²) x + 2 a t, with v = a x + t
        r2 = w.pow(2).sum(1, keepdim=True)
        a = (w * t).sum(1, keepdim=True) / r2
        t = t - a * w
        bend = (a**2 - t.pow(2).sum(1, keepdim=True) / r2) * w + 2 * a * t
    dim = manifold.dim if (manifold, shape) in STIEFEL else manifold.slices.dim
    exact = float((rows_of(c, dim) * bend).sum())
    assert abs(float((second * v).sum()) - exact) <= bound(c, x) + bound(c, v) * 10


@each_logarithm
@few
@given(seed=seeds)
def test_distances_at_equal_points(manifold, shape, seed):
    x = point(manifold, shape, seed)
    for function in (manifold.dist, manifold.dist2):
        for g in (
            gradient(lambda y, f=function: f(x, y), x),
            gradient(lambda y, f=function: f(y, x), x),
        ):
            assert torch.equal(g, torch.zeros_like(g))
        # Some slices equal, others not.
        y = manifold.expmap(x, tangent(manifold, x, seed + 1))
        y[0] = x[0]
        assert torch.all(gradient(lambda z, f=function, y=y: f(z, y), x).isfinite())
    assert torch.equal(
        gradient(lambda u: manifold.norm(x, u), torch.zeros_like(x)), torch.zeros_like(x)
    )


@each_logarithm
@few
@given(seed=seeds)
def test_gradient_of_the_distance_points_away(manifold, shape, seed):
    """∇ dist²(x, ·) at y is −2 log(y, x); that of dist is of length 1."""
    x = point(manifold, shape, seed)
    y = manifold.expmap(x, tangent(manifold, x, seed + 1))
    v = tangent(manifold, y, seed + 2)
    back, dist = manifold.logmap(y, x), manifold.dist(x, y)
    exact = -2 * manifold.inner(y, back, v)
    size = float(manifold.norm(y, back) * manifold.norm(y, v))
    for function, value in ((manifold.dist2, exact), (manifold.dist, exact / (2 * dist))):
        _, slope = jvp(lambda z, f=function: f(x, z), (y,), (v,))
        assert abs(float(slope - value)) <= ROUNDING * size * max(1.0, 1 / float(dist))
        g = gradient(lambda z, f=function: f(x, z), y)
        assert abs(float((g * v).sum() - value)) <= ROUNDING * size * max(1.0, 1 / float(dist)) * 10


@each_logarithm
@few
@given(seed=seeds)
def test_logarithm_of_the_point_itself_has_the_identity_as_derivative(manifold, shape, seed):
    x, c = point(manifold, shape, seed), covector(shape, seed + 1)
    v = tangent(manifold, x, seed + 2)
    g = gradient(lambda y: (c * manifold.logmap(x, y)).sum(), x)
    assert torch.all(g.isfinite())
    assert abs(float((g * v).sum() - (c * v).sum())) <= bound(c, v)


@each_geometry
def test_gradients_agree_with_finite_differences(manifold, shape):
    """Everything at once, away from the special places, in reverse mode."""
    x = point(manifold, shape, 0)
    y = manifold.expmap(x, tangent(manifold, x, 1))
    u, v = tangent(manifold, x, 2), tangent(manifold, x, 3)
    c = covector(shape, 4)
    for function in (
        lambda u: (c * manifold.expmap(x, u)).sum(),
        lambda u: (c * manifold.retr(x, u)).sum(),
        lambda u: (c * manifold.expmap_transp(x, u, v)[1]).sum(),
        lambda u: (c * manifold.transp(x, y, u)).sum(),
        lambda u: manifold.norm(x, u),
    ):
        g = grad(function)(u)
        step = 1e-5
        difference = (function(u + step * v) - function(u - step * v)) / (2 * step)
        # Central differences: step² of the third derivative, and rounding over the step.
        scale = float(c.norm() * v.norm() + (g * v).sum().abs() + 1)
        assert abs(float((g * v).sum() - difference)) <= 1e-8 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_manifold
def test_finite_in_every_type(manifold, shape, dtype):
    x = point(manifold, shape, 0)
    held = (manifold, shape) in SPHERES + STIEFEL
    x = x.to(dtype) if held else (x / x.abs().max()).to(dtype)
    zero = torch.zeros_like(x)
    functions = [
        (lambda u: manifold.expmap(x, u).sum(), zero),
        (lambda u: manifold.retr(x, u).sum(), zero),
        (lambda u: manifold.retr_transp(x, u, u)[1].sum(), zero),
        (lambda u: manifold.norm(x, u), zero),
        (lambda y: manifold.dist(x, y), x),
        (lambda y: manifold.dist2(x, y), x),
        (lambda y: manifold.logmap(x, y).sum(), x),
    ]
    for function, at in functions[: 4 if (manifold, shape) in STIEFEL else None]:
        g = gradient(function, at)
        assert g.dtype == dtype
        assert torch.all(g.isfinite())
