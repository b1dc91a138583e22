"""Measures batch solvers on MNIST and on the digits, and draws what was measured.

    python docs/batch_solvers.py --data-dir data    measures, and draws
    python docs/batch_solvers.py                    draws from the files that are there

**A contest**: second against first order, from one start, for equally many passes over the batch.
Arch1 of the symmetry paper (two layers of 64 filters) on 1,000 images of MNIST as one batch, mean
cross-entropy, float64. Each of four families

    trust regions, conjugate gradients   of pymanopt
    L-BFGS                               of this library; beside it torch's, with Euclidean weights
    SGD, momentum 0.9                    at the best of some rates

with Euclidean weights (b-sgd), on unit-norm filters (un), under the scaled metric (sm-geodesic),
and in the moving frame of the network's whole scaling group (moving-frame). ReLU and max-pooling
have no second derivative at their kinks; Hessians are those of the smooth pieces between.

**Rescaling**: trust regions and L-BFGS from weights w and from g·w, where each filter is multiplied
by a factor between 1e-3 and 1e3. Linear, batch normalization of the whole batch, tanh, linear is a
smooth function that does not see the length of a filter, so the symmetry is exact.

**Overhead** of a call of cost and gradient on the batch of the contest, beyond autograd itself.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pymanopt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timing import interleaved
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments.plotting import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    RED,
    new_figure,
    style,
    write_svg_pair,
)
from manifoldnet.interop.pymanopt import minimize, to_pymanopt
from manifoldnet.objective import Objective
from manifoldnet.symmetry import ScalingGroup

Batch = tuple[Tensor, Tensor]
COLOURS = {"b-sgd": GREY, "un": RED, "sm-geodesic": GREEN, "moving-frame": BLUE}
FAMILIES = {
    "trust-regions": "Trust regions",
    "conjugate-gradient": "Conjugate gradients",
    "lbfgs": "L-BFGS",
    "sgd": "SGD, whole batch",
}
RESCALED = ("trust-regions", "lbfgs")  # solvers from rescaled weights
WORDS = {
    "b-sgd": "Euclidean weights",
    "un": "unit norm",
    "sm-geodesic": "scaled metric",
    "moving-frame": "moving frame",
}
TITLES = {update: WORDS[update] for update in ("sm-geodesic", "moving-frame", "b-sgd")}
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # that SGD may choose from, for the mean loss


class Solver(NamedTuple):
    """A key of `FAMILIES` or "lbfgs-torch", an update, and the rate of "sgd"."""

    solver: str
    update: str
    lr: float = math.nan


class Moment(NamedTuple):
    """Passes over the images since a run began, and the lowest cost until then.

    A loss or a gradient is one pass, a Hessian-vector product two.
    """

    passes: int
    cost: float


SOLVERS = (
    *itertools.starmap(Solver, itertools.product([*FAMILIES][:-1], COLOURS)),
    Solver("lbfgs-torch", "b-sgd"),
    *itertools.starmap(Solver, itertools.product(["sgd"], COLOURS, RATES)),
)


# --- the task -------------------------------------------------------------------------------------


def seeded(purpose: str) -> torch.Generator:
    """A random generator of its own for each purpose."""
    digest = hashlib.sha256(f"{purpose}:0".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def digits(size: int) -> Batch:
    """Images of scikit-learn's digits as vectors, and their labels; always the same."""
    pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=seeded("digits"))[359:]
    rows = order[chosen(len(order), size)]
    return pixels[rows] / 16, labels[rows].long()


def mnist(folder: Path, size: int) -> Batch:
    """Images of MNIST, from a folder of parquet files; always the same."""
    files = sorted((folder / "mnist").glob("train-*.parquet"))
    rows = pd.concat(map(pd.read_parquet, files))
    rows = rows.iloc[chosen(len(rows), size).numpy()]
    images = [np.array(Image.open(io.BytesIO(image["bytes"]))) for image in rows.image]
    pixels = torch.from_numpy(np.stack(images)).flatten(1) / 255
    return pixels.double(), torch.tensor(rows.label.to_numpy())


def chosen(of: int, size: int) -> Tensor:
    """So many numbers below another at random."""
    return torch.randperm(of, generator=seeded("split"))[1 : size + 1]


