"""A product of manifolds: the laws hold for it as for any other, and its parts do not mix."""

import math

import pytest
import torch
from cases import few, point, refused, seeds, tangent
from hypothesis import given

import manifoldnet
from manifoldnet.geometry import (
    Euclidean,
    NotOnManifoldError,
    NotTangentError,
    Oblique,
    Product,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
)
from manifoldnet.testing import ManifoldLaws, RetractionLaws


def product(on_spheres="projective", scaled="geodesic"):
    return Product(
        [
            (Oblique(0, 1.0, on_spheres), (3, 4)),
            (ScaledEuclidean(1, scaled), (2, 3)),
            (Euclidean(), (2,)),
            (Sphere(2.0, on_spheres), (3,)),
        ]
    )


PRODUCT = product()


class TestProduct(ManifoldLaws):
    manifold, shape = PRODUCT, (23,)
    injectivity = math.pi  # of the shortest of its circles


class TestProductOfGeodesics(RetractionLaws):
    manifold, shape = product("geodesic"), (23,)


@few
@given(seed=seeds)
def test_each_part_is_by_itself(seed):
    x, y = (point(PRODUCT, (23,), seed + i) for i in range(2))
    u, v = (tangent(PRODUCT, x, seed + i) for i in range(2))
    g = torch.randn(23, dtype=torch.float64)
    split = PRODUCT.split
    for name, given_ in {
        "egrad2rgrad": (x, g),
        "ehess2rhess": (x, g, v, u),
        "proju": (x, g),
        "projx": (x + u,),
        "retr": (x, u),
        "expmap": (x, u),
        "logmap": (x, y),
        "transp": (x, y, v),
    }.items():
        whole = split(getattr(PRODUCT, name)(*given_))
        parts = zip(*map(split, given_), strict=True)
        for (manifold, _), part, ours in zip(PRODUCT.factors, parts, whole, strict=True):
            assert torch.equal(ours, getattr(manifold, name)(*part)), name
    lengths = [
        m.norm(*part) for (m, _), *part in zip(PRODUCT.factors, split(x), split(u), strict=True)
    ]
    assert float(PRODUCT.norm(x, u)) == pytest.approx(math.hypot(*map(float, lengths)), rel=1e-14)


def test_split_and_join_are_inverse_and_split_gives_views():
    x = PRODUCT.random(dtype=torch.float64)
    parts = PRODUCT.split(x)
    assert [tuple(part.shape) for part in parts] == [shape for _, shape in PRODUCT.factors]
    assert torch.equal(PRODUCT.join(parts), x)
    parts[2].zero_()
    assert x[18:20].tolist() == [0, 0]


def test_the_dimension_is_what_the_constraints_leave():
    assert PRODUCT.dimension((23,)) == 23 - 3 - 1
    # By trial, as where no formula is known:
    assert PRODUCT._counted_codimension(torch.Size((23,))) == 3 + 1


def test_it_has_no_parts_and_no_slices_of_its_own():
    assert PRODUCT.parts == ()
    assert not hasattr(PRODUCT, "slices")
    assert not hasattr(PRODUCT, "dim")


def test_it_is_a_value():
    assert product() == PRODUCT != product("geodesic")
    other = product("geodesic", "additive")
    assert eval(repr(other), vars(manifoldnet)) == other


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        Product([])
    with refused(WrongTensorError, name="factor 1, (3, 1),", manifold=Oblique()):
        Product([(Euclidean(), (2,)), (Oblique(), (3, 1))])
    with refused(WrongTensorError, name="the data", manifold=PRODUCT):
        PRODUCT.projx(torch.ones(3))
    with pytest.raises(ValueError, match="size 23"):
        PRODUCT.random(4)
    with pytest.raises(NotOnManifoldError, match="^factor 0 of the data: 3 of 3") as raised:
        PRODUCT.projx(torch.zeros(23))
    assert raised.value.slices[0] == "row 0 of factor 0 of the data"


@pytest.mark.parametrize(
    "factors", [Oblique(), [Oblique()], [(Sphere(), 4)], [(Sphere(), (4,), 1)]]
)
def test_factors_that_are_no_pairs(factors):
    with pytest.raises(TypeError, match="pairs of a manifold and the shape"):
        Product(factors)


def test_the_factor_that_is_off_is_named():
    x = point(PRODUCT, (23,), 0)
    x[:12].view(3, 4)[2] *= 2
    error = PRODUCT.validate(x, name="w")
    assert type(error) is NotOnManifoldError
    assert (error.manifold, error.slices) == (PRODUCT, ("row 2 of factor 0 of w",))
    assert (error.count, error.total) == (1, 3)
    assert str(error).startswith("factor 0 of w is not on Oblique")
    u = torch.zeros_like(x)
    u[20:] = x[20:]
    error = PRODUCT.validate_tangent(x, u, ok_point=True)
    assert type(error) is NotTangentError
    assert error.slices == ("the whole tensor of factor 3 of the vector",)
    error = Product([(Oblique(), (1, 2))] * 5).validate(torch.ones(10))
    assert (error.count, error.total) == (5, 5)
    assert [line[:8] for line in str(error).split("\n")] == [
        *(f"factor {i}" for i in range(3)),
        "(and 2 m",
    ]


def test_slices_of_several_factors_are_worst_first_each_named_once():
    inner = Product([(Oblique(), (2, 2)), (Sphere(), (3,))])
    nested = Product([(inner, (7,)), (Oblique(1), (3, 2))])
    x = torch.cat([torch.tensor([3.0, 0, 1, 0, 5, 0, 0]), 2 * torch.eye(3)[:, :2].flatten()])
    error = nested.validate(x, name="w")
    assert error.slices == (
        "the whole tensor of factor 1 of factor 0 of w",
        "row 0 of factor 0 of factor 0 of w",
        "column 0 of factor 1 of w",
        "column 1 of factor 1 of w",
    )
    assert error.amounts == pytest.approx((4, 2, 1, 1))
    error = Product([(Oblique(), (7, 2))] * 2).validate(torch.arange(2.0, 30.0))
    assert (len(error.slices), len(error.amounts), error.count) == (10, 10, 14)
    assert error.amounts == tuple(sorted(error.amounts, reverse=True))


def test_tensors_without_values_are_validated_by_shape():
    for manifold, shape in ((PRODUCT, (23,)), (Oblique(), (3, 4)), (Sphere(), (5,))):
        x = torch.empty(shape, device="meta")
        assert manifold.validate_tangent(x, x) is None
        assert type(manifold.validate_tangent(x, x[:2])) is WrongTensorError
