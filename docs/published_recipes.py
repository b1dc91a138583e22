"""Invariance of published optimizers' recipes, and of optimizers with and without `constrain`.

    python docs/published_recipes.py

writes results/recipes.csv and results/invariance_of_optimizers.csv.

Two runs of 100 steps in float64 begin at one function: at a network, and at the same network with
the rows in front of batch normalization scaled by e^{4 N(0, 1)} (of LoRA, with its two factors
scaled against each other). The number is the largest relative difference of their losses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import schedulefree
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import manifoldnet as mn

DOCS = Path(__file__).parent
RECIPES = (
    *("ngpt", "edm2", "adamh", "muonh", "angular_muown", "magnitude_direction", "spel"),
    *("rotational_adamw", "intrinsic_muon", "lora"),
)
Start = Callable[[bool], nn.Module]
Optimizers = list[Optimizer]


def examples() -> dict[str, Any]:
    """The names that the Python blocks of recipes/published.md define."""
    text = (DOCS / "recipes" / "published.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "recipes/published.md", "exec"), names)
    return names


PAGE = examples()


def network(seed: int = 0, rank: int = 0) -> nn.Module:
    """The network of the page in float64; with a rank, `up` gets an adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = PAGE["Network"]().double()
        if rank:
            model.up = PAGE["Adapter"](model.up, rank)
    return model


def applied(recipe: str, model: nn.Module) -> Optimizer:
    """The constrained optimizer of a recipe, on a network of the page."""
    hidden: list[str] = PAGE["hidden"]
    # Rotational variants are for weights whose length the loss ignores.
    others = {"ngpt": PAGE["tokens"], "rotational_adamw": hidden[:1]}
    optimizer: Optimizer = PAGE[recipe](model, others.get(recipe, hidden))
    return optimizer


def backward(model: nn.Module, step: int) -> Tensor:
    """The loss of one of seven batches; gradients in the parameters."""
    generator = torch.Generator().manual_seed(step % 7)
    ids = torch.randint(7, (32,), generator=generator)
    labels = ids + torch.randint(3, (32,), generator=generator)
    model.zero_grad()
    loss = cross_entropy(model(ids), labels)
    loss.backward()
    return loss.detach()


def losses(model: nn.Module, optimizers: Iterable[Optimizer], steps: int = 100) -> Tensor:
    """The losses of a run."""
    found = []
    for step in range(steps):
        found.append(backward(model, step))
        for optimizer in optimizers:
            optimizer.step()
    return torch.stack(found)


def apart(start: Start, make: Callable[[nn.Module], Optimizers], steps: int = 100) -> float:
    """The largest relative difference of the losses of two runs, from two starts."""
    runs = []
    for scaled in (False, True):
        model = start(scaled)
        runs.append(losses(model, make(model), steps))
    difference: Tensor = (runs[0] - runs[1]).abs() / runs[0]
    return float(difference.max())


def factors(count: int) -> Tensor:
    """e^{4 N(0, 1)}, as a column."""
    generator = torch.Generator().manual_seed(5)
    return (4 * torch.randn(count, 1, generator=generator, dtype=torch.float64)).exp()


def rows(scaled: bool) -> nn.Module:
    """The network, or the one with other lengths of rows."""
    model = network()
    if scaled:
        with torch.no_grad():
            model.get_parameter("up.weight").mul_(factors(8))
    return model


def adapter(scaled: bool) -> nn.Module:
    """The network with an adapter, or the one with other lengths of its factors."""
    model = network(rank=2)
    if scaled:
        with torch.no_grad():  # and the columns of B divided, which are zero
            model.get_parameter("up.A").mul_(factors(2))
    return model


def turned_adapter(turned: bool) -> nn.Module:
    """The network with an adapter, or the one whose factors are turned by an angle of 1."""
    model = network(rank=2)
    if turned:
        angle = torch.ones((), dtype=torch.float64)
        with torch.no_grad():
            a, (cos, sin) = model.get_parameter("up.A"), (angle.cos(), angle.sin())
            a.copy_(torch.stack([cos * a[0] + sin * a[1], cos * a[1] - sin * a[0]]))
    return model


# --- recipes --------------------------------------------------------------------------------------


def with_others(model: nn.Module, optimizer: Optimizer) -> Optimizers:
    """An optimizer, and AdamW for the parameters that it does not hold."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [p for p in model.parameters() if id(p) not in held and p.requires_grad]
    return [optimizer, torch.optim.AdamW(others, lr=1e-2)]


def without_constraint(recipe: str, start: Start) -> Callable[[nn.Module], Optimizers]:
    """The base optimizer of a recipe with its options, on free weights."""
    model = start(False)
    optimizer = applied(recipe, model)
    names, kind = list(mn.manifolds(model)), type(optimizer)
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in optimizer.defaults.items() if k in known}
    options["lr"] = optimizer.param_groups[0]["lr"]

    def make(model: nn.Module) -> Optimizers:
        weights = [model.get_parameter(name) for name in names]
        return with_others(model, kind(weights, **options))

    return make


def measured_recipes() -> pd.DataFrame:
    """A row for each recipe: its own change, and that of its base optimizer on free weights."""
    table = []
    starts: list[tuple[str, str, Start]] = [(r, r, rows) for r in RECIPES if r != "lora"]
    starts += [("lora", "lora", adapter), ("lora, factors turned", "lora", turned_adapter)]
    for name, recipe, start in starts:
        table.append(
            {
                "recipe": name,
                "change": apart(start, lambda m, r=recipe: with_others(m, applied(r, m))),  # type: ignore[misc]
                "base alone": apart(start, without_constraint(recipe, start)),
            }
        )
    return pd.DataFrame(table)


# --- optimizers -----------------------------------------------------------------------------------


class Lion(Optimizer):
    """w ← w − η sign(β₁ m + (1 − β₁) g), m ← β₂ m + (1 − β₂) g."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_((0.9 * m + 0.1 * p.grad).sign_(), alpha=group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


def schedule_free(params: Any) -> Optimizer:
    optimizer: Any = schedulefree.AdamWScheduleFree(params, lr=1e-2, warmup_steps=5)
    optimizer.train()
    return optimizer


BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "Muon": lambda p: mn.optim.Muon(p, lr=2e-2),
    "Lion": lambda p: Lion(p, lr=3e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=3e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=3e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "schedule-free AdamW": schedule_free,
}


def measured_optimizers() -> pd.DataFrame:
    """A row for each optimizer: plain, and constrained under the scaled metric."""
    table = []
    for name, base in BASES.items():

        def make(model: nn.Module, constrained: bool, base: Any = base) -> Optimizers:
            weights = [model.get_parameter(each) for each in PAGE["hidden"]]
            if constrained:
                mn.declare_all(model, dict.fromkeys(PAGE["hidden"], mn.ScaledEuclidean()))
            optimizer = base(weights)
            return with_others(model, mn.constrain(optimizer) if constrained else optimizer)

        changes = {
            "plain": apart(rows, lambda m: make(m, False)),
            "constrained": apart(rows, lambda m: make(m, True)),
        }
        table.append({"optimizer": name} | changes)
    return pd.DataFrame(table)


def main() -> None:
    torch.set_num_threads(1)
    tables = {"recipes": measured_recipes(), "invariance_of_optimizers": measured_optimizers()}
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.1e")
        (DOCS / "results" / f"{name}.csv").write_text(text, encoding="utf-8")
        print(table.to_string(index=False, float_format=lambda x: f"{x:.1e}"))


if __name__ == "__main__":
    main()
