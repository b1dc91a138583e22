"""Some steps of training on a copy of a model, by any optimizer, that can be repeated exactly.

    run(model, loss_fn, batches, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), steps=9)

The model itself stays as it is.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet import foreign
from manifoldnet.symmetry.evaluation import (
    Batch,
    LossFunction,
    check_penalty,
    frozen_randomness,
    scalar_loss,
)

__all__ = ["OptimizerFactory", "Run", "check_batch", "make", "run", "take_step"]

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
"""Makes an optimizer for a model: `lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)`."""


@dataclass(frozen=True)
class Run:
    """Some steps of training.

    Attributes:
        losses: before each step.
        weights: after the last, by parameter.
    """

    losses: tuple[float, ...]
    weights: Mapping[str, Tensor]

    @property
    def diverged(self) -> bool:
        """Whether a loss or a weight is not finite."""
        finite = (bool(w.isfinite().all()) for w in self.weights.values())
        return not (all(map(math.isfinite, self.losses)) and all(finite))


def run(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int,
) -> Run:
    """Train a copy of a model.

    Random layers and optimizers draw the same numbers at step i of every run.

    Args:
        model: it is not changed.
        loss_fn: `loss_fn(output, target)`.
        batches: used over and over.
        optimizer: makes the optimizer of a model.
        steps: how many; fewer if a loss is not finite.

    Raises:
        ValueError: if there are no batches, `optimizer` makes none, nothing can be trained, or the
            loss depends on the model's parameters by another way than its output.
    """
    if not batches:
        raise ValueError("batches is empty: at least one pair (input, target) is needed")
    for batch in batches:
        check_batch(batch)
    work = copy.deepcopy(model)
    losses: list[float] = []
    with frozen_randomness():
        made = make(optimizer, work)
        for i in range(steps):

            def closure(i: int = i) -> Tensor:
                with torch.enable_grad(), frozen_randomness(i):
                    work.zero_grad()
                    result = scalar_loss(work, loss_fn, batches[i % len(batches)], None)
                    if not result.requires_grad:
                        raise ValueError(
                            "the loss depends on no parameter that requires a gradient"
                        )
                    if not losses:
                        check_penalty(model, result, loss_fn)
                    result.backward()
                return result.detach()

            losses.append(float(closure()))
            if not math.isfinite(losses[-1]):
                break
            take_step(made, closure)
    return Run(tuple(losses), {name: w.detach().clone() for name, w in work.named_parameters()})


def make(optimizer: OptimizerFactory, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a model; ValueError if the function makes something else."""
    made = optimizer(model)
    if isinstance(made, type) or not callable(getattr(made, "step", None)):
        raise ValueError(
            "optimizer must be a function that makes an optimizer of a model, as lambda model: "
            f"torch.optim.SGD(model.parameters(), lr=0.1); it gave {type(made).__name__}"
        )
    own = set(map(id, model.parameters()))
    for group in getattr(made, "param_groups", ()):
        if any(id(p) not in own for p in group["params"]):
            raise ValueError(
                "optimizer made one that steps tensors of something else than the model it was "
                "given: take the parameters of its argument, as lambda model: "
                "torch.optim.SGD(model.parameters(), lr=0.1)"
            )
    foreign.accept(made)  # what it does to declared weights is the question
    return made


def take_step(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
    """One step, after the gradients are there; with the closure if it cannot be left out.

    Args:
        optimizer: any; some ignore a closure, some take none, and LBFGS asks for one.
        closure: sets the gradients again and gives the loss.
    """
    parameters = inspect.signature(optimizer.step).parameters.values()
    ways = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # A scheduler's wrapper shows `self`, too.
    if any(p.default is p.empty and p.kind in ways and p.name != "self" for p in parameters):
        optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and means a loss
    else:
        optimizer.step()


def check_batch(batch: Any) -> None:
    """ValueError unless it is a pair (input, target)."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise ValueError(f"a batch is a pair (input, target), not {type(batch).__name__}")
