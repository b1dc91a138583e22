"""The report on runs of SegNet. Reads records only.

<folder>/updates, <folder>/choice, <folder>/limits-* (or the updates in <folder> itself)
    -> segnet.csv, segnet-light.svg, segnet-dark.svg, segnet.md, segnet.html

Of the pictures of predictions in the folder, the one with the photographs is shown if the report
stays there, the other one if it goes elsewhere (and if it is there from an earlier report, when
records alone are in the folder).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from manifoldnet.experiments import store
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.segnet.config import (
    CLASSES,
    LIMITS,
    PRESETS,
    SEGMENTATION,
    Scores,
    SegmentationRecord,
    judged,
    scores,
)
from manifoldnet.experiments.papers.updates import ABBREVIATIONS, UPDATES, in_words
from manifoldnet.experiments.plotting import COLOURS, INK, MUTED, new_figure, panel, svg
from manifoldnet.experiments.records import runs_frame
from manifoldnet.experiments.report import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    publish,
)
from manifoldnet.experiments.statistics import Estimate, mean_and_deviation, paired

PREDICTIONS = "segnet_predictions.png"
"""Image, ground truth and predictions; of CamVid, not to be published."""

WITHOUT_PHOTOGRAPHS = "segnet_predictions_only.png"
"""Predictions and their errors."""

COLUMNS = ("update", "seed", "global_accuracy", "class_accuracy", "mean_iou", "seconds")
_MEASURES = {
    "global_accuracy": "global accuracy",
    "class_accuracy": "class average accuracy",
    "mean_iou": "mean IoU",
}


def write_scene_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of a sweep."""
    folder = Path(folder)
    output = folder if output is None else Path(output)
    free = ("update", "lr", "zoom", "gamma", "seed")
    below = {path.name: path for path in store.sweeps(folder)}
    choice, limits = (
        [
            record
            for name, path in below.items()
            if name.startswith(kind)
            for record in store.read_all(path, SEGMENTATION, exact=False).values()
        ]
        for kind in ("choice", "limits-")
    )
    own = below.get("updates", folder)
    records = store.read_together(own, SEGMENTATION, free, "symmetry segnet")
    order = list(UPDATES)
    found = sorted(records, key=lambda r: (order.index(r.config.update), r.config.seed))
    runs = runs_frame(found)  # scores of a diverged run are NaN
    runs["train_seconds"] = [[epoch.train_seconds for epoch in record.epochs] for record in found]
    tests = [record.epochs[-1].test_confusion for record in found]
    runs["ious"] = [None if test is None else scores(test).ious for test in tests]
    if (again := runs.duplicated(["update", "seed"])).any():
        update, seed = runs.loc[again, ["update", "seed"]].iloc[0]
        raise RecordError(
            f"{folder} holds two runs of {update} with seed {seed}: move one of them to another "
            "folder"
        )
    pictures = [Picture("segnet", _draw(found), "Validation scores of each update by epoch")]
    name = PREDICTIONS if output.absolute() == folder.absolute() else WITHOUT_PHOTOGRAPHS
    drawn = next((path for path in (folder / name, output / name) if path.exists()), None)
    if drawn is not None:
        pictures.append(
            Picture(
                name,
                drawn.read_bytes(),
                "Predictions of each update on test images, and their errors in red",
            )
        )
    rows = runs.assign(seconds=runs["seconds"].map("{:.1f}".format))
    text = rows.to_csv(columns=COLUMNS, index=False, float_format="%.6g", lineterminator="\n")
    blocks = [*_blocks(found[0], runs, pictures), *_by_sequence(found), *_choice(choice)]
    blocks += _limits(limits)
    return publish(blocks, output, "segnet", {"segnet.csv": text})


