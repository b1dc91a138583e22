"""Learning rates of optimizers and manifolds, measured on two small problems.

    python docs/learning_rates.py

trains what results/learning_rates.csv does not hold yet (a row is kept as soon as its run has
ended, so an interrupted study goes on where it stopped), prints the tables of learning_rates.md and
draws results/learning_rates-light.svg and -dark.svg.

**text**: a transformer of two layers on characters of Python's documentation strings; the loss on
a tenth of the passages after 300 steps. **digits**: a residual network with batch normalization
on 300 of scikit-learn's digits; the share of the others that it gets wrong after 30 epochs.

The hidden matrices or kernels alone are declared. Every rate has a linear warm-up over the first
tenth of the steps and falls to zero along a cosine. Rates are half-decades (1, 3, 10, …); the range
of a method is widened until both of its ends are out of tolerance. Besides, each method is run at
the rates that are carried over from the plain optimizer.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import characters
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.optim import Optimizer

import manifoldnet as mn
from manifoldnet.experiments.plotting import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    RED,
    new_figure,
    style,
    write_svg_pair,
)

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "learning_rates.csv"
DECAY = 0.1  # of AdamW and Muon, for weights that are not declared
EARLY = 10  # the training loss at this step is kept, for a short check of the records

Sample = tuple[Tensor, Tensor]


# --- problems -------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Loss of a model on held-out data, and the share that it gets wrong."""

    loss: float
    error: float


