"""Pictures of the scale-invariant paper's runs. Reads records only.

Figures 1-6 as the paper draws them; errors over the share of corrupted data, and over every
learning rate; accuracy over confidence. A cross marks a run that overflowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from manifoldnet.experiments.papers.scale_invariant.config import PAPERS, Choice
from manifoldnet.experiments.papers.scale_invariant.records import (
    Settings,
    at,
    best,
    choices,
    reliability,
)
from manifoldnet.experiments.plotting import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    PAPER,
    PINK,
    RED,
    SHADES,
    SKY,
    new_figure,
    panel,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DASHES = ("-", "--", ":", "-.")
COLOURS = {
    "rescaled": RED,
    "logistic": BLUE,
    "smoothing": SKY,
    "cosine": GREEN,
    "etf": PINK,
}
"""Of the methods, in every picture."""

VARIANTS = {
    "rescaled": (RED, "-", RED),
    "rescaled, kernels on spheres": (RED, "--", PAPER),
    "logistic": (BLUE, "-", BLUE),
}
"""Colour, dashes and filling of the points of the runs at every learning rate."""

DRAWN = 10
"""Least samples of a bin that is drawn: a share of fewer says nothing."""


def draw_grid(runs: pd.DataFrame, title: str) -> bytes:
    """Test error by epoch: (a) rescaled, (b) logistic, (c) the best of both."""
    figure = new_figure(9.6, 5.6)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, color=INK)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, method, letter in zip(panels, PAPERS, "ab", strict=False):
        _finish(axes, f"({letter}) {method}", _curves(axes, runs, method))
    both = [
        [_curve(panels[2], at(runs, method, chosen), COLOURS[method], "-", f"{method}, {chosen}")]
        for method in PAPERS
        if (chosen := best(runs, method)) is not None
    ]
    _finish(panels[2], "(c) best of both", both)
    errors = [y for axes in panels[:2] for line in axes.lines for y in line.get_ydata()]
    highest = max((y for y in errors if not math.isnan(y)), default=100)
    panels[0].set_ylim(0, min(100, 1.05 * highest))
    panels[0].set_ylabel("test error (%)", color=INK)
    figure.supxlabel(
        "a line ends where a number in the network was not finite; best: lowest mean error after "
        "the last epoch",
        fontsize=8,
        color=MUTED,
    )
    return svg(figure)


def draw_comparison(runs: pd.DataFrame, tried: pd.DataFrame | None, title: str) -> bytes:
    """Errors of the short runs over h, and test error by epoch at the chosen rates.

    The means are over the runs that did not diverge.
    """
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(9.6, 4.2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, color=INK)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    for axes, method, letter in zip(panels, PAPERS, "ab", strict=False):
        panel(axes, f"({letter}) {method}, short runs", "learning rate h")
        axes.set(xscale="log", ylabel="validation error (%)")
        own = None if tried is None else tried[(tried["method"] == method) & ~tried["diverged"]]
        if own is None or own.empty:
            axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
            continue
        for m, dashes in zip(sorted(own["m"].unique()), cycle(_DASHES), strict=False):
            curve = own[own["m"] == m].groupby("h")["score"].mean()
            shade = COLOURS[method] if m == 0 else SHADES[len(axes.lines) % len(SHADES)]
            label = f"m = {m}" if m else method
            axes.plot(curve.index, 100 * curve, dashes, color=shade, marker="o", markersize=3)
            axes.lines[-1].set_label(label)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK)
    panel(panels[2], "(c) both, at the chosen rates", "epoch")
    panels[2].set_ylabel("test error (%)")
    for method in PAPERS:
        for choice, dashes in zip(choices(runs, method), cycle(_DASHES), strict=False):
            own = at(runs, method, choice)
            curves = 100 * pd.DataFrame(own["errors"].tolist(), index=own.index)
            epochs, colour = range(1, curves.shape[1] + 1), COLOURS[method]
            label = f"{method}, {choice}, {len(own)} seeds"
            if diverged := own["diverged"].sum():
                label += f", {diverged} diverged"
            panels[2].plot(epochs, curves.T, dashes, color=colour, linewidth=0.5)
            means = curves[~own["diverged"]].mean(skipna=False)
            panels[2].plot(epochs, means, dashes, color=colour, label=label)
    panels[2].set_yscale("log")
    for each in (panels[2].yaxis.set_major_formatter, panels[2].yaxis.set_minor_formatter):
        each(StrMethodFormatter("{x:g}"))
    panels[2].legend(frameon=False, fontsize=7.5, labelcolor=INK)
    return svg(figure)


def _curves(axes: Axes, runs: pd.DataFrame, method: str) -> list[list[Line2D]]:
    """Draw the curves of a method; gives their lines, a column of the legend for each m."""
    from matplotlib.lines import Line2D

    tried = choices(runs, method)
    rates = sorted({choice.h for choice in tried})
    spread = (len(SHADES) - 1) / max(len(rates) - 1, 1)
    columns = []
    for m, dashes in zip(sorted({choice.m for choice in tried}), cycle(_DASHES), strict=False):
        columns.append(
            [
                _curve(axes, at(runs, method, one), SHADES[round(i * spread)], dashes, str(one))
                if (one := Choice(h, m)) in tried
                else Line2D([], [], linestyle="none", label=" ")  # keeps its place
                for i, h in enumerate(rates)
            ]
        )
    return columns


def _curve(axes: Axes, curve: pd.DataFrame, colour: str, dashes: str, label: str) -> Line2D:
    """Mean test error after each epoch that all runs have; a diverged run has none from there."""
    percent = 100 * pd.DataFrame(curve["errors"].tolist()).mean(skipna=False)
    diverged = curve["diverged"].sum()
    ended = f" ({diverged} of {len(curve)} diverged)" if diverged else ""
    (line,) = axes.plot(
        range(1, len(percent) + 1),
        percent,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        marker="o" if percent.count() == 1 else None,
        label=label + ended,
    )
    return line


def _finish(axes: Axes, title: str, columns: Sequence[Sequence[Line2D]]) -> None:
    """Title, axes, and the legend below the panel, where it covers no curve."""
    from matplotlib.ticker import MaxNLocator

    panel(axes, title, "epoch")
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


def draw_robustness(settings: Settings) -> bytes:
    """Test error at the chosen rates against the share of corrupted data, a panel for each kind."""
    kinds = sorted({kind for kind, _ in settings})
    figure = new_figure(4.0 * len(kinds), 3.8)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        panel(axes, kind, "share of the training images (%)")
        for method, colour in COLOURS.items():
            points, lost = [], []
            for (of, share), runs in settings.items():
                if of == kind and (runs["method"] == method).any():
                    error = at(runs, method, best(runs, method))["error"].mean()
                    points += [] if math.isnan(error) else [(100 * share, 100 * error)]
                    lost += [100 * share] if math.isnan(error) else []
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=method)
            _crosses(axes, lost, colour, f"{method}: overflow at every rate")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("test error (%), chosen rate", color=INK)
    _legend_below(figure, figure.axes)
    return svg(figure)


def draw_start_sizes(runs: pd.DataFrame, tried: pd.DataFrame) -> bytes:
    """Test error at each size's chosen rate, and the errors on validation images that chose it."""
    figure = new_figure(9.0, 3.8)
    error, *grids = figure.subplots(1, 1 + len(PAPERS))
    panel(error, "chosen rate of each size", "size of the kernels at the start")
    error.set(xscale="log", ylabel="test error (%)")
    for method in PAPERS:
        own = runs[runs["method"] == method]
        middle = 100 * own.groupby("start_size")["error"].mean()
        error.plot(middle.index, middle, color=COLOURS[method], label=method)
        error.plot(own["start_size"], 100 * own["error"], "o", color=COLOURS[method], markersize=3)
    for axes, method in zip(grids, PAPERS, strict=True):
        panel(axes, f"every rate: {method}", "learning rate h")
        axes.set(xscale="log", ylabel="validation error (%)")
        own = tried[(tried["method"] == method) & ~tried["diverged"]]
        sizes = sorted(own["start_size"].unique())
        for i, size in enumerate(sizes):
            curve = own[own["start_size"] == size]
            shade = SHADES[round(i * (len(SHADES) - 1) / max(len(sizes) - 1, 1))]
            axes.plot(curve["h"], 100 * curve["score"], "o-", color=shade, markersize=3)
            axes.lines[-1].set_label(f"{size:g}")
        axes.legend(title="size", frameon=False, fontsize=7.5, labelcolor=INK)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    _legend_below(figure, [error])
    return svg(figure)


