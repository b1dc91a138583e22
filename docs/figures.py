"""Figures of matplotlib that look alike and are the same bytes every time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
GREY, BLUE, GREEN, RED, PINK, ORANGE = (
    *("#555555", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00"),
)
INK, MUTED, FAINT = "#222222", "#666666", "#DDDDDD"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def style(axes: Axes, grid: Any = "y") -> None:
    """No frame, faint lines across one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis=grid, which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)


def save(figure: Figure, path: Path) -> None:
    """Writes a .png, or an .svg without a background, with no date in it."""
    stream = io.BytesIO()
    if path.suffix == ".svg":
        with rc_context({"svg.hashsalt": "manifoldnet"}):
            metadata = {"Date": None, "Creator": None}
            figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    else:
        figure.savefig(stream, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
