"""Accuracy in the moving frame as a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    CELLS,
    Cell,
    FrameConfig,
    best_rates,
    comparison,
    first_grid,
    grid,
    lowered,
    widened,
)
from manifoldnet.experiments.study import Options, Steps, Study, Sweep

EXPERIMENT = FrameConfig.experiment
SCHEMA = "papers.symmetry.moving_frame.config:FRAME"
REPORT = "papers.symmetry.moving_frame.report:write_frame_report"


@dataclass(frozen=True, kw_only=True)
class FrameOptions(Options):
    """Options of accuracy in the moving frame.

    Attributes:
        repetitions: runs of each cell at its rate.
        epochs: of these runs; the rate falls as far as in the paper's 60.
        choice_epochs: of the runs that choose rates.
        choice_seeds: runs of each rate.
    """

    repetitions: int = field(5, at_least=1)
    out: Path = Path("runs") / "moving-frame"
    epochs: int = field(30, at_least=1)
    choice_epochs: int = field(10, at_least=1)
    choice_seeds: int = field(1, at_least=1)


def _steps(options: FrameOptions) -> Steps:
    exponents, last = first_grid(), None
    while exponents != last:
        runs = grid(exponents, options.choice_epochs, options.choice_seeds)
        records = yield Sweep(
            options.out / "choice", runs, "rates", {"purpose": "choice"}, checkpoints=False
        )
        last, exponents = exponents, widened(exponents, records)
    rates: dict[Cell, list[float]] = {cell: [lr] for cell, lr in best_rates(records).items()}
    for cell, (lr,) in rates.items():
        yield f"{' '.join(cell)}: rate {lr:g}"
    tried = None
    while rates != tried:
        runs = comparison(rates, options.epochs, options.repetitions)
        purpose = {"purpose": "comparison", "chosen_by": "choice"}
        records = yield Sweep(
            options.out / "comparison", runs, f"{len(CELLS)} cells", purpose, checkpoints=False
        )
        tried, rates = rates, lowered(rates, records)


def _experiment() -> Any:
    from manifoldnet.experiments.papers.symmetry.moving_frame.run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    "moving-frame": Study(
        "Arch1 and Arch2 with SGD and AdamW, plain, in the scaled metric and in the moving frame",
        *(_experiment, _steps, FrameOptions),
    )
}
