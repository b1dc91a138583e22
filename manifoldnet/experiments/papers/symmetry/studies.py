"""The experiments of the symmetry paper as commands: Table 2 and Figure 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.papers.symmetry.cells import (
    AXES,
    FIGURE3,
    GEODESIC,
    REPETITIONS,
    TABLE2,
    Cell,
    configurations,
    named,
)
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.study import Options, Steps, Study, Sweep

EXPERIMENT = TrainConfig.experiment
SCHEMA = "papers.symmetry.config:CLASSIFICATION"
REPORT = "papers.symmetry.report:write_paper_report"


@dataclass(frozen=True, kw_only=True)
class CellOptions(Options):
    """Options of Table 2 and Figure 3, whose records are in the same folder.

    Attributes:
        cells: these cells only; patterns such as 'arch1-*' work.
    """

    repetitions: int = field(REPETITIONS, at_least=1)
    out: Path = Path("runs") / "symmetry-paper"
    cells: tuple[str, ...] = ()


def _steps(cells: tuple[Cell, ...]) -> Callable[[CellOptions], Steps]:
    def steps(options: CellOptions) -> Steps:
        chosen = named(options.cells, cells) if options.cells else cells
        yield Sweep(
            options.out,
            configurations(chosen, options.repetitions),
            f"{len(chosen)} cells",
            purpose={"purpose": "cells"},
            axes=AXES,
            checkpoints=False,
        )

    return steps


def _experiment() -> Any:
    from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT

    return EXPERIMENT


def _study(summary: str, cells: tuple[Cell, ...]) -> Study:
    names = "\n".join(f"  {cell.name}" for cell in (*cells, *GEODESIC))
    epilog = f"cells (the last {len(GEODESIC)}, not the paper's, run when named):\n{names}"
    return Study(summary, _experiment, _steps(cells), CellOptions, epilog)


STUDIES: dict[str, Study] = {
    "table2": _study("Arch1 and Arch2 on MNIST, 24 cells", TABLE2),
    "figure3": _study("the six cells whose trajectories are drawn", FIGURE3),
}
