"""Which updates train a network in the same way from w and from g·w, the same network rescaled?

    one start, one order of minibatches, 200 steps; for each update, from w and from g·w
      -> trajectory_invariance.csv     both losses at every step
      -> trajectory_invariance.png     both curves: one on the other, or not

    python -m manifoldnet.experiments.papers.symmetry.invariance --out docs/results

The setting is that of the symmetry paper [badrinarayanan2015symmetry]: Arch1 and Arch2 with two
hidden layers of 64 filters, unit-norm start, minibatches of 100, the loss summed over them; here on
scikit-learn's digits and in float64, so that what is equal up to rounding can be told from what is
not. Batch normalization's ε is taken out: filters that are scaled down to 1e-3 have variances of
its size.

The scalings are random elements of a group, each generator with a factor between 1e-3 and 1e3:

    paper            the network's own group (`models`): (1)-(2) for Arch1, (3) for Arch2
    between-layers   rows of W1 against columns of W2 in Arch1, discovered, which no metric on rows
                     alone is invariant under: what the scaled metric does not promise
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import symmetry
from manifoldnet.experiments import sources
from manifoldnet.experiments.data import Dataset, seeded_generator, split
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.papers.symmetry import networks as models
from manifoldnet.experiments.papers.symmetry.invariance_report import Pair, draw, summary, write_csv
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.status import StatusLine
from manifoldnet.experiments.training import limited_threads
from manifoldnet.optim.growth import NormGrowthWarning, ZeroSliceWarning
from manifoldnet.symmetry import ScalingElement, ScalingGroup, invariance_error
from manifoldnet.symmetry.evaluation import Batch

COMPARED = ("sm", "sm-geodesic", "b-sgd", "adamw")
"""What is compared: updates of `manifoldnet.experiments.papers.updates`, and torch's AdamW."""

_LARGEST_FACTOR = 1e3
_BATCH = 100


@dataclass(frozen=True)
class Setting:
    """One network under one group.

    Attributes:
        architecture: "arch1" or "arch2".
        symmetry: "paper" or "between-layers".
        lr: learning rate of all updates but AdamW, whose own default is used.
    """

    architecture: str
    symmetry: str
    lr: float


SETTINGS = (
    Setting("arch1", "paper", 1e-3),
    Setting("arch2", "paper", 1e-2),
    Setting("arch1", "between-layers", 1e-3),
)
"""What is run, with the rates that the two networks train well with (one of the paper's each)."""


def trajectories(
    data: Dataset,
    *,
    steps: int = 200,
    features: int = 64,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Pair]:
    """Trains every pair: all updates in all settings.

    Args:
        data: images; the training images are used.
        steps: of each run; a run ends before if its loss is not finite.
        features: filters per hidden layer.
        seed: decides start, order of the images and scalings.
        settings: which networks and groups.
        on_progress: called with (what is done, how many before it, of how many).
    """
    result = []
    batches = _batches(data, seed)
    for i, setting in enumerate(settings):
        network = models.build(
            setting.architecture,
            data.inputs,
            len(data.classes),
            depth=2,
            features=features,
            generator=seeded_generator(seed, "start"),
        ).double()
        element = _group(network, setting, seed).sample(
            generator=seeded_generator(seed, "scaling"), spread=log(_LARGEST_FACTOR)
        )
        for j, update in enumerate(COMPARED):
            what = f"{setting.architecture}, {setting.symmetry}, {update}"
            if on_progress is not None:
                on_progress(what, i * len(COMPARED) + j, len(settings) * len(COMPARED))
            result.append(_pair(network, element, setting, update, batches, steps))
    return result


def _pair(
    network: nn.Module,
    element: ScalingElement,
    setting: Setting,
    update: str,
    batches: Sequence[Batch],
    steps: int,
) -> Pair:
    model = copy.deepcopy(network)
    if update == "adamw":
        make = _adamw
    else:
        make = partial(_riemannian_sgd, lr=setting.lr)
        rule = UPDATES[update].rule
        if rule is not None:
            declare = getattr(mn.rules, rule)(classifier="head", **UPDATES[update].options)
            mn.declare_all(model, declare)
    losses = []
    with symmetry.without_eps(model), limited_threads(1), warnings.catch_warnings():
        # A run that diverges is one of the results.
        warnings.simplefilter("ignore", NormGrowthWarning)
        warnings.simplefilter("ignore", ZeroSliceWarning)
        for start in (model, symmetry.reparameterize(model, element)):
            run = invariance_error.run(start, _loss, batches, make, steps=steps)
            losses.append(run.losses)
    return Pair(setting.architecture, setting.symmetry, update, *losses)


def _riemannian_sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return mn.RiemannianSGD(model.named_parameters(), lr=lr)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(scores, labels, reduction="sum")


def _group(network: models.Arch1 | models.Arch2, setting: Setting, seed: int) -> ScalingGroup:
    if setting.symmetry == "paper":
        return network.symmetries()
    # Looked for on noise: a pixel that is black in all images would be a symmetry of its own.
    source = seeded_generator(seed, "noise")
    inputs = network.get_parameter("hidden.0.weight").shape[1]
    noise = torch.randn(2 * _BATCH, inputs, generator=source)
    labels = torch.randint(network.head.out_features, (len(noise),), generator=source)
    group = symmetry.discover(network, _loss, [(noise, labels)], seed=seed)
    return group.subgroup(symmetry.rule(group).uncovered)


def _batches(data: Dataset, seed: int) -> list[Batch]:
    """Whole minibatches of the training images, in one order."""
    images = split(data, seed).train
    order = torch.randperm(len(images), generator=seeded_generator(seed, "order"))
    return [
        (images.vectors(rows).double(), images.labels[rows])
        for rows in order.split(_BATCH)
        if len(rows) == _BATCH
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment and writes both files.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit code: 2 if something in the request is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m manifoldnet.experiments.papers.symmetry.invariance",
        description="Train networks from their weights and from rescaled ones, and compare.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("."), metavar="DIR", help="where the files go")
    add("--steps", type=int, default=200, metavar="N", help="of each run (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (%(default)s)")
    add("--quiet", action="store_true", help="no progress line")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; at least one step is needed")
    table = arguments.out / "trajectory_invariance.csv"
    picture = arguments.out / "trajectory_invariance.png"
    try:
        with StatusLine(enabled=not arguments.quiet) as status:
            pairs = trajectories(
                sources.load("digits"),
                steps=arguments.steps,
                seed=arguments.seed,
                on_progress=status,
            )
        write_csv(pairs, table)
        draw(pairs, picture)
    except ExperimentError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(f"{summary(pairs)}\nlosses: {table}\npicture: {picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
