"""Hypothesis strategies for tests of one's own: seeds, sizes, points and tangent vectors.

    from hypothesis import given
    from manifoldnet.testing import points_with_tangents

    @given(points_with_tangents(Oblique(), (5, 4)))
    def test_steps_stay_on_the_manifold(drawn):
        x, u = drawn
        assert Oblique().check_point_on_manifold(Oblique().retr(x, u))

Every example is a seed and some sizes, however large the tensors: a failing one is printed as the
call that makes it, `point(Oblique(...), (5, 4), 0)`, and shrinks to seed 0 and to the ordinary
size 1 (or the end of the range that is nearest to it).
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from manifoldnet.geometry import Manifold
from manifoldnet.testing.samples import point, point_with_tangents, tangent

__all__ = ["points", "points_with_tangents", "seeds", "sizes", "tangents"]


def seeds() -> SearchStrategy[int]:
    """Seeds of generators, from 0 to 2³² − 1; they shrink to 0."""
    return st.integers(0, 2**32 - 1)


def sizes(smallest: float = 1e-8, largest: float = 30.0) -> SearchStrategy[float]:
    """Lengths of vectors, spread over all orders of magnitude of a range.

    In natural units, that is in radians on spheres: the default goes from where only the first
    digits of a step count to almost five turns. They shrink to 1, or to the end of the range that
    is nearest to it: an ordinary length, at which rounding explains nothing.

    Args:
        smallest: the lower end of the range, > 0.
        largest: the upper end.

    Raises:
        ValueError: unless 0 < smallest ≤ largest < ∞.
    """
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(
            f"sizes from smallest={smallest} to largest={largest}: both must be finite and "
            "positive, and in this order"
        )
    exponents = st.floats(math.log10(smallest), math.log10(largest))
    return exponents.map(lambda e: min(max(10.0**e, smallest), largest))


def points(
    manifold: Manifold, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64
) -> SearchStrategy[Tensor]:
    """Random points of a manifold: `samples.point` at any seed.

    Uniform on spheres; under the scaled metric, slices with norms from 10⁻³ to 10³. They shrink to
    seed 0.

    Args:
        manifold: where the points are.
        shape: their shape.
        dtype: their type.

    Raises:
        ValueError: if no tensor of this shape and type is a point.
    """
    _check_shape(manifold, shape, dtype)
    return st.builds(point, st.just(manifold), st.just(shape), seeds(), st.just(dtype))


def tangents(
    manifold: Manifold, x: Tensor, *, size: SearchStrategy[float] | None = None
) -> SearchStrategy[Tensor]:
    """Random tangent vectors at one point: `samples.tangent` at any seed and size.

    They shrink to seed 0 and to size 1.

    Args:
        manifold: where the point is.
        x: the point.
        size: lengths of their longest slices in natural units (radians on spheres); `sizes()` if
            left out.

    Raises:
        ValueError: if `x` is not on the manifold.
    """
    manifold.assert_check_point_on_manifold(x, name="x")
    lengths = sizes() if size is None else size
    return st.builds(tangent, st.just(manifold), st.just(x), seeds(), lengths)


def points_with_tangents(
    manifold: Manifold,
    shape: tuple[int, ...],
    *,
    count: int = 1,
    dtype: torch.dtype = torch.float64,
    size: SearchStrategy[float] | None = None,
) -> SearchStrategy[tuple[Tensor, ...]]:
    """Random points, each with tangent vectors at it: tuples (x, u₁, …, u_count).

    `samples.point_with_tangents` at any seed and sizes. They shrink to seed 0 and to sizes of 1.

    Args:
        manifold: where the points are.
        shape: their shape.
        count: how many tangent vectors, ≥ 1.
        dtype: the type of all of them.
        size: lengths of the vectors' longest slices in natural units (radians on spheres), drawn
            for each by itself; `sizes()` if left out.

    Raises:
        ValueError: if no tensor of this shape and type is a point, or if `count` < 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: a point with tangent vectors has at least one")
    _check_shape(manifold, shape, dtype)
    lengths = st.tuples(*[sizes() if size is None else size] * count)
    fixed = st.just(manifold), st.just(shape)
    return st.builds(point_with_tangents, *fixed, seeds(), lengths, st.just(dtype))


def _check_shape(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError if no tensor of this shape and type is a point."""
    like = torch.empty(shape, dtype=dtype, device="meta")
    manifold.assert_check_point(like, name=f"a tensor of shape {tuple(shape)}")
