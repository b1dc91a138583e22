"""SegNet on road scenes (Section 6 of the symmetry paper) as a command."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.papers.segnet.config import (
    COMPARED,
    LIMITS,
    PRESETS,
    SegmentationConfig,
    as_chosen,
    best,
    first_rates,
    of_augmentations,
    of_rates,
    shortened,
    widened,
)
from manifoldnet.experiments.study import Options, Steps, Study, Sweep, repeated

EXPERIMENT = SegmentationConfig.experiment
SCHEMA = "papers.segnet.config:SEGMENTATION"
REPORT = "papers.segnet.report:write_scene_report"


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(Options):
    """Options of SegNet that decide the choice.

    Attributes:
        repetitions: runs of each configuration, with different seeds.
        updates: weight updates.
        epochs: instead of the preset's 100; the rate falls as far.
        held_out: sequence that the choice holds out of training, and judges by.
        choice_epochs: of the runs that choose; the rate falls as far as in all epochs.
    """

    updates: tuple[str, ...] = field(COMPARED, choices=COMPARED)
    epochs: int | None = field(None, at_least=1)
    held_out: str = field("0006R0", example="'0006R0'")
    choice_epochs: int = field(40, at_least=1)


@dataclass(frozen=True, kw_only=True)
class SegNetOptions(ChoiceOptions):
    """Options of SegNet.

    Attributes:
        preset: small pictures and a quarter of the filters, for a processor (cpu); or VGG-16's
            filters on 360x480 (paper).
    """

    repetitions: int = field(3, at_least=1)
    preset: str = field("cpu", choices=PRESETS)


@dataclass(frozen=True, kw_only=True)
class LimitsOptions(ChoiceOptions):
    """Options of what limits SegNet."""

    updates: tuple[str, ...] = field(("un",), choices=COMPARED)
    out: Path = Path("runs") / "segnet-cpu"


def _preset(options: ChoiceOptions, name: str) -> SegmentationConfig:
    preset = PRESETS[name]
    return preset if options.epochs is None else shortened(preset, options.epochs)


def _choice(
    options: ChoiceOptions, preset: SegmentationConfig, folder: Path
) -> Generator[Sweep | str, Any, list[SegmentationConfig]]:
    """The runs of a preset with the rate and the augmentation that are chosen for each update."""
    base = shortened(preset, min(options.choice_epochs, preset.epochs))
    base = replace(base, held_out=(options.held_out,))

    def chosen_from(runs: list[SegmentationConfig], title: str) -> Sweep:
        axes = ("update", "lr", "zoom", "gamma", "seed")
        return Sweep(folder / "choice", runs, title, {"purpose": "choice"}, axes)

    exponents, last = first_rates(options.updates), None
    while exponents != last:
        records = yield chosen_from(of_rates(base, exponents), "rates")
        last, exponents = exponents, widened(exponents, records)
    runs = of_augmentations([*best(records).values()])
    found = best((yield chosen_from(runs, "augmentations")))
    for update, run in found.items():
        yield f"{update}: rate {run.lr:g}, zoom {run.zoom:g}, gamma {run.gamma:g}"
    return [as_chosen(preset, run) for run in found.values()]


def _steps(options: SegNetOptions) -> Steps:
    folder = options.out or Path("runs") / f"segnet-{options.preset}"
    chosen = yield from _choice(options, _preset(options, options.preset), folder)
    records = yield Sweep(
        folder / "updates",
        repeated(chosen, options.repetitions),
        f"{len(options.updates)} updates",
        purpose={"purpose": "updates", "chosen_by": "choice"},
        axes=("update", "lr", "zoom", "gamma", "seed"),
    )
    from manifoldnet.experiments.papers.segnet.run import write_predictions

    try:
        picture = write_predictions(folder / "updates", records, options.data_dir, folder)
        yield f"predictions: {picture or 'not drawn, no weights here'}"
    except ExperimentError as error:  # the runs are done all the same
        yield f"predictions: not drawn ({error})"


def _limits(options: LimitsOptions) -> Steps:
    chosen = yield from _choice(options, _preset(options, "cpu"), options.out)
    runs = repeated(
        [replace(run, **change) for run in chosen for change in LIMITS.values()],
        options.repetitions,
    )
    for size in dict.fromkeys((run.height, run.width) for run in runs):  # a data set each
        own = [run for run in dict.fromkeys(runs) if (run.height, run.width) == size]
        name = "{}x{}".format(*size)
        purpose = {"purpose": "limits", "chosen_by": "choice"}
        yield Sweep(options.out / f"limits-{name}", own, f"limits, {name}", purpose)


def _experiment() -> Any:
    from manifoldnet.experiments.papers.segnet.run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    "segnet": Study("Section 6: SegNet on road scenes", _experiment, _steps, SegNetOptions),
    "segnet-limits": Study(
        "what limits SegNet: picture size, filters, sequences, at the preset cpu",
        *(_experiment, _limits, LimitsOptions),
    ),
}
