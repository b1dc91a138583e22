"""The sweeps of a report: what kind of runs each folder holds, and what it is called.

Reads records only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifoldnet.experiments import store
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.scale_invariant import grids
from manifoldnet.experiments.papers.scale_invariant.curves import curves
from manifoldnet.experiments.papers.scale_invariant.rows import SCALE_INVARIANT, StageRecord


@dataclass(frozen=True)
class Section:
    """The runs of a sweep.

    Attributes:
        name: of its folder.
        kind: ``"label noise"``, ``"stability"``, ``"choice"`` (judged by validation images),
            ``"comparison"`` (each method at its choice, and at earlier ones) or ``"grid"``.
        runs: all of them, of one protocol.
    """

    name: str
    kind: str
    runs: list[StageRecord]

    @property
    def title(self) -> str:
        """``mnist, smaller: 5,000 images, 6 epochs``."""
        config = self.runs[0].config
        images = (
            "all training images" if config.train_size is None else f"{config.train_size:,} images"
        )
        epochs = f"{config.epochs} epoch" + ("s" if config.epochs > 1 else "")
        return f"{config.dataset}, {config.architecture}: {images}, {epochs}"


def read(folder: Path) -> list[Section]:
    """The sweeps below a folder, or the one in it.

    Raises:
        RecordError: when a record is damaged or foreign, or the runs of a sweep do not belong
            together.
    """
    found = {
        place.name: store.read_all(place, SCALE_INVARIANT, exact=False).values()
        for place in store.sweeps(folder)
    }
    return [_section(name, list(runs)) for name, runs in found.items() if runs]


def titles(sections: Sequence[Section]) -> dict[str, str]:
    """By name; with the name in them where another of the same kind would be called the same."""
    called = [(section.kind, section.title) for section in sections]
    return {
        section.name: section.title
        + (f" ({section.name})" if called.count((section.kind, section.title)) > 1 else "")
        for section in sections
    }


def _section(name: str, runs: list[StageRecord]) -> Section:
    free: dict[str, Any] = {"method": "logistic", "lr": 1.0, "embedding_dim": None, "seed": 0}
    rates = set(grids.stability())
    if any(r.config.wrong_labels or r.config.outliers for r in runs):
        kind, free = "label noise", free | {"wrong_labels": 0.0, "outliers": 0.0}
    elif all(replace(r.config, seed=0) in rates for r in runs):
        kind, free = "stability", free | {"spheres": False}
    elif runs[0].config.validation_size:
        kind = "choice"
    else:
        found = curves(runs)
        single = len({c.method for c in found}) == len(found)
        kind = "comparison" if single or name.startswith(grids.COMPARISON) else "grid"
    shared = {replace(r.config, **free): r for r in runs}
    if len(shared) > 1:
        one, other = list(shared)[:2]
        raise RecordError(
            f"the records of {name} are of more than one protocol ({one.differences(other)}): move "
            "some of them to another folder"
        )
    if len({r.data for r in runs}) > 1:
        raise RecordError(
            f"the records of {name} are of different data: move some of them to another folder"
        )
    return Section(name, kind, runs)
