"""Runs from two factorizations of one product, under optimizers with and without a `Pair`.

    python docs/pairs.py    writes results/pairs.csv

Two runs of 60 steps in float64, of a product of rank 4 that is fitted to 64 examples, begin at
(A, B) and at (A S, B S⁻ᵀ), cond S = 100. The number is the largest relative difference of their
losses. "Preconditioned AdamW" is AdamW with the gradients of [zhang2024riemannian],
g_A (BᵀB + δI)⁻¹ and g_B (AᵀA + δI)⁻¹, δ = 1e-6, as PEFT offers it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import manifoldnet as mn

RECORD = Path(__file__).parent / "results" / "pairs.csv"
PAIR = mn.Pair("left.weight", "right.weight")
STEPS, RANK, DAMPING = 60, 4, 1e-6


class Product(nn.Module):
    """x ↦ L R x."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(RANK, 12, bias=False, dtype=torch.float64)
        self.right = nn.Linear(10, RANK, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """The product, applied to rows of `x`."""
        return self.left(self.right(x))


def precondition(model: Product) -> None:
    """Multiply gradients by the damped inverse Gram matrices of the other factor."""
    left, right = model.left.weight, model.right.weight
    eye = DAMPING * torch.eye(RANK, dtype=left.dtype)
    with torch.no_grad():
        left.grad = torch.linalg.solve(right @ right.T + eye, left.grad, left=False)
        right.grad = torch.linalg.solve(left.T @ left + eye, right.grad)


Make = Callable[[Product], Optimizer]
OPTIMIZERS: dict[str, tuple[bool, Make]] = {
    "RiemannianSGD, momentum": (
        True,
        lambda m: mn.RiemannianSGD(mn.param_groups(m), lr=0.1, momentum=0.9),
    ),
    "RiemannianAdam": (True, lambda m: mn.RiemannianAdam(mn.param_groups(m), lr=1e-2)),
    "constrained SGD, momentum": (
        True,
        lambda m: mn.constrain(torch.optim.SGD(mn.param_groups(m), lr=0.1, momentum=0.9)),
    ),
    "constrained Muon": (
        True,
        lambda m: mn.constrain(mn.optim.Muon(mn.param_groups(m), lr=2e-2)),
    ),
    "constrained AdamW": (
        True,
        lambda m: mn.constrain(torch.optim.AdamW(mn.param_groups(m), lr=1e-2)),
    ),
    "SGD, momentum": (False, lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)),
    "Muon": (False, lambda m: mn.optim.Muon(m.parameters(), lr=2e-2)),
    "AdamW": (False, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)),
    "preconditioned AdamW": (False, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)),
}


def losses(name: str, scaled: bool) -> list[float]:
    """The losses of one run."""
    declared, make = OPTIMIZERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Product()
        x = torch.randn(64, 10, dtype=torch.float64)
        y = torch.tanh(x @ torch.randn(10, 12, dtype=torch.float64))
        u, _, v = torch.linalg.svd(torch.randn(RANK, RANK, dtype=torch.float64))
    s = u * torch.logspace(-1, 1, RANK, dtype=torch.float64) @ v
    if scaled:
        with torch.no_grad():
            left, right = PAIR.act((model.left.weight, model.right.weight), s)
            model.left.weight.copy_(left)
            model.right.weight.copy_(right)
    if declared:
        mn.declare(model, PAIR)
    optimizer = make(model)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        if name.startswith("preconditioned"):
            precondition(model)
        optimizer.step()
        found.append(loss.item())
    return found


def measured() -> list[dict[str, str]]:
    """A row for each optimizer."""
    rows = []
    for name in OPTIMIZERS:
        a, b = losses(name, False), losses(name, True)
        worst = max(abs(p - q) / abs(p) for p, q in zip(a, b, strict=True))
        rows.append({"optimizer": name, "difference": f"{worst:.1e}", "last loss": f"{a[-1]:.4f}"})
    return rows


if __name__ == "__main__":
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["optimizer", "difference", "last loss"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(measured())
