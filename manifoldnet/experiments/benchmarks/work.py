"""The work that is timed: shapes of real networks, and who steps them.

Every implementation steps the same weights (they share their memory; only buffers are its own),
along the same gradients. A parametrization's iteration is its forward pass, the gradient through
it, and torch's fused step; all others are given their gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import geoopt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet.experiments.benchmarks.rows import Cell
from manifoldnet.geometry import Manifold

Shape = tuple[int, ...]
Step = Callable[[], Any]


def _resnet50() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in (
                (width, inside, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
                *([(4 * width, inside, 1, 1)] if block == 0 else []),
            ):
                shapes += [shape, (shape[0],), (shape[0],)]
            inside = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _gpt2() -> list[Shape]:
    layer: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
    layer += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *(12 * layer), (768,), (768,)]


SHAPES: Mapping[str, tuple[Shape, ...]] = MappingProxyType(
    {
        "mlp": ((64, 784), (64, 32), (64, 32), (64, 32), (10, 32)),
        "resnet50": tuple(_resnet50()),
        "gpt2": tuple(_gpt2()),
        "matrix": ((8192, 4096),),
    }
)
"""The symmetry paper's four-layer network, ResNet-50, GPT-2 (124M), and one large matrix."""

GROWTH: Mapping[str, tuple[Shape, ...]] = MappingProxyType(
    {
        **{f"size-{n**2}": ((n, n),) for n in (100, 320, 1000, 3200, 10_000)},
        **{f"count-{n}": n * ((64, 64),) for n in (10, 100, 1000)},
    }
)
"""One square matrix of ever more numbers, and ever more small ones: how a step's time grows."""


def _shapes(cell: Cell) -> tuple[Shape, ...]:
    return GROWTH[cell.shapes] if cell.shapes in GROWTH else SHAPES[cell.shapes]


_GROWING = "oblique rows"
_WHO_GROWS = ("torch fused", "torch foreach", "manifoldnet fused", "manifoldnet")

MANIFOLDS: Mapping[str, Manifold] = MappingProxyType(
    {
        "oblique rows": mn.Oblique(0),
        "oblique columns": mn.Oblique(1),
        "sphere": mn.Sphere(),
        "scaled, geodesic": mn.ScaledEuclidean(0),
        "scaled, additive": mn.ScaledEuclidean(0, "additive"),
    }
)

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"sgd": {}, "momentum": {"momentum": 0.9}, "adam": {}}
)


def cells(shapes: Sequence[str], threads: Sequence[int]) -> list[Cell]:
    """Every comparison on some shapes; ``"growth"`` stands for all of `GROWTH`."""
    named = [n for name in shapes for n in (GROWTH if name == "growth" else (name,))]
    return [
        Cell(*each)
        for each in itertools.product(named, MANIFOLDS, OPTIMIZERS, threads)
        if each[0] not in GROWTH or each[1] == _GROWING
    ]


def least_bytes(cell: Cell, implementation: str) -> int:
    """What a step must read and write, in float32: weights, gradients, and buffers both ways.

    A declared weight has one second moment for each slice, and torch's one for each number.
    """
    total = 0
    for shape in _shapes(cell):
        numbers = math.prod(shape)
        buffers = {"sgd": 0, "momentum": 1, "adam": 2}[cell.optimizer]
        if implementation.startswith("manifoldnet") and len(shape) > 1:
            buffers = min(buffers, 1)
        total += 4 * numbers * (3 + 2 * buffers)
    return total


_LR = 1e-7  # torch's steps leave the manifolds; ours begin on them


def steps(cell: Cell) -> dict[str, Callable[[], Step]]:
    """Who can do the work of a cell: calls that get ready for it, and give the call to time."""
    manifold = MANIFOLDS[cell.manifold]
    source = torch.Generator().manual_seed(0)
    weights, gradients = [], []
    for shape in _shapes(cell):
        w = torch.randn(shape, generator=source)
        weights.append(manifold.projx(w) if len(shape) > 1 else w)
        gradients.append(torch.randn(shape, generator=source).mul_(1e-3))
    makers: dict[str, Callable[[], Step]] = {
        "torch fused": lambda: _torch(cell, weights, gradients, fused=True),
        "torch foreach": lambda: _torch(cell, weights, gradients, foreach=True),
        "torch loop": lambda: _torch(cell, weights, gradients, foreach=False),
        "manifoldnet fused": lambda: _ours(cell, weights, gradients, fused=True),
        "manifoldnet": lambda: _ours(cell, weights, gradients),
        "manifoldnet reference": lambda: _ours(cell, weights, gradients, foreach=False),
        "geoopt": lambda: _geoopt(cell, weights, gradients),
    }
    if isinstance(manifold, mn.Oblique):
        makers["weight_norm"] = lambda: _parametrized(cell, weights, gradients, _weight_norm)
        if manifold.dim == 0:
            makers["geotorch"] = lambda: _geotorch(cell, weights, gradients)
    if cell.shapes in GROWTH:
        return {name: makers[name] for name in _WHO_GROWS}
    return makers


