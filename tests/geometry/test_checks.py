"""Numerical checks: right derivatives pass on every manifold, each kind of wrong one fails."""

import math
from types import SimpleNamespace

import geoopt
import pytest
import torch
from cases import each_geometry, each_manifold, few, over, point, refused, seeds
from hypothesis import given
from torch import nn

import manifoldnet as mn
from manifoldnet.geometry import (
    Euclidean,
    Geodesic,
    NotOnManifoldError,
    Oblique,
    QFactor,
    ScaledEuclidean,
    ScaledMetric,
    Slices,
    Sphere,
)
from manifoldnet.testing import check_gradient, check_hessian, check_metric, check_retraction

# The measured slope is the finding: an error of first, and of second order.
SLOPE_1 = r"wrong: .* O\(t\^(0\.9|1\.0)"
SLOPE_2 = r"Hessian is wrong: .* O\(t\^(1\.9|2\.0)"


def wave(shape, seed=0):
    """A smooth function of points whose derivatives of all orders matter."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, math.prod(shape), generator=generator, dtype=torch.float64)
    mix /= mix.norm(dim=1, keepdim=True)
    return lambda x: (mix @ x.flatten()).sin().sum() + (mix[0] @ x.flatten()).square()


@each_geometry
@few
@given(seed=seeds)
def test_autograd_is_right_everywhere(manifold, shape, seed):
    x, f = point(manifold, shape, seed), wave(shape, seed)
    check_gradient(manifold, f, x, seed=seed)
    check_hessian(manifold, f, x, seed=seed)
    check_metric(manifold, x, seed=seed)


@each_manifold
@few
@given(seed=seeds)
def test_every_retraction_is_one(manifold, shape, seed):
    slope = check_retraction(manifold, point(manifold, shape, seed), seed=seed)
    if isinstance(manifold.retraction, Geodesic):
        assert slope.value == math.inf
    elif isinstance(manifold.retraction, QFactor):
        assert slope.value == pytest.approx(2, abs=0.05)
    elif not isinstance(manifold, Euclidean | ScaledEuclidean):
        assert slope.value == pytest.approx(3, abs=0.05)  # of second order


PRODUCT = mn.Product([(Oblique(), (3, 4)), (ScaledEuclidean(1), (2, 3)), (Euclidean(), (2,))])
STIEFEL = mn.from_geoopt(geoopt.EuclideanStiefel())


@over([(PRODUCT, (20,)), (STIEFEL, (5, 3))])
def test_products_and_adapted_manifolds_have_hessians_too(manifold, shape):
    x, f = point(manifold, shape, 0), wave(shape)
    assert check_gradient(manifold, f, x).value == pytest.approx(2, abs=0.05)
    result = check_hessian(manifold, f, x)
    assert result.slope.value == pytest.approx(3, abs=0.05)
    assert len(result.slope.steps) == len(result.slope.errors) > 10
    check_retraction(manifold, x)
    check_metric(manifold, x)


def test_a_missing_hessian_raises():
    ball = mn.from_geoopt(geoopt.PoincareBall())
    x = ball.projx(0.1 * torch.randn(5, 3))
    with pytest.raises(NotImplementedError, match="conjugate gradients"):
        ball.ehess2rhess(x, x, x, x)
    with pytest.raises(NotImplementedError, match="_NoGeodesics"):
        type("_NoGeodesics", (mn.geometry.Geodesics,), {"__abstractmethods__": ()}).hessian(
            type("_NoGeodesics", (), {})(), x, x, x, x
        )


# Wrong ones


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_wrong_gradient_is_found(share):
    x = point(Oblique(), (4, 3), 0)
    f = wave((4, 3))

    def wrong(y):
        return torch.func.grad(f)(y) + share * torch.ones_like(y)

    with pytest.raises(AssertionError, match=SLOPE_1):
        check_gradient(Oblique(), f, x, gradient=wrong)
    with pytest.raises(AssertionError, match=SLOPE_1):
        check_hessian(Oblique(), f, x, gradient=wrong, hessian=lambda y, u: u)


@pytest.mark.parametrize("manifold", [Oblique(), ScaledEuclidean(), Euclidean()])
def test_a_wrong_hessian_is_found(manifold):
    x, f = point(manifold, (4, 3), 1), wave((4, 3))
    right = lambda y, u: torch.func.jvp(torch.func.grad(f), (y,), (u,))[1]  # noqa: E731
    check_hessian(manifold, f, x, gradient=torch.func.grad(f), hessian=right)
    with pytest.raises(AssertionError, match=SLOPE_2):
        check_hessian(manifold, f, x, hessian=lambda y, u: 1.01 * right(y, u))
    with pytest.raises(AssertionError, match="not linear"):
        check_hessian(manifold, f, x, hessian=lambda y, u: right(y, u) + u.abs())


def test_a_hessian_that_is_not_symmetric_is_found():
    x, f = point(Euclidean(), (3,), 1), wave((3,))
    turn = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    right = lambda y, u: torch.func.jvp(torch.func.grad(f), (y,), (u,))[1]  # noqa: E731
    with pytest.raises(AssertionError, match="not symmetric"):
        check_hessian(Euclidean(), f, x, hessian=lambda y, u: right(y, u) + turn @ u)


def test_a_wrong_connection_is_found():
    """The Euclidean Hessian in place of the scaled metric's, and ‖x‖² H u without the rest."""
    x, f = point(ScaledEuclidean(), (4, 3), 0), wave((4, 3))
    for rest in (
        lambda _, x, g, h, u: h,
        lambda _, x, g, h, u: ScaledEuclidean().metric.sharp(x, h),
    ):
        wrong = ScaledEuclidean()
        geodesics = type("Wrong", (type(wrong.geodesics),), {"hessian": rest})
        vars(wrong).update(geodesics=geodesics(wrong.slices))
        with pytest.raises(AssertionError, match="the Hessian is"):
            check_hessian(wrong, f, x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("right", "wrong"), [((1, -1, 0, 0), (0, 0, 0, 0)), ((1, 2, 3, 4), (4, 3, 2, 1))]
)
def test_a_wrong_derivative_in_each_coordinate_is_found(right, wrong, seed):
    """Directions of ±1 would see the trace of a diagonal only."""
    right, wrong = (torch.tensor(scale, dtype=torch.float64) for scale in (right, wrong))
    x = torch.tensor([1.0, 2.0, 0.5, -1.0], dtype=torch.float64)
    f = lambda y: (right * y.square()).sum()  # noqa: E731
    with pytest.raises(AssertionError, match="Hessian is wrong"):
        check_hessian(Euclidean(), f, x, hessian=lambda y, u: 2 * wrong * u, seed=seed)
    with pytest.raises(AssertionError, match="gradient is wrong"):
        check_gradient(Euclidean(), f, x, gradient=lambda y: 2 * wrong * y, seed=seed)


