"""Distributed training by geoopt's optimizers beside ours: what is the training of one process?

    python tests/distributed/survival.py

runs each way of training with each optimizer, on two processes of a gloo group and on one, and
writes docs/results/survival.csv; the table that it prints stands in `docs/distributed.md`. Each
process has half of a batch, except under tensor parallelism.

A run has one weight on spheres: the rows of a matrix, its columns, or a whole tensor of one
dimension, which both libraries know. geoopt's spheres lie along the last dimension, so columns are
ours alone. Events of training are run with rows.
"""

from __future__ import annotations

import contextlib
import csv
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geoopt
import torch
from ranks import RankError, Ranks, mesh, rank
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import manifoldnet as mn

RECORD = Path(__file__).parents[2] / "docs" / "results" / "survival.csv"
FIELDS = ("training", "weight", "wrapper", "library", "optimizer", "outcome", "apart", "off")
STEPS = 4
LR = 0.05

LIBRARIES = GEOOPT, OURS = "geoopt", "manifoldnet"


class Flat(nn.Module):
    """A linear layer whose weight is one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.view(6, 8)


class Net(nn.Module):
    """A declared layer and a free one."""

    def __init__(self, weight: str, library: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        flat = weight == "whole"
        self.first = Flat() if flat else nn.Linear(6, 8, bias=False, dtype=torch.float64)
        self.last = nn.Linear(8, 1, dtype=torch.float64)
        ours: Any = {"rows": mn.Oblique(), "columns": mn.Oblique(1), "whole": mn.Sphere()}[weight]
        self.manifold = ours
        if library == OURS:
            mn.declare(self, "first.weight", ours, project=True)
        else:
            point = ours.projx(self.first.weight.detach())
            self.first.weight = geoopt.ManifoldParameter(point, manifold=geoopt.Sphere())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


class Run:
    """A network in training, alone or wrapped.

    Args:
        case: the way of training.
        alone: whether one process does it.
    """

    def __init__(self, case: Case, alone: bool) -> None:
        self.case, self.alone = case, alone
        self.net = Net(case.weight, case.library)
        self.model: Any = self.net
        self.part = None if alone or case.wrapper == "TP" else rank()

    def wrap(self, **options: Any) -> None:
        """Wrap the network."""
        if self.alone:
            return
        if self.case.wrapper in ("DDP", "ZeRO-1"):
            self.model = DistributedDataParallel(self.net)
        elif self.case.wrapper == "TP":
            parallelize_module(
                self.net, mesh(), {"first": ColwiseParallel(output_layouts=Replicate())}
            )
        else:
            for module in (*self.net.children(), self.net):
                fully_shard(module, mesh=mesh(), **options)

    def optimizer(self, params: Any = None) -> Any:
        """An optimizer of the network."""
        make: Any = getattr(geoopt.optim if self.case.library == GEOOPT else mn, self.name)
        options: dict[str, Any] = {"lr": LR}
        if self.case.optimizer == "SGD":
            options["momentum"] = 0.9
        if params is not None:
            return make(params, **options)
        if self.case.wrapper == "ZeRO-1" and not self.alone:
            params = list(self.net.parameters())
            return ZeroRedundancyOptimizer(params, make, **options)
        params = self.net.parameters() if self.case.library == GEOOPT else mn.param_groups(self.net)
        return make(params, **options)

    @property
    def name(self) -> str:
        return f"Riemannian{self.case.optimizer}"

    def loss(self, number: int) -> Tensor:
        """The loss of a batch, or of the half of it that this process has."""
        source = torch.Generator().manual_seed(number)
        x, y = (torch.randn(16, n, generator=source, dtype=torch.float64) for n in (6, 1))
        if self.part is not None:
            x, y = (t[8 * self.part : 8 * self.part + 8] for t in (x, y))
        dtype = next(self.net.parameters()).dtype
        loss: Tensor = (self.model(x.to(dtype)) - y).square().mean()
        return loss

    @contextlib.contextmanager
    def unsynchronized(self) -> Iterator[None]:
        """Gradients that stay in each process."""
        if self.alone:
            yield
        elif self.case.wrapper == "DDP":
            with self.model.no_sync():
                yield
        else:
            self.model.set_requires_gradient_sync(False)
            yield
            self.model.set_requires_gradient_sync(True)

    def weights(self) -> dict[str, Tensor]:
        """All weights, whole."""
        return {
            name.replace("_checkpoint_wrapped_module.", ""): (
                p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone()
            )
            for name, p in self.net.named_parameters()
        }


# --- ways of training -----------------------------------------------------------------------------


def plain(run: Run) -> None:
    run.wrap()
    _train(run, run.optimizer())


def _train(run: Run, optimizer: Any, steps: int = STEPS, first: int = 0) -> None:
    for number in range(first, first + steps):
        optimizer.zero_grad()
        run.loss(number).backward()
        optimizer.step()


def clipped(run: Run) -> None:
    run.wrap()
    optimizer = run.optimizer()
    for number in range(STEPS):
        optimizer.zero_grad()
        run.loss(number).backward()
        torch.nn.utils.clip_grad_norm_(run.net.parameters(), 0.05)
        optimizer.step()


def accumulated(run: Run) -> None:
    run.wrap()
    optimizer = run.optimizer()
    for number in range(STEPS):
        optimizer.zero_grad()
        with run.unsynchronized():
            run.loss(2 * number).backward()
        run.loss(2 * number + 1).backward()
        optimizer.step()


def in_backward(run: Run) -> None:
    run.wrap()
    own = {p: run.optimizer([p]) for p in run.net.parameters()}

    def step(p: Tensor) -> None:
        own[p].step()
        own[p].zero_grad()

    for p in run.net.parameters():
        p.register_post_accumulate_grad_hook(step)
    for number in range(STEPS):
        run.loss(number).backward()


def recomputed(run: Run) -> None:
    run.net.first = checkpoint_wrapper(run.net.first)
    plain(run)


def overflowed(run: Run) -> None:
    """The second step is skipped: one half of its batch has an infinite loss."""
    run.wrap()
    optimizer = run.optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(STEPS):
        optimizer.zero_grad()
        overflows = number == 1 and not run.part
        scaler.scale(run.loss(number) * (torch.inf if overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()


def half(run: Run) -> None:
    """Products in bfloat16, weights in float32."""
    run.net.float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sharded = run.case.wrapper == "FSDP2" and not run.alone
    run.wrap(**({"mp_policy": policy} if sharded else {}))
    optimizer = run.optimizer()
    with torch.autocast("cpu", torch.bfloat16, enabled=not sharded):
        _train(run, optimizer)


def replaced(run: Run) -> None:
    """An optimizer made before wrapping is given the parameters after it, as accelerate does."""
    optimizer = run.optimizer()
    names = {p: name for name, p in run.net.named_parameters()}
    run.wrap()
    now = dict(run.net.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[p]] for p in group["params"]]
    _train(run, optimizer)


def resumed(run: Run) -> None:
    """Through the state of torch's distributed checkpoints, into a new network."""
    run.wrap()
    optimizer = run.optimizer()
    _train(run, optimizer, 2)
    model_state, state = get_state_dict(run.model, optimizer)
    model_state = {name: t.detach().clone() for name, t in model_state.items()}
    again = Run(run.case, run.alone)
    again.wrap()
    optimizer = again.optimizer()
    set_state_dict(again.model, optimizer, model_state_dict=model_state, optim_state_dict=state)
    _train(again, optimizer, STEPS - 2, 2)
    run.net, run.model = again.net, again.model


