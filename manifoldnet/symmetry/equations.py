"""The linear equations that log-scales of a symmetry satisfy, from gradients alone.

If scaling slice i by e^(sᵢ t) leaves a loss L as it is, then at every weight and for every batch

    d/dt L = Σᵢ sᵢ ⟨wᵢ, ∂L/∂wᵢ⟩ = 0.

One backward pass gives one row ⟨wᵢ, ∂L/∂wᵢ⟩ᵢ of a matrix M, whose null space is the Lie algebra of
all scaling symmetries. A row is had from every single sample, by vectorized gradients, unless
samples are coupled (batch normalization): then from every small minibatch. Each few rows are taken
at other random weights, so that a unit that happens to be dead, or a bias that happens to be zero,
is not taken for a symmetry. Rows from large parts of the batches reach what few samples reach.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from manifoldnet.symmetry.evaluation import (
    Batch,
    LossFunction,
    cast,
    count_samples,
    frozen_randomness,
    scalar_loss,
    take,
)
from manifoldnet.symmetry.scaling import Slice

__all__ = ["Equations", "Layout", "RandomWeights"]

# Samples in a row that is had from a large part of a batch, and how many such rows at a time, if
# there are no slices that fewer rows have reached than this.
_LARGE = 128
_LARGE_ROWS = 16
_SELDOM = 20
# The vectorized gradients of one pass take this many bytes, or those of one row. Few rows are taken
# at the same weights: a unit that is dead there says nothing in any of them.
_BYTES_AT_ONCE = 2**27
_ROWS_AT_ONCE = 12
# A row at weights of its own says as much as so many at the same.
_APART = 4
# Minibatches of coupled samples: two would not do, since batch normalization maps any two numbers
# to ±1, whatever the weights are. Where ε blurs, variances should not be small by chance.
_COUPLED, _COUPLED_WITH_EPS = 4, 32
# Weights, and small changes of each, that tell a gradient from rounding errors.
_SMOOTH_DRAWS, _SMOOTH_TRIES = 6, 6
# A gradient is rounding alone if w ⊙ ∂L/∂w is smaller than this many units in the last place of L.
_NOISE = 100


@dataclass(frozen=True)
class Layout:
    """Which slice is which column of M, for parameters of these shapes.

    Matrices and weights of higher order have rows (dim 0) and columns (dim 1), vectors have
    entries.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def slices(self) -> list[Slice]:
        """All slices, in the order of the columns."""
        return [
            Slice(name, dim, i)
            for name, shape in self.shapes.items()
            for dim in self.dims(shape)
            for i in range(1 if dim is None else shape[dim])
        ]

    @staticmethod
    def dims(shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """The dimensions along which a parameter has slices."""
        return (None,) if not shape else (0,) if len(shape) == 1 else (0, 1)

    def sums(self, products: Mapping[str, Tensor]) -> Tensor:
        """Sums over slices of batched tensors `(rows, *shape)`, as `(rows, columns)`."""
        parts = []
        for name, shape in self.shapes.items():
            e = products[name]
            for dim in self.dims(shape):
                index = 1 if dim is None else dim + 1
                if e.ndim == 1:
                    parts.append(e.unsqueeze(1))
                else:
                    parts.append(e.movedim(index, 1).flatten(2).sum(2) if e.ndim > 2 else e)
        return torch.cat(parts, dim=1)


class RandomWeights:
    """Random weights of about the size of a model's own, and anything from like to unlike them.

        cos θ · w ⊙ e^(0.3 ν) + sin θ · σ ⊙ ν′

    with standard Gaussian ν, ν′, sizes σ and θ uniform in [π/8, π/2]: no number is left at zero,
    and units that are dead at the model's weights come alive. The sizes follow a scaling of w, so
    that badly scaled weights give the same equations.

    Args:
        model: where w is from; it is not changed.
        names: the parameters to draw.
    """

    def __init__(self, model: nn.Module, names: Container[str]) -> None:
        self.own = {n: p.detach() for n, p in model.named_parameters() if n in names}
        self.sizes = [
            {name: _sizes(w, by_entry) for name, w in self.own.items()}
            for by_entry in (False, True)
        ]

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """New weights, by name."""
        sizes = self.sizes[int(torch.randint(2, (), generator=generator))]
        drawn = {}
        for name, w in self.own.items():
            angle = math.pi * (1 + 3 * float(torch.rand((), generator=generator))) / 8
            jitter, fresh = (
                torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
                for _ in range(2)
            )
            near = w * (0.3 * jitter).exp()
            drawn[name] = math.cos(angle) * near + math.sin(angle) * sizes[name] * fresh
        return drawn

    def fresh(self, generator: torch.Generator) -> dict[str, Tensor]:
        """New weights of the size that layers are initialized with, whatever the model's are.

        Where all weights of a unit are small it is all but linear, and where they are large its
        activation is saturated: at such weights both look like symmetries.
        """
        return {
            name: _usual(w) * torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
            for name, w in self.own.items()
        }


def _usual(w: Tensor) -> float:
    """The size of an entry in a freshly initialized layer."""
    return (w.shape[0] / w.numel()) ** 0.5 if w.ndim > 1 and w.numel() else 0.3


@torch.no_grad()
def _sizes(w: Tensor, by_entry: bool) -> Tensor:
    """The size of w: rᵢcⱼ for row i and column j, so that it scales with them; 0.3 if it is zero.

    Those of a vector are one number or, `by_entry`, those of its entries. The first is wrong where
    a scaling has taken the entries far apart, the second where one is small by chance: both are
    tried.
    """
    there = w != 0
    if not there.any():
        return torch.full_like(w, 0.3)
    logs = w.abs().log()
    typical = logs[there].mean()
    off = torch.where(there, logs - typical, 0.0)
    if w.ndim < 2:
        return (typical + off * by_entry).exp().expand(w.shape)
    others = [[d for d in range(w.ndim) if d != dim] for dim in (0, 1)]
    # Geometric means first: a root mean square would be that of the largest columns.
    for dims in others:
        typical = typical + off.sum(dims, keepdim=True) / there.sum(dims, keepdim=True).clamp(min=1)
    size = typical.exp()
    for dims in 2 * others:
        ratio = (w / size).pow(2).mean(dims, keepdim=True).sqrt()
        size = size * torch.where(ratio > 0, ratio, 1.0)
    return size.expand(w.shape)


class Equations:
    """Rows of M for one model, loss and list of batches.

    Args:
        model: a working copy; its type is the type that gradients are computed in.
        loss_fn: `loss_fn(output, target)`.
        batches: at least one.
        layout: the columns.
        generator: the source of randomness.
        minibatch: how many samples share an equation when samples are coupled.
        keep_eps: whether the model's normalization layers have their ε.

    Attributes:
        coupled: whether the loss of a batch is not a sum over its samples.
        reached: by column, in how many rows the gradient in that slice was not zero.
        response: by column, the largest Σ|w ∂L/∂w| / |L| of any row: how far the loss moves,
            relative, when the slice is changed by as much as it is large.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: list[Batch],
        layout: Layout,
        generator: torch.Generator,
        minibatch: int | None = None,
        keep_eps: bool = False,
    ) -> None:
        self.model, self.loss_fn, self.batches = model, loss_fn, batches
        self.layout, self.generator, self.keep_eps = layout, generator, keep_eps
        self.weights = RandomWeights(model, layout.shapes)
        self.vectorized, self.whole, self.draws = True, False, 0
        self.reached = torch.zeros(len(layout.slices), dtype=torch.long)
        self.response = torch.zeros(len(layout.slices), dtype=torch.float64)
        parameters = dict(model.named_parameters())
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self.coupled = minibatch is not None or self._samples_are_coupled()
        self.samples = 1
        if self.coupled:
            self.samples = minibatch or (_COUPLED_WITH_EPS if keep_eps else _COUPLED)
            # What a loader gives last may be too small to normalize.
            sizes = [count_samples(batch) or self.samples for batch in batches]
            least = min(self.samples, max(sizes))
            self.batches = [b for b, size in zip(batches, sizes, strict=True) if size >= least]
        numbers = sum(parameters[name].numel() for name in layout.shapes)
        fitting = _BYTES_AT_ONCE // (first.element_size() * numbers)
        self.at_once = max(1, min(_ROWS_AT_ONCE, fitting))

    def rows(self, count: int) -> Tensor:
        """About `count` new rows from single samples or small minibatches.

        Each has norm one (or is zero, if all of it is rounding), in float64. There are fewer if
        each was taken at other weights, or if gradients were zero or not finite.

        Raises:
            ValueError: if no gradient was finite and not zero.
        """
        parts: list[Tensor] = []
        found = asked = 0
        while found < count and asked < 4 * count + 64:
            batch = self.batches[self._integer(len(self.batches))]
            size = None if self.whole else count_samples(batch)
            if size is None:
                new, more = self._one_by_one([self._take(batch, ...)]), 1
            else:
                each = min(self.samples, size)
                more = self.at_once if size > each and self.vectorized else 1
                orders = [torch.randperm(size, generator=self.generator) for _ in range(more)]
                places = torch.stack([order[:each] for order in orders])
                new = self._at_once(batch, places)
            parts.append(new)
            found, asked = found + len(new) * (_APART if more == 1 else 1), asked + more
        if found == 0:
            raise ValueError(
                "no gradient of the loss was finite and not zero, at any of "
                f"{asked} random weights like the model's own"
            )
        return torch.cat(parts)

    def large_rows(self) -> Tensor:
        """Rows from large parts of the batches, each at other weights.

        Every sample is seen as long as there are slices that few gradients have reached.
        """
        parts: list[tuple[Batch, Any]] = []
        for batch in self.batches:
            size = None if self.whole else count_samples(batch)
            if size is None:
                parts.append((batch, ...))
            else:
                order = torch.randperm(size, generator=self.generator)
                parts += [(batch, places) for places in order.tensor_split(-(-size // _LARGE))]
        rows: list[Tensor] = []
        for i in torch.randperm(len(parts), generator=self.generator).tolist():
            if len(rows) >= _LARGE_ROWS and not self._seldom():
                break
            batch, places = parts[i]
            rows.append(self._one_by_one([self._take(batch, places)]))
        return torch.cat(rows)

    def differentiable(self) -> Tensor:
        """By column, whether the gradient in that slice is more than rounding errors.

        These change altogether when the weights are changed a little (though some may be the same
        few units by chance), a gradient changes a little.
        """
        often = torch.zeros(len(self.layout.slices), dtype=torch.long)
        little = torch.finfo(self.dtype).eps ** 0.5
        for _ in range(_SMOOTH_DRAWS):
            batch = self.batches[self._integer(len(self.batches))]
            size = None if self.whole else count_samples(batch)
            if size is not None:
                batch = self._take(batch, torch.arange(min(size, _LARGE)))
            else:
                batch = self._take(batch, ...)
            weights, seed = self._draw(), self._integer(2**31)
            first, _ = self._products(weights, batch, seed)
            steady = torch.ones_like(often, dtype=torch.bool)
            for _ in range(_SMOOTH_TRIES):
                near = {name: w + little * w * self._normal(w) for name, w in weights.items()}
                second, _ = self._products(near, batch, seed)
                apart = self.layout.sums({n: (first[n] - second[n]).abs() for n in first})
                size_of = self.layout.sums({n: first[n].abs() for n in first})
                steady &= ((apart <= 0.1 * size_of) & (size_of > 0))[0].cpu()
            often += steady
        return often >= _SMOOTH_DRAWS / 2

    def _at_once(self, batch: Batch, places: Tensor) -> Tensor:
        """Rows at the same weights, for the samples in each row of `places`."""
        if self.vectorized and len(places) > 1:
            try:
                return self._vectorized(self._take(batch, places))
            except Exception:  # whatever the model does that cannot be vectorized, a loop can do
                self.vectorized = False
        return self._one_by_one([self._take(batch, row) for row in places])

    def _vectorized(self, groups: Any) -> Tensor:
        weights, buffers = self._draw(), self._buffers()

        def products(group: Any) -> tuple[dict[str, Tensor], Tensor]:
            def loss(leaves: dict[str, Tensor]) -> Tensor:
                return scalar_loss(self.model, self.loss_fn, group, buffers | leaves)

            gradients, value = grad_and_value(loss)(weights)
            return {name: w * gradients[name] for name, w in weights.items()}, value

        with frozen_randomness(self._integer(2**31)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # some loop inside
            return self._rows(*vmap(products, randomness="different")(groups))

    def _one_by_one(self, groups: list[Any]) -> Tensor:
        weights = self._draw()
        rows = []
        for group in groups:
            rows.append(self._rows(*self._products(weights, group, self._integer(2**31))))
        return torch.cat(rows)

    def _products(
        self, weights: dict[str, Tensor], group: Batch, seed: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """w ⊙ ∂L/∂w by name, and L, each with a first dimension of one."""
        # Plain autograd: models that cannot be vectorized may know no functional one.
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        with frozen_randomness(seed):
            value = scalar_loss(self.model, self.loss_fn, group, self._buffers() | leaves)
            found: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if value.requires_grad:
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        products = {
            name: torch.zeros_like(w)[None] if g is None else (w.detach() * g)[None]
            for (name, w), g in zip(leaves.items(), found, strict=True)
        }
        return products, value.detach()[None]

    def _rows(self, products: dict[str, Tensor], values: Tensor) -> Tensor:
        """Rows of norm one, from w ⊙ ∂L/∂w and L."""
        # The loss may have parameters of its own, which make graphs.
        products = {name: e.detach() for name, e in products.items()}
        values = values.detach()
        rows = self.layout.sums(products).double().cpu()
        losses = values.abs().double().cpu()
        norms = rows.norm(dim=1)
        noise = norms <= _NOISE * torch.finfo(self.dtype).eps * losses
        good = norms.isfinite() & (norms > 0) & values.isfinite().cpu()
        sizes = self.layout.sums({name: e.abs() for name, e in products.items()}).double().cpu()
        self.reached += (sizes > 0).sum(dim=0)
        if good.any():
            relative = (sizes / losses[:, None])[good].nan_to_num(math.inf)
            self.response = self.response.maximum(relative.amax(dim=0))
        return torch.where(noise[:, None], 0.0, rows / norms[:, None])[good]

    def _draw(self) -> dict[str, Tensor]:
        """Weights of about the model's size and, every third time, of the usual size.

        Not with ε, which is small or large beside the model's own.
        """
        self.draws += 1
        fresh = self.draws % 3 == 0 and not self.keep_eps
        return (self.weights.fresh if fresh else self.weights.draw)(self.generator)

    def _seldom(self) -> bool:
        """Whether some slices have been reached in few rows, or none."""
        return bool((self.reached < _SELDOM).any())

    def _take(self, batch: Batch, places: Any) -> Batch:
        """Some samples, in the model's type."""
        taken: Batch = cast(take(batch, places), self.dtype, self.device)
        return taken

    def _normal(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
        return drawn.to(like.device)

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def _integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def _samples_are_coupled(self) -> bool:
        """Whether the loss is not additive over samples.

        With sets A, B, C, D of samples of equal size, a sum or mean over samples has
        L(A, B) − L(A, C) − L(D, B) + L(D, C) = 0. A model that takes no such subsets is taken to
        couple all samples of a batch; one whose loss is nowhere finite, to couple some.
        """
        batch = max(self.batches, key=lambda b: count_samples(b) or 0)
        count = count_samples(batch)
        if count is None:
            return True
        if count == 1:
            return False
        each = min(max(count // 4, 1), 2)
        # A may be B, and C may be D, where there are too few samples for more.
        sets = range(4) if count >= 4 else (0, 0, 1, 1)
        tried = False
        for _ in range(3):
            order = torch.randperm(count, generator=self.generator)
            a, b, c, d = (order[i * each : (i + 1) * each] for i in sets)
            weights = self.weights.draw(self.generator)
            pairs = [torch.cat(pair) for pair in ((a, b), (a, c), (d, b), (d, c))]
            try:
                values = [self._value(weights, self._take(batch, pair)) for pair in pairs]
            except (RuntimeError, ValueError, IndexError):
                self.whole = True
                return True
            mixed = values[0] - values[1] - values[2] + values[3]
            if abs(mixed) > 1e4 * torch.finfo(self.dtype).eps * max(map(abs, values)):
                return True
            tried = tried or math.isfinite(mixed)
        return not tried

    def _value(self, weights: dict[str, Tensor], batch: Batch) -> float:
        with torch.no_grad(), frozen_randomness():
            return float(scalar_loss(self.model, self.loss_fn, batch, self._buffers() | weights))
