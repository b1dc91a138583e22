"""Random steps of every path against an oracle in extended precision.

    python tests/optim/fuzz.py --count 10000        prints what was found, exits 1 if anything was

Each configuration draws a manifold, a shape, types and orders of memory of weight, gradient and
state, an optimizer with its options, and sizes over many powers of ten; each path takes some steps,
each of which starts for the oracle from the path's own weight and state. An error is measured in
units of rounding × condition: of the changes of the oracle's result when its inputs change by
rounding.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim.backends import compiled

PATHS: dict[str, dict[str, Any]] = {
    "specification": {"foreach": False},
    "few passes": {},
    "kernel": {"fused": True},
    "compiled": {},
}
LIMIT = 64.0
Array = np.ndarray[Any, np.dtype[np.longdouble]]


class Options(NamedTuple):
    """The options of an optimizer, for the oracle."""

    adam: bool
    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    rms: bool = False


class Moments(NamedTuple):
    """The state of some slices: buffer, second moment, its maximum, steps."""

    b: Array | None
    s: Array | None = None
    max_s: Array | None = None
    count: int = 0


# --- the oracle: one row a slice ------------------------------------------------------------------


def _dot(u: Array, v: Array) -> Array:
    return (u * v).sum(1, keepdims=True)


def oracle(
    manifold: mn.Manifold, x: Array, g: Array, state: Moments, o: Options
) -> tuple[Array, Moments]:
    """One step, by the formulas of the documentation."""
    sphere = isinstance(manifold, mn.Oblique | mn.Sphere)
    xx = _dot(x, x)
    g = -g if o.maximize else g
    d = g - _dot(x, g) / xx * x if sphere else xx * g
    b, s, max_s, count = state
    keep = o.momentum
    if sphere and b is not None:
        b = b - _dot(x, b) / xx * x
    if o.adam:
        dd = _dot(d, d) if sphere else _dot(d, d) / xx
        if o.rms:
            dd = dd / x.shape[1]
        s = o.beta2 * (0 if s is None else s) + (1 - o.beta2) * dd
        max_s = np.maximum(0 if max_s is None else max_s, s) if o.amsgrad else None
        b = keep * (0 if b is None else b) + (1 - keep) * d
        count += 1
        # Bias corrections in double precision, as torch has them: they cancel.
        root = np.sqrt((max_s if o.amsgrad else s) / (1 - o.beta2**count)) + o.eps
        u = -o.lr * b / root / (1 - keep**count)
    elif keep:
        b = d if b is None else keep * b + (1 - o.dampening) * d
        u = -o.lr * (d + keep * b if o.nesterov else b)
    else:
        b, u = None, -o.lr * d
    v = u if b is None else b
    y, v = _sphere(manifold, x, u, v) if sphere else _scaled(manifold, x, u, v)
    return y, Moments(None if b is None else v, s, max_s, count)


def _sphere(manifold: Any, x: Array, u: Array, v: Array) -> tuple[Array, Array]:
    radius = np.longdouble(manifold.radius)
    uu = _dot(u, u)
    if manifold.retraction.name == "projective":
        y = x + u
        y = radius * y / np.sqrt(_dot(y, y))
        a, c = x / np.sqrt(_dot(x, x)), y / radius
        return y, v - _dot(c, v) / (1 + _dot(a, c)) * (a + c)
    theta = np.sqrt(uu) / radius
    unit = u / np.where(uu > 0, np.sqrt(uu), 1)
    y = np.cos(theta) * x + radius * np.sin(theta) * unit
    along = _dot(unit, v)
    v = v + along * ((np.cos(theta) - 1) * unit - np.sin(theta) * x / radius)
    y = radius * y / np.sqrt(_dot(y, y))
    return y, v - _dot(y, v) / radius**2 * y


def _scaled(manifold: Any, x: Array, u: Array, v: Array) -> tuple[Array, Array]:
    if manifold.retraction.name == "additive":
        return x + u, v
    xx = _dot(x, x)
    r = np.sqrt(xx)
    a, b = _dot(x, u) / xx, _dot(x, v) / xx
    t, w = u - a * x, v - b * x
    tt = _dot(t, t)
    theta = np.sqrt(tt) / r
    unit = t / np.where(tt > 0, np.sqrt(tt), 1)
    y = np.exp(a) * (np.cos(theta) * x + r * np.sin(theta) * unit)
    along = _dot(unit, w)
    w = w + along * ((np.cos(theta) - 1) * unit - np.sin(theta) * x / r)
    return y, np.exp(a) * w + b * y


# --- configurations -------------------------------------------------------------------------------


def _form(x: Tensor, kind: str) -> Tensor:
    """The same numbers in another order of memory."""
    if kind == "reversed":
        order = tuple(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if kind == "last" and x.ndim == 4:
        return x.to(memory_format=torch.channels_last)
    if kind == "with holes":
        return x.repeat_interleave(2, -1)[..., ::2]
    return x.contiguous()


def _rows(x: Tensor, dim: int | None) -> Array:
    """One row a slice, exactly."""
    wide = x.detach().double().numpy().astype(np.longdouble)
    return (
        wide.reshape(1, -1) if dim is None else np.moveaxis(wide, dim, 0).reshape(x.shape[dim], -1)
    )


def _numbers(x: Tensor) -> Array:
    return x.detach().double().numpy().astype(np.longdouble).reshape(-1, 1)


class Configuration:
    """One draw; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = random.Random(seed)
        self.seed = seed
        self.dtype = draw.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        ndim = draw.choice([1, 2, 2, 2, 3, 4, 4])
        most = {1: 300, 2: 24, 3: 8, 4: 6}[ndim]
        self.shape = tuple(draw.randint(2, most) for _ in range(ndim))
        if ndim == 2 and draw.random() < 0.05:
            self.shape = draw.choice([(3, 9001), (513, 129), (9001, 3), (1, 70_001)])
        dim = draw.choice([None, 0, 1][: 1 if ndim == 1 else 3])
        way = draw.choice(["geodesic", "other"])
        radius = draw.choice([1.0, 1.0, 0.01, 2.5, 300.0])
        if draw.random() < 0.5:
            way = "projective" if way == "other" else way
            self.manifold: mn.Manifold = mn.Oblique(dim, radius, way)
        else:
            way = "additive" if way == "other" else way
            self.manifold = mn.ScaledEuclidean(dim, way)
        self.dim = dim
        self.forms = [draw.choice(["plain", "reversed", "last", "with holes"]) for _ in range(3)]
        self.size = 10 ** draw.uniform(-4, 1)  # of a step
        lr = 10 ** draw.uniform(-5, 1)
        adam = draw.random() < 0.5
        if adam:
            self.options = Options(
                True,
                lr=lr * (0.1 if lr > 1 else 1),
                momentum=draw.choice([0.0, 0.9]),
                maximize=draw.random() < 0.2,
                eps=draw.choice([1e-8, 1e-3]),
                amsgrad=draw.random() < 0.3,
                rms=draw.random() < 0.3,
            )
        else:
            momentum = draw.choice([0.0, 0.5, 0.9])
            nesterov = momentum > 0 and draw.random() < 0.3
            dampening = 0.0 if nesterov else draw.choice([0.0, 0.3])
            self.options = Options(False, lr, momentum, dampening, nesterov, draw.random() < 0.2)
        self.steps = draw.randint(1, 3)

    def __repr__(self) -> str:
        return (
            f"seed {self.seed}: {self.manifold} {self.shape} {self.dtype} {self.forms} "
            f"size {self.size:.1e} {self.options}"
        )

    def weight(self) -> Tensor:
        """A point, in float64, and then in its type and order of memory."""
        source = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.shape, generator=source, dtype=torch.float64)
        if isinstance(self.manifold, mn.ScaledEuclidean):
            x = x * 10 ** self.draw.uniform(-3, 3)
        return _form(self.manifold.projx(x).to(self.dtype), self.forms[0])

    def gradient(self, x: Tensor, step: int) -> Tensor:
        """About `size`/λ long in the metric, now and then along the weight."""
        source = torch.Generator().manual_seed(self.seed * 10 + step + 10**6)
        point = x.detach().double()
        g = torch.randn(self.shape, generator=source, dtype=torch.float64)
        length = self.manifold.component_inner(point, self.manifold.egrad2rgrad(point, g)).sqrt()
        g = g / length.clamp(min=1e-300) * self.size / (1 if self.options.adam else self.options.lr)
        if self.seed % 7 == 3:
            g = g + 30 * g.norm() / point.norm() * point
        return _form(g.to(self.dtype), self.forms[1])

    def optimizer(self, module: nn.Module, path: str) -> Any:
        """The optimizer of one path."""
        o, shared = self.options, {"lr": self.options.lr, "maximize": self.options.maximize}
        shared |= PATHS[path]
        if o.adam:
            return mn.RiemannianAdam(
                module.parameters(),
                betas=(o.momentum, o.beta2),
                eps=o.eps,
                amsgrad=o.amsgrad,
                slice_scale="rms" if o.rms else "norm",
                **shared,
            )
        return mn.RiemannianSGD(
            module.parameters(),
            momentum=o.momentum,
            dampening=o.dampening,
            nesterov=o.nesterov,
            **shared,
        )


