"""The command line: `manifoldnet train`, `compare`, `bench`, `symmetries`, `reproduce`, `report`.

It parses arguments and prints; the work is in `manifoldnet.experiments`.

Exit codes: 0 done; 2 something in the request is wrong (one line on stderr says what); 130
interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from manifoldnet.experiments.config import ARCHITECTURES, SCHEDULES, TrainConfig
from manifoldnet.experiments.errors import ConfigError, ExperimentError
from manifoldnet.experiments.symmetry_paper.cells import (
    AXES,
    EXPERIMENTS,
    GEODESIC,
    REPETITIONS,
    TABLE2,
    named,
)
from manifoldnet.experiments.symmetry_paper.cells import configurations as cells_configurations
from manifoldnet.experiments.updates import UPDATES

_DEFAULT_UPDATES = ("b-sgd", "sm", "un")
_DEFAULT_SEEDS = 5
_REPRODUCED = Path("runs") / "symmetry-paper"

# The fields of a configuration that are options of both commands: their help, and the placeholder
# for their value.
_FIELDS = {
    "dataset": (
        "digits (embedded), mnist, cifar10, or any image set of the hub or the data folder",
        "NAME",
    ),
    "architecture": (" or ".join(ARCHITECTURES) + " (with batch normalization)", "NAME"),
    "depth": ("hidden layers", "N"),
    "features": ("filters per hidden layer", "N"),
    "schedule": (" or ".join(SCHEDULES), "NAME"),
    "lr": ("base learning rate, for the loss summed over a minibatch", "RATE"),
    "momentum": ("momentum", "FACTOR"),
    "batch_size": ("images per minibatch", "N"),
    "epochs": ("passes through the training images", "N"),
    "train_size": ("training images (default: what the validation images leave)", "N"),
    "validation_size": ("images held out for validation (default: a sixth)", "N"),
    "decay": ("factor per epoch of the exponential schedule", "FACTOR"),
    "grow": ("factor of the bold driver while the loss falls", "FACTOR"),
    "shrink": ("factor of the bold driver when it rises", "FACTOR"),
    "threads": ("torch threads", "N"),
}
_TYPES = {"N": int, "RATE": float, "FACTOR": float}

_SYMMETRIES = """the function takes no arguments and gives
  (model, loss_fn, batches)   or   (model, loss_fn, batches, make_optimizer)
with loss_fn(output, target), pairs (input, target) in batches, and make_optimizer(model), which
gives a column for the optimizer that you use. Each update respects a symmetry (step and scale is
scale and step), fixes it (a scaled weight is off its manifold), or ignores it (relative error)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ExperimentError as error:
        print(f"manifoldnet: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"manifoldnet: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        ending = ""
        if "repetitions" in arguments:
            ending = "; finished runs are kept. Go on with the same command"
        elif "resume" in arguments:
            again = [a for a in argv if a not in ("--resume", "--overwrite")]
            ending = "; finished epochs are kept. Go on with: " + shlex.join(
                ["manifoldnet", *again, "--resume"]
            )
        print(f"\nmanifoldnet: interrupted{ending}", file=sys.stderr)
        return 130
    return 0


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments, update=arguments.update, seed=arguments.seed)
    # Below the same directory as a comparison's, which then takes the run over with --resume.
    output = arguments.out or _default_output(config) / config.update / f"seed-{config.seed}"
    from manifoldnet.experiments.comparison import train_all
    from manifoldnet.experiments.rundir import record_path

    (record,) = train_all([(config, output)], **_how(arguments))
    if record.result is not None:
        ending = f" ({record.result.reason})" if record.result.diverged else ""
        print(f"{record.result.status}{ending}: test error {record.result.test_error:.4f}")
    print(f"record: {record_path(output)}")


