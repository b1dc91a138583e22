"""Points that are none, and what is said about them."""

import math
import pickle
import re

import pytest
import torch
from cases import SPHERES, few, over, point, refused, scale_slices, seeds
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.geometry import (
    Euclidean,
    NotOnManifoldError,
    NotTangentError,
    Oblique,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
    tolerance,
)

EPS = torch.finfo(torch.float64).eps
INF = float("inf")

# Slices and what a reader calls them.
NAMES = [
    (Oblique(), (5, 4), "row {}"),
    (Oblique(dim=1), (4, 5), "column {}"),
    (Oblique(), (4, 3, 2, 2), "filter {}"),
    (Oblique(dim=1), (4, 3, 2, 2), "channel {}"),
    (Oblique(dim=None), (3, 4), "the whole tensor"),
    (Sphere(), (3, 4), "the whole tensor"),
    (ScaledEuclidean(), (5, 4), "row {}"),
    (ScaledEuclidean(dim=1), (4, 5), "column {}"),
    (ScaledEuclidean(), (6,), "entry {}"),
    (Euclidean(), (6,), "entry {}"),
]
named = pytest.mark.parametrize(
    ("manifold", "shape", "called"), NAMES, ids=[f"{m}-{len(s)}" for m, s, _ in NAMES]
)


def slice_of(x, index, dim):
    """A view of slice number `index`."""
    if dim == "elements":
        return x.view(-1)[index : index + 1]
    return x if dim is None else x.select(dim, index)


def count(manifold, shape):
    return manifold.violation(torch.ones(shape)).numel()


@over(SPHERES)
@few
@given(seed=seeds, data=st.data())
def test_violation_is_the_relative_distance(manifold, shape, seed, data):
    x = point(manifold, shape, seed)
    n = count(manifold, shape)
    i = data.draw(st.integers(0, n - 1))
    delta = data.draw(st.floats(-0.99, 1e6))
    factors = torch.ones(n, dtype=torch.float64)
    factors[i] += delta
    off = manifold.violation(scale_slices(x, factors, manifold.slices.dim)).flatten()
    assert float(off[i]) == pytest.approx(abs(delta), rel=8 * EPS, abs=8 * EPS)
    assert all(float(off[j]) <= 8 * EPS for j in range(n) if j != i)


@pytest.mark.parametrize("delta", [-0.5, -1e-3, 2e-5, 0.01, 3.0])
@pytest.mark.parametrize("index", [0, 3])
@named
def test_message_says_which_slice_and_by_how_much(manifold, shape, called, index, delta):
    if not isinstance(manifold, Oblique | Sphere):
        return
    index = min(index, count(manifold, shape) - 1)
    x = manifold.random(shape)
    assert manifold.validate(x) is None
    slice_of(x, index, manifold.slices.dim).mul_(1 + delta)
    assert manifold.validate(x, tol=abs(delta) * 1.1) is None
    error = manifold.validate(x, name="hidden.weight")
    assert type(error) is NotOnManifoldError
    assert (error.manifold, error.name, error.count) == (manifold, "hidden.weight", 1)
    assert error.slices == (called.format(index),)
    assert error.amounts == (pytest.approx(abs(delta), rel=0.01),)
    assert (error.total, error.tolerance) == (count(manifold, shape), tolerance(x.dtype))
    said = str(error)
    assert said.startswith(f"hidden.weight is not on {manifold}: 1 of {count(manifold, shape)}")
    assert f"the worst is {called.format(index)} with norm {1 + delta:.6g}"[:-3] in said
    amount = float(re.search(r"off by (\S+) relative", said)[1])
    assert amount == pytest.approx(abs(delta), rel=0.06)  # two digits
    assert "projx" in said


@pytest.mark.parametrize("bad", [0.0, float("nan"), INF, -INF])
@pytest.mark.parametrize("index", [0, 3])
@named
def test_slices_without_a_nearest_point_are_refused(manifold, shape, called, index, bad):
    if isinstance(manifold, Euclidean) and bad == 0.0:
        return
    index = min(index, count(manifold, shape) - 1)
    x = manifold.random(shape)
    target = slice_of(x, index, manifold.slices.dim)
    if bad == 0.0:
        target.zero_()
    else:
        target.view(-1)[-1:].fill_(bad) if target.is_contiguous() else target.fill_(bad)
    off = manifold.violation(x).flatten()
    assert float(off[index]) == INF
    assert int(off.isinf().sum()) == 1
    why = "zero" if bad == 0.0 else "not finite"
    fields = {"slices": (called.format(index),), "amounts": (INF,)}
    with refused(NotOnManifoldError, **fields):
        manifold.projx(x)
    # No tolerance makes them acceptable.
    error = manifold.validate(x, tol=INF)
    assert {field: getattr(error, field) for field in fields} == fields
    assert f"which is {why}" in str(error)


def test_the_worst_slice_comes_first():
    x = Oblique().random(5, 4)
    x[1] *= 1.01
    x[4] *= 0.9
    error = Oblique().validate(x)
    assert (error.slices, error.count, error.total) == (("row 4", "row 1"), 2, 5)
    x[2] = 0
    error = Oblique().validate(x)
    assert (error.slices, error.count) == (("row 2",), 1)


def test_an_error_names_ten_slices_at_the_most():
    x = 1 + torch.arange(20.0)[:, None] * torch.ones(20, 3)
    error = Oblique().validate(x)
    assert error.slices[:2] == ("row 19", "row 18")
    assert (len(error.slices), error.count) == (10, 20)