class Text:
    """Characters of Python's documentation strings."""

    name, steps, rest = "text", 300, 3e-2
    block, batch = 32, 16

    def __init__(self) -> None:
        self.hidden = {
            f"layers.{i}.{matrix}.weight": int(matrix in ("out", "down"))
            for i in range(2)
            for matrix in characters.MATRICES
        }
        text = characters.encoded()
        data, self.classes = text.codes, len(text.alphabet)
        passages = data[: len(data) // (self.block + 1) * (self.block + 1)].view(-1, self.block + 1)
        chosen = torch.arange(len(passages)) // 10 % 10 == 9  # ten passages in a row of a hundred
        self.data, self.held_out = passages[~chosen].flatten(), passages[chosen]
        self.fingerprint = text.fingerprint()

    def model(self) -> nn.Module:
        """A new network."""
        return characters.Transformer(self.classes, width=48, block=self.block)

    def batches(self, source: torch.Generator) -> Iterator[Sample]:
        """Random passages, and the characters after each of theirs."""
        for _ in range(self.steps):
            starts = torch.randint(len(self.data) - self.block, (self.batch, 1), generator=source)
            ids = self.data[starts + torch.arange(self.block + 1)]
            yield ids[:, :-1], ids[:, 1:]

    def scores(self, model: nn.Module) -> Scores:
        """Scores on the passages that no step has seen."""
        return scored(model, self.held_out[:, :-1], self.held_out[:, 1:])


class Residual(nn.Module):
    """Two residual blocks of convolutions with batch normalization."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        inputs = (1, width, width, width, width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, width, 3, padding=1, bias=False) for i in inputs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (n, 1, height, width)."""
        layers = list(zip(self.convolutions, self.norms, strict=True))
        (convolution, norm), *others = layers
        x = relu(norm(convolution(images)))
        for first, second in zip(others[::2], others[1::2], strict=True):
            y = relu(first[1](first[0](x)))
            x = nn.functional.max_pool2d(relu(x + second[1](second[0](y))), 2)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Digits:
    """Images of handwritten digits that come with scikit-learn."""

    name, epochs, rest = "digits", 30, 3e-2
    training, batch = 300, 50
    steps = epochs * training // batch
    fingerprint, classes = "", 10

    def __init__(self) -> None:
        self.hidden = {f"convolutions.{i}.weight": 0 for i in range(5)}
        pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = pixels[order].float().view(-1, 1, 8, 8) / 16, labels[order].long()
        self.images, self.held_out = images.tensor_split([self.training])
        self.labels, self.held_out_labels = labels.tensor_split([self.training])

    def model(self) -> nn.Module:
        """A new network."""
        return Residual()

    def batches(self, source: torch.Generator) -> Iterator[Sample]:
        """Epochs, each in an order of its own."""
        for _ in range(self.epochs):
            for rows in torch.randperm(self.training, generator=source).split(self.batch):
                yield self.images[rows], self.labels[rows]

    def scores(self, model: nn.Module) -> Scores:
        """Scores on the images that no step has seen."""
        return scored(model, self.held_out, self.held_out_labels)


Problem = Text | Digits


@torch.no_grad()
def scored(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """Scores of a model in evaluation mode."""
    model.eval()
    logits = model(inputs).flatten(0, -2)
    targets = targets.flatten()
    wrong = (logits.argmax(1) != targets).double().mean()
    return Scores(float(cross_entropy(logits, targets)), float(wrong))


@cache
def problem(name: str) -> Problem:
    """A problem by its name, with its data loaded once."""
    return Text() if name == "text" else Digits()


# --- methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """An optimizer on weights that are declared in one way.

    Attributes:
        optimizer: its name in tables.
        manifold: the name of the manifold in tables.
        make: its optimizers for a model, hidden weights declared, at a rate.
        start: the half-decade in the middle of the first rates: 10^(start/2).
        alone: True if the rate is that of the hidden weights alone. The others then have AdamW at
            its own best rate.
    """

    optimizer: str
    manifold: str
    make: Callable[[nn.Module, Problem, float], list[Optimizer]]
    start: int
    alone: bool = False


MANIFOLDS: dict[str, Callable[[int], mn.Manifold]] = {
    "unit norm": mn.Oblique,
    "scaled metric": mn.ScaledEuclidean,
    "Stiefel": lambda dim: mn.Stiefel(),
}


def declare(model: nn.Module, of: Problem, manifold: str, **options: Any) -> None:
    """Declare the hidden weights of a problem."""
    if manifold in MANIFOLDS:
        made = {name: MANIFOLDS[manifold](dim, **options) for name, dim in of.hidden.items()}
        mn.declare_all(model, made, project=manifold != "scaled metric")


def split(model: nn.Module, of: Problem) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden weights, and all others."""
    named = dict(model.named_parameters())
    return [named[n] for n in of.hidden], [p for n, p in named.items() if n not in of.hidden]


def adamw(parameters: Any, lr: float) -> Optimizer:
    """AdamW; a group with a decay of its own keeps it."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=DECAY)


def sgd(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """SGD with momentum, of torch."""
    return [torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)]


def plain_adamw(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """AdamW for all parameters."""
    return [adamw(model.parameters(), lr)]


def moving_adamw(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """AdamW in the moving frame of the symmetries that `discover` finds."""
    optimizers = plain_adamw(model, of, lr)
    mn.symmetry.make_invariant(optimizers, model, symmetries(of.name))
    return optimizers


@cache
def symmetries(name: str) -> mn.symmetry.ScalingGroup:
    """The scaling group of a problem's network, found once."""
    of = problem(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = of.model().double()
    x, y = next(of.batches(torch.Generator().manual_seed(0)))
    if x.is_floating_point():
        x = x.double()
    return mn.symmetry.discover(model, cross_entropy, [(x, y)]).nontrivial


def muon(
    model: nn.Module, of: Problem, lr: float, constrained: bool = False, **options: Any
) -> list[Optimizer]:
    """Muon for hidden weights, AdamW at its best rate for the others."""
    hidden, others = split(model, of)
    optimizer: Optimizer = mn.optim.Muon(hidden, lr=lr, weight_decay=0.0 if constrained else DECAY)
    if constrained:
        mn.constrain(optimizer, **options)
    return [optimizer, adamw(others, of.rest)]


def riemannian_sgd(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """RiemannianSGD with momentum, for all parameters."""
    return [mn.RiemannianSGD(mn.param_groups(model), lr=lr, momentum=0.9)]


def riemannian_adam(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """RiemannianAdam for all parameters, with AdamW's decay of those that are not declared."""
    groups = mn.param_groups(model, weight_decay=DECAY)
    return [mn.RiemannianAdam(groups, lr=lr, decoupled_weight_decay=True)]


def riemannian_adam_by_norm(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """RiemannianAdam by norms of slices, and AdamW at its best rate for the others."""
    hidden, others = split(model, of)
    return [mn.RiemannianAdam(hidden, lr=lr, slice_scale="norm"), adamw(others, of.rest)]


def constrained_adamw(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """AdamW for all parameters, constrained."""
    return [mn.constrain(adamw(mn.param_groups(model, weight_decay=DECAY), lr))]


def turning_adamw(model: nn.Module, of: Problem, lr: float) -> list[Optimizer]:
    """AdamW whose rate is an angle, and AdamW at its best rate for the others."""
    hidden, others = split(model, of)
    turning = torch.optim.AdamW(hidden, lr=lr, weight_decay=0.0)
    return [mn.constrain(turning, length="angle"), adamw(others, of.rest)]


METHODS: dict[str, Method] = {
    "sgd": Method("SGD", "none", sgd, -2),
    "rsgd-unit": Method("RiemannianSGD", "unit norm", riemannian_sgd, -1),
    "rsgd-scaled": Method("RiemannianSGD", "scaled metric", riemannian_sgd, -1),
    "adamw": Method("AdamW", "none", plain_adamw, -4),
    "radam-unit": Method("RiemannianAdam", "unit norm", riemannian_adam, -4),
    "radam-scaled": Method("RiemannianAdam", "scaled metric", riemannian_adam, -4),
    "radam-norm-unit": Method(
        'RiemannianAdam, slice_scale="norm"', "unit norm", riemannian_adam_by_norm, -2, True
    ),
    "radam-norm-scaled": Method(
        'RiemannianAdam, slice_scale="norm"', "scaled metric", riemannian_adam_by_norm, -2, True
    ),
    "adamw-unit": Method("constrain(AdamW)", "unit norm", constrained_adamw, -4),
    "adamw-angle": Method('constrain(AdamW, length="angle")', "unit norm", turning_adamw, -2, True),
    "adamw-stiefel": Method("constrain(AdamW)", "Stiefel", constrained_adamw, -4),
    "adamw-moving": Method("make_invariant(AdamW)", "moving frame", moving_adamw, -4),
    "muon": Method("Muon", "none", muon, -3, True),
    "muon-unit": Method("constrain(Muon)", "unit norm", partial(muon, constrained=True), -2, True),
    "muon-angle": Method(
        'constrain(Muon, length="angle")',
        "unit norm",
        partial(muon, constrained=True, length="angle"),
        -2,
        True,
    ),
    "muon-stiefel": Method("constrain(Muon)", "Stiefel", partial(muon, constrained=True), -2, True),
}


# --- runs -----------------------------------------------------------------------------------------


def schedule(step: int, steps: int) -> float:
    """The factor of a rate: a linear warm-up over a tenth of the steps, then a cosine to zero."""
    warmup = steps // 10
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    name: str, method: str, rate: float, seed: int, steps: int | None = None
) -> tuple[list[float], Scores | None]:
    """Training losses of a run, and its scores; None for a run that diverged.

    That is one that leaves the finite numbers, or ends worse than equal scores for all classes.
    """
    of, how = problem(name), METHODS[method]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = of.model()
    options = {"retraction": "geodesic"} if method.endswith("-angle") else {}
    declare(model, of, how.manifold, **options)
    optimizers = how.make(model, of, rate)
    factor = partial(schedule, steps=of.steps)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    losses: list[float] = []
    with warnings.catch_warnings():  # of norms that grow: some rates are too large
        warnings.simplefilter("ignore", UserWarning)
        for x, y in of.batches(torch.Generator().manual_seed(1000 + seed)):
            model.zero_grad()
            loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
            losses.append(float(loss.detach()))
            if len(losses) == steps:
                break
            if not math.isfinite(losses[-1]):
                return losses, None
            loss.backward()
            try:
                for optimizer in optimizers:
                    optimizer.step()
                for scheduler in schedulers:
                    scheduler.step()
            except RuntimeError:  # gradients that are not finite
                if all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
                    raise
                return losses, None
        scores = of.scores(model)
    return losses, scores if scores.loss < math.log(of.classes) else None


# --- records --------------------------------------------------------------------------------------

COLUMNS = ("problem", "method", "rate", "seed", "data", "early", "loss", "error")
SEEDS = {"text": 2, "digits": 3}
OMITTED = {("text", "adamw-moving")}  # finding the symmetries takes longer than all runs
Row = dict[str, str]
Cell = tuple[str, str, str, int]


def cell(row: Row) -> Cell:
    """The problem, method, rate and seed of a row."""
    return row["problem"], row["method"], row["rate"], int(row["seed"])


def read(path: Path = RECORDS) -> dict[Cell, Row]:
    """The rows that are there, by their cells."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {cell(row): row for row in csv.DictReader(file)}


def write(rows: dict[Cell, Row], path: Path = RECORDS) -> None:
    """Write all rows, in an order that does not depend on that of the runs."""
    methods = list(METHODS)
    ordered = sorted(
        rows.values(),
        key=lambda r: (r["problem"], methods.index(r["method"]), float(r["rate"]), int(r["seed"])),
    )
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    os.replace(part, path)


@dataclass
class Study:
    """Runs that are kept as they come; those that are there are not run again."""

    path: Path = RECORDS

    def __post_init__(self) -> None:
        self.rows = read(self.path)
        for row in self.rows.values():
            if row["data"] != problem(row["problem"]).fingerprint:
                raise SystemExit(
                    f"{self.path} was measured on the documentation strings of another Python "
                    f"({row['data']}): move it away, or run the Python that it was made with"
                )

    def run(self, name: str, method: str, rate: str) -> None:
        """Train at one rate from every seed."""
        for seed in range(SEEDS[name]):
            if (name, method, rate, seed) in self.rows:
                continue
            losses, scores = train(name, method, float(rate), seed)
            row = dict.fromkeys(COLUMNS, "")
            row |= {"problem": name, "method": method, "rate": rate, "seed": str(seed)}
            row |= {"data": problem(name).fingerprint}
            if len(losses) >= EARLY and math.isfinite(losses[EARLY - 1]):
                row["early"] = f"{losses[EARLY - 1]:.9g}"
            if scores is not None:
                row |= {"loss": f"{scores.loss:.9g}", "error": f"{scores.error:.9g}"}
            self.rows[cell(row)] = row
            write(self.rows, self.path)
            found = "diverged" if scores is None else f"loss {scores.loss:.3f}, {scores.error:.2%}"
            print(f"{len(self.rows):4}  {name} {method} {rate}, seed {seed}: {found}", flush=True)

    def sweep(self, name: str, method: str) -> None:
        """Train at half-decades until the rates at both ends are out of tolerance."""
        first = METHODS[method].start - 1
        last = first + 2
        while True:
            for k in range(first, last + 1):
                self.run(name, method, half_decade(k))
            found = Summary.of(self.rows, name, method)
            low, high = half_decade(first) in found.good, half_decade(last) in found.good
            if not (low or high) or last - first >= 11:
                return
            first, last = first - low, last + high


def half_decade(k: int) -> str:
    """The rate 10^(k/2), rounded to 1 or 3 times a power of ten."""
    return f"{float(f'{10 ** (k / 2):.0e}'):g}"


GRID = {half_decade(k) for k in range(-12, 7)}


# --- summaries ------------------------------------------------------------------------------------


def score(row: Row) -> float:
    """The loss on the text, the error on the digits; infinite for a run that diverged."""
    return float(row["loss" if row["problem"] == "text" else "error"] or "inf")


def out_of_tolerance(name: str, value: float, best: float) -> bool:
    """True if a score is worse than the best by more than 2 % of a loss or 0.5 points of error."""
    worst = best * (1 + LOSS_TOLERANCE) if name == "text" else best + ERROR_TOLERANCE
    return value > worst


LOSS_TOLERANCE, ERROR_TOLERANCE = 0.02, 0.005


@dataclass(frozen=True)
class Summary:
    """Runs of one method on one problem, at the half-decades.

    Attributes:
        scores: the mean score at each rate over the seeds.
        best: the rate with the lowest score.
        good: rates around it that are in tolerance.
        diverged: the number of runs that diverged, and `runs` of all.
    """

    scores: dict[str, float]
    best: str
    good: tuple[str, ...]
    diverged: int
    runs: int

    @classmethod
    def of(cls, rows: dict[Cell, Row], name: str, method: str) -> Summary:
        """The summary of the rows of a method."""
        grouped: dict[str, list[float]] = {}
        for (problem_name, of, rate, _), row in rows.items():
            if (problem_name, of) == (name, method) and rate in GRID:
                grouped.setdefault(rate, []).append(score(row))
        scores = {r: sum(v) / len(v) for r, v in sorted(grouped.items(), key=lambda i: float(i[0]))}
        rates = list(scores)
        best = min(rates, key=lambda r: scores[r])
        first = last = rates.index(best)
        while first and not out_of_tolerance(name, scores[rates[first - 1]], scores[best]):
            first -= 1
        while last + 1 < len(rates) and not out_of_tolerance(
            name, scores[rates[last + 1]], scores[best]
        ):
            last += 1
        every = [value for values in grouped.values() for value in values]
        diverged = sum(math.isinf(value) for value in every)
        return cls(scores, best, tuple(rates[first : last + 1]), diverged, len(every))


# --- carried-over rates ---------------------------------------------------------------------------


def carried(rows: dict[Cell, Row], name: str) -> Iterator[tuple[str, str, str]]:
    """Methods, rules, and the rates that they give from the best rate of the plain optimizer."""
    best = {m: Summary.of(rows, name, m).best for m in ("sgd", "adamw", "muon")}
    for method, how in METHODS.items():
        base = "muon" if "muon" in method else "sgd" if "sgd" in method else "adamw"
        if method == base or (name, method) in OMITTED:
            continue
        lr = float(best[base])
        if method == "adamw-angle":
            angle = mn.optim.angle_of(lr=lr, weight_decay=DECAY, betas=(0.9, 0.999))
            yield method, "angle_of", f"{angle:.2g}"
        if method == "adamw-angle" or how.optimizer.endswith('"norm"'):
            yield method, "× √n", f"{lr * ENTRIES[name] ** 0.5:.2g}"
        elif method != "muon-angle":
            yield method, "the same", best[base]


ENTRIES = {"text": 48, "digits": 144}  # of a slice, in all or most of the weights


# --- tables ---------------------------------------------------------------------------------------


def shown(name: str, value: float) -> str:
    """A mean score: a loss, or an error in percent."""
    if math.isinf(value):
        return "diverged"
    return f"{value:.3f}" if name == "text" else f"{value:.2%}".replace("%", " %")


def mean_score(rows: dict[Cell, Row], name: str, method: str, rate: str) -> float:
    """The mean score over the seeds."""
    found = [score(rows[name, method, rate, seed]) for seed in range(SEEDS[name])]
    return sum(found) / len(found)


def measured(rows: dict[Cell, Row], method: str) -> dict[str, Summary]:
    """The summaries of a method, by problem."""
    return {n: Summary.of(rows, n, method) for n in SEEDS if (n, method) not in OMITTED}


def labels(method: str) -> str:
    """The first two columns of a table."""
    how = METHODS[method]
    of_torch = how.manifold == "none"
    return f"{how.optimizer if of_torch else f'`{how.optimizer}`'} | {how.manifold}"


def best_rates(rows: dict[Cell, Row]) -> list[str]:
    """A row for each method: best rate, rates in tolerance and score, for each problem."""
    table = []
    for method in METHODS:
        found = measured(rows, method)
        cells = []
        for name in SEEDS:
            if name in found:
                s = found[name]
                good = s.good[0] if len(s.good) == 1 else f"{s.good[0]} – {s.good[-1]}"
                cells += [f"**{s.best}**", good, shown(name, s.scores[s.best])]
            else:
                cells += ["", "", "not run"]
        diverged = sum(s.diverged for s in found.values())
        runs = sum(s.runs for s in found.values())
        table.append(f"| {labels(method)} | {' | '.join(cells)} | {diverged} of {runs} |")
    return table


def first_three(rows: dict[Cell, Row], method: str) -> list[str]:
    """The three neighbouring half-decades that together come nearest to the best scores.

    Of those that come equally near, the three whose rates all do best.
    """

    def excess(name: str, found: Summary, rate: str) -> float:
        """The score at a rate over the best one, in tolerances."""
        best, value = found.scores[found.best], found.scores[rate]
        if name == "text":
            return (value / best - 1) / LOSS_TOLERANCE
        return (value - best) / ERROR_TOLERANCE

    def cost(rates: list[str]) -> tuple[float, float]:
        costs = [[excess(n, s, r) for r in rates] for n, s in found.items()]
        return sum(map(min, costs)), sum(min(c, CAP) for each in costs for c in each)

    found = measured(rows, method)
    grids = [set(s.scores) for s in found.values()]
    common = sorted(set.intersection(*grids), key=float)
    return min((common[i : i + 3] for i in range(len(common) - 2)), key=cost)


CAP = 20.0  # tolerances; runs that diverge are not infinitely worse than bad ones


def rates_to_try(rows: dict[Cell, Row]) -> list[str]:
    """A row for each method: three rates."""
    return [f"| {labels(m)} | {', '.join(first_three(rows, m))} |" for m in METHODS]


def carried_rates(rows: dict[Cell, Row]) -> list[str]:
    """A row for each method and rule: the carried-over rate, its score and the best one."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in SEEDS:
        for method, rule, rate in carried(rows, name):
            best = Summary.of(rows, name, method)
            here = shown(name, mean_score(rows, name, method, rate))
            cells = f"{rate} | {here} | {shown(name, best.scores[best.best])}"
            found.setdefault((method, rule), {})[name] = cells
    return [
        f"| {labels(method)} | {rule} | {' | '.join(by.get(n, ' | not run | ') for n in SEEDS)} |"
        for (method, rule), by in found.items()
    ]


# --- picture --------------------------------------------------------------------------------------

FAMILIES = {
    "SGD": ("sgd", "rsgd-unit", "rsgd-scaled"),
    "RiemannianAdam": ("radam-unit", "radam-norm-unit", "radam-scaled", "radam-norm-scaled"),
    "AdamW": ("adamw", "adamw-unit", "adamw-angle", "adamw-stiefel", "adamw-moving"),
    "Muon": ("muon", "muon-unit", "muon-angle", "muon-stiefel"),
}


def picture(rows: dict[Cell, Row]) -> Figure:
    """A row of panels for each problem, a column for each family, a line for each method."""
    colours = {
        "none": MUTED,
        "unit norm": RED,
        "scaled metric": BLUE,
        "Stiefel": GREEN,
        "moving frame": INK,
    }
    figure = new_figure(10.0, 6.0)
    panels = figure.subplots(len(SEEDS), len(FAMILIES), sharey="row")
    for name, across in zip(SEEDS, panels, strict=True):
        baseline = Summary.of(rows, name, "adamw")
        for (family, methods), axes in zip(FAMILIES.items(), across, strict=True):
            lowest = baseline.scores[baseline.best]
            axes.axhline(lowest, color=MUTED, linewidth=0.8, linestyle=":")
            for method in methods:
                if (name, method) in OMITTED:
                    continue
                how = METHODS[method]
                variant = "norm" if "norm" in method else "angle" if "angle" in method else ""
                label = ", ".join(filter(None, (how.manifold, variant)))
                label = "plain" if label == "none" else label
                points = {float(r): v for r, v in Summary.of(rows, name, method).scores.items()}
                axes.plot(
                    list(points),
                    [v if math.isfinite(v) else math.nan for v in points.values()],
                    color=colours[how.manifold],
                    linestyle="--" if variant else "-",
                    marker="o",
                    markersize=3,
                    linewidth=1.5,
                    label=label,
                )
            dress(axes, name)
            if name == "text":
                axes.set_title(family, color=INK, fontsize=11, loc="left")
            else:
                axes.set_xlabel("rate", color=INK)
                axes.legend(
                    frameon=False,
                    fontsize=9,
                    labelcolor=INK,
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.28),
                )
        label = "text: loss" if name == "text" else "digits: error"
        across[0].set_ylabel(label, color=INK)
    return figure


def dress(axes: Axes, name: str) -> None:
    """Scales and lines of a panel."""
    style(axes, "both")
    axes.set_xscale("log")
    axes.minorticks_off()
    if name == "text":
        axes.set_ylim(1.4, 2.8)
    else:
        axes.set_yscale("log")
        axes.set_ylim(0.012, 0.25)
        axes.set_yticks([0.02, 0.05, 0.1, 0.2], ["2 %", "5 %", "10 %", "20 %"])
        axes.minorticks_off()


def report(rows: dict[Cell, Row]) -> None:
    """Print the tables of the page and draw the picture."""
    for table in (rates_to_try, best_rates, carried_rates):
        print(*table(rows), sep="\n", end="\n\n")
    write_svg_pair(picture(rows), RESULTS / "learning_rates")


def main() -> None:
    """Train what is not there, print the tables and draw the picture."""
    torch.set_num_threads(1)
    study = Study()
    for name in SEEDS:
        for method in METHODS:
            if (name, method) not in OMITTED:
                study.sweep(name, method)
        for method, _, rate in list(carried(study.rows, name)):
            study.run(name, method, rate)
    for method in METHODS:  # the best rate of each problem on the other one, for `first_three`
        found = measured(study.rows, method)
        for name, other in itertools.permutations(found, 2):
            study.run(name, method, found[other].best)
    report(study.rows)


if __name__ == "__main__":
    main()
