"""Classification stages at the rates and dimensions that were chosen for them.

Reads records only. A folder keeps the runs of earlier choices, when the grid was smaller; which of
them counts is what the short runs that are there now choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from manifoldnet.experiments.document import Block, Heading, Paragraph, Table
from manifoldnet.experiments.papers.scale_invariant import costs, grids, reliability
from manifoldnet.experiments.papers.scale_invariant.config import METHODS
from manifoldnet.experiments.papers.scale_invariant.costs import Costs
from manifoldnet.experiments.papers.scale_invariant.curves import Curve, best, curves
from manifoldnet.experiments.papers.scale_invariant.sections import Section, titles
from manifoldnet.experiments.statistics import Estimate, estimate, paired

PAPERS = ("rescaled", "logistic")
"""The methods that the paper compares."""

_DECIDED = (
    "Of several rows of a method, the one that the short runs choose now (lowest validation error, "
    "see the rates and dimensions chosen) counts; those from before are of earlier choices among "
    "fewer h and m. Where the short runs are not known, or what they choose has not been run, a "
    "method's only row counts, and of several none."
)


class Choice(NamedTuple):
    """A rate, and a dimension where the method has one."""

    lr: float
    embedding_dim: int | None


@dataclass(frozen=True)
class Comparison:
    """The runs of a folder, and what is chosen for each method.

    Attributes:
        title: the data.
        found: all curves.
        chosen: by method, of the short runs; empty where there are none.
    """

    title: str
    found: Sequence[Curve]
    chosen: Mapping[str, Choice]

    @property
    def methods(self) -> list[str]:
        """In the order of `METHODS`."""
        return [method for method in METHODS if any(c.method == method for c in self.found)]

    def of(self, method: str) -> list[Curve]:
        """All curves of a method."""
        return [curve for curve in self.found if curve.method == method]

    def current(self, method: str) -> Curve | None:
        """The curve that counts: the chosen one, or the only one; None where that is not known."""
        own = self.of(method)
        chosen = [curve for curve in own if _place(curve) == self.chosen.get(method)]
        return (chosen or own)[0] if chosen or len(own) == 1 else None

    def is_earlier(self, curve: Curve) -> bool:
        """Whether the short runs choose something else now."""
        return self.chosen.get(curve.method) not in (None, _place(curve))

    def differences(self) -> Iterator[tuple[Curve, Curve, Estimate]]:
        """The rescaled stage less each other one, where both count and share seeds."""
        rescaled = self.current("rescaled")
        for method in self.methods:
            other = self.current(method)
            if rescaled is None or other is None or method == "rescaled":
                continue
            difference = paired(rescaled.final(), other.final())
            if difference.n:
                yield rescaled, other, difference


def comparisons(sections: Sequence[Section]) -> list[Comparison]:
    """Those of a report, each with the choice of the short runs that belong to it."""
    named, names = {section.name: section for section in sections}, titles(sections)
    found = []
    for section in sections:
        if section.kind == "comparison":
            short = named.get(grids.choice_of(section.name, section.runs[0].config.dataset))
            chosen = {}
            if short is not None and short.kind == "choice":
                tried = curves(short.runs)
                picked = {method: best(tried, method) for method in METHODS}
                chosen = {method: _place(curve) for method, curve in picked.items() if curve}
            found.append(Comparison(names[section.name], curves(section.runs), chosen))
    return found


def blocks(found: Sequence[Comparison], measured: Costs | None) -> Iterator[Block]:
    """A section on the paper's two methods, and one for each comparison with others."""
    papers = [one for one in found if set(one.methods) <= set(PAPERS)]
    if papers:
        yield Heading("Test error at the chosen rates")
        yield Paragraph(_DECIDED)
        header = ("data", "method", "h", "m", "chosen", "test error", "n", "diverged")
        rows = tuple((one.title, *row) for one in papers for row, _ in _rows(one))
        yield Table(header, rows, words=2)
        yield from _differences(papers)
    for one in found:
        if one in papers:
            continue
        yield Heading(f"Beyond the paper: {one.title}")
        yield Paragraph(
            "Other stages on the same network, their rates chosen alike. "
            + _DECIDED
            + " Calibration error is that of the confidence; ms/step is the median of "
            f"{costs.NAME}, measured on the smaller MNIST network."
        )
        yield Table(
            (
                *("stage", "h", "m", "chosen", "test error", "n", "diverged"),
                *("calibration error", "ms/step"),
            ),
            tuple((*row, *_quality(curve, measured)) for row, curve in _rows(one)),
        )
        yield from _differences([one])


def _rows(one: Comparison) -> Iterator[tuple[tuple[str, ...], Curve | None]]:
    """A row for each curve, and one for a choice that has not been run."""
    for method in one.methods:
        own, chosen = one.of(method), one.chosen.get(method)
        for curve in own:
            now = "–" if chosen is None else "before" if one.is_earlier(curve) else "now"
            result = (error(curve), str(len(curve.final())), str(curve.diverged))
            yield (method, *_told(_place(curve)), now, *result), curve
        if chosen is not None and chosen not in map(_place, own):
            yield (method, *_told(chosen), "now", "–", "0", "0"), None


def _quality(curve: Curve | None, measured: Costs | None) -> tuple[str, str]:
    if curve is None:
        return "–", "–"
    off = reliability.calibration_error(curve)
    return (
        "–" if off is None else f"{off:.4f}",
        costs.milliseconds(measured, curve.method, curve.embedding_dim),
    )


def _place(curve: Curve) -> Choice:
    return Choice(curve.lr, curve.embedding_dim)


def _told(choice: Choice) -> tuple[str, str]:
    return f"{choice.lr:g}", "–" if choice.embedding_dim is None else str(choice.embedding_dim)


def error(curve: Curve) -> str:
    """``0.0195 ± 0.0013``: mean test error and deviation over seeds, of the runs that finished."""
    final = estimate(list(curve.final().values()))
    mean = "–" if final.n == 0 else f"{final.mean:.4f}"
    return mean + (f" ± {final.deviation:.4f}" if final.n > 1 else "")


def _differences(found: Sequence[Comparison]) -> Iterator[Block]:
    rows = tuple(
        (
            one.title,
            f"rescaled ({rescaled.label}) − {other.method} ({other.label})",
            f"{difference.mean:+.4f}",
            f"{difference.low:+.4f} to {difference.high:+.4f}",
            str(difference.n),
        )
        for one in found
        for rescaled, other, difference in one.differences()
        if difference.n > 1
    )
    if rows:
        header = ("data", "difference, paired over seeds", "test error", "95 % interval", "n")
        yield Table(header, rows, words=2)