def _blocks(
    first: SegmentationRecord, runs: pd.DataFrame, pictures: Sequence[Picture]
) -> Iterator[Block]:
    config = first.config
    yield Heading("SegNet on road scenes", 1)
    yield Paragraph(_best(runs))
    by_update = runs.groupby("update", sort=False)
    yield Table(
        ("update", "λ", *_MEASURES.values(), "n", "diverged", "s/epoch"),
        tuple(
            (
                str(update),
                ", ".join(sorted({f"{lr:g}" for lr in own["chosen_lr"]})),
                *(mean_and_deviation(own.loc[~own["diverged"], name], 3) for name in _MEASURES),
                str((~own["diverged"]).sum()),
                str(own["diverged"].sum()),
                f"{own['train_seconds'].explode().quantile(interpolation='higher'):.1f}",
            )
            for update, own in by_update
        ),
    )
    yield Paragraph(
        f"In the table, {ABBREVIATIONS}; λ is the learning rate, IoU intersection over union. "
        "Scores are those of the test images after the last epoch, without void pixels; mean ± "
        "standard deviation over seeds. The class average is the mean of the classes' accuracies."
    )
    yield Paragraph(
        f"{config.dataset} at {config.height}x{config.width}, {config.filters} filters in the "
        f"first stage, {config.epochs} epochs, minibatches of {config.batch_size}, momentum "
        f"{config.momentum:g}, rate × {config.decay:g} per epoch, class weights: "
        f"{config.class_balance}. "
        f"Made with {', '.join(f'{k} {v}' for k, v in sorted(first.versions.items()))}."
    )
    yield from pictures
    if differences := tuple(_differences(runs)):
        yield Heading("Updates against B-SGD, paired over seeds")
        yield Paragraph("Differences with 95 % intervals; not corrected for multiple comparisons.")
        yield Table(("difference", "in", "mean", "95 % interval", "n"), differences, words=2)
    yield Heading("Classes: IoU on the test images")
    ious = {str(update): pd.DataFrame(own["ious"].dropna().tolist()) for update, own in by_update}
    rows = (
        (name, *(mean_and_deviation(own.get(i, ()), 3) for own in ious.values()))
        for i, name in enumerate(CLASSES[config.dataset])
    )
    yield Table(("class", *ious), tuple(rows))


def _by_sequence(found: Sequence[SegmentationRecord]) -> Iterator[Block]:
    """Scores of the test images by sequence, where records have them."""
    rows = []
    for update in dict.fromkeys(record.config.update for record in found):
        by_name: dict[str, list[Scores]] = {}
        for record in found:
            last = record.epochs[-1]
            names = last.test_sequences or ()
            size = len(last.validation_confusion)
            for i, name in enumerate(names if record.config.update == update else ()):
                matrix = (last.sequence_confusions or ())[i * size : (i + 1) * size]
                by_name.setdefault(name, []).append(scores(matrix))
        rows += [
            (update, name, *_means(own), str(len(own))) for name, own in sorted(by_name.items())
        ]
    if rows:
        yield Heading("Test images by sequence")
        yield Table(("update", "sequence", *_MEASURES.values(), "n"), tuple(rows), words=2)


def _choice(choice: Sequence[SegmentationRecord]) -> Iterator[Block]:
    """Scores of the runs that chose rates and augmentations."""
    if not choice:
        return
    config = choice[0].config
    yield Heading("Rates and augmentation")
    yield Paragraph(
        f"Chosen by the mean IoU on the sequence {', '.join(config.held_out)}, on which these runs "
        f"are not trained, after {config.epochs} epochs, one seed each. A grid of rates was "
        "widened where its best rate was at an edge. The test images had no part in it."
    )
    order = list(UPDATES)

    def place(record: SegmentationRecord) -> tuple[int, float, float, float]:
        own = record.config
        return order.index(own.update), own.lr, own.zoom, own.gamma

    yield Table(
        ("update", "λ", "zoom", "gamma", *_MEASURES.values()),
        tuple(
            (
                *(r.config.update, f"{r.config.lr:g}", f"{r.config.zoom:g}"),
                f"{r.config.gamma:g}",
                *(
                    ("diverged", "–", "–")
                    if judged(r) < 0
                    else _means([scores(r.epochs[-1].validation_confusion)])
                ),
            )
            for r in sorted(choice, key=place)
        ),
    )


