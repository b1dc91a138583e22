"""Stiefel manifolds: the shape rule, doors, independent formulas, drift; laws are in test_laws."""

import math
from dataclasses import dataclass

import geoopt
import numpy as np
import pymanopt.manifolds
import pytest
import torch
from cases import STIEFEL, few, over, point, refused, seeds, sizes, source, tangent
from hypothesis import given
from torch import nn
from torch.func import jvp

import manifoldnet as mn
from manifoldnet.geometry import (
    MatrixRetraction,
    NewtonSchulz,
    NotOnManifoldError,
    NotTangentError,
    Oblique,
    PolarFactor,
    QFactor,
    ScaledEuclidean,
    Sphere,
    Stiefel,
    WrongTensorError,
    from_spec,
)
from manifoldnet.geometry.stiefel import polar_factor
from manifoldnet.testing import check_retraction

EPS = torch.finfo(torch.float64).eps
INF = float("inf")
NAMES = ["polar", "qr", "newton-schulz", "geodesic"]
GEOMETRIES = list({(m.dim, shape): (m, shape) for m, shape in STIEFEL}.values())

each = over(STIEFEL)
each_geometry = over(GEOMETRIES)
each_retraction = pytest.mark.parametrize("retraction", NAMES)


def tall(x, dim):
    """The tall matrix of a weight, written a second time."""
    order = [dim, *(d for d in range(x.ndim) if d != dim)]
    m = x.permute(order).reshape(x.shape[dim], -1)
    return m if m.shape[0] >= m.shape[1] else m.T


def like(m, x, dim):
    """A tall matrix as a weight of the shape of x."""
    order = [dim, *(d for d in range(x.ndim) if d != dim)]
    m = m if m.shape[0] == x.shape[dim] else m.T
    return m.reshape([x.shape[d] for d in order]).permute([order.index(d) for d in range(x.ndim)])


def gaussian(shape, seed, size=1.0):
    return size * torch.randn(shape, dtype=torch.float64, generator=source(seed))


# --- the shape rule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "shape", "columns", "dimension"),
    [
        (0, (20, 5), 5, 20 * 5 - 15),  # tall
        (0, (10, 784), 10, 10 * 784 - 55),  # a wide linear layer
        (0, (4, 4), 4, 6),  # orthogonal
        (0, (64, 3, 3, 3), 27, 64 * 27 - 27 * 14),  # a first kernel: tall
        (0, (16, 8, 3, 3), 16, 16 * 72 - 16 * 17 // 2),  # a later one: wide
        (1, (8, 16, 3, 3), 16, 16 * 72 - 16 * 17 // 2),  # transposed
        (0, (1, 5), 1, 4),  # a sphere
        (1, (4, 3), 3, 12 - 6),
    ],
)
def test_shapes(dim, shape, columns, dimension):
    x = Stiefel(dim).random(shape, dtype=torch.float64, generator=source(0))
    m = tall(x, dim)
    assert m.shape[1] == columns
    torch.testing.assert_close(m.T @ m, torch.eye(columns, dtype=x.dtype), rtol=0, atol=100 * EPS)
    assert Stiefel(dim).dimension(shape) == dimension
    assert Stiefel(dim).typical_dist(shape) == math.sqrt(columns)
    assert Stiefel(dim).component_inner(x, x).shape == (1,) * len(shape)


def test_the_dimension_of_a_matrix_does_not_matter():
    x = Stiefel(0).random(3, 7)
    assert Stiefel(1).check_point_on_manifold(x)
    assert Stiefel(0).check_point_on_manifold(x.T)
    kernel = Stiefel(0).random(4, 5, 2)
    assert not Stiefel(1).check_point_on_manifold(kernel)


def test_values():
    assert Stiefel() == Stiefel(0, PolarFactor()) != Stiefel(1)
    assert Stiefel(retraction="qr").retraction == QFactor()
    assert Stiefel(retraction="newton-schulz").retraction == NewtonSchulz()
    assert repr(Stiefel(1)) == "Stiefel(dim=1)"
    spec = {"manifold": "Stiefel", "version": 1, "fields": {"dim": 0, "retraction": "polar"}}
    assert Stiefel().spec() == spec
    assert from_spec(spec) == Stiefel()
    assert mn.Stiefel is Stiefel


# --- doors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifold", "shape", "reason"),
    [
        (Stiefel(), (), "order 0"),
        (Stiefel(), (8,), "Sphere"),
        (Stiefel(2), (4, 3), "no dimension 2"),
        (Stiefel(), (0, 3), "empty"),
        (Stiefel(), (1, 1), "single number"),
        (Stiefel(), (1, 1, 1, 1), "single number"),
    ],
)
def test_shapes_without_points(manifold, shape, reason):
    x = torch.ones(shape)
    for door in (manifold.assert_check_point, manifold.projx):
        with refused(WrongTensorError, manifold=manifold, name="the data"):
            door(x)
    assert reason in str(manifold.validate(x))