def arch1(inputs: int, update: str, features: int = 64) -> nn.Sequential:
    """Two layers without biases, ReLU, max-pooling of pairs, and a classifier; unit rows."""
    source, pairs = seeded("start"), features // 2
    layers = [nn.Linear(i, o, bias=False) for i, o in ((inputs, features), (pairs, features))]
    layers.append(nn.Linear(pairs, 10, bias=False))
    for layer in layers:
        unit_rows_(layer.weight, source)
    one, two, head = layers
    pool = nn.MaxPool1d(2)
    model = nn.Sequential(one, nn.ReLU(), pool, two, nn.ReLU(), pool, head).double()
    rules = {"un": mn.rules.unit_norm, "sm-geodesic": mn.rules.scaled_metric}
    if update in rules:
        mn.declare_all(model, rules[update](classifier="6"))
    return model


def unit_rows_(weight: Tensor, source: torch.Generator) -> None:
    with torch.no_grad():
        weight.normal_(generator=source)
        weight /= weight.norm(dim=1, keepdim=True)


# --- the contest ----------------------------------------------------------------------------------


def contest(batch: Batch, passes: int, features: int = 64) -> dict[Solver, list[Moment]]:
    """The course of each solver; of each "sgd" only the best rate."""
    best: dict[tuple[str, str], tuple[Solver, list[Moment]]] = {}
    free = arch1(batch[0].shape[1], "b-sgd", features)
    few = [(batch[0][:100], batch[1][:100])]
    group = mn.symmetry.discover(free, cross_entropy, few).nontrivial
    for solver in SOLVERS:
        print(*solver, flush=True)
        model = arch1(batch[0].shape[1], solver.update, features)
        framed = group if solver.update == "moving-frame" else None
        course = lowest(run(solver, model, batch, passes, framed))
        key = solver[:2]
        if key not in best or course[-1].cost < best[key][1][-1].cost:
            best[key] = solver, course
    return dict(best.values())


def run(
    solver: Solver, model: nn.Module, batch: Batch, passes: int, group: ScalingGroup | None
) -> Iterator[Moment]:
    """The moments of one run, the cost of each as it is."""

    def loss() -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    if solver.solver == "lbfgs-torch":
        return torchs_lbfgs(model, loss, passes)
    if solver.solver == "sgd":
        optimizer: torch.optim.Optimizer
        if group is None:
            optimizer = mn.RiemannianSGD(model.named_parameters(), lr=solver.lr, momentum=0.9)
        else:
            free = torch.optim.SGD(model.parameters(), lr=solver.lr, momentum=0.9)
            optimizer = mn.symmetry.make_invariant(free, model, group)
        return sgd(optimizer, loss, passes)
    endless: dict[str, Any] = {"max_iterations": 10**6, "min_gradient_norm": 0.0}
    if solver.solver != "trust-regions":
        endless |= {"min_step_size": 0.0, "max_cost_evaluations": 10**6}
    endless |= {"max_time": math.inf, "verbosity": 0}
    result = minimize(model, loss, solver.solver, group=group, max_passes=passes, **endless)
    log = result.log["iterations"]
    counts = zip(log["costs"], log["gradients"], log["hessians"], strict=True)
    return map(Moment, (c + g + 2 * h for c, g, h in counts), log["cost"])


