"""Figure 3: mean test error over the epochs, with bands of one deviation. Reads records only.

The runs that did not diverge are averaged. A run that a rule ended keeps its last network, so its
last error is carried on to the last epoch of its panel: else the mean would jump where runs leave
it, and one update's line would end before another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from manifoldnet.experiments.canvas import COLOURS, INK, MUTED, new_figure, png, scale, style
from manifoldnet.experiments.papers.symmetry.cells import FIGURE3, Cell
from manifoldnet.experiments.papers.symmetry.results import Table
from manifoldnet.experiments.spreadsheet import csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("architecture", "update", "seed", "epoch", "test_error")


@dataclass(frozen=True)
class Trajectory:
    """One line of the figure; rates in [0, 1], one value per epoch.

    Attributes:
        cell: whose.
        mean: over the runs that did not diverge; empty without any.
        deviation: standard deviation of a sample; 0 for a single run.
        runs: how many there are.
        shortest: epochs of the run that ended first; 0 without any.
        diverged: how many others are left out.
    """

    cell: Cell
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    runs: int
    shortest: int
    diverged: int

    @property
    def label(self) -> str:
        """For the legend."""
        if not self.runs:
            return f"{self.cell.update} (all {self.diverged} diverged)"
        left_out = f", {self.diverged} diverged" if self.diverged else ""
        return f"{self.cell.update} (n = {self.runs}{left_out})"


def trajectories(table: Table, architecture: str) -> list[Trajectory]:
    """The lines of a panel, all of them to the last epoch of its longest run."""
    cells = [c for c in FIGURE3 if c.architecture == architecture and c in table]
    lines = {c: [[e.test_error for e in run.epochs] for run in table[c].finished] for c in cells}
    longest = max((len(line) for each in lines.values() for line in each), default=0)
    found = []
    for cell, each in lines.items():
        carried = [line + [line[-1]] * (longest - len(line)) for line in each]
        columns = list(zip(*carried, strict=True))
        found.append(
            Trajectory(
                cell,
                mean=tuple(map(fmean, columns)),
                deviation=tuple(stdev(column) if len(column) > 1 else 0.0 for column in columns),
                runs=len(each),
                shortest=min(map(len, each), default=0),
                diverged=table[cell].diverged,
            )
        )
    return found


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
    panels = {
        "arch1": "Arch1, four layers, exponential decay",
        "arch2": "Arch2, four layers, bold driver",
    }
    lines = {architecture: trajectories(table, architecture) for architecture in panels}
    values = [100 * value for each in lines.values() for line in each for value in _extent(line)]
    figure = new_figure(9.6, 5.2)
    every_axes = figure.subplots(1, 2, sharey=True)
    for axes, (architecture, title) in zip(every_axes, panels.items(), strict=True):
        style(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("epoch", color=INK)
        own = lines[architecture]
        for line in own:
            _draw_line(axes, line)
        if own:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        else:
            axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
        scale(axes, values, max((len(line.mean) for line in own), default=1))
    every_axes[0].set_ylabel("test error (%)", color=INK)
    figure.supxlabel(
        "lines: mean over the n runs; bands: one standard deviation; dashed: some runs have ended, "
        "their last error is carried on",
        fontsize=8,
        color=MUTED,
    )
    return png(figure)


def _extent(line: Trajectory) -> list[float]:
    """What has to find place: the mean, and the band's lower end where that is not near zero.

    Its upper end may leave the picture: one bad run among ten would take half of the height.
    """
    bands = zip(line.mean, line.deviation, strict=True)
    return [*line.mean, *(max(mean - deviation, mean / 2) for mean, deviation in bands)]


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
        label=line.label,
    )
    axes.plot(
        epochs[whole - 1 :], percent[whole - 1 :], color=colour, linewidth=1.4, linestyle="--"
    )
