"""The paper's claims in a table, each answered by a rule from the records.

Reads records only. Of a difference paired over seeds the answer is "yes" or "no" when its 95 %
interval lies on one side of zero, and undecided otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from manifoldnet.experiments.papers.scale_invariant.config import (
    FIGURES,
    METHODS,
    PAPERS,
    Choice,
    Figure,
)
from manifoldnet.experiments.papers.scale_invariant.records import (
    Section,
    Setting,
    Settings,
    at,
    best,
    by_setting,
    choices,
    finite_choice,
)
from manifoldnet.experiments.report import Block, Heading, Paragraph, Table
from manifoldnet.experiments.statistics import (
    Estimate,
    estimate,
    mean_and_deviation,
    paired,
    pairs_needed,
)

Row = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Stages at the choices that short runs made for them.

    A folder keeps the runs of earlier choices, when the grid was smaller; the current ones are
    those that the short runs choose now. Where a run diverged there, a lower rate counts instead.
    """

    title: str
    name: str  # of the folder
    figure: str  # of the paper, with these data and this network
    runs: pd.DataFrame
    tried: pd.DataFrame | None  # the short runs
    picked: Mapping[str, Choice]  # by the short runs

    @property
    def methods(self) -> list[str]:
        """In the order of `METHODS`."""
        return [method for method in METHODS if choices(self.runs, method)]

    @property
    def chosen(self) -> dict[str, Choice]:
        """The current choice of each method, whether it was run or not."""
        found = {
            method: finite_choice(self.tried, self.runs, method, pick)
            for method, pick in self.picked.items()
            if self.tried is not None
        }
        return {method: choice for method, choice in found.items() if choice}

    def current(self, method: str) -> Choice | None:
        """The choice that counts: the chosen one, or the only one; None where neither was run.

        The only one does not count where a run diverged at it.
        """
        own = choices(self.runs, method)
        if self.chosen.get(method) in own:
            return self.chosen[method]
        if len(own) != 1 or own[0] == self.picked.get(method):  # where a run diverged, then
            return None
        return own[0]

    def differences(self) -> Iterator[tuple[str, Choice, Choice, Estimate]]:
        """The rescaled stage less each other method, where both count and share seeds."""
        rescaled = self.current("rescaled")
        for method in self.methods:
            other = self.current(method)
            if rescaled is None or other is None or method == "rescaled":
                continue
            difference = paired(
                errors(at(self.runs, "rescaled", rescaled)), errors(at(self.runs, method, other))
            )
            if difference.n:
                yield method, rescaled, other, difference


def comparisons(sections: Sequence[Section]) -> list[Comparison]:
    """The comparisons of a report, each with the choice of the short runs that belong to it."""
    short = {section.name: section.runs for section in sections if section.purpose == "choice"}
    found = []
    for section in sections:
        if section.purpose == "comparison":
            tried = short.get(section.chosen_by)
            bests = {} if tried is None else {method: best(tried, method) for method in METHODS}
            picked = {method: choice for method, choice in bests.items() if choice}
            what = section.title, section.name, figure_of(section)
            found.append(Comparison(*what, section.runs, tried, picked))
    return found


def errors(curve: pd.DataFrame) -> dict[int, float]:
    """Test error after the last epoch, by seed, of the runs that finished."""
    kept = curve.dropna(subset="error")
    return dict(zip(kept["seed"], kept["error"], strict=True))


def lost(settings: Settings, setting: Setting, method: str) -> dict[int, float]:
    """A method's test error less that on clean training data, by seed, each at its best choice."""
    clean = settings.get(Setting(setting.corruption, 0.0))
    if clean is None:
        return {}
    one, other = (
        errors(at(runs, method, best(runs, method))) for runs in (settings[setting], clean)
    )
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def figure_of(section: Section) -> str:
    """``Figure 5``, of the paper; empty where there is none of these data and this network."""
    config = section.runs["config"].iloc[0]
    for number, figure in FIGURES.items():
        if figure == Figure(config.dataset, config.architecture, figure.title):
            return f"Figure {number}"
    return ""


