"""Measures what a step costs, and draws what was measured.

    python docs/benchmarks.py --shapes mlp resnet50 growth --threads 2

measures the cells (shapes × manifold × optimizer × threads) that docs/results/benchmarks.csv does
not have yet, and writes the table and the pictures of all of them. Without shapes it only writes.

Within a cell the implementations take turns (`timing.interleaved`); what counts is the ratio of the
medians to torch's fused step. All of them step the same weights, whose memory they share, along the
same gradients; only buffers are their own. An iteration of a parametrization is its forward pass,
the gradient through it and torch's fused step; the others are given their gradients. The first
step, which makes buffers and compiles, is timed by itself.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import geoopt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from timing import interleaved, timed
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.benchmark import set_torch_threads

import manifoldnet as mn
from manifoldnet.experiments.plotting import (
    BLUE,
    GREY,
    INK,
    MUTED,
    RED,
    new_figure,
    style,
    svg,
    svg_pair,
)

Shape = tuple[int, ...]
Step = Callable[[], Any]
NAME = "benchmarks.csv"
BASE, OURS = "torch fused", "manifoldnet fused"
CONSTRAINED = "torch fused, constrained"
IMPLEMENTATIONS = (
    *(OURS, "manifoldnet", "manifoldnet reference", CONSTRAINED),
    *("geoopt", "weight_norm", "geotorch"),
)
MANIFOLD_LABELS = {
    "oblique rows": "unit-norm rows",
    "oblique columns": "unit-norm columns",
    "sphere": "unit-norm tensor",
    "scaled, geodesic": "scaled metric, geodesic",
    "scaled, additive": "scaled metric, additive",
}
OPTIMIZER_LABELS = {"sgd": "SGD", "momentum": "SGD, momentum", "adam": "Adam"}
# Of those that the pictures compare, in words: colour, filling of the points.
DRAWN = {
    OURS: ("manifoldnet, fused=True", RED, RED),
    "manifoldnet": ("manifoldnet, without it", RED, "none"),
    "geoopt": ("geoopt", BLUE, BLUE),
}
GROWING = {
    BASE: (GREY, "o-"),
    "torch foreach": (GREY, "o:"),
    OURS: (RED, "o-"),
    "manifoldnet": (RED, "o:"),
}
NETWORKS = {
    "mlp": "the small network",
    "resnet50": "ResNet-50",
    "gpt2": "GPT-2",
    "matrix": "8192×4096",
}
MANIFOLDS: dict[str, mn.Manifold] = {
    "oblique rows": mn.Oblique(0),
    "oblique columns": mn.Oblique(1),
    "sphere": mn.Sphere(),
    "scaled, geodesic": mn.ScaledEuclidean(0),
    "scaled, additive": mn.ScaledEuclidean(0, "additive"),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {}, "momentum": {"momentum": 0.9}, "adam": {}}
LR = 1e-7  # torch's steps leave the manifolds; ours begin on them


# --- the work -------------------------------------------------------------------------------------


def resnet50() -> Iterator[Shape]:
    """Convolutions, and the two vectors of a batch normalization after each."""
    convolutions: list[Shape] = [(64, 3, 7, 7)]
    inside = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolutions += [(width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, inside, 1, 1)] if block == 0 else []
            inside = 4 * width
    for shape in convolutions:
        yield from (shape, shape[:1], shape[:1])
    yield from ((1000, 2048), (1000,))


def gpt2() -> list[Shape]:
    """Embeddings, twelve layers, the last layer normalization."""
    layer: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
    layer += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *(12 * layer), (768,), (768,)]


SHAPES: dict[str, Sequence[Shape]] = {
    "mlp": [(64, 784), (64, 32), (64, 32), (64, 32), (10, 32)],
    "resnet50": list(resnet50()),
    "gpt2": gpt2(),
    "matrix": [(8192, 4096)],
}
GROWTH: dict[str, Sequence[Shape]] = {
    **{f"size-{n**2}": [(n, n)] for n in (100, 320, 1000, 3200, 10_000)},
    **{f"count-{n}": n * [(64, 64)] for n in (10, 100, 1000)},
}


class Cell(NamedTuple):
    """One comparison."""

    shapes: str
    manifold: str
    optimizer: str
    threads: int

    @property
    def weights(self) -> Sequence[Shape]:
        return (SHAPES | GROWTH)[self.shapes]


def cells(names: Sequence[str], threads: Sequence[int]) -> list[Cell]:
    """Every comparison on some shapes; "growth" stands for all of `GROWTH`, in rows."""
    named = [n for name in names for n in (GROWTH if name == "growth" else (name,))]
    each = itertools.starmap(Cell, itertools.product(named, MANIFOLDS, OPTIMIZERS, threads))
    return [c for c in each if c.shapes not in GROWTH or c.manifold == "oblique rows"]


def least_bytes(cell: Cell, implementation: str) -> int:
    """Bytes that a step must read and write, in float32: weights, gradients, buffers both ways.

    A declared weight has one second moment for each slice; torch has one for each number.
    """
    total = 0
    for shape in cell.weights:
        buffers = {"sgd": 0, "momentum": 1, "adam": 2}[cell.optimizer]
        if implementation.startswith("manifoldnet") and len(shape) > 1:
            buffers = min(buffers, 1)
        total += 4 * math.prod(shape) * (3 + 2 * buffers)
    return total


# --- the implementations --------------------------------------------------------------------------


def steps(cell: Cell) -> dict[str, Callable[[], Step]]:
    """The implementations of a cell: each prepares itself, and returns the call to time."""
    manifold, options = MANIFOLDS[cell.manifold], OPTIMIZERS[cell.optimizer]
    adam, dim = cell.optimizer == "adam", cast("Any", manifold).slices.dim
    source = torch.Generator().manual_seed(0)
    weights, gradients = [], []
    for shape in cell.weights:
        w = torch.randn(shape, generator=source)
        weights.append(manifold.projx(w) if len(shape) > 1 else w)
        gradients.append(torch.randn(shape, generator=source).mul_(1e-3))

    def plain(parameters: Any, **how: Any) -> Any:
        make = torch.optim.Adam if adam else torch.optim.SGD
        return make(parameters, lr=LR, **options, **how)

    def by_torch(**how: Any) -> Step:
        return plain(with_gradients(map(nn.Parameter, weights), gradients), **how).step

    def declared() -> nn.Module:
        model = nn.ParameterList(with_gradients(map(nn.Parameter, weights), gradients))
        for name, p in model.named_parameters():
            if p.ndim > 1:
                mn.declare(model, name, manifold)
        return model

    def by_us(**how: Any) -> Step:
        model = declared()  # alive until the optimizer has seen its declarations
        make = mn.RiemannianAdam if adam else mn.RiemannianSGD
        return make(mn.param_groups(model, **how), lr=LR, **options).step

    def constrained() -> Step:
        model = declared()
        step: Step = mn.constrain(plain(model.parameters(), fused=True)).step
        return step

    def by_geoopt() -> Step:
        """On spheres its own manifold, whose slices are the last axis; elsewhere ours."""

        def flattened(w: Tensor) -> Tensor:
            if w.ndim == 1 or isinstance(manifold, mn.ScaledEuclidean):
                return w
            return w.flatten() if dim is None else rows(w, dim)

        def parameter(w: Tensor) -> nn.Parameter:
            if w.ndim == 1:
                return nn.Parameter(w)
            if isinstance(manifold, mn.ScaledEuclidean):
                return mn.ManifoldParameter(w, manifold)
            return geoopt.ManifoldParameter(flattened(w), manifold=geoopt.Sphere())

        parameters = with_gradients(map(parameter, weights), map(flattened, gradients))
        make = geoopt.optim.RiemannianAdam if adam else geoopt.optim.RiemannianSGD
        return make(parameters, lr=LR, **options).step

    def by_parametrization(register: Callable[[nn.Module], Any], rows: bool = False) -> Step:
        def flattened(w: Tensor) -> Tensor:
            return w.flatten(1) if rows and w.ndim > 1 else w

        modules: list[Any] = []
        for w in weights:
            modules.append(nn.Module())
            modules[-1].weight = nn.Parameter(flattened(w).clone())
            if w.ndim > 1:
                register(modules[-1])
        slopes = list(map(flattened, gradients))
        optimizer = plain([p for module in modules for p in module.parameters()], fused=True)

        def step() -> None:
            optimizer.zero_grad()
            torch.autograd.backward([m.weight for m in modules], slopes)
            optimizer.step()

        return step

    def by_weight_norm() -> Step:
        return by_parametrization(lambda m: parametrizations.weight_norm(m, dim=dim))

    def by_geotorch() -> Step:
        """Its spheres are the last axis, so that filters are flattened."""
        import geotorch

        return by_parametrization(lambda m: geotorch.sphere(m, "weight"), rows=True)

    found: dict[str, Callable[[], Step]] = {
        BASE: lambda: by_torch(fused=True),
        "torch foreach": lambda: by_torch(foreach=True),
        "torch loop": lambda: by_torch(foreach=False),
        OURS: lambda: by_us(fused=True),
        "manifoldnet": by_us,
        "manifoldnet reference": lambda: by_us(foreach=False),
        CONSTRAINED: constrained,
        "geoopt": by_geoopt,
    }
    if cell.manifold.startswith("oblique"):
        found["weight_norm"] = by_weight_norm
    if cell.manifold == "oblique rows":
        found["geotorch"] = by_geotorch
    return {name: found[name] for name in GROWING} if cell.shapes in GROWTH else found


def with_gradients(parameters: Any, gradients: Any) -> list[nn.Parameter]:
    """The parameters, each with its gradient."""
    result = []
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
        result.append(p)
    return result


def rows(w: Tensor, dim: int) -> Tensor:
    """The slices of a weight as the rows of a matrix."""
    return w.movedim(dim, 0).flatten(1).contiguous()


# --- measuring ------------------------------------------------------------------------------------


def measure(cell: Cell, seconds: float) -> list[dict[str, str]]:
    """The rows of benchmarks.csv for a cell, after steps of about so many seconds."""
    first, peaks, ready = {}, {}, {}
    with set_torch_threads(cell.threads):
        for name, make in steps(cell).items():
            with suppress(ImportError):  # not installed: left out
                ready[name] = make()  # all of them before the first step: weights are shared
        for name, step in ready.items():
            first[name] = timed(step)
            step()
            peaks[name] = peak(step)
        medians = {n: median(t) for n, t in interleaved(ready, seconds=seconds).items()}
    ready.clear()
    gc.collect()
    return [
        {
            **{key: str(value) for key, value in cell._asdict().items() if key != "threads"},
            "implementation": name,
            "threads": str(cell.threads),
            "median_ms": f"{1000 * taken:.4f}",
            "ratio_to_fused_sgd_or_adam": f"{taken / medians[BASE]:.3f}",
            "peak_extra_bytes": str(peaks[name]),
            "compile_s": f"{max(first[name] - taken, 0.0):.2f}",
        }
        for name, taken in medians.items()
    ]


def peak(step: Step) -> int:
    """Bytes that the process held more at once during a step, by Linux's account; −1 elsewhere."""

    def held(name: str) -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return 1024 * int(line.split()[1])
        raise ValueError(name)

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        step()
        return max(held("VmHWM") - before, 0)
    except (OSError, ValueError):
        return -1


