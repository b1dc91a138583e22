"""The report on accuracy in the moving frame. Reads records only.

<folder>/choice, <folder>/comparison -> moving_frame_accuracy.csv, -light.svg, -dark.svg, .md, .html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from manifoldnet.experiments import store
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    CELLS,
    COORDINATES,
    FRAME,
    AnyRecord,
    Cell,
    FrameRecord,
    best_rates,
    cell_of,
    validation_errors,
)
from manifoldnet.experiments.plotting import BLUE, GREY, INK, MUTED, RED, new_figure, panel, svg
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
from manifoldnet.experiments.statistics import Estimate, estimate, mean_and_deviation, paired

NAME = "moving_frame_accuracy"
COLUMNS = (*Cell._fields, "lr", "seed", "test_error", "validation_error", "diverged")

OF_COORDINATES = dict(zip(COORDINATES, (GREY, BLUE, RED), strict=True))
"""Colours."""

OF_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}
"""Names."""

COORDINATES_IN_WORDS = (
    "Each optimizer steps one of three kinds of coordinates. plain: the weights themselves. "
    "scaled-metric: the weights, under the scaled metric (SM). moving-frame: the weights in a "
    "frame that moves with the network's symmetries."
)
"""For reports."""

_AGAINST = (
    ("moving-frame", "plain"),
    ("moving-frame", "scaled-metric"),
    ("scaled-metric", "plain"),
)

Errors = Mapping[Cell, Mapping[int, float]]


def write_frame_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of `manifoldnet reproduce symmetry moving-frame`."""
    folder = Path(folder)
    free = (*Cell._fields, "lr", "seed")
    runs = store.read_together(folder / "comparison", FRAME, free, "symmetry moving-frame")
    choice = list(store.read_all(folder / "choice", FRAME, exact=False).values())
    ended = sorted(
        (r for r in runs if r.result is not None),
        key=lambda r: (CELLS.index(cell_of(r.config)), r.config.seed),
    )
    rates = best_rates(ended)
    errors = {
        cell: {
            r.config.seed: r.result.test_error
            for r in ended
            if r.result is not None
            and not r.result.diverged
            and (cell_of(r.config), r.lr) == (cell, rates.get(cell))
        }
        for cell in CELLS
    }
    text = csv_text(COLUMNS, map(row_of, ended))
    blocks = list(_blocks(runs, choice, errors))
    return publish(blocks, folder if output is None else Path(output), NAME, {f"{NAME}.csv": text})


def row_of(record: AnyRecord) -> dict[str, object]:
    """The row of a run that has ended, by column."""
    result = record.result
    assert result is not None
    return {
        **cell_of(record.config)._asdict(),
        "lr": f"{record.lr:g}",
        "seed": record.config.seed,
        "test_error": f"{result.test_error:.4f}",
        "validation_error": f"{result.validation_error:.4f}",
        "diverged": result.diverged,
    }


