"""Training from weights w and from g·w, the same network rescaled: equal losses or not.

    one start, one order of minibatches, 200 steps; for each update, from w and from g·w
      -> trajectory_invariance.csv     both losses at every step
      -> trajectory_invariance-light.svg, trajectory_invariance-dark.svg
         both curves, one on the other if the update is invariant

    python -m manifoldnet.experiments.papers.symmetry.invariance --out docs/results

The setting is that of the symmetry paper [badrinarayanan2015symmetry]: Arch1 and Arch2 with two
hidden layers of 64 filters, unit-norm start, minibatches of 100, the loss summed over them; here on
scikit-learn's digits and in float64, which separates equality up to rounding from inequality.
Batch normalization's ε is taken out: filters that are scaled down to 1e-3 have variances of its
size.

The scalings are random elements of a group, each generator with a factor between 1e-3 and 1e3:

    paper            the network's own group (`networks`): (1)-(2) for Arch1, (3) for Arch2
    between-layers   rows of W1 against columns of W2 in Arch1, discovered; no metric on rows alone
                     is invariant under these, and the scaled metric is not
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import inf, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import symmetry
from manifoldnet.experiments.data import Dataset, load, seeded_generator, split
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.papers.symmetry import networks
from manifoldnet.experiments.papers.updates import declare, in_words
from manifoldnet.experiments.plotting import COLOURS, INK, MUTED, new_figure, style, write_svg_pair
from manifoldnet.experiments.progress import StatusLine
from manifoldnet.experiments.report import csv_text
from manifoldnet.experiments.training import limited_threads
from manifoldnet.optim import NormGrowthWarning, ZeroSliceWarning
from manifoldnet.symmetry import ScalingElement, ScalingGroup, invariance_error
from manifoldnet.symmetry.batches import Batch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARED = ("sm", "sm-geodesic", "b-sgd", "adamw")
"""The optimizers: updates of `manifoldnet.experiments.papers.updates`, and torch's AdamW."""

_LARGEST_FACTOR = 1e3
_loss = partial(cross_entropy, reduction="sum")
_BATCH = 100


@dataclass(frozen=True)
class Setting:
    """A network under a group; AdamW has its own default instead of the learning rate."""

    architecture: str
    symmetry: str
    lr: float
    heading: str


SETTINGS = (
    Setting(
        "arch1",
        "paper",
        1e-3,
        "Arch1, the paper's symmetry (1)–(2): W1 and pairs of filters of W2 × s, head ÷ s",
    ),
    Setting(
        "arch2", "paper", 1e-2, "Arch2, the paper's symmetry (3): each filter of W1 and W2 × s"
    ),
    Setting(
        "arch1",
        "between-layers",
        1e-3,
        "Arch1, a symmetry that the scaled metric does not cover: "
        "pairs of filters of W1 × s, columns of W2 ÷ s",
    ),
)

COLUMNS = ("architecture", "symmetry", "update", "step", "loss", "loss_scaled", "difference")

# Relative difference that rounding in float64 explains after hundreds of steps.
SAME = 1e-9


@dataclass(frozen=True)
class Pair:
    """Losses of one update from w, and from g·w (fewer if that run diverges), before each step."""

    setting: Setting
    update: str
    losses: tuple[float, ...]
    scaled: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """|difference| of both losses relative to the larger, by step; ∞ from divergence on."""
        return tuple(
            inf if not (isfinite(a) and isfinite(b)) else abs(a - b) / (max(abs(a), abs(b)) or 1)
            for a, b in zip_longest(self.losses, self.scaled, fillvalue=inf)
        )

    @property
    def difference(self) -> float:
        """The largest of the differences."""
        return max(self.differences)

    @property
    def quotient(self) -> float:
        """The largest quotient of both losses at one step, 1 or more."""
        both = zip(self.losses, self.scaled, strict=False)
        return max(max(a, b) / min(a, b) if min(a, b) > 0 else inf for a, b in both)

    @property
    def diverged(self) -> int | None:
        """The step at which the scaled run's loss is not finite; None if there is none."""
        return None if isfinite(self.scaled[-1]) else len(self.scaled) - 1