def _limits(limits: Sequence[SegmentationRecord]) -> Iterator[Block]:
    """Scores of the test images after one change at a time, beside those without it."""
    groups: dict[tuple[str, str], dict[int, SegmentationRecord]] = {}
    changed = {name for change in LIMITS.values() for name in change}
    plain = {name: getattr(PRESETS["cpu"], name) for name in changed}
    for record in limits:
        own = {name: getattr(record.config, name) for name in changed}
        known = [words for words, change in LIMITS.items() if own == {**plain, **change}]
        if known and record.result is not None and not record.result.diverged:
            groups.setdefault((record.config.update, known[0]), {})[record.config.seed] = record
    if not groups:
        return
    yield Heading("What limits the result")
    first = limits[0].config
    yield Paragraph(
        "One change at a time, from the preset cpu with the chosen rate and augmentation, "
        f"{first.epochs} epochs. A run without a sequence stands beside one on as many images of "
        "all sequences. Training pixels are those of the last epoch, as they came up. Differences "
        "are paired over n seeds."
    )
    rows = []
    order = [*LIMITS]
    for (update, name), runs in sorted(
        groups.items(), key=lambda g: (g[0][0], order.index(g[0][1]))
    ):
        base = groups.get((update, order[0]), {})
        for_global, for_iou = (
            paired(*({s: getattr(r.result, n) for s, r in each.items()} for each in (runs, base)))
            for n in ("global_accuracy", "mean_iou")
        )
        rows.append(
            (
                *(update, name),
                mean_and_deviation((r.epochs[-1].train_accuracy for r in runs.values()), 3),
                *_means([scores(r.epochs[-1].test_confusion or ()) for r in runs.values()]),
                *("–" if name == order[0] else _signed(e) for e in (for_global, for_iou)),
                str(len(runs)),
            )
        )
    yield Table(
        (
            *("update", "change", "training pixels", *_MEASURES.values()),
            *("global accuracy, difference", "mean IoU, difference", "n"),
        ),
        tuple(rows),
        words=2,
    )


def _signed(found: Estimate) -> str:
    mean, interval = found.signed(3)
    return mean if found.n < 2 else f"{mean} ({interval})"


def _means(found: Sequence[Scores]) -> tuple[str, ...]:
    """Mean and deviation of each measure."""
    return tuple(mean_and_deviation((getattr(s, n) for s in found), 3) for n in _MEASURES)


def _best(runs: pd.DataFrame) -> str:
    """The update with the highest mean of each measure, in a sentence."""
    means = runs[~runs["diverged"]].groupby("update")[[*_MEASURES]].mean()
    if means.empty:
        return "Every run diverged."
    of = (
        f"{words} is that of {means[n].idxmax()} ({means[n].max():.3f})"
        for n, words in _MEASURES.items()
    )
    return f"On the test images the highest {', the highest '.join(of)}."


def _differences(runs: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    def by_seed(update: str, name: str) -> dict[int, float]:
        own = runs[(runs["update"] == update) & ~runs["diverged"]]
        return dict(zip(own["seed"], own[name], strict=True))

    updates = [*runs["update"].unique()]
    for update in updates if "b-sgd" in updates else ():
        for name, words in _MEASURES.items() if update != "b-sgd" else ():
            difference = paired(by_seed(update, name), by_seed("b-sgd", name))
            yield (f"{update} − b-sgd", words, *difference.signed(3), str(difference.n))


def _draw(found: Sequence[SegmentationRecord]) -> bytes:
    """Validation scores by epoch, a panel for each score."""
    figure = new_figure(8.4, 3.4)
    epochs = pd.DataFrame(
        [
            {"update": record.config.update, "epoch": epoch.epoch}
            | vars(scores(epoch.validation_confusion))
            for record in found
            if record.result is not None and not record.result.diverged
            for epoch in record.epochs
        ],
        columns=["update", "epoch", *_MEASURES],
    )
    for axes, (name, title) in zip(figure.subplots(1, 3), _MEASURES.items(), strict=True):
        panel(axes, title, "epoch")
        for update, own in epochs.groupby("update", sort=False):
            percent = 100 * own.groupby("epoch")[name].agg(["min", "max", "mean"])
            colour = COLOURS.get(str(update), INK)
            axes.fill_between(
                percent.index, percent["min"], percent["max"], color=colour, alpha=0.13
            )
            axes.plot(
                percent.index, percent["mean"], color=colour, label=in_words(str(update)), lw=1.4
            )
        axes.set_ylim(0, 100)
    figure.axes[0].set_ylabel("validation images (%)", color=INK)
    if figure.axes[0].lines:
        figure.axes[0].legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    figure.supxlabel(
        "lines: mean over seeds; bands: from the worst to the best seed", fontsize=8, color=MUTED
    )
    return svg(figure)
