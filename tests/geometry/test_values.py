"""Manifolds are values: equal by their fields; what is known of them beyond the laws of all."""

import math

import pytest
import torch
from cases import MANIFOLDS

from manifoldnet.geometry import (
    Additive,
    Euclidean,
    Geodesic,
    Manifold,
    Oblique,
    Projective,
    ScaledEuclidean,
    Sphere,
    from_spec,
)

DISTINCT = list(dict.fromkeys(manifold for manifold, _ in MANIFOLDS))


def test_equal_by_fields():
    for i, a in enumerate(DISTINCT):
        for j, b in enumerate(DISTINCT):
            assert (a == b) == (i == j)
    assert Oblique(dim=None) == Sphere() != Oblique(dim=None, radius=2)
    assert hash(Oblique(dim=None)) == hash(Sphere())
    assert Oblique(0) == Oblique(dim=0, radius=1, retraction="projective")
    assert hash(Oblique(0)) == hash(Oblique(dim=0, radius=1))
    assert Euclidean() == Euclidean()
    assert Oblique() != "Oblique"
    assert len({Oblique(), Oblique(0), Oblique(radius=2), Oblique(dim=1)}) == 3


@pytest.mark.parametrize(
    ("kind", "sugar", "value"),
    [
        (Oblique, "projective", Projective()),
        (Oblique, "geodesic", Geodesic()),
        (Sphere, "projective", Projective()),
        (Sphere, "geodesic", Geodesic()),
        (ScaledEuclidean, "geodesic", Geodesic()),
        (ScaledEuclidean, "additive", Additive()),
    ],
)
def test_names_are_sugar_for_retractions(kind, sugar, value):
    assert kind(retraction=sugar) == kind(retraction=value)
    assert hash(kind(retraction=sugar)) == hash(kind(retraction=value))
    assert kind(retraction=sugar).retraction == value


def test_defaults():
    assert Oblique().retraction == Projective()
    assert Sphere().retraction == Projective()
    assert ScaledEuclidean().retraction == Geodesic()
    assert (Oblique().dim, ScaledEuclidean().dim, Sphere().dim) == (0, 0, None)
    assert Oblique().radius == Sphere().radius == 1.0


def test_specs_do_not_change():
    """They are in people's checkpoints."""
    assert Oblique().spec() == {
        "manifold": "Oblique",
        "version": 1,
        "fields": {"dim": 0, "radius": 1.0, "retraction": "projective"},
    }
    assert ScaledEuclidean(dim=None).spec()["fields"] == {"dim": None, "retraction": "geodesic"}
    assert Sphere(2).spec()["fields"] == {"radius": 2.0, "retraction": "projective"}
    assert Euclidean().spec()["fields"] == {}


@pytest.mark.parametrize("name", ["Euclidean", "Oblique", "Sphere", "ScaledEuclidean"])
def test_names_in_specs_are_those_of_the_classes(name):
    assert type(from_spec({"manifold": name, "version": 1, "fields": {}})).__name__ == name


@pytest.mark.parametrize("cls", [Additive, Projective, Geodesic])
def test_names_of_retractions(cls):
    assert cls().name == cls.__name__.lower()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({**Oblique().spec(), "version": 2}, "version 2.*install a newer"),
        ({**Oblique().spec(), "manifold": "Klein"}, "'Klein'"),
        ({**Oblique().spec(), "fields": {"dim": -1}}, "dim=-1"),
        ({**Oblique().spec(), "fields": None}, "not the description of a manifold"),
        ({"manifold": "Oblique"}, "the description"),
    ],
)
def test_unreadable_specs(spec, named):
    with pytest.raises(ValueError, match=named):
        from_spec(spec)


@pytest.mark.parametrize("name", ["GeooptManifold", "Product"])
def test_a_spec_without_the_fields_of_its_manifold(name):
    with pytest.raises(ValueError, match="not the description"):
        from_spec({"manifold": name, "version": 1, "fields": {}})


def test_a_sphere_is_the_oblique_manifold_of_one_slice():
    sphere, oblique = Sphere(2.0, "geodesic"), Oblique(None, 2.0, "geodesic")
    assert sphere == oblique == sphere
    assert hash(sphere) == hash(oblique)
    assert sphere != Oblique(0, 2.0, "geodesic")
    assert repr(sphere) == "Sphere(radius=2.0, retraction='geodesic')"
    assert repr(oblique) == "Oblique(dim=None, radius=2.0, retraction='geodesic')"
    assert type(from_spec(sphere.spec())) is Sphere
    assert type(from_spec(oblique.spec())) is Oblique
    assert isinstance(sphere, Oblique)
    # A class of a user's own may differ in its methods.
    assert type("Mine", (Oblique,), {})(None, 2.0, "geodesic") != oblique


@pytest.mark.parametrize("spec", [None, "Oblique", [("manifold", "Oblique")]])
def test_specs_of_a_wrong_type(spec):
    with pytest.raises(TypeError, match="the description"):
        from_spec(spec)


def test_natural_scales():
    assert (Oblique(radius=2.0).unit, ScaledEuclidean().unit, Euclidean().unit) == (2.0, 1.0, 1.0)
    assert Oblique(radius=2.0).typical_dist((4, 3)) == 2 * math.pi * math.sqrt(4)
    assert ScaledEuclidean(dim=1).typical_dist((4, 3)) == math.pi * math.sqrt(3)
    assert Euclidean().typical_dist((4, 3)) == math.sqrt(12)
    assert [m.scale_invariant for m in (Oblique(), ScaledEuclidean(), Euclidean())] == [0, 1, 0]


def test_not_a_module():
    """A manifold kept as an attribute of a model does not become part of it."""
    model = torch.nn.Linear(3, 2)
    model.manifold = Oblique()
    assert not isinstance(model.manifold, torch.nn.Module)
    assert len(list(model.modules())) == 1
    with pytest.raises(TypeError):
        Manifold()
