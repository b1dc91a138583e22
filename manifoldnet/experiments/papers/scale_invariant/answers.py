"""The paper's claims in a table: what the records of a report answer, and by how much.

Reads records only. An answer is a rule, not a reading: of a difference paired over seeds it is
"yes" or "no" when its 95 % interval lies on one side of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from manifoldnet.experiments.document import Block, Heading, Paragraph, Table
from manifoldnet.experiments.papers.scale_invariant import noise
from manifoldnet.experiments.papers.scale_invariant.comparisons import Comparison, error
from manifoldnet.experiments.papers.scale_invariant.curves import best, curves
from manifoldnet.experiments.papers.scale_invariant.grids import FIGURES, Figure
from manifoldnet.experiments.papers.scale_invariant.sections import Section, titles
from manifoldnet.experiments.statistics import Estimate, paired

Row = tuple[str, ...]


def blocks(sections: Sequence[Section], compared: Sequence[Comparison]) -> Iterator[Block]:
    """A section: one row for each question that there are records on."""
    names = titles(sections)
    rows = [row for one in compared for row in _of_comparison(one)]
    for section in sections:
        title = names[section.name]
        if section.kind == "grid":
            rows += _of_grid(section, title)
        elif section.kind == "label noise":
            rows += _of_noise(section, title)
        elif section.kind == "stability":
            rows += _of_stability(section, title)
    if not rows:
        return
    yield Heading("In short")
    yield Paragraph(
        "The rescaled stage against another, mostly logistic regression. Differences are paired "
        "over seeds, with their 95 % interval; the answer is undecided where that contains 0."
    )
    header = ("question", "data", "answer", "rescaled", "the other", "difference")
    yield Table(header, tuple(rows), words=3)


def figure_of(section: Section) -> str:
    """``Figure 5``, of the paper; empty where there is none of these data and this network."""
    config = section.runs[0].config
    for number, figure in FIGURES.items():
        if figure == Figure(config.dataset, config.architecture, figure.title):
            return f"Figure {number}"
    return ""


def _answer(difference: Estimate) -> tuple[str, str]:
    """Whether it is below zero, and how it is told."""
    if difference.n == 0:
        return "–", "–"
    mean, low, high = difference.mean, difference.low, difference.high
    if difference.n == 1:
        return "one seed", f"{mean:+.4f}"
    answer = "yes" if high < 0 else "no, higher" if low > 0 else "undecided"
    return answer, f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _of_comparison(one: Comparison) -> Iterator[Row]:
    for rescaled, other, difference in one.differences():
        answer, told = _answer(difference)
        if diverged := rescaled.diverged + other.diverged:
            answer += f", {diverged} diverged"
        if one.is_earlier(rescaled) or one.is_earlier(other):
            answer += ", at an earlier choice"
        question = f"lower test error than {other.method}"
        yield question, one.title, answer, error(rescaled), error(other), told


def _of_grid(section: Section, title: str) -> Iterator[Row]:
    found = curves(section.runs)
    rescaled, other = best(found, "rescaled"), best(found, "logistic")
    if rescaled is not None and other is not None:
        answer, told = _answer(paired(rescaled.final(), other.final()))
        name = figure_of(section) or "grid"
        question = f"lower test error, best h and m of {name}"
        yield question, title, answer, error(rescaled), error(other), told


def _of_noise(section: Section, title: str) -> Iterator[Row]:
    found = noise.by_setting(section.runs)
    for setting, members in found.items():
        rescaled, other = best(members, "rescaled"), best(members, "logistic")
        amount = f"{100 * setting.share:g} % {setting.kind}"
        if not setting.share or rescaled is None:
            continue
        if other is None:
            if any(curve.method == "logistic" for curve in members):
                question = f"trains with {amount}, where the other overflows"
                yield question, title, "yes", error(rescaled), "overflow at every h", "–"
            continue
        costs = [noise.lost(found, setting, method) for method in ("rescaled", "logistic")]
        apart = paired(*costs)
        if apart.n > 1:
            answer, told = _answer(apart)
            means = [f"{fmean(cost.values()):+.4f}" for cost in costs]
            yield f"loses less to {amount}", title, answer, *means, told
        if apart.n > 1 or setting.kind == "outliers":
            answer, told = _answer(paired(rescaled.final(), other.final()))
            question = f"lower test error with {amount}"
            yield question, title, answer, error(rescaled), error(other), told


def _of_stability(section: Section, title: str) -> Iterator[Row]:
    def finite(method: str) -> tuple[int, int]:
        own = [r for r in section.runs if r.config.method == method and not r.config.spheres]
        return sum(not run.epochs[-1].overflow for run in own), len(own)

    (kept, runs), (others, of) = finite("rescaled"), finite("logistic")
    if runs:
        rates = sorted({run.lr for run in section.runs})
        question = f"finite at every h from {rates[0]:g} to {rates[-1]:g}"
        answer = "yes" if kept == runs else "no"
        yield question, title, answer, f"{kept} of {runs} runs", f"{others} of {of} runs", "–"
