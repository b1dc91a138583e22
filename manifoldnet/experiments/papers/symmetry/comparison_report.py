"""What a comparison leaves for people: a table, a spreadsheet and a picture.

Reads records, trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifoldnet.experiments.document import Report
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.papers.symmetry import plots, tables
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import Record


def write_report(records: Sequence[Record], directory: Path) -> Report:
    """Writes ``table.md``, ``results.csv`` and ``test_error.png`` into ``directory``.

    Args:
        records: runs of one configuration but for update and seed; at least one.
        directory: where the three files go.
    """
    config = records[0].config
    heading = describe(config)
    seeds = sorted({record.config.seed for record in records})
    text = f"{heading}\nepochs: {config.epochs}, seeds: {', '.join(map(str, seeds))}\n\n"
    text += tables.summary(records)
    for record in records:
        if record.result is not None and record.result.diverged:
            run = f"{record.config.update}, seed {record.config.seed}"
            text += f"\n{run}: diverged, {record.result.reason}\n"
    table, csv, picture = (
        directory / name for name in ("table.md", "results.csv", "test_error.png")
    )
    write_text(table, text)
    tables.write_csv(records, csv)
    plots.plot_test_error(records, picture, heading)
    return Report(text, (table, csv, picture))


def describe(config: TrainConfig) -> str:
    """What the runs of a comparison share, in one line."""
    rate = "λ chosen for each run" if config.lr is None else f"λ = {config.lr:g}"
    schedule = {
        "exponential": f"{rate} × {config.decay:g} per epoch",
        "bold-driver": f"{rate}, bold driver",
    }[config.schedule]
    layers = "1 hidden layer" if config.depth == 1 else f"{config.depth} hidden layers"
    return f"{config.dataset}, {config.architecture.capitalize()} with {layers}, {schedule}"
