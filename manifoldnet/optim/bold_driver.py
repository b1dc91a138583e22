"""The bold driver: a learning rate that grows while the error falls, and is cut when it rises.

The annealing protocol of [badrinarayanan2015symmetry] after [hinton2008lecture]. The paper gives
no factors; Hinton's notes say to raise the rate a little while the error falls consistently and
to cut it when the error rises. The defaults here are five per cent and one half.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat, final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manifoldnet.optim.checks import check_number

__all__ = ["BoldDriver"]


@final
class BoldDriver(LRScheduler):
    """Multiply the rates by `grow` after an error that did not rise, by `shrink` after a rise.

    It is driven by a number, as `torch.optim.lr_scheduler.ReduceLROnPlateau` is: call
    `step(error)` once an epoch. The first error only sets the mark. An error that is NaN or
    infinite counts as a rise.

    Args:
        optimizer: whose rates to drive; each group keeps its ratio to the others.
        grow: factor ≥ 1 while the error falls or stays.
        shrink: factor in (0, 1) when it rises.
        min_lr: no rate goes below this.
        max_lr: no rate goes above this.

    Raises:
        ValueError: for factors and bounds out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        grow: float = 1.05,
        shrink: float = 0.5,
        min_lr: float = 0.0,
        max_lr: float = math.inf,
    ) -> None:
        # Not LRScheduler's constructor: it would take a step, and there is no error yet.
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"{type(optimizer).__name__} is not an Optimizer")
        if not 1.0 <= grow < math.inf:
            raise ValueError(f"grow must be finite and ≥ 1, not {grow}")
        if not 0.0 < shrink < 1.0:
            raise ValueError(f"shrink must lie between 0 and 1, not {shrink}")
        check_number("min_lr", min_lr)
        if not max_lr >= min_lr:
            raise ValueError(f"max_lr={max_lr} must be at least min_lr={min_lr}")
        self.optimizer = optimizer
        self.grow = grow
        self.shrink = shrink
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.last_error: float | None = None
        self.last_epoch = 0
        self._last_lr: list[Any] = self._rates()

    # Driven by a number, as ReduceLROnPlateau, which departs from its base in the same way.
    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Record an error, and update the rates.

        Args:
            metrics: the error (or loss) of the epoch that ended.
            epoch: its number; one more than the last if left out.
        """
        error = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.last_error is not None:
            fell = math.isfinite(error) and error <= self.last_error
            factor = self.grow if fell else self.shrink
            for group in self.optimizer.param_groups:
                rate = min(max(float(group["lr"]) * factor, self.min_lr), self.max_lr)
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        # After a NaN anything finite is a fall.
        self.last_error = math.inf if math.isnan(error) else error
        self._last_lr = self._rates()

    def _rates(self) -> list[Any]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The state without the optimizer, in plain types."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; the rates are part of the optimizer's state."""
        self.__dict__.update(state_dict)
