"""Code written for geoopt's manifolds on ours: its wrappers, and every public name that it has."""

import math

import geoopt
import pytest
import torch
from cases import (
    GEOMETRIES,
    STIEFEL,
    each_geometry,
    each_manifold,
    few,
    over,
    point,
    refused,
    seeds,
    source,
    tangent,
)
from hypothesis import given

from manifoldnet.geometry import (
    Euclidean,
    NotOnManifoldError,
    NotTangentError,
    Oblique,
    Product,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
    from_geoopt,
    to_geoopt,
)

PRODUCT = Product([(Oblique(), (3, 4)), (ScaledEuclidean(1), (2, 3)), (Sphere(2.0), (3,))])
each_or_product = over([*GEOMETRIES, (PRODUCT, (21,))])
LIKE = {"rtol": 0, "atol": 1e-12}


# --- names ----------------------------------------------------------------------------------------


def test_no_public_name_of_geoopts_manifolds_is_missing():
    ours = from_geoopt(geoopt.Sphere()), Oblique(), PRODUCT
    module = set(dir(torch.nn.Module()))
    names = {n for n in dir(geoopt.Sphere()) if not n.startswith("_")} - module
    names |= {"device", "dtype", "name", "ndim", "reversible", "__scaling__"}
    own = {"projector", "random_uniform"}  # of their sphere alone
    for manifold in ours:
        assert [name for name in sorted(names - own) if not hasattr(manifold, name)] == []


@each_or_product
def test_checks_have_geoopts_signatures(manifold, shape):
    x = point(manifold, shape, 0)
    u = tangent(manifold, x, 1)
    whole = torch.ones(shape, dtype=torch.int64)
    for good in (
        manifold.check_point(x, explain=True),
        manifold.check_vector(u, explain=True),
        manifold.check_point_on_manifold(x, explain=True, atol=1e-9, rtol=1e-9),
        manifold.check_vector_on_tangent(x, u, explain=True, atol=1e-9, rtol=1e-9),
        manifold.check_vector_on_tangent(x, u, ok_point=True, explain=True),
    ):
        assert good == (True, None)
    manifold.assert_check_vector(u)
    manifold.assert_check_vector_on_tangent(x, u, atol=1e-9)
    assert not manifold.check_vector(whole)
    ok, reason = manifold.check_vector(whole, explain=True)
    assert not ok
    assert "int64" in reason or "shape" in reason
    with refused(WrongTensorError, name="the vector", manifold=manifold):
        manifold.assert_check_vector(whole)
    bad = u.clone()
    bad.view(-1)[0] = math.nan
    ok, reason = manifold.check_vector_on_tangent(x, bad, explain=True)
    assert not ok
    assert "is not tangent to" in reason
    with refused(WrongTensorError, name="the vector", manifold=manifold):
        manifold.assert_check_vector_on_tangent(x, u[:1])
    with pytest.raises(ValueError, match="tol, or as atol and rtol"):
        manifold.check_point_on_manifold(x, tol=1e-5, atol=1e-5)


def test_tolerances_add_up_and_the_point_is_checked_unless_it_is_known():
    m = Oblique()
    x = 1.5e-3 * m.random(4, 3, dtype=torch.float64) + m.origin(4, 3, dtype=torch.float64)
    off = float(m.violation(x).max())
    assert m.check_point_on_manifold(x, atol=off, rtol=0.0)
    assert m.check_point_on_manifold(x, atol=0.6 * off, rtol=0.6 * off)
    assert not m.check_point_on_manifold(x, atol=0.6 * off)
    assert not m.check_point_on_manifold(x)
    u = m.proju(x, torch.ones_like(x))
    assert m.check_vector_on_tangent(x, u, ok_point=True)
    assert not m.check_vector_on_tangent(x, u)
    with refused(NotOnManifoldError, name="x"):
        m.assert_check_vector_on_tangent(x, u)
    u[2] = x[2]
    with refused(NotTangentError, slices=("row 2",), amounts=(pytest.approx(1),)):
        m.assert_check_vector_on_tangent(x, u, ok_point=True)


