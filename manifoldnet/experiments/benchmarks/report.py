"""``benchmarks.csv`` as a table and a picture. Reads the file, times nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from manifoldnet.experiments.benchmarks import shapes
from manifoldnet.experiments.benchmarks.rows import BASE, IMPLEMENTATIONS, Cell, Row
from manifoldnet.experiments.plotting import INK, MUTED, new_figure, png, style
from manifoldnet.experiments.report import Block, Heading, Picture, Table, csv_text, read_csv

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


def blocks(rows: Sequence[Row]) -> Iterator[Block]:
    """The whole of it, by number of threads: ratios, bytes, growth.

    Raises:
        MissingExtraError: without matplotlib.
    """
    for count in sorted({row.cell.threads for row in rows}, reverse=True):
        threads = f"{count} thread" + "s" * (count != 1)
        here = [row for row in rows if row.cell.threads == count]
        networks = [row for row in here if row.cell.shapes not in shapes.GROWTH]
        growing = [row for row in here if row.cell.shapes in shapes.GROWTH]
        if networks:
            yield Heading(f"Multiples of torch's fused step, {threads}")
            yield table(networks)
            text = f"Time of a step as a multiple of torch's fused one, {threads}"
            yield Picture(f"benchmarks_{count}.png", draw(networks), text)
            yield Heading(f"Bytes, {threads}")
            yield traffic(networks)
        if growing:
            yield Heading(f"Growth, {threads}")
            yield growth(growing)
            text = f"Time of a step against size and number of weights, {threads}"
            yield Picture(f"benchmarks_growth_{count}.png", draw_growth(growing), text)


def table(rows: Sequence[Row]) -> Table:
    """Ratios to torch's fused step: a line per work, a column per implementation."""
    of = {(row.cell, row.implementation): row for row in rows}
    lines = []
    for cell in dict.fromkeys(row.cell for row in rows):
        ratios = [
            "–" if (row := of.get((cell, name))) is None else f"{row.ratio:.2f}" for name in _SHOWN
        ]
        base = of[cell, BASE].median_ms
        lines.append((cell.shapes, cell.manifold, cell.optimizer, f"{base:.3f}", *ratios))
    return Table(("shapes", "manifold", "optimizer", f"{BASE} (ms)", *_SHOWN), tuple(lines), 3)


def traffic(rows: Sequence[Row]) -> Table:
    """What a step must move, and how fast it was moved: as fast as memory, at best."""
    of = {(row.cell, row.implementation): row.median_ms for row in rows}
    lines = []
    for cell in dict.fromkeys(row.cell for row in rows):
        for name in (BASE, _FAST):
            must = shapes.least_bytes(cell, name)
            speed = must / (1e-3 * of[cell, name])
            work = cell.shapes, cell.manifold, cell.optimizer
            lines.append((name, *work, f"{must / 1e6:.1f}", f"{speed / 1e9:.1f}"))
    header = ("step of", "shapes", "manifold", "optimizer", "must move (MB)", "GB/s")
    return Table(header, tuple(lines), 4)


def draw(rows: Sequence[Row]) -> bytes:
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
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5, label=name)
        axes.set_title(optimizer, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("time of a step, torch fused = 1", fontsize=9, color=INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_yticks(range(len(works)), [f"{s}: {m}" for s, m in works])
    panels[0].invert_yaxis()
    return _with_legend(figure, panels[0])


def _with_legend(figure: Any, axes: Any) -> bytes:
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    legend.set_frame_on(False)
    return png(figure)


def draw_growth(rows: Sequence[Row]) -> bytes:
    """Time against numbers of one weight, and against the number of small ones, both logarithmic.

    Raises:
        MissingExtraError: without matplotlib.
    """
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
    return _with_legend(figure, panels[0][0])


def growth(rows: Sequence[Row]) -> Table:
    """By how much the time grows from the fewest to the most small weights."""
    ms = {(row.implementation, row.cell.optimizer, row.cell.shapes): row.median_ms for row in rows}
    optimizers = list(dict.fromkeys(row.cell.optimizer for row in rows))

    def factor(name: str, optimizer: str) -> str:
        few, many = (ms.get((name, optimizer, f"count-{n}")) for n in (10, 1000))
        return "–" if few is None or many is None else f"{many / few:.0f}"

    lines = [(name, *(factor(name, optimizer) for optimizer in optimizers)) for name in _GROWING]
    header = ("1000 matrices of 64×64 in times of 10", *optimizers)
    return Table(header, tuple(lines), 1)
