"""Scaling groups: names, containment, samples, invalid generators."""

import copy
import math
import pickle

import pytest
import torch
from cases import seeds, source
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manifoldnet.symmetry import Generator, ScalingElement, ScalingGroup, Slice
from manifoldnet.symmetry.group import describe, trivial_generators

HIDDEN, HEAD, BIAS = "hidden.weight", "head.weight", "hidden.bias"
SHAPES = {HIDDEN: (8, 5), BIAS: (8,), HEAD: (3, 4), "conv.weight": (6, 3, 2, 2), "gain": ()}


def generator(*slices, **more):
    return Generator({Slice(name, dim, i): power for name, dim, i, power in slices}, **more)


def pair(k):
    """Two pooled filters against the column that sees them."""
    return generator((HIDDEN, 0, 2 * k, 1), (HIDDEN, 0, 2 * k + 1, 1), (HEAD, 1, k, -1))


def every(name, dim, power):
    return [(name, dim, i, power) for i in range(SHAPES[name][dim])]


PAIRS = [pair(k) for k in range(4)]
ROWS_AGAINST_COLUMNS = generator(*every(HIDDEN, 0, 1), *every(HIDDEN, 1, -1))


def group(*generators):
    return ScalingGroup(generators, SHAPES)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        (
            [(HIDDEN, 0, 0, 1), (HIDDEN, 0, 1, 1), (HEAD, 1, 0, -1)],
            "hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s",
        ),
        # Factors before divisors, in the order of the model, whatever the order given.
        (
            [(HEAD, 1, 0, 1), (HIDDEN, 0, 3, -1), (BIAS, 0, 3, 1)],
            "hidden.bias[entry 3] × s, head.weight[column 0] × s, hidden.weight[row 3] ÷ s",
        ),
        ([(HIDDEN, 0, i, 1) for i in (1, 2, 3, 6)], "hidden.weight[rows 1–3,6] × s"),
        (every(HIDDEN, 0, 1), "hidden.weight[all rows] × s"),
        (every(HEAD, 1, -1), "head.weight[all columns] ÷ s"),
        ([(HEAD, None, 0, 1)], "head.weight × s"),
        ([("gain", None, 0, 1)], "gain × s"),
        (
            [("conv.weight", 0, 4, 1), ("conv.weight", 1, 2, -1)],
            "conv.weight[filter 4] × s, conv.weight[channel 2] ÷ s",
        ),
        (
            [(HIDDEN, 0, 0, 2), (HIDDEN, 0, 1, 0.5), (HEAD, 1, 0, -1.5)],
            "hidden.weight[row 0] × s^2, hidden.weight[row 1] × s^1/2, "
            "head.weight[column 0] ÷ s^3/2",
        ),
        ([(HIDDEN, 0, 0, 1 / 3)], "hidden.weight[row 0] × s^1/3"),
    ],
)
def test_names_of_generators(slices, words):
    assert describe(generator(*slices).exponents, SHAPES) == words
    assert group(generator(*slices)).generators[0].name == words


def test_a_name_that_is_given_is_kept():
    assert group(generator((HIDDEN, 0, 0, 1), name="mine")).generators[0].name == "mine"


def test_a_parameter_may_have_any_name():
    shapes = {"layers[0] weight": (3, 2)}
    made = generator(*(("layers[0] weight", 0, i, 1) for i in range(3)))
    assert describe(made.exponents, shapes) == "layers[0] weight[all rows] × s"


def test_printed_group():
    some = group(*PAIRS, ROWS_AGAINST_COLUMNS)
    assert str(some) == (
        "scaling group of dimension 5, 4 of it non-trivial\n"
        "  hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s, and 3 more like it\n"
        "  hidden.weight[all rows] × s, hidden.weight[all columns] ÷ s  (trivial)"
    )
    assert repr(some) == "<ScalingGroup of dimension 5 (1 trivial) on 5 parameters>"
    assert str(ScalingGroup(PAIRS[:1], SHAPES, report="measured")).endswith("\nmeasured")