def draw_stability(runs: pd.DataFrame) -> bytes:
    """Test error, largest loss and relative step over h, where every `VARIANTS` stayed finite."""
    figure = new_figure(9.0, 3.8)
    error, loss, step = figure.subplots(1, 3)
    shown = {
        error: ("test error (%)", 100 * runs["test_error"]),
        loss: ("largest loss of a minibatch", runs["largest_loss"]),
        step: ("mean ‖ΔA‖/‖A‖ of a step", runs["step_ratio"]),
    }
    finite = runs["overflow"] == ""
    for axes, (title, values) in shown.items():
        panel(axes, title, "learning rate h")
        axes.set_xscale("log")
        for name, (colour, dashes, face) in VARIANTS.items():
            own = runs["variant"] == name
            whole = finite.groupby(runs["h"].where(own)).all()
            middle = values.groupby(runs["h"].where(own)).median()[whole]
            if len(middle):
                axes.plot(middle.index, middle, dashes, color=colour, label=name)
            if (own & finite).any():
                points = runs["h"][own & finite], values[own & finite]
                axes.plot(*points, "o", color=colour, mfc=face, markersize=3.5)
    for name, (colour, *_) in VARIANTS.items():
        lost = runs["h"][(runs["variant"] == name) & ~finite].unique()
        _crosses(error, lost, colour, f"{name}: overflow", height=100.0)
    error.set_ylim(0, 105)
    loss.set_yscale("log")
    loss.axhline(4, color=MUTED, linewidth=0.8, linestyle=":")
    loss.annotate("4", (1, 4), xycoords=("axes fraction", "data"), fontsize=8, color=MUTED)
    step.set_yscale("log")
    _legend_below(figure, [error])
    return svg(figure)