def _parameters(weights: list[Tensor], gradients: list[Tensor]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(w) for w in weights]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
    return parameters


def _torch(cell: Cell, weights: list[Tensor], gradients: list[Tensor], **how: Any) -> Step:
    make = torch.optim.Adam if cell.optimizer == "adam" else torch.optim.SGD
    parameters = _parameters(weights, gradients)
    return make(parameters, lr=_LR, **OPTIMIZERS[cell.optimizer], **how).step


def _ours(cell: Cell, weights: list[Tensor], gradients: list[Tensor], **how: Any) -> Step:
    model = nn.ParameterList(_parameters(weights, gradients))
    for name, p in model.named_parameters():
        if p.ndim > 1:
            mn.declare(model, name, MANIFOLDS[cell.manifold])
    make = mn.RiemannianAdam if cell.optimizer == "adam" else mn.RiemannianSGD
    return make(mn.param_groups(model, **how), lr=_LR, **OPTIMIZERS[cell.optimizer]).step


def _geoopt(cell: Cell, weights: list[Tensor], gradients: list[Tensor]) -> Step:
    """On spheres its own manifold, whose slices are the last axis; elsewhere ours."""
    manifold = MANIFOLDS[cell.manifold]
    parameters: list[nn.Parameter] = []
    for w, g in zip(weights, gradients, strict=True):
        if w.ndim == 1:
            p = nn.Parameter(w)
        elif isinstance(manifold, mn.ScaledEuclidean):
            p = mn.ManifoldParameter(w, manifold)
        else:
            w, g = _rows(w, manifold.dim), _rows(g, manifold.dim)
            p = geoopt.ManifoldParameter(w, manifold=geoopt.Sphere())
        p.grad = g
        parameters.append(p)
    optim = geoopt.optim
    make = optim.RiemannianAdam if cell.optimizer == "adam" else optim.RiemannianSGD
    step: Step = make(parameters, lr=_LR, **OPTIMIZERS[cell.optimizer]).step
    return step


def _rows(w: Tensor, dim: Any) -> Tensor:
    return w.flatten() if dim is None else w.movedim(dim, 0).flatten(1).contiguous()


def _parametrized(
    cell: Cell,
    weights: list[Tensor],
    gradients: list[Tensor],
    register: Callable[[nn.Module, Manifold], Any],
    flat: bool = False,
) -> Step:
    modules: list[Any] = []
    for w in weights:
        module = nn.Module()
        module.weight = nn.Parameter(w.flatten(1).clone() if flat and w.ndim > 1 else w.clone())
        if w.ndim > 1:
            register(module, MANIFOLDS[cell.manifold])
        modules.append(module)
    gradients = [g.flatten(1) if flat and g.ndim > 1 else g for g in gradients]
    parameters = [p for module in modules for p in module.parameters()]
    make = torch.optim.Adam if cell.optimizer == "adam" else torch.optim.SGD
    optimizer = make(parameters, lr=_LR, fused=True, **OPTIMIZERS[cell.optimizer])

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward([m.weight for m in modules], gradients)
        optimizer.step()

    return step


def _geotorch(cell: Cell, weights: list[Tensor], gradients: list[Tensor]) -> Step:
    """Its spheres are the last axis, so that filters are flattened."""
    import geotorch

    def register(module: nn.Module, manifold: Manifold) -> None:
        geotorch.sphere(module, "weight")

    return _parametrized(cell, weights, gradients, register, flat=True)


def _weight_norm(module: nn.Module, manifold: Manifold) -> None:
    assert isinstance(manifold.dim, int)
    parametrizations.weight_norm(module, dim=manifold.dim)