WAYS: dict[str, Callable[[Run], None]] = {
    "steps": plain,
    "clip_grad_norm_": clipped,
    "accumulation without sync": accumulated,
    "optimizer in backward": in_backward,
    "activation checkpointing": recomputed,
    "GradScaler with an overflow": overflowed,
    "mixed precision": half,
    "replaced parameters": replaced,
    "distributed checkpoint": resumed,
}


class Case(NamedTuple):
    """One cell of the table."""

    training: str
    weight: str
    wrapper: str
    library: str
    optimizer: str


def cases() -> Iterator[Case]:
    """All of them."""
    kinds = [("steps", w, p) for w in ("rows", "columns", "whole") for p in ("DDP", "FSDP2")]
    kinds += [("steps", "rows", "ZeRO-1"), ("steps", "rows", "TP")]
    kinds += [(way, "rows", p) for way in list(WAYS)[1:] for p in ("DDP", "FSDP2")]
    # Under DistributedDataParallel a parameter's hook sees the gradient of one process.
    kinds.remove(("optimizer in backward", "rows", "DDP"))
    for way, weight, wrapper in kinds:
        for library in (GEOOPT, OURS):
            if library == OURS or weight != "columns":
                for optimizer in ("SGD", "Adam"):
                    yield Case(way, weight, wrapper, library, optimizer)


