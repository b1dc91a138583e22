"""Finished runs as a picture: test error against epochs. Reads records, trains nothing.

Drawn with matplotlib's `Figure` alone, so that no window, backend or global state is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manifoldnet.experiments.canvas import COLOURS, INK, MUTED, new_figure, png, scale, style
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.papers.symmetry.rows import Record
from manifoldnet.experiments.papers.symmetry.tables import by_update

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """Test error of one update over its seeds, in per cent, one value per epoch.

    Attributes:
        update: its name.
        mean: over the runs that have not diverged.
        low: the smallest of them.
        high: the largest of them.
        runs: how many there are.
    """

    update: str
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int


def curves(records: Sequence[Record]) -> list[Curve]:
    """One curve per update, over its runs that have ended and not diverged; none without such."""
    result = []
    for update, runs in by_update(records).items():
        ended = [run for run in runs if run.result is not None and not run.result.diverged]
        if not ended:
            continue
        length = min(len(run.epochs) for run in ended)
        columns = [[100 * run.epochs[i].test_error for run in ended] for i in range(length)]
        result.append(
            Curve(
                update,
                mean=tuple(sum(column) / len(column) for column in columns),
                low=tuple(map(min, columns)),
                high=tuple(map(max, columns)),
                runs=len(ended),
            )
        )
    return result


def plot_test_error(records: Sequence[Record], path: Path, title: str) -> None:
    """Draws test error (%) against epochs as a PNG.

    A line per update is the mean over seeds; the band around it reaches from the best seed to the
    worst.

    Args:
        records: runs, of one configuration but for update and seed.
        path: the picture, written in one atomic step.
        title: its heading.

    Raises:
        MissingExtraError: without matplotlib.
    """
    drawn = curves(records)
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    style(axes)
    for curve in drawn:
        epochs = range(1, len(curve.mean) + 1)
        colour = COLOURS.get(curve.update, INK)
        axes.fill_between(epochs, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            epochs,
            curve.mean,
            color=colour,
            linewidth=1.8,
            marker="o" if len(epochs) == 1 else None,
        )
    if drawn:
        values = [value for curve in drawn for value in (*curve.low, *curve.high)]
        scale(axes, values, max(len(curve.mean) for curve in drawn))
        _label(axes, drawn)
    else:
        axes.text(0.5, 0.5, "every run diverged", transform=axes.transAxes, ha="center", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=22)
    axes.text(
        0,
        1.025,
        "lines: mean over seeds; bands: from the best to the worst seed",
        transform=axes.transAxes,
        fontsize=9,
        color=MUTED,
    )
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("test error (%)", color=INK)
    write_bytes(path, png(figure))


def _label(axes: Axes, drawn: Sequence[Curve]) -> None:
    """Writes each curve's name and last value beside its end, apart where they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(drawn, key=lambda curve: curve.mean[-1])
    wanted = [float(to_axes.transform((1.0, curve.mean[-1]))[1]) for curve in ends]
    for curve, height in zip(ends, spread(wanted, gap=0.065), strict=True):
        axes.annotate(
            f"{curve.update}  {curve.mean[-1]:.2f}%",
            xy=(1.0, height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=COLOURS.get(curve.update, INK),
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves ascending ``heights`` apart until they are ``gap`` from one another, and no further.

    Heights that collide become a block of evenly spaced ones around the mean of what they wanted.
    """
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) - _top(blocks[-2], gap) < gap:
            last = blocks.pop()
            blocks[-1].extend(last)
    return [_bottom(block, gap) + i * gap for block in blocks for i in range(len(block))]


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) + gap * (len(block) - 1) / 2