def _blocks(
    runs: Sequence[FrameRecord], choice: Sequence[FrameRecord], errors: Errors
) -> Iterator[Block]:
    config = runs[0].config
    differences = {(a, b): list(_differences(errors, a, b)) for a, b in _AGAINST}
    yield Heading("Is training in the moving frame more accurate?", 1)
    yield Paragraph(" ".join(_answer(*pair, found) for pair, found in differences.items()))
    yield Table(
        ("network", "optimizer", *COORDINATES),
        tuple(
            (
                network,
                optimizer,
                *(_entry(errors[Cell(network, optimizer, c)]) for c in COORDINATES),
            )
            for network, optimizer in dict.fromkeys(cell[:2] for cell in CELLS)
        ),
        words=2,
    )
    yield Picture(NAME, _draw(errors), "Test errors of the cells, a point for each seed")
    yield Heading("How it was measured")
    yield Paragraph(COORDINATES_IN_WORDS)
    yield Paragraph(
        "The networks are Arch1 (no normalization) and Arch2 (batch normalization) of the symmetry "
        f"paper, with {config.depth} hidden layers, on {config.dataset}: {config.train_size:,} "
        f"training images, minibatches of {config.batch_size}, the loss summed over each. "
        f"{config.epochs} epochs; the rate is multiplied by {config.decay:.4g} after each, so that "
        "it falls as far as in the paper's 60. SGD has no momentum. AdamW has decoupled weight "
        "decay on the coordinates that it steps. Errors are rates on the test images after the "
        "last epoch, mean ± standard deviation over n seeds that did not diverge, at the rate of "
        "lowest validation error. Differences are paired over seeds; 95 % intervals are not "
        "corrected for their number. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(runs[0].versions.items()))}."
    )
    yield Heading("Differences")
    yield Table(
        ("difference", "network", "optimizer", "mean", "95 % interval", "n"),
        tuple(
            (f"{a} − {b}", network, optimizer, *found.signed(), str(found.n))
            for (a, b), rows in differences.items()
            for network, optimizer, found in rows
        ),
        words=3,
    )
    yield Heading("Rates")
    if choice:
        first = choice[0].config
        seeds = len({record.config.seed for record in choice})
        yield Paragraph(
            f"Validation errors after {first.epochs} epochs, {seeds} seed{'s' * (seeds > 1)} for "
            "each rate; a run that diverged counts as 1. A grid was widened where its best rate "
            "was at an edge. Where runs of the comparison diverged, the next lower rate was run "
            "too."
        )
    tried = validation_errors(choice)
    rates = sorted({lr for own in tried.values() for lr in own})
    yield Table(
        ("cell", *(f"{lr:g}" for lr in rates)),
        tuple(
            (" ".join(cell), *(f"{own[lr]:.4f}" if lr in own else "" for lr in rates))
            for cell, own in sorted(tried.items())
        ),
    )
    yield Paragraph("Runs of the comparison, and how many of them diverged:")
    counts: dict[tuple[Cell, float], list[bool]] = {}
    for record in runs:
        if record.result is not None:
            counts.setdefault((cell_of(record.config), record.lr), []).append(
                record.result.diverged
            )
    yield Table(
        ("cell", "rate", "runs", "diverged"),
        tuple(
            (" ".join(cell), f"{lr:g}", str(len(each)), str(sum(each)))
            for (cell, lr), each in sorted(counts.items(), key=lambda item: str(item[0]))
        ),
    )


def _entry(own: Mapping[int, float]) -> str:
    return f"{mean_and_deviation(own.values())} (n = {len(own)})"


def _differences(errors: Errors, one: str, other: str) -> Iterator[tuple[str, str, Estimate]]:
    for network, optimizer in dict.fromkeys(cell[:2] for cell in CELLS):
        a, b = (errors[Cell(network, optimizer, c)] for c in (one, other))
        yield network, optimizer, paired(a, b)


def _answer(one: str, other: str, found: Sequence[tuple[str, str, Estimate]]) -> str:
    """The comparison of two coordinates in a sentence."""
    better = [f"{n} with {o}" for n, o, e in found if e.n > 1 and e.high < 0]
    worse = [f"{n} with {o}" for n, o, e in found if e.n > 1 and e.low > 0]
    known = sum(e.n > 1 for _, _, e in found)
    said = [
        f"makes {kind} errors in {len(cells)} of {known} comparisons ({', '.join(cells)})"
        for kind, cells in (("fewer", better), ("more", worse))
        if cells
    ]
    if not known:
        return f"No two seeds compare {one} with {other}."
    rest = known - len(better) - len(worse)
    if rest:
        said.append(f"is within chance in {rest}")
    return f"Compared with {other}, {one} {' and '.join(said)}."


def _draw(errors: Errors) -> bytes:
    """A panel for each network; a column of points for each cell, its mean and interval."""
    figure = new_figure(8.0, 3.8)
    networks = list(dict.fromkeys(cell.architecture for cell in CELLS))
    for axes, network in zip(figure.subplots(1, 2), networks, strict=True):
        panel(axes, network.capitalize(), "")
        cells = [cell for cell in CELLS if cell.architecture == network]
        ticks: dict[float, str] = {}
        for place, cell in enumerate(cells):
            x, own = place + place // 3, [100 * e for e in errors[cell].values()]
            colour = OF_COORDINATES[cell.update]
            axes.plot([x] * len(own), own, "o", color=colour, alpha=0.45, markersize=4)
            found = estimate(own)
            if found.n > 1:
                half = found.high - found.mean
                axes.errorbar(x + 0.25, found.mean, half, fmt="s", color=colour, capsize=3)
            if place % 3 == 1:
                ticks[x] = OF_OPTIMIZERS[cell.optimizer]
            if place < 3:
                axes.plot([], [], "s", color=colour, label=cell.update.replace("-", " "))
        axes.set_xticks(list(ticks), list(ticks.values()))
        if network == networks[0]:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        axes.set_ylabel("test error (%)", color=INK)
    figure.supxlabel("points: seeds; squares: mean with its 95 % interval", fontsize=8, color=MUTED)
    return svg(figure)
