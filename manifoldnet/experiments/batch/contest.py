"""Second order against first order: the whole of a small training set, one start, equal time.

    Arch1, two layers of 64 filters, 1,000 images of MNIST, mean cross-entropy, float64

    trust regions, conjugate gradients   (pymanopt)     un, sm-geodesic
    L-BFGS                               (torch.optim)  b-sgd: Euclidean weights
    RiemannianSGD, momentum 0.9                         un, sm-geodesic, at the best of some rates

The symmetry paper says that its geometry "can readily be extended to first and second order batch
algorithms". ReLU and max-pooling have no second derivative at their kinks; Hessians are those of
the smooth pieces between.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments.batch.rows import Contestant, Point
from manifoldnet.experiments.batch.task import arch1, batch_of, loss_of
from manifoldnet.experiments.data import Dataset
from manifoldnet.interop.pymanopt import minimize
from manifoldnet.optim.growth import NormGrowthWarning, ZeroSliceWarning

RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates that RiemannianSGD may choose from, for the mean loss."""


CONTESTANTS = (
    *(Contestant("trust-regions", update) for update in ("un", "sm-geodesic")),
    *(Contestant("conjugate-gradient", update) for update in ("un", "sm-geodesic")),
    Contestant("lbfgs", "b-sgd"),
    *(Contestant("sgd", update, lr) for update in ("un", "sm-geodesic") for lr in RATES),
)


def contest(
    data: Dataset,
    seconds: float,
    *,
    size: int = 1000,
    features: int = 64,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[Contestant, list[Point]]:
    """Runs all contestants from the same start.

    Args:
        data: images.
        seconds: for each.
        size: of the training set.
        features: filters per hidden layer.
        on_progress: called with (what is done, how many before it, of how many).

    Returns:
        The course of each; of each ``"sgd"`` only the best rate.
    """
    batch = batch_of(data, size)
    runs: dict[Contestant, list[Point]] = {}
    for number, contestant in enumerate(CONTESTANTS):
        what = f"{contestant.solver}, {contestant.update}"
        on_progress(what, number, len(CONTESTANTS))
        model = arch1(data, contestant.update, features)
        runs[contestant] = _run(contestant, model, loss_of(model, batch), seconds)
    best: dict[tuple[str, str], Contestant] = {}
    for contestant, points in runs.items():
        kind = contestant.solver, contestant.update
        if kind not in best or points[-1].cost < runs[best[kind]][-1].cost:
            best[kind] = contestant
    return {contestant: runs[contestant] for contestant in best.values()}


def _run(
    contestant: Contestant, model: nn.Module, loss: Callable[[], Tensor], seconds: float
) -> list[Point]:
    if contestant.solver == "lbfgs":
        return _lowest(_lbfgs(model, loss, seconds))
    if contestant.solver == "sgd":
        return _lowest(_sgd(model, loss, contestant.lr, seconds))
    endless: dict[str, Any] = {"max_iterations": 10**6, "min_gradient_norm": 0.0, "verbosity": 0}
    if contestant.solver != "trust-regions":
        endless |= {"min_step_size": 0.0, "max_cost_evaluations": 10**6}
    result = minimize(model, loss, contestant.solver, max_time=seconds, **endless)
    rows = result.log["iterations"]
    passes = [
        c + g + 2 * h
        for c, g, h in zip(rows["costs"], rows["gradients"], rows["hessians"], strict=True)
    ]
    return _lowest(map(Point, rows["time"], passes, rows["cost"]))


def _lbfgs(model: nn.Module, loss: Callable[[], Tensor], seconds: float) -> Iterator[Point]:
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    began = time.perf_counter()
    points: list[Point] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        now = time.perf_counter() - began
        points.append(Point(now, 2 * (len(points) + 1), float(value.detach())))
        return value

    while not points or (points[-1].seconds < seconds and math.isfinite(points[-1].cost)):
        optimizer.step(closure)
    return iter(points)


def _sgd(
    model: nn.Module, loss: Callable[[], Tensor], lr: float, seconds: float
) -> Iterator[Point]:
    optimizer = mn.RiemannianSGD(model.named_parameters(), lr=lr, momentum=0.9)
    began, calls = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        optimizer.zero_grad()
        value = loss()
        calls += 1
        yield Point(now, 2 * calls, float(value.detach()))
        if not bool(value.detach().isfinite()):
            return
        value.backward()
        with warnings.catch_warnings():
            # Some rates are too large; the best one is chosen.
            warnings.simplefilter("ignore", NormGrowthWarning)
            warnings.simplefilter("ignore", ZeroSliceWarning)
            optimizer.step()


def _lowest(points: Iterator[Point]) -> list[Point]:
    """The course with the lowest cost until each moment; what is not finite ends it."""
    result: list[Point] = []
    for point in points:
        if not math.isfinite(point.cost):
            break
        cost = min(point.cost, result[-1].cost) if result else point.cost
        result.append(point._replace(cost=cost))
    return result
