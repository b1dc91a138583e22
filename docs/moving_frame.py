"""Runs from rescaled weights, under optimizers in the moving frame and without it.

    python docs/moving_frame.py    writes results/moving_frame_invariance.csv

Two runs of 200 steps in float64 begin at weights w and at h·w, where h is an element of the group
that `mn.symmetry.discover` finds, with factors up to 1e3. The number is the largest relative
difference of their losses; "inf" stands for a run that leaves the finite numbers.
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu
from torch.optim import Optimizer

import manifoldnet as mn

RECORD = Path(__file__).parent / "results" / "moving_frame_invariance.csv"
STEPS, LARGEST, CLASSES = 200, 1e3, 4


class Gated(nn.Module):
    """Two residual SwiGLU blocks behind RMSNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(3))
        self.gates, self.ups = (nn.ModuleList(nn.Linear(8, 12) for _ in range(2)) for _ in "gu")
        self.downs = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of rows of `x`."""
        layers = zip(self.norms, self.gates, self.ups, self.downs, strict=False)
        for norm, gate, up, down in layers:
            y = norm(x)
            x = x + down(silu(gate(y)) * up(y))
        logits: Tensor = self.head(self.norms[2](x))
        return logits


class Language(nn.Module):
    """A transformer of one layer, LayerNorm in front, whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(10, 8), nn.Embedding(6, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.attention = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each position, positions first among the classes."""
        x = self.embedding(tokens) + self.positions.weight
        q, k, v = (
            part.unflatten(-1, (2, 4)).transpose(1, 2)
            for part in self.attention(self.norms[0](x)).chunk(3, -1)
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norms[1](x))
        logits: Tensor = self.norms[2](x) @ self.embedding.weight.T
        return logits.transpose(1, 2)


def convolutions() -> nn.Module:
    """Convolutions with biases, batch normalization, LeakyReLU and max-pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, (3, 1)),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(6, 6, (3, 1)),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 2, CLASSES),
    )


Batches = list[tuple[Tensor, Tensor]]


def rows(*shape: int) -> Batches:
    """One batch of random inputs and classes."""
    return [(torch.randn(32, *shape, dtype=torch.float64), torch.randint(CLASSES, (32,)))]


def sentences() -> Batches:
    """One batch of random sentences."""
    tokens = torch.randint(10, (32, 7))
    return [(tokens[:, :-1], tokens[:, 1:])]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches]]] = {
    "convolutions, batch normalization, LeakyReLU, max-pooling": (
        convolutions,
        lambda: rows(1, 12, 2),
    ),
    "residual SwiGLU, RMSNorm": (Gated, lambda: rows(8)),
    "transformer, LayerNorm, tied embedding": (Language, sentences),
}


def muon(model: nn.Module) -> list[Optimizer]:
    """Muon for matrices, AdamW for the rest."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return [mn.optim.Muon(matrices, lr=1e-2), adamw(rest)]


def adamw(parameters: Any) -> Optimizer:
    """AdamW with weight decay."""
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "SGD, momentum": lambda m: [torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9)],
    "AdamW": lambda m: [adamw(m.parameters())],
    "Muon and AdamW": muon,
}


def losses(
    model: nn.Module,
    batches: Batches,
    make: Callable[[nn.Module], list[Optimizer]],
    group: mn.symmetry.ScalingGroup | None,
) -> list[float]:
    """The losses of one run, in the moving frame of a group if one is given."""
    optimizers = make(model)
    if group is not None:
        mn.symmetry.make_invariant(optimizers, model, group)
    found = []
    for step in range(STEPS):
        x, y = batches[step % len(batches)]
        model.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        found.append(loss.item())
    return found


def difference(a: list[float], b: list[float]) -> str:
    """The largest relative difference."""
    if not all(map(math.isfinite, a + b)):
        return "inf"
    return f"{max(abs(p - q) / abs(p) for p, q in zip(a, b, strict=True)):.1e}"


def measured() -> list[dict[str, str]]:
    """A row for each network and optimizer."""
    table = []
    for network, (make_model, make_batches) in NETWORKS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batches = make_model().double(), make_batches()
        group = mn.symmetry.discover(model, cross_entropy, batches).nontrivial
        element = group.sample(generator=torch.Generator().manual_seed(5), spread=math.log(LARGEST))
        for name, make in OPTIMIZERS.items():
            row = {"network": network, "generators": str(group.dimension), "optimizer": name}
            for column, frame in (("in the frame", group), ("without", None)):
                runs = []
                for start in (copy.deepcopy(model), mn.symmetry.reparameterize(model, element)):
                    with mn.symmetry.without_eps(start):
                        runs.append(losses(start, batches, make, frame))
                row[column] = difference(*runs)
            table.append(row)
    return table


if __name__ == "__main__":
    table = measured()
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
