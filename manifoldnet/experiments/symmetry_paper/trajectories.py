"""Figure 3: mean test error over the epochs, with bands of one deviation. Reads records only.

The runs that did not diverge are averaged. A run that a rule ended keeps its last network, so its
last error is carried on to the end of the longest run: else the mean would jump where runs leave
it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from manifoldnet.experiments.errors import MissingExtraError
from manifoldnet.experiments.files import replacing
from manifoldnet.experiments.plots import COLOURS, INK, MUTED, style
from manifoldnet.experiments.symmetry_paper.cells import FIGURE3, Cell
from manifoldnet.experiments.symmetry_paper.results import CellRuns, Table, csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("architecture", "update", "seed", "epoch", "test_error")


@dataclass(frozen=True)
class Trajectory:
    """One line of the figure; rates in [0, 1], one value per epoch.

    Attributes:
        cell: whose.
        mean: over the runs.
        deviation: standard deviation of a sample; 0 for a single run.
        runs: how many there are.
        shortest: epochs of the run that ended first.
    """

    cell: Cell
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    runs: int
    shortest: int


def trajectory(runs: CellRuns) -> Trajectory | None:
    """The mean trajectory of a cell; None when no run finished."""
    lines = [[epoch.test_error for epoch in run.epochs] for run in runs.finished]
    if not lines:
        return None
    length = max(map(len, lines))
    carried = [line + [line[-1]] * (length - len(line)) for line in lines]
    columns = list(zip(*carried, strict=True))
    return Trajectory(
        cell=runs.cell,
        mean=tuple(map(fmean, columns)),
        deviation=tuple(stdev(column) if len(column) > 1 else 0.0 for column in columns),
        runs=len(lines),
        shortest=min(map(len, lines)),
    )


def to_csv(table: Table) -> str:
    """One row per epoch of each run that did not diverge, under `COLUMNS`, as it was measured."""
    rows = [
        {
            "architecture": cell.architecture,
            "update": cell.update,
            "seed": run.config.seed,
            "epoch": epoch.epoch,
            "test_error": f"{epoch.test_error:.6g}",
        }
        for cell in FIGURE3
        if cell in table
        for run in table[cell].finished
        for epoch in run.epochs
    ]
    return csv_text(COLUMNS, rows)


def draw(table: Table) -> bytes:
    """The figure as a PNG: one panel for each of the two four-layer networks.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError("matplotlib", "the picture") from error
    panels = {
        "arch1": "Arch1, four layers, exponential decay",
        "arch2": "Arch2, four layers, bold driver",
    }
    lines = [t for cell in FIGURE3 if cell in table if (t := trajectory(table[cell]))]
    figure = Figure(figsize=(9.6, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    every_axes = figure.subplots(1, 2, sharey=True)
    for axes, (architecture, title) in zip(every_axes, panels.items(), strict=True):
        style(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        own = [line for line in lines if line.cell.architecture == architecture]
        for line in own:
            _draw_line(axes, line)
        if own:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        else:
            axes.text(0.5, 0.5, "no finished runs", transform=axes.transAxes, ha="center")
    every_axes[0].set_ylabel("test error (%)", color=INK)
    if lines:
        every_axes[0].set_ylim(*_limits(lines))
    figure.supxlabel(
        "lines: mean over runs; bands: one standard deviation; dashed: a run has ended",
        fontsize=8,
        color=MUTED,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def write(picture: bytes, path: Path) -> None:
    """Writes a picture in one atomic step."""
    with replacing(path) as stream:
        stream.write(picture)


def _draw_line(axes: Axes, line: Trajectory) -> None:
    epochs = range(1, len(line.mean) + 1)
    percent = [100 * value for value in line.mean]
    low = [100 * (m - d) for m, d in zip(line.mean, line.deviation, strict=True)]
    high = [100 * (m + d) for m, d in zip(line.mean, line.deviation, strict=True)]
    colour = COLOURS.get(line.cell.update, INK)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
    whole = line.shortest
    axes.plot(
        epochs[:whole],
        percent[:whole],
        color=colour,
        linewidth=1.8,
        marker="o" if whole == 1 else None,
        label=f"{line.cell.update} (n = {line.runs})",
    )
    axes.plot(
        epochs[whole - 1 :], percent[whole - 1 :], color=colour, linewidth=1.4, linestyle="--"
    )


def _limits(lines: Sequence[Trajectory]) -> tuple[float, float]:
    """From below the lowest band to the errors of the second epoch; those of the first dwarf it."""
    low = min(m - d for line in lines for m, d in zip(line.mean, line.deviation, strict=True))
    late = [line.mean[min(1, len(line.mean) - 1)] for line in lines]
    top = max(max(late), max(line.mean[-1] + line.deviation[-1] for line in lines))
    bottom = max(0.0, 100 * low - 0.2)
    return bottom, max(100 * top * 1.05, bottom + 0.1) if math.isfinite(top) else bottom + 1