@each_or_product
def test_an_origin_is_always_the_same_point(manifold, shape):
    state = torch.get_rng_state()
    x = manifold.origin(shape)
    assert torch.equal(torch.get_rng_state(), state)
    if manifold != Euclidean():  # where 0 is one
        assert not torch.equal(manifold.origin(*shape, seed=1), x)
    assert torch.equal(manifold.origin(*shape), x)
    assert manifold.check_point_on_manifold(manifold.origin(shape, dtype=torch.float16, seed=None))
    assert (manifold.device, manifold.dtype) == (None, None)


@each_or_product
def test_a_point_is_packed_and_unpacked(manifold, shape):
    x = point(manifold, shape, 0)
    parts = manifold.unpack_tensor(x)
    parts = parts if isinstance(parts, tuple) else (parts,)
    assert torch.equal(manifold.pack_point(*parts), x)
    with pytest.raises(ValueError, match="one tensor|has parts of shapes"):
        manifold.pack_point(x, x)


@each_or_product
def test_ndim_is_the_least_order_of_a_point(manifold, shape):
    assert manifold.ndim <= len(shape)
    for order in range(manifold.ndim):
        assert not manifold.check_point(torch.ones((3,) * order))
    assert manifold is PRODUCT or manifold.check_point(torch.ones((3,) * manifold.ndim))


@each_manifold
@few
@given(seed=seeds)
def test_reversible_retractions_are_undone_by_the_step_back(manifold, shape, seed):
    if not manifold.reversible:
        assert manifold.retraction.of_matrices
        return
    x = point(manifold, shape, seed)
    u = tangent(manifold, x, seed + 1, 0.4)
    y, back = manifold.retr_transp(x, u, -u)
    torch.testing.assert_close(manifold.retr(y, back), x, rtol=1e-10, atol=1e-10)


def test_adapted_manifolds_have_geoopts_own():
    stiefel = from_geoopt(geoopt.EuclideanStiefel())
    assert (stiefel.name, stiefel.ndim, stiefel.reversible) == ("Stiefel(euclidean)", 2, False)
    eye = torch.eye(5)[:, :3]
    assert torch.equal(stiefel.origin(5, 3), eye)
    assert type(stiefel.origin(5, 3)) is torch.Tensor
    assert stiefel.pack_point(eye) is stiefel.unpack_tensor(eye) is eye


# --- vmap -----------------------------------------------------------------------------------------


@each_or_product
def test_projections_are_mapped_over(manifold, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    mapped = torch.func.vmap(torch.func.vmap(manifold.projx))(x)
    each = [manifold.projx(z) for z in x.flatten(0, 1)]
    torch.testing.assert_close(mapped, torch.stack(each).view_as(x), **LIKE)
    last = torch.func.vmap(manifold.projx, in_dims=-1, out_dims=-1)(x[0].movedim(0, -1))
    torch.testing.assert_close(last, torch.stack(each[:3], -1), **LIKE)
    bad = x.clone()
    bad[1, 2].view(-1)[0] = math.nan
    with pytest.raises(NotOnManifoldError, match="point 1, 2 of w"):
        torch.func.vmap(torch.func.vmap(lambda z: manifold.projx(z, name="w")))(bad)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (geoopt.Stiefel, (5, 3)),
        (geoopt.Sphere, (4, 3)),
        (geoopt.Lorentz, (4, 3)),
        (geoopt.PoincareBall, (4, 3)),
        (geoopt.SymmetricPositiveDefinite, (3, 3)),
        (lambda: geoopt.ProductManifold((geoopt.Stiefel(), (5, 3)), (geoopt.Sphere(), 4)), (19,)),
    ],
)
def test_so_are_those_of_adapted_manifolds(make, shape):
    manifold = from_geoopt(make())
    x = 0.1 * torch.randn(4, *shape, dtype=torch.float64)
    if "Symmetric" in repr(manifold):
        x = x + torch.eye(3)
    each = torch.stack([manifold.projx(z) for z in x])
    torch.testing.assert_close(torch.func.vmap(manifold.projx)(x), each, **LIKE)


def test_checks_are_mapped_over_and_derivatives_pass():
    m = Oblique()
    x = torch.func.vmap(m.projx)(torch.randn(4, 5, 3, dtype=torch.float64))
    found = []

    def check(z):
        found.append(m.check_point_on_manifold(z) and m.check_vector_on_tangent(z, 0 * z))
        found.append(m.check_vector_on_tangent(z, z))
        return z

    torch.func.vmap(check)(x)
    assert found == [True, False]
    slope = torch.func.vmap(torch.func.grad(lambda z: m.projx(z).sum()))(x)
    torch.testing.assert_close(
        slope, m.proju(x.flatten(0, 1), torch.ones(20, 3)).view_as(x), **LIKE
    )
    with refused(NotOnManifoldError, name="the data", count=5):
        torch.func.hessian(lambda z: m.projx(z).sum())(torch.zeros(5, 3))