def test_families_differ_in_indices_only():
    mixed = group(
        PAIRS[0],
        generator((BIAS, 0, 0, 1)),
        PAIRS[2],
        generator((BIAS, 0, 1, 2)),
        generator((BIAS, 0, 4, 1)),
    )
    found = {name: [g.name for g in members] for name, members in mixed.families()}
    assert list(found) == [
        "hidden.weight[rows 0,1] × s, head.weight[column 0] ÷ s, and 1 more like it",
        "hidden.bias[entry 0] × s, and 1 more like it",
        "hidden.bias[entry 1] × s^2",
    ]
    assert sum(map(len, found.values())) == 5


# --- a basis ------------------------------------------------------------------------------------


def test_sizes():
    some = group(ROWS_AGAINST_COLUMNS, *PAIRS)
    assert (some.dimension, some.trivial_dimension) == (5, 1)
    assert some.nontrivial == group(*PAIRS)
    assert some.parameters == (HIDDEN, HEAD)
    assert [g.trivial for g in some.generators] == [False] * 4 + [True]


def test_trivial_generators_are_recognized():
    assert group(ROWS_AGAINST_COLUMNS).trivial_dimension == 1
    whole = generator((HIDDEN, None, 0, 1), *every(HIDDEN, 1, -1))
    assert group(whole).trivial_dimension == 1
    three = generator(
        *every("conv.weight", 0, 1), *every("conv.weight", 1, 1), *every("conv.weight", 2, -2)
    )
    assert group(three).trivial_dimension == 1
    for every_one in trivial_generators(SHAPES):
        assert group(every_one).trivial_dimension == 1
    assert group(generator(*every(HIDDEN, 0, 1))).trivial_dimension == 0
    uneven = generator(*every(HIDDEN, 0, 1), *every(HIDDEN, 1, -2))
    assert group(uneven).trivial_dimension == 0


def test_nontrivial_generator_marked_as_trivial_is_an_error():
    with pytest.raises(ValueError, match=r"hidden.bias\[entry 0\] × s is said to be trivial"):
        group(generator((BIAS, 0, 0, 1), trivial=True))


def test_the_group_of_a_model():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    some = ScalingGroup.of(model, [generator(("0.weight", 0, 1, 1), ("1.running_var", 0, 1, 2))])
    assert some.generators[0].name == "0.weight[row 1] × s, 1.running_var[entry 1] × s^2"
    assert some.parameters == ("0.weight",)
    assert "1.num_batches_tracked" not in some.shapes


def test_subgroups():
    some = group(*PAIRS, ROWS_AGAINST_COLUMNS)
    assert some.subgroup([0, 2]) == group(PAIRS[0], PAIRS[2])
    assert some.subgroup([some.generators[1], -1]) == group(PAIRS[1], ROWS_AGAINST_COLUMNS)
    with pytest.raises(ValueError, match=r"bias\[entry 0\].* is not a generator of this group"):
        some.subgroup(group(generator((BIAS, 0, 0, 1))).generators)


@pytest.mark.parametrize(
    "dependent",
    [
        [PAIRS[0], PAIRS[0]],
        [PAIRS[0], generator((HIDDEN, 0, 0, -2), (HIDDEN, 0, 1, -2), (HEAD, 1, 0, 2))],
        [
            generator((BIAS, 0, 0, 1), (BIAS, 0, 1, 1)),
            generator((BIAS, 0, 1, 1), (BIAS, 0, 2, 1)),
            generator((BIAS, 0, 0, 1), (BIAS, 0, 2, -1)),
            # Independent of these, by a slice of its own.
            generator((BIAS, 0, 0, 1), (BIAS, 0, 7, 1)),
        ],
    ],
)
def test_dependent_generators_are_refused(dependent):
    with pytest.raises(ValueError, match=r"[23] generators span only [12] dimensions.*for example"):
        group(*dependent)


