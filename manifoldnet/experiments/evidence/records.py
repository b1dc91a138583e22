"""Records of the runs, and choices from them. Trains nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple

from manifoldnet.experiments import store
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.evidence.config import METHODS, NETWORKS, EvidenceConfig
from manifoldnet.experiments.records import (
    EpochRow,
    ResultRow,
    RunRecord,
    Schema,
    check_together,
)
from manifoldnet.experiments.study import beyond, half_decade


@dataclass(frozen=True, kw_only=True)
class EvidenceEpoch(EpochRow):
    """An epoch, which is a number of iterations."""

    validation_loss: float  # of some passages or images, of all after the last epoch
    test_loss: float  # NaN before the last epoch
    test_error: float  # share that is predicted wrong, as `test_loss`
    norms: tuple[float, ...] = ()  # of `EvidenceConfig.matrices`, mean over vectors; see `Angles`
    angles: tuple[float, ...] = ()  # by which an iteration turns them, mean over the epoch
    iteration_seconds: float  # wall clock of an iteration, the median
    step_seconds: float  # its part of the optimizers
    fault: str = ""  # why the run counts as diverged

    def summary(self) -> str:
        """The scores that the progress bar shows."""
        return f"loss {self.train_loss:.4g}, validation {self.validation_loss:.4g}"


@dataclass(frozen=True, kw_only=True)
class EvidenceResult(ResultRow):
    """The end of a run."""

    validation_loss: float
    test_loss: float
    test_error: float


EVIDENCE = Schema(EvidenceConfig, EvidenceEpoch, EvidenceResult)
EvidenceRecord = RunRecord[EvidenceConfig, EvidenceEpoch, EvidenceResult]

_RATES = ("method", "lr", "rest_lr", "seed")
AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "choice": _RATES,
        "comparison": _RATES,
        "width": (*_RATES, "width"),
        "starts": (*_RATES, "start_size", "spread"),
    }
)
"""The purposes of sweeps, and the fields in which their records may differ."""


class Section(NamedTuple):
    """The records of a sweep; its purpose is a key of `AXES`."""

    purpose: str
    network: str
    records: list[EvidenceRecord]


def read(folder: Path) -> list[Section]:
    """The sweeps below a folder, or the one in it, in the order of purposes and networks.

    Raises:
        RecordError: if there are none, or records of a sweep do not belong together.
    """
    sections = []
    for place in store.sweeps(folder):
        found = store.read_all(place, EVIDENCE, exact=False)
        if found:
            first = next(iter(found.values()))
            purpose = first.sweep.get("purpose", "")
            if purpose not in AXES:
                raise RecordError(
                    f"{place} holds a sweep for {purpose or 'no'} purpose, not for one of "
                    f"{', '.join(AXES)}: move it away"
                )
            paths = {place / "records" / f"{name}.jsonl": r for name, r in found.items()}
            check_together(paths, AXES[purpose])
            sections.append(Section(purpose, first.config.network, list(found.values())))
    if not sections:
        raise RecordError(
            f"{folder} holds no records: make some with manifoldnet reproduce evidence rates "
            f"--out {folder}"
        )
    twice = [key for key, n in Counter(section[:2] for section in sections).items() if n > 1]
    if twice:
        raise RecordError(
            f"{folder} holds two sweeps for {' of '.join(twice[0])}: report on each by itself"
        )
    order = list(AXES), list(NETWORKS)
    return sorted(sections, key=lambda s: (order[0].index(s.purpose), order[1].index(s.network)))


Losses = Mapping[EvidenceConfig, Mapping[float, float]]
"""By cell and rate; infinite where a run diverged."""


def cell_of(config: EvidenceConfig) -> EvidenceConfig:
    """The settings that a run shares with those at other rates and seeds."""
    return replace(config, lr=METHODS[config.method].first, seed=0)


def losses(records: Iterable[EvidenceRecord]) -> dict[EvidenceConfig, dict[float, float]]:
    """Mean validation loss by cell and rate, over seeds."""
    found: dict[EvidenceConfig, dict[float, list[float]]] = {}
    for record in records:
        if record.result is not None:
            value = math.inf if record.result.diverged else record.result.validation_loss
            own = found.setdefault(cell_of(record.config), {})
            own.setdefault(record.lr, []).append(value)
    return {
        cell: {lr: fmean(values) for lr, values in sorted(own.items())}
        for cell, own in found.items()
    }


def best(own: Mapping[float, float]) -> float:
    """The rate of the lowest loss; the lowest rate where all have diverged."""
    return min(sorted(own), key=own.__getitem__)


def missing(found: Losses, *, level: bool) -> list[tuple[EvidenceConfig, float]]:
    """Cells and rates that widen the grids in which the best rate stands at an edge.

    With `level`, grids that are whole are widened on the side of the nearer edge, until all have
    as many rates.
    """
    wider = [(cell, lr) for cell, own in found.items() for lr in beyond(own, best(own))]
    if wider or not level:
        return wider
    most = max(map(len, found.values()))
    more = []
    for cell, own in found.items():
        rates = sorted(own)
        below = rates.index(best(own))
        above = len(rates) - 1 - below
        if len(rates) < most:
            lower = below < above
            more.append((cell, half_decade(rates[0 if lower else -1], -1 if lower else 1)))
    return more


def chosen(found: Losses) -> dict[EvidenceConfig, float]:
    """The best rate of each cell.

    Raises:
        RecordError: for a cell without a run that ended well.
    """
    rates = {cell: best(own) for cell, own in found.items()}
    for cell, lr in rates.items():
        if math.isinf(found[cell][lr]):
            raise RecordError(
                f"{cell.network}, {cell.width}, {cell.method}: all {len(found[cell])} rates from "
                f"{min(found[cell]):g} to {max(found[cell]):g} diverged: there is none to choose"
            )
    return rates
