"""The work that is timed: shapes of real networks, and who steps them.

Every implementation steps the same weights (they share their memory; only buffers are its own),
along the same gradients. A parametrization's iteration is its forward pass, the gradient through
it, and torch's fused step; all others are given their gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import geoopt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet.experiments.benchmarks import shapes
from manifoldnet.experiments.benchmarks.rows import Cell
from manifoldnet.geometry import Manifold

Step = Callable[[], Any]


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


def cells(names: Sequence[str], threads: Sequence[int]) -> list[Cell]:
    """Every comparison on some shapes; ``"growth"`` stands for all of `shapes.GROWTH`."""
    named = [n for name in names for n in (shapes.GROWTH if name == "growth" else (name,))]
    return [
        Cell(*each)
        for each in itertools.product(named, MANIFOLDS, OPTIMIZERS, threads)
        if each[0] not in shapes.GROWTH or each[1] == _GROWING
    ]


_GROWING = "oblique rows"
_WHO_GROWS = ("torch fused", "torch foreach", "manifoldnet fused", "manifoldnet")
_LR = 1e-7  # torch's steps leave the manifolds; ours begin on them


def steps(cell: Cell) -> dict[str, Callable[[], Step]]:
    """Who can do the work of a cell: calls that get ready for it, and give the call to time."""
    manifold = MANIFOLDS[cell.manifold]
    source = torch.Generator().manual_seed(0)
    weights, gradients = [], []
    for shape in shapes.of(cell):
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
        if manifold.slices.dim == 0:
            makers["geotorch"] = lambda: _geotorch(cell, weights, gradients)
    if cell.shapes in shapes.GROWTH:
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
            w, g = _rows(w, manifold.slices.dim), _rows(g, manifold.slices.dim)
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
    assert isinstance(manifold.slices.dim, int)
    parametrizations.weight_norm(module, dim=manifold.slices.dim)
