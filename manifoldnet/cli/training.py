"""`manifoldnet train`, `compare`, `bench-epoch`: one configuration, many updates, their speed."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from manifoldnet.cli.options import add_data_dir, notice_of
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES, SCHEDULES, TrainConfig
from manifoldnet.experiments.papers.updates import UPDATES

_DEFAULT_UPDATES = ("b-sgd", "sm", "un")
_DEFAULT_SEEDS = 5

# The fields of a configuration that are options of these commands: their help, and the placeholder
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


def add_training(commands: Any) -> None:
    """Adds the three commands."""
    updates = "\n".join(f"  {name:12} {update.summary}" for name, update in UPDATES.items())
    for name, summary, run in (
        ("train", "train one configuration", _train),
        ("compare", "train several updates on several seeds, side by side", _compare),
        ("bench-epoch", "time an epoch of each update against torch.optim.SGD", _bench),
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
        add_data_dir(command)
        if name != "bench-epoch":
            _add_files(command)


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments, update=arguments.update, seed=arguments.seed)
    # Below the same directory as a comparison's, which then takes the run over with --resume.
    output = arguments.out or _default_output(config) / config.update / f"seed-{config.seed}"
    from manifoldnet.experiments.checkpoint import record_path
    from manifoldnet.experiments.papers.symmetry.comparison import train_all

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
    from manifoldnet.experiments.papers.symmetry.comparison import compare, configurations
    from manifoldnet.experiments.papers.symmetry.tables import check_csv, merge_csv, write_report

    configs = configurations(config, arguments.updates, seeds)
    if arguments.csv is not None:
        check_csv(arguments.csv)
    records = compare(configs, output, **_how(arguments))
    report = write_report(records, output)
    print(report.text)
    for what, path in zip(("table", "runs", "picture"), report.files, strict=True):
        print(f"{what}: {path}")
    if arguments.csv is not None:
        merge_csv(records, arguments.csv)
        print(f"merged into: {arguments.csv}")


def _bench(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from manifoldnet.experiments.papers.symmetry.comparison import configurations
    from manifoldnet.experiments.papers.symmetry.times import epoch_times, ratio_table

    configurations(config, arguments.updates, range(1))  # refuses unknown names
    print(ratio_table(epoch_times(config, arguments.updates, arguments.data_dir)))


def _config(arguments: argparse.Namespace, **more: Any) -> TrainConfig:
    return TrainConfig(**{name: getattr(arguments, name) for name in _FIELDS}, **more)


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "data_dir": arguments.data_dir,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
        "progress": not arguments.quiet,
        "notice": notice_of(arguments),
    }


def _default_output(config: TrainConfig) -> Path:
    parts = (
        config.dataset.replace("/", "--"),
        config.architecture,
        config.depth,
        config.schedule,
        config.lr,
    )
    return Path("runs") / "-".join(map(str, parts))


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