def _compare(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    output = arguments.out or _default_output(config)
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds is {arguments.seeds}; at least one seed is needed")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    from manifoldnet.experiments.comparison import compare, configurations
    from manifoldnet.experiments.report import write_report
    from manifoldnet.experiments.tables import check_csv, merge_csv

    configs = configurations(config, arguments.updates, seeds)
    if arguments.csv is not None:
        check_csv(arguments.csv)
    records = compare(configs, output, **_how(arguments))
    report = write_report(records, output)
    print(report.text)
    print(f"table: {report.table}\nruns: {report.csv}\npicture: {report.picture}")
    if arguments.csv is not None:
        merge_csv(records, arguments.csv)
        print(f"merged into: {arguments.csv}")


def _bench(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from manifoldnet.experiments.comparison import configurations
    from manifoldnet.experiments.epoch_time import epoch_times, ratio_table

    configurations(config, arguments.updates, range(1))  # refuses unknown names
    print(ratio_table(epoch_times(config, arguments.updates, arguments.data_dir)))


def _symmetries(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments import symmetries
    from manifoldnet.experiments.status import StatusLine

    with StatusLine(enabled=not arguments.quiet) as status:
        found = symmetries.find(
            arguments.target,
            classifier=arguments.classifier,
            keep_eps=arguments.keep_eps,
            seed=arguments.seed,
            on_progress=status,
        )
    print(found)


def _reproduce(arguments: argparse.Namespace) -> None:
    cells = named(arguments.cells) if arguments.cells else EXPERIMENTS[arguments.experiment]
    runs = cells_configurations(cells, arguments.repetitions)
    from manifoldnet.experiments.sweep import sweep
    from manifoldnet.experiments.training import EXPERIMENT
    from manifoldnet.experiments.workers import cluster

    workers = nullcontext(None) if arguments.cluster is None else cluster(arguments.cluster)
    with workers as executor:
        records = sweep(
            EXPERIMENT,
            runs,
            arguments.out,
            axes=AXES,
            jobs=arguments.jobs,
            executor=executor,
            data_dir=arguments.data_dir,
            progress=not arguments.quiet,
            notice=_notice(arguments),
        )
    diverged = sum(record.result is not None and record.result.diverged for record in records)
    print(f"{len(records)} runs of {len(cells)} cells are in {arguments.out}, {diverged} diverged")
    print(shlex.join(["report:", "manifoldnet", "report", str(arguments.out)]))


def _report(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.symmetry_paper.report import write_paper_report

    report = write_paper_report(arguments.directory, arguments.out)
    print(report.text)
    for path in report.files:
        print(path)


def _config(arguments: argparse.Namespace, **more: Any) -> TrainConfig:
    return TrainConfig(**{name: getattr(arguments, name) for name in _FIELDS}, **more)


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "data_dir": arguments.data_dir,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
        "progress": not arguments.quiet,
        "notice": _notice(arguments),
    }


def _notice(arguments: argparse.Namespace) -> Callable[[str], None] | None:
    return None if arguments.quiet else lambda line: print(line, file=sys.stderr)


def _default_output(config: TrainConfig) -> Path:
    parts = (
        config.dataset.replace("/", "--"),
        config.architecture,
        config.depth,
        config.schedule,
        config.lr,
    )
    return Path("runs") / "-".join(map(str, parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manifoldnet",
        description="Train networks with weights on manifolds, and compare weight updates.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    updates = "\n".join(f"  {name:12} {update.summary}" for name, update in UPDATES.items())
    for name, summary, run in (
        ("train", "train one configuration", _train),
        ("compare", "train several updates on several seeds, side by side", _compare),
        ("bench", "time an epoch of each update against torch.optim.SGD", _bench),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=summary.capitalize() + ".",
            epilog=f"updates:\n{updates}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        _add_configuration(command)
        if name == "train":
            command.add_argument(
                "--update", default="b-sgd", metavar="NAME", help="see below (%(default)s)"
            )
            command.add_argument(
                "--seed", type=int, default=0, metavar="N", help="random seed (%(default)s)"
            )
        else:
            _add_updates(command, list(_DEFAULT_UPDATES) if name == "compare" else list(UPDATES))
        if name == "compare":
            _add_comparison(command)
        _add_data_dir(command)
        if name != "bench":
            _add_files(command)
    _add_symmetries(commands)
    _add_reproduce(commands)
    _add_report(commands)
    return parser


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


def _add_reproduce(commands: Any) -> None:
    summary = "run the experiments of the symmetry paper, or what is missing of them"
    names = "\n".join(f"  {cell.name}" for cell in (*TABLE2, *GEODESIC))
    command = commands.add_parser(
        "reproduce",
        help=summary,
        description=f"{summary.capitalize()}. Stopped in any way, the same command goes on.",
        epilog=f"cells (the last {len(GEODESIC)}, not the paper's, run when named):\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_reproduce)
    command.add_argument("experiment", choices=list(EXPERIMENTS), help="what to run")
    command.add_argument(
        "--out",
        type=Path,
        default=_REPRODUCED,
        metavar="DIR",
        help="where records go; both experiments share them (%(default)s)",
    )
    command.add_argument(
        "--repetitions",
        type=int,
        default=REPETITIONS,
        metavar="N",
        help="runs of each cell (%(default)s)",
    )
    workers = command.add_mutually_exclusive_group()
    workers.add_argument(
        "--jobs", type=int, metavar="N", help="worker processes (default: one a processor)"
    )
    workers.add_argument(
        "--cluster", metavar="ADDRESS", help="a Dask scheduler whose workers do it instead"
    )
    command.add_argument(
        "--cells", nargs="+", metavar="NAME", help="these cells only; patterns work: 'arch1-*'"
    )
    _add_data_dir(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_symmetries(commands: Any) -> None:
    summary = "find the scaling symmetries of a model, and which updates respect them"
    command = commands.add_parser(
        "symmetries",
        help=summary,
        description=summary.capitalize() + ".",
        epilog=_SYMMETRIES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_symmetries)
    command.add_argument(
        "target", metavar="module:factory", help="or file.py:factory; the function is called"
    )
    command.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME",
        help="the layer that classifies: where the updates of the paper treat it as such "
        "(may be given several times; default: they follow the symmetries)",
    )
    command.add_argument(
        "--keep-eps",
        action="store_true",
        help="leave ε in normalization layers while looking; it blurs their symmetries",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all random choices (%(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress line")


def _add_configuration(command: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    group = command.add_argument_group("what to train")
    for name, (text, metavar) in _FIELDS.items():
        default = defaults[name]
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=_TYPES.get(metavar, str),
            default=default,
            metavar=metavar,
            help=text if default is None else f"{text} ({default})",
        )


def _add_updates(command: argparse.ArgumentParser, default: list[str]) -> None:
    command.add_argument(
        "--updates",
        nargs="+",
        default=default,
        metavar="NAME",
        help=f"see below ({' '.join(default)})",
    )


def _add_comparison(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what to compare")
    group.add_argument(
        "--seeds",
        type=int,
        default=_DEFAULT_SEEDS,
        metavar="N",
        help="runs of each update (%(default)s)",
    )
    group.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="N",
        help="the seeds count from here (%(default)s)",
    )
    group.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="merge one row per run into this CSV file as well (one file per data set)",
    )


def _add_data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of Hugging Face data sets (default: $MANIFOLDNET_DATA, else the hub)",
    )


def _add_files(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("files")
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="where records and reports go (default: runs/...)"
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on from the last finished epoch, bit for bit"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="train runs that are there again"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars")


if __name__ == "__main__":
    sys.exit(main())
