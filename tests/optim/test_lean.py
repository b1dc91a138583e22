"""The step in few passes is the specification's, on every manifold that has one."""

from __future__ import annotations

import pytest
import torch
from cases import each_manifold, few, point, seeds, sizes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim.lean import lean_step


def _both(manifold: mn.Manifold, x: Tensor, g: Tensor, lr: float, maximize: bool) -> list[Tensor]:
    ends = []
    for foreach in (None, False):
        module = nn.Module()
        module.weight = nn.Parameter(x.clone())
        mn.declare(module, "weight", manifold)
        module.weight.grad = g.clone()
        optimizer = mn.RiemannianSGD(module.parameters(), lr=lr, maximize=maximize, foreach=foreach)
        optimizer.step()
        assert torch.equal(module.weight.grad, g)
        ends.append(module.weight.detach())
    return ends


@each_manifold
@few
@given(seed=seeds, size=sizes(1e-8, 1e3), maximize=st.booleans())
def test_it_agrees_with_the_specification(
    manifold: mn.Manifold, shape: tuple[int, ...], seed: int, size: float, maximize: bool
) -> None:
    x = point(manifold, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    if isinstance(manifold, mn.ScaledEuclidean):
        # A step of about `size` radians, and no further along than a factor of e.
        g = g / (manifold.norm(x, manifold.egrad2rgrad(x, g)) * max(size, 1.0))
    lean, plain = _both(manifold, x, g, size, maximize)
    torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12 * float(x.abs().max()))
    for a, b in [_both(manifold, x.float(), g.float(), size, maximize)]:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * float(x.abs().max()))


def test_which_manifolds_have_one() -> None:
    have = [mn.Oblique(), mn.Oblique(1, 2.0), mn.Sphere(), mn.ScaledEuclidean()]
    assert all(lean_step(m) is not None for m in [*have, mn.ScaledEuclidean(1, "additive")])
    assert lean_step(mn.Oblique(retraction="geodesic")) is None


@pytest.mark.parametrize("lr", [1e-30, 1e12, 1e28])
def test_absurd_rates_end_on_the_sphere(lr: float) -> None:
    x = mn.Oblique().random(5, 7)
    lean, _ = _both(mn.Oblique(), x, torch.randn(5, 7), lr, False)
    assert mn.Oblique().violation(lean).max() < 1e-6


def test_a_tensor_as_rate_takes_the_plain_path() -> None:
    x = mn.Oblique().random(5, 7, dtype=torch.float64)
    ends = []
    for lr in (torch.tensor(0.1, dtype=torch.float64), 0.1):
        module = nn.Module()
        module.weight = nn.Parameter(x.clone())
        mn.declare(module, "weight", mn.Oblique())
        module.weight.grad = torch.ones(5, 7, dtype=torch.float64)
        mn.RiemannianSGD(module.parameters(), lr=lr).step()
        ends.append(module.weight.detach())
    torch.testing.assert_close(*ends)
