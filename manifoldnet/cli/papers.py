"""`manifoldnet reproduce`, which runs the papers' experiments, and `report`, which reads them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from manifoldnet.cli.stages import add_stages, reproduce_figure
from manifoldnet.cli.sweeping import add_work, run_sweep
from manifoldnet.experiments.errors import ConfigError, ExperimentError
from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.experiments.papers.segnet.config import PRESETS, RATES, SegmentationConfig
from manifoldnet.experiments.papers.segnet.config import configurations as scene_configurations
from manifoldnet.experiments.papers.symmetry.cells import (
    AXES,
    EXPERIMENTS,
    GEODESIC,
    REPETITIONS,
    configurations,
    named,
)

_TABLE2_FOLDER = Path("runs") / "symmetry-paper"
_SEEDS = 3


def add_papers(commands: Any) -> None:
    """Adds the two commands."""
    summary = "run the papers' experiments, or what is missing of them"
    command = commands.add_parser(
        "reproduce",
        help=summary,
        description=f"{summary.capitalize()}. Stopped in any way, the same command goes on.",
        allow_abbrev=False,
    )
    experiments = command.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, summary in (
        ("table2", "symmetry paper: Arch1 and Arch2 on MNIST, 24 cells"),
        ("figure3", "symmetry paper: the six cells whose trajectories are drawn"),
    ):
        _add_cells(experiments, name, summary)
    _add_segnet(experiments)
    add_stages(experiments)
    _add_report(commands)


def _add_cells(experiments: Any, name: str, summary: str) -> None:
    names = "\n".join(f"  {cell.name}" for cell in (*EXPERIMENTS[name], *GEODESIC))
    command = experiments.add_parser(
        name,
        help=summary,
        description=summary.capitalize() + ".",
        epilog=f"cells (the last {len(GEODESIC)}, not the paper's, run when named):\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_reproduce_cells)
    if name == "figure3":
        command.add_argument(
            "--paper",
            choices=("symmetry", "scale-invariant"),
            default="symmetry",
            help="both papers have a Figure 3 (%(default)s)",
        )
        command.add_argument(
            "--preset", choices=("paper", "cpu"), help="of the scale-invariant one (cpu)"
        )
    command.add_argument(
        "--out",
        type=Path,
        default=_TABLE2_FOLDER,
        metavar="DIR",
        help="where records go; table2 and figure3 share them (%(default)s)",
    )
    command.add_argument(
        "--cells", nargs="+", metavar="NAME", help="these cells only; patterns work: 'arch1-*'"
    )
    add_work(command, None, f"runs of each cell ({REPETITIONS})")


def _add_segnet(experiments: Any) -> None:
    summary = "symmetry paper, Section 6: SegNet on road scenes"
    command = experiments.add_parser(
        "segnet", help=summary, description=summary + ".", allow_abbrev=False
    )
    command.set_defaults(run=_reproduce_segnet)
    command.add_argument(
        "--preset",
        choices=list(PRESETS),
        default="cpu",
        help="cpu: small pictures and a quarter of the filters, for a processor; "
        "paper: VGG-16's filters on 360x480 (%(default)s)",
    )
    command.add_argument(
        "--updates",
        nargs="+",
        choices=list(RATES),
        default=list(RATES),
        metavar="NAME",
        help=f"weight updates ({' '.join(RATES)})",
    )
    command.add_argument("--epochs", type=int, metavar="N", help="instead of the preset's 100")
    for name, what in (
        ("zoom", "windows up to X times smaller"),
        ("gamma", "pixels to powers up to X"),
    ):
        command.add_argument(
            f"--{name}", type=float, metavar="X", help=f"augmentation: {what}, at random (1: none)"
        )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where records go (runs/segnet-PRESET)"
    )
    add_work(command, _SEEDS, "runs of each update")


def _add_report(commands: Any) -> None:
    summary = "set the runs of `reproduce` beside the paper's numbers; trains nothing"
    command = commands.add_parser(
        "report", help=summary, description=summary.capitalize() + ".", allow_abbrev=False
    )
    command.set_defaults(run=_report)
    command.add_argument("directory", type=Path, metavar="DIR", help="where the records are")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (default: beside them)"
    )


def _reproduce_cells(arguments: argparse.Namespace) -> None:
    if getattr(arguments, "paper", "symmetry") == "scale-invariant":
        if arguments.cells:
            raise ConfigError("--cells are of the symmetry paper: leave them out")
        arguments.out = None if arguments.out == _TABLE2_FOLDER else arguments.out
        arguments.preset = arguments.preset or "cpu"
        arguments.repetitions = 1 if arguments.repetitions is None else arguments.repetitions
        reproduce_figure(arguments)
        return
    if getattr(arguments, "preset", None) is not None:
        raise ConfigError("--preset is of the scale-invariant paper: give --paper too")
    own = EXPERIMENTS[arguments.experiment]
    cells = named(arguments.cells, own) if arguments.cells else own
    repetitions = REPETITIONS if arguments.repetitions is None else arguments.repetitions
    runs = configurations(cells, repetitions)
    from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT

    run_sweep(arguments, arguments.out, EXPERIMENT, runs, AXES, f"{len(cells)} cells")


def _reproduce_segnet(arguments: argparse.Namespace) -> None:
    preset = PRESETS[arguments.preset]
    given = {name: getattr(arguments, name) for name in ("epochs", "zoom", "gamma")}
    preset = dataclasses.replace(preset, **{k: v for k, v in given.items() if v is not None})
    runs = scene_configurations(preset, arguments.updates, arguments.repetitions)
    folder = arguments.out or Path("runs") / f"segnet-{arguments.preset}"
    from manifoldnet.experiments.papers.segnet.run import EXPERIMENT, write_predictions

    axes, what = ("update", "lr", "seed"), f"{len(arguments.updates)} updates"
    records = run_sweep(arguments, folder, EXPERIMENT, runs, axes, what, checkpoints=True)
    try:
        picture = write_predictions(folder, records, arguments.data_dir)
        print(f"predictions: {picture}" if picture else "predictions: not drawn, no weights here")
    except ExperimentError as error:  # the runs are done all the same
        print(f"predictions: not drawn ({error})")


def _report(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.papers.scale_invariant.report import write_stage_report
    from manifoldnet.experiments.papers.segnet.report import write_scene_report
    from manifoldnet.experiments.papers.symmetry.report import write_paper_report
    from manifoldnet.experiments.store import experiment, sweeps

    kinds = {experiment(place) for place in sweeps(arguments.directory)}
    write: Any = write_paper_report
    if kinds == {SegmentationConfig.experiment}:
        write = write_scene_report
    elif kinds == {StageConfig.experiment}:
        write = write_stage_report
    report = write(arguments.directory, arguments.out)
    print(report.text)
    for path in report.files:
        print(path)