@pytest.mark.parametrize("project", [False, True])
def test_a_bias_is_refused_by_name(project):
    layer = nn.Linear(5, 3)
    with refused(WrongTensorError, name="bias", manifold=Stiefel()):
        mn.declare(layer, "bias", Stiefel(), project=project)
    assert mn.manifolds(layer) == {}


@pytest.mark.parametrize(
    ("dim", "error"),
    [(-1, ValueError), (None, ValueError), ("elements", TypeError), (1.0, TypeError)],
)
def test_invalid_dims(dim, error):
    with pytest.raises(error, match="dim"):
        Stiefel(dim)


@pytest.mark.parametrize("retraction", ["additive", "projective", mn.Additive(), mn.Projective()])
def test_retractions_that_stiefel_has_no_use_for(retraction):
    with pytest.raises(ValueError, match="Stiefel has no use for") as error:
        Stiefel(retraction=retraction)
    offered = str(error.value).split("there are")[1]
    assert all(repr(name) in offered for name in NAMES)
    assert "additive" not in offered


@pytest.mark.parametrize("kind", [Oblique, Sphere, ScaledEuclidean])
@pytest.mark.parametrize("retraction", ["polar", "qr", "newton-schulz", PolarFactor(), QFactor()])
def test_retractions_of_matrices_are_no_use_to_others(kind, retraction):
    with pytest.raises(ValueError, match="has no use for") as error:
        kind(retraction=retraction)
    assert "polar" not in str(error.value).split("there are")[1]


@pytest.mark.parametrize("retraction", ["cayley", "Polar", None, 3])
def test_unknown_retractions(retraction):
    error = ValueError if isinstance(retraction, str) else TypeError
    with pytest.raises(error, match=r"Stiefel.*'newton-schulz'"):
        Stiefel(retraction=retraction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (4, 2, 3, 3)])
def test_dependent_vectors_have_no_nearest_point(shape, dtype):
    x = torch.randn(shape, generator=source(0)).to(dtype)
    few = min(len(x), x[0].numel())
    whole = "×".join(map(str, (len(x), x[0].numel())))
    m = x.view(len(x), -1)
    if len(m) == few:
        m[1] = 2 * m[0]
    else:
        m[:, 1] = 2 * m[:, 0]
    fields = {"slices": (f"the {whole} matrix",), "amounts": (INF,), "count": 1, "total": 1}
    for door in (Stiefel().projx, Stiefel().assert_check_point_on_manifold):
        with refused(NotOnManifoldError, manifold=Stiefel(), **fields):
            door(x)
    assert "linearly dependent" in str(Stiefel().validate(x))
    for bad, said in ((0.0, "is zero"), (math.nan, "not finite"), (INF, "not finite")):
        error = Stiefel().validate(x.fill_(bad))
        assert error.amounts == (INF,)
        assert said in str(error)