def torchs_lbfgs(model: nn.Module, loss: Callable[[], Tensor], passes: int) -> Iterator[Moment]:
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    moments: list[Moment] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        moments.append(Moment(2 * (len(moments) + 1), float(value.detach())))
        return value

    while not moments or (moments[-1].passes < passes and math.isfinite(moments[-1].cost)):
        optimizer.step(closure)
    return iter(moments[: passes // 2])


def sgd(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], passes: int
) -> Iterator[Moment]:
    for calls in range(1, passes // 2 + 1):
        optimizer.zero_grad()
        value = loss()
        yield Moment(2 * calls, float(value.detach()))
        if not bool(value.detach().isfinite()):
            return
        value.backward()
        with warnings.catch_warnings():  # of norms that grow: some rates are too large
            warnings.simplefilter("ignore", UserWarning)
            optimizer.step()


def lowest(moments: Iterator[Moment]) -> list[Moment]:
    """The course with the lowest cost until each moment; a cost that is not finite ends it."""
    finite = itertools.takewhile(lambda m: math.isfinite(m.cost), moments)
    return list(itertools.accumulate(finite, lambda a, b: b._replace(cost=min(a.cost, b.cost))))


def contest_table(runs: dict[Solver, list[Moment]], most: int = 200) -> pd.DataFrame:
    """A row for each moment, at most so many of a course, evenly, the last among them."""
    rows = []
    for solver, course in runs.items():
        lr = f"{solver.lr:g}" if solver.solver == "sgd" else ""
        for m in [*course[: len(course) - 1 : -(-len(course) // most)], course[-1]]:
            rows.append((*solver[:2], lr, m.passes, f"{m.cost:.6g}"))
    return pd.DataFrame(rows, columns=["solver", "update", "lr", "passes", "cost"])


# --- rescaled weights -----------------------------------------------------------------------------


def rescaled(batch: Batch, iterations: int = 60, features: int = 4) -> pd.DataFrame:
    """Costs of two solvers, for each update, from every scaling of the same weights."""
    exponents = torch.rand(features, 1, generator=seeded("scaling"), dtype=torch.float64)
    exponents = 3 * (2 * exponents - 1)
    factors = {
        "none": torch.ones_like(exponents),
        "powers of two": 2 ** (exponents / torch.log10(torch.tensor(2.0))).round(),
        "any": 10**exponents,
    }
    source = seeded("start")
    hidden, head = nn.Linear(batch[0].shape[1], features, bias=False), nn.Linear(features, 10)
    for layer in (hidden, head):
        unit_rows_(layer.weight, source)
    nn.init.zeros_(head.bias)
    network = nn.Sequential(hidden, nn.BatchNorm1d(features), nn.Tanh(), head).double()

    few = [(batch[0][:100], batch[1][:100])]
    with mn.symmetry.without_eps(network):
        group = mn.symmetry.discover(network, cross_entropy, few).nontrivial

    def costs(solver: str, update: str, scaling: str) -> list[float]:
        model = copy.deepcopy(network)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(factors[scaling])
        if update == "sm-geodesic":
            mn.declare(model, "0.weight", mn.ScaledEuclidean())
        with mn.symmetry.without_eps(model):
            result = minimize(
                model,
                lambda: cross_entropy(model(batch[0]), batch[1]),
                solver,
                group=group if update == "moving-frame" else None,
                max_iterations=iterations,
                verbosity=0,
            )
        return list(result.log["iterations"]["cost"])

    rows = [
        (solver, update, scaling, point, repr(float(cost)))
        for solver in RESCALED
        for update in TITLES
        for scaling in factors
        for point, cost in enumerate(costs(solver, update, scaling))
    ]
    return pd.DataFrame(rows, columns=["solver", "update", "scaling", "point", "cost"])


# --- what a call costs ----------------------------------------------------------------------------


def overhead(batch: Batch, rounds: int, features: int = 64) -> pd.DataFrame:
    """Median seconds of a cost and its gradient, by three ways to call them, in turns.

    autograd: loss and gradient of the model. minimize: from a flat numpy point to a Riemannian
    gradient. pymanopt: `pymanopt.function.pytorch` around the same model, an array for each weight.
    """
    model = arch1(batch[0].shape[1], "un", features)
    names = [name for name, _ in model.named_parameters()]
    plain = [p.detach().clone().requires_grad_() for p in model.parameters()]
    moved = (1 + 1e-9 * n for n in itertools.count(1))  # another point each time: no memory helps

    def loss(*weights: Tensor) -> Tensor:
        values = dict(zip(names, weights, strict=True))
        return cross_entropy(functional_call(model, values, batch[0]), batch[1])

    def by_autograd() -> None:
        torch.autograd.grad(loss(*plain), plain)

    # pymanopt's oblique manifold has unit columns.
    *hidden, head = (p.detach().numpy().copy() for p in plain)
    spheres = [pymanopt.manifolds.Oblique(w.shape[1], w.shape[0]) for w in hidden]
    manifold = pymanopt.manifolds.Product([*spheres, pymanopt.manifolds.Euclidean(*head.shape)])

    # pymanopt carries no types.
    @pymanopt.function.pytorch(manifold)  # type: ignore[untyped-decorator]
    def cost(*weights: Tensor) -> Tensor:
        *filters, last = weights
        return loss(*(w.T for w in filters), last)

    problem = pymanopt.Problem(manifold, cost)

    def by_pymanopt() -> None:
        factor = next(moved)
        at = [np.ascontiguousarray(w * factor) for w in (*(w.T for w in hidden), head)]
        problem.cost(at)
        problem.riemannian_gradient(at)

    with Objective(model, lambda: cross_entropy(model(batch[0]), batch[1])) as objective:
        whole = to_pymanopt(objective.manifold, (objective.manifold.size,))
        start = objective.start.numpy()

        def by_minimize() -> None:
            point = start * next(moved)
            tensor = torch.from_numpy(point)
            objective.cost(tensor)
            slope = objective.gradient(tensor).numpy()
            whole.euclidean_to_riemannian_gradient(point, slope)

        calls = {"autograd": by_autograd, "minimize": by_minimize, "pymanopt": by_pymanopt}
        for call in calls.values():  # a warm-up
            call()
        times = interleaved(calls, rounds=rounds)
    rows = [(name, f"{median(times[name]):.6f}") for name in calls]
    return pd.DataFrame(rows, columns=["call", "seconds"])


# --- pictures -------------------------------------------------------------------------------------


def draw_contest(rows: pd.DataFrame) -> Any:
    """A panel for each family: cost against passes over the images."""
    figure = new_figure(8.4, 6.4)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (solver, title) in zip(panels.flat, FAMILIES.items(), strict=True):
        style(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        for update, colour in COLOURS.items():
            course = rows[(rows.solver == solver) & (rows["update"] == update)]
            axes.plot(course.passes, course.cost, color=colour, label=WORDS[update])
        if solver == "lbfgs":
            course = rows[rows.solver == "lbfgs-torch"]
            axes.plot(
                course.passes, course.cost, ":", color=INK, label="Euclidean weights, torch's"
            )
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        axes.set_xscale("log")
        axes.set_yscale("log")
    for axes in panels[1]:
        axes.set_xlabel("passes over the images", color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel("training loss, the lowest so far", color=INK)
    return figure


def draw_rescaling(rows: pd.DataFrame) -> Any:
    """A row for each solver, a panel for each update, with the courses from all scalings."""
    styles: dict[str, dict[str, Any]] = {
        "none": {"linewidth": 5, "alpha": 0.4},
        "powers of two": {"linewidth": 1.6, "linestyle": "--", "color": INK},
        "any": {"linewidth": 1.4, "linestyle": ":", "color": MUTED},
    }
    figure = new_figure(8.4, 5.8)
    panels = figure.subplots(len(RESCALED), len(TITLES), sharey=True, sharex="row")
    for row, solver in zip(panels, RESCALED, strict=True):
        for axes, (update, title) in zip(row, TITLES.items(), strict=True):
            style(axes)
            own = rows[(rows.solver == solver) & (rows["update"] == update)]
            for scaling, how in styles.items():
                cost = own.cost[own.scaling == scaling]
                options = {"color": COLOURS[update], "label": scaling} | how
                axes.plot(range(len(cost)), cost, **options)
            axes.set_yscale("log")
            axes.set_title(f"{FAMILIES[solver]}, {title}", loc="left", fontsize=10, color=INK)
            axes.set_xlabel("point", color=INK)
        row[0].set_ylabel("training loss", color=INK)
    panels[-1, -1].legend(
        loc="upper right",
        title="filters scaled by 1/1000 … 1000:",
        title_fontsize=8,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, if there are data, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/results"), metavar="DIR", help="(%(default)s)")
    add("--passes", type=int, default=3000, metavar="N", help="of each solver (%(default)s)")
    add(
        "--rounds", type=int, default=100, metavar="N", help="of timed calls, 0: none (%(default)s)"
    )
    add("--data-dir", type=Path, metavar="DIR", help="measure, with mnist/*.parquet in this folder")
    arguments = parser.parse_args(argv)
    if arguments.passes < 2 or arguments.rounds < 0:
        parser.error("--passes must be 2 at least, and --rounds not negative")
    out = arguments.out
    if arguments.data_dir:
        torch.set_num_threads(1)
        batch = mnist(arguments.data_dir, 1000)
        measured = {
            "batch_rescaled": rescaled(digits(600)),
            "batch_solvers": contest_table(contest(batch, arguments.passes)),
        }
        if arguments.rounds:
            measured["batch_overhead"] = overhead(batch, arguments.rounds)
        out.mkdir(parents=True, exist_ok=True)
        for name, table in measured.items():
            table.to_csv(out / f"{name}.csv", index=False)
    for name, draw in {"batch_solvers": draw_contest, "batch_rescaled": draw_rescaling}.items():
        write_svg_pair(draw(pd.read_csv(out / f"{name}.csv")), out / name)


if __name__ == "__main__":
    main()
