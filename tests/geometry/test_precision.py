"""Single and half precision, and the edges of their range."""

import pytest
import torch
from cases import (
    SPHERES,
    STIEFEL,
    apart,
    each_geometry,
    each_logarithm,
    each_manifold,
    each_sphere,
    point,
    rows_of,
    source,
    tangent,
)

from manifoldnet.geometry import Oblique, ScaledEuclidean, Sphere

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
each_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))
each_half = pytest.mark.parametrize("dtype", HALF, ids=lambda t: str(t).removeprefix("torch."))


def moderate(manifold, shape, seed, dtype):
    """A point with slices near 1: float16 ends at 65504."""
    x = manifold.random(shape, dtype=torch.float64, generator=source(seed))
    return x.to(dtype)


@each_half
def test_half_types_are_summed_in_single_precision(dtype):
    # In half precision the sum of 4096 ones stops at 256 (bfloat16) or at 2048 (float16).
    ones = torch.ones(2, 4096, dtype=dtype)
    assert Oblique().component_inner(ones, ones).flatten().tolist() == [4096.0, 4096.0]
    assert float(Sphere().inner(ones, ones)) == 8192.0
    assert ScaledEuclidean().component_inner(ones, 2 * ones).flatten().tolist() == [4.0, 4.0]
    # … and their squares do not overflow (float16 ends at 65504).
    large = torch.full((2, 8), 1e3, dtype=dtype)
    exact = 8 * float(large[0, 0]) ** 2
    assert Oblique().component_inner(large, large).flatten().tolist() == [exact, exact]


@each_type
@each_logarithm
def test_a_point_is_at_distance_zero_from_itself(manifold, shape, dtype):
    x = moderate(manifold, shape, 0, dtype)
    assert float(manifold.dist(x, x)) == 0.0
    assert torch.equal(manifold.logmap(x, x), torch.zeros_like(x))


@each_logarithm
def test_distances_of_near_points_in_single_precision(manifold, shape):
    """acos would give 0 or 3.5e-4 here; rounding x and y themselves costs ε/1e-4 = 1.2e-3."""
    x = moderate(manifold, shape, 0, torch.float32)
    y = manifold.expmap(x, tangent(manifold, x, 1, 1e-4))
    # What the rounded points are apart, by the same formulas in double precision.
    exact = float(manifold.dist(x.double(), y.double()))
    assert float(manifold.dist(x, y)) == pytest.approx(exact, rel=2e-3)
    assert float(manifold.dist2(x, y)) == pytest.approx(exact**2, rel=4e-3)
    log = manifold.logmap(x, y)
    assert float(manifold.norm(x, log)) == pytest.approx(exact, rel=2e-3)


@each_type
@each_sphere
def test_steps_stay_on_the_sphere(manifold, shape, dtype):
    x = point(manifold, shape, 0, dtype)
    # Rounding the entries alone is half an ε of the norm; a norm and a division as much again.
    few = 2 * torch.finfo(dtype).eps
    for size in (0.0, 1e-8, 1e-3, 1.0, 3.0, 1e2, 1e4):
        u, v = tangent(manifold, x, 1, size), tangent(manifold, x, 2)
        for y in (
            manifold.retr(x, u),
            manifold.expmap(x, u),
            manifold.retr_transp(x, u, v)[0],
            manifold.expmap_transp(x, u, v)[0],
        ):
            assert float(manifold.violation(y).max()) <= few, size


@each_sphere
def test_points_that_have_drifted_are_caught_again(manifold, shape):
    """A step must not assume ‖x‖ = ρ: what is off by 1e-3 would then stay so, or grow."""
    x = point(manifold, shape, 0, torch.float32) * 1.001
    u = tangent(manifold, x, 1, 0.1)
    for y in (manifold.retr(x, u), manifold.expmap(x, u)):
        assert float(manifold.violation(y).max()) <= 4 * torch.finfo(torch.float32).eps
    # x cancels against itself: what is left of it is ε/0.1, on slices that u hardly moves more.
    assert float(manifold.tangent_violation(x, manifold.proju(x, x + u)).max()) <= 1e-4


