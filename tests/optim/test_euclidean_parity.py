"""Undeclared parameters move bit for bit as with torch.optim, whatever the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import manifoldnet as mn

STEPS = 50
VARIANTS = st.sampled_from([{}, {"foreach": False}, {"foreach": True}, {"fused": True}])


def _parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (7,), (3, 2, 2, 2), ()]
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in shapes
    ]


def _run(
    make: Callable[..., torch.optim.Optimizer],
    options: dict[str, Any],
    parameters: list[torch.nn.Parameter],
) -> list[Tensor]:
    optimizer = make(parameters, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for i, p in enumerate(parameters):
            # Now and then a parameter has no gradient.
            gone = (step + i) % 7 == 6
            p.grad = None if gone else torch.randn(p.shape, generator=generator).to(p.dtype)
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        optimizer.step()
        if make not in (torch.optim.SGD, torch.optim.Adam):  # torch's foreach Nesterov adds to it
            for p, grad in zip(parameters, before, strict=True):
                assert p.grad is grad is None or torch.equal(p.grad, grad)
    return [p.detach().clone() for p in parameters]


def _same(ours: Any, torchs: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    mine = _run(ours, options, _parameters(dtype))
    reference = _run(torchs, options, _parameters(dtype))
    for a, b in zip(mine, reference, strict=True):
        assert torch.equal(a, b)


@given(
    lr=st.sampled_from([0.0, 1e-3, 0.3]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    nesterov=st.booleans(),
    maximize=st.booleans(),
    variant=VARIANTS,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_sgd_equals_torchs_bit_for_bit(
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    variant: dict[str, bool],
    dtype: torch.dtype,
) -> None:
    if nesterov:
        dampening, momentum = 0.0, momentum or 0.9
    options = {
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
        **variant,
    }
    _same(mn.RiemannianSGD, torch.optim.SGD, options, dtype)


@given(
    lr=st.sampled_from([0.0, 1e-3, 0.3]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]),
    eps=st.sampled_from([1e-8, 1e-3]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    decoupled=st.booleans(),
    variant=VARIANTS,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_adam_equals_torchs_bit_for_bit(
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    decoupled: bool,
    variant: dict[str, bool],
    dtype: torch.dtype,
) -> None:
    options = {
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "decoupled_weight_decay": decoupled,
        **variant,
    }
    _same(mn.RiemannianAdam, torch.optim.Adam, options, dtype)


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [(mn.RiemannianSGD, torch.optim.SGD), (mn.RiemannianAdam, torch.optim.Adam)],
)
def test_tensor_learning_rates_equal_torchs(ours: Any, torchs: Any) -> None:
    _same(ours, torchs, {"lr": torch.tensor(0.1)}, torch.float32)


def test_sparse_gradients_equal_torchs() -> None:
    def run(make: Any) -> Tensor:
        embedding = torch.nn.Embedding(9, 4, sparse=True)
        with torch.no_grad():
            embedding.weight.copy_(torch.arange(36.0).reshape(9, 4))
        optimizer = make(embedding.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            embedding(torch.tensor([step, 3, 3])).square().sum().backward()
            optimizer.step()
        return embedding.weight.detach()

    assert torch.equal(run(mn.RiemannianSGD), run(torch.optim.SGD))


@pytest.mark.parametrize("make", [mn.RiemannianSGD, mn.RiemannianAdam])
def test_euclidean_declarations_change_no_bit(make: Any) -> None:
    """`Euclidean()` changes nothing, also for a ManifoldParameter with torch's fast paths."""
    torchs = torch.optim.SGD if make is mn.RiemannianSGD else torch.optim.Adam
    start = _parameters()[0].detach()
    plain = torch.nn.Parameter(start.clone())
    declared = mn.ManifoldParameter(start.clone(), mn.Euclidean())
    for options in ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1}):
        mine = _run(make, options, [declared])
        reference = _run(torchs, options, [plain])
        assert torch.equal(mine[0], reference[0])
