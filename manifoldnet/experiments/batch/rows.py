"""What runs of batch solvers tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """A moment of a run.

    Attributes:
        seconds: since it began.
        passes: over the images until then: a loss or a gradient is one, a Hessian-vector product
            two.
        cost: the lowest until then.
    """

    seconds: float
    passes: int
    cost: float


@dataclass(frozen=True)
class Contestant:
    """A solver with an update.

    Attributes:
        solver: one of pymanopt's, ``"lbfgs"`` or ``"sgd"``.
        update: a key of `manifoldnet.experiments.papers.updates.UPDATES`.
        lr: of ``"sgd"``.
    """

    solver: str
    update: str
    lr: float = math.nan


@dataclass(frozen=True)
class Course:
    """A run of trust regions.

    Attributes:
        update: ``"sm-geodesic"`` or ``"b-sgd"``.
        scaling: ``"none"``, ``"powers of two"`` or ``"any"``.
        costs: at each point whose gradient was computed.
    """

    update: str
    scaling: str
    costs: tuple[float, ...]
