"""RiemannianSGD on declared weights: the papers' updates, momentum, and what it refuses."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from cases import each_manifold
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim import NormGrowthWarning


def _layer(
    manifold: mn.Manifold, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A module with one declared weight and nothing else."""
    module = nn.Module()
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(shape, dtype=torch.float64, generator=generator).to(dtype)
    module.weight = mn.ManifoldParameter(x, manifold)
    return module


def _gradients(shape: tuple[int, ...], count: int, dtype: torch.dtype, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield scale * torch.randn(shape, generator=generator).to(dtype)


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, gradients: Any) -> Tensor:
    for gradient in gradients:
        module.weight.grad = gradient
        kept = gradient.clone()
        optimizer.step()
        assert torch.equal(module.weight.grad, kept)
    return module.weight.detach()


# --- the papers' updates ------------------------------------------------------------------------


def test_the_scaled_metric_update_of_the_paper() -> None:
    """(7) with (8): rows of a hidden layer, columns of the classifier."""
    g = torch.randn(6, 4, dtype=torch.float64)
    for dim in (0, 1):
        module = _layer(mn.ScaledEuclidean(dim, retraction="additive"), (6, 4))
        w = module.weight.detach().clone()
        _steps(module, mn.RiemannianSGD(module.parameters(), lr=0.1), [g])
        G = torch.diag(torch.diag(w @ w.T if dim == 0 else w.T @ w))
        expected = w - 0.1 * (G @ g if dim == 0 else g @ G)
        torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-14, atol=1e-14)


def test_the_unit_norm_update_of_the_paper() -> None:
    """(9), with the misplaced bracket of the projection in its place."""
    g = torch.randn(6, 4, dtype=torch.float64)
    module = _layer(mn.Oblique(), (6, 4))
    w = module.weight.detach().clone()
    _steps(module, mn.RiemannianSGD(module.parameters(), lr=0.1), [g])
    step = w - 0.1 * (g - torch.diag(torch.diag(g @ w.T)) @ w)
    expected = step / step.norm(dim=1, keepdim=True)
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-14, atol=1e-14)