def test_an_optimum_is_no_reason_for_alarm():
    x = point(Sphere(), (6,), 0)
    check_gradient(Sphere(), lambda y: y.square().sum(), x)  # constant there
    check_hessian(Sphere(), lambda y: y.square().sum(), x)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    check_gradient(Euclidean(), lambda y: (y - b).square().sum(), b)
    check_hessian(Euclidean(), lambda y: (y - b).square().sum(), b)
    shifted = torch.logsumexp(b + 50, 0)
    for seed in range(4):
        f = lambda y: torch.logsumexp(y + 50, 0) - shifted  # noqa: E731
        check_gradient(Euclidean(), f, b, seed=seed)
        check_hessian(Euclidean(), f, b, seed=seed)


def test_points_that_were_float32_once_and_slices_of_all_sizes_are_points():
    x = Oblique().random(4, 5, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    check_hessian(Oblique(), wave((4, 5)), x.double())
    check_retraction(Oblique(), x.double())
    rows = torch.tensor([[1.0, 2, 3], [1e-8, 2e-8, -1e-8]], dtype=torch.float64)
    assert check_metric(ScaledEuclidean(), rows).least > 1e-6


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (lambda m, x, u: m.nearest(x + 0.99 * u), r"no retraction: .* O\(t\^1\.00"),
        (lambda m, x, u: x + u, "length 0.001 leaves the manifold"),
        # Of second order, and off by what no slope shows.
        (lambda m, x, u: m.nearest(x + u) * (1 + (u * u).sum() ** 8), "length 1 leaves the man"),
    ],
    ids=["short", "straight", "slow"],
)
def test_a_wrong_retraction_is_found(step, found):
    wrong = Oblique()
    vars(wrong).update(retraction=SimpleNamespace(step=step))
    with pytest.raises(AssertionError, match=found):
        check_retraction(wrong, point(Oblique(), (4, 3), 0))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda good, u, v: -good, "not positive"),
        (lambda good, u, v: good + (u[:, :1] * v[:, 1:2]), "not symmetric"),
        (lambda good, u, v: good * good, "not linear"),
        (lambda good, u, v: 2 * good, "egrad2rgrad"),
    ],
)
def test_a_wrong_metric_is_found(change, found):
    class Wrong(ScaledMetric):
        def component_inner(self, x, u, v):
            return change(super().component_inner(x, u, v), u, v)

    wrong = ScaledEuclidean()
    vars(wrong).update(metric=Wrong(Slices(0)))
    with pytest.raises(AssertionError, match=found):
        check_metric(wrong, point(ScaledEuclidean(), (4, 3), 0))


