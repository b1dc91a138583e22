"""The experiments of the scale-invariant paper as commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.papers.scale_invariant import config
from manifoldnet.experiments.papers.scale_invariant.config import METHODS, StageConfig
from manifoldnet.experiments.study import Options, Steps, Study, Sweep, repeated, widened

EXPERIMENT = StageConfig.experiment
SCHEMA = "papers.scale_invariant.records:SCALE_INVARIANT"
REPORT = "papers.scale_invariant.report:write_stage_report"


@dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    """Options of all experiments of the paper; each has a folder of its own in `out`.

    Attributes:
        out: records go into a folder in this one.
        start: distribution of the first weights; "normal" is that of the first records.
    """

    out: Path = Path("runs") / "scale-invariant"
    start: str = field("torch7", choices=config.STARTS)


@dataclass(frozen=True, kw_only=True)
class PresetOptions(StageOptions):
    """Options of experiments that are run in two sizes.

    Attributes:
        preset: how many images, epochs, rates and dimensions.
    """

    preset: str = field("cpu", choices=config.PRESETS)


@dataclass(frozen=True, kw_only=True)
class NoiseOptions(PresetOptions):
    """Options of corrupted data.

    Attributes:
        repetitions: runs of the chosen rates.
    """

    repetitions: int = field(3, at_least=1)


@dataclass(frozen=True, kw_only=True)
class SizeOptions(StageOptions):
    """Options of kernels that start smaller or larger: MNIST, the smaller network.

    Attributes:
        repetitions: runs of the chosen rates.
        dimension: m of the rescaled stage.
        epochs: of the runs of the chosen rates.
        train_size: training images of these.
    """

    repetitions: int = field(3, at_least=1)
    dimension: int = field(128, at_least=10)
    epochs: int = 6
    train_size: int = 5000


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(StageOptions):
    """Options of the comparison of stages.

    Attributes:
        dataset: data set of the paper.
        architecture: network of the paper for these data.
        methods: classification stages.
        epochs: of the comparison.
        train_size: training images of the comparison; by default all.
        choice_size: training images of the short runs; by default few.
        choice_epochs: epochs of the short runs; by default few.
    """

    repetitions: int = field(3, at_least=1)
    dataset: str = field("mnist", choices=("mnist", "cifar10", "imagenet10"))
    architecture: str = field("smaller", choices=("smaller", "larger"))
    methods: tuple[str, ...] = field(("rescaled", "logistic"), choices=METHODS)
    epochs: int = config.COMPARED_EPOCHS
    train_size: int | None = None
    choice_size: int | None = None
    choice_epochs: int | None = None


def _sweep(
    options: StageOptions, name: str, runs: Sequence[StageConfig], title: str, **purpose: str
) -> Sweep:
    """The runs at the start of the options, in a folder of that start."""
    started = [replace(run, start=options.start) for run in runs]
    return Sweep(_folder(options, name), started, title, purpose)


def _folder(options: StageOptions, name: str) -> Path:
    return options.out / (name if options.start == "normal" else f"{name}-{options.start}")


def _figure(number: int) -> Callable[[PresetOptions], Steps]:
    def steps(options: PresetOptions) -> Steps:
        runs = repeated(config.figure(number, options.preset), options.repetitions)
        name, title = f"figure{number}", f"Figure {number}"
        yield _sweep(options, name, runs, title, purpose="grid", figure=str(number))

    return steps


def _stages(options: ComparisonOptions) -> Steps:
    large = "imagenet-" if options.dataset == "imagenet10" else ""
    base = StageConfig(
        dataset=options.dataset,
        architecture=large + options.architecture,
        epochs=options.epochs,
        train_size=options.train_size,
    )
    repeated([], options.repetitions)  # complains before any run
    length = options.choice_size, options.choice_epochs
    short = config.choice(base, options.methods, *length)
    choice, name = config.folder_names(base, *length)
    from manifoldnet.experiments.papers.scale_invariant.records import (
        choices,
        chosen,
        edge_label,
        finite_choice,
        frame,
    )

    def sweep(runs: Sequence[StageConfig]) -> Sweep:
        return _sweep(options, choice, runs, "short runs", purpose="choice")

    def more(records: Any) -> list[StageConfig]:
        found = frame(records)
        return [
            one.of(short[0], method)
            for method, pick in chosen(records, options.methods).items()
            for one in config.beyond(choices(found, method), pick)
        ]

    records = yield from widened(sweep, short, more)
    picked, found = chosen(records, options.methods), frame(records)
    for method, pick in picked.items():
        yield f"{method}: {edge_label(found, method, pick)}"
    by = _folder(options, choice).name

    def compare(runs: Sequence[StageConfig]) -> Sweep:
        return _sweep(options, name, runs, "the comparison", purpose="comparison", chosen_by=by)

    def lower(records: Any) -> list[StageConfig]:
        runs, again = frame(records), {}
        for method, pick in picked.items():
            choice = finite_choice(found, runs, method, pick)
            if choice and choice not in choices(runs, method):
                again[method] = choice
        return config.comparison(again, base, options.repetitions)

    runs = config.comparison(picked, base, options.repetitions)
    long = frame((yield from widened(compare, runs, lower, times=len(found))))
    for method, pick in picked.items():
        left = finite_choice(found, long, method, pick)
        if left != pick:
            yield f"{method}: runs diverged at {pick}, so {left or 'no rate'} counts"


def _noise(options: NoiseOptions) -> Steps:
    runs = config.robustness(options.preset)
    records = yield _sweep(options, "label-noise", runs, "corrupted data", purpose="label noise")
    from manifoldnet.experiments.papers.scale_invariant.records import best_of_each

    again = best_of_each(records, options.repetitions, "wrong_labels", "outliers")
    yield _sweep(options, "label-noise", again, "chosen rates", purpose="label noise")


def _start_sizes(options: SizeOptions) -> Steps:
    runs = config.start_sizes(options.dimension)
    name, purpose = "choice-start-sizes", "choice of start sizes"
    records = yield _sweep(options, name, runs, "short runs", purpose=purpose)
    from manifoldnet.experiments.papers.scale_invariant.records import best_of_each

    again = [
        replace(run, epochs=options.epochs, train_size=options.train_size, validation_size=0)
        for run in best_of_each(records, options.repetitions, "start_size")
    ]
    yield _sweep(options, "start-sizes", again, "chosen rates", purpose="start sizes")


def _stability(options: StageOptions) -> Steps:
    runs = repeated(config.stability(), options.repetitions)
    yield _sweep(options, "stability", runs, "every learning rate", purpose="stability")


def _experiment() -> Any:
    from manifoldnet.experiments.papers.scale_invariant.run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    f"figure{number}": Study(figure.title, _experiment, _figure(number), PresetOptions)
    for number, figure in config.FIGURES.items()
} | {
    "stages": Study(
        "classification stages: rates chosen on short runs, then compared",
        *(_experiment, _stages, ComparisonOptions),
    ),
    "label-noise": Study(
        "MNIST with wrong labels and gross outliers", _experiment, _noise, NoiseOptions
    ),
    "start-sizes": Study(
        "MNIST with kernels that start smaller or larger, rates chosen for each size",
        *(_experiment, _start_sizes, SizeOptions),
    ),
    "stability": Study(
        "500 steps at rates from 1e-6 to 1e6", _experiment, _stability, StageOptions
    ),
}
