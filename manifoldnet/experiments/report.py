"""What a comparison leaves for people: a table, a spreadsheet and a picture.

Reads records, trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifoldnet.experiments import plots, tables
from manifoldnet.experiments.config import TrainConfig
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.records import Record


@dataclass(frozen=True)
class Report:
    """What has been written.

    Attributes:
        text: the summary as Markdown, with a heading and what became of runs that diverged.
        table: where that text is.
        csv: one row per run.
        picture: test error against epochs.
    """

    text: str
    table: Path
    csv: Path
    picture: Path


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
    report = Report(
        text, directory / "table.md", directory / "results.csv", directory / "test_error.png"
    )
    write_text(report.table, text)
    tables.write_csv(records, report.csv)
    plots.plot_test_error(records, report.picture, heading)
    return report


def describe(config: TrainConfig) -> str:
    """What the runs of a comparison share, in one line."""
    rate = "λ chosen for each run" if config.lr is None else f"λ = {config.lr:g}"
    schedule = {
        "exponential": f"{rate} × {config.decay:g} per epoch",
        "bold-driver": f"{rate}, bold driver",
    }[config.schedule]
    layers = "1 hidden layer" if config.depth == 1 else f"{config.depth} hidden layers"
    return f"{config.dataset}, {config.architecture.capitalize()} with {layers}, {schedule}"
