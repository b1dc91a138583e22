"""Which update respects which symmetry of a network: `symmetry.explain`, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from manifoldnet import symmetry
from manifoldnet.experiments.drawings.palette import Palette
from manifoldnet.experiments.papers.symmetry import networks as models
from manifoldnet.experiments.plotting import new_figure
from manifoldnet.symmetry.explanation import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "measure"]

_NETWORKS = {"arch1": "Arch1: ReLU, no normalization", "arch2": "Arch2: batch normalization"}
_FEATURES = 8


def measure(architecture: str) -> symmetry.Explanation:
    """The table for a narrow network of the symmetry paper, with AdamW as the reader's update.

    Args:
        architecture: "arch1" or "arch2".
    """
    source = torch.Generator().manual_seed(0)
    network = models.build(
        architecture, inputs=12, classes=3, depth=2, features=_FEATURES, generator=source
    )
    inputs, labels = torch.randn(64, 12, generator=source), torch.arange(64) % 3
    group = symmetry.discover(network, cross_entropy, [(inputs, labels)])
    return symmetry.explain(
        network, group, lambda m: torch.optim.AdamW(m.parameters()), classifier="head"
    )


def draw(palette: Palette) -> Figure:
    """A row for each kind of symmetry that changes a weight, a column for each update."""
    tables = {title: measure(name) for name, title in _NETWORKS.items()}
    figure = new_figure(7.6, 5.2)
    axes = figure.add_subplot()
    axes.set_axis_off()
    y = 0.0
    for title, table in tables.items():
        axes.text(-2.95, y, title, color=palette.ink, fontweight="bold", fontsize=11.5, va="center")
        for x, update in enumerate(table.updates):
            name = "AdamW" if update == "yours" else update
            axes.text(x, y, name, color=palette.ink, ha="center", va="center", fontsize=11.5)
        for row in table.rows:
            if not row.trivial:
                y += 1.0
                _row(axes, palette, row, y)
        y += 1.15
    axes.set_xlim(-2.95, len(table.updates) - 0.45)
    axes.set_ylim(y - 0.6, -0.4)
    return figure


def _row(axes: Axes, palette: Palette, row: Row, y: float) -> None:
    """What is scaled together, one weight a line, and a verdict under each update."""
    scaled = row.name.partition(", and ")[0]
    name = scaled.replace("hidden.", "").replace(" × s, ", " × s\n")
    axes.text(-2.95, y, name, color=palette.muted, va="center", fontsize=9.5)
    colours = {"respects": palette.sm, "fixes": palette.geodesic, "ignores": palette.un}
    for x, verdict in enumerate(row.verdicts.values()):
        weak = verdict == "ignores"
        frame = {
            "boxstyle": "round,pad=0.4",
            "facecolor": "none",
            "edgecolor": colours[verdict],
            "linewidth": 0.6 if weak else 1.8,
        }
        axes.text(
            x,
            y,
            verdict,
            color=colours[verdict],
            ha="center",
            va="center",
            fontsize=10.5,
            fontweight="normal" if weak else "bold",
            bbox=frame,
        )
