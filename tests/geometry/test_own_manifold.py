"""A manifold and a retraction that a user writes: new compositions, under the package's own laws.

`Positive` is the half-lines (0, ∞) with ⟨u, v⟩ₓ = uv/x², one for each number: straight in ln x.
`SecondOrder` is its x + u + u²/(2x), which is positive whatever u is, and of third order.
`Doubled` is a new retraction for old manifolds. The three classes `Test…` are all that it takes to
have them tested.
"""

from dataclasses import dataclass

import pytest
import torch
from cases import refused, seeds
from hypothesis import given, settings

import manifoldnet.geometry
from manifoldnet.geometry import (
    Additive,
    Geodesic,
    Geodesics,
    Manifold,
    Metric,
    NotOnManifoldError,
    Oblique,
    Projection,
    Projective,
    Retraction,
    ScaledEuclidean,
    Slices,
    from_spec,
    register_manifold,
    register_retraction,
    resolve_retraction,
)
from manifoldnet.testing import ManifoldLaws, RetractionLaws, tangent

INF = float("inf")


@dataclass(frozen=True)
class RelativeMetric(Metric):
    def component_inner(self, x, u, v):
        return (u / x) * (v / x)

    def sharp(self, x, g):
        return x * x * g


@dataclass(frozen=True)
class HalfLines(Projection):
    def to_set(self, x):
        return x.abs()

    def to_tangent(self, x, u):
        return u

    def violation(self, x):
        off = torch.where(x > 0, 0.0, torch.where(x < 0, 2.0, INF))
        return torch.where(x.isfinite(), off, INF).to(x.dtype)

    def tangent_violation(self, x, u):
        return torch.where(u.isfinite(), 0.0, INF).to(u.dtype)


@dataclass(frozen=True)
class LogarithmicLines(Geodesics):
    def exp(self, x, u):
        return x * (u / x).exp()

    def exp_transport(self, x, u, v):
        y = self.exp(x, u)
        return y, self.transport(x, y, v)

    def log(self, x, y):
        return x * (y / x).log()

    def component_dist(self, x, y):
        return (y / x).log().abs()

    def transport(self, x, y, v):
        return v * (y / x)


@dataclass(frozen=True)
class SecondOrder(Retraction):
    def step(self, manifold, x, u):
        return x + u + u * u / (2 * x)

    def step_transport(self, manifold, x, u, v):
        y = self.step(manifold, x, u)
        return y, manifold.transp(x, y, v)


@dataclass(frozen=True, init=False)
class Positive(Manifold):
    retraction: Retraction

    def __init__(self, retraction="geodesic"):
        super().__init__(
            slices=Slices("elements"),
            metric=RelativeMetric(),
            projection=HalfLines(),
            retraction=resolve_retraction(retraction, refused=Additive, owner="Positive"),
            geodesics=LogarithmicLines(),
        )


@dataclass(frozen=True)
class Doubled(Retraction):
    """Two projective steps of half the size."""

    def step(self, manifold, x, u):
        return self.step_transport(manifold, x, u, u)[0]

    def step_transport(self, manifold, x, u, v):
        one = Projective()
        middle, half = one.step_transport(manifold, x, u / 2, u / 2)
        _, v = one.step_transport(manifold, x, u / 2, v)
        return one.step_transport(manifold, middle, half, v)


@dataclass(frozen=True, init=False)
class Small(Positive):
    """A subclass of a subclass."""

    def __init__(self, retraction="second-order"):
        super().__init__(retraction)


register_retraction("second-order", SecondOrder)
register_retraction("doubled", Doubled)
register_manifold("Positive", Positive)
register_manifold("Small", Small)


class TestPositive(ManifoldLaws):
    manifold = Positive()
    shape = (4, 3)


class TestSecondOrder(RetractionLaws):
    manifold = Positive("second-order")
    shape = (4, 3)


class TestDoubled(RetractionLaws):
    manifold = Oblique(retraction=Doubled())
    shape = (5, 4)


# --- what only they do ----------------------------------------------------------------------------


@settings(max_examples=5)
@given(seed=seeds)
def test_order_of_the_new_retraction(seed):
    manifold = Positive(SecondOrder())
    x = manifold.projx(torch.randn(4, 3, dtype=torch.float64))
    u = tangent(manifold, x, seed)
    gaps = [
        float(manifold.dist(manifold.retr(x, t * u), manifold.expmap(x, t * u)))
        for t in (2.0**-6, 2.0**-7)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.03)