def test_violation_is_the_distance_relative_to_a_point():
    for shape in [(6, 3), (3, 6), (4, 4)]:
        x = Stiefel().random(shape, dtype=torch.float64, generator=source(1))
        z = x + gaussian(shape, 2, 1e-6)
        distance = (z - Stiefel().projx(z)).norm() / x.norm()
        assert float(Stiefel().violation(z)) == pytest.approx(float(distance), rel=1e-4)
        assert float(Stiefel().violation(2 * x)) == pytest.approx(1.5)
        assert float(Stiefel().violation(1e-20 * x)) == pytest.approx(0.5)
        error = Stiefel().validate(1.01 * x, name="hidden.weight")
        assert type(error) is NotOnManifoldError
        assert error.amounts == (pytest.approx(0.01, rel=0.01),)
        assert "projx" in str(error)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_projection_does_not_depend_on_the_scale(scale):
    z = torch.randn(6, 4, generator=source(0))
    torch.testing.assert_close(Stiefel().projx(scale * z), Stiefel().projx(z), rtol=0, atol=1e-6)


def test_a_vector_that_is_not_tangent():
    x = Stiefel().random(3, 5, dtype=torch.float64, generator=source(0))
    u = Stiefel().proju(x, gaussian((3, 5), 1))
    u = u / u.norm()
    normal = x / x.norm()
    for angle in (0.0, 0.3, math.pi / 2):
        off = Stiefel().tangent_violation(x, math.cos(angle) * u + math.sin(angle) * normal)
        assert float(off) == pytest.approx(math.sin(angle), abs=100 * EPS)
    error = Stiefel().validate_tangent(x, u + normal)
    assert type(error) is NotTangentError
    assert error.slices == ("the 3×5 matrix",)


def test_tangent_vectors_at_points_of_half_types():
    """The error of the point counts for most of a vector of which little is tangent."""
    for seed in range(200):
        x = Stiefel().random(3, 3, dtype=torch.bfloat16, generator=source(seed))
        u = Stiefel().random_tangent(x, generator=source(seed + 1))
        assert Stiefel().check_vector_on_tangent(x, u)


def test_formulas_that_are_missing_name_the_way_out():
    x = Stiefel().random(4, 3)
    for formula in (Stiefel().logmap, Stiefel().dist, Stiefel().dist2):
        with pytest.raises(NotImplementedError, match=r"the chord .* transp"):
            formula(x, x)


# --- the set --------------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-3, 1e3))
def test_the_projection_is_the_polar_factor_and_nearest(manifold, shape, seed, size):
    z, y = gaussian(shape, seed, size), point(manifold, shape, seed + 1)
    x = manifold.projx(z)
    m = tall(z, manifold.dim)
    values, v = torch.linalg.eigh(m.T @ m)
    root = v @ values.rsqrt().diag() @ v.T
    worst = float(values[-1] / values[0])  # the condition of mᵀm
    exact = like(m @ root, z, manifold.dim)
    torch.testing.assert_close(x, exact, rtol=0, atol=100 * EPS * worst)
    assert float((z - x).norm()) <= float((z - y).norm()) * (1 + 100 * EPS)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5), (3, 3)])
def test_random_points_are_uniform(shape):
    count = 4000
    x = torch.stack([Stiefel().random(shape, generator=source(i)) for i in range(count)])
    # Entries have variance 1/N.
    bound = 5 / math.sqrt(max(shape) * count)
    assert float(x.mean(0).abs().max()) <= bound
    second = x.flatten(1).T @ x.flatten(1) / count
    exact = torch.eye(x[0].numel()) / max(shape)
    assert float((second - exact).abs().max()) <= 2 * bound


def test_square_matrices_of_any_size_are_projected():
    """A Gaussian one has a condition of some times its size."""
    z = torch.randn(300, 300, generator=source(0))
    values, v = torch.linalg.eigh(z.double().T @ z.double())
    assert float(values[-1] / values[0]) > 1e5
    exact = z.double() @ (v / values.sqrt()) @ v.T
    torch.testing.assert_close(Stiefel().projx(z).double(), exact, rtol=0, atol=1e-3)
    assert float(Stiefel().violation(Stiefel().projx(z))) <= 1e-6
    assert float(Stiefel().violation(Stiefel().random(300, 300))) <= 1e-6


# --- others' formulas -----------------------------------------------------------------------------


