"""The base learning rate of a run, chosen by short runs on a few of its training images.

Section 4 of [badrinarayanan2015symmetry]: every candidate trains for 50 epochs on 1,000 images, and
the one with the lowest error on 500 others is used for the run. What the paper leaves open is in
the fields ``lr_candidates`` and ``selection_…`` of `TrainConfig`. All candidates have the run's own
start, and see the images in the same order.

With the constant schedule, runs that differ in nothing but the schedule make the same choice. It is
made again all the same: a run then depends on nothing but its configuration, and the choice costs
about as much as four epochs of the run (2,000 steps, and 500 make an epoch).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from manifoldnet.experiments.data import Dataset, Images, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.run import Run, evaluate
from manifoldnet.experiments.records import Selection


def select(config: TrainConfig, data: Dataset, training: Images) -> Selection:
    """Chooses the learning rate of a run.

    Args:
        config: the run, whose `lr` is None.
        data: what it is trained on.
        training: the run's training images.

    Raises:
        ConfigError: when there are not enough training images (`parts`).
    """
    began = time.perf_counter()
    chosen_from, judged_by = parts(config, training)
    errors = tuple(
        _final_error(replace(config, lr=lr), data, chosen_from, judged_by)
        for lr in config.lr_candidates
    )
    return Selection(
        candidates=config.lr_candidates,
        errors=errors,
        lr=config.lr_candidates[errors.index(min(errors))],
        seconds=time.perf_counter() - began,
    )


def parts(config: TrainConfig, training: Images) -> tuple[Images, Images]:
    """The images to train on and those to judge by: two random parts of the training images.

    Raises:
        ConfigError: when there are not that many, or they leave a last minibatch of one.
    """
    train, judge = config.selection_train_size, config.selection_validation_size
    if train + judge > len(training):
        raise ConfigError(
            f"choosing the learning rate takes {train} and {judge} of the training images, of "
            f"which there are {len(training)}: lower selection_train_size or "
            "selection_validation_size, or give lr a number"
        )
    check_minibatches(config, train, "selection_train_size")
    order = torch.randperm(len(training), generator=seeded_generator(config.seed, "selection"))
    one, other = order[:train], order[train : train + judge]
    return (
        Images(training.pixels[one], training.labels[one], training.white),
        Images(training.pixels[other], training.labels[other], training.white),
    )


def check_minibatches(config: TrainConfig, images: int, remedy: str) -> None:
    """Raises ConfigError when the last minibatch of an epoch cannot be normalized over."""
    if config.architecture == "arch2" and images % config.batch_size == 1:
        raise ConfigError(
            f"{images} training images leave a last minibatch of one, over which "
            f"arch2 cannot normalize: change batch_size or {remedy}"
        )


def _final_error(config: TrainConfig, data: Dataset, training: Images, judge: Images) -> float:
    run = Run(config, data)
    for _ in range(config.selection_epochs):
        loss, _ = run.train_pass(training)
        if not math.isfinite(loss):
            return 1.0
        if config.selection_schedule == "own":
            run.move_schedule(loss)
    return evaluate(run.network, judge)[1]