def trajectories(
    data: Dataset,
    *,
    steps: int = 200,
    features: int = 64,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Pair]:
    """Train every pair: all updates in all settings."""
    result = []
    batches = _batches(data, seed)
    for i, setting in enumerate(settings):
        network = networks.build(
            setting.architecture, data, depth=2, features=features, seed=seed
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
    if update != "adamw":
        declare(model, update)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if update == "adamw":
            return torch.optim.AdamW(model.parameters())
        return mn.RiemannianSGD(model.named_parameters(), lr=setting.lr)

    losses = []
    with symmetry.without_eps(model), limited_threads(1), warnings.catch_warnings():
        # A run that diverges is one of the results.
        warnings.simplefilter("ignore", NormGrowthWarning)
        warnings.simplefilter("ignore", ZeroSliceWarning)
        for start in (model, symmetry.reparameterize(model, element)):
            run = invariance_error.run(start, _loss, batches, make, steps=steps)
            losses.append(run.losses)
    return Pair(setting, update, *losses)


def _group(network: networks.Arch1 | networks.Arch2, setting: Setting, seed: int) -> ScalingGroup:
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


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """Write a row per pair and step; steps that a run did not reach are empty."""
    rows = []
    for pair in pairs:
        name = (pair.setting.architecture, pair.setting.symmetry, pair.update)
        steps = zip_longest(pair.losses, pair.scaled, pair.differences, fillvalue="")
        for step, (loss, scaled, difference) in enumerate(steps):
            row = (*name, step, loss, scaled, f"{difference:.2e}")
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    write_text(path, csv_text(COLUMNS, rows))


def summary(pairs: Sequence[Pair]) -> str:
    """A line per pair: the largest difference of the losses."""
    return "\n".join(
        f"{p.setting.architecture}  {p.setting.symmetry:14}  {p.update:11}  {_verdict(p)}"
        for p in pairs
    )


def _verdict(pair: Pair) -> str:
    if pair.diverged is not None:
        return f"rescaled: diverges at step {pair.diverged}"
    if pair.difference <= SAME:
        return f"same losses, to {pair.difference:.0e}"
    return f"up to {pair.quotient:.2g} times apart"


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """Draw the losses of all pairs: a row per setting, a panel per update.

    Args:
        pairs: of `trajectories`.
        path: of the SVGs for light pages and dark ones, without ``-light.svg`` and ``-dark.svg``.
    """
    settings = dict.fromkeys(pair.setting for pair in pairs)
    rows = {setting: [pair for pair in pairs if pair.setting == setting] for setting in settings}
    columns = max(map(len, rows.values()))
    figure = new_figure(2.4 * columns, 0.8 + 2.1 * len(rows))
    figure.suptitle(_headline(pairs), x=0.01, ha="left", fontsize=10.5, color=INK)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (setting, members) in zip(parts, rows.items(), strict=True):
        part.suptitle(setting.heading, x=0.01, ha="left", fontsize=10, color=MUTED)
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        # Runs that leap up leave the frame, to show the rest of them larger.
        losses = [x for pair in members for x in pair.losses if isfinite(x) and x > 0]
        scaled = [x for pair in members for x in pair.scaled if isfinite(x) and x > 0]
        bottom, top = 0.5 * min(losses + scaled, default=1), 30 * max(losses, default=1)
        for axes, pair in zip_longest(panels, members):
            if pair is None:
                axes.set_visible(False)
                continue
            _panel(axes, pair, highest=10 * top)
            if setting == list(rows)[-1]:
                axes.set_xlabel("step", fontsize=9, color=INK)
        panels[0].set_ylim(bottom, top)
        panels[0].set_yscale("log")
        panels[0].set_ylabel("loss of a minibatch", fontsize=9, color=INK)
    write_svg_pair(figure, path)


def _headline(pairs: Sequence[Pair]) -> str:
    """The result in words, and the legend."""
    papers = [pair for pair in pairs if pair.setting.symmetry == "paper"]
    apart = {pair.update for pair in papers if pair.difference > SAME}
    updates = dict.fromkeys(pair.update for pair in papers)
    keep = "; ".join(in_words(update) for update in updates if update not in apart)
    lose = "; ".join(in_words(update) for update in updates if update in apart)
    return (
        "Rescaled by the paper's symmetries, a network trains in the same way with: "
        f"{keep or 'no update'}\nbut not with: {lose or 'any other'}\n"
        "(wide line: from the original weights; thin line: rescaled by factors 1/1000 … 1000)"
    )


def _panel(axes: Axes, pair: Pair, highest: float) -> None:
    """Draw both curves of a pair, the scaled one on top, cut off above `highest`."""
    colour = COLOURS[pair.update]
    style(axes)
    axes.plot(pair.losses, color=colour, alpha=0.5, linewidth=5, solid_capstyle="butt")
    axes.plot([min(loss, highest) for loss in pair.scaled], color=INK, linewidth=0.9)
    axes.set_xlim(0, max(len(pair.losses) - 1, 1))
    axes.set_title(
        in_words(pair.update), loc="left", fontsize=10, fontweight="bold", color=colour, pad=3
    )
    same = pair.difference <= SAME
    font: dict[str, Any] = {"fontsize": 9, "fontweight": "bold" if same else "normal", "color": INK}
    axes.text(0.98, 0.97, _verdict(pair), font, transform=axes.transAxes, ha="right", va="top")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment and write both files."""
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
    picture = arguments.out / "trajectory_invariance"
    try:
        with StatusLine(enabled=not arguments.quiet) as status:
            pairs = trajectories(
                load("digits"), steps=arguments.steps, seed=arguments.seed, on_progress=status
            )
        write_csv(pairs, table)
        draw(pairs, picture)
    except ExperimentError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(
        f"{summary(pairs)}\nlosses: {table}\npictures: {picture}-light.svg, -dark.svg\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