def _moments(config: Configuration, state: dict[str, Any]) -> Moments:
    buffer = state.get("momentum_buffer", state.get("exp_avg"))
    s, max_s = state.get("exp_avg_sq"), state.get("max_exp_avg_sq")
    return Moments(
        None if buffer is None else _rows(buffer, config.dim),
        None if s is None else _numbers(s),
        None if max_s is None else _numbers(max_s),
        int(state.get("step", 0)),
    )


def _reform(config: Configuration, state: dict[str, Any]) -> None:
    """State in another order of memory or a wider type, as a checkpoint may bring it."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            value = _form(value, config.forms[2])
            state[key] = value.double() if config.seed % 5 == 1 else value


def _take(optimizer: Any, path: str) -> None:
    """One step; that of a graph by the operator that the graph calls."""
    if path != "compiled":
        optimizer.step()
        return
    group = optimizer.param_groups[0]
    with torch.no_grad():
        works = [optimizer._split(0)]
        optimizer._check(works)
        declared = works[0].declared
        made = optimizer._inputs(group, declared)
        compiled.step(made, optimizer._hyper(group), fused=True)
        optimizer._keep_buffers(declared, made)


def run(config: Configuration, path: str) -> list[tuple[float, str]]:
    """The errors of a path's steps, in units of rounding × condition."""
    module = nn.Module()
    module.weight = nn.Parameter(config.weight())
    mn.declare(module, "weight", config.manifold)
    optimizer = config.optimizer(module, path)
    found = []
    computed = torch.promote_types(config.dtype, torch.float32)
    eps, stored = torch.finfo(computed).eps, torch.finfo(config.dtype).eps
    noise = np.random.default_rng(config.seed)
    for step in range(config.steps):
        x = module.weight
        x.grad = config.gradient(x, step)
        _reform(config, optimizer.state[x])
        kept = x.grad.clone()
        before = (
            _rows(x, config.dim),
            _rows(x.grad, config.dim),
            _moments(config, optimizer.state[x]),
        )
        _take(optimizer, path)
        if not torch.equal(x.grad, kept):
            found.append((math.inf, "the gradient was changed"))
        want, moments = oracle(config.manifold, *before, config.options)
        near = [
            oracle(config.manifold, *_shaken(before, config.options, eps, noise)) for _ in range(3)
        ]
        # Paths differ in the norm that they take a weight to have, where that is off its radius.
        slack = np.zeros((1, 1))
        if isinstance(config.manifold, mn.Oblique):
            xx = _dot(before[0], before[0]) / np.longdouble(config.manifold.radius) ** 2
            slack = 4 * np.abs(xx - 1)
        now = _moments(config, optimizer.state[x])
        # Slices that a step did not throw out of the range of numbers that can be squared.
        length = np.abs(want).max(1, keepdims=True)
        reached = (length > 1e-18) & (length < 1e18)
        pairs = [("x", _rows(x, config.dim), want, [n[0] for n in near])]
        for key in ("b", "s", "max_s"):
            value = getattr(now, key)
            if value is not None:
                pairs.append(
                    (key, value, getattr(moments, key), [getattr(n[1], key) for n in near])
                )
        for key, value, exact, others in pairs:
            least = np.abs(exact).max(1, keepdims=True)
            spread = np.max([np.abs(other - exact).max(1, keepdims=True) for other in others], 0)
            unit = spread + eps * least + (stored * least if key == "x" and stored > eps else 0)
            if key == "b" and moments.b is not None and before[2].b is not None:
                unit = unit + eps * np.abs(before[2].b).max(1, keepdims=True)
            off = np.abs(value - exact).max(1, keepdims=True)
            if key == "b":
                off = np.maximum(off - slack * np.abs(exact).max(1, keepdims=True), 0)
            off = off / np.where(unit > 0, unit, 1)
            worst = np.nan_to_num(off, nan=np.inf)[reached]
            found.append((float(worst.max(initial=0)), f"{key} of step {step}"))
        if not reached.all():
            break
    return found


