"""What a call of cost and gradient costs, beyond autograd itself.

    autograd     loss and gradient of the model, in float64
    minimize     the same as a solver has it: from a flat numpy point, to a Riemannian gradient
    pymanopt     `pymanopt.function.pytorch` around the same model, an array for each weight

By turns, so that a slow moment of the machine slows all three; what counts is the ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pymanopt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from manifoldnet.experiments.batch.task import arch1, batch_of, loss_of
from manifoldnet.experiments.data import Dataset
from manifoldnet.interop.pymanopt import to_pymanopt
from manifoldnet.objective import Objective


def overhead(
    data: Dataset,
    rounds: int,
    *,
    size: int = 1000,
    features: int = 64,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, float]:
    """Median seconds of a cost and its gradient, on Arch1 with unit-norm filters.

    Args:
        data: images.
        rounds: how often each is called.
        size: images of the batch.
        features: filters per hidden layer.
        on_progress: called with (what is done, the round, how many).
    """
    batch = pixels, labels = batch_of(data, size)
    model = arch1(data, "un", features)
    wrapped = _wrapped(model, *batch)
    parameters = list(model.parameters())
    plain = [p.detach().clone().requires_grad_() for p in parameters]
    names = [name for name, _ in model.named_parameters()]

    def autograd() -> None:
        values = dict(zip(names, plain, strict=True))
        loss = cross_entropy(functional_call(model, values, pixels), labels)
        torch.autograd.grad(loss, plain)

    with Objective(model, loss_of(model, batch)) as objective:
        manifold = to_pymanopt(objective.manifold, (objective.manifold.size,))
        x = objective.start.numpy()

        def minimize(point: Any) -> None:
            tensor = torch.from_numpy(point)
            objective.cost(tensor)
            slope = objective.gradient(tensor).numpy()
            manifold.euclidean_to_riemannian_gradient(point, slope)

        seconds: dict[str, list[float]] = {"autograd": [], "minimize": [], "pymanopt": []}
        for number in range(rounds + 1):
            on_progress("calls", number, rounds)
            point = x * (1 + 1e-9 * number)  # another one each time: nothing is remembered
            calls: dict[str, Callable[[], None]] = {
                "autograd": autograd,
                "minimize": partial(minimize, point),
                "pymanopt": partial(wrapped, number),
            }
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if number:  # the first is a warm-up
                    seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


def _wrapped(model: nn.Module, pixels: Tensor, labels: Tensor) -> Callable[[int], None]:
    """Cost and Riemannian gradient as pymanopt's own documentation has it."""
    named = {name: p.detach().clone() for name, p in model.named_parameters()}
    *hidden, head = named.values()
    # pymanopt's oblique manifold has unit columns.
    manifold = pymanopt.manifolds.Product(
        [
            *(pymanopt.manifolds.Oblique(p.shape[1], p.shape[0]) for p in hidden),
            pymanopt.manifolds.Euclidean(*head.shape),
        ]
    )

    # pymanopt carries no types.
    @pymanopt.function.pytorch(manifold)  # type: ignore[untyped-decorator]
    def cost(*weights: Tensor) -> Tensor:
        *filters, last = weights
        values = dict(zip(named, [*(w.T for w in filters), last], strict=True))
        return cross_entropy(functional_call(model, values, pixels), labels)

    problem = pymanopt.Problem(manifold, cost)
    point = [*(p.T.numpy().copy() for p in hidden), head.numpy()]

    def call(number: int) -> None:
        at = [np.ascontiguousarray(array * (1 + 1e-9 * number)) for array in point]
        problem.cost(at)
        problem.riemannian_gradient(at)

    return call
