"""The report on the cells of Table 2 with AdamW and Muon. Reads records only.

<folder>/records -> table2_optimizers.csv, -light.svg, -dark.svg, .md, .html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from manifoldnet.experiments import store
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    COORDINATES,
    TABLE,
    TABLE_SCHEMA,
    TableCell,
    TableRecord,
    table_cell_of,
)
from manifoldnet.experiments.papers.symmetry.moving_frame.report import (
    COORDINATES_IN_WORDS,
    OF_COORDINATES,
)
from manifoldnet.experiments.plotting import INK, MUTED, new_figure, panel, svg
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
from manifoldnet.experiments.statistics import Estimate, mean_and_deviation, paired

NAME = "table2_optimizers"
COLUMNS = (
    *(*TableCell._fields, "seed", "lr", "epochs"),
    *("test_error", "validation_error", "diverged"),
)

OF_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
"""Names."""

_AGAINST = (
    ("scaled-metric", "plain"),
    ("moving-frame", "plain"),
    ("moving-frame", "scaled-metric"),
)


class Setting(NamedTuple):
    """The cells that differ in their coordinates only."""

    architecture: str
    depth: int
    schedule: str

    def cell(self, optimizer: str, update: str) -> TableCell:
        """One of them."""
        return TableCell(self.architecture, self.depth, optimizer, update, self.schedule)


SETTINGS = tuple(dict.fromkeys(Setting(c.architecture, c.depth, c.schedule) for c in TABLE))

Errors = Mapping[TableCell, Mapping[int, float]]
"""Test errors by cell and seed, of the runs that did not diverge."""


def write_table_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of `manifoldnet reproduce symmetry table2-optimizers`."""
    folder = Path(folder)
    free = (*TableCell._fields, "seed")
    found = store.read_together(folder, TABLE_SCHEMA, free, "symmetry table2-optimizers")
    found.sort(key=lambda r: (TABLE.index(table_cell_of(r.config)), r.config.seed))
    runs = {cell: [r for r in found if table_cell_of(r.config) == cell] for cell in TABLE}
    errors = {
        cell: {
            r.config.seed: r.result.test_error
            for r in own
            if r.result is not None and not r.result.diverged
        }
        for cell, own in runs.items()
    }
    tables = {f"{NAME}.csv": csv_text(COLUMNS, map(_row, found))}
    blocks = list(_blocks(found, runs, errors))
    return publish(blocks, folder if output is None else Path(output), NAME, tables)


def _row(record: TableRecord) -> dict[str, object]:
    result = record.result
    assert result is not None
    return {
        **table_cell_of(record.config)._asdict(),
        "seed": record.config.seed,
        "lr": f"{record.lr:g}",
        "epochs": result.epochs,
        "test_error": f"{result.test_error:.4f}",
        "validation_error": f"{result.validation_error:.4f}",
        "diverged": result.diverged,
    }


def _blocks(
    found: Sequence[TableRecord], runs: Mapping[TableCell, Sequence[TableRecord]], errors: Errors
) -> Iterator[Block]:
    config = found[0].config
    optimizers = [o for o in OF_OPTIMIZERS if any(runs[c] for c in TABLE if c.optimizer == o)]
    yield Heading("Does invariance pay with AdamW and Muon?", 1)
    for optimizer in optimizers:
        answers = (_answer(errors, optimizer, *pair) for pair in _AGAINST)
        yield Paragraph(f"{OF_OPTIMIZERS[optimizer]}: {' '.join(answers)}")
    yield Table(
        (
            *("optimizer", "network", "layers", "schedule", *COORDINATES),
            *(f"{a} − {b} (95 % interval), n" for a, b in _AGAINST),
        ),
        tuple(row for optimizer in optimizers for row in _rows(errors, optimizer)),
        words=4,
    )
    yield Picture(NAME, _draw(errors, optimizers), "Differences of test errors, with intervals")
    yield Heading("How it was measured")
    yield Paragraph(COORDINATES_IN_WORDS)
    yield Paragraph(
        "The networks, the schedules and the protocol are those of Table 2 of the symmetry paper: "
        f"{config.dataset}, {config.train_size:,} training images, minibatches of "
        f"{config.batch_size}, {config.epochs} epochs ({config.min_epochs} to {config.epochs} with "
        "the bold driver). Each run chooses its rate among "
        f"{', '.join(f'{lr:g}' for lr in config.lr_candidates)}, by the error on "
        f"{config.selection_validation_size} of its training images after "
        f"{config.selection_epochs} epochs on {config.selection_train_size:,} others. Muon steps "
        "the matrices of hidden layers, with the exact polar factor and steps of AdamW's size; "
        "AdamW steps the rest, at the same rate. Weight decay is "
        f"{config.weight_decay:g}, decoupled; declared weights have none. The scaled metric "
        f"retracts by the {config.retraction} retraction, as additive steps make norms grow. "
        "Errors are rates on the test images after the last epoch, mean ± standard deviation over "
        "the seeds that did not diverge. Differences are paired over seeds, of n seeds in which "
        "neither run diverged; the rows with all settings have the mean over settings of each "
        "seed. 95 % intervals are not corrected for their number. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(found[0].versions.items()))}."
    )
    missing = [cell for cell, own in runs.items() if not own]
    if missing:
        yield Paragraph(f"Cells without runs: {', '.join('-'.join(map(str, c)) for c in missing)}.")
    yield Heading("Rates chosen, and how runs ended")
    yield Table(
        ("cell", "rate × runs", "runs", "diverged", "mean epochs"),
        tuple(
            (
                "-".join(map(str, cell)),
                ", ".join(
                    f"{lr:g} × {n}" for lr, n in sorted(Counter(r.lr for r in own).items())[::-1]
                ),
                str(len(own)),
                str(len(own) - len(errors[cell])),
                f"{fmean(len(r.epochs) for r in own):.1f}",
            )
            for cell, own in runs.items()
            if own
        ),
        words=2,
    )