def draw_reliability(found: Mapping[str, Mapping[str, pd.DataFrame]]) -> bytes:
    """A reliability diagram for each data set."""
    figure = new_figure(3.0 * len(found), 3.6)
    for axes, (title, methods) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        panel(axes, title.replace(": ", ":\n"), "confidence (%)")
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1)
        for method, runs in methods.items():
            bins = reliability(runs)
            drawn = [i for i, n in enumerate(bins.count) if n >= DRAWN]
            axes.plot(
                [100 * bins.confidence[i] for i in drawn],
                [100 * bins.accuracy[i] for i in drawn],
                color=COLOURS[method],
                marker="o",
                markersize=4,
                label=f"{method}, error {100 * bins.error:.2f} %",
            )
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left")
    figure.axes[0].set_ylabel("right answers (%)", color=INK)
    return svg(figure)


def _crosses(
    axes: Axes, where: Sequence[float], colour: str, label: str, height: float | None = None
) -> None:
    """Crosses for what overflowed, at a height; by default at the top, whatever the errors."""
    top: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    if len(where):
        y = [1.0 if height is None else height] * len(where)
        axes.plot(where, y, "x", color=colour, label=label, **(top if height is None else {}))


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend of several panels, a name once."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named[name] = handle
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), frameon=False
    )
