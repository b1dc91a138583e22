"""Group elements: laws of an abelian group, exact powers of two, invalid factors."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.symmetry import ScalingElement, Slice
from manifoldnet.symmetry.scaling import describe_slices

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(6,), (6, 4), (6, 4, 3), (6, 4, 3, 2)]

slices = st.one_of(
    st.builds(Slice, st.sampled_from(["a.weight", "b.weight"]), st.just(None)),
    st.builds(
        Slice, st.sampled_from(["a.weight", "b.weight"]), st.integers(0, 1), st.integers(0, 3)
    ),
)
factors = st.floats(1e-3, 1e3)
powers_of_two = st.integers(-10, 10).map(lambda k: 2.0**k)


def elements(size=factors):
    return st.dictionaries(slices, size, max_size=6).map(ScalingElement)


def weight(shape=(6, 4), dtype=torch.float64, seed=0):
    # Entries are away from 0, for the sake of relative errors.
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + 0.5).to(dtype) * torch.where(x > 0.5, 1, -1).to(dtype)


def same(a, b):
    """Equal to rounding: every named slice has the same factor."""
    return all(
        math.isclose(a.factor(w), b.factor(w), rel_tol=1e-13) for w in {*a.slices, *b.slices}
    )


# --- the group ----------------------------------------------------------------------------------


@given(elements(), elements(), elements())
def test_the_laws_of_an_abelian_group(a, b, c):
    one = ScalingElement.identity()
    assert a * b == b * a
    assert same((a * b) * c, a * (b * c))
    assert a * one == one * a == a
    assert a * a.inverse() == one
    assert a.inverse().inverse() == a
    assert (a * b).inverse() == a.inverse() * b.inverse()


@given(elements(powers_of_two), elements(powers_of_two), elements(powers_of_two))
def test_powers_of_two_compose_without_rounding(a, b, c):
    assert (a * b) * c == a * (b * c)
    for where in {*a.slices, *b.slices}:
        assert (a * b).factor(where) == a.factor(where) * b.factor(where)
        assert a.inverse().factor(where) == 1 / a.factor(where)


@given(elements(), st.floats(-3, 3), st.floats(-3, 3))
def test_powers_are_a_one_parameter_group(a, s, t):
    assert same((a**s) * (a**t), a ** (s + t))
    assert same((a**s) ** t, a ** (s * t))
    assert a**1 == a
    assert a**0 == ScalingElement.identity()
    assert a**-1 == a.inverse()
    assert same((a**0.5) * (a**0.5), a)


@given(elements(), elements(), st.sampled_from(SHAPES[1:]), st.integers(0, 99))
def test_action_of_a_product(a, b, shape, seed):
    x = weight(shape, seed=seed)
    once = (a * b).apply("a.weight", x)
    torch.testing.assert_close(a.apply("a.weight", b.apply("a.weight", x)), once)
    torch.testing.assert_close(a.inverse().apply("a.weight", a.apply("a.weight", x)), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(element=elements(st.integers(-2, 2).map(lambda k: 2.0**k)), seed=st.integers(0, 99))
def test_powers_of_two_are_undone_bit_for_bit(dtype, element, seed):
    x = weight(dtype=dtype, seed=seed)
    y = element.apply("a.weight", x)
    assert y.dtype == dtype
    assert torch.equal(element.inverse().apply("a.weight", y), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(element=elements(st.floats(0.5, 2)), seed=st.integers(0, 99))
def test_other_factors_are_undone_to_rounding(dtype, element, seed):
    # In float64 the factors themselves are rounded too.
    tolerance = torch.finfo(dtype).eps * (4 if dtype == torch.float64 else 1)
    x = weight(dtype=dtype, seed=seed)
    y = element.apply("a.weight", x)
    back = element.inverse().apply("a.weight", y)
    assert float(((back.double() - x.double()) / x.double()).abs().max()) <= tolerance


def test_every_power_of_two_is_exact():
    exponents = range(-1000, 1001)
    element = ScalingElement({("w", 0): [2.0**k for k in exponents]})
    assert [element.log2(Slice("w", 0, i)) for i in range(2001)] == list(exponents)
    expected = torch.tensor([2.0**k for k in exponents], dtype=torch.float64)
    assert torch.equal(element.factors("w", expected), expected)


# --- what is scaled -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"), [(shape, dim) for shape in SHAPES for dim in (None, *range(len(shape)))]
)
def test_factors_go_to_the_right_slices(shape, dim):
    x = weight(shape)
    values = 3.0 if dim is None else torch.arange(1.0, shape[dim] + 1)
    y = ScalingElement({("w", dim): values}).apply("w", x)
    for index in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist():
        factor = 3.0 if dim is None else index[dim] + 1.0
        assert float(y[tuple(index)] / x[tuple(index)]) == pytest.approx(factor, rel=1e-15)


def test_rows_columns_and_the_whole_multiply():
    element = ScalingElement({Slice("w", 0, 1): 2, Slice("w", 1, 2): 8, Slice("w", None): 0.5})
    expected = torch.full((3, 4), 0.5, dtype=torch.float64)
    expected[1] *= 2
    expected[:, 2] *= 8
    assert torch.equal(element.factors("w", expected), expected)


def test_a_number_is_scaled_as_a_whole():
    assert ScalingElement({Slice("w", None): 4.0}).apply("w", torch.tensor(3.0)) == 12
    with pytest.raises(ValueError, match=r"w of shape \(\) has no slice 0 along dim=0"):
        ScalingElement({Slice("w", 0, 0): 4.0}).apply("w", torch.tensor(3.0))


@given(s=factors, shape=st.sampled_from(SHAPES[1:]), seed=st.integers(0, 99))
def test_trivial_scaling_is_exactly_the_identity(s, shape, seed):
    element = ScalingElement.from_log2(
        {Slice("w", 0, i): math.log2(s) for i in range(shape[0])}
        | {Slice("w", 1, j): -math.log2(s) for j in range(shape[1])}
    )
    x = weight(shape, seed=seed)
    assert torch.equal(element.apply("w", x), x)


def test_other_parameters_and_slices_stay():
    element = ScalingElement({Slice("w", 0, 1): 2.0})
    x = weight()
    assert torch.equal(element.apply("other", x), x)
    assert torch.equal(element.apply("w", x)[0], x[0])
    assert element.factor(Slice("other", None)) == 1


def test_short_vector_of_factors():
    element = ScalingElement({("w", 0): [2.0, 4.0]})
    assert element.factors("w", torch.ones(3, 1)).flatten().tolist() == [2, 4, 1]


def test_the_argument_is_not_changed_and_shares_no_memory():
    x = weight()
    before = x.clone()
    y = ScalingElement.identity().apply("w", x)
    y.zero_()
    ScalingElement({Slice("w", None): 2.0}).apply("w", x)
    assert torch.equal(x, before)


def test_complex_weights_are_scaled_too():
    x = torch.complex(weight((3, 2)), weight((3, 2), seed=1)).to(torch.complex64)
    y = ScalingElement({("w", 0): [2.0, 4.0, 8.0]}).apply("w", x)
    assert y.dtype == torch.complex64
    assert torch.equal(y[1], 4 * x[1])


def test_non_finite_entries_are_scaled_without_error():
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf, 0.0])
    y = ScalingElement({Slice("w", None): 2.0}).apply("w", x)
    torch.testing.assert_close(y, 2 * x, equal_nan=True)


def test_meta_tensors():
    x = torch.empty(3, 2, device="meta")
    assert ScalingElement({Slice("w", 0, 1): 2.0}).apply("w", x).is_meta


# --- negative factors ---------------------------------------------------------------------------


def test_negative_factors():
    where, other = Slice("w", 0, 0), Slice("w", 1, 1)
    a = ScalingElement({where: -2.0}, signed=True)
    b = ScalingElement({where: -4.0, other: -1.0}, signed=True)
    assert a.factor(where) == -2
    assert (a * b).factor(where) == 8
    assert (a * b).factor(other) == -1
    assert a * a.inverse() == ScalingElement.identity()
    assert b**2 == b * b
    assert b**3 == b * b * b
    assert a.apply("w", torch.ones(2, 2)).tolist() == [[-2, -2], [1, 1]]
    assert b.apply("w", torch.ones(2, 2)).tolist() == [[-4, 4], [1, -1]]
    assert not b.is_identity
    assert a != ScalingElement({where: 2.0})
    with pytest.raises(ValueError, match=r"the power 0.5 of a negative factor .*dim=0, index=0"):
        a**0.5


# --- values -------------------------------------------------------------------------------------


@given(elements(), st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_elements_are_values(a, protocol):
    for twin in (
        pickle.loads(pickle.dumps(a, protocol)),
        copy.deepcopy(a),
        copy.copy(a),
        ScalingElement({where: a.factor(where) for where in a.slices}) ** 1,
    ):
        assert same(twin, a)
    twin = pickle.loads(pickle.dumps(a, protocol))
    assert twin == a
    assert hash(twin) == hash(a)
    assert repr(twin) == repr(a)


def test_factors_of_one_do_not_affect_equality():
    a = ScalingElement({Slice("w", 0, 1): 2.0})
    b = ScalingElement({Slice("w", 0, 0): 1.0, Slice("w", 0, 1): 2.0})
    assert a == b
    assert hash(a) == hash(b)
    assert ScalingElement({Slice("w", None): 1.0}).is_identity
    assert not a.is_identity
    assert a != ScalingElement({Slice("w", 0, 1): 4.0})
    assert a != "a string"
    assert a.parameters == ("w",)


@given(elements(), st.booleans())
def test_repr_is_the_call_that_makes_it(a, signed):
    if signed:
        a = a * ScalingElement({Slice("c", 0, 2): -2.0}, signed=True)
    assert same(eval(repr(a)), a)


def test_repr_of_many_is_short():
    assert repr(ScalingElement({("w", 0): [2.0] * 99})).endswith("… 91 more})")


def test_renamed_keeps_factors_and_signs():
    a = ScalingElement({Slice("w", 0, 1): -2.0, Slice("v", None): 3.0}, signed=True)
    b = a.renamed({"w": "body.w"})
    assert b.factor(Slice("body.w", 0, 1)) == -2
    assert b.factor(Slice("v", None)) == pytest.approx(3)
    assert "w" not in b.parameters
    assert a.renamed({"w": "w"}) is a


# --- refusals -----------------------------------------------------------------------------------

TOO_MUCH = [
    (torch.float32, 1.0, 2.0**130),
    (torch.bfloat16, 1.0, 2.0**130),
    (torch.float16, 1.0, 2.0**17),
    (torch.float64, 1e300, 2.0**100),
    (torch.float32, 1.0, 2.0**-150),
    (torch.bfloat16, 1.0, 2.0**-150),
    (torch.float16, 1.0, 2.0**-30),
    (torch.float64, 1e-300, 2.0**-100),
    # The result is subnormal, not 0: digits are lost, and the inverse does not restore them.
    (torch.float32, 1.2345678, 2.0**-130),
    (torch.bfloat16, 1.234, 2.0**-130),
    (torch.float16, 1.234, 2.0**-18),
    (torch.float64, 1.2345678e-300, 2.0**-40),
]


@pytest.mark.parametrize(("dtype", "size", "factor"), TOO_MUCH, ids=str)
def test_overflow_and_underflow_are_errors(dtype, size, factor):
    x = torch.ones(5, dtype=dtype)
    x[2] = size
    element = ScalingElement({Slice("bias", 0, 2): factor})
    with pytest.raises(ValueError, match=r"bias: 1 of 5 numbers overflow or underflow in torch"):
        element.apply("bias", x)


def test_zeros_and_subnormal_numbers_are_no_underflow():
    x = torch.tensor([0.0, 1e-42, 1.0])
    assert torch.equal(ScalingElement({Slice("w", 0, 2): 0.5}).apply("w", x)[:2], x[:2])
    assert ScalingElement({Slice("w", 0, 0): 0.5}).apply("w", x)[0] == 0
    assert ScalingElement({Slice("w", 0, 1): 2.0}).apply("w", x)[1] == 2 * x[1]


def test_integer_tensors_are_an_error():
    with pytest.raises(ValueError, match=r"steps has the type torch.int64"):
        ScalingElement({Slice("steps", None): 2.0}).apply("steps", torch.ones(3, dtype=torch.long))


WHERE = Slice("w", 0, 3)
NOT_FINITE = (math.nan, math.inf, -math.inf)
INVALID = [
    (lambda f: ScalingElement({WHERE: f}), (0.0, -0.0, *NOT_FINITE), "finite"),
    (lambda f: ScalingElement({WHERE: f}, signed=True), (0.0, -0.0, *NOT_FINITE), "finite"),
    (lambda f: ScalingElement({WHERE: f}), (-2.0,), "-2.*signed"),
    (lambda f: ScalingElement({WHERE: f}), (5e-324, 1e308), r"2\^.* nearer to 1"),
    (lambda t: ScalingElement.from_log2({WHERE: t}), (*NOT_FINITE, 1001.0), r"2\^"),
    (lambda t: ScalingElement({WHERE: 2.0}) ** t, (*NOT_FINITE, 1001.0), r"2\^"),
    (lambda f: ScalingElement({WHERE: f, ("w", 0): [1.0] * 4}), (2.0,), "two factors"),
]


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [(make, value, message) for make, values, message in INVALID for value in values],
)
def test_invalid_factors(make, value, message):
    with pytest.raises(ValueError, match=rf"'w', dim=0, index=3\) .*{message}"):
        make(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("w", 2.0, "'w' names no slices: give a Slice, or a pair"),
        (("w", 0, 1), 2.0, "names no slices"),
        ((0, "w"), 2.0, "names no slices"),
        (("w", 0), 2.0, r"needs a vector, .*\(\)"),
        (("w", 0), torch.ones(2, 2), r"needs a vector, .*\(2, 2\)"),
        (("w", None), [1.0, 2.0], r"needs one number, .*\(2,\)"),
        (Slice("w", 0, 1), [1.0, 2.0], r"Slice.*needs one number, .*\(2,\)"),
        (Slice("w", 0, 1), "two", "the factors of Slice.* are no numbers: 'two'"),
        (("w", 0), ["two"], "are no numbers"),
        (("w", 0), None, "are no numbers"),
        (("w", 0), 2j, "are no numbers"),
        (("w", -1), [2.0], "w: dim=-1 is not a whole number"),
        (("w", "rows"), [2.0], "w: dim='rows' is not a whole number"),
    ],
)
def test_invalid_arguments(key, value, message):
    with pytest.raises(ValueError, match=message):
        ScalingElement({key: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w", -1), "w: dim=-1"),
        (("w", 0, -1), "w: index=-1"),
        (("w", None, 1), "index 0 only"),
        (("w", 0, 1.5), "w: index=1.5"),
        (("w", True, 1), "w: dim=True"),
        ((3, 0, 1), "3 is no name"),
    ],
)
def test_invalid_slices(arguments, message):
    with pytest.raises(ValueError, match=message):
        Slice(*arguments)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Slice("w", 0, 6), r"w of shape \(6, 4\) has no slice 6 along dim=0 \(there are 6\)"),
        (Slice("w", 1, 9), r"w of shape \(6, 4\) has no slice 9 along dim=1 \(there are 4\)"),
        (Slice("w", 2, 0), r"w of shape \(6, 4\) has no slice 0 along dim=2 \(there are 0\)"),
        (("w", 0), "has no slice 6 along dim=0"),  # a vector of seven factors
    ],
)
def test_missing_slices(where, message):
    with pytest.raises(ValueError, match=message):
        ScalingElement({where: 2.0 if isinstance(where, Slice) else [2.0] * 7}).apply("w", weight())


def test_product_with_a_number_is_a_type_error():
    with pytest.raises(TypeError, match="unsupported operand"):
        ScalingElement.identity() * 2.0


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "indices", "ndim", "size", "words"),
    [
        (None, [0], 2, None, "w"),
        (0, [1], 1, 4, "w[entry 1]"),
        (0, [0, 2], 1, 4, "w[entries 0,2]"),
        (0, [0], 2, 4, "w[row 0]"),
        (0, [1, 0], 2, 4, "w[rows 0,1]"),
        (1, [3, 4, 5, 9], 2, 10, "w[columns 3–5,9]"),
        (0, [0, 1, 2], 2, 3, "w[all rows]"),
        (0, [0, 1, 2], 2, None, "w[rows 0–2]"),
        (0, [0, 1], 2, 2, "w[rows 0,1]"),
        (0, [5], 4, 8, "w[filter 5]"),
        (1, [5, 6], 4, 8, "w[channels 5,6]"),
        (2, [1], 4, 3, "w[slice (dim 2) 1]"),
    ],
)
def test_names_of_slices(dim, indices, ndim, size, words):
    assert describe_slices("w", dim, indices, ndim, size) == words