@few
@given(seed=seeds, size=sizes(1e-3, 3.0))
def test_pymanopts_formulas(seed, size):
    ours, theirs = Stiefel(), pymanopt.manifolds.Stiefel(6, 3)
    x = point(ours, (6, 3), seed)
    u, v = (tangent(ours, x, seed + i, size) for i in (1, 2))
    z, h = (gaussian((6, 3), seed + i) for i in (3, 4))
    p, a, b, g, e = (t.numpy() for t in (x, u, v, z, h))

    def close(mine, other):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12 * (1 + size**2))

    close(ours.proju(x, z), theirs.projection(p, g))
    close(ours.egrad2rgrad(x, z), theirs.euclidean_to_riemannian_gradient(p, g))
    close(ours.ehess2rhess(x, z, h, u), theirs.euclidean_to_riemannian_hessian(p, g, e, a))
    close(ours.inner(x, u, v), theirs.inner_product(p, a, b))
    np.testing.assert_allclose(ours.expmap(x, u), theirs.exp(p, a), rtol=0, atol=1e-9)
    close(Stiefel(retraction="qr").retr(x, u), theirs.retraction(p, a))
    polar = pymanopt.manifolds.Stiefel(6, 3, retraction="polar")
    close(ours.retr(x, u), polar.retraction(p, a))
    y = ours.retr(x, u)
    close(ours.transp(x, y, v), theirs.transport(p, y.numpy(), b))
    assert ours.dimension((6, 3)) == theirs.dim
    assert ours.typical_dist((6, 3)) == pytest.approx(theirs.typical_dist)


@few
@given(seed=seeds, size=sizes(1e-3, 3.0))
def test_geoopts_formulas(seed, size):
    ours, theirs = Stiefel(retraction="qr"), geoopt.EuclideanStiefel()
    x = point(ours, (6, 3), seed)
    u, v = (tangent(ours, x, seed + i, size) for i in (1, 2))
    z = gaussian((6, 3), seed + 3)
    close = {"rtol": 0, "atol": 1e-12 * (1 + size)}
    torch.testing.assert_close(ours.proju(x, z), theirs.proju(x, z), **close)
    torch.testing.assert_close(ours.egrad2rgrad(x, z), theirs.egrad2rgrad(x, z), **close)
    torch.testing.assert_close(ours.projx(z), theirs.projx(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.retr_transp(x, u, v), theirs.retr_transp(x, u, v), **close)
    exact = geoopt.EuclideanStiefelExact().expmap(x, u)
    torch.testing.assert_close(ours.expmap(x, u), exact, rtol=0, atol=1e-9)


@each_retraction
@pytest.mark.parametrize("shape", [(5, 3), (4, 4)])
def test_what_steps_commute_with(retraction, shape):
    """x → q x r; Gram–Schmidt with q alone."""
    manifold = Stiefel(retraction=retraction)
    n, p = shape
    q, r = (Stiefel().random(k, k, dtype=torch.float64, generator=source(k)) for k in (n, p))
    x = point(manifold, shape, 0)
    u = tangent(manifold, x, 1, 0.8)
    y = manifold.retr(x, u)
    torch.testing.assert_close(manifold.retr(q @ x, q @ u), q @ y)
    apart = (manifold.retr(x @ r, u @ r) - y @ r).norm()
    assert (float(apart) < 1e-13) is (retraction != "qr")


@dataclass(frozen=True)
class Cayley(MatrixRetraction):
    """(1 − w/2)⁻¹ (1 + w/2) m with w = p u mᵀ − m uᵀ p, p = 1 − m mᵀ/2."""

    def end(self, m, u):
        eye = torch.eye(len(m), dtype=m.dtype)
        half = (eye - m @ m.T / 2) @ u @ m.T / 2
        half = half - half.T
        return torch.linalg.solve(eye - half, m + half @ m)


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 3)])
def test_a_retraction_of_ones_own(shape):
    manifold = Stiefel(retraction=Cayley())
    slope = check_retraction(manifold, point(manifold, shape, 0))
    assert slope.value == pytest.approx(2, abs=0.05)
    assert trained(manifold, shape, 20, mn.RiemannianSGD, torch.float64, lr=0.1) <= 1e-12


