"""Reproducible training runs of a copy of a model, with any optimizer.

    run(model, loss_fn, batches, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), steps=9)

Runs from equal weights are equal bit for bit, as random numbers depend on the step only.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manifoldnet import foreign
from manifoldnet.symmetry.batches import Batch, as_pair
from manifoldnet.symmetry.losses import (
    LossFunction,
    check_penalty,
    frozen_randomness,
    scalar_loss,
)

__all__ = ["OptimizerFactory", "Run", "make_optimizer", "run", "take_step"]

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
"""Makes the optimizer of a model: `lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)`."""


@dataclass(frozen=True)
class Run:
    """Result of a training run.

    Attributes:
        losses: loss before each step.
        weights: weights after the last step, by parameter.
    """

    losses: tuple[float, ...]
    weights: Mapping[str, Tensor]

    @property
    def diverged(self) -> bool:
        """True if a loss or a weight is not finite."""
        finite = (bool(w.isfinite().all()) for w in self.weights.values())
        return not (all(map(math.isfinite, self.losses)) and all(finite))


def run(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batches: Sequence[Batch],
    optimizer: OptimizerFactory,
    *,
    steps: int,
) -> Run:
    """Train a copy of a model.

    Random layers and optimizers draw the same numbers at step i of every run.

    Args:
        model: it is not changed.
        loss_fn: as in `discover`.
        batches: as in `discover`, used cyclically.
        optimizer: makes the optimizer of a model.
        steps: number of steps; the run ends early if a loss is not finite.

    Raises:
        ValueError: if there are no batches, `optimizer` makes no optimizer of the model, no
            parameter can be trained, or the loss depends on the model's parameters by another way
            than its output.
    """
    if not batches:
        raise ValueError("batches is empty: at least one pair (input, target) is needed")
    pairs = [as_pair(batch, loss_fn is None) for batch in batches]
    work = copy.deepcopy(model)
    losses: list[float] = []
    with frozen_randomness():
        made = make_optimizer(optimizer, work)
        for i in range(steps):

            def closure(i: int = i) -> Tensor:
                with torch.enable_grad(), frozen_randomness(i):
                    work.zero_grad()
                    result = scalar_loss(work, loss_fn, pairs[i % len(pairs)], None)
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


def make_optimizer(factory: OptimizerFactory, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of a model.

    Raises:
        ValueError: if the factory makes something else.
    """
    made = factory(model)
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
    foreign.accept(made)  # no warning: its effect on declared weights is measured
    return made


def take_step(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
    """Take one optimizer step from gradients that are set.

    Args:
        optimizer: any. Some ignore a closure, some accept none, and LBFGS requires one.
        closure: sets the gradients again and returns the loss.
    """
    parameters = inspect.signature(optimizer.step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # The signature of a scheduler's wrapper includes `self`.
    if any(p.default is p.empty and p.kind in positional and p.name != "self" for p in parameters):
        optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and means a loss
    else:
        optimizer.step()