def test_independent_generators_that_share_all_slices():
    assert (
        group(
            generator((BIAS, 0, 0, 1), (BIAS, 0, 1, 1)),
            generator((BIAS, 0, 0, 1), (BIAS, 0, 1, -1)),
        ).dimension
        == 2
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generator({}), "at least one slice"),
        (lambda: generator((BIAS, 0, 0, 0.0)), "has the exponent 0.0"),
        (lambda: generator((BIAS, 0, 0, math.nan)), "has the exponent nan"),
        (lambda: Generator({BIAS: 1.0}), "exponents by Slice, not by 'hidden.bias'"),
        (lambda: group(generator(("other", 0, 0, 1))), r"no parameter 'other' \(there are: hidden"),
        (lambda: group(generator((HIDDEN, 0, 8, 1))), r"shape \(8, 5\) has no slice 8 along dim=0"),
        (lambda: group(generator((BIAS, 1, 0, 1))), r"shape \(8,\) has no slice 0 along dim=1"),
    ],
)
def test_impossible_generators_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- what lies inside ---------------------------------------------------------------------------


@given(st.lists(st.floats(-7, 7), min_size=4, max_size=4))
def test_elements_are_contained(scales):
    some = group(*PAIRS)
    element = some.element(scales)
    assert element in some
    assert element.inverse() in some
    assert element**0.37 in some
    other = element * ScalingElement({Slice(HEAD, 1, 0): 1.001})
    assert other not in some


def test_elements_that_are_not_contained():
    some = group(*PAIRS)
    assert ScalingElement({Slice(HIDDEN, 0, 0): 2.0}) not in some
    assert ScalingElement({Slice(BIAS, 0, 0): 2.0}) not in some
    negative = {Slice(HIDDEN, 0, 0): -2, Slice(HIDDEN, 0, 1): -2, Slice(HEAD, 1, 0): -0.5}
    assert ScalingElement(negative, signed=True) not in some
    for where in (Slice("other", None), Slice("other", 0, 0), Slice(HIDDEN, 0, 99), Slice(BIAS, 1)):
        assert ScalingElement({where: 2.0}) not in some
    # All rows, and one that is not there.
    rows = generator(*every(HIDDEN, 0, 1))
    assert Generator({**rows.exponents, Slice(HIDDEN, 0, 8): 1.0}) not in group(rows)
    assert "a string" not in some
    assert ScalingElement.identity() in some
    assert ScalingElement({Slice(BIAS, None): 2.0}) not in group()
    assert ScalingElement.identity() in group()


def test_the_whole_tensor_is_all_rows_and_all_columns():
    ways = [
        [(HIDDEN, None, 0, 1)],
        every(HIDDEN, 0, 1),
        every(HIDDEN, 1, 1),
        [(HIDDEN, None, 0, 3), *every(HIDDEN, 0, -1), *every(HIDDEN, 1, -1)],
    ]
    others = [[(HEAD, None, 0, -1)], every(HEAD, 0, -1), every(HEAD, 1, -1)]
    for way in ways:
        for other in others:
            some = group(generator(*way, *other))
            for this in ways:
                for that in others:
                    assert generator(*this, *that) in some
                    assert group(generator(*this, *that)) in some
                    assert generator(*this, *that).element(3.0) in some
                assert generator(*this) not in some
    # Of a vector, and of the kernel of a convolution.
    assert generator((BIAS, None, 0, 1)) in group(generator(*every(BIAS, 0, 1)))
    everywhere = generator(*every("conv.weight", 3, 1))
    assert generator(("conv.weight", None, 0, 1)) in group(everywhere)


