"""geoopt's manifolds behind the vocabulary of this library."""

import dataclasses

import geoopt
import pytest
import torch
from cases import refused, source

import manifoldnet as mn
from manifoldnet.geometry import (
    Euclidean,
    Manifold,
    NotOnManifoldError,
    NotTangentError,
    Oblique,
    Product,
    WrongTensorError,
    from_geoopt,
    from_spec,
)
from manifoldnet.testing import MetricLaws, ValueLaws

# A manifold, a shape, and whether geoopt has its logarithm and distance.
BASES = {
    "Stiefel": (geoopt.Stiefel, (5, 3), False),
    "EuclideanStiefel": (geoopt.EuclideanStiefel, (5, 3), False),
    "PoincareBall": (lambda: geoopt.PoincareBall(c=0.5), (4, 3), True),
    "Sphere": (geoopt.Sphere, (4, 3), True),
    "Lorentz": (lambda: geoopt.Lorentz(k=2.0), (4, 3), True),
}
each_base = pytest.mark.parametrize(("make", "shape", "exact"), BASES.values(), ids=BASES)
# geoopt keeps constants (curvatures) in single precision, and clamps with 1e-7 and the like.
ROUGH = 1e-5


def draw(manifold, shape, size=0.3):
    """A point and two tangent vectors, in double precision."""
    # Not by `random`: geoopt's takes no dtype on a ball, and does not exist for Lorentz.
    x = manifold.projx(0.2 * torch.randn(shape, dtype=torch.float64, generator=source(0)))
    u, v = (
        manifold.proju(x, torch.randn(shape, dtype=torch.float64, generator=source(seed)))
        for seed in (1, 2)
    )
    return x, size * u, v


@each_base
def test_vocabulary(make, shape, exact):
    base = make()
    manifold = from_geoopt(base)
    assert isinstance(manifold, Manifold)
    x, u, v = draw(manifold, shape)
    assert type(x) is torch.Tensor
    assert manifold.check_point(x)
    assert manifold.check_point_on_manifold(x)
    assert float(manifold.violation(x).max()) <= ROUGH
    assert float(manifold.tangent_violation(x, u).max()) <= ROUGH
    torch.testing.assert_close(manifold.projx(x), x, rtol=ROUGH, atol=ROUGH)
    torch.testing.assert_close(manifold.retr(x, u), base.retr(x, u), rtol=0, atol=0)
    y, transported = manifold.retr_transp(x, u, v)
    torch.testing.assert_close(y, manifold.retr(x, u), rtol=ROUGH, atol=ROUGH)
    assert manifold.check_point_on_manifold(y)
    assert manifold.check_vector_on_tangent(y, transported, tol=ROUGH)
    assert manifold.transp_follow_retr(x, u, v).shape == shape
    # geoopt gives one number per batch entry; ours is one for the parameter.
    entries = base.inner(x, u, v, keepdim=True)
    assert entries.numel() == (1 if "Stiefel" in repr(manifold) else len(x))
    assert manifold.inner(x, u, v).shape == ()
    assert manifold.inner(x, u, v, keepdim=True).shape == (1,) * len(shape)
    torch.testing.assert_close(manifold.inner(x, u, v), entries.sum())
    torch.testing.assert_close(manifold.norm(x, u) ** 2, manifold.inner(x, u))
    torch.testing.assert_close(manifold.expmap(x, u), base.expmap(x, u), rtol=0, atol=0)
    if exact:
        z = manifold.expmap(x, u)
        torch.testing.assert_close(manifold.logmap(x, z), u, rtol=1e-3, atol=ROUGH)
        assert float(manifold.dist(x, z)) == pytest.approx(float(manifold.norm(x, u)), rel=1e-3)


class Adapted(ValueLaws, MetricLaws):
    """The laws for what geoopt has formulas for, to its precision."""

    slack = ROUGH / (50 * torch.finfo(torch.float64).eps)
    examples = 2

    def point(self, seed):
        return self.manifold.projx(0.2 * self.ambient(seed))

    # Types are geoopt's.
    test_arguments_are_not_changed = None
    test_inner_is_the_sum_of_its_components = None
    test_results_have_the_type_of_the_point = None


