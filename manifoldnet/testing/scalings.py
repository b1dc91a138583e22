"""Strategies for hypothesis: elements of a scaling group, and models scaled by them.

    @given(element=elements(group))
    def test_invariance(element):
        assert_loss_invariant(model, element, loss_fn, batch)

Examples shrink towards the identity: few generators, factors near 1.
"""

from __future__ import annotations

import copy
import math

from hypothesis import strategies as st
from torch import nn

from manifoldnet.symmetry import ScalingElement, ScalingGroup, reparameterize

__all__ = ["elements", "reparameterized"]

# Groups of more dimensions are sampled through a few generators at a time.
_ALL_AT_ONCE = 64


def elements(
    group: ScalingGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> st.SearchStrategy[ScalingElement]:
    """Elements of a group: a factor for each of its generators that move a weight.

    Of a group with more than 64 generators, up to 64 get a factor at a time.

    Args:
        group: with at least one such generator.
        smallest: the least factor of a generator, positive.
        largest: the greatest.
        powers_of_two: only factors that scale without rounding.

    Raises:
        ValueError: if there is no generator, or no factor, to choose from.
    """
    real = group.nontrivial
    if real.dimension == 0:
        raise ValueError("the group has no scaling that moves a weight: there are no elements")
    if not 0 < smallest <= 1 <= largest < math.inf:
        raise ValueError(
            f"factors from {smallest} to {largest}: they must be positive, finite, and around 1"
        )
    low, high = math.log2(smallest), math.log2(largest)
    if powers_of_two:
        exponent: st.SearchStrategy[float] = st.integers(math.ceil(low), math.floor(high)).map(
            float
        )
    else:
        exponent = st.floats(low, high)
    if real.dimension <= _ALL_AT_ONCE:
        every = st.lists(exponent, min_size=real.dimension, max_size=real.dimension)
        return every.map(real.from_log2)
    some = st.dictionaries(
        st.integers(0, real.dimension - 1), exponent, min_size=1, max_size=_ALL_AT_ONCE
    )
    return some.map(lambda chosen: real.subgroup(chosen).from_log2(chosen.values()))


def reparameterized(
    model: nn.Module,
    group: ScalingGroup,
    *,
    smallest: float = 1e-3,
    largest: float = 1e3,
    powers_of_two: bool = False,
) -> st.SearchStrategy[tuple[nn.Module, ScalingElement]]:
    """Copies of a model with scaled weights, each with the element that scaled it.

    Args:
        model: it is not changed.
        group: of this model.
        smallest: as in `elements`.
        largest: as in `elements`.
        powers_of_two: as in `elements`.

    Raises:
        ValueError: as `elements`, and as `reparameterize` when an example is drawn.
    """
    original = copy.deepcopy(model)
    scalings = elements(group, smallest=smallest, largest=largest, powers_of_two=powers_of_two)
    return scalings.map(lambda element: (reparameterize(original, element), element))
