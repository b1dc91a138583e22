"""SegNet on road scenes (Section 6 of the symmetry paper) as a command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.papers.segnet.config import (
    PRESETS,
    RATES,
    SegmentationConfig,
    configurations,
)
from manifoldnet.experiments.study import Options, Steps, Study, Sweep

EXPERIMENT = SegmentationConfig.experiment
SCHEMA = "papers.segnet.config:SEGMENTATION"
REPORT = "papers.segnet.report:write_scene_report"


@dataclass(frozen=True, kw_only=True)
class SegNetOptions(Options):
    """Options of SegNet.

    Attributes:
        preset: small pictures and a quarter of the filters, for a processor (cpu); or VGG-16's
            filters on 360x480 (paper).
        updates: weight updates.
        epochs: instead of the preset's 100.
        zoom: augmentation by windows up to X times smaller, at random. 1 leaves all.
        gamma: augmentation by pixels to powers up to X, at random. 1 leaves all.
    """

    repetitions: int = field(3, at_least=1)
    preset: str = field("cpu", choices=PRESETS)
    updates: tuple[str, ...] = field(tuple(RATES), choices=RATES)
    epochs: int | None = None
    zoom: float | None = None
    gamma: float | None = None


def _steps(options: SegNetOptions) -> Steps:
    given = {name: getattr(options, name) for name in ("epochs", "zoom", "gamma")}
    preset = dataclasses.replace(
        PRESETS[options.preset], **{k: v for k, v in given.items() if v is not None}
    )
    folder = options.out or Path("runs") / f"segnet-{options.preset}"
    records = yield Sweep(
        folder,
        configurations(preset, options.updates, options.repetitions),
        f"{len(options.updates)} updates",
        purpose={"purpose": "updates"},
        axes=("update", "lr", "seed"),
    )
    from manifoldnet.experiments.papers.segnet.run import write_predictions

    try:
        picture = write_predictions(folder, records, options.data_dir)
        yield f"predictions: {picture or 'not drawn, no weights here'}"
    except ExperimentError as error:  # the runs are done all the same
        yield f"predictions: not drawn ({error})"


def _experiment() -> Any:
    from manifoldnet.experiments.papers.segnet.run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    "segnet": Study("Section 6: SegNet on road scenes", _experiment, _steps, SegNetOptions)
}
