"""A step inside `torch.compile`: no graph breaks, the same numbers, no schedule compiles anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manifoldnet as mn

# What torch says of itself while it traces.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "adam-amsgrad": (mn.RiemannianAdam, {"amsgrad": True}),
    "adam-kernel": (mn.RiemannianAdam, {"fused": True}),
    "tensors": (
        mn.RiemannianAdam,
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "eps": torch.tensor(1e-8)},
    ),
    "momentum-kernel": (mn.RiemannianSGD, {"momentum": 0.9, "fused": True}),
}


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False),
        nn.Tanh(),
        nn.Linear(16, 16),  # a bias is not declared
        nn.Linear(16, 4, bias=False),
    )
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.declare(model, "2.weight", mn.ScaledEuclidean())
    mn.declare(model, "3.weight", mn.Sphere(2.0, "geodesic"), project=True)
    return model


# Both compile the same graphs, inductor five times as long.
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("whole", [False, True], ids=["step", "training step"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.thorough
def test_a_compiled_step_is_not_recompiled_for_another_rate(
    case: str, whole: bool, backend: str
) -> None:
    make, options = CASES[case]
    ends, states = [], []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = _model()
        lr = torch.tensor(0.01, dtype=torch.float64)
        optimizer = make(mn.param_groups(model, **options), lr=lr)

        def backward(x: Tensor, model: nn.Module = model) -> None:
            model(x).square().mean().backward()

        def train(x: Tensor, optimizer: Any = optimizer, backward: Any = backward) -> None:
            backward(x)
            optimizer.step()

        step = optimizer.step
        if compiled and whole:
            train = torch.compile(train, backend=backend)
        elif compiled:
            step = torch.compile(step, backend=backend, fullgraph=True)
        for i in range(6):
            x = torch.randn(10, 8, generator=torch.Generator().manual_seed(i))
            if whole:
                train(x)
            else:
                backward(x)
                step()
            optimizer.zero_grad()
            lr.mul_(0.9)
            if i == 2:  # the first steps make the buffers
                torch._dynamo.utils.counters.clear()
        if compiled:
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
            assert not any(
                "manifoldnet" in why for why in torch._dynamo.utils.counters["graph_break"]
            )
        ends.append([p.detach().clone() for p in model.parameters()])
        states.append(optimizer.state_dict()["state"])
        assert max(mn.violations(model).values()) < 1e-6
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)
