"""RiemannianAdam on declared weights: the formula, lengths of steps, invariance, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import MANIFOLDS, over
from torch import Tensor, nn

import manifoldnet as mn


def _declared(manifold: mn.Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(shape, dtype=torch.float64, generator=generator).to(dtype)
    module.weight = mn.ManifoldParameter(x, manifold)
    return module


def _run(module: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> Tensor:
    for g in gradients:
        module.weight.grad = g.to(module.weight.dtype)
        kept = module.weight.grad.clone()
        optimizer.step()
        assert torch.equal(module.weight.grad, kept)
    return module.weight.detach().clone()


def _gradients(shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@over([row for row in MANIFOLDS if not isinstance(row[0], mn.Euclidean)])  # torch's own Adam
@pytest.mark.parametrize(
    ("amsgrad", "maximize", "scale"),
    [(False, False, "norm"), (True, True, "norm"), (False, False, "rms")],
)
def test_steps_match_the_formula_written_with_the_manifold(
    manifold: mn.Manifold, shape: tuple[int, ...], amsgrad: bool, maximize: bool, scale: Any
) -> None:
    module = _declared(manifold, shape, torch.float64)
    x = module.weight.detach().clone()
    optimizer = mn.RiemannianAdam(
        module.parameters(), lr=0.05, amsgrad=amsgrad, maximize=maximize, slice_scale=scale
    )
    m, v, largest = torch.zeros_like(x), torch.tensor(0.0), torch.tensor(0.0)
    for t, g in enumerate(_gradients(shape, 6), start=1):
        got = _run(module, optimizer, [g])
        d = manifold.egrad2rgrad(x, -g if maximize else g)
        squared = manifold.component_inner(x, d)
        if scale == "rms":
            squared = squared / (x.numel() / squared.numel())
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * squared
        largest = torch.maximum(largest, v)
        root = ((largest if amsgrad else v) / (1 - 0.999**t)).sqrt() + 1e-8
        x, m = manifold.retr_transp(x, -0.05 * m / (1 - 0.9**t) / root, m)
        torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


def test_one_second_moment_per_slice_and_steps_of_length_lr() -> None:
    manifold = mn.Oblique(retraction="geodesic")
    for scale, length in (("norm", 0.01), ("rms", 0.01 * 50**0.5)):
        module = _declared(manifold, (4, 50), torch.float64)
        before = module.weight.detach().clone()
        optimizer = mn.RiemannianAdam(module.parameters(), lr=0.01, slice_scale=scale)
        after = _run(module, optimizer, _gradients((4, 50), 1))
        assert optimizer.state[module.weight]["exp_avg_sq"].shape == (4, 1)
        moved = torch.stack([mn.Sphere().dist(a, b) for a, b in zip(before, after, strict=True)])
        torch.testing.assert_close(moved, torch.full((4,), length).double(), rtol=1e-6, atol=0)


def test_steps_are_as_long_as_adams_by_default() -> None:
    """One step from the same weights and gradients is as long as that of torch's Adam."""
    module = _declared(mn.ScaledEuclidean(), (4, 50), torch.float64)
    free = nn.Parameter(module.weight.detach().clone())
    (g,) = _gradients((4, 50), 1)
    free.grad = g.clone()
    start = free.detach().clone()
    torch.optim.Adam([free], lr=1e-3).step()
    theirs = (free.detach() - start).norm(dim=1)
    optimizer = mn.RiemannianAdam(module.parameters(), lr=1e-3)
    assert optimizer.param_groups[0]["slice_scale"] == "rms"
    ours = (_run(module, optimizer, [g]) - start).norm(dim=1) / start.norm(dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0)


