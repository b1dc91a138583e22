"""Slices that are declared to stay zero: each a point, beside the manifold of the others."""

import math

import pytest
import torch
from cases import ZEROED, few, over, point, refused, seeds, sizes, tangent
from hypothesis import given

from manifoldnet.geometry import (
    NotOnManifoldError,
    Oblique,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
    from_spec,
)

EPS = torch.finfo(torch.float64).eps
INF = math.inf
each_zeroed = over(ZEROED)


def parts(manifold, x):
    """The slices that are zero, and the others, along the dimension of slices."""
    zero = torch.zeros(x.shape[manifold.dim], dtype=torch.bool)
    zero[list(manifold.zero_slices)] = True
    return x.movedim(manifold.dim, 0)[zero], x.movedim(manifold.dim, 0)[~zero]


def plain(manifold):
    """The same manifold for the slices of the others alone, as rows."""
    if isinstance(manifold, Oblique):
        return Oblique(0, manifold.radius, manifold.retraction)
    return ScaledEuclidean(0, manifold.retraction)


# --- a product of points and the manifold of the others -------------------------------------------


@each_zeroed
@few
@given(seed=seeds, size=sizes(1e-8, 3.0))
def test_the_other_slices_are_those_of_the_manifold_without_them(manifold, shape, seed, size):
    x, y = point(manifold, shape, seed), point(manifold, shape, seed + 1)
    u, v = tangent(manifold, x, seed + 2, size), tangent(manifold, x, seed + 3)
    g = torch.randn(shape, dtype=torch.float64)
    m = plain(manifold)
    for name, arguments in {
        "projx": (3 * x,),
        "proju": (x, g),
        "egrad2rgrad": (x, g),
        "ehess2rhess": (x, g, y, u),
        "expmap": (x, u),
        "retr": (x, u),
        "logmap": (x, y),
        "transp": (x, y, v),
        "transp_follow_expmap": (x, u, v),
        "transp_follow_retr": (x, u, v),
        "component_inner": (x, u, v),
        "component_dist": (x, y),
        "violation": (3 * x,),
        "tangent_violation": (x, u + 0.1 * x),
    }.items():
        found = getattr(manifold, name)(*arguments)
        alone = getattr(m, name)(*(parts(manifold, a)[1] for a in arguments))
        zero, others = parts(manifold, found)
        assert not bool(zero.any()), name
        torch.testing.assert_close(others, alone, rtol=100 * EPS, atol=100 * EPS, msg=name)
    assert manifold.dimension(shape) == m.dimension(parts(manifold, x)[1].shape)
    assert manifold.typical_dist(shape) == m.typical_dist(parts(manifold, x)[1].shape)


@each_zeroed
def test_vectors_of_any_kind_leave_them_zero(manifold, shape):
    """Gradients, and what is not tangent; also where values stand that are no zeros."""
    x = point(manifold, shape, 0)
    g = torch.randn(shape, dtype=torch.float64)
    for at in (x, x + 0.1):
        for found in (
            manifold.proju(at, g),
            manifold.egrad2rgrad(at, g),
            manifold.expmap(at, g),
            manifold.retr_transp(at, *[manifold.proju(at, 0.1 * g)] * 2)[1],
            manifold.nearest(at),
        ):
            assert torch.all(found.isfinite())
            assert not bool(parts(manifold, found)[0].any())


@each_zeroed
def test_derivatives_are_finite(manifold, shape):
    x = point(manifold, shape, 0)
    y = manifold.expmap(x, tangent(manifold, x, 1))
    for function in (
        lambda z: manifold.dist(z, y),
        lambda z: manifold.logmap(z, y).sum(),
        lambda z: manifold.transp(z, y, y - x).sum(),
        lambda z: manifold.nearest(z).sum(),
        lambda z: manifold.norm(z, y - z),
    ):
        at = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(function(at), at)
        assert torch.all(g.isfinite())


