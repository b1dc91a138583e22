"""Whether the confidence of each method is true. Reads records only.

κ of `manifoldnet.nn.Confidence` is fitted on every other test image, and confidence is set against
accuracy on the rest: for the softmax methods κ is the reciprocal of a temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from manifoldnet.experiments.canvas import FAINT, INK, new_figure, png, style
from manifoldnet.experiments.document import Block, Heading, Paragraph, Picture, Table
from manifoldnet.experiments.papers.scale_invariant.curves import Curve
from manifoldnet.experiments.papers.scale_invariant.figures import COLOURS
from manifoldnet.experiments.papers.scale_invariant.rows import StageEpoch
from manifoldnet.nn.calibration import Reliability

_DRAWN = 10
"""Samples of a bin that is drawn, at least: a share of fewer says nothing."""


def blocks(comparisons: Mapping[str, Sequence[Curve]]) -> Iterator[Block]:
    """A section: table and reliability diagrams.

    Args:
        comparisons: for each title, one curve per method.

    Raises:
        MissingExtraError: without matplotlib.
    """
    found = {
        title: {curve.method: last for curve in members if (last := _last(curve))}
        for title, members in comparisons.items()
    }
    found = {title: methods for title, methods in found.items() if methods}
    if not found:
        return
    yield Heading("Confidence")
    yield Paragraph(
        "One number κ is fitted on every other test image; on the rest, samples are binned by "
        "their confidence, and the share that is right is set against it. Calibration error is "
        "the mean of the difference over samples. Means over seeds; the diagrams pool them, and "
        f"leave out bins of fewer than {_DRAWN} samples."
    )
    yield Table(
        ("data", "method", "κ", "calibration error"),
        tuple(
            (
                title,
                method,
                f"{fmean(epoch.concentration or 0.0 for epoch in epochs):.3g}",
                f"{_error(epochs):.4f}",
            )
            for title, methods in found.items()
            for method, epochs in methods.items()
        ),
        words=2,
    )
    yield Picture("scale_invariant_reliability.png", draw(found), "Accuracy against confidence")


def reliability(epochs: Sequence[StageEpoch]) -> Reliability:
    """The bins of several runs, pooled."""
    counts, rights, sures = (
        [sum(column) for column in zip(*(getattr(e, name) for e in epochs), strict=True)]
        for name in ("bin_count", "bin_right", "bin_sure")
    )

    def over(sums: Sequence[float]) -> tuple[float, ...]:
        return tuple(s / n if n else float("nan") for s, n in zip(sums, counts, strict=True))

    return Reliability(over(sures), over(rights), tuple(counts))


def calibration_error(curve: Curve) -> float | None:
    """Mean over seeds; None where no run has a confidence."""
    epochs = _last(curve)
    return _error(epochs) if epochs else None


def _error(epochs: Sequence[StageEpoch]) -> float:
    return fmean(reliability([epoch]).error for epoch in epochs)


def draw(found: Mapping[str, Mapping[str, Sequence[StageEpoch]]]) -> bytes:
    """A reliability diagram for each data set, as a PNG."""
    figure = new_figure(4.4 * len(found), 4.2)
    for axes, (title, methods) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        style(axes)
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1)
        for method, epochs in methods.items():
            bins = reliability(epochs)
            drawn = [i for i, n in enumerate(bins.count) if n >= _DRAWN]
            axes.plot(
                [100 * bins.confidence[i] for i in drawn],
                [100 * bins.accuracy[i] for i in drawn],
                color=COLOURS[method],
                marker="o",
                markersize=4,
                label=f"{method}, error {100 * bins.error:.2f} %",
            )
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("confidence (%)", color=INK)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.axes[0].set_ylabel("right answers (%)", color=INK)
    return png(figure)


def _last(curve: Curve) -> list[StageEpoch]:
    return [run.epochs[-1] for run in curve.runs if run.epochs and run.epochs[-1].bin_count]
