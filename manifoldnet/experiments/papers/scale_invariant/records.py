"""Records of the scale-invariant paper's runs: rows, tables of runs, choices, and sweeps.

A table of runs (`frame`) is a pandas DataFrame; the runs of one method at one `Choice`, which
differ in their seeds, are a curve (`at`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from manifoldnet.experiments import store
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.scale_invariant.config import (
    COMPARISON,
    PAPERS,
    Choice,
    StageConfig,
    choice_of,
    stability,
)
from manifoldnet.experiments.records import EpochRow, ResultRow, RunRecord, Schema, check_together
from manifoldnet.experiments.report import read_csv
from manifoldnet.experiments.study import repeated
from manifoldnet.nn.calibration import Reliability

COSTS = "stage_cost.csv"
COST_COLUMNS = ("method", "m", "step", "seconds")
COST_BASE = ("logistic", "")
"""The stage whose steps the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class StageEpoch(EpochRow):
    """One epoch. Errors are rates in [0, 1]; the loss is the method's own.

    Attributes:
        train_error: on the training images as they came up, with the labels that they came with.
        validation_error: after the epoch, if the run has validation images.
        test_error: after the epoch; NaN before the last one if the run has validation images.
        gradient_norm: Euclidean norm of the gradient of all weights, mean over steps.
        largest_gradient_norm: the largest over steps.
        step_ratio: ‖ΔA‖/‖A‖ of the stage's matrix, mean over steps; 0 if it has none to train.
        largest_step_ratio: the largest over steps.
        largest_loss: of a minibatch.
        norm_error: the largest |‖z‖ − 1| of a training image; 0 without a z.
        largest_weight: the largest entry of the kernels, in modulus, after the epoch.
        overflow: the first tensor with a number that is not finite, and its minibatch; empty when
            all was finite.
        concentration: κ of the `Confidence` in the scores, fitted on every other test image;
            only after the last epoch of a run, as the following.
        bin_count: of the other test images, how many have a confidence in each of the bins of
            equal width over [0, 1].
        bin_right: how many of these are right.
        bin_sure: the sum of their confidences.
    """

    train_error: float
    test_error: float
    gradient_norm: float
    largest_gradient_norm: float
    step_ratio: float
    largest_step_ratio: float
    largest_loss: float
    norm_error: float
    largest_weight: float
    overflow: str = ""
    validation_error: float | None = None
    concentration: float | None = None
    bin_count: tuple[int, ...] = ()
    bin_right: tuple[int, ...] = ()
    bin_sure: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageResult(ResultRow):
    """The end of a run.

    Attributes:
        test_error: as in the last epoch.
    """

    test_error: float


SCALE_INVARIANT = Schema(StageConfig, StageEpoch, StageResult)
StageRecord = RunRecord[StageConfig, StageEpoch, StageResult]
"""A run of a convnet and a classification stage."""


_FREE = ("method", "lr", "embedding_dim", "seed")
_FREE_OF = {"label noise": ("wrong_labels", "outliers"), "stability": ("spheres",)}
_FREE_OF |= dict.fromkeys(("start sizes", "choice of start sizes"), ("start_size",))
"""The fields in which the runs of a sweep may differ, and those of each purpose besides."""


def frame(records: Iterable[StageRecord]) -> pd.DataFrame:
    """A row for each run that has ended, ordered by method, h, m and seed.

    Columns are the fields of the configuration and of the last epoch, and

        config, data, versions   of the record
        h, m                     as in `Choice`
        variant                  the method, and whether the kernels are on spheres
        label                    of the configuration
        diverged                 a number in the network was not finite
        error                    test error after the last epoch; NaN if it diverged
        score                    by which rates are chosen: error on the validation images, or on
                                 the test images without these; ∞ if it diverged
        errors                   test errors by epoch
    """
    rows = []
    for record in records:
        config, last, result = record.config, record.epochs[-1], record.result
        diverged = result is not None and result.diverged
        judged = last.test_error if last.validation_error is None else last.validation_error
        rows.append(
            {
                **config.to_dict(),
                **vars(last),
                "config": config,
                "data": record.data,
                "versions": ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items())),
                "h": record.lr,
                "m": config.embedding_dim or 0,
                "variant": config.method + (", kernels on spheres" if config.spheres else ""),
                "label": config.label,
                "diverged": diverged,
                "error": math.nan if diverged or result is None else result.test_error,
                "score": math.inf if diverged else judged,
                "errors": [epoch.test_error for epoch in record.epochs],
            }
        )
    return pd.DataFrame(rows).sort_values(["method", "h", "m", "seed"], ignore_index=True)


