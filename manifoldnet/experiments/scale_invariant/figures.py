"""Figures 1-6 as the paper draws them: (a) rescaled, (b) logistic, (c) the best of both.

Reads records, trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manifoldnet.experiments.canvas import INK, MUTED, new_figure, png, style
from manifoldnet.experiments.scale_invariant.curves import Curve, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    figure = new_figure(11.0, 4.2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, color=INK)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, method, letter in zip(panels, _PAPERS, "ab", strict=False):
        own = [curve for curve in found if curve.method == method]
        rates = sorted({curve.lr for curve in own})
        dimensions = sorted({curve.embedding_dim or 0 for curve in own})
        for curve in own:
            _line(
                axes,
                curve,
                _SHADES[round(rates.index(curve.lr) * (len(_SHADES) - 1) / max(len(rates) - 1, 1))],
                _DASHES[dimensions.index(curve.embedding_dim or 0) % len(_DASHES)],
                curve.label,
            )
        _finish(axes, f"({letter}) {method}")
    for method in _PAPERS:
        chosen = best(found, method)
        if chosen is not None:
            _line(panels[2], chosen, COLOURS[method], "-", f"{method}, {chosen.label}")
    _finish(panels[2], "(c) best of both")
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


def _line(axes: Axes, curve: Curve, colour: str, dashes: str, label: str) -> None:
    percent = [100 * error for error in curve.errors()]
    ended = f" ({curve.diverged} of {len(curve.runs)} diverged)" if curve.diverged else ""
    axes.plot(
        range(1, len(percent) + 1),
        percent,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        marker="o" if len(percent) == 1 else None,
        label=label + ended,
    )


def _finish(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    style(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
