"""Figures of matplotlib without windows, backends or global state, and how they all look."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manifoldnet.experiments.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; an update has the same colour
# in every picture.
COLOURS = {
    "b-sgd": "#555555",
    "sm": "#0072B2",
    "sm-geodesic": "#009E73",
    "un": "#D55E00",
    "adamw": "#CC79A7",
}
INK, MUTED, FAINT = "#222222", "#666666", "#DDDDDD"


def new_figure(width: float, height: float, dpi: int = 160) -> Figure:
    """An empty figure, in inches.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "the picture") from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a file, the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as lines and letters' outlines on nothing, the same bytes for the same figure."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "manifoldnet"}):
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None},
        )
    return stream.getvalue()


def style(axes: Axes) -> None:
    """No frame, faint horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)


def panel(axes: Axes, title: str, x: str) -> None:
    """The style, a title and the name of the horizontal axis."""
    style(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK)


def scale(axes: Axes, values: Sequence[float], longest: int) -> None:
    """Epochs from 1 on, and a logarithmic axis: the first have ten times the error of the last.

    Args:
        axes: of the picture.
        values: what has to find place on the axis of errors.
        longest: the last epoch.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    positive = [value for value in values if value > 0]
    bottom, top = (0.9 * min(positive), 1.1 * max(positive)) if positive else (0.1, 100.0)
    if len(positive) < len(values) or not values:
        axes.set_ylim(0, top)  # zero errors have no place on a logarithmic axis
    else:
        axes.set_yscale("log")
        axes.set_ylim(bottom, top)
        shown: list[float] = []
        for digits in ((1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
            if len(shown) < 4:  # a narrow range needs the denser ticks
                ticks = [digit * 10.0**power for power in range(-3, 3) for digit in digits]
                shown = [tick for tick in ticks if bottom <= tick <= top]
        axes.yaxis.set_major_locator(FixedLocator(shown))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1 if longest > 1 else 0, max(longest, 2))