# --- tables and pictures --------------------------------------------------------------------------


INTRODUCTION = f"""With the compiled kernel (`{OURS}`) a step on rows of large networks costs
about as much as torch's fused one. [The summary](../benchmarks.md) has the ranges and the method.

Each table of multiples divides the median time of a step by that of torch's fused step of the same
optimizer; the milliseconds of the latter stand before the multiples. `manifoldnet` is the step
without the kernel, `manifoldnet reference` the plain formulas, `{CONSTRAINED}` torch's optimizer in
`mn.constrain`. On `oblique`, rows or columns have unit norm; on `sphere`, the whole tensor has.
`scaled` is the scaled metric with its geodesic or additive step. `mlp` is a small network, `matrix`
one matrix of 8192×4096."""


def write_report(path: Path) -> None:
    """benchmarks.md and its pictures, from the file and beside it."""

    def picture(name: str, figure: Figure, text: str) -> str:
        files = svg_pair(name, svg(figure))
        for file, content in files.items():
            (path.parent / file).write_bytes(content)
        pages = zip(files, ("#only-light", "#only-dark"), strict=True)
        return "\n".join(f"![{text}]({file}{page})" for file, page in pages)

    every, parts = pd.read_csv(path), ["# What a step costs: all numbers", INTRODUCTION]
    for count in sorted(every.threads.unique(), reverse=True):
        threads = f"{count} thread" + ("s" if count > 1 else "")
        here = every[every.threads == count]
        networks, growing = here[~here.shapes.isin(GROWTH)], here[here.shapes.isin(GROWTH)]
        if len(networks):
            text = f"Time of a step as a multiple of torch's fused one, {threads}"
            parts += [f"## Multiples of torch's fused step, {threads}", ratios(networks)]
            parts += [picture(f"benchmarks_{count}", draw_ratios(networks), text)]
            parts += [f"## Bytes, {threads}", traffic(networks)]
        if len(growing):
            text = f"Time of a step against size and number of weights, {threads}"
            parts += [f"## Growth, {threads}", growth(growing)]
            parts += [picture(f"benchmarks_growth_{count}", draw_growth(growing), text)]
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first columns are words, set to the left; the others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    ruler = (
        "-" * (width + 2) if column < words else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([line(header), f"|{'|'.join(ruler)}|", *map(line, lines)])


def by_cell(rows: pd.DataFrame, value: str) -> Iterator[tuple[Cell, Mapping[str, float]]]:
    """Each cell, in the order of the file, with a number for each implementation."""
    for cell, part in rows.groupby(list(Cell._fields), sort=False):
        yield Cell(*cell), dict(zip(part.implementation, part[value], strict=True))


def ratios(rows: pd.DataFrame) -> str:
    """Ratios to torch's fused step: a line for each cell, a column for each implementation."""
    base = dict(by_cell(rows[rows.implementation == BASE], "median_ms"))
    lines = []
    for cell, of in by_cell(rows, "ratio_to_fused_sgd_or_adam"):
        cells = (f"{of[name]:.2f}" if name in of else "–" for name in IMPLEMENTATIONS)
        lines.append((*cell[:3], f"{base[cell][BASE]:.3f}", *cells))
    return markdown(("shapes", "manifold", "optimizer", f"{BASE} (ms)", *IMPLEMENTATIONS), lines, 3)


def traffic(rows: pd.DataFrame) -> str:
    """Bytes that a step must move, and its speed: that of memory, at best."""
    lines = []
    for cell, ms in by_cell(rows, "median_ms"):
        for name in (BASE, OURS):
            must = least_bytes(cell, name)
            speed = must / (1e-3 * ms[name])
            lines.append((name, *cell[:3], f"{must / 1e6:.1f}", f"{speed / 1e9:.1f}"))
    header = ("step of", "shapes", "manifold", "optimizer", "must move (MB)", "GB/s")
    return markdown(header, lines, 4)


def growth(rows: pd.DataFrame) -> str:
    """By how much the time grows from 10 to 1000 small weights."""
    ms = rows.set_index(["implementation", "optimizer", "shapes"]).median_ms

    def factor(*key: str) -> str:
        few, many = (ms.get((*key, f"count-{n}")) for n in (10, 1000))
        return "–" if few is None or many is None else f"{many / few:.0f}"

    optimizers = rows.optimizer.unique()
    lines = [(name, *(factor(name, optimizer) for optimizer in optimizers)) for name in GROWING]
    return markdown(("1000 matrices of 64×64 in times of 10", *optimizers), lines, 1)


def draw_ratios(rows: pd.DataFrame) -> Figure:
    """Ratios on a logarithmic axis: a panel per optimizer, a line per shapes and manifold."""
    heights: dict[tuple[str, str], float] = {}
    figure = new_figure(7.6, 0.25 * len(rows.groupby(["shapes", "manifold"])) + 2.4)
    optimizers = rows.optimizer.unique()
    panels = figure.subplots(1, len(optimizers), sharey=True, squeeze=False)[0]
    for shapes, part in rows.groupby("shapes", sort=False):
        top = max(heights.values(), default=-1.5) + 2.2
        panels[0].text(
            *(-0.04, top - 0.95, NETWORKS.get(str(shapes), shapes)),
            ha="right",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            transform=panels[0].get_yaxis_transform(),
        )
        for line, manifold in enumerate(part.manifold.unique()):
            heights[str(shapes), manifold] = top + line
    ticks = [t for t in (1, 2, 5, 10, 20, 50) if t <= rows.ratio_to_fused_sgd_or_adam.max()]
    for axes, optimizer in zip(panels, optimizers, strict=True):
        style(axes, grid="x")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick}×" for tick in ticks])
        axes.axvline(1, color=MUTED, linewidth=1)
        for name, (label, colour, face) in DRAWN.items():
            part = rows[(rows.implementation == name) & (rows.optimizer == optimizer)]
            where = [heights[key] for key in zip(part.shapes, part.manifold, strict=True)]
            how = {"color": colour, "markerfacecolor": face, "markersize": 5.5, "label": label}
            axes.plot(part.ratio_to_fused_sgd_or_adam, where, "o", **how)
        axes.set_title(OPTIMIZER_LABELS[optimizer], loc="left", fontsize=10.5, color=INK)
    panels[0].set_yticks([*heights.values()], [MANIFOLD_LABELS[m] for _, m in heights])
    panels[0].set_ylim(max(heights.values()) + 0.7, -0.9)
    figure.supxlabel("time of a step, as a multiple of torch's fused step", fontsize=10, color=INK)
    return with_legend(figure, panels[0])