# The canonical Stiefel manifold has no transport between points either.
UNKNOWN = ("logmap", "component_dist", "dist", "dist2")
for _name, (_make, _shape, _exact) in BASES.items():
    _fields = {"manifold": from_geoopt(_make()), "shape": _shape}
    _fields["lacks"] = () if _exact else UNKNOWN + ("transp",) * (_name == "Stiefel")
    globals()[f"Test-{_name}"] = type(f"Test-{_name}", (Adapted,), _fields)


@pytest.mark.parametrize("make", [geoopt.Stiefel, geoopt.EuclideanStiefel])
def test_tangent_vectors_of_stiefel(make):
    manifold = from_geoopt(make())
    x, u, _ = draw(manifold, (5, 3))
    assert float((x.mT @ u + u.mT @ x).abs().max()) <= 1e-12


@each_base
def test_arguments_are_not_changed(make, shape, exact):
    """Lorentz flips a sign of the gradient in place."""
    manifold = from_geoopt(make())
    x, u, v = draw(manifold, shape)
    before = [t.clone() for t in (x, u, v)]
    manifold.projx(x)
    manifold.proju(x, u)
    manifold.egrad2rgrad(x, u)
    manifold.retr_transp(x, u, v)
    manifold.inner(x, u, v)
    manifold.violation(x)
    manifold.tangent_violation(x, u)
    assert all(torch.equal(a, b) for a, b in zip((x, u, v), before, strict=True))


@each_base
def test_retraction_starts_with_the_velocity_asked_for(make, shape, exact):
    manifold = from_geoopt(make())
    x, u, _ = draw(manifold, shape)
    step = 1e-4
    velocity = (manifold.retr(x, step * u) - manifold.retr(x, -step * u)) / (2 * step)
    if isinstance(manifold.base, geoopt.manifolds.stiefel.CanonicalStiefel):
        # geoopt's Cayley step is made for Wen and Yin's gradients: what lies in the span of x
        # counts twice.
        u = u + x @ (x.mT @ u)
    torch.testing.assert_close(velocity, u, rtol=1e-4, atol=1e-5)


@each_base
def test_values(make, shape, exact):
    a, b = from_geoopt(make()), from_geoopt(make())
    assert a == b
    assert hash(a) == hash(b)
    assert a is not b
    assert len({a, b, Oblique()}) == 2
    others = [from_geoopt(other()) for other, *_ in BASES.values()]
    assert sum(a == other for other in others) == 1
    assert a != Oblique()
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.base = None
    x, u, _ = draw(a, shape)
    assert torch.equal(from_spec(a.spec()).retr(x, u), a.retr(x, u))


