"""Linear system for the log-scales of a symmetry, from gradients alone.

If scaling slice i by e^(sᵢ t), for all i, leaves a loss L invariant, then at every weight and batch

    d/dt L = Σᵢ sᵢ ⟨wᵢ, ∂L/∂wᵢ⟩ = 0.

One backward pass gives one row ⟨wᵢ, ∂L/∂wᵢ⟩ᵢ of a matrix M, whose null space is the Lie algebra of
all scaling symmetries. Each sample gives a row (by vectorized gradients), unless samples are
coupled by batch normalization: then each small minibatch does. New random weights are drawn every
few rows, so that a unit that is dead, or a bias that is zero, by chance is not taken for a
symmetry. Rows from large parts of the batches cover slices that few samples have a gradient in.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from manifoldnet.symmetry.batches import InputTarget, cast, count_samples, take
from manifoldnet.symmetry.losses import LossFunction, frozen_randomness, scalar_loss
from manifoldnet.symmetry.scaling import Slice
from manifoldnet.symmetry.working_copy import RandomWeights

__all__ = ["Columns", "Layout", "LinearSystem"]

# Samples of a row from a large part of a batch, and the number of such rows in one call. Further
# ones follow while some slice had a nonzero gradient in fewer rows than _FEW_ROWS.
_LARGE = 128
_LARGE_ROWS = 16
_FEW_ROWS = 20
# Memory of the vectorized gradients of one pass (of one row at least), and its number of rows. Few
# rows share their weights: a unit that is dead there adds nothing to any of them.
_BYTES_AT_ONCE = 2**27
_ROWS_AT_ONCE = 12
# Rows at common weights that count as much as one row at weights of its own.
_ROWS_PER_DRAW = 4
# Minibatches of coupled samples. Two samples are too few: batch normalization maps any two numbers
# to ±1 at all weights. With ε, variances must not be small by chance.
_COUPLED, _COUPLED_WITH_EPS = 4, 32
# Random weights, and perturbations of each, that distinguish a gradient from rounding errors.
_SMOOTH_DRAWS, _SMOOTH_TRIES = 6, 6
# Size of the matrix whose factorization is timed, and the work of all factorizations: that of so
# many of a square M.
_TIMED, _FACTORIZATIONS = 400, 1.5
# A gradient is rounding alone if w ⊙ ∂L/∂w is below this many units in the last place of L.
_NOISE = 100


class Columns(Protocol):
    """Unknowns of a symmetry, one for each column of M."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the parameters."""

    @property
    def columns(self) -> int:
        """Number of unknowns."""

    @property
    def least(self) -> float:
        """Norm of a row, relative to the median, below which it is not scaled up to one.

        Where softmax is saturated, p − 1 is known to ε, not to a part of itself. Entries that sum
        over logits are rounding there, however small; those of one factor for all are exact.
        """

    def product(self, name: str, w: Tensor, g: Tensor) -> Tensor:
        """Part of a row that a parameter and its gradient give."""

    def sums(self, products: Mapping[str, Tensor]) -> Tensor:
        """Rows from batched products by parameter."""


L = TypeVar("L", bound=Columns)


@dataclass(frozen=True)
class Layout:
    """Columns of M: the slices of parameters of given shapes.

    Matrices and weights of higher order have rows (dim 0) and columns (dim 1), vectors have
    entries.
    """

    shapes: Mapping[str, tuple[int, ...]]
    least = 0.0

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
        """Dimensions that index the slices of a parameter."""
        return (None,) if not shape else (0,) if len(shape) == 1 else (0, 1)

    @property
    def columns(self) -> int:
        """Number of slices."""
        return sum(1 if d is None else s[d] for s in self.shapes.values() for d in self.dims(s))

    @staticmethod
    def product(name: str, w: Tensor, g: Tensor) -> Tensor:
        """w ⊙ g of one parameter and its gradient, which `sums` takes."""
        return w * g

    def sums(self, products: Mapping[str, Tensor]) -> Tensor:
        """Sum batched tensors `(rows, *shape)` over slices, to `(rows, columns)`."""
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


