"""The report on training from rescaled starts. Reads records only.

<folder>/records -> rescaled_start.csv, -light.svg, -dark.svg, .md, .html
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from manifoldnet.experiments import store
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    CELLS,
    COORDINATES,
    OPTIMIZERS,
    RESCALED,
    Cell,
    RescaledRecord,
    best_rates,
    cell_of,
)
from manifoldnet.experiments.papers.symmetry.moving_frame.report import (
    COORDINATES_IN_WORDS,
    OF_COORDINATES,
    OF_OPTIMIZERS,
    row_of,
)
from manifoldnet.experiments.plotting import FAINT, INK, MUTED, PAPER, new_figure, panel, svg
from manifoldnet.experiments.report import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    csv_text,
    publish,
)
from manifoldnet.experiments.statistics import mean_and_deviation

NAME = "rescaled_start"
COLUMNS = (*Cell._fields, "spread", "lr", "seed", "test_error", "validation_error", "diverged")

Runs = Mapping[tuple[Cell, bool], Mapping[float, Sequence[RescaledRecord]]]
"""By cell and whether the start was moved, and by rate; seeds in order."""


def write_rescaled_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of `manifoldnet reproduce symmetry rescaled-start`."""
    folder = Path(folder)
    free = (*Cell._fields, "spread", "lr", "seed")
    found = store.read_together(folder, RESCALED, free, "symmetry rescaled-start")
    found.sort(key=lambda r: (CELLS.index(cell_of(r.config)), r.config.spread, r.lr, r.config.seed))
    runs: dict[tuple[Cell, bool], dict[float, list[RescaledRecord]]] = {}
    for record in found:
        own = runs.setdefault((cell_of(record.config), record.config.spread > 0), {})
        own.setdefault(record.lr, []).append(record)
    blocks = list(_blocks(found[-1], runs))
    tables = {f"{NAME}.csv": csv_text(COLUMNS, map(_row, found))}
    return publish(blocks, folder if output is None else Path(output), NAME, tables)


def _row(record: RescaledRecord) -> dict[str, object]:
    return {**row_of(record), "spread": f"{record.config.spread:g}"}


def _blocks(last: RescaledRecord, runs: Runs) -> Iterator[Block]:
    config = last.config
    cells = [cell for cell in CELLS if all((cell, moved) in runs for moved in (False, True))]
    yield Heading("Does training depend on the scale of the start?", 1)
    costs = {coordinates: _cost(coordinates, runs) for coordinates in COORDINATES}
    highest = [
        f"by up to {max(each):+z.4f} with {coordinates} coordinates"
        for coordinates, (_, each) in costs.items()
        if each
    ]
    if highest:
        yield Paragraph(
            "A start with rescaled weights computes the same function. It changes the test error, "
            f"at a rate chosen anew, {', '.join(highest)}."
        )
    yield Paragraph(
        "The table has the test error from the moved start less that from the usual one, from the "
        "lowest to the highest over networks and optimizers:"
    )
    yield Table(
        ("coordinates", "at the same rate", "at a rate chosen anew"),
        tuple(
            (
                coordinates,
                *(f"{min(e):+z.4f} to {max(e):+z.4f}" if e else "not measured" for e in each),
            )
            for coordinates, each in costs.items()
        ),
    )
    yield Table(
        (
            *("network", "optimizer", "coordinates", "rate", "usual start"),
            *("moved, same rate", "moved, rate chosen anew", "diverged at all rates"),
        ),
        tuple(_summary(cell, runs) for cell in cells),
        words=3,
    )
    yield Picture(NAME, _draw(runs), "Test errors by rate, from both starts")
    yield Heading("How it was measured")
    yield Paragraph(COORDINATES_IN_WORDS)
    yield Paragraph(
        "The networks are Arch1 (no normalization) and Arch2 (batch normalization) of the symmetry "
        f"paper, with {config.depth} hidden layers, on {config.train_size:,} images of "
        f"{config.dataset}: {config.epochs} epochs, minibatches of {config.batch_size}. The moved "
        "start is the usual one, moved by a random element of the network's whole scaling group, "
        f"with factors of the generators from {math.exp(-config.spread):.2g} to "
        f"{math.exp(config.spread):.2g}. Both compute the same function, up to the ε of batch "
        "normalization, which shows where filters become small. Entries are errors on the test "
        "images, mean ± standard deviation over seeds; diverged runs count. Rates are chosen among "
        "those of the table below, by validation errors. The budget is small: compare columns, not "
        "rows. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(last.versions.items()))}."
    )
    yield Heading("Every rate")
    rates = sorted({lr for own in runs.values() for lr in own})
    yield Table(
        ("network", "optimizer", "coordinates", "start", *(f"{lr:g}" for lr in rates)),
        tuple(
            (
                *cell,
                "moved" if moved else "usual",
                *(mean_and_deviation(_tests(own.get(lr, ()))) for lr in rates),
            )
            for (cell, moved), own in runs.items()
        ),
        words=4,
    )


