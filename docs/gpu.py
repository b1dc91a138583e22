"""Measures what a step costs on a GPU, against torch's fused and compiled steps.

    python docs/gpu.py              measures on the first GPU, writes docs/results/gpu.csv
    python docs/gpu.py --why-not    says why nothing can be measured here; nothing where it can

A cell is a list of shapes and an optimizer. In it the implementations take turns
(`timing.interleaved`), and what counts is the ratio of the medians to torch's fused step. All of
them step the same weights along the same gradients; only buffers are their own.

    torch fused, torch compiled       all weights free
    triton rows, triton columns       matrices and filters on spheres by the Triton kernels, vectors
                                      by torch's fused step
    manifoldnet rows, …               the same through the optimizer with fused=True, checks and all
    … in a graph                      replays of a CUDA graph: without Python's time

What fails (for want of memory, say) is left out of the record and said.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

NAME = "gpu.csv"
BASE = "torch fused"
OPTIMIZERS = ("momentum", "adam")
SHAPES = ("resnet50", "gpt2", "billion")
BETAS, EPS, MOMENTUM = (0.9, 0.999), 1e-8, 0.9
LR = 1e-7  # torch's steps leave the spheres; ours begin on them
Step = Callable[[], Any]


def why_not(device: torch.device) -> str | None:
    """The reason why nothing can be measured on a device; None if it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU here"
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11"
    if find_spec("triton") is None:
        return "Triton is not installed (torch's builds for CUDA and ROCm bring it)"
    return None


class Row(NamedTuple):
    """A line of gpu.csv."""

    device: str
    torch: str
    triton: str
    shapes: str
    optimizer: str
    implementation: str
    median_ms: str
    ratio_to_torch_fused: str
    numbers: str


# --- the implementations --------------------------------------------------------------------------


class Weights:
    """The weights and gradients of a cell, shared by the implementations."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        source = torch.Generator(device).manual_seed(0)
        self.weights = [torch.randn(s, generator=source, device=device) for s in shapes]
        self.gradients = [1e-3 * torch.randn(s, generator=source, device=device) for s in shapes]
        self.device = device

    def parameters(self) -> list[nn.Parameter]:
        """New parameters on the same memory, with the gradients."""
        found = [nn.Parameter(w) for w in self.weights]
        for p, g in zip(found, self.gradients, strict=True):
            p.grad = g
        return found


def torch_optimizer(parameters: Any, optimizer: str, **how: Any) -> Any:
    """The optimizer of torch, with the numbers of all implementations."""
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=LR, betas=BETAS, eps=EPS, **how)
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, **how)


def steps(cell: Weights, optimizer: str) -> dict[str, Callable[[], Step]]:
    """The implementations of a cell: each prepares itself, and returns the call to time."""
    import manifoldnet as mn
    from manifoldnet.optim.backends import triton
    from manifoldnet.optim.step import HyperParameters, StepInput, slice_geometry

    adam = optimizer == "adam"

    def compiled() -> Step:
        how = {"capturable": True} if adam else {}
        plain = torch_optimizer(cell.parameters(), optimizer, foreach=True, **how)
        return torch.compile(plain.step)

    def by_kernels(manifold: mn.Manifold) -> Step:
        geometry = slice_geometry(manifold)
        assert geometry is not None
        works, layouts, counts, others = [], [], [], []
        for p in cell.parameters():
            layout = None if p.ndim < 2 else triton.layout(p, geometry)
            if layout is None:
                others.append(p)
                continue
            x = p.detach()
            x.copy_(manifold.projx(x))
            b = torch.zeros_like(x)
            s = torch.zeros_like(manifold.component_inner(x, b)) if adam else None
            works.append(StepInput(x, p.grad, geometry, b, False, s))  # type: ignore[arg-type]
            layouts.append(layout)
            counts.append(torch.zeros((), device=cell.device))
        hyper = HyperParameters(LR, keep=MOMENTUM)
        if adam:
            beta1, beta2 = BETAS
            hyper = HyperParameters(LR, keep=beta1, fresh=1 - beta1, beta2=beta2, eps=EPS)
        how = {"capturable": True} if adam else {}
        rest = torch_optimizer(others, optimizer, fused=True, **how) if others else None
        plans = triton.Plans()

        def step() -> None:
            if adam:
                torch._foreach_add_(counts, 1)
            triton.step(works, hyper, layouts, plans, counts if adam else None)
            if rest is not None:
                rest.step()

        return step

    def by_optimizer(manifold: mn.Manifold) -> Step:
        model = nn.ParameterList(cell.parameters())
        for name, p in model.named_parameters():
            if p.ndim > 1:
                with torch.no_grad():
                    p.copy_(manifold.projx(p))
                mn.declare(model, name, manifold)
        groups = mn.param_groups(model, fused=True)
        if adam:
            return mn.RiemannianAdam(groups, lr=LR, betas=BETAS, eps=EPS).step
        return mn.RiemannianSGD(groups, lr=LR, momentum=MOMENTUM).step

    def in_graph(make: Callable[[], Step]) -> Callable[[], Step]:
        def prepare() -> Step:
            step = make()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()

            def replay() -> None:
                graph.replay()

            replay.__dict__["step"] = step  # whose memory the graph works on
            return replay

        return prepare

    rows, columns = mn.Oblique(0), mn.Oblique(1)
    capturable = {"capturable": True} if adam else {}
    found: dict[str, Callable[[], Step]] = {
        BASE: lambda: torch_optimizer(cell.parameters(), optimizer, fused=True).step,
        "torch compiled": compiled,
        "triton rows": lambda: by_kernels(rows),
        "triton columns": lambda: by_kernels(columns),
        "manifoldnet rows": lambda: by_optimizer(rows),
        "manifoldnet columns": lambda: by_optimizer(columns),
    }
    if cell.device.type == "cuda":
        found |= {
            "torch fused in a graph": in_graph(
                lambda: torch_optimizer(cell.parameters(), optimizer, fused=True, **capturable).step
            ),
            "triton rows in a graph": in_graph(lambda: by_kernels(rows)),
            "triton columns in a graph": in_graph(lambda: by_kernels(columns)),
        }
    return found


# --- measuring ------------------------------------------------------------------------------------


def measure(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    optimizer: str,
    device: torch.device,
    seconds: float,
) -> list[Row]:
    """The lines of a cell."""
    from timing import interleaved

    cell, ready = Weights(shapes, device), {}
    for implementation, make in steps(cell, optimizer).items():
        try:
            step = make()
            for _ in range(3):
                step()
        except Exception as error:  # one that does not run is no reason to measure none
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            print(f"{name}, {optimizer}, {implementation}: {reason}", file=sys.stderr, flush=True)
        else:
            ready[implementation] = step
        gc.collect()
    medians = {n: median(t) for n, t in interleaved(ready, seconds=seconds).items()}
    about = device_name(device), torch.__version__, triton_version()
    base = medians.get(BASE, math.nan)
    numbers = str(sum(map(math.prod, shapes)))
    return [
        Row(*about, name, optimizer, n, f"{1000 * t:.4f}", f"{t / base:.3f}", numbers)
        for n, t in medians.items()
    ]


def device_name(device: torch.device) -> str:
    """The name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"


