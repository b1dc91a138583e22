"""Strategies for points and tangent vectors: what they draw, refuse, and shrink to."""

import math

import pytest
import torch
from cases import GEOMETRIES, few, length, lengths, over, refused
from hypothesis import find, given, settings
from hypothesis import strategies as st

from manifoldnet.geometry import (
    NotOnManifoldError,
    Oblique,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
)
from manifoldnet.testing import point, points, points_with_tangents, seeds, sizes, tangent, tangents

some = over(GEOMETRIES[::4])
quick = settings(max_examples=5, database=None)


def simplest(strategy):
    return find(strategy, lambda _: True, settings=quick)


@settings(max_examples=50)
@given(st.data())
def test_sizes_keep_to_their_range(data):
    smallest, largest = sorted(10.0 ** data.draw(st.floats(-30, 30)) for _ in range(2))
    assert smallest <= data.draw(sizes(smallest, largest)) <= largest


def test_sizes_reach_every_order_of_magnitude():
    for exponent in range(-8, 1):
        low, high = 10.0**exponent, 10.0 ** (exponent + 1)
        find(sizes(), lambda s, low=low, high=high: low <= s < high)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-1.0, 1.0), (1.0, math.inf), (2.0, 1.0), (math.nan, 1.0)]
)
def test_invalid_ranges(ends):
    with pytest.raises(ValueError, match="smallest="):
        sizes(*ends)


@pytest.mark.thorough
def test_what_they_shrink_to():
    assert simplest(seeds()) == 0
    assert simplest(sizes()) == 1.0
    assert simplest(sizes(1e-8, 0.1)) == 0.1
    assert simplest(sizes(10.0, 1e3)) == 10.0
    assert find(seeds(), lambda seed: seed >= 100) == 100
    assert 3.0 <= find(sizes(), lambda size: size >= 3.0) <= 10.0
    sphere = Oblique()
    x, u = simplest(points_with_tangents(sphere, (5, 4)))
    assert torch.equal(x, point(sphere, (5, 4), 0))
    assert torch.equal(x, simplest(points(sphere, (5, 4))))
    assert torch.equal(u, tangent(sphere, x, 1, 1.0))
    assert torch.equal(simplest(tangents(sphere, x)), tangent(sphere, x, 0, 1.0))


@some
@few
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_points_are_points(manifold, shape, data, dtype):
    x = data.draw(points(manifold, shape, dtype=dtype))
    assert x.dtype == dtype
    assert x.shape == shape
    assert manifold.check_point_on_manifold(x)


@some
@few
@given(data=st.data(), size=sizes(1e-3))
def test_tangent_vectors_are_tangent_and_of_their_size(manifold, shape, data, size):
    x, *vectors = data.draw(points_with_tangents(manifold, shape, count=2, size=st.just(size)))
    vectors.append(data.draw(tangents(manifold, x, size=st.just(size))))
    for u in vectors:
        assert manifold.check_vector_on_tangent(x, u)
        assert length(manifold, x, u) == pytest.approx(size, rel=1e-12)
    assert not torch.equal(vectors[0], vectors[1])


def test_a_point_and_a_vector_of_one_seed_have_nothing_in_common():
    """The same Gaussian numbers would make a vector of which nothing is tangent."""
    x = point(Oblique(), (1000, 3), 5)
    u = tangent(Oblique(), x, 5)
    assert float(Oblique().component_inner(x, u).sqrt().median()) > 0.1


def test_sizes_are_radians_on_spheres():
    manifold = Sphere(radius=2.5)
    x = point(manifold, (3, 4), 0)
    y = manifold.expmap(x, tangent(manifold, x, 1, size=0.5))
    assert float((x * y).sum()) / 2.5**2 == pytest.approx(math.cos(0.5))


def test_points_of_the_scaled_metric_are_of_every_size():
    norms = lengths(point(ScaledEuclidean(), (2000, 3), 0), 0).log10()
    assert -3 <= float(norms.min()) < -2.9
    assert 2.9 < float(norms.max()) <= 3
    # Uniform, of variance 6²/12.
    assert float(norms.mean()) == pytest.approx(0.0, abs=5 * math.sqrt(3 / 2000))


def test_one_seed_one_tensor_and_no_one_elses_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    x = point(Oblique(), (5, 4), 3)
    assert torch.equal(point(Oblique(), (5, 4), 3), x)
    assert not torch.equal(point(Oblique(), (5, 4), 4), x)
    assert torch.equal(tangent(Oblique(), x, 1), tangent(Oblique(), x, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_refused():
    with refused(WrongTensorError, manifold=Oblique()):
        points(Oblique(), (4,))
    with refused(WrongTensorError, manifold=Oblique()):
        points(Oblique(), (4, 3), dtype=torch.int64)
    with refused(NotOnManifoldError, name="x", count=4):
        tangents(Oblique(), torch.ones(4, 3))
    with pytest.raises(ValueError, match="count=0"):
        points_with_tangents(Oblique(), (4, 3), count=0)


def test_a_failing_example_prints_as_the_call_that_makes_it():
    @settings(max_examples=5, database=None)
    @given(x=points(Oblique(), (5, 4)))
    def check(x):
        raise AssertionError

    with pytest.raises(AssertionError) as error:
        check()
    said = "\n".join(error.value.__notes__)
    assert "x=point(" in said
    assert "(5, 4)" in said
    assert "tensor" not in said
