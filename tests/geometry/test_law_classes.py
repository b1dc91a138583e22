"""Classes of laws in a user's tests: their fields, their collection, their messages."""

import importlib
import math
import sys
import unittest

import hypothesis
import pytest
import torch
from cases import refused

import manifoldnet
from manifoldnet.geometry import Euclidean, Oblique, WrongTensorError
from manifoldnet.testing import ManifoldLaws, RetractionLaws

LAWS = [name for name in dir(ManifoldLaws) if name.startswith("test_")]


class Flat(ManifoldLaws):
    manifold = Euclidean()
    shape = (2, 3)


class TestCollected(RetractionLaws):
    manifold = Euclidean()
    shape = (3,)
    test_transport_along_a_step_is_isometric = None


class InTheStandardLibrary(RetractionLaws, unittest.TestCase):
    manifold = Euclidean()
    shape = (3,)


def test_they_are_collected_where_they_are_subclassed_and_nowhere_else(request):
    here = [item for item in request.session.items if item.path == request.path and item.cls]
    if len(here) > 1 and not request.config.option.keyword:
        laws = [name for name in dir(RetractionLaws) if name.startswith("test_")]
        assert sorted(item.name for item in here if item.cls is InTheStandardLibrary) == laws
        laws.remove("test_transport_along_a_step_is_isometric")
        assert sorted(item.name for item in here if item.cls is TestCollected) == laws
        assert {item.cls for item in here} == {TestCollected, InTheStandardLibrary}


@pytest.mark.parametrize("given", ["manifold", "shape"])
def test_a_missing_manifold_or_shape_raises(given):
    fields = {"manifold": Euclidean(), "shape": (3,)}
    laws = type("TestMine", (ManifoldLaws,), {given: fields[given]})
    (other,) = fields.keys() - {given}
    for law in LAWS:
        with pytest.raises(TypeError, match=f"TestMine .*`{other} = "):
            getattr(laws(), law)()


@pytest.mark.parametrize("lacks", [("logmap",), ("logs",)])
def test_formulas_are_not_lacking_because_a_class_says_so(lacks):
    laws = type("TestMine", (ManifoldLaws,), {**vars(Flat), "lacks": lacks})
    with pytest.raises(AssertionError, match="lacks"):
        laws().test_missing_formulas_say_so()


def test_a_formula_that_is_missing_is_an_error_unless_a_class_says_so():
    class Blank(type(Euclidean().geodesics)):
        def log(self, x, y):
            raise NotImplementedError

    manifold = Euclidean()
    vars(manifold).update(geodesics=Blank())
    fields = {**vars(Flat), "manifold": manifold}
    with pytest.raises(NotImplementedError):
        type("TestMine", (ManifoldLaws,), fields)().test_exp_inverts_log()
    type("TestMine", (ManifoldLaws,), {**fields, "lacks": ("logmap",)})().test_exp_inverts_log()


def test_an_invalid_shape_raises():
    laws = type("TestMine", (ManifoldLaws,), {"manifold": Oblique(), "shape": (3,)})
    with refused(WrongTensorError, manifold=Oblique()):
        laws().test_retraction_of_zero()


# --- examples -------------------------------------------------------------------------------------


def tried(**fields):
    """The number of examples that a law of such a class tries."""
    seeds = []

    def point(self, seed):
        seeds.append(seed)
        return super(Flat, self).point(seed)

    type("Counted", (Flat,), {"point": point, **fields})().test_retraction_of_zero()
    return len(seeds)


def test_examples_are_a_tenth_of_the_profile_or_what_the_class_says():
    profile = hypothesis.settings.get_current_profile_name()
    assert tried(examples=7) == 7
    hypothesis.settings.register_profile("of-this-test", max_examples=120)
    hypothesis.settings.load_profile("of-this-test")
    try:
        assert tried() == 12
        assert tried(examples=7) == 7
    finally:
        hypothesis.settings.load_profile(profile)


