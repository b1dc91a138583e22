"""The report on runs of SegNet. Reads records only.

<folder>/records/*.jsonl -> segnet.csv, segnet.png, segnet.md, segnet.html

Of the pictures of predictions that `pictures` left in the folder, the one with the photographs is
shown if the report stays there, the other one if it goes elsewhere (and if it has been there from
an earlier report, when records alone are in the folder).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments.canvas import COLOURS, INK, MUTED, new_figure, png, style
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
from manifoldnet.experiments.papers.segnet.images import CLASSES
from manifoldnet.experiments.papers.segnet.rows import (
    PREDICTIONS,
    SEGMENTATION,
    WITHOUT_PHOTOGRAPHS,
    SegmentationRecord,
)
from manifoldnet.experiments.papers.segnet.scores import Scores, scores
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.spreadsheet import csv_text
from manifoldnet.experiments.statistics import paired

COLUMNS = ("update", "seed", "global_accuracy", "class_accuracy", "mean_iou", "seconds")
_MEASURES = {
    "global_accuracy": "global accuracy",
    "class_accuracy": "class average accuracy",
    "mean_iou": "mean IoU",
}
Runs = Mapping[str, Sequence[SegmentationRecord]]


def write_scene_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Writes the report on the runs of a sweep.

    Args:
        folder: with the records.
        output: where the files go; by default into `folder`.

    Raises:
        RecordError: when there are no records, one is damaged or foreign, or two cannot stand in
            one report.
        MissingExtraError: without matplotlib.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    found = list(folders.read_all(folder, SEGMENTATION, exact=False).values())
    if not found:
        raise RecordError(
            f"{folder} holds no records: make some with "
            f"manifoldnet reproduce symmetry segnet --out {folder}"
        )
    _check_alike(folder, found)
    runs = {
        update: sorted((r for r in found if r.config.update == update), key=_seed)
        for update in UPDATES
        if any(r.config.update == update for r in found)
    }
    pictures = [Picture("segnet.png", _draw(runs), "Validation scores by epoch")]
    name = PREDICTIONS if output.absolute() == folder.absolute() else WITHOUT_PHOTOGRAPHS
    drawn = next((path for path in (folder / name, output / name) if path.exists()), None)
    if drawn is not None:
        pictures.append(Picture(name, drawn.read_bytes(), "Predictions on test images"))
    return publish(list(_blocks(runs, pictures)), output, "segnet", {"segnet.csv": to_csv(runs)})


def _check_alike(folder: Path, found: Sequence[SegmentationRecord]) -> None:
    first = found[0]
    seen: set[tuple[str, int]] = set()
    for record in found:
        config = record.config
        same = replace(first.config, update=config.update, lr=config.lr, seed=config.seed)
        apart = same.differences(config)
        if record.data != first.data:
            apart = f"data of checksum {record.data} there, {first.data} here"
        if not apart and (config.update, config.seed) in seen:
            apart = f"another run of {config.update} with seed {config.seed} is there"
        if apart:
            raise RecordError(
                f"{folder / 'records' / config.identity()}.jsonl cannot stand in one report with "
                f"the others ({apart}): move one of them to another folder"
            )
        seen.add((config.update, config.seed))


def to_csv(runs: Runs) -> str:
    """One row per run, under `COLUMNS`; scores of a diverged run are empty."""
    rows = []
    for update, records in runs.items():
        for record in records:
            result = record.result
            if result is None:
                continue
            values = {name: getattr(result, name) for name in _MEASURES}
            rows.append(
                {
                    "update": update,
                    "seed": record.config.seed,
                    **{k: "" if math.isnan(v) else f"{v:.6g}" for k, v in values.items()},
                    "seconds": f"{result.seconds:.1f}",
                }
            )
    return csv_text(COLUMNS, rows)


def _blocks(runs: Runs, pictures: Sequence[Picture]) -> Iterator[Block]:
    config = next(iter(runs.values()))[0].config
    versions = next(iter(runs.values()))[0].versions
    yield Heading("SegNet on road scenes", 1)
    yield Paragraph(
        f"{config.dataset} at {config.height}x{config.width}, {config.filters} filters in the "
        f"first stage, {config.epochs} epochs, minibatches of {config.batch_size}, momentum "
        f"{config.momentum:g}, rate × {config.decay:g} per epoch. Scores are those of the test "
        "images after the last epoch, void pixels left out; mean ± standard deviation over seeds. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}."
    )
    yield Table(
        ("update", "λ", *_MEASURES.values(), "n", "diverged", "s/epoch"),
        tuple(_summary(update, records) for update, records in runs.items()),
    )
    yield from pictures
    if differences := tuple(_against(runs)):
        yield Heading("Updates against B-SGD, paired over seeds")
        yield Paragraph("Differences with 95 % intervals; not corrected for their number.")
        yield Table(("difference", "in", "mean", "95 % interval", "n"), differences, words=2)
    yield Heading("Classes: IoU on the test images")
    yield _by_class(runs)


def _summary(update: str, records: Sequence[SegmentationRecord]) -> tuple[str, ...]:
    ended = [record.result for record in records if record.result is not None]
    finished = [result for result in ended if not result.diverged]
    seconds = [epoch.train_seconds for record in records for epoch in record.epochs]
    return (
        update,
        ", ".join(sorted({f"{record.lr:g}" for record in records})),
        *(_mean([getattr(result, name) for result in finished]) for name in _MEASURES),
        str(len(finished)),
        str(len(ended) - len(finished)),
        f"{sorted(seconds)[len(seconds) // 2]:.1f}",
    )


def _against(runs: Runs) -> Iterator[tuple[str, ...]]:
    base = runs.get("b-sgd", ())
    for update, records in runs.items():
        if update == "b-sgd" or not base:
            continue
        for name, words in _MEASURES.items():
            difference = paired(_by_seed(records, name), _by_seed(base, name))
            interval = "–"
            if difference.n > 1:
                interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
            mean = f"{difference.mean:+.3f}" if difference.n else "–"
            yield (f"{update} − b-sgd", words, mean, interval, str(difference.n))


def _by_seed(records: Sequence[SegmentationRecord], name: str) -> dict[int, float]:
    return {
        record.config.seed: getattr(record.result, name)
        for record in records
        if record.result is not None and not record.result.diverged
    }


def _by_class(runs: Runs) -> Table:
    found = {update: _test_scores(records) for update, records in runs.items()}
    names = CLASSES[next(iter(runs.values()))[0].config.dataset]
    rows = tuple(
        (name, *(_mean([score.ious[i] for score in found[update]]) for update in runs))
        for i, name in enumerate(names)
    )
    return Table(("class", *runs), rows)


def _test_scores(records: Sequence[SegmentationRecord]) -> list[Scores]:
    matrices = [record.epochs[-1].test_confusion for record in records if record.epochs]
    return [_scores(matrix) for matrix in matrices if matrix is not None]


def _scores(matrix: Sequence[int]) -> Scores:
    classes = math.isqrt(len(matrix))
    return scores(torch.tensor(matrix).reshape(classes, classes))


def _draw(runs: Runs) -> bytes:
    figure = new_figure(9.6, 3.6)
    for axes, name in zip(figure.subplots(1, 3), _MEASURES, strict=True):
        style(axes)
        axes.set_title(_MEASURES[name], loc="left", fontsize=10, color=INK)
        axes.set_xlabel("epoch", color=INK)
        for update, records in runs.items():
            lines = [
                [100 * getattr(_scores(e.validation_confusion), name) for e in record.epochs]
                for record in records
                if record.result is not None and not record.result.diverged
            ]
            if not lines:
                continue
            columns = list(zip(*lines, strict=True))
            epochs, colour = range(1, len(columns) + 1), COLOURS.get(update, INK)
            axes.fill_between(
                epochs, *map(list, (map(min, columns), map(max, columns))), color=colour, alpha=0.13
            )
            axes.plot(epochs, [fmean(c) for c in columns], color=colour, label=update, lw=1.4)
        axes.set_ylim(0, 100)
    figure.axes[0].set_ylabel("validation images (%)", color=INK)
    if figure.axes[0].lines:
        figure.axes[0].legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    figure.supxlabel(
        "lines: mean over seeds; bands: from the worst to the best seed", fontsize=8, color=MUTED
    )
    return png(figure)


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def _seed(record: SegmentationRecord) -> int:
    return record.config.seed
