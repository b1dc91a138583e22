"""A manifold and a retraction that a user writes: a new composition, and the same laws.

`Positive` is the half-lines (0, ∞) with ⟨u, v⟩ₓ = uv/x², one for each number: straight in ln x.
`SecondOrder` is its x + u + u²/(2x), which is positive whatever u is, and of third order.
"""

import copy
import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import test_curves as curves
import test_projection_and_metric as statics
import torch
from cases import seeds, sizes, tangent
from hypothesis import given, settings

from manifoldnet.geometry import (
    Additive,
    Geodesic,
    Geodesics,
    Manifold,
    Metric,
    Oblique,
    Projection,
    Projective,
    Retraction,
    ScaledEuclidean,
    from_spec,
)
from manifoldnet.geometry.manifold import resolve_retraction

EPS = torch.finfo(torch.float64).eps
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
        return torch.where(x > 0, 0.0, torch.where(x < 0, 2.0, INF)).to(x.dtype)

    def tangent_violation(self, x, u):
        return torch.where(u.isfinite(), 0.0, INF)


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
    name: ClassVar[str] = "second-order"

    def step(self, parts, x, u):
        return x + u + u * u / (2 * x)

    def step_transport(self, parts, x, u, v):
        y = self.step(parts, x, u)
        return y, parts.geodesics.transport(x, y, v)


@dataclass(frozen=True, init=False)
class Positive(Manifold):
    retraction: Retraction

    def __init__(self, retraction="geodesic"):
        self._compose(
            dim="elements",
            metric=RelativeMetric(),
            projection=HalfLines(),
            retraction=resolve_retraction(retraction, refused=Additive, owner="Positive"),
            geodesics=LogarithmicLines(),
        )

    def _fields(self):
        return {"retraction": self.retraction.name}


ALL = [Positive(), Positive("second-order")]
each = pytest.mark.parametrize("manifold", ALL, ids=str)

# The same tests that the library's own manifolds pass.
LAWS = [
    statics.test_projx_is_idempotent_and_lands_on_the_manifold,
    statics.test_projx_leaves_points_where_they_are,
    statics.test_proju_keeps_tangent_vectors,
    statics.test_proju_is_orthogonal_in_the_metric,
    statics.test_metric_is_symmetric_and_bilinear,
    statics.test_metric_is_positive_definite,
    statics.test_inner_is_the_sum_of_its_components,
    statics.test_gradient_represents_the_differential,
    curves.test_no_step_is_no_move,
    curves.test_retraction_starts_with_the_velocity_asked_for,
    curves.test_geodesics_have_constant_speed_and_go_on_as_they_began,
    curves.test_log_inverts_exp,
    curves.test_exp_inverts_log,
    curves.test_distance_is_the_length_of_the_geodesic,
    curves.test_no_curve_is_shorter_than_the_distance,
    curves.test_distance_is_a_distance,
    curves.test_transport_between_points,
    curves.test_transport_is_linear,
    curves.test_transport_along_a_geodesic,
]


@each
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_same_laws_hold(manifold, law):
    law(manifold=manifold, shape=(4, 3))


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


@settings(max_examples=5)
@given(seed=seeds, size=sizes())
def test_its_steps_stay_positive(seed, size):
    manifold = Positive("second-order")
    x = manifold.projx(torch.randn(4, 3, dtype=torch.float64))
    y, _ = manifold.retr_transp(x, tangent(manifold, x, seed, size), x)
    assert torch.all(y > 0)


@each
def test_it_is_a_value_like_any_other(manifold):
    assert from_spec(json.loads(json.dumps(manifold.spec()))) == manifold
    assert pickle.loads(pickle.dumps(manifold)) == manifold
    assert copy.deepcopy(manifold) == manifold
    assert eval(repr(manifold), globals()) == manifold
    assert manifold.dim == "elements"
    x = manifold.random(4, 3)
    assert manifold.check_point_on_manifold(x)
    x.view(-1)[4] = -1
    with pytest.raises(ValueError, match="1 of 12 slices are off, the worst is entry 4"):
        manifold.assert_check_point_on_manifold(x)
    with pytest.raises(ValueError, match="which is zero"):
        manifold.projx(torch.zeros(4, 3))


def test_new_and_old_parts_combine():
    half = Positive(Geodesic())
    assert half == Positive("geodesic") != Positive(SecondOrder())
    with pytest.raises(ValueError, match="Positive has no use for Additive"):
        Positive(Additive())
    # The names of new retractions are offered, where there is sense in them or not.
    with pytest.raises(ValueError, match="'second-order'"):
        ScaledEuclidean(retraction="nonsense")


def test_a_new_retraction_on_an_old_manifold():
    manifold = Oblique(retraction=Doubled())
    x = manifold.random(5, 4, dtype=torch.float64)
    u = 0.1 * manifold.random_tangent(x)
    middle, half = Oblique().retr_transp(x, u / 2, u / 2)
    torch.testing.assert_close(manifold.retr(x, u), Oblique().retr(middle, half))
    assert manifold != Oblique()
    assert from_spec(manifold.spec()) == manifold == Oblique(retraction="doubled")
    y, v = manifold.retr_transp(x, u, u)
    assert manifold.check_point_on_manifold(y)
    assert manifold.check_vector_on_tangent(y, v)


@dataclass(frozen=True)
class Doubled(Retraction):
    """Two projective steps of half the size."""

    name: ClassVar[str] = "doubled"

    def step(self, parts, x, u):
        return self.step_transport(parts, x, u, u)[0]

    def step_transport(self, parts, x, u, v):
        one = Projective()
        middle, half = one.step_transport(parts, x, u / 2, u / 2)
        _, v = one.step_transport(parts, x, u / 2, v)
        return one.step_transport(parts, middle, half, v)