def test_classes_are_tried_on_different_examples_when_nothing_is_random():
    def seeds_of(name):
        seen = []

        def point(self, seed):
            seen.append(seed)
            return super(Flat, self).point(seed)

        type(name, (Flat,), {"point": point, "examples": 5})().test_retraction_of_zero()
        return seen

    profile = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("ci")
    try:
        assert seeds_of("One") == seeds_of("One")
        assert seeds_of("One") != seeds_of("Two")
    finally:
        hypothesis.settings.load_profile(profile)


# --- what is changed in a subclass ----------------------------------------------------------------


def test_a_law_is_overridden_or_switched_off():
    class Changed(Flat):
        test_log_inverts_exp = None

        def test_exp_inverts_log(self):
            raise AssertionError("mine")

    class Further(Changed):
        shape = (5,)

    for laws in (Changed, Further):
        assert laws.test_log_inverts_exp is None
        with pytest.raises(AssertionError, match="^mine$"):
            laws().test_exp_inverts_log()
        laws().test_retraction_of_zero()


def test_one_class_serves_several_times():
    for _ in range(2):
        Flat().test_retraction_of_zero()


def test_slack_and_type():
    single = type("Single", (Flat,), {"dtype": torch.float32, "slack": 2.0, "examples": 2})
    assert single().point(0).dtype == torch.float32
    assert single().tangent(single().point(0), 1).dtype == torch.float32
    assert single().roundings(3) == 6 * torch.finfo(torch.float32).eps
    for law in LAWS:
        getattr(single(), law)()


# --- what a failure says --------------------------------------------------------------------------


def test_a_failure_names_law_manifold_amount_and_bound_at_the_simplest_example():
    class Off(Flat):
        examples = 20

        def apart(self, a, b):
            return 0.25

    with pytest.raises(AssertionError) as error:
        Off().test_retraction_of_zero()
    assert str(error.value) == (
        "Euclidean() with points of shape (2, 3) breaks the law test_retraction_of_zero "
        "(`retr(x, 0) = x`): retr(x, 0) − x, relative, is 0.25, where 1.78e-15 is allowed"
    )
    notes = "\n".join(error.value.__notes__)
    assert "self=Off()" in notes
    assert "seed=0" in notes


def test_a_failure_shrinks_to_the_size_at_which_it_begins():
    class Off(Flat):
        examples = 50
        longest = 1e3

        def tangent(self, x, seed, size=1.0):
            return super().tangent(x, seed, size) * (math.nan if size > 20 else 1)

    with pytest.raises(AssertionError, match="is inf, where") as error:
        Off().test_geodesics_stay_on_the_manifold()
    notes = "\n".join(error.value.__notes__)
    size = float(notes.partition("size=")[2].partition(",")[0])
    assert 20 < size <= 100
    assert "seed=0" in notes


def test_other_errors_say_where_they_were_raised():
    class Broken(Flat):
        def point(self, seed):
            raise RuntimeError("no points today")

    with pytest.raises(RuntimeError, match="^no points today") as error:
        Broken().test_retraction_of_zero()
    assert "raised while test_retraction_of_zero was checked for Euclidean()" in str(
        error.value.__notes__
    )


# --- without hypothesis ---------------------------------------------------------------------------


def test_the_rest_works_without_hypothesis(monkeypatch):
    monkeypatch.setattr(manifoldnet, "testing", manifoldnet.testing)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "hypothesis" or name.startswith("manifoldnet.testing"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    testing = importlib.import_module("manifoldnet.testing")
    x = testing.point(Oblique(), (5, 4), 0)
    assert Oblique().check_vector_on_tangent(x, testing.tangent(Oblique(), x, 1))
    for name in ("ManifoldLaws", "points"):
        with pytest.raises(ImportError, match="pip install hypothesis"):
            getattr(testing, name)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = testing.nonsense