def _shaken(
    before: tuple[Array, Array, Moments], options: Options, eps: float, noise: np.random.Generator
) -> tuple[Array, Array, Moments, Options]:
    """The input of a step changed by rounding; the rate for what is computed on the way."""

    def shake(a: Any) -> Any:
        return None if a is None else a * (1 + eps * noise.uniform(-1, 1, np.shape(a)))

    x, g, (b, s, max_s, count) = before
    return (
        shake(x),
        shake(g),
        Moments(shake(b), shake(s), shake(max_s), count),
        options._replace(lr=shake(np.longdouble(options.lr))),
    )


def search(first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Run configurations; how many comparisons were made, and what was wrong."""
    made: Counter[str] = Counter()
    wrong = []
    for seed in range(first, first + count):
        config = Configuration(seed)
        for path in PATHS:
            if path == "compiled" and config.options.nesterov:
                continue  # takes the specification inside a graph
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                try:
                    errors = run(Configuration(seed), path)
                except ValueError as error:
                    if "cannot be" in str(error):
                        made["refused at the door"] += 1
                        continue
                    raise
            made[path] += len(errors)
            wrong += [
                f"{path}: {error:.1f} units off in {what}, {config}"
                for error, what in errors
                if not error <= LIMIT
            ]
    return made, wrong


@np.errstate(all="ignore")
def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    bad = 0
    for first in range(arguments.first, arguments.first + arguments.count, 500):
        count = min(500, arguments.first + arguments.count - first)
        made, wrong = search(first, count)
        total += made
        bad += len(wrong)
        for line in wrong:
            print(line)
        print(f"{first + count}: {dict(total)}, {bad} wrong", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
