"""Hypothesis strategies for tests of one's own: points, tangent vectors, scaled models.

    from hypothesis import given
    from manifoldnet.testing import points_with_tangents

    @given(points_with_tangents(Oblique(), (5, 4)))
    def test_steps_stay_on_the_manifold(drawn):
        x, u = drawn
        assert Oblique().check_point_on_manifold(Oblique().retr(x, u))

An example is a seed and some sizes, however large the tensors. A failing one is printed as the call
that makes it, `point(Oblique(...), (5, 4), 0)`, and shrinks to seed 0 and size 1 (or the nearest
end of the range).

    @given(element=elements(group))
    def test_invariance(element):
        assert_loss_invariant(model, element, loss_fn, batch)

Elements of a group, of scalings or of linear maps, shrink towards the identity: few generators,
factors near 1.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, overload

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from manifoldnet.geometry import Manifold
from manifoldnet.symmetry import (
    LinearElement,
    LinearGroup,
    ScalingElement,
    ScalingGroup,
    reparameterize,
)
from manifoldnet.testing.samples import point, point_with_tangents, tangent

__all__ = [
    "elements",
    "points",
    "points_with_tangents",
    "reparameterized",
    "seeds",
    "sizes",
    "tangents",
]

# Groups of more dimensions are sampled through a few generators at a time.
_ALL_AT_ONCE = 64


def seeds() -> SearchStrategy[int]:
    """Seeds of generators, from 0 to 2³² − 1; they shrink to 0."""
    return st.integers(0, 2**32 - 1)


def sizes(smallest: float = 1e-8, largest: float = 30.0) -> SearchStrategy[float]:
    """Lengths of vectors, spread over all orders of magnitude of a range.

    In natural units, that is in radians on spheres: the default goes from steps of half of the
    digits to almost five turns. They shrink to 1, or to the nearest end of the range: a length at
    which errors are not those of rounding.

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
        manifold: their manifold.
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
        manifold: its manifold.
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
        manifold: their manifold.
        shape: their shape.
        count: how many tangent vectors, ≥ 1.
        dtype: the type of all of them.
        size: lengths of the vectors' longest slices in natural units (radians on spheres), drawn
            independently; `sizes()` if left out.

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


@overload
def elements(
    group: ScalingGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[ScalingElement]: ...


@overload
def elements(
    group: LinearGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[LinearElement]: ...


def elements(
    group: ScalingGroup | LinearGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[ScalingElement] | SearchStrategy[LinearElement]:
    """Elements of a group: a factor for each generator that moves a weight, or a linear map.

    Singular values of each matrix of a linear element lie between `smallest` and `largest`, so that
    its condition number is at most their ratio. Of a group with more than 64 generators, up to 64
    are taken at a time.

    Args:
        group: with at least one such generator.
        smallest: the least factor of a generator, positive.
        largest: the greatest.
        powers_of_two: only factors that scale without rounding.

    Raises:
        TypeError: if it is no group, or for powers of two of linear maps.
        ValueError: if there is no generator, or no factor, to choose from.
    """
    if not isinstance(group, ScalingGroup | LinearGroup):
        raise TypeError(f"a ScalingGroup or a LinearGroup is needed, not a {type(group).__name__}")
    if powers_of_two and isinstance(group, LinearGroup):
        raise TypeError(
            "powers_of_two is for scalings: a linear map mixes weights, which rounds them. Take "
            "elements(group.scalings, powers_of_two=True), or leave it out"
        )
    real = group.nontrivial if isinstance(group, ScalingGroup) else group
    count = len(real.generators)
    if count == 0:
        raise ValueError("the group has no generator that moves a weight: there are no elements")
    if not 0 < smallest <= 1 <= largest < math.inf:
        raise ValueError(
            f"factors from {smallest} to {largest}: they must be positive, finite, and around 1"
        )
    if isinstance(real, LinearGroup):
        spread = min(math.log(largest), -math.log(smallest))
        return _coefficients(count, st.floats(-spread, spread)).map(partial(_linear, real, spread))
    low, high = math.log2(smallest), math.log2(largest)
    exponent: SearchStrategy[float] = st.floats(low, high)
    if powers_of_two:
        exponent = st.integers(math.ceil(low), math.floor(high)).map(float)
    return _coefficients(count, exponent).map(partial(_scaling, real))


def _coefficients(count: int, value: SearchStrategy[float]) -> SearchStrategy[dict[int, float]]:
    """Coefficients of all generators or, if there are many, of some, by number."""
    if count <= _ALL_AT_ONCE:
        every = st.lists(value, min_size=count, max_size=count)
        return every.map(lambda values: dict(enumerate(values)))
    return st.dictionaries(st.integers(0, count - 1), value, min_size=1, max_size=_ALL_AT_ONCE)


def _scaling(group: ScalingGroup, chosen: dict[int, float]) -> ScalingElement:
    return group.subgroup(chosen).from_log2(chosen.values())


def _linear(group: LinearGroup, spread: float, chosen: dict[int, float]) -> LinearElement:
    coefficients = [chosen.get(i, 0.0) for i in range(len(group.generators))]
    return group.element(group.bounded(coefficients, spread))


@overload
def reparameterized(
    model: nn.Module,
    group: ScalingGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[tuple[nn.Module, ScalingElement]]: ...


@overload
def reparameterized(
    model: nn.Module,
    group: LinearGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[tuple[nn.Module, LinearElement]]: ...


def reparameterized(
    model: nn.Module,
    group: Any,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> SearchStrategy[tuple[nn.Module, Any]]:
    """Copies of a model at g·w, each with the element g.

    Args:
        model: it is not changed.
        group: of this model.
        smallest: as in `elements`.
        largest: as in `elements`.
        powers_of_two: as in `elements`.

    Raises:
        TypeError: as `elements`.
        ValueError: as `elements`, and as `reparameterize` when an example is drawn.
    """
    original = copy.deepcopy(model)
    chosen = elements(group, smallest=smallest, largest=largest, powers_of_two=powers_of_two)
    return chosen.map(lambda element: (reparameterize(original, element), element))
