"""Runs of the scale-invariant paper's experiments, grouped into curves. Reads records only."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.experiments.papers.scale_invariant.rows import StageRecord


@dataclass(frozen=True)
class Curve:
    """Runs that differ in nothing but their seed.

    Attributes:
        config: theirs, with seed 0.
        runs: in the order of their seeds, the diverged ones too.
    """

    config: StageConfig
    runs: tuple[StageRecord, ...]

    @property
    def method(self) -> str:
        """A key of `METHODS`."""
        return self.config.method

    @property
    def lr(self) -> float:
        """h."""
        return self.runs[0].lr

    @property
    def embedding_dim(self) -> int | None:
        """m; None where it is the number of classes."""
        return self.config.embedding_dim

    @property
    def label(self) -> str:
        """``h = 0.1, m = 128``."""
        m = "" if self.embedding_dim is None else f", m = {self.embedding_dim}"
        return f"h = {self.lr:g}{m}"

    @property
    def diverged(self) -> int:
        """How many runs ended with a number that is not finite."""
        return sum(run.result is not None and run.result.diverged for run in self.runs)

    def errors(self) -> list[float]:
        """Mean test error after each epoch that all runs have; a diverged run has none from there.

        NaN where no run has one.
        """
        length = max((len(run.epochs) for run in self.runs), default=0)
        means = []
        for i in range(length):
            known = [run.epochs[i].test_error for run in self.runs if i < len(run.epochs)]
            known = [error for error in known if not math.isnan(error)]
            complete = len(known) == len(self.runs)
            means.append(fmean(known) if complete else math.nan)
        return means

    def final(self) -> dict[int, float]:
        """Test error after the last epoch, by seed, of the runs that finished."""
        return {
            run.config.seed: run.result.test_error
            for run in self.runs
            if run.result is not None and not run.result.diverged
        }

    def score(self, seeds: Collection[int]) -> float:
        """Mean error after the last epoch of the runs with some seeds, by which rates are chosen.

        On the validation images, if the runs have some. ∞ if any run diverged: a rate at which it
        may is no choice.
        """
        if self.diverged:
            return math.inf
        last = [run.epochs[-1] for run in self.runs if run.config.seed in seeds and run.result]
        known = [e.test_error if e.validation_error is None else e.validation_error for e in last]
        return fmean(known) if known else math.inf

    def mean(self) -> float:
        """Mean test error of the runs that finished; NaN if none did."""
        final = self.final()
        return fmean(final.values()) if final else math.nan


def curves(records: Iterable[StageRecord]) -> list[Curve]:
    """Groups runs; by method, then h, then m."""
    groups: dict[StageConfig, list[StageRecord]] = {}
    for record in records:
        groups.setdefault(replace(record.config, seed=0), []).append(record)
    found = [
        Curve(config, tuple(sorted(runs, key=lambda run: run.config.seed)))
        for config, runs in groups.items()
    ]
    return sorted(found, key=lambda curve: (curve.method, curve.lr, curve.embedding_dim or 0))


def best(candidates: Sequence[Curve], method: str) -> Curve | None:
    """The curve of a method with the lowest score over the seeds that all of them have.

    Of equals the one with the smaller h; None if every one diverged.
    """
    own = [c for c in candidates if c.method == method]
    seeds = set.intersection(*({run.config.seed for run in c.runs} for c in own)) if own else set()
    own = [c for c in own if c.score(seeds) < math.inf]
    return min(own, key=lambda curve: curve.score(seeds), default=None)