@each_base
def test_random_points_repeat(make, shape, exact):
    manifold = from_geoopt(make())
    if isinstance(manifold.base, geoopt.Lorentz):
        with pytest.raises(NotImplementedError):  # geoopt has none
            manifold.random(shape)
        return
    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = [manifold.random(shape, generator=source(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    # A generator of its own leaves everyone else's alone.
    assert torch.equal(torch.get_rng_state(), state)


@each_base
def test_not_a_submodule(make, shape, exact):
    model = torch.nn.Linear(2, 2)
    model.manifold = from_geoopt(make())
    assert len(list(model.modules())) == 1
    assert set(model.state_dict()) == {"weight", "bias"}


def test_curvature_is_part_of_the_value():
    assert from_geoopt(geoopt.PoincareBall(c=1.0)) != from_geoopt(geoopt.PoincareBall(c=2.0))
    assert from_geoopt(geoopt.Lorentz(k=1.0)) != from_geoopt(geoopt.Lorentz(k=2.0))
    assert from_geoopt(geoopt.Sphere()) != from_geoopt(geoopt.SphereExact())
    exact = from_geoopt(geoopt.PoincareBall(c=0.1)).spec()
    assert from_spec(exact).spec() == exact  # 0.1 in single precision


def test_subspaces_are_part_of_the_value():
    planes = [torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]]
    a, b = (from_geoopt(geoopt.Sphere(intersection=plane)) for plane in planes)
    assert a != b
    assert a != from_geoopt(geoopt.Sphere())
    with pytest.raises(ValueError, match="its description"):
        from_spec(a.spec())


@pytest.mark.parametrize(
    "make",
    [
        lambda: geoopt.PoincareBall(learnable=True),
        lambda: geoopt.Lorentz(learnable=True),
        lambda: geoopt.Scaled(geoopt.Sphere(), 2.0, learnable=True),
    ],
)
def test_learnable_manifolds_are_refused(make):
    with pytest.raises(ValueError, match="learnable=False"):
        from_geoopt(make())


@pytest.mark.parametrize("other", [None, 3, "Sphere", torch.nn.Linear(2, 2), geoopt.Sphere])
def test_from_geoopt_refuses_other_objects(other):
    with pytest.raises(TypeError):
        from_geoopt(other)


def test_ours_are_returned_as_they_are():
    manifold = Oblique()
    assert from_geoopt(manifold) is manifold
    stiefel = from_geoopt(geoopt.Stiefel())
    assert from_geoopt(stiefel) is stiefel


def test_invalid_points():
    stiefel = from_geoopt(geoopt.Stiefel())
    with refused(WrongTensorError, manifold=stiefel):
        stiefel.assert_check_point(torch.randn(3, 5))  # wide
    assert "manifoldnet's own Stiefel()" in str(stiefel.validate(torch.randn(3, 5)))
    off = torch.randn(5, 3, generator=source(0))
    assert not stiefel.check_point_on_manifold(off)
    with refused(NotOnManifoldError, slices=("the whole tensor",)):
        stiefel.assert_check_point_on_manifold(off)
    off[0, 0] = float("nan")
    with refused(NotOnManifoldError, amounts=(float("inf"),)):
        stiefel.assert_check_point_on_manifold(off)
    with refused(WrongTensorError, manifold=stiefel):
        stiefel.assert_check_point(torch.ones(5, 3, dtype=torch.int64))


def test_a_missing_formula_of_geoopt_raises():
    stiefel = from_geoopt(geoopt.Stiefel())
    x = stiefel.random(5, 3)
    with pytest.raises(NotImplementedError):
        stiefel.logmap(x, x)


def test_products_differ_by_factors_and_shapes() -> None:
    def product(first: int, second: int) -> Manifold:
        parts = ((geoopt.Sphere(), first), (geoopt.Euclidean(), second))
        return from_geoopt(geoopt.ProductManifold(*parts))

    assert product(4, 4) == product(4, 4)
    assert hash(product(4, 4)) == hash(product(4, 4))
    assert product(4, 4) != product(2, 6)


def test_geoopts_euclidean_space_is_ours() -> None:
    assert from_geoopt(geoopt.Euclidean(ndim=1)) == Euclidean()


# --- drift ----------------------------------------------------------------------------------------

DRIFTING = {
    **{name: (make, shape) for name, (make, shape, _) in BASES.items()},
    "SphereExact": (geoopt.SphereExact, (4, 3)),
    "EuclideanStiefelExact": (geoopt.EuclideanStiefelExact, (5, 3)),
    "SymmetricPositiveDefinite": (geoopt.SymmetricPositiveDefinite, (3, 3)),
    "BirkhoffPolytope": (geoopt.BirkhoffPolytope, (4, 4)),
    "Scaled": (lambda: geoopt.Scaled(geoopt.Stiefel(), 2.0), (5, 3)),
    "Product": (
        lambda: geoopt.ProductManifold((geoopt.Stiefel(), (5, 3)), (geoopt.SphereExact(), 4)),
        (19,),
    ),
}


def on_base(manifold, shape):
    """A point in single precision (of what needs positive entries, near their middle)."""
    x = 0.1 * torch.randn(shape, generator=source(0))
    if "SymmetricPositive" in repr(manifold):
        x = x + torch.eye(len(x))
    return manifold.projx(x.abs() if "Birkhoff" in repr(manifold) else x)


@pytest.mark.parametrize(("make", "shape"), DRIFTING.values(), ids=DRIFTING)
def test_steps_do_not_drift_and_correct_the_error_of_their_start(make, shape):
    """Also where the point they begin at is off: by a hundredth of the tolerance, say."""
    manifold = from_geoopt(make())
    x = y = on_base(manifold, shape)
    v = manifold.proju(x, torch.randn(shape, generator=source(1)))
    for step in range(60):
        v = 0.9 * v + 0.1 * manifold.egrad2rgrad(x, torch.randn(shape, generator=source(step)))
        x, v = manifold.retr_transp(x + 1e-6 * torch.randn(shape), -0.05 * v, v)
        u = 0.05 * manifold.egrad2rgrad(y, torch.randn(shape, generator=source(step)))
        y = manifold.expmap(y, u)
        # Of a doubly stochastic matrix geoopt's own projection leaves 1e-5.
        limit = 1e-5 if "Birkhoff" in repr(manifold) else 2e-6
        assert float(manifold.violation(x).max()) <= limit
        assert float(manifold.violation(y).max()) <= limit
        assert float(manifold.tangent_violation(x, v).max()) <= 2e-6


@pytest.mark.thorough
def test_an_optimum_on_stiefel_is_reached_and_its_checkpoint_loads():
    """geoopt's own test of Adam; in single precision its Cayley steps lose 1e-3 on the way."""
    torch.manual_seed(0)
    manifold = from_geoopt(geoopt.Stiefel())
    goal = manifold.random(20, 5)
    layer = torch.nn.Linear(5, 20, bias=False)
    mn.declare(layer, "weight", manifold, project=True)
    optimizer = mn.RiemannianAdam(mn.param_groups(layer), lr=1e-2)
    for _ in range(2500):
        optimizer.zero_grad()
        (layer.weight - goal).square().sum().backward()
        optimizer.step()
    assert float((layer.weight - goal).detach().abs().max()) <= 1e-5
    noise = torch.Generator().manual_seed(0)
    for _ in range(500):  # and with gradients that do not end
        layer.weight.grad = torch.randn(20, 5, generator=noise)
        optimizer.step()
    mn.load_state_dict(layer, layer.state_dict())
    defect = layer.weight.detach().T @ layer.weight.detach() - torch.eye(5)
    assert float(defect.abs().max()) <= 5e-6


@pytest.mark.parametrize("name", ["BirkhoffPolytope", "Scaled", "Product"])
def test_the_tangent_projection_is_one(name):
    """geoopt's `proju` of these is a gradient, which doubles or weighs what is tangent."""
    make, shape = DRIFTING[name]
    manifold = from_geoopt(make())
    x = on_base(manifold, shape).double()
    x = manifold.projx(x)
    z, w = (torch.randn(shape, dtype=torch.float64, generator=source(seed)) for seed in (1, 2))
    u = manifold.proju(x, z)
    torch.testing.assert_close(manifold.proju(x, u), u)
    assert float(((z - u) * manifold.proju(x, w)).sum()) == pytest.approx(0, abs=1e-12)
    kept = torch.func.jacrev(lambda z: manifold.proju(x, z))(z).reshape(z.numel(), -1).trace()
    assert manifold.dimension(shape) == round(float(kept))


# --- messages -------------------------------------------------------------------------------------


def test_the_entry_of_the_batch_is_named():
    sphere = from_geoopt(geoopt.Sphere())
    x = sphere.random(5, 4)
    x[3] *= 2
    error = sphere.validate(x)
    assert (error.slices, error.count, error.total) == (("row 3",), 1, 5)
    x[1, 2] = float("nan")
    assert sphere.validate(x).slices == ("row 1",)
    stiefel = from_geoopt(geoopt.Scaled(geoopt.Stiefel(), 2.0))
    x = stiefel.random(2, 3, 5, 2)
    x[1, 2] *= 2
    error = stiefel.validate(x)
    assert (error.slices, error.total) == (("batch entry (1, 2)",), 6)
    assert stiefel.validate(x[1, 2]).slices == ("the whole tensor",)
    normal = torch.zeros_like(x[0])
    normal[1] = x[0, 1]
    error = stiefel.validate_tangent(x[0], normal)
    assert (type(error), error.slices, error.total) == (NotTangentError, ("batch entry 1",), 3)


@pytest.mark.parametrize("base", [geoopt.Sphere(), geoopt.Stiefel()])
def test_a_manifold_of_geoopt_has_no_dim(base):
    """Its slices are the entries of a batch, however many dimensions that has."""
    assert not hasattr(from_geoopt(base), "dim")
    assert from_geoopt(base).parts == ()


def test_the_factor_of_a_product_is_named():
    def parts(make):
        x = torch.cat([make.random(5, 3).reshape(-1), torch.ones(4) / 2])
        x[16] += 1
        return x

    stiefel, sphere = from_geoopt(geoopt.Stiefel()), from_geoopt(geoopt.Sphere())
    theirs = geoopt.ProductManifold((geoopt.Stiefel(), (5, 3)), (geoopt.Sphere(), 4))
    for product in (from_geoopt(theirs), Product([(stiefel, (5, 3)), (sphere, (4,))])):
        x = parts(stiefel)
        with refused(
            NotOnManifoldError, slices=("the whole tensor of factor 1 of the data",), total=1
        ):
            product.assert_check_point_on_manifold(x)
        x[0] = float("inf")
        labels = tuple(f"the whole tensor of factor {i} of mine" for i in range(2))
        with refused(NotOnManifoldError, name="mine", slices=labels, total=2):
            product.assert_check_point_on_manifold(x, name="mine")


# --- Hessians -------------------------------------------------------------------------------------


def geodesic_of_the_canonical_metric(x, u):
    """The curve of [edelman1998geometry], as a function of time."""
    a, normal = x.mT @ u, u - x @ (x.mT @ u)
    q, r = torch.linalg.qr(normal)
    top = torch.cat([a, -r.mT], 1)
    generator = torch.cat([top, torch.cat([r, torch.zeros_like(a)], 1)])
    return lambda t: torch.cat([x, q], 1) @ torch.matrix_exp(t * generator)[:, : x.shape[1]]


def test_the_hessian_of_the_canonical_metric_is_the_second_derivative_along_its_geodesics():
    stiefel = from_geoopt(geoopt.CanonicalStiefel())
    x, u, v = draw(stiefel, (6, 3))
    mix = torch.randn(4, 18, dtype=torch.float64, generator=source(5))

    def f(y):
        return (mix @ y.flatten()).sin().sum() + (mix[0] @ y.flatten()).square()

    g = torch.func.grad(f)

    def hess(w):
        return stiefel.ehess2rhess(x, g(x), torch.func.jvp(g, (x,), (w,))[1], w)

    time = torch.zeros((), dtype=torch.float64)
    for w in (u, v, u + v):
        curve = geodesic_of_the_canonical_metric(x, w)
        second = torch.func.hessian(lambda t, curve=curve: f(curve(t)))(time)
        torch.testing.assert_close(stiefel.inner(x, hess(w), w), second)
        assert stiefel.check_vector_on_tangent(x, hess(w), tol=1e-12)
    torch.testing.assert_close(stiefel.inner(x, hess(u), v), stiefel.inner(x, u, hess(v)))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (geoopt.Sphere(), Oblique()),
        (geoopt.Scaled(geoopt.Sphere(), 2.0), Oblique()),
        (geoopt.Scaled(Oblique(), 2.0), Oblique()),
    ],
)
def test_hessians_of_spheres_are_ours(theirs, ours):
    x, u, g = draw(ours, (4, 3))
    h = torch.randn(4, 3, dtype=torch.float64, generator=source(7))
    adapted = from_geoopt(theirs)
    torch.testing.assert_close(adapted.ehess2rhess(x, g, h, u), ours.ehess2rhess(x, g, h, u))


@pytest.mark.parametrize("kind", [geoopt.PoincareBall, mn.Oblique])
def test_a_class_is_refused_with_the_object_to_give(kind):
    with pytest.raises(TypeError, match=rf"give an object of it, {kind.__name__}\(\)"):
        mn.declare(torch.nn.Linear(4, 3), "weight", kind)