def test_a_state_keeps_the_scale_that_it_was_saved_with() -> None:
    """States of runs in which "norm" was the default go on as they began."""
    gradients, ends = _gradients((4, 50), 6), []
    for made_anew in (False, True):
        module = _declared(mn.Oblique(), (4, 50), torch.float64)
        optimizer = mn.RiemannianAdam(module.parameters(), lr=0.01, slice_scale="norm")
        _run(module, optimizer, gradients[:3])
        if made_anew:
            state = optimizer.state_dict()
            optimizer = mn.RiemannianAdam(module.parameters(), lr=0.01)
            optimizer.load_state_dict(state)
            assert optimizer.param_groups[0]["slice_scale"] == "norm"
        ends.append(_run(module, optimizer, gradients[3:]))
    assert torch.equal(*ends)


def test_the_first_moment_stays_tangent_and_rows_on_the_manifold() -> None:
    manifold = mn.Oblique()
    module = _declared(manifold, (6, 9), torch.float32)
    optimizer = mn.RiemannianAdam(module.parameters(), lr=0.03)
    for g in _gradients((6, 9), 1000):
        _run(module, optimizer, [g])
        x = module.weight.detach()
        assert manifold.tangent_violation(x, optimizer.state[module.weight]["exp_avg"]).max() < 1e-6
        assert manifold.violation(x).max() < 1e-6


@pytest.mark.parametrize("retraction", ["additive", "geodesic"])
def test_trajectories_are_equivariant_under_powers_of_two_bit_for_bit(retraction: str) -> None:
    """With the scaled metric even Adam does not see by what powers of two rows are scaled."""
    factors = 2.0 ** torch.arange(-3, 3).unsqueeze(1)
    manifold = mn.ScaledEuclidean(retraction=retraction)
    ends = []
    for factor in (torch.ones(6, 1), factors):
        module = _declared(manifold, (6, 9), torch.float32)
        with torch.no_grad():
            module.weight.mul_(factor)
        optimizer = mn.RiemannianAdam(module.parameters(), lr=0.03)
        # A loss that ignores the scale of rows has gradients inversely proportional to it.
        ends.append(_run(module, optimizer, [g.float() / factor for g in _gradients((6, 9), 50)]))
    assert torch.equal(ends[1], ends[0] * factors)


def test_adam_reduces_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32, bias=False), nn.ReLU(), nn.Linear(32, 3))
    mn.declare_all(model, mn.rules.unit_norm("2"), project=True)
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=0.02)
    x = torch.randn(200, 10)
    y = (x @ torch.randn(10, 3)).argmax(1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ({"betas": (0.9, float("nan"))}, r"betas\[1\]"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"slice_scale": "max"}, "slice_scale"),
        ({"lr": torch.tensor(0.1), "foreach": True}, "capturable"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mn.RiemannianAdam([nn.Parameter(torch.zeros(3))], **options)


@pytest.mark.parametrize("path", [{"foreach": False}, {}, {"fused": True}], ids=str)
def test_numbers_may_be_tensors_of_one_element(path: dict[str, Any]) -> None:
    ends = []
    for make in (float, torch.tensor):
        module = _declared(mn.Oblique(1), (6, 4), torch.float64)
        betas, eps = (make(0.75), make(0.875)), make(0.0625)  # the same in each type
        optimizer = mn.RiemannianAdam(module.parameters(), lr=0.05, betas=betas, eps=eps, **path)
        ends.append(_run(module, optimizer, _gradients((6, 4), 4)))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (mn.RiemannianAdam, {"betas": (torch.tensor(0.9), torch.tensor(0.99))}, "betas"),
        (mn.RiemannianAdam, {"eps": torch.tensor(1e-8)}, "eps"),
        (mn.RiemannianSGD, {"momentum": torch.tensor(0.9)}, "momentum"),
    ],
)
def test_the_kernels_of_an_accelerator_take_no_number_from_the_device_but_the_rate(
    make: Any, options: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manifoldnet.optim import base

    # As if all tensors were on one.
    monkeypatch.setattr(base, "is_elsewhere", lambda value: isinstance(value, Tensor))
    module = _declared(mn.Oblique(), (6, 4), torch.float32)
    with pytest.raises(ValueError, match=f"{named} as a tensor on a device"):
        make(module.parameters(), **options, fused=True)
