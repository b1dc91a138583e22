"""When a run ends, and how: decided from its configuration and its epochs alone.

    a training loss that is not finite          -> diverged
    the last of ``config.epochs``               -> finished, or diverged if it is no better than
    one of three rules, with the bold driver       ``config.diverged_above``

The rules are those of Section 4 of [badrinarayanan2015symmetry], asked after each epoch from
``config.min_epochs`` on, in this order:

    (i)   the training error is below ``stop_train_error``
    (ii)  the validation error is above the one ``stop_validation_epochs`` earlier
    (iii) it differs from the one before by less than ``stop_validation_change``

Only the state at the end of that epoch counts: what happened before `min_epochs` is forgotten. With
exponential decay the paper names no rule, so those runs train all their epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import Epoch, Result


def stopping_rule(config: TrainConfig, epochs: Sequence[Epoch]) -> str:
    """The rule that ends a run after these epochs, in words; empty when none does."""
    if config.min_epochs is None or config.schedule != "bold-driver":
        return ""
    if len(epochs) < max(config.min_epochs, 1):
        return ""
    training = _training(config, epochs[-1])
    if training < config.stop_train_error:
        return f"the training {config.training_measure} fell below {config.stop_train_error:g}"
    validation = [_validation(config, epoch) for epoch in epochs]
    back = config.stop_validation_epochs
    if len(epochs) > back and validation[-1] > validation[-1 - back]:
        return f"the validation {config.validation_measure} rose over {back} epochs"
    if len(epochs) > 1 and abs(validation[-1] - validation[-2]) < config.stop_validation_change:
        return (
            f"the validation {config.validation_measure} changed by less than "
            f"{config.stop_validation_change:g}"
        )
    return ""


def verdict(config: TrainConfig, epochs: Sequence[Epoch]) -> Result | None:
    """The result of a run, from its epochs alone; None while it has to go on."""
    if not epochs:
        return None
    last, rule, reason = epochs[-1], "", ""
    if not math.isfinite(last.train_loss):
        reason = f"the training loss was not finite in epoch {last.epoch}"
    else:
        rule = stopping_rule(config, epochs) if last.epoch < config.epochs else ""
        if not rule and last.epoch < config.epochs:
            return None
        if last.validation_error > config.diverged_above:
            reason = f"the validation error ended at {last.validation_error:.2f}"
    return Result(
        status="diverged" if reason else "finished",
        reason=reason,
        epochs=last.epoch,
        test_error=last.test_error,
        validation_error=last.validation_error,
        seconds=sum(epoch.seconds for epoch in epochs),
        stopped=rule,
    )


def _training(config: TrainConfig, epoch: Epoch) -> float:
    return epoch.train_loss if config.training_measure == "loss" else epoch.train_error


def _validation(config: TrainConfig, epoch: Epoch) -> float:
    if config.validation_measure == "error":
        return epoch.validation_error
    return math.nan if epoch.validation_loss is None else epoch.validation_loss
