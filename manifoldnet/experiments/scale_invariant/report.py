"""The report on a folder of the scale-invariant paper's runs. Reads records only.

    <folder>/<sweep>/records/*.jsonl, <folder>/stage_cost.csv
    -> scale_invariant.csv, .md, .html, scale_invariant_figure1.png …, label_noise.csv, .png

What there is comes out: figures whose runs are there, comparisons and how their rates were chosen,
every learning rate, wrong labels and outliers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from manifoldnet.experiments.scale_invariant.config import METHODS
from manifoldnet.experiments.scale_invariant.curves import Curve, best, curves
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
    found = {place.name: _read(place) for place in sweeps(folder)}
    sections = [_section(name, runs) for name, runs in found.items() if runs]
    parts = [section for section in sections if section.kind != "choice"]
    if not parts:
        raise RecordError(
            f"{folder} holds no records with test errors: make some with manifoldnet reproduce "
            f"figure5 --out {folder}"
        )
    blocks = list(_blocks(sections))
    if (measured := costs.read(folder)) is not None:
        blocks += costs.blocks(measured)
    tables = {"scale_invariant.csv": to_csv([part for part in parts if part.kind != "label noise"])}
    for part in parts:
        if part.kind == "label noise":
            name = _file("label_noise", part, sections)
            tables[f"{name}.csv"] = noise.to_csv(noise.by_setting(part.runs))
    return publish(blocks, output, "scale_invariant", tables)


@dataclass(frozen=True)
class Section:
    """The runs of a sweep.

    Attributes:
        name: of its folder.
        kind: ``"label noise"``, ``"stability"``, ``"choice"`` (judged by validation images),
            ``"comparison"`` (each method at one rate) or ``"grid"``.
        runs: all of them, of one protocol.
    """

    name: str
    kind: str
    runs: list[StageRecord]

    @property
    def title(self) -> str:
        """``mnist, smaller: 5,000 images, 6 epochs``."""
        config = self.runs[0].config
        images = (
            "all training images" if config.train_size is None else f"{config.train_size:,} images"
        )
        return f"{config.dataset}, {config.architecture}: {images}, {config.epochs} epochs"


def _section(name: str, runs: list[StageRecord]) -> Section:
    free: dict[str, Any] = {"method": "logistic", "lr": 1.0, "embedding_dim": None, "seed": 0}
    rates = set(grids.stability())
    if any(r.config.wrong_labels or r.config.outliers for r in runs):
        kind, free = "label noise", free | {"wrong_labels": 0.0, "outliers": 0.0}
    elif all(replace(r.config, seed=0) in rates for r in runs):
        kind, free = "stability", free | {"spheres": False}
    elif runs[0].config.validation_size:
        kind = "choice"
    else:
        found = curves(runs)
        kind = "comparison" if len({c.method for c in found}) == len(found) else "grid"
    shared = {replace(r.config, **free): r for r in runs}
    if len(shared) > 1:
        one, other = list(shared)[:2]
        raise RecordError(
            f"the records of {name} are of more than one protocol ({one.differences(other)}): move "
            "some of them to another folder"
        )
    if len({r.data for r in runs}) > 1:
        raise RecordError(
            f"the records of {name} are of different data: move some of them to another folder"
        )
    return Section(name, kind, runs)


def sweeps(folder: Path) -> list[Path]:
    """The folders of sweeps: this one, or those in it."""
    if (folder / "records").is_dir() or not folder.is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/records"))


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


def _read(place: Path) -> list[StageRecord]:
    return list(folders.read_all(place, SCALE_INVARIANT, exact=False).values())


def _figure_of(section: Section) -> str:
    config = section.runs[0].config
    for number, figure in FIGURES.items():
        if (figure.dataset, figure.architecture) == (config.dataset, config.architecture):
            return f"Figure {number}: "
    return ""


def _blocks(sections: Sequence[Section]) -> Iterator[Block]:
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
    comparisons = [section for section in sections if section.kind == "comparison"]
    for section in (*comparisons, *(s for s in sections if s.kind == "grid")):
        found = curves(section.runs)
        yield Heading(f"{section.name}: {section.title}")
        yield _table(found)
        yield from _differences(found)
        if section.kind == "grid":
            title = _figure_of(section) + section.title
            picture = figures.draw(found, title)
            yield Picture(f"scale_invariant_{section.name}.png", picture, title)
    yield from _choices([section for section in sections if section.kind == "choice"])
    yield from reliability.blocks({s.title: curves(s.runs) for s in comparisons})
    for section in sections:
        if section.kind == "stability":
            name = _file("scale_invariant_stability", section, sections)
            yield from stability.blocks(section.runs, f"{name}.png")
        if section.kind == "label noise":
            corrupted = noise.by_setting(section.runs)
            yield Heading(f"Wrong labels and outliers: {section.title}")
            yield from noise.blocks(corrupted)
            text = "Test error against corrupted data"
            name = _file("label_noise", section, sections)
            yield Picture(f"{name}.png", noise.draw(corrupted), text)


def _file(name: str, section: Section, sections: Sequence[Section]) -> str:
    """A file's name without its ending; with the sweep's where there are several of its kind."""
    several = sum(other.kind == section.kind for other in sections) > 1
    return f"{name}_{section.name}" if several else name


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
    rows = []
    for section in sections:
        found = curves(section.runs)
        for method in METHODS:
            own = [curve for curve in found if curve.method == method]
            if (curve := best(found, method)) is not None:
                rates = sorted({c.lr for c in own})
                dimensions = sorted({c.embedding_dim for c in own if c.embedding_dim is not None})
                rows.append(
                    (
                        section.title,
                        method,
                        grids.edge_label(curve, found),
                        f"{rates[0]:g} to {rates[-1]:g}",
                        ", ".join(map(str, dimensions)) or "–",
                        f"{curve.score({run.config.seed for run in curve.runs}):.4f}",
                    )
                )
    header = ("data", "method", "chosen", "h tried", "m tried", "validation error")
    yield Table(header, tuple(rows), words=5)


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
