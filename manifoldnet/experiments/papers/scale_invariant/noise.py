"""What wrong labels and outliers cost each method. Reads records only.

Each method is taken at the rate (and dimension) that the validation images choose for each share,
as somebody would who tunes on the data at hand; their labels are right. Its error on clean training
data, likewise tuned, stands at share 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from manifoldnet.experiments.canvas import INK, new_figure, png, style
from manifoldnet.experiments.document import Block, Paragraph, Table
from manifoldnet.experiments.papers.scale_invariant.curves import Curve, best, curves
from manifoldnet.experiments.papers.scale_invariant.figures import COLOURS
from manifoldnet.experiments.papers.scale_invariant.grids import edge_label
from manifoldnet.experiments.papers.scale_invariant.rows import StageRecord
from manifoldnet.experiments.spreadsheet import csv_text
from manifoldnet.experiments.statistics import paired

COLUMNS = (
    *("dataset", "architecture", "method", "h", "m", "seed", "kind", "share", "test_error"),
    *("gradient_norm", "largest_gradient_norm", "step_ratio", "largest_step_ratio"),
)


class Setting(NamedTuple):
    """What is wrong with the training data: ``"wrong labels"`` or ``"outliers"``, and how many."""

    kind: str
    share: float


Settings = dict[Setting, list[Curve]]


def by_setting(records: Sequence[StageRecord]) -> Settings:
    """Curves of the runs of a sweep over corrupted data; the clean ones belong to each kind."""
    groups: dict[Setting, list[StageRecord]] = {}
    kinds = {kind for record in records for kind, share in _shares(record) if share}
    for record in records:
        for kind, share in _shares(record):
            clean = not any(share for _, share in _shares(record))
            if kind in kinds and (share or clean):
                groups.setdefault(Setting(kind, share), []).append(record)
    return {setting: curves(groups[setting]) for setting in sorted(groups)}


def _shares(record: StageRecord) -> tuple[tuple[str, float], ...]:
    return ("wrong labels", record.config.wrong_labels), ("outliers", record.config.outliers)


def to_csv(found: Settings) -> str:
    """One row per run, under `COLUMNS`, with the gradients and steps of its last epoch."""
    rows = []
    for setting, members in found.items():
        for curve in members:
            for run in curve.runs:
                last = run.epochs[-1]
                numbers = {name: getattr(last, name) for name in COLUMNS[8:]}
                rows.append(
                    {
                        "dataset": run.config.dataset,
                        "architecture": run.config.architecture,
                        "method": curve.method,
                        "h": f"{curve.lr:g}",
                        "m": "" if curve.embedding_dim is None else curve.embedding_dim,
                        "seed": run.config.seed,
                        "kind": setting.kind,
                        "share": f"{setting.share:g}",
                        **{k: "" if math.isnan(v) else f"{v:.6g}" for k, v in numbers.items()},
                    }
                )
    return csv_text(COLUMNS, rows)


def blocks(found: Settings) -> Iterator[Block]:
    """Errors of each method at its best rate, and what they lost against clean data."""
    yield Paragraph(
        "Each method at the rate and dimension that its own validation images (with right labels) "
        "choose for each share, of so many combinations. Lost: against the same on clean training "
        "data; where there are several seeds, what the rescaled stage lost less what logistic "
        "regression lost, paired over seeds, stands in the second table."
    )
    rows, differences = [], []
    for setting, members in found.items():
        for method in COLOURS:
            curve, cost = best(members, method), lost(found, setting, method)
            if curve is None:
                continue
            last = [run.epochs[-1] for run in curve.runs]
            rows.append(
                (
                    setting.kind,
                    f"{100 * setting.share:g} %",
                    method,
                    edge_label(curve, members),
                    str(sum(c.method == method for c in members)),
                    f"{curve.mean():.4f}",
                    f"{fmean(cost.values()):+.4f}" if cost else "–",
                    str(len(curve.final())),
                    f"{fmean(epoch.gradient_norm for epoch in last):.2g}",
                    f"{max(epoch.largest_gradient_norm for epoch in last):.2g}",
                )
            )
        apart = paired(lost(found, setting, "rescaled"), lost(found, setting, "logistic"))
        if setting.share and apart.n > 1:
            differences.append(
                (
                    setting.kind,
                    f"{100 * setting.share:g} %",
                    f"{apart.mean:+.4f}",
                    f"{apart.low:+.4f} to {apart.high:+.4f}",
                    str(apart.n),
                )
            )
    header = (
        *("training data", "share", "method", "chosen", "of", "test error", "lost", "n"),
        *("mean ‖gradient‖", "largest"),
    )
    yield Table(header, tuple(rows), words=4)
    if differences:
        apart_header = ("training data", "share", "rescaled − logistic", "95 % interval", "n")
        yield Table(apart_header, tuple(differences), words=2)


def lost(found: Settings, setting: Setting, method: str) -> dict[int, float]:
    """What a method's test error is above that on clean training data, by seed."""
    curve = best(found[setting], method)
    clean = best(found.get(Setting(setting.kind, 0.0), ()), method)
    if curve is None or clean is None:
        return {}
    one, other = curve.final(), clean.final()
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def draw(found: Settings) -> bytes:
    """Test error against the share, for each kind of corruption, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    kinds = sorted({setting.kind for setting in found})
    figure = new_figure(4.4 * len(kinds), 4.2)
    panels = dict(zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0], strict=True))
    for kind, axes in panels.items():
        style(axes)
        axes.set_title(kind, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("share of the training images (%)", color=INK)
        for method, colour in COLOURS.items():
            at = {
                100 * setting.share: best(members, method)
                for setting, members in found.items()
                if setting.kind == kind and any(c.method == method for c in members)
            }
            points = [(share, 100 * curve.mean()) for share, curve in at.items() if curve]
            lost = [share for share, curve in at.items() if curve is None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=method)
            if lost:
                axes.plot(
                    lost,
                    [1.0] * len(lost),
                    "x",
                    color=colour,
                    label=f"{method}: overflow at every rate",
                    transform=axes.get_xaxis_transform(),  # at the top, whatever the errors
                    clip_on=False,
                )
        axes.set_ylim(bottom=0)
    named = {
        name: handle
        for axes in panels.values()
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.axes[0].set_ylabel("test error (%), chosen rate", color=INK)
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), frameon=False
    )
    return png(figure)