@pytest.mark.parametrize("size", [1e10, 1e18, 1e20, 1e25, 1e37])
@each_sphere
def test_huge_steps_stay_on_the_sphere(manifold, shape, size):
    """Squares overflow from 1.8e19 on in single precision; the point must not get lost."""
    x = point(manifold, shape, 0, torch.float32)
    u, v = tangent(manifold, x, 1, size), tangent(manifold, x, 2)
    assert torch.all(u.isfinite())
    few = 4 * torch.finfo(torch.float32).eps
    for y in (manifold.retr(x, u), manifold.expmap(x, u)):
        assert torch.all(y.isfinite())
        assert float(manifold.violation(y).max()) <= few
    y, w = manifold.retr_transp(x, u, v)
    assert float(manifold.violation(y).max()) <= few
    # What is carried along stays finite, tangent, and as long as it was: momentum goes on.
    assert torch.all(w.isfinite())
    assert float(manifold.norm(y, w)) == pytest.approx(float(manifold.norm(x, v)), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e20, 1e30, 3e37])
def test_projection_of_tiny_and_huge_slices(scale):
    x = torch.randn(5, 4, generator=source(0))
    for manifold in (Oblique(), Oblique(dim=1), Sphere(), Oblique(radius=3.0)):
        y = manifold.projx(x * scale)
        assert float(manifold.violation(y).max()) <= 4 * torch.finfo(torch.float32).eps
        # Entries below 1.2e-38 are subnormal: they have fewer digits left.
        atol = 1e-6 if scale > 1e-36 else 1e-2
        torch.testing.assert_close(y, manifold.projx(x), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e19, 1e25])
def test_violation_of_tiny_and_huge_slices_is_a_number(scale):
    """Only what no projection can mend counts as infinitely far off."""
    x = torch.ones(3, 4) * scale
    off = Oblique().violation(x)
    torch.testing.assert_close(off, torch.full((3, 1), abs(2 * scale - 1)), rtol=1e-6, atol=0)
    assert "is not on Oblique" in str(Oblique().validate(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_sphere
def test_many_steps_do_not_drift(manifold, shape, dtype):
    x = point(manifold, shape, 0, dtype)
    v = tangent(manifold, x, 1)
    for size in (1e-3, 0.1, 1e3):
        for _ in range(20):
            x, v = manifold.retr_transp(x, v * size, v)
    few = 4 * torch.finfo(dtype).eps
    assert float(manifold.violation(x).max()) <= few
    assert float(manifold.tangent_violation(x, v).max()) <= 4 * few
    # Sixty roundings of the length, at random.
    assert float(manifold.norm(x, v) / v.norm()) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@each_manifold
def test_the_same_without_gradients(manifold, shape, dtype):
    """Optimizers step under no_grad, where the formulas may take shorter ways."""
    x = point(manifold, shape, 0, dtype)
    v = tangent(manifold, x, 1)
    for size in (0.0, 1e-20, 1e-8, 1e-3, 0.09, 0.11, 1.0, 3.1416, 20.0):
        u = tangent(manifold, x, 2, size)
        for name in ("retr_transp", "expmap_transp"):
            slow = getattr(manifold, name)(x, u, v)
            with torch.no_grad():
                quick = getattr(manifold, name)(x, u, v)
            # Two ways to the cosine of the same angle.
            tolerance = 10 * torch.finfo(dtype).eps * (1 + size)
            for a, b in zip(quick, slow, strict=True):
                assert torch.all(a.isfinite())
                assert apart(a, b, manifold.slices.dim) <= tolerance * 10, (name, size)


@each_geometry
def test_single_agrees_with_double(manifold, shape):
    if (manifold, shape) not in SPHERES and manifold.slices.dim == "elements":
        return
    x, y = (moderate(manifold, shape, seed, torch.float32) for seed in (0, 1))
    u, v = (tangent(manifold, x, seed, 0.7) for seed in (2, 3))
    if rows_of(x, manifold.slices.dim).shape[1] == 1:
        y = y.abs() * x.sign()
    for name, arguments in [
        ("proju", (x, y)),
        ("egrad2rgrad", (x, y)),
        ("retr", (x, u)),
        ("expmap", (x, u)),
        ("logmap", (x, y)),
        ("transp", (x, y, v)),
        ("transp_follow_expmap", (x, u, v)),
        ("transp_follow_retr", (x, u, v)),
    ]:
        if name == "logmap" and (manifold, shape) in STIEFEL:
            continue
        single = getattr(manifold, name)(*arguments)
        double = getattr(manifold, name)(*(a.double() for a in arguments))
        # 30 ε, and 100 times that where two random points come near to antipodes.
        torch.testing.assert_close(
            single.double(), double, rtol=4e-4, atol=4e-6 * float(double.abs().max()), msg=name
        )