def draw_growth(rows: pd.DataFrame) -> Figure:
    """Time against the numbers of one weight, and against the number of small ones."""
    figure = new_figure(7.6, 5.6)
    optimizers = rows.optimizer.unique()
    panels = figure.subplots(2, len(optimizers), sharey="row", squeeze=False)
    titles = {"size-": "numbers of one matrix", "count-": "matrices of 64×64"}
    for line, (family, title) in zip(panels, titles.items(), strict=True):
        for axes, optimizer in zip(line, optimizers, strict=True):
            style(axes)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for name, (colour, dashes) in GROWING.items():
                part = rows[(rows.implementation == name) & (rows.optimizer == optimizer)]
                part = part[part.shapes.str.startswith(family)]
                if len(part):
                    sizes = part.shapes.str.removeprefix(family).astype(int)
                    points = sorted(zip(sizes, part.median_ms, strict=True))
                    how = {"color": colour, "markersize": 4, "label": name}
                    axes.plot(*zip(*points, strict=True), dashes, **how)
            axes.set_title(OPTIMIZER_LABELS[optimizer], loc="left", fontsize=10.5, color=INK)
            axes.set_xlabel(title, fontsize=9.5, color=INK)
        line[0].set_ylabel("ms a step", fontsize=9.5, color=INK)
        line[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return with_legend(figure, panels[0][0])


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """The figure, with the legend of one panel above."""
    handles, names = axes.get_legend_handles_labels()
    how: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "labelcolor": INK}
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), **how)
    return figure