@each_manifold
@pytest.mark.parametrize(
    ("dampening", "nesterov", "maximize"),
    [(0.0, False, False), (0.3, False, True), (0.0, True, False)],
)
def test_momentum_matches_the_formula_written_with_the_manifold(
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    module = _layer(manifold, shape)
    x = module.weight.detach().clone()
    optimizer = mn.RiemannianSGD(
        module.parameters(),
        lr=0.05,
        momentum=0.9,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
    )
    buffer = None
    for g in _gradients(shape, 5, torch.float64):
        _steps(module, optimizer, [g])
        d = manifold.egrad2rgrad(x, -g if maximize else g)
        buffer = d if buffer is None else 0.9 * buffer + (1 - dampening) * d
        x, buffer = manifold.retr_transp(
            x, -0.05 * (d + 0.9 * buffer if nesterov else buffer), buffer
        )
    torch.testing.assert_close(module.weight.detach(), x, rtol=1e-12, atol=1e-12)


def test_closure_runs_with_gradients_and_step_returns_the_loss() -> None:
    module = _layer(mn.Oblique(), (4, 3))
    optimizer = mn.RiemannianSGD(module.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (module.weight - 1).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        second = optimizer.step(closure)
    assert second < first


# --- long runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifold", [mn.Oblique(), mn.Sphere(3.0), mn.Oblique(retraction="geodesic")]
)
@pytest.mark.thorough
def test_momentum_stays_tangent_in_float32(manifold: mn.Manifold) -> None:
    module = _layer(manifold, (8, 16), torch.float32)
    optimizer = mn.RiemannianSGD(module.parameters(), lr=0.05, momentum=0.9)
    for g in _gradients((8, 16), 1000, torch.float32):
        _steps(module, optimizer, [g])
        buffer = optimizer.state[module.weight]["momentum_buffer"]
        assert float(manifold.tangent_violation(module.weight.detach(), buffer).max()) <= 1e-6


@pytest.mark.parametrize("lr", [1e-3, 1e12])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("retraction", ["projective", "geodesic"])
@pytest.mark.thorough
def test_rows_stay_on_the_manifold(
    lr: float, dtype: torch.dtype, limit: float, retraction: str
) -> None:
    module = _layer(mn.Oblique(retraction=retraction), (8, 16), dtype)
    optimizer = mn.RiemannianSGD(module.parameters(), lr=lr, momentum=0.9)
    worst = 0.0
    for step, g in enumerate(_gradients((8, 16), 3000, dtype)):
        module.weight.grad = g
        optimizer.step()
        if step % 100 == 99:
            worst = max(worst, mn.violations(module)["weight"])
    assert worst <= limit


class BatchNormed(nn.Module):
    """One hidden layer whose scale batch normalization takes out, as in Arch2."""

    def __init__(self, retraction: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 8, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm1d(8, eps=1e-38, dtype=dtype)
        self.head = nn.Linear(8, 3, bias=False, dtype=dtype)
        mn.declare_all(self, mn.rules.scaled_metric("head", retraction))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.hidden(x))))


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **made: Any
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 12, generator=generator).to(**made)
    y = torch.randint(3, (64,), generator=generator)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_additive_steps_grow_norms_by_the_formula_and_warn_before_overflow() -> None:
    """‖w⁺‖² = ‖w‖² (1 + λ²‖w‖²‖g‖²), since ⟨w, g⟩ = 0 where the loss ignores the norm."""
    torch.manual_seed(0)
    model = BatchNormed("additive", torch.float64)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)
    for _ in range(20):
        before = model.hidden.weight.detach().norm(dim=1).square()
        _train(model, optimizer, 1, dtype=torch.float64)
        factor = 1 + 1e-4 * before * model.hidden.weight.grad.norm(dim=1).square()
        after = model.hidden.weight.detach().norm(dim=1).square()
        torch.testing.assert_close(after, before * factor, rtol=1e-9, atol=0)

    torch.manual_seed(0)
    model = BatchNormed("additive", torch.float32)
    optimizer = mn.RiemannianSGD(mn.param_groups(model.hidden), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5000):
            # New labels every time: what cannot be learned keeps the gradients up.
            x, y = torch.randn(64, 12), torch.randint(3, (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
            optimizer.step()
            if caught:
                break
    assert [w.category for w in caught] == [NormGrowthWarning]
    assert re.search(r"weight: row \d.*retraction='geodesic'", str(caught[0].message))
    assert caught[0].filename == __file__
    # The square has still as far to go, in powers of ten, as it has come.
    assert 1e9 < model.hidden.weight.norm(dim=1).max() < 1e18


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [1_000, pytest.param(4_000, marks=pytest.mark.slow)])
def test_geodesic_steps_keep_norms(steps: int) -> None:
    torch.manual_seed(0)
    model = BatchNormed("geodesic", torch.float32)
    before = model.hidden.weight.detach().norm(dim=1)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = _train(model, optimizer, steps, dtype=torch.float32)
    after = model.hidden.weight.detach().norm(dim=1)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("retraction", ["additive", "geodesic"])
def test_trajectories_are_equivariant_under_powers_of_two_bit_for_bit(
    momentum: float, retraction: str
) -> None:
    """Rows of the hidden layer scaled by powers of two: same losses, scaled weights, to the bit."""
    torch.manual_seed(0)
    model = BatchNormed(retraction, torch.float32)
    torch.manual_seed(0)
    scaled = BatchNormed(retraction, torch.float32)
    factors = 2.0 ** torch.tensor([-9, -4, -1, 0, 1, 3, 6, 10]).unsqueeze(1)
    with torch.no_grad():
        scaled.hidden.weight.mul_(factors)
    losses = []
    for net in (model, scaled):
        optimizer = mn.RiemannianSGD(mn.param_groups(net), lr=3e-3, momentum=momentum)
        losses.append(torch.stack(_train(net, optimizer, 100, dtype=torch.float32)))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(scaled.hidden.weight, factors * model.hidden.weight)
    assert losses[0][-1] < losses[0][0]

    plain = []
    for start in (1.0, factors):
        torch.manual_seed(0)
        net = BatchNormed(retraction, torch.float32)
        with torch.no_grad():
            net.hidden.weight.mul_(start)
        plain.append(
            _train(net, torch.optim.SGD(net.parameters(), lr=3e-3), 100, dtype=torch.float32)
        )
    assert not torch.allclose(torch.stack(plain[0]), torch.stack(plain[1]), rtol=1e-2)


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr"),
        ({"lr": 0.1, "momentum": -1}, "momentum"),
        ({"lr": 0.1, "weight_decay": float("nan")}, "weight_decay"),
        ({"lr": 0.1, "nesterov": True}, "nesterov"),
        ({"lr": 0.1, "fused": True, "foreach": True}, "fused"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mn.RiemannianSGD([nn.Parameter(torch.zeros(3))], **options)


def test_overflow_within_two_steps_is_warned_of() -> None:
    """Norms can go from ordinary to infinite in a step or two; then, too, there is a warning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    mn.declare_all(model, mn.rules.scaled_metric("2", "additive"))
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _train(model, optimizer, 20, dtype=torch.float32)
    assert NormGrowthWarning in {w.category for w in caught}


@pytest.mark.parametrize("make", [mn.RiemannianSGD, mn.RiemannianAdam])
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_foreach_and_fused_step_all_weights(flag: str, make: Any) -> None:
    model = nn.Linear(3, 4)
    mn.declare(model, "weight", mn.Oblique(), project=True)
    groups = mn.param_groups(model, lr=0.1, **{flag: True})
    assert [g[flag] for g in groups] == [True, True]
    optimizer = make(groups)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    model(torch.ones(2, 3)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_differentiable_is_refused() -> None:
    with pytest.raises(ValueError, match="differentiable=True is not supported"):
        mn.RiemannianSGD([nn.Parameter(torch.zeros(3))], lr=0.1, differentiable=True)


def test_weight_decay_needs_undeclared_parameters() -> None:
    module = _layer(mn.Oblique(), (4, 3))
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 for a group of declared weights"):
        mn.RiemannianSGD(module.parameters(), lr=0.1, weight_decay=0.1)
    module.bias = nn.Parameter(torch.ones(3))
    module.bias.grad = torch.zeros(3)
    module.weight.grad = torch.zeros(4, 3, dtype=torch.float64)
    before = module.weight.detach().clone()
    for groups in (module.parameters(), mn.param_groups(module)):
        mn.RiemannianSGD(groups, lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(module.bias.detach(), torch.full((3,), 0.99**2))
    torch.testing.assert_close(module.weight.detach(), before, rtol=0, atol=1e-15)


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = mn.RiemannianSGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_gradients_with_and_without_the_check(bad: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    mn.declare(model[1], "weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1, error_if_nonfinite=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[1].weight.grad[1, 2] = bad
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"gradient of 1\.weight has 1 entries"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))

    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    optimizer.step()
    assert not model[1].weight[1].isfinite().all()
    assert model[1].weight[0].isfinite().all()


def test_sparse_gradients_of_declared_weights_are_refused() -> None:
    embedding = nn.Embedding(9, 4, sparse=True)
    mn.declare(embedding, "weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(embedding), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"weight has a sparse gradient.*sparse=False"):
        optimizer.step()

    # Also when it comes later than the first step: before anything has moved.
    model = nn.ModuleDict({"linear": nn.Linear(4, 2), "embedding": embedding})
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    optimizer.zero_grad()
    model["linear"](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    embedding(torch.tensor([1, 2])).sum().backward()
    before = model["linear"].weight.detach().clone()
    with pytest.raises(RuntimeError, match="sparse gradient"):
        optimizer.step()
    assert torch.equal(model["linear"].weight, before)


def test_weights_off_their_manifold_are_refused() -> None:
    module = _layer(mn.Oblique(), (4, 3))
    optimizer = mn.RiemannianSGD(mn.param_groups(module), lr=0.1)
    with torch.no_grad():
        module.weight[2].mul_(3)
    with pytest.raises(ValueError, match=r"weight is not on Oblique.*row 2 with norm 3"):
        mn.RiemannianSGD(mn.param_groups(module), lr=0.1)
    module.weight.grad = torch.zeros_like(module.weight)
    with pytest.raises(ValueError, match="row 2 with norm 3"):
        optimizer.step()
    mn.project_(module)
    optimizer.step()
