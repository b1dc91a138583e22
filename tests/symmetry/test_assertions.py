"""Assertions of invariance: success, failure and its message; strategies for elements."""

import re

import pytest
import torch
from cases import source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2
from manifoldnet.symmetry import (
    Generator,
    ScalingElement,
    ScalingGroup,
    Slice,
    without_eps,
)
from manifoldnet.testing import (
    assert_loss_invariant,
    assert_metric_invariant,
    assert_trajectory_invariant,
    assert_update_equivariant,
    elements,
    reparameterized,
)


def problem(network=Arch1, dtype=torch.float64, classes=3, **options):
    model = network(6, classes, features=8, generator=source(1), **options).to(dtype)
    inputs = torch.randn(32, 6, dtype=dtype, generator=source(2))
    return model, (inputs, torch.arange(32) % classes)


def columns_against_rows(model):
    """Column j of the classifier against the two filters that are pooled into feature j."""
    return ScalingGroup.of(
        model,
        [
            Generator(
                {
                    Slice(
                        "hidden.2.weight" if len(model.hidden) == 4 else "hidden.3.weight", 0, i
                    ): 1
                    for i in (2 * j, 2 * j + 1)
                }
                | {Slice("head.weight", 1, j): -1}
            )
            for j in range(4)
        ],
    )


def sm(model):
    return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2, momentum=0.9)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_invariant_passes(dtype):
    model, batch = problem(dtype=dtype)
    group = columns_against_rows(model)
    mn.declare_all(model, mn.rules.scaled_metric("head"))
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    assert assert_loss_invariant(model, group, cross_entropy, batch) <= limit
    assert assert_metric_invariant(model, group) <= limit
    assert assert_update_equivariant(model, group, cross_entropy, batch, sm, steps=2) <= limit
    assert assert_trajectory_invariant(model, group, cross_entropy, [batch], sm, steps=20) <= limit


def test_bfloat16_has_its_own_tolerance():
    model, batch = problem(dtype=torch.bfloat16)
    error = assert_loss_invariant(model, columns_against_rows(model), cross_entropy, batch)
    assert error <= 0.1
    wrong = ScalingElement({Slice("head.weight", 1, 0): 100.0})
    with pytest.raises(AssertionError, match=r"allowed: 0\.1, bfloat16"):
        assert_loss_invariant(model, wrong, cross_entropy, batch)
    with pytest.raises(AssertionError, match=r"allowed: 0\.01, rtol"):
        assert_loss_invariant(model, wrong, cross_entropy, batch, rtol=0.01)


def test_the_type_decides():
    model, batch = problem(dtype=torch.float64)
    wrong = ScalingElement({Slice("head.weight", 1, 0): 1 + 1e-6})
    with pytest.raises(AssertionError, match=r"allowed: 1e-09, float64"):
        assert_loss_invariant(model, wrong, cross_entropy, batch)
    assert_loss_invariant(
        model.float(), wrong, cross_entropy, (batch[0].float(), batch[1])
    )  # 1e-6 is below what float32 can promise


@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.AdamW(model.parameters())])
def test_what_is_not_is_named_with_its_generator_and_factor(make):
    model, batch = problem()
    group = columns_against_rows(model)
    with pytest.raises(AssertionError) as caught:
        assert_update_equivariant(model, group, cross_entropy, batch, make)
    message = str(caught.value)
    assert re.match(r"the update is not equivariant: the error is [\d.e+-]+ relative", message)
    # The element is reduced to one of the four generators, with the factor 2.
    assert re.search(
        r"under hidden\.3\.weight\[rows \d,\d\] × s, head\.weight\[column \d\] ÷ s "
        r"with s = 2\n",
        message,
    ), message
    assert re.search(r"(hidden\.3|head)\.weight is off by .* relative \(most of it in", message)
    with pytest.raises(AssertionError, match=r"training run is not invariant.*\n.*with s = 2\n"):
        assert_trajectory_invariant(model, group, cross_entropy, [batch], make, steps=3)
    with pytest.raises(AssertionError, match=r"metric is not invariant.*\n.*\n.*Euclidean\(\)"):
        assert_metric_invariant(model, group)


def test_a_false_symmetry_among_true_ones_is_found():
    model, batch = problem()
    true = columns_against_rows(model)
    false = Generator({Slice("hidden.0.weight", 0, 5): 1.0, Slice("head.weight", 1, 2): -1.0})
    group = ScalingGroup.of(model, [*true.generators, false])
    with pytest.raises(AssertionError) as caught:
        assert_loss_invariant(model, group, cross_entropy, batch)
    assert "under hidden.0.weight[row 5] × s, head.weight[column 2] ÷ s with s = 2" in str(
        caught.value
    )