def difference(errors: Errors, one: TableCell, other: TableCell) -> Estimate:
    """The difference of two cells, paired over seeds."""
    return paired(errors[one], errors[other])


def mean_difference(errors: Errors, optimizer: str, one: str, other: str) -> Estimate:
    """The mean over settings of the difference of two coordinates, seed by seed.

    Of each seed it is the mean over the settings in which it has both runs.
    """
    found: dict[int, list[float]] = {}
    for setting in SETTINGS:
        a, b = (errors[setting.cell(optimizer, update)] for update in (one, other))
        for seed in a.keys() & b.keys():
            found.setdefault(seed, []).append(a[seed] - b[seed])
    means = {seed: fmean(own) for seed, own in found.items()}
    return paired(means, dict.fromkeys(means, 0.0))


def _rows(errors: Errors, optimizer: str) -> Iterator[tuple[str, ...]]:
    name = OF_OPTIMIZERS[optimizer]
    for setting in SETTINGS:
        cells = {update: setting.cell(optimizer, update) for update in COORDINATES}
        if any(errors[cell] for cell in cells.values()):
            architecture, depth, schedule = setting
            means = (mean_and_deviation(errors[cell].values()) for cell in cells.values())
            pairs = (_text(difference(errors, cells[a], cells[b])) for a, b in _AGAINST)
            yield name, architecture, str(depth), schedule, *means, *pairs
    pairs = (_text(mean_difference(errors, optimizer, a, b)) for a, b in _AGAINST)
    yield name, "all settings", "", "", *[""] * len(COORDINATES), *pairs


def _text(found: Estimate) -> str:
    mean, interval = found.signed()
    return f"{mean} ({interval}), {found.n}" if found.n else "–"


def _answer(errors: Errors, optimizer: str, one: str, other: str) -> str:
    """The comparison of two coordinates in a sentence."""
    each = [
        difference(errors, setting.cell(optimizer, one), setting.cell(optimizer, other))
        for setting in SETTINGS
    ]
    known = [found for found in each if found.n > 1]
    if not known:
        return f"No two seeds compare {one} with {other}."
    mean, interval = mean_difference(errors, optimizer, one, other).signed()
    fewer, more = sum(e.high < 0 for e in known), sum(e.low > 0 for e in known)
    return (
        f"In the mean over settings, {one} changes the error of {other} by {mean} ({interval}); it "
        f"makes fewer errors in {fewer} of {len(known)}, more in {more}, and is within chance in "
        f"{len(known) - fewer - more}."
    )


def _draw(errors: Errors, optimizers: Sequence[str]) -> bytes:
    """A panel for each optimizer: differences from plain by setting, with intervals."""
    figure = new_figure(8.4, 4.2)
    panels = figure.subplots(1, len(optimizers), sharex=True, sharey=True, squeeze=False)[0]
    places = [*SETTINGS, None]
    for axes, optimizer in zip(panels, optimizers, strict=True):
        panel(axes, OF_OPTIMIZERS[optimizer], "test error less that of plain steps (points)")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for shift, update in ((-0.15, "scaled-metric"), (0.15, "moving-frame")):
            for place, setting in enumerate(places):
                found = (
                    mean_difference(errors, optimizer, update, "plain")
                    if setting is None
                    else difference(
                        errors, setting.cell(optimizer, update), setting.cell(optimizer, "plain")
                    )
                )
                if found.n > 1:
                    axes.errorbar(
                        *(100 * found.mean, place + shift),
                        xerr=100 * (found.high - found.mean),
                        fmt="s" if setting is None else "o",
                        color=OF_COORDINATES[update],
                        capsize=2,
                        markersize=4,
                        label=update.replace("-", " ") if place == 0 else None,
                    )
        axes.set_yticks(
            range(len(places)),
            ["all settings" if s is None else f"{s[0]}, {s[1]} layers, {s[2]}" for s in places],
        )
    panels[0].invert_yaxis()
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return svg(figure)