# --- wrappers -------------------------------------------------------------------------------------


@each_geometry
@few
@given(seed=seeds)
def test_scaled(manifold, shape, seed):
    """geoopt's wrapper takes a manifold as it is: lengths times two, points the same."""
    scaled = geoopt.Scaled(manifold, 2.0)
    x = point(manifold, shape, seed)
    u, v = (tangent(manifold, x, seed + i, 0.3) for i in (1, 2))
    y = manifold.expmap(x, u)
    assert scaled.check_point_on_manifold(x)
    assert scaled.check_vector_on_tangent(x, u)
    scaled.assert_check_point_on_manifold(x)
    torch.testing.assert_close(scaled.expmap(x, 2 * u), y)
    if (manifold, shape) not in STIEFEL:
        torch.testing.assert_close(scaled.dist(x, y), 2 * manifold.dist(x, y))
        torch.testing.assert_close(scaled.dist2(x, y), 4 * manifold.dist2(x, y))
        torch.testing.assert_close(scaled.logmap(x, y), 2 * manifold.logmap(x, y))
    torch.testing.assert_close(scaled.retr(x, 2 * u), manifold.retr(x, u))
    torch.testing.assert_close(scaled.retr_transp(x, 2 * u, v), manifold.retr_transp(x, u, v))
    torch.testing.assert_close(scaled.projx(x), manifold.projx(x))
    torch.testing.assert_close(scaled.inner(x, u, v), manifold.inner(x, u, v))
    assert scaled.origin(shape).shape == shape
    assert manifold.name in repr(scaled)
    back = from_geoopt(scaled)
    assert back.check_point_on_manifold(x)
    torch.testing.assert_close(back.retr_transp(x, 2 * u, v), manifold.retr_transp(x, u, v))


def torus():
    """A product of geoopt whose factors are ours, theirs, and ours scaled."""
    view = to_geoopt(Oblique(), (5, 4))
    return geoopt.ProductManifold(
        (view, (5, 4)), (geoopt.Sphere(), 3), (geoopt.Scaled(to_geoopt(Sphere(2.0), 6), 2.0), 6)
    )


def test_product():
    product = torus()
    parts = [Oblique().random(5, 4), Oblique(None).random(3), Sphere(2.0).random(6)]
    x = product.pack_point(*parts)
    u, v = (product.proju(x, 0.1 * torch.randn(29)) for _ in range(2))
    assert product.check_point_on_manifold(x)
    assert product.check_vector_on_tangent(x, u)
    assert not product.check_point_on_manifold(2 * x)
    y, transported = product.retr_transp(x, u, v)
    ours = Oblique().retr_transp(*(product.take_submanifold_value(z, 0) for z in (x, u, v)))
    torch.testing.assert_close(product.take_submanifold_value(y, 0), ours[0])
    torch.testing.assert_close(product.take_submanifold_value(transported, 0), ours[1])
    torch.testing.assert_close(product.expmap(x, product.logmap(x, y)), y, rtol=1e-4, atol=1e-4)
    lengths = [
        m.dist(a, b)
        for m, a, b in zip(
            (Oblique(), Oblique(None), Sphere(2.0)),
            product.unpack_tensor(x),
            product.unpack_tensor(y),
            strict=True,
        )
    ]
    lengths[2] = 2 * lengths[2]
    torch.testing.assert_close(product.dist(x, y), torch.stack(lengths).norm(), rtol=1e-3, atol=0)
    assert product.component_inner(x, u).shape == x.shape
    assert "Oblique" in product.name
    assert len(list(product.modules())) == 6  # the product, its list, and what is in it


def test_batches_of_a_product_are_point_by_point():
    product = torus()
    x = product.projx(torch.randn(2, 3, 29, dtype=torch.float64))
    u = product.proju(x, torch.randn(2, 3, 29, dtype=torch.float64))
    y = product.retr(x, u)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(product.retr(x[i, j], u[i, j]), y[i, j], **LIKE)
    assert product.inner(x, u).shape == product.dist2(x, y).shape == (2, 3)
    assert product.check_vector_on_tangent(x, u)
    assert not product.check_vector_on_tangent(x, x)


