"""Trust regions from weights w and from g·w: the same course under the scaled metric.

    linear -> batch normalization -> tanh -> linear, on scikit-learn's digits, all of a small batch

Batch normalization of the full batch in training mode is a smooth function of the weights that
does not see the length of a filter, so the symmetry is exact: filters are multiplied by factors
between 1e-3 and 1e3. Under the scaled metric with its exact geodesics trust regions cannot tell g·w
from w; with powers of two not even in rounding. With Euclidean weights they can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet import symmetry
from manifoldnet.experiments.batch.rows import Course
from manifoldnet.experiments.batch.task import batch_of, loss_of
from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.interop.pymanopt import minimize

SCALINGS = ("none", "powers of two", "any")
UPDATES = ("sm-geodesic", "b-sgd")
_DECADES = 3.0


def rescaled(
    data: Dataset,
    *,
    iterations: int = 60,
    size: int = 600,
    features: int = 4,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Course]:
    """Runs every update from every scaling of the same weights.

    Args:
        data: images.
        iterations: of trust regions.
        size: images of the batch.
        features: filters of the hidden layer: so few that the loss does not vanish.
        on_progress: called with (what is done, how many before it, of how many).
    """
    batch = batch_of(data, size)
    network = _network(data.inputs, features, len(data.classes))
    result: list[Course] = []
    for update in UPDATES:
        for scaling in SCALINGS:
            on_progress(f"{update}, scaled by {scaling}", len(result), 6)
            model = copy.deepcopy(network)
            with torch.no_grad():
                model.get_parameter("0.weight").mul_(_factors(scaling, features))
            if update == "sm-geodesic":
                mn.declare(model, "0.weight", mn.ScaledEuclidean())
            with symmetry.without_eps(model):
                log = minimize(
                    model,
                    loss_of(model, batch),
                    max_iterations=iterations,
                    verbosity=0,
                ).log
            result.append(Course(update, scaling, tuple(log["iterations"]["cost"])))
    return result


def _network(inputs: int, features: int, classes: int) -> nn.Sequential:
    source = seeded_generator(0, "start")
    hidden, head = nn.Linear(inputs, features, bias=False), nn.Linear(features, classes)
    for layer in (hidden, head):
        with torch.no_grad():
            layer.weight.normal_(generator=source)
            layer.weight /= layer.weight.norm(dim=1, keepdim=True)
    nn.init.zeros_(head.bias)
    return nn.Sequential(hidden, nn.BatchNorm1d(features), nn.Tanh(), head).double()


def _factors(scaling: str, count: int) -> Tensor:
    """A factor for each filter."""
    exponents = torch.rand(count, 1, generator=seeded_generator(0, "scaling"), dtype=torch.float64)
    exponents = _DECADES * (2 * exponents - 1)
    if scaling == "none":
        return torch.ones_like(exponents)
    if scaling == "any":
        return 10**exponents
    return 2 ** (exponents / torch.log10(torch.tensor(2.0))).round()
