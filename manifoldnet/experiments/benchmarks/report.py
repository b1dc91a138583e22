"""``benchmarks.csv`` as a table and a picture. Reads the file, times nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from manifoldnet.experiments.benchmarks import shapes
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
_FAST = "manifoldnet fused"
_COLOURS = dict(
    zip(
        _SHOWN,
        ("#D55E00", "#E69F00", "#999999", "#0072B2", "#009E73", "#CC79A7"),
        strict=True,
    )
)


_GROWING = {
    "torch fused": ("#000000", "o-"),
    "torch foreach": ("#000000", "o:"),
    "manifoldnet fused": (_COLOURS["manifoldnet fused"], "o-"),
    "manifoldnet": (_COLOURS["manifoldnet"], "o:"),
}


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
    works = [row.cell for row in rows if row.cell.shapes not in shapes.GROWTH]
    for cell in dict.fromkeys(cell for cell in works if cell.threads == threads):
        ratios = [
            "–" if (row := of.get((cell, name))) is None else f"{row.ratio:.2f}" for name in _SHOWN
        ]
        base = of[cell, BASE].median_ms
        lines.append((cell.shapes, cell.manifold, cell.optimizer, f"{base:.3f}", *ratios))
    return Table(("shapes", "manifold", "optimizer", f"{BASE} (ms)", *_SHOWN), tuple(lines), 3)


def traffic(rows: Sequence[Row], threads: int) -> Table:
    """What a step must move, and how fast it was moved: as fast as memory, at best."""
    of = {(row.cell, row.implementation): row.median_ms for row in rows}
    lines = []
    for cell in dict.fromkeys(row.cell for row in rows if row.cell.threads == threads):
        for name in (BASE, _FAST):
            if cell.shapes not in shapes.GROWTH and (cell, name) in of:
                must = shapes.least_bytes(cell, name)
                speed = must / (1e-3 * of[cell, name])
                work = cell.shapes, cell.manifold, cell.optimizer
                lines.append((name, *work, f"{must / 1e6:.1f}", f"{speed / 1e9:.1f}"))
    header = ("step of", "shapes", "manifold", "optimizer", "must move (MB)", "GB/s")
    return Table(header, tuple(lines), 4)


def draw(rows: Sequence[Row], threads: int) -> bytes:
    """Ratios on a logarithmic axis: a panel per optimizer, a line per shapes and manifold.

    Raises:
        MissingExtraError: without matplotlib.
    """
    rows = [row for row in rows if row.cell.shapes not in shapes.GROWTH]
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


def draw_growth(rows: Sequence[Row], threads: int) -> bytes:
    """Time against numbers of one weight, and against the number of small ones, both logarithmic.

    Raises:
        MissingExtraError: without matplotlib.
    """
    rows = [row for row in rows if row.cell.shapes in shapes.GROWTH and row.cell.threads == threads]
    optimizers = list(dict.fromkeys(row.cell.optimizer for row in rows))
    figure = new_figure(11.5, 6.6)
    panels = figure.subplots(2, len(optimizers), sharey="row", squeeze=False)
    titles = {"size": "numbers of one square matrix", "count": "matrices of 64×64"}
    for line, (family, title) in zip(panels, titles.items(), strict=True):
        for axes, optimizer in zip(line, optimizers, strict=True):
            style(axes)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for name, (colour, dashes) in _GROWING.items():
                points = sorted(
                    (int(row.cell.shapes.removeprefix(f"{family}-")), row.median_ms)
                    for row in rows
                    if (row.implementation, row.cell.optimizer) == (name, optimizer)
                    and row.cell.shapes.startswith(family)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), dashes, color=colour, label=name)
            axes.set_title(optimizer, loc="left", fontsize=10, color=INK)
            axes.set_xlabel(title, fontsize=9, color=INK)
        line[0].set_ylabel("ms a step", fontsize=9, color=INK)
    handles, names = panels[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    legend.set_frame_on(False)
    return png(figure)


def growth(rows: Sequence[Row], threads: int) -> Table:
    """By how much the time grows from the fewest to the most small weights."""
    smallest, largest = "count-10", "count-1000"
    ms = {
        (row.implementation, row.cell.optimizer, row.cell.shapes): row.median_ms
        for row in rows
        if row.cell.threads == threads
    }
    optimizers = list(dict.fromkeys(row.cell.optimizer for row in rows))
    lines = [
        (
            name,
            *(
                f"{ms[name, optimizer, largest] / ms[name, optimizer, smallest]:.0f}"
                if (name, optimizer, largest) in ms and (name, optimizer, smallest) in ms
                else "–"
                for optimizer in optimizers
            ),
        )
        for name in _GROWING
    ]
    header = ("1000 matrices of 64×64 in times of 10", *optimizers)
    return Table(header, tuple(lines), 1)