@pytest.mark.parametrize("retraction", NAMES)
@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3)])
def test_a_matrix_and_its_transpose_step_alike(retraction, shape):
    x = point(Stiefel(), shape, 0)
    u, v = tangent(Stiefel(), x, 1, 0.8), tangent(Stiefel(), x, 2)
    y, w = Stiefel(0, retraction).retr_transp(x, u, v)
    flat = [t.flatten(1).T.contiguous() for t in (x, u, v)]
    for a, b in zip(Stiefel(0, retraction).retr_transp(*flat), (y, w), strict=True):
        torch.testing.assert_close(a, b.flatten(1).T)


# --- curves ---------------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-3, 6.0))
def test_geodesics_have_no_tangential_acceleration(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, size)
    one = torch.ones((), dtype=x.dtype)

    def velocity(t):
        return jvp(lambda s: manifold.expmap(x, s * u), (t,), (one,))[1]

    time = torch.tensor(0.6, dtype=x.dtype)
    bend = jvp(velocity, (time,), (one,))[1]
    off = manifold.proju(manifold.expmap(x, time * u), bend)
    assert float(off.norm()) <= 1e4 * EPS * (1 + size**3)


@each_geometry
@few
@given(seed=seeds, size=sizes(1e-3, 6.0))
def test_transport_along_a_geodesic_is_parallel(manifold, shape, seed, size):
    x = point(manifold, shape, seed)
    u, v = tangent(manifold, x, seed + 1, size), tangent(manifold, x, seed + 2)
    time, one = (torch.tensor(t, dtype=x.dtype) for t in (0.6, 1.0))
    _, turn = jvp(lambda t: manifold.expmap_transp(x, t * u, v)[1], (time,), (one,))
    off = manifold.proju(manifold.expmap(x, time * u), turn)
    assert float(off.norm()) <= 1e4 * EPS * (1 + size**2)


