"""The cells of Table 2 for AdamW and for Muon, in three kinds of coordinates, as a command."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    TABLE,
    TableCell,
    TableConfig,
    table_runs,
)
from manifoldnet.experiments.study import Options, Steps, Study, Sweep

EXPERIMENT = TableConfig.experiment
SCHEMA = "papers.symmetry.moving_frame.config:TABLE_SCHEMA"
REPORT = "papers.symmetry.moving_frame.table_report:write_table_report"


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """Options of the cells of Table 2 for other optimizers.

    Attributes:
        repetitions: runs of each cell, with different seeds.
        cells: these cells only; patterns such as 'arch1-2-adamw-*' work.
    """

    repetitions: int = field(5, at_least=1)
    out: Path = Path("runs") / "table2-optimizers"
    cells: tuple[str, ...] = ()


def _chosen(patterns: tuple[str, ...]) -> list[TableCell]:
    names = {"-".join(map(str, cell)): cell for cell in TABLE}
    found = {pattern: [n for n in names if fnmatchcase(n, pattern)] for pattern in patterns}
    for pattern, fitting in found.items():
        if not fitting:
            raise ConfigError(f"there is no cell {pattern!r}; there are {', '.join(names)}")
    return [
        cell for n, cell in names.items() if not patterns or any(n in f for f in found.values())
    ]


def _steps(options: TableOptions) -> Steps:
    cells = _chosen(options.cells)
    yield Sweep(
        options.out,
        table_runs(cells, options.repetitions),
        f"{len(cells)} cells",
        purpose={"purpose": "cells"},
        axes=(*TableCell._fields, "seed"),
        checkpoints=False,
    )


def _experiment() -> Any:
    from manifoldnet.experiments.papers.symmetry.moving_frame.run import TABLE

    return TABLE


STUDIES: dict[str, Study] = {
    "table2-optimizers": Study(
        "the 24 cells of Table 2 for AdamW and for Muon: plain, in the scaled metric's frame, and "
        "in the moving frame",
        *(_experiment, _steps, TableOptions),
    )
}