# --- outcomes -------------------------------------------------------------------------------------


def trained(case: Case, alone: bool) -> tuple[dict[str, Tensor], float]:
    """The weights at the end, and how far the declared one is off its manifold."""
    warnings.simplefilter("ignore")
    run = Run(case, alone)
    WAYS[case.training](run)
    weights = run.weights()
    return weights, float(run.net.manifold.violation(weights["first.weight"]).max())


def outcome(ranks: Ranks, case: Case) -> dict[str, Any]:
    """The row of a case in the record."""
    expected, off_alone = trained(case, alone=True)
    row: dict[str, Any] = {**case._asdict(), "apart": "", "off": ""}
    try:
        found = ranks.outcomes(trained, case, alone=False)
    except RankError as error:
        return {**row, "outcome": f"hangs or dies: {str(error).splitlines()[0]}"}
    errors = [one for one in found if isinstance(one, BaseException)]
    if errors:
        text = str(errors[0]).splitlines()
        reason = f"{type(errors[0]).__name__}: {text[0] if text else ''}"
        return {**row, "outcome": f"raises {reason[:100]}"}
    off = max(off for _, off in found)
    apart = max(
        float((weights[name] - x).abs().max() / x.abs().max())
        for weights, _ in found
        for name, x in expected.items()
    )
    row |= {"apart": f"{apart:.0e}", "off": f"{off:.0e}"}
    rounding = case.training == "mixed precision"  # in other places, with half of a batch
    if off > max(1e-6 if rounding else 1e-12, 2 * off_alone):
        return {**row, "outcome": "leaves the manifold"}
    if rounding:
        return {**row, "outcome": "on the manifold"}
    return {**row, "outcome": "as one process" if apart <= 1e-12 else "another training"}


def table(rows: Iterable[dict[str, str]]) -> list[str]:
    """The lines of the page's table: outcomes of SGD, and of Adam where it has another one."""
    cells: dict[str, dict[tuple[str, str], list[str]]] = {}
    for row in rows:
        wrapper, label = row["wrapper"], row["training"]
        if label == "steps":
            label = row["weight"]
            if wrapper in ("ZeRO-1", "TP"):
                label = f"{label}, {wrapper}"
        place = "sharded" if wrapper in ("FSDP2", "TP") else "replicated"
        found = cells.setdefault(label, {}).setdefault((place, row["library"]), [])
        if row["outcome"] not in found:
            found.append(row["outcome"])
    columns = [(place, library) for place in ("replicated", "sharded") for library in LIBRARIES]
    head = ["training", *(f"{place}: {library}" for place, library in columns)]
    lines = [head, ["---"] * len(head)]
    for label, of_label in cells.items():
        lines.append([label, *("; ".join(of_label.get(c, ["–"])) for c in columns)])
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Run all cases, write the record, and print the table."""
    with Ranks(2, limit=30.0) as ranks, RECORD.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for case in cases():
            row = outcome(ranks, case)
            print(*row.values(), sep=" | ", file=sys.stderr)
            writer.writerow(row)
    with RECORD.open(newline="") as file:
        print(*table(csv.DictReader(file)), sep="\n")


if __name__ == "__main__":
    main()