def test_errors_survive_pickling():
    error = Oblique().validate(torch.ones(2, 2), name="w")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is NotOnManifoldError
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_tangent_vectors_are_validated():
    x = Oblique().random(5, 4)
    u = Oblique().random_tangent(x)
    validate = Oblique().validate_tangent
    assert validate(x, u) is None
    assert validate(x, torch.zeros_like(u)) is None
    assert validate(x, u + 0.1 * x, tol=1.0) is None
    assert type(validate(x, u + 0.1 * x)) is NotTangentError
    assert type(validate(x, u[:, :3])) is WrongTensorError
    assert type(validate(x, None)) is TypeError
    assert type(validate(2 * x, u)) is NotOnManifoldError
    assert validate(2 * x, u, ok_point=True) is None
    u[2] += x[2]
    error = validate(x, u)
    assert (error.slices, error.count, error.total) == (("row 2",), 1, 5)
    assert error.amounts[0] == pytest.approx(float(1 / u[2].norm()))
    u[2, 1] = float("nan")
    assert validate(x, u).amounts == (INF,)
    assert type(Euclidean().validate_tangent(x, u)) is NotTangentError


# --- bad input ------------------------------------------------------------------------------------


def cannot_be_a_point(manifold, x, reason):
    error = manifold.validate(x)
    assert (type(error), error.manifold, error.name) == (WrongTensorError, manifold, "the data")
    assert reason in str(error)
    assert not manifold.check_point(x)
    for refuse in (
        manifold.assert_check_point,
        manifold.assert_check_point_on_manifold,
        manifold.projx,
    ):
        with refused(WrongTensorError, manifold=manifold, name="the data"):
            refuse(x)


@pytest.mark.parametrize("manifold", [Euclidean(), Oblique(), Sphere(), ScaledEuclidean()])
@pytest.mark.parametrize("x", [None, 3, [1.0, 2.0]])
def test_other_objects_than_tensors_are_type_errors(manifold, x):
    assert type(manifold.validate(x)) is TypeError
    with pytest.raises(TypeError, match="the data"):
        manifold.projx(x)


@pytest.mark.parametrize("kind", [Oblique, ScaledEuclidean])
def test_dimension_out_of_range(kind):
    cannot_be_a_point(kind(dim=1), torch.randn(4), "no dimension 1")
    cannot_be_a_point(kind(dim=2), torch.randn(4, 3), "no dimension 2")
    cannot_be_a_point(kind(dim=0), torch.randn(()), "order 0")


@pytest.mark.parametrize("kind", [Oblique, ScaledEuclidean])
@pytest.mark.parametrize("dim", [-1, -2, True, False, "0", "rows", "elements", 1.0, (0,)])
def test_invalid_dims(kind, dim):
    error = ValueError if dim in (-1, -2) else TypeError
    with pytest.raises(error, match="dim"):
        kind(dim=dim)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("manifold", [Euclidean(), Oblique(), Sphere(), ScaledEuclidean()])
def test_unsupported_dtypes(manifold, dtype):
    cannot_be_a_point(manifold, torch.ones(3, 4, dtype=dtype), str(dtype))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
@pytest.mark.parametrize("manifold", [Euclidean(), Oblique(), Sphere(), ScaledEuclidean()])
def test_empty_tensors(manifold, shape):
    cannot_be_a_point(manifold, torch.ones(shape), "is empty")


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Oblique(), (4,)),
        (Oblique(), (4, 1)),
        (Oblique(), (4, 1, 1, 1)),
        (Oblique(dim=1), (1, 4)),
        (Oblique(dim=None), (1, 1)),
        (Sphere(), (1,)),
        (Sphere(), ()),
    ],
)
def test_slices_of_one_number_have_no_sphere(manifold, shape):
    cannot_be_a_point(manifold, torch.ones(shape), "slices of 1 number")


@pytest.mark.parametrize("kind", [Oblique, Sphere])
@pytest.mark.parametrize("radius", [float("nan"), 0, 0.0, -1.0, INF, -INF, "1", None, 1j])
def test_invalid_radii(kind, radius):
    error = ValueError if isinstance(radius, int | float) else TypeError
    with pytest.raises(error, match="radius"):
        kind(radius=radius)


@pytest.mark.parametrize("kind", [Oblique, Sphere, ScaledEuclidean])
@pytest.mark.parametrize("retraction", ["cayley", "", "Geodesic", "geoopt", None, 3])
def test_unknown_retractions(kind, retraction):
    wrong = ValueError if isinstance(retraction, str) else TypeError
    with pytest.raises(wrong, match=f"{kind.__name__}.*'geodesic'"):
        kind(retraction=retraction)


@pytest.mark.parametrize(
    ("kind", "retraction"),
    [(Oblique, "additive"), (Sphere, "additive"), (ScaledEuclidean, "projective")],
)
def test_refused_retractions(kind, retraction):
    with pytest.raises(ValueError, match="has no use for") as error:
        kind(retraction=retraction)
    assert f"'{retraction}'" not in str(error.value).split("there are")[1]


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_slices_whose_square_is_out_of_range_are_no_points_of_the_scaled_metric(size) -> None:
    x = torch.ones(3, 4)
    x[1] *= size
    assert ScaledEuclidean().violation(x).flatten().tolist() == [0.0, math.inf, 0.0]
    with refused(NotOnManifoldError, slices=("row 1",), amounts=(INF,)):
        ScaledEuclidean().assert_check_point_on_manifold(x)