class LinearSystem(Generic[L]):
    """Rows of M for one model, loss and list of batches.

    Args:
        model: a working copy; gradients are computed in its type.
        loss_fn: `loss_fn(output, target)`.
        batches: at least one.
        layout: the columns.
        generator: source of random weights and samples.
        minibatch: samples per row where samples are coupled.
        keep_eps: True if the model's normalization layers have their ε.

    Attributes:
        coupled: True if the loss of a batch is not a sum over its samples.
        reached: by column, the number of rows in which the gradient of that slice was not zero.
        response: by column, the largest Σ|w ∂L/∂w| / |L| of any row: the relative change of the
            loss, to first order, for a change of the slice by its own size.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batches: list[InputTarget],
        layout: L,
        generator: torch.Generator,
        minibatch: int | None = None,
        keep_eps: bool = False,
    ) -> None:
        self.model, self.loss_fn, self.batches = model, loss_fn, batches
        self.layout, self.generator, self.keep_eps = layout, generator, keep_eps
        self.weights = RandomWeights(model, layout.shapes)
        self.vectorized, self.whole, self.draws = True, False, 0
        self.reached = torch.zeros(layout.columns, dtype=torch.long)
        self.response = torch.zeros(layout.columns, dtype=torch.float64)
        self.norms = torch.zeros(0, dtype=torch.float64)
        parameters = dict(model.named_parameters())
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self.coupled = minibatch is not None or self._samples_are_coupled()
        self.samples = 1
        if self.coupled:
            self.samples = minibatch or (_COUPLED_WITH_EPS if keep_eps else _COUPLED)
            # The last batch of a loader may be too small to normalize.
            sizes = [count_samples(batch) or self.samples for batch in batches]
            least = min(self.samples, max(sizes))
            self.batches = [b for b, size in zip(batches, sizes, strict=True) if size >= least]
        numbers = sum(parameters[name].numel() for name in layout.shapes)
        fitting = _BYTES_AT_ONCE // (first.element_size() * numbers)
        self.at_once = max(1, min(_ROWS_AT_ONCE, fitting))

    def cost(self, noun: str, copies: int) -> str:
        """Memory and time of all rows and their factorizations, as text.

        Some rows and a small factorization are timed; the state of the system stays as it is.

        Args:
            noun: name of the columns.
            copies: number of square matrices that are held.

        Raises:
            ValueError: as `rows`.
        """
        state, draws, norms = self.generator.get_state(), self.draws, self.norms
        reached, response = self.reached.clone(), self.response.clone()
        self.rows(1)  # the first pass takes longer
        began = time.perf_counter()
        found = len(self.rows(1))
        each = (time.perf_counter() - began) / (found if found > 1 else _ROWS_PER_DRAW)
        self.generator.set_state(state)
        self.draws, self.norms, self.reached, self.response = draws, norms, reached, response
        columns = self.layout.columns
        size = min(columns, _TIMED)
        matrix = torch.randn(
            size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        began = time.perf_counter()
        torch.linalg.svd(matrix)
        factorization = (time.perf_counter() - began) * (columns / size) ** 3
        seconds = columns * each + _FACTORIZATIONS * factorization
        about = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        memory = max(0.01, 8 * copies * columns**2 / 2**30)
        return f"{columns} {noun}, about {memory:.2g} GiB and {about}"

    def rows(self, count: int) -> Tensor:
        """About `count` new rows from single samples or small minibatches.

        Each has norm one (less if gradients are small: `Columns.least`; zero, if all of it is
        rounding), in float64. There are fewer if
        each has weights of its own, or if gradients are zero or not finite.

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
                new = self._at_once(batch, torch.stack([order[:each] for order in orders]))
            parts.append(new)
            found, asked = found + len(new) * (_ROWS_PER_DRAW if more == 1 else 1), asked + more
        if found == 0:
            raise ValueError(
                "no gradient of the loss was finite and not zero, at any of "
                f"{asked} random weights like the model's own"
            )
        return torch.cat(parts)

    def large_rows(self) -> Tensor:
        """Rows from large parts of the batches, each at new weights.

        All samples are used while some slice had a nonzero gradient in few rows only.
        """
        parts: list[tuple[InputTarget, Any]] = []
        for batch in self.batches:
            size = None if self.whole else count_samples(batch)
            if size is None:
                parts.append((batch, ...))
            else:
                order = torch.randperm(size, generator=self.generator)
                parts += [(batch, part) for part in order.tensor_split(-(-size // _LARGE))]
        rows: list[Tensor] = []
        for i in torch.randperm(len(parts), generator=self.generator).tolist():
            if len(rows) >= _LARGE_ROWS and not bool((self.reached < _FEW_ROWS).any()):
                break
            rows.append(self._one_by_one([self._take(*parts[i])]))
        return torch.cat(rows)

    def differentiable(self) -> Tensor:
        """By column, True if the gradient of that slice is more than rounding errors.

        A small change of the weights changes a gradient little, and rounding errors altogether
        (though some may agree by chance).
        """
        count = torch.zeros(self.layout.columns, dtype=torch.long)
        step = torch.finfo(self.dtype).eps ** 0.5
        for _ in range(_SMOOTH_DRAWS):
            batch = self.batches[self._integer(len(self.batches))]
            size = None if self.whole else count_samples(batch)
            if size is not None:
                batch = self._take(batch, torch.arange(min(size, _LARGE)))
            else:
                batch = self._take(batch, ...)
            weights, seed = self._draw(), self._integer(2**31)
            first, _ = self._products(weights, batch, seed)
            steady = torch.ones_like(count, dtype=torch.bool)
            for _ in range(_SMOOTH_TRIES):
                near = {name: w + step * w * self._normal(w) for name, w in weights.items()}
                second, _ = self._products(near, batch, seed)
                change = self.layout.sums({n: (first[n] - second[n]).abs() for n in first})
                size_of = self.layout.sums({n: first[n].abs() for n in first})
                steady &= ((change <= 0.1 * size_of) & (size_of > 0))[0].cpu()
            count += steady
        return count >= _SMOOTH_DRAWS / 2

    def _at_once(self, batch: InputTarget, indices: Tensor) -> Tensor:
        """Rows of M at common weights, one for each row of sample indices."""
        if self.vectorized and len(indices) > 1:
            try:
                return self._vectorized(self._take(batch, indices))
            except Exception:  # the model cannot be vectorized, for any reason: use a loop
                self.vectorized = False
        return self._one_by_one([self._take(batch, row) for row in indices])

    def _vectorized(self, groups: Any) -> Tensor:
        weights, buffers = self._draw(), self._buffers()

        def products(group: Any) -> tuple[dict[str, Tensor], Tensor]:
            def loss(leaves: dict[str, Tensor]) -> Tensor:
                return scalar_loss(self.model, self.loss_fn, group, buffers | leaves)

            gradients, value = grad_and_value(loss)(weights)
            found = {n: self.layout.product(n, w, gradients[n]) for n, w in weights.items()}
            return found, value

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
        self, weights: dict[str, Tensor], group: InputTarget, seed: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """w ⊙ ∂L/∂w by name, and L, each with a first dimension of one."""
        # Plain autograd: models that cannot be vectorized may not support the functional one.
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        with frozen_randomness(seed):
            value = scalar_loss(self.model, self.loss_fn, group, self._buffers() | leaves)
            found: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if value.requires_grad:
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        products = {
            name: self.layout.product(
                name, w.detach(), torch.zeros_like(w) if g is None else g.detach()
            )[None]
            for (name, w), g in zip(leaves.items(), found, strict=True)
        }
        return products, value.detach()[None]

    def _rows(self, products: dict[str, Tensor], values: Tensor) -> Tensor:
        """Rows of norm one, from w ⊙ ∂L/∂w and L."""
        # If the loss has parameters of its own, its value has a graph.
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
        self.norms = torch.cat([self.norms.to(norms), norms[good]])
        least = self.layout.least * float(self.norms.median()) if good.any() else 0.0
        return torch.where(noise[:, None], 0.0, rows / norms.clamp(min=least)[:, None])[good]

    def _draw(self) -> dict[str, Tensor]:
        """Weights of the model's size and, every third time, of newly initialized layers.

        The latter are left out with ε, which is meant relative to the model's own variances.
        """
        self.draws += 1
        fresh = self.draws % 3 == 0 and not self.keep_eps
        return (self.weights.fresh if fresh else self.weights.draw)(self.generator)

    def _take(self, batch: InputTarget, indices: Any) -> InputTarget:
        """Samples of a batch, in the model's type."""
        taken: InputTarget = cast(take(batch, indices), self.dtype, self.device)
        return taken

    def _normal(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
        return drawn.to(like.device)

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def _integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def _samples_are_coupled(self) -> bool:
        """True if the loss is not additive over samples.

        For sets A, B, C, D of samples of equal size, a sum or mean over samples satisfies
        L(A, B) − L(A, C) − L(D, B) + L(D, C) = 0. If the model does not accept such subsets, whole
        batches are used; if the loss is finite nowhere, samples count as coupled.
        """
        batch = max(self.batches, key=lambda b: count_samples(b) or 0)
        count = count_samples(batch)
        if count is None:
            return True
        if count == 1:
            return False
        each = min(max(count // 4, 1), 2)
        # With fewer than four samples, A = B and C = D.
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

    def _value(self, weights: dict[str, Tensor], batch: InputTarget) -> float:
        with torch.no_grad(), frozen_randomness():
            return float(scalar_loss(self.model, self.loss_fn, batch, self._buffers() | weights))
