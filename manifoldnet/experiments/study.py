"""The protocol of an experiment of a paper: options, and steps that are sweeps.

    options -> steps -> Sweep -> records -> Sweep -> ... ; lines of text in between

The command line makes flags of the options, runs each sweep that the steps yield, and sends its
records back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from manifoldnet.experiments.configuration import Checked, Configuration, field
from manifoldnet.experiments.errors import ConfigError

C = TypeVar("C", bound=Configuration)

WIDENED = 4
"""Half-decades by which a grid of rates is widened at most."""


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The options that all experiments have; a study adds its own as fields of a subclass.

    Attributes:
        repetitions: runs of each configuration, with different seeds.
        out: folder of the records; by default a folder below runs/.
        jobs: worker processes; by default one for each processor.
        cluster: address of a Dask scheduler, whose workers do the work instead.
        device: "cpu", "cuda" or "cuda:1": where networks are trained. Sums on a GPU are rounded in
            another order, so records of different devices differ in their digits.
        data_dir: folder of Hugging Face data sets; by default $MANIFOLDNET_DATA, or else the hub.
        quiet: no progress bar.
    """

    repetitions: int = field(1, at_least=1)
    out: Path | None = None
    jobs: int | None = field(None, at_least=1)
    cluster: str | None = None
    device: str = field("cpu", pattern=r"cpu|cuda(:\d+)?", example="'cuda'")
    data_dir: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs is not None and self.cluster is not None:
            raise ConfigError("jobs are processes of this machine: give jobs or cluster, not both")
        if self.device != "cpu" and self.cluster is None:
            check_device(self.device)


def check_device(device: str) -> None:
    """Raise ConfigError unless this machine has the device."""
    import torch  # a second, which help texts can do without

    count = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(
            f"device is {device!r}, but torch {torch.__version__} sees "
            f"{count or 'no'} GPU{'s' if count != 1 else ''} here: leave device out to train on "
            "the processor"
        )


@dataclass(frozen=True)
class Sweep:
    """One sweep of an experiment."""

    folder: Path  # of the records
    configs: Sequence[Configuration]  # the runs
    title: str  # names the runs in the line at the end: ``"2 cells"``
    purpose: Mapping[str, str]  # `RunRecord.sweep` of the records
    axes: Sequence[str] | None = None  # fields in which its records may differ; None for any
    checkpoints: bool = True  # whether runs keep a checkpoint after every epoch


def repeated(runs: Sequence[C], repetitions: int) -> list[C]:
    """Runs with several seeds, seed by seed.

    Raises:
        ConfigError: when there would be none.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions is {repetitions}; at least one is needed")
    return [replace(run, seed=seed) for seed in range(repetitions) for run in runs]


Steps = Generator[Sweep | str, Any, None]
"""Yields sweeps, each of which it is sent the records of, and lines of text to print."""


def half_decade(rate: float, steps: int) -> float:
    """The rate so many half-decades on: 1, 3, 10, 30, …"""
    return float(f"{10 ** (round(2 * math.log10(rate) + steps) / 2):.0e}")


def beyond(tried: Collection[float], best: float) -> list[float]:
    """The rates a half-decade beyond the edges of a grid at which the best rate stands."""
    edges = ((max(tried), 1), (min(tried), -1))
    return [half_decade(edge, step) for edge, step in edges if best == edge]


def widened(
    sweep: Callable[[Sequence[C]], Sweep],
    runs: Sequence[C],
    more: Callable[[Any], Sequence[C]],
    times: int = WIDENED,
) -> Generator[Sweep, Any, Any]:
    """Steps that sweep a grid, and widen it until nothing is missing.

    Args:
        sweep: makes the sweep of all runs so far.
        runs: the first ones.
        more: the runs that are missing, given the records.
        times: how often the grid is widened at most.

    Returns:
        The records of the last sweep.
    """
    records = yield sweep(runs)
    for _ in range(times):
        missing = more(records)
        if not missing:
            break
        runs = [*runs, *missing]
        records = yield sweep(runs)
    return records


@dataclass(frozen=True)
class Study:
    """An experiment of a paper, as a command."""

    summary: str  # one line of help
    experiment: Callable[[], Any]  # imports and returns what is trained; called when a sweep begins
    steps: Callable[[Any], Steps]  # of options, all checked before the first one is yielded
    options: type[Options] = Options  # the class of the options
    epilog: str = ""  # further lines of help