def at(runs: pd.DataFrame, method: str, choice: Choice | None) -> pd.DataFrame:
    """The curve of a method at a choice; empty without one."""
    h, m = choice or (math.nan, 0)
    return runs[(runs["method"] == method) & (runs["h"] == h) & (runs["m"] == m)]


def choices(runs: pd.DataFrame, method: str) -> list[Choice]:
    """Rates and dimensions at which a method was run, by h and then m."""
    own = runs.loc[runs["method"] == method, ["h", "m"]].drop_duplicates()
    return [Choice(float(h), int(m)) for h, m in own.itertuples(index=False)]


def best(runs: pd.DataFrame, method: str) -> Choice | None:
    """The choice of a method with the lowest mean score over the seeds that all its curves have.

    A choice at which any run diverged is none. Of equals the one with the smaller h, then m; None
    when nothing is left.
    """
    own = runs[runs["method"] == method]
    scores = own.pivot(index=["h", "m"], columns="seed", values="score")
    means = scores.dropna(axis="columns").mean(axis="columns")
    means = means[~(scores == math.inf).any(axis="columns")].dropna()
    if means.empty:
        return None
    h, m = means.idxmin()
    return Choice(float(h), int(m))


def chosen(records: Iterable[StageRecord], methods: Sequence[str]) -> dict[str, Choice]:
    """The best choice of each method in the runs of `config.choice`."""
    runs = frame(records)
    found = {method: best(runs, method) for method in methods}
    for method, one in found.items():
        if one is None:
            raise RecordError(f"no short run of {method} ended: there is no rate to choose")
    return {method: one for method, one in found.items() if one is not None}


def finite_choice(
    tried: pd.DataFrame, runs: pd.DataFrame, method: str, picked: Choice
) -> Choice | None:
    """The highest rate tried, at most the chosen one, at which no run of a method diverged.

    Args:
        tried: the short runs.
        runs: longer ones; at a choice without any, none diverged.
        method: of both.
        picked: the choice of the short runs.

    Returns:
        The choice, with the m of the chosen one; None if runs diverged at every such rate.
    """
    for choice in reversed(choices(tried, method)):
        lower = choice.m == picked.m and choice.h <= picked.h
        if lower and not at(runs, method, choice)["diverged"].any():
            return choice
    return None


def edge_label(runs: pd.DataFrame, method: str, choice: Choice) -> str:
    """``h = 3, m = 128 (edge of the grid: m)``: a better h or m may be beyond those tried.

    The smallest m that was tried is no edge: it is the number of classes, and there is none below.
    """
    rates, dimensions = zip(*choices(runs, method), strict=True)
    edges = ["h"] if choice.h in (min(rates), max(rates)) else []
    edges += ["m"] if choice.m == max(dimensions) > 0 else []
    return str(choice) + (f" (edge of the grid: {', '.join(edges)})" if edges else "")


def best_of_each(
    records: Iterable[StageRecord], repetitions: int, *fields: str
) -> list[StageConfig]:
    """Each method's choice at each value of the fields, with more seeds."""
    picked = [
        at(own, method, best(own, method))["config"].head(1).tolist()
        for _, own in frame(records).groupby([*fields])
        for method in PAPERS
    ]
    return repeated([replace(config, seed=0) for one in picked for config in one], repetitions)


class Setting(NamedTuple):
    """A corruption of the training data, ``"wrong labels"`` or ``"outliers"``, and its share."""

    corruption: str
    share: float


Settings = dict[Setting, pd.DataFrame]


def by_setting(runs: pd.DataFrame) -> Settings:
    """The runs of a sweep over corrupted data; runs on clean data belong to each corruption."""
    clean = (runs["wrong_labels"] == 0) & (runs["outliers"] == 0)
    return {
        Setting(column.replace("_", " "), float(share)): own
        for column in ("outliers", "wrong_labels")
        if runs[column].any()
        for share, own in runs[clean | (runs[column] > 0)].groupby(column)
    }


