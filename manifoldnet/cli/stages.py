"""`manifoldnet reproduce` for the scale-invariant paper: its figures, `stages`, `label-noise`, …"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifoldnet.cli.sweeping import add_work, run_sweep
from manifoldnet.experiments.papers.scale_invariant import config as grids
from manifoldnet.experiments.papers.scale_invariant.config import METHODS, Choice, StageConfig

_FOLDER = Path("runs") / "scale-invariant"
_SEEDS = 3
_EPOCHS = 10


def add_stages(experiments: Any) -> None:
    """Adds the experiments of that paper, but for its Figure 3, which the other paper has too."""
    for number, figure in grids.FIGURES.items():
        if number != 3:
            command = _command(experiments, f"figure{number}", figure.title)
            command.set_defaults(run=reproduce_figure)
            _add_preset(command)
            add_work(command, 1, "runs of each rate and dimension")
    command = _command(
        experiments, "stages", "classification stages: rates chosen on short runs, then compared"
    )
    command.set_defaults(run=_reproduce_stages)
    command.add_argument(
        "--dataset",
        choices=("mnist", "cifar10", "imagenet10"),
        default="mnist",
        help="with the smaller network (%(default)s)",
    )
    command.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=["rescaled", "logistic"],
        metavar="NAME",
        help=f"of {', '.join(METHODS)} (rescaled logistic)",
    )
    command.add_argument(
        "--epochs", type=int, default=_EPOCHS, metavar="N", help="of the comparison (%(default)s)"
    )
    command.add_argument(
        "--train-size", type=int, metavar="N", help="training images of the comparison (all)"
    )
    command.add_argument(
        "--choice-size", type=int, metavar="N", help="training images of the short runs (few)"
    )
    command.add_argument(
        "--choice-epochs", type=int, metavar="N", help="epochs of the short runs (few)"
    )
    add_work(command, _SEEDS, "runs of each method")
    command = _command(experiments, "label-noise", "MNIST with wrong labels and gross outliers")
    command.set_defaults(run=_reproduce_noise)
    _add_preset(command)
    add_work(command, _SEEDS, "runs of the chosen rates, for no and for 40 %% wrong labels")
    command = _command(experiments, "stability", "500 steps at rates from 1e-6 to 1e6")
    command.set_defaults(run=_reproduce_stability)
    add_work(command, 1, "runs of each rate")


def reproduce_figure(arguments: argparse.Namespace) -> None:
    """Runs the grid of one of the figures."""
    number = int(arguments.experiment.removeprefix("figure"))
    runs = grids.repeated(grids.figure(number, arguments.preset), arguments.repetitions)
    _run(arguments, f"figure{number}", runs, f"Figure {number}")


def _reproduce_stages(arguments: argparse.Namespace) -> None:
    architecture = "imagenet-smaller" if arguments.dataset == "imagenet10" else "smaller"
    length = {"train_size": arguments.choice_size, "epochs": arguments.choice_epochs}
    short = grids.choice(arguments.dataset, architecture, arguments.methods, **length)
    _comparison(arguments, architecture, {})  # that all of it can be run is seen before any of it
    choice, comparison = grids.folder_names(
        arguments.dataset, arguments.train_size, *length.values()
    )
    records = _run(arguments, choice, short, "short runs")
    from manifoldnet.experiments.papers.scale_invariant.records import chosen, edge_label, frame

    picked, found = chosen(records, arguments.methods), frame(records)
    for method, choice_ in picked.items():
        print(f"{method}: {edge_label(found, method, choice_)}")
    runs = _comparison(arguments, architecture, picked)
    _run(arguments, comparison, runs, "the comparison")


def _comparison(
    arguments: argparse.Namespace, architecture: str, picked: Mapping[str, Choice]
) -> list[StageConfig]:
    sizes = arguments.epochs, arguments.repetitions, arguments.train_size
    return grids.comparison(picked, arguments.dataset, architecture, *sizes)


def _reproduce_noise(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.papers.scale_invariant.records import robustness_again

    runs = grids.robustness(arguments.preset)
    again = grids.repeated(runs[:1], arguments.repetitions)  # at least one, before any of it is run
    records = _run(arguments, "label-noise", runs, "corrupted data")
    again = robustness_again(records, arguments.repetitions)
    _run(arguments, "label-noise", again, "chosen rates")


def _reproduce_stability(arguments: argparse.Namespace) -> None:
    runs = grids.repeated(grids.stability(), arguments.repetitions)
    _run(arguments, "stability", runs, "every learning rate")


def _run(arguments: argparse.Namespace, name: str, runs: Any, what: str) -> Any:
    from manifoldnet.experiments.papers.scale_invariant.run import EXPERIMENT

    folder = (arguments.out or _FOLDER) / name
    any_field = list(runs[0].to_dict())
    return run_sweep(arguments, folder, EXPERIMENT, runs, any_field, what, checkpoints=True)


def _command(experiments: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = experiments.add_parser(
        name,
        help=f"scale-invariant paper: {summary}",
        description=f"Scale-invariant paper. {summary}.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"records go into a folder in this one ({_FOLDER})",
    )
    return command


def _add_preset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset",
        choices=list(grids.PRESETS),
        default="cpu",
        help="how many images, epochs, rates and dimensions (%(default)s)",
    )
