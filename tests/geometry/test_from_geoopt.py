"""geoopt's manifolds behind the vocabulary of this library."""

import dataclasses

import geoopt
import pytest
import torch
from cases import source

from manifoldnet.geometry import Euclidean, Manifold, Oblique, from_geoopt, from_spec
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
    y, carried = manifold.retr_transp(x, u, v)
    torch.testing.assert_close(y, manifold.retr(x, u), rtol=ROUGH, atol=ROUGH)
    assert manifold.check_point_on_manifold(y)
    assert manifold.check_vector_on_tangent(y, carried, tol=ROUGH)
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

    # Stiefel has no logarithm and no distance; types are geoopt's.
    test_arguments_are_not_changed = None
    test_inner_is_the_sum_of_its_components = None
    test_results_have_the_type_of_the_point = None


globals().update(
    {
        f"Test-{name}": type(
            f"Test-{name}", (Adapted,), {"manifold": from_geoopt(make()), "shape": shape}
        )
        for name, (make, shape, _) in BASES.items()
    }
)


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
    with pytest.raises(ValueError, match="cannot be made from its description"):
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
def test_what_is_no_manifold_is_refused(other):
    with pytest.raises(ValueError, match="is not a manifold"):
        from_geoopt(other)


def test_ours_are_returned_as_they_are():
    manifold = Oblique()
    assert from_geoopt(manifold) is manifold
    stiefel = from_geoopt(geoopt.Stiefel())
    assert from_geoopt(stiefel) is stiefel


def test_points_that_are_none():
    stiefel = from_geoopt(geoopt.Stiefel())
    with pytest.raises(ValueError, match="refused by geoopt"):
        stiefel.assert_check_point(torch.randn(3, 5))  # wide
    off = torch.randn(5, 3, generator=source(0))
    assert not stiefel.check_point_on_manifold(off)
    with pytest.raises(ValueError, match="is not on"):
        stiefel.assert_check_point_on_manifold(off)
    off[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        stiefel.assert_check_point_on_manifold(off)
    with pytest.raises(ValueError, match="int64"):
        stiefel.assert_check_point(torch.ones(5, 3, dtype=torch.int64))


def test_what_geoopt_does_not_have_is_said():
    stiefel = from_geoopt(geoopt.Stiefel())
    x = stiefel.random(5, 3)
    with pytest.raises(NotImplementedError):
        stiefel.logmap(x, x)


def test_products_are_told_apart_by_their_parts_and_shapes() -> None:
    def product(first: int, second: int) -> Manifold:
        parts = ((geoopt.Sphere(), first), (geoopt.Euclidean(), second))
        return from_geoopt(geoopt.ProductManifold(*parts))

    assert product(4, 4) == product(4, 4)
    assert hash(product(4, 4)) == hash(product(4, 4))
    assert product(4, 4) != product(2, 6)


def test_geoopts_flat_space_is_ours() -> None:
    assert from_geoopt(geoopt.Euclidean(ndim=1)) == Euclidean()