def reliability(runs: pd.DataFrame) -> Reliability:
    """Accuracy against confidence, bin by bin, of several runs together."""
    counts, rights, sures = (
        [sum(column) for column in zip(*runs[name], strict=True)]
        for name in ("bin_count", "bin_right", "bin_sure")
    )

    def over(sums: Sequence[float]) -> tuple[float, ...]:
        return tuple(s / n if n else math.nan for s, n in zip(sums, counts, strict=True))

    return Reliability(over(sures), over(rights), tuple(counts))


@dataclass(frozen=True)
class Section:
    """The runs of a sweep, of one protocol; `name` is that of its folder.

    Its purpose is ``"label noise"``, ``"stability"``, ``"choice"`` (judged by validation images),
    ``"comparison"`` (each method at its choice, and at earlier ones; chosen by the runs of the
    folder `chosen_by`) or ``"grid"``.
    """

    name: str
    purpose: str
    title: str
    runs: pd.DataFrame
    chosen_by: str = ""


def read(folder: Path) -> list[Section]:
    """The sweeps below a folder, or the one in it."""
    sections = []
    for place in store.sweeps(folder):
        records = store.read_all(place, SCALE_INVARIANT, exact=False)
        if records:
            runs = frame(records.values())
            sweep = next(iter(records.values())).sweep
            purpose = sweep.get("purpose") or _guess(place.name, runs)
            chosen_by = sweep.get("chosen_by") or choice_of(place.name, runs["dataset"][0])
            paths = {place / "records" / f"{name}.jsonl": r for name, r in records.items()}
            check_together(paths, _FREE + _FREE_OF.get(purpose, ()))
            if (runs["wrong_labels"] * runs["outliers"]).any():
                raise RecordError(
                    f"{place} holds runs with wrong labels and outliers at once: no table has a "
                    "place for them; move them to another folder"
                )
            title = _title(runs["config"][0])
            sections.append(Section(place.name, purpose, title, runs, chosen_by))
    titles = [(section.purpose, section.title) for section in sections]
    return [
        section
        if titles.count((section.purpose, section.title)) == 1
        else replace(section, title=f"{section.title} ({section.name})")
        for section in sections
    ]


def read_costs(folder: Path) -> pd.DataFrame | None:
    """Seconds of training steps, a column for each stage (method, m); None where there are none."""
    path = folder / COSTS
    if not path.exists():
        return None

    def parse(row: dict[str, str]) -> dict[str, Any]:
        seconds = float(row["seconds"])
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {row['seconds']}, not a positive number")
        return {"stage": (row["method"], row["m"]), "step": int(row["step"]), "seconds": seconds}

    rows = read_csv(path, COST_COLUMNS, parse, "delete it, or measure again")
    steps: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        steps.setdefault(row["stage"], {})[row["step"]] = row["seconds"]
    costs = pd.DataFrame(steps)
    if COST_BASE not in costs or costs.isna().any(axis=None):
        raise RecordError(
            f"{path} has no steps of logistic regression, or not as many of each stage: delete it, "
            "or measure again"
        )
    return costs


def _title(config: StageConfig) -> str:
    size = config.train_size
    images = "all training images" if size is None else f"{size:,} images"
    epochs = f"{config.epochs} epoch" + ("s" if config.epochs > 1 else "")
    start = ", Torch7's start" if config.start == "torch7" else ""
    return f"{config.dataset}, {config.architecture}: {images}, {epochs}{start}"


def _guess(name: str, runs: pd.DataFrame) -> str:
    """The purpose of a sweep whose records do not name it."""
    if runs[["wrong_labels", "outliers"]].any(axis=None):
        return "label noise"
    if {replace(config, seed=0) for config in runs["config"]} <= set(stability()):
        return "stability"
    if runs["validation_size"].any():
        return "choice"
    single = runs.drop_duplicates(["method", "h", "m"])["method"].is_unique
    return "comparison" if single or name.startswith(COMPARISON) else "grid"
