"""The files of a comparison: ``table.md``, ``results.csv`` and ``test_error.png``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.papers.symmetry.config import Record, TrainConfig
from manifoldnet.experiments.papers.symmetry.figures import plot_test_error
from manifoldnet.experiments.records import runs_frame
from manifoldnet.experiments.report import Report, Table, csv_text, read_csv, to_markdown
from manifoldnet.experiments.statistics import mean_and_deviation

# Rows that agree in these columns are of the same run.
_KEY = ("architecture", "depth", "update", "schedule", "lr", "seed", "epochs")
COLUMNS = (*_KEY, "test_error", "seconds")


def write_report(records: Sequence[Record], directory: Path) -> Report:
    """Write ``table.md``, ``results.csv`` and ``test_error.png`` into ``directory``.

    Args:
        records: runs whose configurations differ in update and seed only; at least one.
        directory: folder of the three files.
    """
    config = records[0].config
    heading = describe(config)
    seeds = sorted({record.config.seed for record in records})
    text = f"{heading}\nepochs: {config.epochs}, seeds: {', '.join(map(str, seeds))}\n\n"
    text += summary(records)
    for record in records:
        if record.result is not None and record.result.diverged:
            run = f"{record.config.update}, seed {record.config.seed}"
            text += f"\n{run}: diverged, {record.result.reason}\n"
    names = ("table.md", "results.csv", "test_error.png")
    table, spreadsheet, picture = (directory / name for name in names)
    write_text(table, text)
    write_text(spreadsheet, csv_text(COLUMNS, rows(records)))
    plot_test_error(records, picture, heading)
    return Report(text, (table, spreadsheet, picture))


def describe(config: TrainConfig) -> str:
    """The settings that the runs of a comparison share, in one line."""
    rate = "λ chosen for each run" if config.lr is None else f"λ = {config.lr:g}"
    bold = config.schedule == "bold-driver"
    schedule = f"{rate}, bold driver" if bold else f"{rate} × {config.decay:g} per epoch"
    layers = "1 hidden layer" if config.depth == 1 else f"{config.depth} hidden layers"
    return f"{config.dataset}, {config.architecture.capitalize()} with {layers}, {schedule}"


def summary(records: Sequence[Record]) -> str:
    """A Markdown table with one line per update.

    Means and standard deviations (of a sample, n − 1) are over the runs that finished; as in the
    paper, those that diverged are left out and counted. Errors are rates after the last epoch, not
    the lowest of all epochs.
    """
    lines = []
    for update in dict.fromkeys(record.config.update for record in records):
        of_update = [record for record in records if record.config.update == update]
        ended = runs_frame(record for record in of_update if record.result is not None)
        finished = ended[~ended.diverged] if len(ended) else ended
        errors = [finished.get(name, []) for name in ("test_error", "validation_error")]
        seconds = [epoch.train_seconds for record in of_update for epoch in record.epochs]
        lines.append(
            (
                *(update, *map(mean_and_deviation, errors)),
                *(str(len(finished)), str(len(ended) - len(finished))),
                f"{fmean(seconds):.3f}" if seconds else "–",
            )
        )
    header = ("update", "test error", "validation error", "n", "diverged", "s/epoch")
    return to_markdown([Table(header, tuple(lines))])


def rows(records: Iterable[Record]) -> list[dict[str, str]]:
    """One row per ended run, under `COLUMNS`; ``seconds`` is the wall clock of the whole run."""
    return [
        {
            **{name: str(getattr(record.config, name)) for name in _KEY},
            "lr": repr(record.lr),
            "test_error": f"{record.result.test_error:.6g}",
            "seconds": f"{record.result.seconds:.2f}",
        }
        for record in records
        if record.result is not None
    ]


def merge_csv(records: Iterable[Record], path: Path) -> None:
    """Put the rows of ``records`` into an existing CSV file (or a new one), in one atomic step.

    A row that agrees with a new one in all columns but the test error and the seconds is replaced
    in its place; others are kept; new ones follow. The columns do not name the data set, the
    momentum or the sizes: keep one file for each.

    Raises:
        RecordError: when the file is not such a table.
    """
    table = _by_key(path) if path.exists() else {}
    table.update({_key(row): row for row in rows(records)})
    write_text(path, csv_text(COLUMNS, table.values()))


def check_csv(path: Path) -> None:
    """Raise the errors of `merge_csv` before there is anything to merge."""
    if path.exists():
        _by_key(path)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RecordError(f"{path} cannot be written ({nearest} is no folder to write in)")


def _by_key(path: Path) -> dict[tuple[str | float, ...], dict[str, str]]:
    way_out = "correct it, or give --csv another file"
    return dict(read_csv(path, COLUMNS, lambda row: (_key(row), row), way_out))


def _key(row: Mapping[str, str]) -> tuple[str | float, ...]:
    """The identity of a run; numbers as numbers, so that 0.01 and 1e-2 are the same rate."""
    numbers = ("depth", "lr", "seed", "epochs")
    return tuple(float(row[name]) if name in numbers else row[name] for name in _KEY)
