"""The report on a folder of the scale-invariant paper's runs. Reads records only.

    <folder>/<sweep>/records/*.jsonl, <folder>/stage_cost.csv
    -> scale_invariant.csv, .md, .html, scale_invariant_figure1.png …, label_noise.csv, .png

What there is comes out, answers first: comparisons, wrong labels and outliers, every learning rate,
figures whose runs are there, how rates were chosen, confidence, and what a step costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from manifoldnet.experiments.papers.scale_invariant import (
    answers,
    comparisons,
    costs,
    figures,
    grids,
    noise,
    reliability,
    stability,
)
from manifoldnet.experiments.papers.scale_invariant.config import METHODS
from manifoldnet.experiments.papers.scale_invariant.costs import Costs
from manifoldnet.experiments.papers.scale_invariant.curves import Curve, best, curves
from manifoldnet.experiments.papers.scale_invariant.sections import Section, read, titles
from manifoldnet.experiments.spreadsheet import csv_text

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
    sections = read(folder)
    parts = [section for section in sections if section.kind != "choice"]
    if not parts:
        raise RecordError(
            f"{folder} holds no records with test errors: make some with manifoldnet reproduce "
            f"scale-invariant figure5 --out {folder}"
        )
    tables = {"scale_invariant.csv": to_csv([part for part in parts if part.kind != "label noise"])}
    for part in parts:
        if part.kind == "label noise":
            name = _file("label_noise", part, sections)
            tables[f"{name}.csv"] = noise.to_csv(noise.by_setting(part.runs))
    blocks = list(_blocks(sections, costs.read(folder)))
    return publish(blocks, output, "scale_invariant", tables)


def to_csv(sections: Sequence[Section]) -> str:
    """One row per epoch, under `COLUMNS`; an error that is not known is empty."""
    return csv_text(
        COLUMNS,
        [
            {
                "figure": section.name.removeprefix("figure"),
                "dataset": record.config.dataset,
                "architecture": record.config.architecture,
                "method": record.config.method + ("-spheres" if record.config.spheres else ""),
                "h": f"{record.lr:g}",
                "m": "" if record.config.embedding_dim is None else record.config.embedding_dim,
                "seed": record.config.seed,
                "epoch": epoch.epoch,
                "test_error": "" if math.isnan(epoch.test_error) else f"{epoch.test_error:.6g}",
            }
            for section in sections
            for record in sorted(section.runs, key=lambda r: (r.config.label, r.config.seed))
            for epoch in record.epochs
        ],
    )


def _blocks(sections: Sequence[Section], measured: Costs | None) -> Iterator[Block]:
    made = {
        ", ".join(f"{k} {v}" for k, v in sorted(run.versions.items()))
        for section in sections
        for run in section.runs
    }
    yield Heading("Scale-invariant learning and convolutional networks", 1)
    yield Paragraph(
        "Errors are rates on the test images after the last epoch. A run diverged when a number in "
        "the network was not finite. "
        f"Made with {'; '.join(sorted(made))}."
    )
    compared = comparisons.comparisons(sections)
    yield from answers.blocks(sections, compared)
    yield from comparisons.blocks(compared, measured)
    names = titles(sections)
    for section in sections:
        if section.kind == "label noise":
            corrupted = noise.by_setting(section.runs)
            yield Heading(f"Wrong labels and outliers: {names[section.name]}")
            yield from noise.blocks(corrupted)
            text = "Test error against corrupted data"
            name = _file("label_noise", section, sections)
            yield Picture(f"{name}.png", noise.draw(corrupted), text)
    for section in sections:
        if section.kind == "stability":
            name = _file("scale_invariant_stability", section, sections)
            yield from stability.blocks(section.runs, f"{name}.png")
    for section in sections:
        if section.kind == "grid":
            title = f"{answers.figure_of(section) or 'Grid'}: {names[section.name]}"
            found = curves(section.runs)
            yield Heading(title)
            yield Picture(f"scale_invariant_{section.name}.png", figures.draw(found, title), title)
            yield _grid(found)
    yield from _choices([section for section in sections if section.kind == "choice"])
    current = {one.title: [one.current(method) for method in one.methods] for one in compared}
    yield from reliability.blocks(
        {title: [curve for curve in members if curve] for title, members in current.items()}
    )
    if measured is not None:
        yield from costs.blocks(measured)


def _file(name: str, section: Section, sections: Sequence[Section]) -> str:
    """A file's name without its ending; with the sweep's where there are several of its kind."""
    several = sum(other.kind == section.kind for other in sections) > 1
    return f"{name}_{section.name}" if several else name


def _grid(found: Sequence[Curve]) -> Table:
    """Test errors, a row for each h, a column for each method and m."""
    stages = sorted(
        {(list(METHODS).index(c.method), c.embedding_dim or 0, c.method) for c in found}
    )
    cells = {(c.method, c.embedding_dim or 0, c.lr): c for c in found}

    def cell(curve: Curve | None) -> str:
        if curve is None:
            return "–"
        if len(curve.runs) == curve.diverged:
            return "diverged"
        lost = f" ({curve.diverged} of {len(curve.runs)} diverged)" if curve.diverged else ""
        return comparisons.error(curve) + lost

    return Table(
        ("h", *(method + (f", m = {m}" if m else "") for _, m, method in stages)),
        tuple(
            (f"{h:g}", *(cell(cells.get((method, m, h))) for _, m, method in stages))
            for h in sorted({curve.lr for curve in found})
        ),
        words=0,
    )


def _choices(sections: Sequence[Section]) -> Iterator[Block]:
    """What the validation images chose, of what."""
    if not sections:
        return
    yield Heading("Rates and dimensions chosen")
    yield Paragraph(
        "By the error on validation images after short runs, one for each h and m; of the test "
        "images nothing is known there. Beyond an h or m at the edge of those tried there may be "
        "a better one; m cannot be below the number of classes."
    )
    rows, names = [], titles(sections)
    for section in sections:
        found = curves(section.runs)
        for method in METHODS:
            own = [curve for curve in found if curve.method == method]
            if (curve := best(found, method)) is not None:
                rates = sorted({c.lr for c in own})
                dimensions = sorted({c.embedding_dim for c in own if c.embedding_dim is not None})
                rows.append(
                    (
                        names[section.name],
                        method,
                        grids.edge_label(curve, found),
                        f"{rates[0]:g} to {rates[-1]:g}",
                        ", ".join(map(str, dimensions)) or "–",
                        f"{curve.score({run.config.seed for run in curve.runs}):.4f}",
                    )
                )
    header = ("data", "method", "chosen", "h tried", "m tried", "validation error")
    yield Table(header, tuple(rows), words=5)
