"""The moving frame of a scaling group, and weights as they are seen in it.

The balanced representative e^{As} w of the weights (`manifoldnet.symmetry.balance`) is the same for
all parameterizations, and q = e^{−As} is a frame: a positive factor for each number, that a group
element scales as the weights. It is carried along with the weights by steps that decrease f. With
m slices meeting in a number at most,

    Σ_e w_e² e^{2(Ad)_e} ≤ Σ_j S_j e^{2m a_j d} / m + …    S_j = Σ w_e² over slice j

where d = 0 has the same value and gradient on both sides. The right-hand side is a sum over
generators, and its minimum is the equation Σ_j a_j S_j e^{2m a_j d} = c for each of them: a
quadratic one where all |a_j| are equal. The balanced weights alone enter, so that d is the same
for all parameterizations, at the minimum of f or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manifoldnet.geometry.slices import LONG
from manifoldnet.optim.checks import users_level
from manifoldnet.optim.memory import form
from manifoldnet.symmetry.balance import balancing_scales
from manifoldnet.symmetry.orbit import Orbit

__all__ = ["MovingFrame", "Shown", "descent"]

# Numbers of a weight that several operations pass over while they are in a processor's cache.
_BLOCK = 1 << 19


Factors = tuple[Tensor | None, Tensor | None]
"""e^{As} of a parameter: factors of its rows, and those that all rows have in common."""

Sums = dict[int | None, Tensor]
"""For each dimension of a parameter that indexes slices, a number for each slice."""


@dataclass(eq=False)
class Shown:
    """A parameter that shows its balanced weights, and their gradient.

    Attributes:
        p: the parameter.
        grad: its gradient.
        start: its weights.
        factors: e^{As}.
        rows: number of the first rows that were changed.
    """

    p: Tensor
    grad: Tensor
    start: Tensor
    factors: Factors
    rows: int = 0

    def restore(self) -> None:
        """Put back the weights and the gradient."""
        x, start = (y if y.ndim else y.unsqueeze(0) for y in (self.p.detach(), self.start))
        x[: self.rows].copy_(start[: self.rows])
        self.p.grad = self.grad


@dataclass(eq=False)
class MovingFrame:
    """Log-scales s of the generators, carried along with the weights.

    Attributes:
        orbit: of the group.
        parameters: that it scales, by name.
        s: one for each generator.
        c: targets of the sums over slices.
        ahead: the log-scales after the step that is being taken.
        known: place and version of each parameter when the frame was last right; None after a
            checkpoint, whose weights may come before or after it.
        moved: True after the first step.
        memory: of weights and gradients, and for parts of them; on a processor it is kept, as to
            ask for it anew costs more than to use it.
    """

    orbit: Orbit
    parameters: dict[str, nn.Parameter]
    s: Tensor
    c: Tensor
    ahead: Tensor | None = None
    known: dict[str, tuple[int, int]] | None = None
    moved: bool = False
    memory: dict[object, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, orbit: Orbit, parameters: dict[str, nn.Parameter], weights: Mapping[str, Tensor]
    ) -> MovingFrame:
        """The frame that balances weights."""
        made = cls(orbit, parameters, balancing_scales(orbit, weights), orbit.targets(weights))
        made.known = made._versions()
        return made

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"ahead": None, "known": None, "memory": {}}

    def _versions(self) -> dict[str, tuple[int, int]]:
        return {name: (p.data_ptr(), p._version) for name, p in self.parameters.items()}

    def follow(self) -> None:
        """Find the frame anew if anything but the optimizers has written to the weights.

        Among several processes it is then carried along with a warning: one that is found anew on
        some of them only (weights were averaged and put back on the first) would part them. Before
        the first step the frame is a function of the weights alone, which the processes share.
        """
        if self.known is None or self.known == self._versions():
            return
        if self.moved and _several_processes():
            self.known = self._versions()
            warnings.warn(
                "something else than the optimizer has written to the weights between two steps, "
                "and among several processes the moving frame is not found anew. If they are not "
                "the same weights as before, make a new optimizer and its frame on all processes",
                UserWarning,
                stacklevel=users_level(),
            )
            return
        weights = {name: p.detach() for name, p in self.parameters.items()}
        self.s, self.c = balancing_scales(self.orbit, weights), self.orbit.targets(weights)

    def check_shapes(self) -> None:
        """Raise a RuntimeError for a parameter that has another shape than in the group."""
        for name, p in self.parameters.items():
            if tuple(p.shape) != self.orbit.shapes[name]:
                raise RuntimeError(
                    f"{name} has the shape {tuple(p.shape)} now, and {self.orbit.shapes[name]} in "
                    "the group: discover the group of the changed model"
                )

    def enter(self, stepped: Mapping[str, Tensor], shown: list[Shown]) -> None:
        """Put balanced weights and their gradients into the places of some parameters.

        Args:
            stepped: the gradients of these parameters, by name.
            shown: where those that were changed are listed.
        """
        exp = self.orbit.logs(self.s).exp()
        sums = torch.zeros_like(exp)
        factors, places = self.orbit.by_axis(exp), self.orbit.by_axis(sums)
        for name, p in self.parameters.items():
            x, dims = p.detach(), self.orbit.dims[name]
            own = _broadcast({dim: factors[name, dim] for dim in dims}, x)
            into = {dim: places[name, dim] for dim in dims}
            if name not in stepped:
                for rows, factor, part in self._parts(own, x):
                    out = self._space("balanced", part.shape, factor)
                    self._add_squares(torch.mul(part, factor, out=out), into, rows)
                continue
            grad = stepped[name]
            start, seen = self._like((name, "x"), x), self._like((name, "g"), grad)
            shown.append(each := Shown(p, grad, start, own))
            for rows, factor, part, begin, g, out in self._parts(own, x, start, grad, seen):
                begin.copy_(part)
                each.rows = rows.stop
                torch.mul(begin, factor, out=part)
                torch.div(g, factor, out=out)
                self._add_squares(part.to(factor.dtype), into, rows)
            p.grad = seen
        self.ahead = self.s + descent(self.orbit, sums, self.c)

    def restore(self, shown: list[Shown]) -> None:
        """Put weights and gradients back as they were; the frame stays."""
        while shown:
            shown.pop().restore()
        self.ahead, self.known = None, self._versions()

    def leave(self, shown: list[Shown]) -> None:
        """Add displacements to the weights, in their own parameterization."""
        for each in shown:
            for _, factor, x, start in self._parts(each.factors, each.p.detach(), each.start):
                before = torch.mul(start, factor, out=self._space("balanced", x.shape, x))
                if x.dtype == factor.dtype:
                    v = torch.sub(x, before, out=before)
                    torch.addcdiv(start, v, factor, out=x)
                else:  # half types
                    x.copy_(start + (x.to(factor.dtype) - before.to(factor.dtype)) / factor)
            each.p.grad = each.grad
        shown.clear()
        if self.ahead is not None:
            self.s, self.ahead, self.moved = self.ahead, None, True
        self.known = self._versions()

    # --- parts that stay in the cache -------------------------------------------------------------

    def _parts(self, factors: Factors, *tensors: Tensor) -> Iterator[Any]:
        """Rows of tensors of one shape: their numbers, their factor, and the parts."""
        if not tensors[0].ndim:
            tensors = tuple(x.unsqueeze(0) for x in tensors)
        x, (by_row, common) = tensors[0], factors
        rows = len(x)
        if x.device.type == "cpu" and x.numel() > _BLOCK:
            rows = max(1, _BLOCK * rows // x.numel())
        for start in range(0, len(x), max(1, rows)):
            part = slice(start, start + rows)
            factor = common
            if by_row is not None:
                factor = by_row[part]
                if common is not None:
                    shape = torch.broadcast_shapes(factor.shape, common.shape)
                    out = self._space("factor", shape, factor)
                    factor = torch.mul(factor, common, out=out)
            yield (part, factor, *(x[part] for x in tensors))

    def _add_squares(self, x: Tensor, sums: Sums, rows: slice) -> None:
        """Add sums of squares over slices, of some rows of a parameter."""
        across = sums.keys() - {0, None}
        if not across and x.ndim > 1 and prod(x.shape[1:]) <= LONG:
            squares = torch.linalg.vector_norm(x.flatten(1), dim=1).square_()
        else:
            squares = torch.mul(x, x, out=self._space("squares", x.shape, x))
        common = squares.sum(0) if across else squares
        for dim, total in sums.items():
            if dim is None:
                total += squares.sum()
            elif dim == 0:
                total[rows] += squares.reshape(len(x), -1).sum(1)
            else:
                rest = [d for d in range(common.ndim) if d != dim - 1]
                total += common.sum(rest) if rest else common

    def _like(self, key: object, x: Tensor) -> Tensor:
        """Memory in the form of a weight or a gradient."""
        found = self.memory.get(key)
        if found is None or form(found) != form(x.detach()):
            found = torch.empty_like(x.detach())
            if x.device.type == "cpu":
                self.memory[key] = found
        return found

    def _space(self, key: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of a shape, for numbers that are needed at once."""
        size = prod(shape)
        if like.device.type != "cpu":
            return like.new_empty(shape)
        found = self.memory.get((key, like.dtype))
        if found is None or found.numel() < size:
            found = self.memory[key, like.dtype] = like.new_empty(max(size, min(_BLOCK, 4 * size)))
        return found[:size].view(shape)

    # --- checkpoints ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The frame for a checkpoint."""
        names = [generator.name for generator in self.orbit.generators]
        return {"log_scales": self.s.clone(), "targets": self.c.clone(), "generators": names}

    def check(self, state: dict[str, Any]) -> None:
        """Raise a ValueError for the frame of other generators, or a damaged one."""
        names = [generator.name for generator in self.orbit.generators]
        if list(state["generators"]) != names:
            raise ValueError(
                f"the checkpoint has a moving frame of {len(state['generators'])} generators, "
                f"which are not the {len(names)} of this group: it belongs to another model or "
                "group"
            )
        for key in ("log_scales", "targets"):
            if tuple(state[key].shape) != tuple(self.s.shape) or not state[key].isfinite().all():
                raise ValueError(
                    f"{key} of the checkpoint's moving frame must be {len(names)} finite numbers, "
                    f"not {tuple(state[key].shape)}: the checkpoint is damaged"
                )

    def load(self, state: dict[str, Any]) -> None:
        """Take the frame of a checkpoint that `check` has passed."""
        self.s = state["log_scales"].to(self.s, copy=True)
        self.c = state["targets"].to(self.c, copy=True)
        self.known, self.moved = None, True


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _broadcast(factors: Mapping[int | None, Tensor], x: Tensor) -> Factors:
    """Factors of a parameter in the type that it is computed in."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    rows = None
    common = None
    for dim, values in factors.items():
        values = values.to(torch.float32 if half else x.dtype)
        values = values.reshape([-1 if d == dim else 1 for d in range(max(1, x.ndim))])
        if dim == 0:
            rows = values
        else:
            common = values if common is None else common * values
    if common is not None and any(factors.keys() - {0, None}):
        # Without broadcasting in the innermost dimensions, which is slow.
        common = common.expand(1, *x.shape[1:]).contiguous()
    return rows, common


def descent(orbit: Orbit, sums: Tensor, c: Tensor) -> Tensor:
    """Change of the log-scales that minimizes the bound of f; 0 where nothing bounds a generator.

    Args:
        orbit: of the group.
        sums: of the squares of the balanced weights over slices.
        c: targets of the sums, one for each generator.
    """
    a, whose = orbit.exponents, orbit.whose
    terms = a * sums[orbit.which]
    zero = torch.zeros_like(c)
    up = zero.index_add(0, whose, terms.clamp(min=0))
    down = zero.index_add(0, whose, -terms.clamp(max=0))
    rate = 2 * orbit.overlap * orbit.largest
    # With all |a_j| equal, a quadratic equation for e^{rate d}.
    root = (c.square() + 4 * up * down).sqrt()
    d = torch.where(c > 0, (c + root) / (2 * up), 2 * down / (root - c)).log() / rate
    if len(uneven := orbit.uneven):
        terms, whose, steps = terms[uneven], whose[uneven], zero
        rates = 2 * orbit.overlap[whose] * a[uneven]
        for _ in range(8):  # Newton's method; its steps are bounded
            parts = terms * (rates * steps[whose]).exp()
            value = (-c).index_add(0, whose, parts)
            slope = zero.index_add(0, whose, rates * parts)
            change = (value / slope).nan_to_num(0.0)
            steps = steps - torch.minimum(torch.maximum(change, -1 / rate), 1 / rate)
        d = d.index_copy(0, whose, steps[whose])
    bounded = ((up > 0) | (c < 0)) & ((down > 0) | (c > 0))
    return torch.where(bounded, d, 0.0).nan_to_num(0.0, 0.0, 0.0)
