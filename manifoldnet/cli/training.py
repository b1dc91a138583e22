"""`manifoldnet train`, `compare`, `bench-epoch`: one configuration, many updates, their speed."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifoldnet.cli.options import add_options, notice_of, values
from manifoldnet.experiments.configuration import Checked, field
from manifoldnet.experiments.errors import ConfigError, require
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.updates import UPDATES

# The fields of a configuration that are flags of all three commands.
_FIELDS = (
    *("dataset", "architecture", "depth", "features", "schedule", "lr", "momentum"),
    *("batch_size", "epochs", "train_size", "validation_size", "decay", "grow", "shrink"),
    "threads",
)


@dataclass(frozen=True, kw_only=True)
class _Files(Checked):
    """Files of `train` and `compare`.

    Attributes:
        data_dir: folder of Hugging Face data sets; by default $MANIFOLDNET_DATA, or else the hub.
        out: folder of records and reports; by default a folder below runs/.
        resume: go on from the last finished epoch, bit for bit.
        overwrite: train runs that are there again.
        quiet: no progress bars.
    """

    data_dir: Path | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise ConfigError(
                "a run is either gone on with or trained again: give --resume or --overwrite"
            )

    def how(self) -> dict[str, Any]:
        """The arguments of `train_all`."""
        return {
            "data_dir": self.data_dir,
            "resume": self.resume,
            "overwrite": self.overwrite,
            "progress": not self.quiet,
            "notice": notice_of(self),
        }


@dataclass(frozen=True, kw_only=True)
class _Comparison(Checked):
    """The runs of `compare`.

    Attributes:
        updates: see below.
        seeds: runs of each update.
        first_seed: the seeds count from here.
        csv: merge one row per run into this CSV file as well (one file per data set).
    """

    updates: tuple[str, ...] = ("b-sgd", "sm", "un")
    seeds: int = field(5, at_least=1)
    first_seed: int = 0
    csv: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Timing(Checked):
    """The runs of `bench-epoch`.

    Attributes:
        updates: see below.
        data_dir: folder of Hugging Face data sets; by default $MANIFOLDNET_DATA, or else the hub.
    """

    updates: tuple[str, ...] = tuple(UPDATES)
    data_dir: Path | None = None


def add_training(commands: Any) -> None:
    """Add the three commands."""
    updates = "\n".join(f"  {name:12} {update.summary}" for name, update in UPDATES.items())
    for name, summary, run, flags in (
        ("train", "train one configuration", _train, [_Files]),
        (
            "compare",
            "train several updates on several seeds, side by side",
            _compare,
            [_Comparison, _Files],
        ),
        ("bench-epoch", "time an epoch of each update against torch.optim.SGD", _bench, [_Timing]),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary.capitalize()}.",
            epilog=f"updates:\n{updates}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run, interrupted=_with_resume if _Files in flags else None)
        group = command.add_argument_group("what to train")
        add_options(group, TrainConfig, (*_FIELDS, *(["update", "seed"] if run is _train else [])))
        for cls in flags:
            add_options(command, cls)


def _with_resume(argv: list[str]) -> str:
    again = [a for a in argv if a not in ("--resume", "--overwrite")]
    command = shlex.join(["manifoldnet", *again, "--resume"])
    return f"; finished epochs are kept. Go on with: {command}"


def _train(arguments: argparse.Namespace) -> None:
    config, files = values(arguments, TrainConfig), values(arguments, _Files)
    # Below the same directory as a comparison's, which then takes the run over with --resume.
    output = files.out or _default_output(config) / config.update / f"seed-{config.seed}"
    from manifoldnet.experiments.checkpoint import record_path
    from manifoldnet.experiments.papers.symmetry.comparison import train_all

    (record,) = train_all([(config, output)], **files.how())
    if record.result is not None:
        ending = f" ({record.result.reason})" if record.result.diverged else ""
        print(f"{record.result.status}{ending}: test error {record.result.test_error:.4f}")
    print(f"record: {record_path(output)}")


def _compare(arguments: argparse.Namespace) -> None:
    require("the picture", "matplotlib")
    config, files = values(arguments, TrainConfig), values(arguments, _Files)
    chosen = values(arguments, _Comparison)
    output = files.out or _default_output(config)
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    from manifoldnet.experiments.papers.symmetry.comparison import compare, configurations
    from manifoldnet.experiments.papers.symmetry.tables import check_csv, merge_csv, write_report

    configs = configurations(config, chosen.updates, seeds)
    if chosen.csv is not None:
        check_csv(chosen.csv)
    records = compare(configs, output, **files.how())
    report = write_report(records, output)
    print(report.text)
    for what, path in zip(("table", "runs", "picture"), report.files, strict=True):
        print(f"{what}: {path}")
    if chosen.csv is not None:
        merge_csv(records, chosen.csv)
        print(f"merged into: {chosen.csv}")


def _bench(arguments: argparse.Namespace) -> None:
    config, chosen = values(arguments, TrainConfig), values(arguments, _Timing)
    from manifoldnet.experiments.papers.symmetry.comparison import configurations
    from manifoldnet.experiments.papers.symmetry.times import epoch_times, ratio_table

    configurations(config, chosen.updates, range(1))  # refuses unknown names
    print(ratio_table(epoch_times(config, chosen.updates, chosen.data_dir)))


def _default_output(config: TrainConfig) -> Path:
    parts = (config.architecture, config.depth, config.schedule, config.lr)
    return Path("runs") / "-".join([config.dataset.replace("/", "--"), *map(str, parts)])