def _cost(coordinates: str, runs: Runs) -> tuple[list[float], list[float]]:
    """Differences of mean test errors between the starts, at the same rate and at a new one."""
    same: list[float] = []
    anew: list[float] = []
    for (cell, moved), usual in runs.items():
        other = runs.get((cell, True))
        if cell.update == coordinates and not moved and other is not None:
            rate, base = _best(usual), fmean(_tests(usual[_best(usual)]))
            anew.append(fmean(_tests(other[_best(other)])) - base)
            if rate in other:
                same.append(fmean(_tests(other[rate])) - base)
    return same, anew


def _summary(cell: Cell, runs: Runs) -> tuple[str, ...]:
    usual, moved = runs[cell, False], runs[cell, True]
    rate, anew = _best(usual), _best(moved)
    lost = [
        sum(r.result is not None and r.result.diverged for own in each.values() for r in own)
        for each in (usual, moved)
    ]
    return (
        *cell,
        f"{rate:g}",
        mean_and_deviation(_tests(usual[rate])),
        mean_and_deviation(_tests(moved.get(rate, ()))),
        f"{mean_and_deviation(_tests(moved[anew]))} at {anew:g}",
        "{} usual, {} moved".format(*lost),
    )


def _best(own: Mapping[float, Sequence[RescaledRecord]]) -> float:
    """The rate of a cell with the lowest mean validation error."""
    (rate,) = best_rates([record for each in own.values() for record in each]).values()
    return rate


def _tests(records: Sequence[RescaledRecord]) -> list[float]:
    return [record.result.test_error for record in records if record.result is not None]


def _draw(runs: Runs) -> bytes:
    """A panel for each network and optimizer: mean test error by rate, dashed from moved starts."""
    figure = new_figure(8.0, 5.8)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (network, optimizer) in zip(
        panels.flat, product(ARCHITECTURES, OPTIMIZERS), strict=True
    ):
        name = OF_OPTIMIZERS[optimizer]
        panel(axes, f"{network.capitalize()}, {name}", "")
        for coordinates, moved in product(COORDINATES, (False, True)):
            own = runs.get((Cell(network, optimizer, coordinates), moved), {})
            means = [100 * fmean(_tests(each)) for each in own.values()]
            label = coordinates.replace("-", " ") + (", moved start" if moved else "")
            axes.plot(
                [*own],
                means,
                marker="o" if moved else "s",
                markersize=5 if moved else 8,
                markerfacecolor=OF_COORDINATES[coordinates] if moved else PAPER,
                linestyle="--" if moved else "-",
                color=OF_COORDINATES[coordinates],
                linewidth=1.5,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(2, 110)
        axes.axhline(90, color=FAINT, linewidth=0.8)
    panels[1, 1].legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    for row in panels:
        row[0].set_ylabel("test error (%)", color=INK)
    for axes in panels[1]:
        axes.set_xlabel("rate", color=INK)
    figure.supxlabel(
        "mean over seeds; hollow squares: usual start; points, dashed: the same start moved by the "
        "group; grey line: chance",
        fontsize=8,
        color=MUTED,
    )
    return svg(figure)
