"""Figures 1-6 as the paper draws them: (a) rescaled, (b) logistic, (c) the best of both.

Reads records, trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from manifoldnet.experiments.canvas import INK, MUTED, new_figure, png, style
from manifoldnet.experiments.papers.scale_invariant.curves import Curve, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# From small h to large, from light to dark; colour-blind readers see the order. As many as the
# rates of a preset.
_SHADES = ("#9ecae9", "#6fb0dc", "#4292c6", "#2171b5", "#08519c", "#08306b", "#03152f")
_DASHES = ("-", "--", ":", "-.")
COLOURS = {
    "rescaled": "#D55E00",
    "logistic": "#0072B2",
    "smoothing": "#56B4E9",
    "cosine": "#009E73",
    "etf": "#CC79A7",
}
"""Of the methods, in every picture."""
_PAPERS = ("rescaled", "logistic")


def draw(found: Sequence[Curve], title: str) -> bytes:
    """The three panels, side by side, as a PNG.

    Args:
        found: curves of one data set and network.
        title: the heading.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = new_figure(11.0, 5.6)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, color=INK)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, method, letter in zip(panels, _PAPERS, "ab", strict=False):
        own = [curve for curve in found if curve.method == method]
        _finish(axes, f"({letter}) {method}", _grid(axes, own))
    both = [
        [_line(panels[2], chosen, COLOURS[method], "-", f"{method}, {chosen.label}")]
        for method in _PAPERS
        if (chosen := best(found, method)) is not None
    ]
    _finish(panels[2], "(c) best of both", both)
    errors = [100 * e for curve in found for e in curve.errors() if not math.isnan(e)]
    panels[0].set_ylim(0, min(100, 1.05 * max(errors, default=100)))
    panels[0].set_ylabel("test error (%)", color=INK)
    figure.supxlabel(
        "a line ends where a number in the network was not finite; best: lowest mean error after "
        "the last epoch",
        fontsize=8,
        color=MUTED,
    )
    return png(figure)


def _grid(axes: Axes, own: Sequence[Curve]) -> list[list[Line2D]]:
    """Draws the curves of a method; gives their lines, a column of the legend for each m."""
    from matplotlib.lines import Line2D

    rates = sorted({curve.lr for curve in own})
    shades = dict(zip(rates, _spread(_SHADES, len(rates)), strict=True))
    columns = []
    dimensions = sorted({curve.embedding_dim or 0 for curve in own})
    for m, dashes in zip(dimensions, cycle(_DASHES), strict=False):
        of_m = {curve.lr: curve for curve in own if (curve.embedding_dim or 0) == m}
        columns.append(
            [
                _line(axes, of_m[h], shades[h], dashes, of_m[h].label)
                if h in of_m
                else Line2D([], [], linestyle="none", label=" ")  # keeps its place
                for h in rates
            ]
        )
    return columns


def _spread(shades: Sequence[str], count: int) -> list[str]:
    """So many of them, from the first to the last."""
    return [shades[round(i * (len(shades) - 1) / max(count - 1, 1))] for i in range(count)]


def _line(axes: Axes, curve: Curve, colour: str, dashes: str, label: str) -> Line2D:
    percent = [100 * error for error in curve.errors()]
    alone = sum(not math.isnan(error) for error in percent) == 1
    ended = f" ({curve.diverged} of {len(curve.runs)} diverged)" if curve.diverged else ""
    (line,) = axes.plot(
        range(1, len(percent) + 1),
        percent,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        marker="o" if alone else None,
        label=label + ended,
    )
    return line


def _finish(axes: Axes, title: str, columns: Sequence[Sequence[Line2D]]) -> None:
    """Title, axes, and the legend below the panel, where it covers no curve."""
    from matplotlib.ticker import MaxNLocator

    style(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not columns:
        axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
        return
    axes.legend(
        handles=[line for column in columns for line in column],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=1 if len(columns[0]) == 1 else len(columns),
        columnspacing=1.0,
        handlelength=1.8,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
    )
