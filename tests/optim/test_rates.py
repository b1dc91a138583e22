"""`angle_of` against simulated equilibria, and `Angles` against angles written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manifoldnet as mn
from manifoldnet.optim import Angles, angle_of

# --- the equilibrium ------------------------------------------------------------------------------


def equilibrium(make: Any, *, scale: float, steps: int = 1500) -> float:
    """The angle per step of rows under random gradients across them, after many steps.

    As for a loss that ignores the length of rows, gradients are orthogonal to them and inversely
    proportional to their norms.
    """
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(scale * F.normalize(torch.randn(64, 100, generator=generator)))
    optimizer = make([w])
    squares = []
    for step in range(steps):
        x = w.detach().clone()
        g = torch.randn(x.shape, generator=generator)
        g -= (g * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True) * x
        w.grad = g / x.norm(dim=1, keepdim=True)
        optimizer.step()
        if step >= steps // 2:
            squares.append((F.normalize(w.detach()) - F.normalize(x)).square().sum(1).mean())
    return float(torch.stack(squares).mean().sqrt())


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize(("lr", "decay"), [(0.01, 1.0), (0.02, 0.1)])
@pytest.mark.thorough
def test_the_angle_of_adamw(lr: float, decay: float, beta1: float) -> None:
    options: dict[str, Any] = {"lr": lr, "weight_decay": decay, "betas": (beta1, 0.999)}
    # The norm of the equilibrium, √(η n/2λ), so that few steps lead there.
    scale = math.sqrt(lr * 100 / 2 / decay)
    measured = equilibrium(lambda w: torch.optim.AdamW(w, **options), scale=scale)
    assert measured == pytest.approx(angle_of(**options), rel=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("lr", "decay"), [(0.1, 0.02), (0.02, 0.3)])
@pytest.mark.thorough
def test_the_angle_of_sgd(lr: float, decay: float, momentum: float) -> None:
    measured = equilibrium(
        lambda w: torch.optim.SGD(w, lr=lr, momentum=momentum, weight_decay=decay),
        scale=(lr * 100 / 2 / decay / (1 - momentum)) ** 0.25,
    )
    expected = angle_of(lr=lr, weight_decay=decay, momentum=momentum)
    assert measured == pytest.approx(expected, rel=0.05)


def test_known_values() -> None:
    assert angle_of(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)) == pytest.approx(
        math.sqrt(2e-4 / 19)
    )
    assert angle_of(lr=0.1, weight_decay=5e-4, momentum=0.9) == pytest.approx(math.sqrt(1e-4 / 1.9))
    assert angle_of(lr=torch.tensor(0.5), weight_decay=0.25, momentum=0) == pytest.approx(0.5)
    assert angle_of(lr=0.0, weight_decay=0.1, momentum=0) == 0  # a schedule's end


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, TypeError, "either betas"),
        ({"betas": (0.9, 0.999), "momentum": 0.9}, TypeError, "either betas"),
        ({"betas": 0.9}, TypeError, "betas must be two"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\]"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"momentum": "0.9"}, TypeError, "momentum"),
        ({"momentum": 0.9, "lr": -1.0}, ValueError, "lr"),
        ({"momentum": 0.9, "lr": math.nan}, ValueError, "lr"),
        ({"momentum": 0.9, "weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"momentum": 0.9, "weight_decay": 0.0}, ValueError, "no equilibrium"),
        ({"momentum": 0.9, "weight_decay": 10.0}, ValueError, "leaves nothing"),
    ],
)
def test_what_makes_no_sense(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        angle_of(**{"lr": 0.1, "weight_decay": 0.01} | options)


# --- the report -----------------------------------------------------------------------------------


def network() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3), nn.Linear(3, 2))
    mn.declare(model, "1.weight", mn.Oblique(dim=1, radius=2.0), project=True)
    mn.declare(model, "1.bias", mn.Sphere(), project=True)
    return model


def angles_by_hand(x: Tensor, y: Tensor) -> Tensor:
    """Between rows, in double precision, by the arc cosine."""
    return F.cosine_similarity(x.double(), y.double(), dim=1).clamp(-1, 1).arccos()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_angles_and_norms(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = network().to(dtype)
    angles = Angles(model)
    before = copy.deepcopy(model)
    with angles, torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
        model[0].weight[0] = 0
    assert list(angles.angle) == ["0.weight", "1.weight", "1.bias", "2.weight"] == [*angles.norm]
    for name, rows in {
        "0.weight": lambda p: p[1:],  # the zero row has no angle
        "1.weight": lambda p: p.T,
        "1.bias": lambda p: p.unsqueeze(0),
        "2.weight": lambda p: p,
    }.items():
        x, y = (m.get_parameter(name).detach() for m in (before, model))
        expected = angles_by_hand(rows(x), rows(y)).square().mean().sqrt()
        rel = 1e-10 if dtype == torch.float64 else 1e-3
        assert angles.angle[name] == pytest.approx(float(expected), rel=rel)
        slices = y.T if name == "1.weight" else y.reshape(1, -1) if y.ndim == 1 else y
        norm = slices.double().norm(dim=1).square().mean().sqrt()
        assert angles.norm[name] == pytest.approx(float(norm), rel=rel)


@pytest.mark.parametrize("angle", [1e-5, 0.1, 3.1])
def test_small_and_large_angles_in_float32(angle: float) -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad(), Angles(_set(layer, 0.0)) as angles:
        _set(layer, angle)
    assert angles.angle["weight"] == pytest.approx(angle, rel=1e-4)
    assert angles.norm["weight"] == pytest.approx(1)


@torch.no_grad()
def _set(layer: nn.Linear, angle: float) -> nn.Linear:
    layer.weight.copy_(torch.tensor([[math.cos(angle), math.sin(angle)]]))
    return layer


def test_steps_of_any_optimizer_and_whole_tensors() -> None:
    model = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    angles = Angles(model, dim=None)
    for _ in range(2):
        model(torch.randn(5, 4)).square().sum().backward()
        x = model.weight.detach().clone()
        with angles:
            optimizer.step()
        expected = angles_by_hand(x.view(1, -1), model.weight.detach().view(1, -1))
        assert angles.angle["weight"] == pytest.approx(float(expected), rel=1e-3)


def test_the_rate_of_a_geodesic_step_is_its_angle() -> None:
    layer = nn.Linear(50, 4, bias=False).double()
    mn.declare(layer, "weight", mn.Oblique(retraction="geodesic"), project=True)
    optimizer = mn.RiemannianAdam(layer.parameters(), lr=0.01, slice_scale="norm")
    layer(torch.randn(5, 50).double()).square().sum().backward()
    with Angles(layer) as angles:
        optimizer.step()
    assert angles.angle["weight"] == pytest.approx(0.01, rel=1e-6)


def test_the_table() -> None:
    angles = Angles(network())
    with angles:
        pass
    lines = str(angles).splitlines()
    assert lines[0].split() == ["weight", "angle", "norm"]
    assert [line.split()[0] for line in lines[1:]] == list(angles.angle)
    assert set(angles.angle.values()) == {0.0}


def test_manifolds_without_slices_and_slices_that_stay_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    product = mn.Product([(mn.Sphere(), (3,)), (mn.Euclidean(), (1,))])
    model.x = nn.Parameter(torch.tensor([1.0, 0, 0, 1.0]))
    mn.declare(model, "x", product)
    nn.init.zeros_(model[1].weight)
    with Angles(model) as angles, torch.no_grad():
        model.x.copy_(torch.tensor([0.0, 1, 0, 1.0]))
    assert angles.angle["x"] == pytest.approx(math.pi / 3)
    assert math.isnan(angles.angle["1.weight"])
    assert angles.norm["1.weight"] == 0


def test_an_error_in_the_block_is_handed_on_and_nothing_is_measured() -> None:
    angles = Angles(nn.Linear(2, 2))
    with pytest.raises(LookupError), angles:
        raise LookupError
    assert not angles.angle


def test_what_cannot_be_measured() -> None:
    with pytest.raises(TypeError, match="module"):
        Angles(torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        Angles(nn.Linear(2, 2), dim=-1)
    with pytest.raises(ValueError, match="no declared weight"):
        Angles(nn.LayerNorm(3))
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"weight had shape \(2, 2\).* is \(3, 2\)"), Angles(layer):
        layer.weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="weight had shape .* is gone"), Angles(layer):
        del layer.weight


def test_a_constrained_optimizer_turns_by_the_angle_of_the_equilibrium() -> None:
    lr = angle_of(lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    layer = nn.Linear(20, 4, bias=False).double()
    mn.declare(layer, "weight", mn.Oblique(retraction="geodesic"), project=True)
    optimizer = mn.optim.constrain(torch.optim.AdamW(layer.parameters(), lr=lr), length="angle")
    layer(torch.randn(5, 20).double()).square().sum().backward()
    with Angles(layer) as angles:
        optimizer.step()
    assert angles.angle["weight"] == pytest.approx(lr, rel=1e-9)