def test_two_generators_that_fail_only_together_are_both_named():
    # The loss is constant up to a threshold, which no scaling of one entry exceeds.
    class Threshold(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x.sum() * 0 + (self.a.log().abs().clamp(max=3).sum() - 3).relu() + 1

    model = Threshold()
    group = ScalingGroup.of(model, [Generator({Slice("a", 0, i): 1.0}) for i in range(3)])
    with pytest.raises(AssertionError, match=r"a\[entry \d\] × s with s = .*; a\[entry \d\] × s"):
        assert_loss_invariant(model, group, lambda output, _: output, (torch.ones(2), None))


def test_the_eps_of_normalization_is_blamed_where_it_is_to_blame():
    model, batch = problem(Arch2)
    row = ScalingElement({Slice("hidden.0.weight", 0, 3): 1e-3})
    with pytest.raises(AssertionError, match=r"The cause is the ε of the norm.* without "):
        assert_loss_invariant(model, row, cross_entropy, batch)
    assert model.hidden[1].eps == 1e-5
    with without_eps(model):
        assert assert_loss_invariant(model, row, cross_entropy, batch) <= 1e-12
    column = ScalingElement({Slice("hidden.0.weight", 1, 3): 1e-3})
    with pytest.raises(AssertionError) as caught:
        assert_loss_invariant(model, column, cross_entropy, batch)
    assert "ε" not in str(caught.value)


def test_an_empty_group_is_refused():
    model, batch = problem()
    with pytest.raises(ValueError, match="nothing to check"):
        assert_loss_invariant(model, ScalingGroup.of(model, []), cross_entropy, batch)
    with pytest.raises(ValueError, match="there are no elements"):
        elements(ScalingGroup.of(model, []))


# --- strategies -----------------------------------------------------------------------------------

MODEL, BATCH = problem()
GROUP = columns_against_rows(MODEL)


@given(element=elements(GROUP))
def test_elements_lie_in_the_group_within_bounds(element):
    assert element in GROUP
    for where in element.slices:
        assert 0.99e-3 <= element.factor(where) <= 1.01e3
    assert_loss_invariant(MODEL, element, cross_entropy, BATCH)


@given(element=elements(GROUP, smallest=2**-10, largest=2**5, powers_of_two=True))
def test_powers_of_two_are_exact(element):
    for where in element.slices:
        size = element.log2(where)
        assert size == int(size)
        low, high = (-5, 10) if where.parameter == "head.weight" else (-10, 5)
        assert low <= size <= high


@given(drawn=reparameterized(MODEL, GROUP))
def test_reparameterized_models_compute_the_same(drawn):
    scaled, element = drawn
    torch.testing.assert_close(scaled(BATCH[0]), MODEL(BATCH[0]), rtol=1e-9, atol=1e-12)
    assert scaled is not MODEL
    assert element in GROUP


def test_large_groups_are_sampled_by_some_of_their_generators():
    model = nn.Linear(2, 300, bias=False)
    group = ScalingGroup.of(model, [Generator({Slice("weight", 0, i): 1.0}) for i in range(300)])
    counts = []

    @settings(max_examples=20, database=None)
    @given(element=elements(group))
    def draw(element):
        counts.append(len(element.slices))

    draw()
    assert 1 <= max(counts) <= 64


@pytest.mark.thorough
def test_failures_shrink_to_one_generator():
    model, batch = problem()

    @settings(max_examples=50, database=None, suppress_health_check=list(HealthCheck))
    @given(element=elements(GROUP))
    def law(element):
        assert_update_equivariant(model, element, cross_entropy, batch, sgd)

    with pytest.raises(AssertionError) as caught:
        law()
    scaled = re.search(r"under ScalingElement\(\{(.*)\}\)", str(caught.value))
    assert scaled is not None
    assert scaled[1].count("head.weight") == 1, scaled[1]


@pytest.mark.parametrize("bounds", [(0.0, 2.0), (-1.0, 2.0), (2.0, 3.0), (0.1, float("inf"))])
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ValueError, match="positive, finite, and around 1"):
        elements(GROUP, smallest=bounds[0], largest=bounds[1])


@given(data=st.data())
def test_strategies_do_not_touch_the_model(data):
    before = {name: w.clone() for name, w in MODEL.state_dict().items()}
    data.draw(reparameterized(MODEL, GROUP))
    assert all(torch.equal(w, before[name]) for name, w in MODEL.state_dict().items())