def test_geoopts_optimizers_step_its_product_of_ours():
    product = torus()
    torch.manual_seed(0)
    goal = product.projx(torch.randn(29, dtype=torch.float64))
    start = product.projx(torch.randn(29, dtype=torch.float64))
    weight = geoopt.ManifoldParameter(start, manifold=product)
    optimizer = geoopt.optim.RiemannianAdam([weight], lr=0.1, amsgrad=True)
    for _ in range(400):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert product.check_point_on_manifold(weight)
    assert float((weight - goal).detach().norm()) < 1e-3


def test_a_product_of_geoopt_comes_back_adapted():
    product = from_geoopt(torus())
    x = product.projx(torch.randn(29, dtype=torch.float64))
    u, g, h = (torch.randn(29, dtype=torch.float64) for _ in range(3))
    u = product.proju(x, u)
    assert product.check_point_on_manifold(x)
    assert product.check_vector_on_tangent(x, u)
    assert product.dimension((29,)) == 29 - 5 - 1 - 1
    assert product.dimension((2, 29)) == 2 * product.dimension((29,))
    same = Product([(Oblique(), (5, 4)), (Oblique(None), (3,)), (Sphere(2.0), (6,))])
    torch.testing.assert_close(product.ehess2rhess(x, g, h, u), same.ehess2rhess(x, g, h, u))
    torch.testing.assert_close(product.retr_transp(x, 0 * u, u), (x, u))
    x[4:8] = 0
    assert not product.check_point_on_manifold(x)
    with refused(NotOnManifoldError, slices=("row 1 of factor 0 of the data",), total=5):
        product.assert_check_point_on_manifold(x)


def test_views():
    view = to_geoopt(Oblique(), (5, 4))
    assert from_geoopt(view) is view.manifold == Oblique()
    x = view.random(2, 5, 4, dtype=torch.float64, generator=source(1))
    assert x.shape == (2, 5, 4)
    assert view.check_point_on_manifold(x)
    assert view.inner(x, x, keepdim=True).shape == (2, 1, 1)
    u = view.proju(x, torch.randn(5, 4, dtype=torch.float64))  # broadcast
    assert view.norm(x, u).shape == (2,)
    assert view.check_vector_on_tangent(x, u)
    assert view.transp(x, view.expmap(x, u), u).shape == x.shape
    assert view.expmap_transp(x, u, u)[0].shape == view.egrad2rgrad(x, u).shape == x.shape
    assert view.origin(5, 4).shape == (5, 4)
    assert view.reversible
    ok, reason = view.check_point(torch.ones(4, 5), explain=True)
    assert not ok
    assert "(4, 5), which does not end with (5, 4)" in reason
    with refused(WrongTensorError, manifold=Oblique()):
        to_geoopt(Oblique(), 3)


# --- radii ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1e-30, 1e30])
@pytest.mark.parametrize("kind", [Oblique, Sphere])
def test_a_radius_whose_square_leaves_the_type_is_refused(kind, radius):
    manifold = kind(radius=radius)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.ones(3, 4, dtype=dtype)
        assert not manifold.check_point(x)
        with pytest.raises(WrongTensorError, match="use a radius from"):
            manifold.projx(x)
        with pytest.raises(WrongTensorError, match="factor 1"):
            Product([(Euclidean(), (2,)), (manifold, (3, 4))]).projx(torch.ones(14, dtype=dtype))
    x = manifold.random(3, 4, dtype=torch.float64)
    y = manifold.retr(x, radius * manifold.proju(x, torch.ones_like(x)))
    assert manifold.check_point_on_manifold(y)


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [
        (torch.float32, 1.1e-19, 1.8e19),
        (torch.float16, 6.2e-5, 6.5e4),
        (torch.float64, 1e-150, 1e150),
    ],
)
def test_radii_at_the_ends_of_the_range_are_taken(dtype, least, most):
    for radius in (least, most):
        assert Sphere(radius).check_point(torch.ones(3, dtype=dtype))
    assert not Sphere(least / 10).check_point(torch.ones(3, dtype=torch.float16))
