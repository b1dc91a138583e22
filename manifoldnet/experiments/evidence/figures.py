"""Pictures of the evidence. Reads records only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from manifoldnet.experiments.evidence.claims import Standing, Start, tried
from manifoldnet.experiments.evidence.config import METHODS
from manifoldnet.experiments.evidence.records import Section, best
from manifoldnet.experiments.plotting import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RED,
    SHADES,
    new_figure,
    panel,
    style,
    svg,
)
from manifoldnet.experiments.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OF_STARTS = (GREY, RED, BLUE, ORANGE, GREEN)


def colour(method: str) -> str:
    """The colour of a plain optimizer and of the methods that are made of it."""
    of = METHODS[method].base or method
    return {"muon": RED, "sgd": GREEN}.get(of, BLUE)


def draw_comparison(found: Mapping[str, Standing], title: str, measure: str) -> bytes:
    """A row of points for each method, one a seed, its mean and interval."""
    figure = new_figure(8.0, 0.9 + 0.42 * len(found))
    axes = figure.subplots()
    style(axes, "x")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    for place, (method, standing) in enumerate(found.items()):
        own = list(standing.scores.values())
        plain = not METHODS[method].base
        axes.plot(
            *(own, [place - 0.15] * len(own), "o"),
            color=colour(method),
            alpha=0.5,
            markersize=4,
        )
        whole = estimate(own)
        if whole.n > 1:
            axes.errorbar(
                *(whole.mean, place + 0.15),
                xerr=whole.high - whole.mean,
                fmt="D" if plain else "s",
                color=colour(method),
                markerfacecolor=PAPER if plain else colour(method),
                capsize=3,
            )
        if standing.diverged:
            axes.text(
                *(1.0, place, f"{standing.diverged} diverged"),
                transform=axes.get_yaxis_transform(),
                fontsize=8,
                color=MUTED,
                ha="right",
                va="center",
            )
    for name, standing in found.items():
        if not METHODS[name].base and standing.scores:
            axes.axvline(standing.mean, color=colour(name), linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel(measure, color=INK)
    figure.supxlabel(
        "points: seeds; squares: mean with its 95 % interval; hollow, dotted: plain optimizers; "
        "blue: of AdamW, red: of Muon, green: of SGD",
        fontsize=8,
        color=MUTED,
    )
    return svg(figure)


def draw_widths(section: Section) -> bytes:
    """A panel for each method: validation loss against the rate, a line for each width."""
    found = tried(section)
    methods = [method for method in METHODS if any(cell.method == method for cell in found)]
    widths = sorted({cell.width for cell in found})
    shade = dict(zip(widths, _spread(len(widths)), strict=True))
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(9.0, 0.6 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    lowest = min(min(own.values()) for own in found.values())
    for axes, method in zip(panels.flat, methods, strict=False):
        panel(axes, method, "")
        for cell, own in sorted(found.items(), key=lambda item: item[0].width):
            if cell.method == method:
                points = {lr: loss for lr, loss in own.items() if math.isfinite(loss)}
                line = {"color": shade[cell.width], "linewidth": 1.5}
                axes.plot([*points], [*points.values()], label=f"{cell.width}", **line)
                top = best(own)
                axes.plot([top], [own[top]], "o", markersize=5, **line)
        _by_rate(axes, lowest)
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    panels[0, 0].legend(title="width", frameon=False, fontsize=8, labelcolor=INK)
    for row in panels:
        row[0].set_ylabel("validation loss", color=INK)
    figure.supxlabel("rate; points: the best", fontsize=9, color=MUTED)
    return svg(figure)


def _by_rate(axes: Axes, lowest: float) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_ylim(0.97 * lowest, 1.5 * lowest)


def _spread(count: int) -> Sequence[str]:
    """So many shades, as far apart as they can be."""
    if count > len(SHADES):
        return [SHADES[i * len(SHADES) // count] for i in range(count)]
    step = (len(SHADES) - 1) / max(count - 1, 1)
    return [SHADES[round(i * step)] for i in range(count)]


def draw_starts(found: Mapping[str, Mapping[Start, Standing]], title: str, measure: str) -> bytes:
    """A row for each method: the mean score from each start."""
    figure = new_figure(8.0, 1.2 + 0.42 * len(found))
    axes = figure.subplots()
    style(axes, "x")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    order = list(dict.fromkeys(start for own in found.values() for start in own))
    for k, start in enumerate(order):
        means = [own[start].mean if start in own else math.inf for own in found.values()]
        axes.plot(
            [mean if math.isfinite(mean) else math.nan for mean in means],
            [place + 0.16 * (k - (len(order) - 1) / 2) for place in range(len(found))],
            "o" if k else "D",
            color=_OF_STARTS[k % len(_OF_STARTS)],
            markersize=5,
            label=str(start),
        )
    for place in range(1, len(found)):
        axes.axhline(place - 0.5, color=FAINT, linewidth=0.7)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(which="minor", labelsize=8)
    axes.set_xlabel(f"{measure}, mean over seeds", color=INK)
    figure.legend(
        title="start", frameon=False, fontsize=8, labelcolor=INK, loc="outside right upper"
    )
    return svg(figure)
