"""Made-up records of image classification."""

import dataclasses
import math

from manifoldnet.experiments import Epoch, Record, Result, TrainConfig
from manifoldnet.experiments.papers.symmetry.cells import PROTOCOL, configurations
from manifoldnet.experiments.records import Selection


def epoch(number=1, **fields):
    values = dict.fromkeys(("lr", "train_loss", "train_error", "validation_error"), 0.5)
    times = {"violation": 0.0, "train_seconds": 1.0, "seconds": 2.0}
    return Epoch(
        epoch=number, **values | {"test_error": 0.5, "validation_loss": 0.7} | times | fields
    )


def record(cell, seed, errors, diverged="", rate=0.001, seconds=(), protocol=PROTOCOL):
    """A run of a cell with these test errors; diverged in its "loss" or "validation" error."""
    config = configurations([cell], seed + 1, protocol)[-1]
    validation = 0.9 if diverged == "validation" else 0.4
    epochs = [
        epoch(n, lr=rate, validation_error=validation, test_error=error)
        for n, error in enumerate(errors, 1)
    ]
    if diverged == "loss":
        epochs[-1] = dataclasses.replace(epochs[-1], train_loss=math.nan)
    if seconds:
        epochs = [
            dataclasses.replace(each, train_seconds=s, seconds=1 + s)
            for each, s in zip(epochs, seconds, strict=True)
        ]
    return ended(config, epochs, "it did" if diverged else "", rate)


def run(update="un", seed=0, errors=(0.5, 0.1), diverged=False, **fields):
    """A run of another configuration, with these test errors."""
    config = TrainConfig(update=update, seed=seed, epochs=len(errors), **fields)
    epochs = [
        epoch(n, test_error=e, validation_error=0.25, train_seconds=1.5)
        for n, e in enumerate(errors, 1)
    ]
    return ended(config, epochs, "it did" if diverged else "")


def ended(config, epochs, reason, rate=None):
    result = Result(
        status="diverged" if reason else "finished",
        reason=reason,
        epochs=len(epochs),
        test_error=epochs[-1].test_error,
        validation_error=epochs[-1].validation_error,
        seconds=sum(each.seconds for each in epochs),
    )
    choice = rate and Selection(candidates=(rate,), errors=(0.1,), lr=rate, seconds=1.0)
    return Record(config, {"manifoldnet": "0"}, "00", tuple(epochs), result, choice)