def test_they_are_mapped_over():
    manifold = Oblique(zero_slices=(0,))
    x = torch.stack([point(manifold, (5, 4), seed) for seed in range(3)])
    u = torch.randn(3, 5, 4, dtype=torch.float64)
    found = torch.func.vmap(manifold.proju)(x, u)
    torch.testing.assert_close(found[1], manifold.proju(x[1], u[1]))
    assert not bool(found[:, 0].any())


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1e-30, 1e-4, -3.0])
@each_zeroed
def test_a_value_in_a_zero_slice_is_a_violation_that_projection_mends(
    manifold, shape, value, dtype
):
    x = point(manifold, shape, 0, dtype)
    assert manifold.validate(x) is None
    index = manifold.zero_slices[-1]
    x.select(manifold.dim, index).view(-1)[:1] = value
    error = manifold.validate(x, tol=0.5)
    assert type(error) is NotOnManifoldError
    assert (error.amounts, error.count) == ((1.0,), 1)
    assert error.slices == (manifold.slices.label(index, len(shape)),)
    y = manifold.projx(x)
    assert manifold.validate(y) is None
    assert not bool(parts(manifold, y)[0].any())


@pytest.mark.parametrize("bad", [math.nan, INF])
@each_zeroed
def test_what_is_not_finite_is_not_mended(manifold, shape, bad):
    x = point(manifold, shape, 0)
    x.select(manifold.dim, manifold.zero_slices[0]).fill_(bad)
    with refused(NotOnManifoldError, amounts=(INF,), count=1):
        manifold.projx(x)


@each_zeroed
def test_other_zero_slices_are_refused_with_the_way_out(manifold, shape):
    x = point(manifold, shape, 0)
    x.select(manifold.dim, 3).zero_()
    with pytest.raises(NotOnManifoldError, match="zero_slices") as raised:
        manifold.projx(x)
    assert raised.value.slices == (manifold.slices.label(3, len(shape)),)


def test_the_way_out_is_named_where_there_is_one():
    assert "zero_slices" in str(Oblique().validate(torch.zeros(3, 2)))
    assert "Polar" in str(ScaledEuclidean(1).validate(torch.zeros(3, 2)))
    assert "zero_slices" not in str(Oblique().validate(torch.full((3, 2), INF)))


# --- values ---------------------------------------------------------------------------------------


def test_they_are_part_of_the_value():
    manifold = Oblique(zero_slices=(3, 0, 3))
    assert manifold.zero_slices == (0, 3)
    assert manifold == Oblique(zero_slices=[0, 3]) != Oblique()
    assert hash(manifold) == hash(Oblique(zero_slices=(0, 3)))
    assert ScaledEuclidean(zero_slices=(1,)) != ScaledEuclidean()
    assert repr(ScaledEuclidean(1, zero_slices=(1,))) == (
        "ScaledEuclidean(dim=1, zero_slices=(1,))"
    )
    assert "zero_slices" not in repr(Oblique()) + repr(Sphere())
    assert manifold.spec()["fields"]["zero_slices"] == [0, 3]
    assert from_spec(manifold.spec()) == manifold
    assert Oblique(zero_slices=range(0)) == Oblique()


@pytest.mark.parametrize("kind", [Oblique, ScaledEuclidean])
def test_wrong_values_are_refused(kind):
    for wrong in (0, None, "0", (True,), (0.0,), ("0",)):
        with pytest.raises(TypeError, match="zero_slices"):
            kind(zero_slices=wrong)
    with pytest.raises(ValueError, match="zero_slices.*-1 is negative"):
        kind(zero_slices=(0, -1))
    with pytest.raises(ValueError, match="zero_slices.*dim=None"):
        kind(dim=None, zero_slices=(0,))


@pytest.mark.parametrize("kind", [Oblique, ScaledEuclidean])
def test_slices_that_a_tensor_does_not_have_are_refused(kind):
    x = torch.ones(4, 3)
    with refused(WrongTensorError, manifold=kind(zero_slices=(1, 4))):
        kind(zero_slices=(1, 4)).projx(x)
    assert r"shape (4, 3)), and zero_slices=(1, 4) names slice 4" in str(
        kind(zero_slices=(1, 4)).validate(x)
    )
    with pytest.raises(WrongTensorError, match="names all of them"):
        kind(1, zero_slices=(0, 1, 2)).projx(x)