def test_whole_tensor_less_some_rows_equals_the_others():
    others = generator((HIDDEN, None, 0, 1), *((HIDDEN, 0, i, -1) for i in range(3)))
    some = group(generator(*((HIDDEN, 0, i, 1) for i in range(3, 8))))
    assert others in some
    assert others.element(1e3) in some


def test_buffers_are_disregarded_in_containment():
    model = nn.BatchNorm1d(2)
    scale = ("weight", 0, 1, 1)
    some = ScalingGroup.of(model, [generator(scale, ("running_var", 0, 1, 2))])
    assert generator(scale) in some
    assert generator(scale, ("running_mean", 0, 0, 5)) in some
    assert generator(("weight", 0, 0, 1), ("running_var", 0, 1, 2)) not in some


def test_trivial_generators_are_in_every_group():
    assert ROWS_AGAINST_COLUMNS in group(PAIRS[0])
    assert ROWS_AGAINST_COLUMNS.element(3.0) in group()


def test_contained_generators_and_groups():
    some = group(*PAIRS)
    assert all(member in some for member in PAIRS)
    total = generator(*every(HIDDEN, 0, 1), *every(HEAD, 1, -1))
    assert total in some
    assert group(total) in some
    assert group(PAIRS[1], total) in some
    assert some not in group(total)
    assert group(total, generator((BIAS, 0, 0, 1))) not in some
    assert group() in some
    assert group() in group()
    # The same directions, given by other generators.
    mixed = group(*(Generator({**PAIRS[i].exponents, **PAIRS[i - 1].exponents}) for i in (1, 2, 3)))
    assert mixed in some
    assert some not in mixed


# --- elements -----------------------------------------------------------------------------------