@pytest.mark.parametrize("retraction", NAMES)
@pytest.mark.parametrize("size", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_long_steps_end_on_the_manifold(retraction, size, dtype):
    manifold = Stiefel(retraction=retraction)
    if retraction == "geodesic" and size > 1e3:
        return  # many turns, whose phase is lost
    for shape in [(5, 3), (3, 2, 2, 2), (4, 4)]:
        x = point(manifold, shape, 0, dtype)
        u, v = tangent(manifold, x, 1, size), tangent(manifold, x, 2)
        y, w = manifold.retr_transp(x, u, v)
        assert float(manifold.violation(y)) <= 20 * torch.finfo(dtype).eps
        assert float(manifold.tangent_violation(y, w)) <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("retraction", NAMES)
def test_steps_that_are_not_finite_end_at_nan(retraction):
    manifold = Stiefel(retraction=retraction)
    x = manifold.random(5, 3)
    for bad in (math.nan, INF):
        u = torch.zeros_like(x)
        u[0, 0] = bad
        for found in (*manifold.retr_transp(x, u, u), manifold.nearest(x + u)):
            assert bool(found.isnan().any())


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (3, 1)])
def test_derivatives_of_the_polar_factor(shape):
    """Also where all singular values are equal, as those of a point are."""
    for m in (gaussian(shape, 0), Stiefel().random(shape, dtype=torch.float64)):
        m = m.requires_grad_()
        assert torch.autograd.gradcheck(polar_factor, m, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(polar_factor, m)


@pytest.mark.parametrize("retraction", NAMES)
def test_second_derivatives_of_steps(retraction):
    manifold = Stiefel(retraction=retraction)
    x = point(manifold, (4, 3), 0)
    u = tangent(manifold, x, 1, 0.5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: manifold.retr(x, manifold.proju(x, v)), u)


# --- drift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("retraction", NAMES)
def test_points_that_have_drifted_are_caught_again(retraction, dtype):
    """A polar factor and Q do not depend on the drift; Newton–Schulz steps square it."""
    manifold = Stiefel(retraction=retraction)
    for shape in [(6, 3), (3, 6), (4, 4)]:
        x = point(manifold, shape, 0, dtype) + 1e-3 * gaussian(shape, 1).to(dtype)
        before = float(manifold.violation(x))
        y = manifold.retr(x, manifold.proju(x, 0.1 * gaussian(shape, 2).to(dtype)))
        after = float(manifold.violation(y))
        assert before > 1e-4
        few = 10 * torch.finfo(dtype).eps
        assert after <= (few if retraction != "geodesic" else 2 * before**2 * x.shape[0])


def trained(manifold, shape, steps, make, dtype=torch.float32, **options):
    """The largest violation of a weight that learns a rotating goal."""
    module = nn.Module()
    x = manifold.random(shape, generator=source(0)).to(dtype)
    module.weight = nn.Parameter(x)
    mn.declare(module, "weight", manifold)
    optimizer = make(mn.param_groups(module), **options)
    goal, worst = source(1), 0.0
    for step in range(steps):
        noise = torch.randn(shape, generator=goal).to(dtype)
        module.weight.grad = module.weight.detach().roll(1, 0) + noise
        optimizer.step()
        if step % 50 == 49:
            worst = max(worst, mn.violations(module)["weight"])
    return worst


OPTIMIZERS = [
    (mn.RiemannianAdam, {"lr": 1e-2}),
    (mn.RiemannianSGD, {"lr": 1e-2, "momentum": 0.9}),
]


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
@each_retraction
def test_orthogonality_does_not_drift(retraction, make, options):
    worst = trained(Stiefel(retraction=retraction), (10, 4), 200, make, **options)
    assert worst <= 1e-6
    half = trained(Stiefel(retraction=retraction), (4, 6), 50, make, torch.bfloat16, **options)
    assert half <= 1e-2


@pytest.mark.thorough
@pytest.mark.parametrize("retraction", ["polar", "qr", "newton-schulz"])
def test_orthogonality_does_not_drift_in_thousands_of_steps(retraction):
    """geoopt's loses 1.2e-3 in 6,000 steps of its Adam."""
    manifold = Stiefel(retraction=retraction)
    assert trained(manifold, (20, 5), 2000, mn.RiemannianAdam, lr=1e-2) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
@pytest.mark.parametrize("shape", [(20, 5), (8, 3, 3, 3)])
@each_retraction
def test_no_orthogonality_drifts_in_thousands_of_steps(retraction, shape, make, options):
    assert trained(Stiefel(retraction=retraction), shape, 6000, make, **options) <= 1e-6


# --- training -------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_network_with_orthonormal_filters(make, options, tmp_path):
    """Declared, trained, checked, saved and resumed bit for bit."""
    model = net()
    mn.declare(model, "0.weight", Stiefel(), project=True)
    mn.declare(model, "3.weight", Stiefel(), project=True)
    images, labels = torch.randn(8, 2, 5, 5), torch.arange(8) % 4

    def fit(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    optimizer = make(mn.param_groups(model), **options)
    first, last = fit(model, optimizer, 1), fit(model, optimizer, 30)
    assert last < first
    mn.verify(model)
    assert max(mn.violations(model).values()) < 1e-6
    if make is mn.RiemannianAdam:
        assert optimizer.state[model[3].weight]["exp_avg_sq"].shape == (1, 1)
        assert optimizer.state[model[0].weight]["exp_avg_sq"].shape == (1, 1, 1, 1)
    torch.save((model.state_dict(), optimizer.state_dict(), mn.spec(model)), tmp_path / "saved")
    other = net()
    weights, state, spec = torch.load(tmp_path / "saved")
    mn.declare_from(other, spec, project=True)
    mn.load_state_dict(other, weights)
    resumed = make(mn.param_groups(other), **options)
    resumed.load_state_dict(state)
    fit(model, optimizer, 3)
    fit(other, resumed, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        model[0].weight *= 2
    with pytest.raises(ValueError, match=r"0\.weight .* the 6×18 matrix"):
        mn.verify(model)
    mn.project_(model)
    mn.verify(model)


@each_retraction
def test_a_known_optimum(retraction):
    """The trace of xᵀ a x is largest on the eigenvectors of the largest eigenvalues."""
    a = torch.arange(1.0, 9.0).diag()
    module = nn.Module()
    module.weight = nn.Parameter(Stiefel().random(8, 3, generator=source(0)))
    mn.declare(module, "weight", Stiefel(retraction=retraction))
    optimizer = mn.RiemannianSGD(mn.param_groups(module), lr=0.02, momentum=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        loss = -(module.weight.T @ a @ module.weight).trace()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) == pytest.approx(-21, abs=1e-4)
