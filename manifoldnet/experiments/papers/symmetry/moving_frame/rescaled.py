"""Training from rescaled starts as a command.

The cells are those of accuracy in the moving frame. Every cell is trained at every rate of a grid,
from the usual start and from the same start moved by a random element of the whole scaling group,
which leaves the function of the network as it is. A grid is widened until its best rate is inside.
Budgets are small: a run shows whether training works, not how well it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    Cell,
    RescaledConfig,
    first_grid,
    grid,
    widened,
)
from manifoldnet.experiments.study import Options, Steps, Study, Sweep

EXPERIMENT = RescaledConfig.experiment
SCHEMA = "papers.symmetry.moving_frame.config:RESCALED"
REPORT = "papers.symmetry.moving_frame.rescaled_report:write_rescaled_report"


@dataclass(frozen=True, kw_only=True)
class RescaledOptions(Options):
    """Options of training from rescaled starts.

    Attributes:
        spread: largest |ln factor| of a generator; 3 for factors from 0.05 to 20.
        epochs: of every run; the rate falls as far as in the paper's 60.
        train_size: training images.
    """

    out: Path = Path("runs") / "rescaled-start"
    spread: float = field(3.0, above=0)
    epochs: int = field(5, at_least=1)
    train_size: int = field(10_000, at_least=1)


def runs(
    grids: Mapping[float, Mapping[Cell, Sequence[int]]], options: RescaledOptions
) -> list[RescaledConfig]:
    """Every cell at every rate 10^(k/2) of its grid, which depends on the spread, seed by seed."""
    found = [
        RescaledConfig(**vars(replace(each, train_size=options.train_size)), spread=spread)
        for spread, exponents in grids.items()
        for each in grid(exponents, options.epochs, options.repetitions)
    ]
    return sorted(found, key=lambda each: each.seed)


def _steps(options: RescaledOptions) -> Steps:
    grids, last = dict.fromkeys((0.0, options.spread), first_grid()), None
    while grids != last:
        purpose = {"purpose": "starts"}
        records = yield Sweep(
            options.out, runs(grids, options), "both starts", purpose, checkpoints=False
        )
        own = {s: [r for r in records if r.config.spread == s] for s in grids}
        last, grids = grids, {s: widened(each, own[s]) for s, each in grids.items()}


def _experiment() -> Any:
    from manifoldnet.experiments.papers.symmetry.moving_frame.rescaled_run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    "rescaled-start": Study(
        "Arch1 and Arch2 trained from the usual start, and from the same moved by its symmetries",
        *(_experiment, _steps, RescaledOptions),
    )
}
