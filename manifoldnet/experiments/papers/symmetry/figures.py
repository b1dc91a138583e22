"""Pictures of finished runs: Figure 3, and the test errors of a comparison.

Figure 3 shows the mean over the runs that did not diverge, with bands of one deviation. A run that
a rule ended keeps its last network, so its last error is carried on to the last epoch of its panel;
otherwise the mean would jump where runs end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.papers.symmetry.cells import FIGURE3, Cell
from manifoldnet.experiments.papers.symmetry.config import Record
from manifoldnet.experiments.papers.updates import in_words
from manifoldnet.experiments.plotting import (
    COLOURS,
    INK,
    MUTED,
    new_figure,
    panel,
    png,
    scale,
    style,
    svg,
)
from manifoldnet.experiments.records import epochs_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PANELS = {
    "arch1": "Arch1, four layers, exponential decay",
    "arch2": "Arch2, four layers, bold driver",
}


def band(
    axes: Axes,
    update: str,
    mean: Any,
    low: Any,
    high: Any,
    whole: int | None = None,
    label: str = "",
) -> None:
    """Draw a mean by epoch, dashed after the epoch `whole`, and a band around it."""
    epochs, colour = range(1, len(mean) + 1), COLOURS.get(update, INK)
    axes.fill_between(epochs, list(low), list(high), color=colour, alpha=0.13, linewidth=0)
    end = len(mean) if whole is None else whole
    line = axes.plot(epochs[:end], list(mean)[:end], color=colour, linewidth=1.8)[0]
    line.set_marker("o" if end == 1 else "")
    line.set_label(label)
    if whole is not None:
        rest = slice(end - 1, None)
        axes.plot(epochs[rest], list(mean)[rest], color=colour, linewidth=1.4, linestyle="--")


def figure3(epochs: pd.DataFrame, runs: dict[Cell, pd.DataFrame]) -> bytes:
    """Figure 3 as an SVG: one panel for each of the two four-layer networks."""
    figure = new_figure(8.4, 4.8)
    every_axes = figure.subplots(1, 2, sharey=True)
    extent: list[float] = []
    longest = []
    for axes, (architecture, title) in zip(every_axes, _PANELS.items(), strict=True):
        panel(axes, title, "epoch")
        cells = [c for c in FIGURE3 if c.architecture == architecture and c in runs]
        lines = trajectories(epochs, [cell.name for cell in cells])
        longest.append(max((len(line) for line in lines.values()), default=1) or 1)
        for cell in cells:
            line, diverged = lines[cell.name], int(runs[cell].diverged.sum())
            n = len(line.columns)
            mean, deviation = line.mean(axis=1), line.std(axis=1).fillna(0.0)
            lost = f", {diverged} diverged" if diverged else ""
            counts = f"n = {n}{lost}" if n else f"all {diverged} diverged"
            label = f"{in_words(cell.update)} ({counts})"
            whole = min(line.attrs["lengths"], default=0)
            band(axes, cell.update, mean, mean - deviation, mean + deviation, whole, label)
            # The band may leave the picture: one bad run among ten would take half of the height.
            extent += [*mean, *(mean - deviation).where(deviation < mean / 2, mean / 2)]
        if cells:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        else:
            axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center")
    for axes, last in zip(every_axes, longest, strict=True):
        scale(axes, extent, last)
    every_axes[0].set_ylabel("test error (%)", color=INK)
    figure.supxlabel(
        "lines: mean over the n runs; bands: one standard deviation; dashed: some runs have ended, "
        "their last error is carried on",
        fontsize=8,
        color=MUTED,
    )
    return svg(figure)


def trajectories(epochs: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Test errors (%) of the runs of some cells, all carried on to the last epoch of the longest.

    A table for each cell, with a row per epoch and a column per seed, empty without runs;
    ``attrs["lengths"]`` are the numbers of epochs that were trained.
    """
    own = {name: epochs[epochs.label == name] for name in names}
    longest = max((max(each.epoch, default=0) for each in own.values()), default=0)
    found = {}
    for name, each in own.items():
        line = each.pivot(index="epoch", columns="seed", values="test_error") * 100
        found[name] = line.reindex(range(1, longest + 1)).ffill() if len(line) else line
        found[name].attrs["lengths"] = each.groupby("seed").size().tolist()
    return found


def plot_test_error(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw test error (%) against epochs as a PNG.

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
    # The legend has the order of the lines at their ends.
    for update in sorted(drawn, key=lambda update: -drawn[update].mean(axis=1).iloc[-1]):
        line = drawn[update]
        mean = line.mean(axis=1)
        label = f"{in_words(update)}  {mean.iloc[-1]:.2f}%"
        band(axes, update, mean, line.min(axis=1), line.max(axis=1), label=label)
    if drawn:
        values = [value for line in drawn.values() for value in line.to_numpy().flat]
        scale(axes, values, max(map(len, drawn.values())))
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=10)
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True):
            text.set_color(line.get_color())
    else:
        axes.text(0.5, 0.5, "every run diverged", transform=axes.transAxes, ha="center", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=22)
    note = "lines: mean over seeds; bands: from the best to the worst seed"
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color=MUTED)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("test error (%)", color=INK)
    write_bytes(path, png(figure))


def curves(records: Sequence[Record]) -> dict[str, pd.DataFrame]:
    """Test errors (%) of the ended runs that did not diverge, by update.

    A row per epoch that all runs of the update have, a column per seed.
    """
    ended = [run for run in records if run.result is not None and not run.result.diverged]
    found = {}
    for update in dict.fromkeys(run.config.update for run in ended):
        table = epochs_frame(run for run in ended if run.config.update == update)
        found[update] = table.pivot(index="epoch", columns="identity", values="test_error") * 100
    return {update: line.dropna() for update, line in found.items()}