def blocks(sections: Sequence[Section], compared: Sequence[Comparison]) -> Iterator[Block]:
    """A section: one row for each claim that there are records on."""
    rows = [row for one in compared for row in _of_comparison(one)]
    judges = {"grid": _of_grid, "label noise": _of_robustness, "stability": _of_stability}
    for section in sections:
        if section.purpose in judges:
            rows += judges[section.purpose](section)
    if rows:
        yield Heading("In short")
        yield Paragraph(
            "The rescaled stage is compared with another, mostly with logistic regression. "
            "Differences are paired over seeds, with their 95 % interval, not corrected for "
            "multiple comparisons. Where the interval contains 0, the answer is undecided, and the "
            "last column has the number of seeds that would show a difference as large as this "
            "one, if it is real, in four of five cases."
        )
        header = ("question", "data", "answer", "rescaled", "the other", "difference", "to decide")
        yield Table(header, tuple(rows), words=3)


def _answer(difference: Estimate) -> tuple[str, str, str]:
    """The answer to "is it below zero?", the difference as text, and what would decide."""
    if difference.n == 0:
        return "–", "–", "–"
    mean, interval = difference.signed()
    if difference.n == 1:
        return "one seed", mean, "more seeds"
    text = f"{mean} ({interval})"
    if difference.high < 0:
        return "yes", text, "–"
    if difference.low > 0:
        return "no, higher", text, "–"
    needed = pairs_needed(difference)
    return "undecided", text, f"{needed} seeds" if needed else "more than 100 seeds"


def _lower_error(question: str, title: str, one: pd.DataFrame, other: pd.DataFrame) -> Row:
    answer, text, needed = _answer(paired(errors(one), errors(other)))
    cells = (mean_and_deviation(curve["error"]) for curve in (one, other))
    return question, title, answer, *cells, text, needed


def _of_comparison(one: Comparison) -> Iterator[Row]:
    for method, rescaled, other, _ in one.differences():
        curves = at(one.runs, "rescaled", rescaled), at(one.runs, method, other)
        row = list(_lower_error(f"lower test error than {method}", one.title, *curves))
        if diverged := sum(curve["diverged"].sum() for curve in curves):
            row[2] += f", {diverged} diverged"
        asides = _aside(one, "rescaled", rescaled), _aside(one, method, other)
        row[2] += "".join(dict.fromkeys(asides))
        yield tuple(row)


def _aside(one: Comparison, method: str, choice: Choice) -> str:
    """An answer's addition where a method is not at the choice of the short runs."""
    picked = one.picked.get(method, choice)
    if picked == choice:
        return ""
    diverged = at(one.runs, method, picked)["diverged"]
    if diverged.any():
        return f"; {diverged.sum()} of {len(diverged)} {method} runs diverged at {picked}"
    return ", at an earlier choice"


def _of_grid(section: Section) -> Iterator[Row]:
    picked = [best(section.runs, method) for method in PAPERS]
    if None not in picked:
        question = f"lower test error, best h and m of {figure_of(section) or 'grid'}"
        curves = (at(section.runs, *pair) for pair in zip(PAPERS, picked, strict=True))
        yield _lower_error(question, section.title, *curves)


def _of_robustness(section: Section) -> Iterator[Row]:
    settings, title = by_setting(section.runs), section.title
    for setting, runs in settings.items():
        rescaled, other = (at(runs, method, best(runs, method)) for method in PAPERS)
        amount = f"{100 * setting.share:g} % {setting.corruption}"
        if not setting.share or rescaled.empty:
            continue
        if other.empty:
            if choices(runs, "logistic"):
                question = f"trains with {amount}, where the other overflows"
                error = mean_and_deviation(rescaled["error"])
                yield question, title, "yes", error, "overflow at every h", "–", "–"
            continue
        costs = [lost(settings, setting, method) for method in PAPERS]
        apart = paired(*costs)
        if apart.n > 1:
            answer, text, needed = _answer(apart)
            means = [estimate([*cost.values()]).signed()[0] for cost in costs]
            yield f"loses less to {amount}", title, answer, *means, text, needed
        if apart.n > 1 or setting.corruption == "outliers":
            yield _lower_error(f"lower test error with {amount}", title, rescaled, other)


def _of_stability(section: Section) -> Iterator[Row]:
    finite = section.runs["overflow"] == ""
    own, others = (finite[section.runs["variant"] == method] for method in PAPERS)
    if len(own):
        rates = section.runs["h"]
        question = f"finite at every h from {rates.min():g} to {rates.max():g}"
        answer = "yes" if own.all() else "no"
        counts = (f"{part.sum()} of {len(part)} runs" for part in (own, others))
        yield question, section.title, answer, *counts, "–", "–"
