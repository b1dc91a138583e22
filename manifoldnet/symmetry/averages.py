"""Running averages that scale along with the weights, found by measurement.

In training mode batch normalization takes out a scaling of its input; in evaluation mode it uses
running averages, which must scale with the input:

    mean × e^(s a),   variance × e^(2 s a)      in general: each average by an exponent of its own
    mean + Δb                                   for a bias b that the normalization takes out

A buffer is a running average if a forward pass sets it to (1 − m) · old + m · new and the loss does
not depend on it. Its new part is measured at random weights and at the same weights scaled by all
generators of a family, by a different factor each, of which its own factor tells the generator and
the exponent. Nothing is known of layers. What is found is verified on the loss in evaluation mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.batches import InputTarget, cast
from manifoldnet.symmetry.losses import (
    LossFunction,
    evaluate,
    frozen_randomness,
    relative_change,
    scalar_loss,
)
from manifoldnet.symmetry.scaling import ScalingElement, Slice
from manifoldnet.symmetry.working_copy import RandomWeights, remove_eps, working_loss

__all__ = ["Followed", "follow"]

Exponents = Mapping[Slice, float]

# Relative errors of averages and of losses, by type.
_PRECISION = {torch.float64: 1e-9, torch.float32: 1e-4}
_VERIFIED = {torch.float64: 1e-8, torch.float32: 1e-3}
# Entries below this part of the largest one say nothing.
_SMALL = 1e-6
# Largest |ln factor| of one generator in a verification.
_SPREAD = 2.0


@dataclass
class Followed:
    """Running averages under some generators.

    Attributes:
        exponents: by generator, of its parameters and the averages that follow.
        shifts: by generator, pairs (mean, bias): the mean moves by what the bias moves, apart from
            its factor.
        stale: positions of generators that change averages by more than factors and shifts.
        count: number of entries of the running averages.
        verified: largest relative change of the loss in evaluation mode.
    """

    exponents: list[dict[Slice, float]]
    shifts: list[tuple[tuple[Slice, Slice], ...]]
    stale: list[int] = field(default_factory=list)
    count: int = 0
    verified: float = 0.0


def follow(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: InputTarget,
    generators: Sequence[Exponents],
    dtype: torch.dtype,
) -> Followed:
    """Add to generators the factors of the running averages that they scale.

    Args:
        model: in training mode; it is not changed.
        loss_fn: as in `discover`.
        batch: for the model.
        generators: exponents of parameters.
        dtype: type to compute in.
    """
    found = Followed([dict(g) for g in generators], [() for _ in generators])
    probe = _Probe(model, loss_fn, batch, dtype)
    if not probe.averages:
        return found
    source = torch.Generator().manual_seed(0)
    own = {name: w.detach() for name, w in probe.model.named_parameters()}
    random = RandomWeights(probe.model, {w.parameter for g in generators for w in g})
    weights = [own | random.draw(source) for _ in range(2)]
    found.count = sum(probe.buffers[name].numel() for name in probe.averages)
    positions: dict[object, list[int]] = {}
    for i, exponents in enumerate(generators):
        form = frozenset((w.parameter, w.dim, a) for w, a in exponents.items())
        positions.setdefault(form, []).append(i)
    before = [probe.measure(w) for w in weights]
    families = [
        _Family.measured(probe, weights, members, [generators[i] for i in members], source)
        for members in positions.values()
    ]
    shifts: dict[tuple[str, int], list[Slice]] = {}
    others = []
    for family in families:
        found_here = _shifts(family, weights, before, probe.precision)
        for place, bias in found_here or ():
            shifts.setdefault(place, []).append(bias)
        if not found_here:
            others.append(family)
    centered = [_centered(b, w, shifts) for b, w in zip(before, weights, strict=True)]
    stale = set()
    for family in others:
        factors = _factors(family, centered, shifts, probe.precision)
        if factors is None:
            stale |= set(family.positions)
        for name, entry, k, exponent in factors or ():
            found.exponents[family.positions[k]][probe.slice(name, entry)] = exponent
    pairs = [(probe.slice(*place), bias) for place, sources in shifts.items() for bias in sources]
    for i, exponents in enumerate(found.exponents):
        found.shifts[i] = tuple(p for p in pairs if not exponents.keys().isdisjoint(p))
    for family in families:
        if stale.isdisjoint(family.positions):
            change = probe.verify(found, family.positions, weights[0], before[0], source)
            if change <= probe.tolerance:
                found.verified = max(found.verified, change)
                continue
        found.stale += family.positions
        for i in family.positions:
            found.exponents[i], found.shifts[i] = dict(generators[i]), ()
    found.stale.sort()
    return found


@dataclass
class _Family:
    """Generators that differ in their indices only, scaled at once, each by a factor of its own.

    Attributes:
        positions: of the generators.
        members: their exponents.
        scales: log₂ of the factor of the fastest slice of each, draws × generators.
        weights: scaled weights, by draw.
        averages: averages there.
    """

    positions: list[int]
    members: list[Exponents]
    scales: Tensor
    weights: list[dict[str, Tensor]]
    averages: list[dict[str, Tensor]]

    @classmethod
    def measured(
        cls,
        probe: _Probe,
        weights: Sequence[dict[str, Tensor]],
        positions: list[int],
        members: list[Exponents],
        source: torch.Generator,
    ) -> _Family:
        """Family with the averages of a model at weights that it has scaled."""
        shape = len(weights), len(members)
        scales = 0.5 + torch.rand(shape, generator=source, dtype=torch.float64)
        scaled = []
        for w, row in zip(weights, scales.tolist(), strict=True):
            log2: dict[Slice, float] = {}
            for exponents, t in zip(members, row, strict=True):
                for where, a in exponents.items():
                    log2[where] = log2.get(where, 0.0) + a * t / _largest(exponents)
            scaled.append(w | ScalingElement.from_log2(log2).move(w))
        return cls(positions, members, scales, scaled, [probe.measure(w) for w in scaled])


def _largest(exponents: Exponents) -> float:
    return max(map(abs, exponents.values()))


class _Probe:
    """Running averages of a model as functions of its weights.

    Attributes:
        averages: share m of the new part, by name of the buffer.
        buffers: all of floating point, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batch: InputTarget,
        dtype: torch.dtype,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype).requires_grad_(False)
        remove_eps(self.model, dtype)
        device = next(self.model.parameters()).device
        self.loss_fn = working_loss(loss_fn, dtype, device)
        self.batch = cast(batch, dtype, device)
        self.precision, self.tolerance = _PRECISION[dtype], _VERIFIED[dtype]
        self.buffers = {n: b for n, b in self.model.named_buffers() if b.is_floating_point()}
        self.averages: dict[str, float] = {}
        own = dict(self.model.named_parameters())
        loss, after = self._run(own, {})
        changed = [n for n, b in self.buffers.items() if not torch.equal(b, after[n])]
        if changed:
            self.averages = self._shares(own, changed, loss)
        if len(self.averages) < len(changed):  # some enter the loss: one by one
            each = [self._shares(own, [name], loss) for name in changed]
            self.averages = {n: m for one in each for n, m in one.items()}

    def _run(
        self, weights: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Tensor]]:
        """Loss of a forward pass, and the buffers after it."""
        buffers = {n: b.clone() for n, b in self.model.named_buffers()} | dict(start)
        with torch.no_grad(), frozen_randomness():
            loss = scalar_loss(self.model, self.loss_fn, self.batch, buffers | dict(weights))
        return float(loss), buffers

    def _shares(
        self, weights: Mapping[str, Tensor], names: Sequence[str], loss: float
    ) -> dict[str, float]:
        """Shares m of the buffers that are running averages; none if the loss depends on them."""
        zero, low = self._run(weights, {n: torch.zeros_like(self.buffers[n]) for n in names})
        one, high = self._run(weights, {n: torch.ones_like(self.buffers[n]) for n in names})
        if max(relative_change(loss, zero), relative_change(loss, one)) > self.precision:
            return {}
        shares = {}
        for name in names:
            rest = high[name] - low[name]
            share = 1 - float(rest.mean())
            if float((rest - rest.mean()).abs().max()) <= self.precision and 0 < share <= 1:
                shares[name] = share
        return shares

    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New parts of the averages, in float64."""
        _, after = self._run(weights, {n: torch.zeros_like(self.buffers[n]) for n in self.averages})
        return {n: (after[n].double() / m).cpu() for n, m in self.averages.items()}

    def slice(self, name: str, j: int) -> Slice:
        """Slice of entry j."""
        return Slice(name, 0, j) if self.buffers[name].ndim else Slice(name, None)

    def verify(
        self,
        found: Followed,
        members: Sequence[int],
        weights: Mapping[str, Tensor],
        averages: Mapping[str, Tensor],
        source: torch.Generator,
    ) -> float:
        """Relative change of the loss in evaluation mode under a random element of a family."""
        log2: dict[Slice, float] = {}
        pairs: list[tuple[Slice, Slice]] = []
        for i in members:
            largest = max(map(abs, found.exponents[i].values())) * math.log(2)
            t = (2 * float(torch.rand((), generator=source)) - 1) * _SPREAD / largest
            for where, a in found.exponents[i].items():
                log2[where] = log2.get(where, 0.0) + a * t
            pairs += found.shifts[i]
        element = ScalingElement.from_log2(log2, shifts=pairs)
        tensors = dict(weights) | {n: b.to(self.buffers[n]) for n, b in averages.items()}
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            before = evaluate(self.model, self.loss_fn, self.batch, tensors)
            moved = element.move(tensors)
            after = evaluate(self.model, self.loss_fn, self.batch, tensors | moved)
        except (ValueError, RuntimeError):
            return math.inf
        finally:
            for module, mode in modes.items():
                module.training = mode
        return relative_change(before, after)


def _rounded(exponent: float, precision: float) -> float:
    """Exponent as a multiple of 1/12, if it is one."""
    nearest = round(12 * exponent) / 12
    return nearest if abs(nearest - exponent) <= 1e3 * precision else exponent


def _shifts(
    family: _Family,
    weights: Sequence[Mapping[str, Tensor]],
    before: Sequence[Mapping[str, Tensor]],
    precision: float,
) -> list[tuple[tuple[str, int], Slice]] | None:
    """Entries of averages that move by as much as a bias, with the bias; None if others move, too.

    Args:
        family: if its generators scale one entry of a vector each.
        weights: weights that it has scaled.
        before: averages there.
        precision: relative error of averages.
    """
    slices = [next(iter(exponents)) for exponents in family.members]
    name = slices[0].parameter
    if any(len(exponents) > 1 for exponents in family.members) or weights[0][name].ndim != 1:
        return None
    index = [w.index for w in slices]
    moved = torch.stack(
        [
            (y[name] - w[name]).double().cpu()[index]
            for w, y in zip(weights, family.weights, strict=True)
        ]
    )
    pairs = []
    for average in before[0]:
        old, new = (
            torch.stack([b[average].reshape(-1) for b in draws])
            for draws in (before, family.averages)
        )
        change = new - old
        allowed = precision * (old.abs().max() + new.abs().max() + moved.abs().max())
        for j in (change.abs() > allowed).any(dim=0).nonzero().flatten().tolist():
            near = ((change[:, j, None] - moved).abs() <= allowed).all(dim=0).nonzero().flatten()
            if len(near) != 1:
                return None
            pairs.append(((average, j), slices[int(near[0])]))
    return pairs


def _centered(
    averages: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    shifts: Mapping[tuple[str, int], list[Slice]],
) -> dict[str, Tensor]:
    """Averages without the biases that shift them."""
    centered = {name: average.reshape(-1).clone() for name, average in averages.items()}
    for (name, j), sources in shifts.items():
        for bias in sources:
            centered[name][j] -= float(weights[bias.parameter][bias.index])
    return centered


def _factors(
    family: _Family,
    centered: Sequence[Mapping[str, Tensor]],
    shifts: Mapping[tuple[str, int], list[Slice]],
    precision: float,
) -> list[tuple[str, int, int, float]] | None:
    """Entries of averages that scale, as (name, entry, generator, exponent).

    None if an entry changes by no power of the factor of one generator.
    """
    found = []
    after = [_centered(a, w, shifts) for a, w in zip(family.averages, family.weights, strict=True)]
    for name in centered[0]:
        old, new = (torch.stack([draw[name] for draw in draws]) for draws in (centered, after))
        size = old.abs().amax(dim=1, keepdim=True)
        telling = (old.abs() > _SMALL * size).all(dim=0)
        allowed = 10 * precision * (size / old.abs()).amax(dim=0)
        still = ((new - old).abs() <= allowed * old.abs()).all(dim=0)
        entries = (telling & ~still).nonzero().flatten()
        logs = (new / old).log2()[:, entries, None]
        ratios = logs / family.scales[:, None, :]  # draws × entries × generators
        least, which = (ratios[0] - ratios[1]).abs().nan_to_num(math.inf).min(dim=1)
        if bool((least > 8 * allowed[entries]).any()):
            return None
        for row, (j, k) in enumerate(zip(entries.tolist(), which.tolist(), strict=True)):
            exponent = float(ratios[0, row, k]) * _largest(family.members[k])
            found.append((name, j, k, _rounded(exponent, precision)))
    return found