# Models


class Cube(torch.autograd.Function):
    """x³ with a derivative that is right or wrong."""

    @staticmethod
    def forward(x, factor):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.factor * x**2 * g, None


class Cubed(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return Cube.apply(x, self.factor)


def net(factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), Cubed(factor), nn.Linear(4, 2))
    mn.declare(model, "0.weight", Oblique(), project=True)
    mn.declare(model, "3.weight", ScaledEuclidean(1))
    return model, torch.randn(8, 5)


def test_a_model_is_checked_and_left_as_it_was():
    model, images = net(3.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert check_gradient(model, lambda: model(images).square().mean()).value > 1.9
    assert check_hessian(model, lambda: model(images).square().mean()).slope.value > 2.9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_layer_with_a_wrong_derivative_is_found():
    model, images = net(2.9)
    with pytest.raises(AssertionError, match="the gradient is wrong"):
        check_gradient(model, lambda: model(images).square().mean())


class Log(nn.Module):
    """ln x of a number so small that longer steps leave its domain, and a wrong derivative."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 0.02))

    def forward(self):
        return Cube.apply(self.w, 300.0).sum() - self.w.log().sum()


def test_steps_out_of_the_domain_do_not_hide_a_wrong_derivative():
    model = Log()
    with pytest.raises(AssertionError, match="the gradient is wrong"):
        check_gradient(model, model)


X = point(Oblique(), (4, 3), 0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: check_gradient(net(3.0)[0], lambda: 0, X), "own point"),
        (lambda: check_gradient(Oblique(), torch.sum), "a point x"),
        (lambda: check_hessian(Oblique(), torch.sum, X.float()), "float32"),
        (lambda: check_gradient(Oblique(), torch.sin, X), "one number"),
        (lambda: check_gradient(Oblique(), lambda y: y.detach().sum(), X), "not differentiable"),
        (lambda: check_gradient(Oblique(), lambda y: (y - 9).sqrt().sum(), X), "nan"),
        (lambda: check_hessian(Oblique(), torch.sum, X, gradient=torch.ones_like), "the hessian"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_tensor_off_the_manifold_is_refused():
    with refused(NotOnManifoldError, name="x", count=4):
        check_metric(Oblique(), 2 * X)


def test_gradients_are_switched_on():
    with torch.no_grad():
        check_hessian(Oblique(), wave((4, 3)), X)


def test_steps_that_are_too_long_are_found():
    canonical = mn.from_geoopt(geoopt.CanonicalStiefel())
    with pytest.raises(AssertionError, match="straight step"):
        check_retraction(canonical, point(canonical, (5, 3), 0))