# --- the command ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is asked for and not in the file, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/results"), metavar="DIR", help="(%(default)s)")
    add("--shapes", nargs="+", choices=(*SHAPES, "growth"), default=[])
    add("--threads", nargs="+", type=int, default=[2], metavar="N", help="of torch (2)")
    add("--seconds", type=float, default=5.0, metavar="S", help="of each cell (%(default)s)")
    arguments = parser.parse_args(argv)
    if min(arguments.threads) < 1 or not 0 <= arguments.seconds < math.inf:
        parser.error("--threads must be 1 or more, and --seconds a number of seconds")
    path = arguments.out / NAME
    arguments.out.mkdir(parents=True, exist_ok=True)
    # As text, so that what was measured before is written back as it is.
    done = pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame()
    known = {(*row, int(n)) for *row, n in done.filter(Cell._fields).itertuples(index=False)}
    for cell in cells(arguments.shapes, arguments.threads):
        if cell not in known:  # a run that was stopped goes on
            print(*cell, "threads", flush=True)
            done = pd.concat([done, pd.DataFrame(measure(cell, arguments.seconds))])
            done.to_csv(path.with_suffix(".part"), index=False)
            os.replace(path.with_suffix(".part"), path)
    write_report(path)


if __name__ == "__main__":
    main()
