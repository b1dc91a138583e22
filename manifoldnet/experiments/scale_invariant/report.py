"""The report on a folder of the scale-invariant paper's runs. Reads records only.

    <folder>/<sweep>/records/*.jsonl, <folder>/stage_cost.csv
    -> scale_invariant.csv, .md, .html, scale_invariant_figure1.png …, label_noise.csv, .png

What there is comes out: figures whose runs are there, comparisons, every learning rate, wrong
labels and outliers. Runs that were judged by validation images choose rates, and are in none of
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    publish,
)
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.scale_invariant import (
    costs,
    figures,
    grids,
    noise,
    reliability,
    stability,
)
from manifoldnet.experiments.scale_invariant.config import StageConfig
from manifoldnet.experiments.scale_invariant.curves import Curve, curves
from manifoldnet.experiments.scale_invariant.grids import FIGURES
from manifoldnet.experiments.scale_invariant.rows import SCALE_INVARIANT, StageRecord
from manifoldnet.experiments.spreadsheet import csv_text
from manifoldnet.experiments.statistics import estimate, paired

COLUMNS = (
    *("figure", "dataset", "architecture", "method", "h", "m", "seed", "epoch"),
    "test_error",
)


def write_stage_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Writes the report on the sweeps below a folder, or on the one in it.

    Args:
        folder: with the records of a sweep, or with folders of sweeps.
        output: where the files go; by default into `folder`.

    Raises:
        RecordError: when there are no records, or one is damaged or foreign; when the costs are
            damaged.
        MissingExtraError: without matplotlib.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    found = {r.config.identity(): r for place in sweeps(folder) for r in _read(place)}
    tested = [record for record in found.values() if not record.config.validation_size]
    if not tested:
        raise RecordError(
            f"{folder} holds no records with test errors: make some with manifoldnet reproduce "
            f"figure5 --out {folder}"
        )
    rates = set(grids.stability())
    stable = [r for r in tested if replace(r.config, seed=0) in rates]
    clean = [
        r for r in tested if r not in stable and not (r.config.wrong_labels or r.config.outliers)
    ]
    corrupted = noise.by_setting(tested)
    tables = {"scale_invariant.csv": to_csv([*clean, *stable])}
    if corrupted:
        tables["label_noise.csv"] = noise.to_csv(corrupted)
    blocks = list(_blocks(tested[0].versions, clean, stable, corrupted))
    if (measured := costs.read(folder)) is not None:
        blocks += costs.blocks(measured)
    return publish(blocks, output, "scale_invariant", tables)


def sweeps(folder: Path) -> list[Path]:
    """The folders of sweeps: this one, or those in it."""
    if (folder / "records").is_dir() or not folder.is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/records"))


def to_csv(records: Sequence[StageRecord]) -> str:
    """One row per epoch, under `COLUMNS`; an error that is not known is empty."""
    rows = []
    for record in sorted(records, key=_order):
        config = record.config
        for epoch in record.epochs:
            error = epoch.test_error
            rows.append(
                {
                    "figure": _figure_of(config) or "",
                    "dataset": config.dataset,
                    "architecture": config.architecture,
                    "method": config.method,
                    "h": f"{record.lr:g}",
                    "m": "" if config.embedding_dim is None else config.embedding_dim,
                    "seed": config.seed,
                    "epoch": epoch.epoch,
                    "test_error": "" if math.isnan(error) else f"{error:.6g}",
                }
            )
    return csv_text(COLUMNS, rows)


def _read(place: Path) -> list[StageRecord]:
    return list(folders.read_all(place, SCALE_INVARIANT, exact=False).values())


def _order(record: StageRecord) -> tuple[Any, ...]:
    return _setting(record.config), record.config.label, record.config.seed


def _setting(config: StageConfig) -> tuple[str, ...]:
    """What runs of one figure or comparison share."""
    same = replace(config, method="logistic", lr=1.0, embedding_dim=None, seed=0)
    return config.dataset, config.architecture, same.identity()


def _figure_of(config: StageConfig) -> int | None:
    for number, figure in FIGURES.items():
        if (figure.dataset, figure.architecture) == (config.dataset, config.architecture):
            return number
    return None


def _settings(records: Sequence[StageRecord]) -> dict[tuple[str, ...], list[StageRecord]]:
    groups: dict[tuple[str, ...], list[StageRecord]] = {}
    for record in records:
        groups.setdefault(_setting(record.config), []).append(record)
    return dict(sorted(groups.items()))


def _amount(config: StageConfig) -> str:
    images = "all training images" if config.train_size is None else f"{config.train_size:,} images"
    return f"{images}, {config.epochs} epochs"


def _blocks(
    versions: Mapping[str, str],
    clean: Sequence[StageRecord],
    stable: Sequence[StageRecord],
    corrupted: noise.Settings,
) -> Iterator[Block]:
    yield Heading("Scale-invariant learning and convolutional networks", 1)
    yield Paragraph(
        "Errors are rates on the test images after the last epoch. A run diverged when a number in "
        "the network was not finite. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}."
    )
    comparisons = {}
    for members in _settings(clean).values():
        config = members[0].config
        yield Heading(f"{config.dataset}, {config.architecture}: {_amount(config)}")
        found = curves(members)
        yield _table(found)
        yield from _differences(found)
        number = _figure_of(config)
        if len({curve.method for curve in found}) == len(found):
            comparisons[f"{config.dataset}, {_amount(config)}"] = found
        elif number is not None:  # a grid: several rates of a method
            title = f"{FIGURES[number].title} ({_amount(config)})"
            name = f"scale_invariant_figure{number}.png"
            yield Picture(name, figures.draw(found, title), f"Figure {number}: {title}")
    yield from reliability.blocks(comparisons)
    if stable:
        yield from stability.blocks(stable)
    if corrupted:
        yield Heading("Wrong labels and outliers")
        yield from noise.blocks(corrupted)
        text = "Test error against corrupted data"
        yield Picture("label_noise.png", noise.draw(corrupted), text)


def _table(found: Sequence[Curve]) -> Table:
    rows = []
    for curve in found:
        final = estimate(list(curve.final().values()))
        mean = "–" if final.n == 0 else f"{final.mean:.4f}"
        rows.append(
            (
                curve.method,
                f"{curve.lr:g}",
                "–" if curve.embedding_dim is None else str(curve.embedding_dim),
                mean + (f" ± {final.deviation:.4f}" if final.n > 1 else ""),
                str(final.n),
                str(curve.diverged),
            )
        )
    return Table(("method", "h", "m", "test error", "n", "diverged"), tuple(rows))


def _differences(found: Sequence[Curve]) -> Iterator[Block]:
    """Rescaled against the others, where each has one rate and several seeds."""
    methods = {curve.method for curve in found}
    if len(methods) < len(found) or "rescaled" not in methods:
        return
    (rescaled,) = (curve for curve in found if curve.method == "rescaled")
    rows = []
    for curve in found:
        difference = paired(rescaled.final(), curve.final())
        if curve is not rescaled and difference.n > 1:
            rows.append(
                (
                    f"rescaled − {curve.method}",
                    f"{difference.mean:+.4f}",
                    f"{difference.low:+.4f} to {difference.high:+.4f}",
                    str(difference.n),
                )
            )
    if rows:
        yield Table(("difference", "test error", "95 % interval", "n"), tuple(rows))
