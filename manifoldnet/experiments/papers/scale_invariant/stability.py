"""What becomes of each method at every learning rate, and how far a step goes. Reads records only.

The paper says that its stage is "stable for all values of h", and has "precise control over the
actual rate of learning". Here is one pass of 500 minibatches for every power of ten: whether all
numbers in the network stayed finite, the largest loss, and ‖ΔA‖/‖A‖, the rate at which the stage's
matrix is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median

from manifoldnet.experiments.canvas import INK, MUTED, new_figure, png, style
from manifoldnet.experiments.document import Block, Heading, Paragraph, Picture, Table
from manifoldnet.experiments.papers.scale_invariant.rows import StageEpoch, StageRecord

_PANELS: dict[str, Callable[[StageEpoch], float]] = {
    "test error (%)": lambda epoch: 100 * epoch.test_error,
    "largest loss of a minibatch": lambda epoch: epoch.largest_loss,
    "mean ‖ΔA‖/‖A‖ of a step": lambda epoch: epoch.step_ratio,
}
_LINES = {
    "rescaled": ("#D55E00", "-", "#D55E00"),
    "rescaled, kernels on spheres": ("#D55E00", "--", "white"),
    "logistic": ("#0072B2", "-", "#0072B2"),
}
"""Colour and dashes of each kind of run, and what its points are filled with."""


def blocks(records: Sequence[StageRecord], picture: str) -> Iterator[Block]:
    """A section: table and picture.

    Args:
        records: of the runs.
        picture: the name of its file.

    Raises:
        MissingExtraError: without matplotlib.
    """
    config = records[0].config
    yield Heading("Every learning rate")
    yield Paragraph(
        f"{config.dataset}, {config.architecture}: one pass over {config.train_size:,} images in "
        f"minibatches of {config.batch_size}, float32. A run ends at the first number in the "
        "network (features, scores, loss, gradients, weights) that is not finite. ‖z‖ is that of "
        "the stage's direction, which is 1; ‖ΔA‖/‖A‖ is the mean step of the stage's matrix. The "
        "largest and smallest numbers are over the runs that stayed finite."
    )
    kinds = [name for name in _LINES if any(_name(r) == name for r in records)]
    header = (
        *("method", "runs", "not finite", "lowest test error", "largest loss", "largest ‖z‖ − 1"),
        *("largest kernel entry", "‖ΔA‖/‖A‖"),
    )
    yield Table(header, tuple(_summary(records, name) for name in kinds))
    yield Paragraph(
        "Rate by rate (the median of several seeds), or which number was the first that was not "
        "finite:"
    )
    short = [name.removeprefix("rescaled, kernels ") for name in kinds]
    columns = (
        "h",
        *(f"test error, {name}" for name in short),
        *(f"‖ΔA‖/‖A‖, {name}" for name in short),
    )
    yield Table(columns, tuple(_at_rates([by_rate(records, name) for name in kinds])), words=0)
    text = "Test error, largest loss and relative step against the learning rate"
    yield Picture(picture, draw(records), text)


def draw(records: Sequence[StageRecord]) -> bytes:
    """Three panels over h: test error, largest loss, relative step; × where a run overflowed.

    A point for each run, a line through the median of each rate at which none overflowed.
    """
    figure = new_figure(11.5, 4.3)
    error, loss, step = figure.subplots(1, 3)
    for axes, (title, value) in zip((error, loss, step), _PANELS.items(), strict=True):
        style(axes)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate h", color=INK)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        for name, (colour, dashes, face) in _LINES.items():
            own = by_rate(records, name)
            kept = {h: [value(e) for e in epochs if not e.overflow] for h, epochs in own.items()}
            points = [(h, y) for h, values in kept.items() for y in values]
            whole = [h for h, values in kept.items() if len(values) == len(own[h])]
            if whole:
                middle = [median(kept[h]) for h in whole]
                axes.plot(whole, middle, dashes, color=colour, label=name)
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, mfc=face, markersize=3.5)
    for name, (colour, *_) in _LINES.items():
        lost = [
            h for h, epochs in by_rate(records, name).items() if any(e.overflow for e in epochs)
        ]
        if lost:
            label = f"{name}: overflow"
            error.plot(lost, [100.0] * len(lost), "x", color=colour, label=label)
    error.set_ylim(0, 105)
    loss.set_yscale("log")
    loss.axhline(4, color=MUTED, linewidth=0.8, linestyle=":")
    loss.annotate("4", (1, 4), xycoords=("axes fraction", "data"), fontsize=8, color=MUTED)
    step.set_yscale("log")
    handles, names = error.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    legend.set_frame_on(False)
    return png(figure)


def by_rate(records: Sequence[StageRecord], name: str) -> dict[float, list[StageEpoch]]:
    """The last epochs of one kind of run, by h from small to large."""
    own = sorted((r for r in records if _name(r) == name), key=lambda r: r.lr)
    return {h: [run.epochs[-1] for run in runs] for h, runs in groupby(own, lambda r: r.lr)}


def _name(record: StageRecord) -> str:
    return record.config.method + (", kernels on spheres" if record.config.spheres else "")


def _summary(records: Sequence[StageRecord], name: str) -> tuple[str, ...]:
    own = [r.epochs[-1] for r in records if _name(r) == name]
    kept = [epoch for epoch in own if not epoch.overflow]
    counts = (name, str(len(own)), str(len(own) - len(kept)))
    if not kept:
        return (*counts, *("–",) * 5)
    steps = [epoch.step_ratio for epoch in kept]
    return (
        *counts,
        f"{min(epoch.test_error for epoch in kept):.4f}",
        f"{max(epoch.largest_loss for epoch in kept):.3g}",
        "–" if name == "logistic" else f"{max(epoch.norm_error for epoch in kept):.1e}",
        f"{max(epoch.largest_weight for epoch in kept):.2g}",
        f"{min(steps):.2g} to {max(steps):.2g}",
    )


def _at_rates(kinds: Sequence[Mapping[float, list[StageEpoch]]]) -> Iterator[tuple[str, ...]]:
    """A row for each rate: errors or overflows of every kind of run, and then steps."""
    for h in sorted({h for rates in kinds for h in rates}):
        errors, steps = [], []
        for epochs in (rates.get(h, []) for rates in kinds):
            lost = [epoch.overflow for epoch in epochs if epoch.overflow]
            if lost or not epochs:
                many = f"{len(lost)} of {len(epochs)}: " if len(epochs) > 1 else ""
                errors.append(many + lost[0] if lost else "–")
                steps.append("–")
            else:
                errors.append(f"{median(epoch.test_error for epoch in epochs):.4f}")
                steps.append(f"{median(epoch.step_ratio for epoch in epochs):.2g}")
        yield (f"{h:g}", *errors, *steps)