@pytest.mark.parametrize("manifold", [Positive(), Positive("second-order")], ids=str)
def test_the_offending_entry_is_named(manifold):
    x = manifold.random(4, 3)
    x.view(-1)[4] = -1
    with refused(NotOnManifoldError, slices=("entry 4",), amounts=(2.0,), total=12):
        manifold.assert_check_point_on_manifold(x)
    with refused(NotOnManifoldError, count=12):
        manifold.projx(torch.zeros(4, 3))


def test_new_and_old_parts_combine():
    half = Positive(Geodesic())
    assert half == Positive("geodesic") != Positive(SecondOrder())
    with pytest.raises(ValueError, match="Positive .* Additive"):
        Positive(Additive())
    # The names of new retractions are offered, where there is sense in them or not.
    with pytest.raises(ValueError, match="'second-order'"):
        ScaledEuclidean(retraction="nonsense")
    assert from_spec(Oblique(retraction=Doubled()).spec()) == Oblique(retraction="doubled")


def test_two_half_steps():
    manifold = Oblique(retraction=Doubled())
    x = manifold.random(5, 4, dtype=torch.float64)
    u = 0.1 * manifold.random_tangent(x)
    middle, half = Oblique().retr_transp(x, u / 2, u / 2)
    torch.testing.assert_close(manifold.retr(x, u), Oblique().retr(middle, half))


# --- names ----------------------------------------------------------------------------------------


def test_a_subclass_of_a_subclass_is_read_back():
    assert type(from_spec(Small().spec())) is Small
    assert from_spec(Small("geodesic").spec()) == Small("geodesic") != Positive("geodesic")


def test_class_statements_change_nothing():
    @dataclass(frozen=True)
    class Geodesic(Retraction):
        def step(self, manifold, x, u):
            return x

        step_transport = None

    @dataclass(frozen=True, init=False)
    class Oblique(Positive):
        pass

    ours = manifoldnet.geometry
    assert type(ours.Oblique(retraction="geodesic").retraction) is ours.Geodesic
    assert type(ours.ScaledEuclidean().retraction) is ours.Geodesic
    assert type(from_spec(ours.Oblique().spec())) is ours.Oblique
    # Nor are they taken for ours when they are read back.
    assert Geodesic().name != "geodesic"
    spec = Oblique().spec()
    assert spec["manifold"].endswith("Oblique")
    with pytest.raises(ValueError, match="register_manifold"):
        from_spec(spec)
    for register, name, cls in (
        (register_retraction, "geodesic", Geodesic),
        (register_manifold, "Oblique", Oblique),
    ):
        with pytest.raises(ValueError, match=f"'{name}' is taken"):
            register(name, cls)
    assert type(from_spec(ours.Oblique(retraction="geodesic").spec())) is ours.Oblique


@dataclass(frozen=True)
class Slower(Doubled):
    factor: float


class Named(Doubled):
    name = "mine"


@pytest.mark.parametrize(
    ("register", "name", "cls", "named"),
    [
        (register_manifold, "Other", Positive, "'Positive'"),
        (register_manifold, "GeooptManifold", Small, "'GeooptManifold' is taken"),
        (register_manifold, "", Small, "not empty"),
        (register_retraction, "other", Named, "'mine'"),
    ],
)
def test_invalid_names(register, name, cls, named):
    register_manifold("Positive", Positive)  # as when its module is loaded again
    with pytest.raises(ValueError, match=named):
        register(name, cls)


@pytest.mark.parametrize(
    ("register", "cls", "named"),
    [
        (register_manifold, SecondOrder, "subclass of Manifold"),
        (register_manifold, Manifold, "subclass of Manifold"),
        (register_retraction, Retraction, "subclass of Retraction"),
        (register_retraction, Slower, r"\(factor\)"),
    ],
)
def test_invalid_classes(register, cls, named):
    with pytest.raises(TypeError, match=named):
        register("slower", cls)
    with pytest.raises(ValueError, match="'slower'"):
        Oblique(retraction="slower")


def test_a_class_that_is_defined_again_keeps_its_name():
    def define():
        @dataclass(frozen=True, init=False)
        class Again(Positive):
            pass

        return Again

    first, second = define(), define()
    register_manifold("Again", first)
    register_manifold("Again", second)
    assert type(from_spec(second().spec())) is second


def test_a_class_of_ones_own_prints_as_ours_do():
    """Its repr is the inherited one, whatever `dataclass` would write."""
    assert repr(Positive()) == "Positive()"
    assert repr(Positive("projective")) == "Positive(retraction='projective')"
