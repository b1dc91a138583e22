"""Conservation laws of gradient flow: the quantities that the symmetries of a loss conserve.

    θ̇ = −∇L(θ)     gradient flow, the limit of gradient descent for small rates
    θ ↦ Mθ + T      a generator: ⟨∇L(θ), Mθ + T⟩ = 0 at every θ
    Q = ½⟨θ, Mθ⟩ + ⟨T, θ⟩,  Q̇ = −⟨∇L(θ), Mθ + T⟩ = 0, where M is symmetric

A scaling that multiplies number e of the weights by e^(aₑ s) gives Q = ½ Σₑ aₑ wₑ²: with ReLU in
between, ‖row‖² − ‖column‖² of each unit. A linear map W ↦ A W + W B gives ½⟨W, A W + W B⟩: between
linear layers, the entries of WᵀW − W'W'ᵀ. A translation T gives ⟨T, W⟩. Rotations give none: M is
skew. These are all the laws that come from the symmetries, and for linear and ReLU networks all
there are [marcotte2023abide]; [marcotte2025transformative] gives those of attention layers.

Steps of a finite rate break the laws, those of gradient descent in proportion to the rate. Weight
decay, momentum and the optimizers that scale gradients follow other flows, which have other laws or
none [marcotte2024keep].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manifoldnet.symmetry.group import ScalingGroup
from manifoldnet.symmetry.linear import LinearGenerator, LinearGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Conserved", "DriftLog", "conserved", "watch"]

# Relative size below which entries of generators are rounding.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class _Squares:
    """Laws as ½ Σ exponent · ‖slice‖², of the slices of one parameter along one dimension."""

    parameter: str
    dim: int | None
    laws: Tensor  # number of the law, for each term
    indices: Tensor  # index of the slice
    exponents: Tensor

    def values(self, w: Tensor) -> Tensor:
        """Contribution of each term."""
        squares = w.square()
        if self.dim is None:
            return self.exponents * squares.sum() / 2
        others = [d for d in range(w.ndim) if d != self.dim]
        return self.exponents * (squares.sum(others) if others else squares)[self.indices] / 2


@dataclass(frozen=True)
class _Products:
    """Laws as ½⟨A, X Xᵀ⟩, X the parameter as a matrix whose rows are its slices along `dim`."""

    parameter: str
    dim: int
    laws: Tensor
    matrices: Tensor  # A, one for each law

    def values(self, w: Tensor) -> Tensor:
        """Contribution to each law."""
        x = (w.reshape(1) if w.ndim == 0 else w).movedim(self.dim, 0).flatten(1)
        x = x.reshape(len(x), -1)
        return torch.einsum("kij,ij->k", self.matrices, x @ x.mT) / 2


@dataclass(frozen=True)
class _Translations:
    """Laws as ⟨T, W⟩."""

    parameter: str
    laws: Tensor
    directions: Tensor  # T, one for each law, flattened

    def values(self, w: Tensor) -> Tensor:
        """Contribution to each law."""
        return self.directions @ w.flatten()


_Terms = _Squares | _Products | _Translations


@final
class Conserved:
    """Conserved quantities of gradient flow, as functions of the weights.

    Made by `conserved`.

    Attributes:
        names: names of the laws, those of their generators.
        parameters: names of the parameters that they depend on.
    """

    def __init__(
        self, names: Sequence[str], terms: Sequence[_Terms], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.names = tuple(names)
        self.parameters = tuple(dict.fromkeys(each.parameter for each in terms))
        self._terms = tuple(terms)
        self._shapes = {name: tuple(shapes[name]) for name in self.parameters}

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Conserved: {len(self)} laws of {', '.join(self.parameters) or 'nothing'}>"

    @torch.no_grad()
    def values(self, model: nn.Module) -> Tensor:
        """Values at the weights of a model, float64, one for each law.

        Raises:
            ValueError: if the model lacks a parameter of the laws, has it in another shape, frozen,
                or without values.
        """
        return self._evaluate(self._weights(model))

    def rank(self, model: nn.Module) -> int:
        """Number of laws that are independent at the weights of a model.

        This is the rank of their gradients, an array of laws × numbers.

        Raises:
            ValueError: as `values`.
        """
        if not self.names:
            return 0
        weights = self._weights(model)
        with torch.enable_grad():
            rows = torch.autograd.functional.jacobian(
                lambda *given: self._evaluate(dict(zip(weights, given, strict=True))),
                tuple(weights.values()),
            )
        gradients = torch.cat([row.reshape(len(self), -1) for row in rows], dim=1)
        gradients = gradients / gradients.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return int(torch.linalg.matrix_rank(gradients, rtol=_NEGLIGIBLE))

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name: p.detach().to("cpu", torch.float64)
            for name, p in _parameters(model, self._shapes).items()
        }

    def _evaluate(self, weights: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(len(self.names), dtype=torch.float64)
        for each in self._terms:
            total = total.index_add(0, each.laws, each.values(weights[each.parameter]))
        return total


def conserved(model: nn.Module, group: ScalingGroup | LinearGroup) -> Conserved:
    """Conserved quantities of the gradient flow of a loss with a symmetry group.

    Trivial generators, which move no weight, give no law, and buffers do not enter: gradients do
    not move them. Of a linear group, the laws are those of all symmetric maps that its generators
    span, with or without a translation, and of its translations.

    Symmetries that hold up to the ε of normalization layers give laws that hold as far.

    Args:
        model: the model of the group, in any state of its training.
        group: of `discover`.

    Raises:
        TypeError: for something else than a group.
        ValueError: if the group is of another model: it lacks a parameter, has it in another shape,
            or it is frozen, so that its flow does not move what the law needs moved.
    """
    if isinstance(group, ScalingGroup):
        found = _scaling_laws(group)
    elif not isinstance(group, LinearGroup):
        raise TypeError(
            f"laws come from a ScalingGroup or a LinearGroup, not a {type(group).__name__}: use "
            "discover"
        )
    else:
        found = _linear_laws(group.generators, group.shapes)
    _parameters(model, found._shapes)
    return found


def _scaling_laws(group: ScalingGroup) -> Conserved:
    """Laws of the non-trivial generators, without buffers."""
    names: list[str] = []
    found: dict[tuple[str, int | None], list[tuple[int, int, float]]] = {}
    for generator in group.nontrivial.generators:
        own = {w: a for w, a in generator.exponents.items() if w.parameter not in group.buffers}
        if own:
            for where, exponent in own.items():
                term = (len(names), where.index, exponent)
                found.setdefault((where.parameter, where.dim), []).append(term)
            names.append(generator.name)
    terms = []
    for (parameter, dim), triples in found.items():
        laws, indices, exponents = zip(*triples, strict=True)
        terms.append(
            _Squares(
                parameter,
                dim,
                torch.tensor(laws),
                torch.tensor(indices),
                torch.tensor(exponents, dtype=torch.float64),
            )
        )
    return Conserved(names, terms, group.shapes)


def _linear_laws(
    generators: Iterable[LinearGenerator], shapes: Mapping[str, tuple[int, ...]]
) -> Conserved:
    """Laws of all symmetric generators in a span."""
    symmetric: list[LinearGenerator] = []
    others: list[LinearGenerator] = []
    for g in generators:
        matrices = [*g.left.values(), *g.right.values()]
        (symmetric if all(map(_is_symmetric, matrices)) else others).append(g)
    fields: list[tuple[str, _Parts]] = [
        (g.name, {0: g.left, 1: g.right, None: g.translation}) for g in symmetric
    ]
    fields += _symmetric_combinations(others)
    fields = [(name, parts) for name, parts in fields if _moves(parts)]
    sums: dict[tuple[str, int | None], tuple[list[int], list[Tensor]]] = {}
    for number, (_, parts) in enumerate(fields):
        for dim, side in parts.items():
            for parameter, m in side.items():
                laws, matrices = sums.setdefault((parameter, dim), ([], []))
                laws.append(number)
                matrices.append(m.detach().to("cpu", torch.float64))
    terms: list[_Terms] = []
    for (parameter, dim), (laws, matrices) in sums.items():
        stack, numbers = torch.stack(matrices), torch.tensor(laws)
        if dim is None:
            terms.append(_Translations(parameter, numbers, stack.flatten(1)))
        else:
            terms.append(_Products(parameter, dim, numbers, stack))
    return Conserved([name for name, _ in fields], terms, shapes)


_Parts = dict[int | None, Mapping[str, Tensor]]


def _is_symmetric(m: Tensor) -> bool:
    return bool(((m - m.mT).abs() <= _NEGLIGIBLE * m.abs().max()).all())


def _symmetric_combinations(generators: Sequence[LinearGenerator]) -> list[tuple[str, _Parts]]:
    """Basis of the symmetric combinations of generators that are not symmetric themselves."""
    if len(generators) < 2:
        return []
    keys = dict.fromkeys((d, n) for g in generators for d in (0, 1) for n in _side(g, d))

    def skew(g: LinearGenerator) -> Tensor:
        parts = []
        for dim, name in keys:
            size = next(len(_side(h, dim)[name]) for h in generators if name in _side(h, dim))
            m = _side(g, dim).get(name, torch.zeros(size, size, dtype=torch.float64))
            parts.append(((m - m.mT) / 2).flatten().to("cpu", torch.float64))
        return torch.cat(parts)

    columns = torch.stack([skew(g) for g in generators], dim=1)
    _, singular, vectors = torch.linalg.svd(columns, full_matrices=True)
    rank = int((singular > _NEGLIGIBLE * singular[0]).sum())
    found: list[tuple[str, _Parts]] = []
    for number, weights in enumerate(vectors[rank:].tolist(), 1):
        total: dict[int | None, dict[str, Tensor]] = {0: {}, 1: {}, None: {}}
        for c, g in zip(weights, generators, strict=True):
            for dim, side in total.items():
                for name, m in _side(g, dim).items():
                    side[name] = side[name] + c * m if name in side else c * m
        names = ", ".join(dict.fromkeys(g.name for g in generators))
        found.append((f"symmetric map {number} of {names}", dict(total.items())))
    return found


def _side(g: LinearGenerator, dim: int | None) -> Mapping[str, Tensor]:
    return g.translation if dim is None else g.right if dim else g.left


def _moves(parts: _Parts) -> bool:
    """True unless a field moves no weight: A = cI with B = −cI on each parameter, and no T."""
    largest = max(
        (float(m.abs().max()) for side in parts.values() for m in side.values()), default=0.0
    )
    bound = _NEGLIGIBLE * largest
    if any(bool((t.abs() > bound).any()) for t in parts[None].values()):
        return True
    factors: dict[str, float] = {}
    for dim in (0, 1):
        for name, m in parts[dim].items():
            c = float(m.diagonal().mean())
            if bool(((m - c * torch.eye(len(m)).to(m)).abs() > bound).any()):
                return True
            factors[name] = factors.get(name, 0.0) + c
    return any(abs(c) > bound for c in factors.values())


def _parameters(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, nn.Parameter]:
    """Parameters of the model with these names, once they were checked."""
    every = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for name, shape in shapes.items():
        p = every.get(name)
        if p is None:
            raise ValueError(
                f"the laws depend on {name!r}, which {type(model).__name__} does not have (it has: "
                f"{', '.join(every)}): use the group of this model"
            )
        if tuple(p.shape) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(p.shape)} in this model and {shape} in the group: "
                "discover the group of this model"
            )
        if not p.requires_grad:
            raise ValueError(
                f"{name} is frozen, and its law holds when it moves with the others: discover the "
                "group of the model as it is now"
            )
        if p.is_meta:
            raise ValueError(f"{name} has no values: it is on the meta device")
        found[name] = p
    return found


@final
class DriftLog:
    """Values of conserved quantities during training. Made by `watch`.

    Attributes:
        laws: the quantities.
        steps: numbers of the steps after which they were taken; 0 is the start.
    """

    def __init__(self, laws: Conserved, model: nn.Module, every: int) -> None:
        self.laws = laws
        self.steps = [0]
        self._model, self._every = model, every
        self._values = [laws.values(model)]
        self._count = 0
        self._remove: Callable[[], None] = lambda: None

    @property
    def values(self) -> Tensor:
        """Values, logged steps × laws."""
        return torch.stack(self._values)

    @property
    def drift(self) -> Tensor:
        """Values less those of the start, logged steps × laws."""
        return self.values - self._values[0]

    def remove(self) -> None:
        """End the logging; what was logged stays."""
        self._remove()

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plot |drift| of each law against steps, on a logarithmic axis, and the largest of them.

        Args:
            axes: where to draw; a new figure of pyplot by default.

        Returns:
            The axes.

        Raises:
            ImportError: without matplotlib.
        """
        if axes is None:
            from matplotlib import pyplot as plt

            axes = plt.subplots()[1]
        drift = self.drift.abs()[1:]
        if drift.numel():
            axes.plot(self.steps[1:], drift.tolist(), color="0.8", linewidth=0.7)
            largest = drift.amax(dim=1).tolist()
            axes.plot(self.steps[1:], largest, linewidth=1.8, label="largest")
            if max(largest) > 0:
                axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("drift of the conserved quantities")
        return axes

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._count += 1
        if self._count % self._every == 0:
            self.steps.append(self._count)
            self._values.append(self.laws.values(self._model))


def watch(optimizer: Optimizer, model: nn.Module, laws: Conserved, *, every: int = 1) -> DriftLog:
    """Log the drift of conserved quantities during training, by a hook after each step.

    Args:
        optimizer: any optimizer of parameters of the laws.
        model: the model that it trains.
        laws: made by `conserved`.
        every: number of steps from one entry to the next. Each reads the weights of the laws once.

    Returns:
        The log, which begins with the weights as they are now; `log.remove()` ends it.

    Raises:
        TypeError: for another object than conserved quantities.
        ValueError: if the laws are of another model, none of their parameters is in the optimizer,
            or `every` is not a whole number ≥ 1.
    """
    if not isinstance(laws, Conserved):
        raise TypeError(
            f"laws is a {type(laws).__name__}: give conserved(model, group), not the group"
        )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is {every!r}; it must be a whole number of steps, 1 or more")
    log = DriftLog(laws, model, every)
    mine = {id(p) for p in _parameters(model, laws._shapes).values()}
    if mine and not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"the optimizer has none of {', '.join(laws.parameters)}: watch the one that trains "
            "this model"
        )
    log._remove = optimizer.register_step_post_hook(log._after).remove
    return log