def test_an_element_has_the_factors_it_is_asked_for():
    some = group(*PAIRS)
    element = some.element([math.log(2), math.log(3), 0, -math.log(5)])
    expected = torch.tensor([2, 2, 3, 3, 1, 1, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(element.factors(HIDDEN, torch.ones(8, 1)).flatten(), expected)
    torch.testing.assert_close(
        element.factors(HEAD, torch.ones(1, 4)).flatten(), 1 / expected[::2], rtol=1e-14, atol=0
    )
    assert some.element(torch.zeros(4)).is_identity
    for wrong in ([1.0], [1.0] * 5, []):
        with pytest.raises(ValueError, match=f"{len(wrong)} log-scales for a group of dimension 4"):
            some.element(wrong)
        with pytest.raises(ValueError, match=f"{len(wrong)} log-scales for a group of dimension 4"):
            some.from_log2(wrong)
    with pytest.raises(ValueError, match=r"has the factor 2\^nan"):
        some.element([math.nan, 0, 0, 0])


def test_exponents_are_powers_of_the_factor():
    made = generator((HIDDEN, 0, 0, 2), (HIDDEN, 0, 1, 0.5), (HEAD, 1, 0, -1)).element(4.0)
    assert [made.factor(w) for w in made.slices] == [16, 2, 0.25]
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"the factor is {factor}"):
            PAIRS[0].element(factor)


@given(st.lists(st.integers(-9, 9), min_size=4, max_size=4))
def test_whole_logarithms_are_exact(exponents):
    element = group(*PAIRS).from_log2(exponents)
    assert [element.factor(Slice(HEAD, 1, k)) for k in range(4)] == [2.0**-e for e in exponents]


@given(st.lists(st.floats(-7, 7), min_size=4, max_size=4), st.floats(-1, 1))
def test_elements_are_linear_in_log_scales(scales, t):
    some = group(*PAIRS)
    a, b = some.element(scales), some.element([t * s for s in scales])
    for where in a.slices:
        assert b.log2(where) == pytest.approx(t * a.log2(where), abs=1e-12)


# --- samples ------------------------------------------------------------------------------------


@given(seed=seeds, spread=st.floats(0.01, 20))
def test_samples_are_seeded_and_spread(seed, spread):
    some = group(*PAIRS)
    a, b = (some.sample(generator=source(seed), spread=spread) for _ in range(2))
    assert a == b
    assert a in some
    assert all(abs(a.log2(w)) * math.log(2) <= spread * (1 + 1e-12) for w in a.slices)
    assert a != some.sample(generator=source(seed + 1), spread=spread)


def test_samples_fill_their_spread():
    many = ScalingGroup([generator(("w", 0, i, 1)) for i in range(2000)], {"w": (2000,)})
    element = many.sample(generator=source(1), spread=6.9)
    scales = element.factors("w", torch.ones(2000)).log()
    assert float(scales.abs().max()) > 6.8
    assert abs(float(scales.mean())) < 0.3
    assert abs(float(scales.std()) - 6.9 / math.sqrt(3)) < 0.2


def test_default_generator_of_samples():
    some = group(*PAIRS)
    torch.manual_seed(5)
    a = some.sample()
    assert some.sample() != a
    torch.manual_seed(5)
    assert some.sample() == a


@given(seed=seeds)
def test_samples_with_powers_of_two_are_exact(seed):
    some = group(
        *PAIRS[:2],
        generator((BIAS, 0, 0, 0.5), (BIAS, 0, 1, -1)),
        generator((BIAS, 0, 2, 1 / 3), (BIAS, 0, 3, 1.5), (BIAS, 0, 4, -2)),
    )
    element = some.sample(generator=source(seed), spread=6.9, powers_of_two=True)
    for where in element.slices:
        # 1/3 has no exact representation: its multiples of 6 are whole to a rounding.
        exponent = element.log2(where)
        assert abs(exponent - round(exponent)) < 1e-14
        assert math.frexp(element.factor(where))[0] == 0.5
    assert element in some


def test_powers_of_two_are_as_spread():
    some = group(*PAIRS)
    found = {
        round(some.sample(generator=source(i), spread=6.9, powers_of_two=True).log2(w))
        for i in range(200)
        for w in (Slice(HEAD, 1, 0),)
    }
    assert found == set(range(-10, 11))


@pytest.mark.parametrize("spread", [0.0, -1.0, math.nan, math.inf])
def test_impossible_spreads_are_refused(spread):
    with pytest.raises(ValueError, match=f"spread is {spread}"):
        group(*PAIRS).sample(spread=spread)


# --- values -------------------------------------------------------------------------------------


def test_groups_are_values():
    some = group(*PAIRS, ROWS_AGAINST_COLUMNS)
    for twin in (pickle.loads(pickle.dumps(some)), copy.deepcopy(some), group(*some.generators)):
        assert twin == some
        assert hash(twin) == hash(some)
        assert str(twin) == str(some)
        assert twin.sample(generator=source(1)) == some.sample(generator=source(1))
    assert some != group(*PAIRS)
    assert len({*PAIRS, *PAIRS}) == 4


def test_generators_are_shown_by_their_names():
    exponents = {Slice(BIAS, 0, 0): 1.0}
    assert repr(group(Generator(exponents)).generators[0]) == f"<Generator {BIAS}[entry 0] × s>"
    assert eval(repr(Generator(exponents))) == Generator(exponents)


def test_a_generator_keeps_its_exponents():
    exponents = {Slice(BIAS, 0, 0): 1.0}
    made = Generator(exponents)
    exponents[Slice(BIAS, 0, 1)] = 5.0
    assert list(made.exponents) == [Slice(BIAS, 0, 0)]


def test_the_empty_group():
    empty = group()
    assert (empty.dimension, empty.trivial_dimension) == (0, 0)
    assert empty.sample().is_identity
    assert empty.sample(powers_of_two=True).is_identity
    assert empty.element([]).is_identity
    assert list(empty.families()) == []
    assert empty.nontrivial == empty.subgroup([]) == empty
    assert empty.parameters == ()
    assert "no scaling symmetry" in str(empty)
    assert pickle.loads(pickle.dumps(empty)) == empty
