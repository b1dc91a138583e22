"""``benchmarks.csv`` as a table and a picture. Reads the file, times nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from manifoldnet.experiments.benchmarks.rows import BASE, IMPLEMENTATIONS, Cell, Row
from manifoldnet.experiments.canvas import INK, MUTED, new_figure, png, style
from manifoldnet.experiments.document import Table
from manifoldnet.experiments.spreadsheet import csv_text, read_csv

NAME = "benchmarks.csv"
COLUMNS = (
    *("shapes", "manifold", "optimizer", "implementation", "threads"),
    *("median_ms", "ratio_to_fused_sgd_or_adam", "peak_extra_bytes", "compile_s"),
)
_SHOWN = IMPLEMENTATIONS[3:]
_COLOURS = dict(
    zip(
        _SHOWN,
        ("#D55E00", "#E69F00", "#999999", "#0072B2", "#009E73", "#CC79A7"),
        strict=True,
    )
)


def to_csv(rows: Iterable[Row]) -> str:
    """One line per row, under `COLUMNS`."""
    return csv_text(
        COLUMNS,
        [
            {
                "shapes": row.cell.shapes,
                "manifold": row.cell.manifold,
                "optimizer": row.cell.optimizer,
                "implementation": row.implementation,
                "threads": row.cell.threads,
                "median_ms": f"{row.median_ms:.4f}",
                "ratio_to_fused_sgd_or_adam": f"{row.ratio:.3f}",
                "peak_extra_bytes": row.peak_extra_bytes,
                "compile_s": f"{row.compile_s:.2f}",
            }
            for row in rows
        ],
    )


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        RecordError: when it is damaged.
    """

    def parse(row: dict[str, str]) -> Row:
        cell = Cell(row["shapes"], row["manifold"], row["optimizer"], int(row["threads"]))
        numbers = float(row["median_ms"]), float(row["ratio_to_fused_sgd_or_adam"])
        peak, compiling = int(row["peak_extra_bytes"]), float(row["compile_s"])
        return Row(cell, row["implementation"], *numbers, peak, compiling)

    return read_csv(path, COLUMNS, parse, "delete it, or measure again")


def table(rows: Sequence[Row], threads: int) -> Table:
    """Ratios to torch's fused step: a line per work, a column per implementation."""
    of = {(row.cell, row.implementation): row for row in rows}
    lines = []
    for cell in dict.fromkeys(row.cell for row in rows if row.cell.threads == threads):
        ratios = [
            "–" if (row := of.get((cell, name))) is None else f"{row.ratio:.2f}" for name in _SHOWN
        ]
        base = of[cell, BASE].median_ms
        lines.append((cell.shapes, cell.manifold, cell.optimizer, f"{base:.3f}", *ratios))
    return Table(("shapes", "manifold", "optimizer", f"{BASE} (ms)", *_SHOWN), tuple(lines), 3)


def draw(rows: Sequence[Row], threads: int) -> bytes:
    """Ratios on a logarithmic axis: a panel per optimizer, a line per shapes and manifold.

    Raises:
        MissingExtraError: without matplotlib.
    """
    optimizers = list(dict.fromkeys(row.cell.optimizer for row in rows))
    works = list(dict.fromkeys((row.cell.shapes, row.cell.manifold) for row in rows))
    figure = new_figure(11.5, 0.27 * len(works) + 1.6)
    panels = figure.subplots(1, len(optimizers), sharey=True, squeeze=False)[0]
    for axes, optimizer in zip(panels, optimizers, strict=True):
        style(axes)
        axes.grid(axis="x", which="major", color="#DDDDDD", linewidth=0.7)
        axes.set_xscale("log")
        axes.axvline(1, color=MUTED, linewidth=1)
        for name, colour in _COLOURS.items():
            points = [
                (row.ratio, works.index((row.cell.shapes, row.cell.manifold)))
                for row in rows
                if (row.implementation, row.cell.optimizer) == (name, optimizer)
                and row.cell.threads == threads
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5, label=name)
        axes.set_title(optimizer, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("time of a step, torch fused = 1", fontsize=9, color=INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_yticks(range(len(works)), [f"{s}: {m}" for s, m in works])
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    legend.set_frame_on(False)
    return png(figure)