def triton_version() -> str:
    """The version of Triton."""
    return version("triton")


def shapes_of(name: str) -> Sequence[tuple[int, ...]]:
    """The weights of a network; "billion" is one matrix of 1e9 numbers, "tiny" for trying out."""
    if name == "billion":
        return [(31_250, 32_000)]
    if name == "tiny":
        return [(4, 3), (3, 2, 2), (4,)]
    from benchmarks import SHAPES as networks

    return networks[name]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The ratios to torch's fused step, a line for each cell."""
    implementations = list(dict.fromkeys(row.implementation for row in rows))
    header = ["shapes", "optimizer", f"{BASE} (ms)", *implementations[1:]]
    yield f"| {' | '.join(header)} |"
    yield f"|---|---|{'---:|' * (len(header) - 2)}"
    for shapes, optimizer in dict.fromkeys((row.shapes, row.optimizer) for row in rows):
        of = {r.implementation: r for r in rows if (r.shapes, r.optimizer) == (shapes, optimizer)}
        cells = [of[BASE].median_ms if BASE in of else "–"]
        cells += [of[n].ratio_to_torch_fused if n in of else "–" for n in implementations[1:]]
        yield f"| {' | '.join([shapes, optimizer, *cells])} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the record, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/results"), metavar="DIR", help="(%(default)s)")
    add("--shapes", nargs="+", choices=(*SHAPES, "tiny"), default=SHAPES)
    add("--seconds", type=float, default=2.0, metavar="S", help="of each cell (%(default)s)")
    add("--device", default="cuda", help="(%(default)s); cpu is for Triton's interpreter")
    add("--why-not", action="store_true", help="only say why nothing can be measured")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    reason = why_not(device)
    if reason is not None:
        print(reason)
        return
    if arguments.why_not:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in arguments.shapes:
        for optimizer in OPTIMIZERS:
            print(f"{name}, {optimizer}", file=sys.stderr, flush=True)
            rows += measure(name, shapes_of(name), optimizer, device, arguments.seconds)
            with (arguments.out / NAME).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(Row._fields)
                writer.writerows(rows)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
