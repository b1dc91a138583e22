"""Verifying a group: finite elements, far from the identity, at several weights of the model.

What leaves the loss as it is to first order need not do so further on: a loss that is constant in
steps (rounded weights, say) has gradients that know nothing of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.equations import RandomWeights
from manifoldnet.symmetry.evaluation import (
    Batch,
    LossFunction,
    Repeated,
    cast,
    check_penalty,
    count_samples,
    eps_fields,
    evaluate,
    frozen_randomness,
    relative_change,
    scalar_loss,
    take,
    working_copy,
    working_loss,
)
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.scaling import ScalingElement

__all__ = ["FAINT", "SPREAD", "FalseSymmetryError", "Verifier"]

SPREAD = 2.0
"""ln of the largest factor of one generator."""

FAINT = 1e-3
"""A generator moves the loss by less than this, relative, if it is faint."""

# The same as SPREAD with ε in normalization layers.
_SPREAD_WITH_EPS = 0.5
# How far the loss may move, relative, by the type it is computed in.
_VERIFIED = {torch.float64: 1e-8, torch.float32: 1e-4}
# So many batches, and so many samples of each.
_BATCHES, _SAMPLES = 2, 256
_RANDOM_WEIGHTS = 2
# A relative change of the loss that a small constant in the model may explain.
_SMALL = 1e-4
# Powers of two that elements go to, far from the identity; rounding has no part in them.
_FAR, _FAR_WITH_EPS = 20, 6
# How far the loss may move there, relative to how far it could.
_FAR_TOLERANCE = 1e-6


class FalseSymmetryError(RuntimeError):
    """A generator that finite elements prove wrong: it held to first order only.

    Attributes:
        generator: which.
        deviation: the relative change of the loss under a finite element of it.
    """

    def __init__(self, message: str, generator: Generator, deviation: float) -> None:
        super().__init__(message)
        self.generator, self.deviation = generator, deviation


class Verifier:
    """Losses of a copy of a model, at its own weights and at random ones, before and after scaling.

    Args:
        model: the user's; it is not changed.
        loss_fn: `loss_fn(output, target)`.
        batches: at least one.
        names: the parameters that random weights are drawn for.
        seed: decides weights and elements.
        keep_eps: whether ε stays in normalization layers.

    Attributes:
        dtype: the type that losses are computed in: float64, if the model runs in it.

    Raises:
        ValueError: if the loss at the model's own weights is not one finite number, is not the same
            twice, or depends on the model's parameters by another way than its output.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: list[Batch],
        names: list[str],
        seed: int,
        keep_eps: bool,
    ) -> None:
        self.source = torch.Generator().manual_seed(seed + 1)
        self.spread = _SPREAD_WITH_EPS if keep_eps else SPREAD
        sizes = [count_samples(batch) or 0 for batch in batches]
        # What a loader gives last may be too small to normalize.
        full = [b for b, size in zip(batches, sizes, strict=True) if 2 * size >= max(sizes)]
        device = next(model.parameters()).device

        def prepare(dtype: torch.dtype) -> None:
            self.dtype = dtype
            self.loss_fn = working_loss(loss_fn, dtype, device)
            self.batches = [cast(_few(batch), dtype, device) for batch in full[:_BATCHES]]
            self.original = working_copy(model, dtype)
            with torch.enable_grad(), frozen_randomness():
                loss = scalar_loss(self.original, self.loss_fn, self.batches[0], None)
            check_penalty(model, loss, loss_fn, self.loss_fn)
            self.repeated = Repeated(self.original, self.loss_fn, self.batches[0])
            for batch in self.batches[1:]:
                evaluate(self.original, self.loss_fn, batch)

        try:
            prepare(torch.float64)
        except RuntimeError:  # numbers of another type inside the model or the loss function
            prepare(torch.float32)
        self.model = working_copy(model, self.dtype, keep_eps=keep_eps)
        own = {name: p.detach() for name, p in self.model.named_parameters()}
        self.weights, self.scale = [own], math.inf
        self.far = _FAR_WITH_EPS if eps_fields(model) else _FAR
        random = RandomWeights(self.model, names)
        draws = [random.draw] * _RANDOM_WEIGHTS + ([] if keep_eps else [random.fresh])
        for draw in draws:
            weights = own | draw(self.source)
            try:
                losses = [
                    abs(evaluate(self.model, self.loss_fn, batch, weights))
                    for batch in self.batches
                ]
            except ValueError:  # not finite there: nothing to compare with
                continue
            self.weights.append(weights)
            # The loss at trained weights may be all but zero, and its rounding errors large beside
            # it; they are small beside the loss at others.
            self.scale = min(self.scale, *losses)
        self.scale = self.scale if math.isfinite(self.scale) else 0.0

    def check(
        self, group: ScalingGroup, tolerance: float, tell: Callable[[str, int, int], None]
    ) -> float:
        """The largest relative change of the loss under random elements.

        Args:
            group: to verify.
            tolerance: how large it may be, if not smaller than what rounding takes.
            tell: is told how far this has come.

        Raises:
            FalseSymmetryError: if it is above `tolerance`.
        """
        real = group.nontrivial
        worst = 0.0
        if real.dimension == 0:
            return worst
        tolerance = max(tolerance, _VERIFIED[self.dtype])
        for i, weights in enumerate(self.weights):
            tell("verifying", i, len(self.weights))
            for batch in self.batches:
                log_scales = self._log_scales(real, self.spread)
                change = self._change(self.model, weights, batch, real.element(log_scales))
                if not change <= tolerance:
                    raise self._culprit(weights, batch, real, log_scales, tolerance)
                worst = max(worst, change)
        tell("verifying", len(self.weights), len(self.weights))
        return worst

    @property
    def resolution(self) -> float:
        """The relative change of the loss that nothing smaller is told from."""
        return _VERIFIED[self.dtype]

    def check_faint(self, group: ScalingGroup, responses: Sequence[float]) -> None:
        """Verify generators of slices that the loss hardly depends on, far from the identity.

        A unit that is all but linear, since its inputs are small, passes `check`: the loss moves
        less than its tolerance even without the unit. Here it is scaled until it is of ordinary
        size, up and down, and the loss may move by a small part of what depends on the unit.

        Args:
            group: of faint generators.
            responses: by generator, how far the loss moves, relative, without it.

        Raises:
            FalseSymmetryError: if it moves farther.
        """
        if group.dimension == 0:
            return
        noise = 64 * torch.finfo(self.dtype).eps
        tolerance = max(noise, _FAR_TOLERANCE * min(responses))
        powers = [
            min(max(math.ceil(-math.log2(response)), 2), self.far)
            / max(map(abs, generator.exponents.values()))
            for generator, response in zip(group.generators, responses, strict=True)
        ]
        for direction in (1, -1):
            log_scales = direction * math.log(2) * torch.tensor(powers, dtype=torch.float64)
            for weights in self.weights:
                change = self._change(
                    self.model, weights, self.batches[0], group.element(log_scales)
                )
                if not change <= tolerance:
                    raise self._culprit(weights, self.batches[0], group, log_scales, tolerance)

    def blur(self, group: ScalingGroup) -> float:
        """The relative change of the loss under small elements, with ε in place."""
        real = group.nontrivial
        if real.dimension == 0:
            return 0.0
        element = real.element(self._log_scales(real, _SPREAD_WITH_EPS))
        return self._change(self.original, self.weights[0], self.batches[0], element)

    def _log_scales(self, group: ScalingGroup, spread: float) -> Tensor:
        """Random ones, such that no generator multiplies anything by more than e^spread."""
        largest = [max(map(abs, g.exponents.values())) for g in group.generators]
        uniform = 2 * torch.rand(group.dimension, generator=self.source, dtype=torch.float64) - 1
        return spread * uniform / torch.tensor(largest, dtype=torch.float64)

    def _change(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        batch: Batch,
        element: ScalingElement,
    ) -> float:
        before = evaluate(model, self.loss_fn, batch, weights)
        try:
            scaled = {name: element.apply(name, weights[name]) for name in element.parameters}
            after = evaluate(model, self.loss_fn, batch, weights | scaled)
        except ValueError:
            return math.inf
        if max(abs(before), abs(after)) < self.scale:
            return abs(after - before) / self.scale
        return relative_change(before, after)

    def _culprit(
        self,
        weights: dict[str, Tensor],
        batch: Batch,
        group: ScalingGroup,
        log_scales: Tensor,
        tolerance: float,
    ) -> FalseSymmetryError:
        """The first generator with which the product of all before it fails, by bisection."""
        places = torch.arange(group.dimension)

        def change(kept: Tensor) -> float:
            element = group.element(torch.where(kept, log_scales, 0.0))
            return self._change(self.model, weights, batch, element)

        good, bad = 0, group.dimension
        while bad - good > 1:
            middle = (good + bad) // 2
            if change(places < middle) <= tolerance:
                good = middle
            else:
                bad = middle
        generator = group.generators[good]
        deviation = change(places == good)
        if not deviation > tolerance:  # not by itself, but after those before it
            deviation = change(places <= good)
        factor = math.exp(float(log_scales[good]))
        why = (
            "A small constant in the model (an ε) may break it, or the loss is"
            if deviation < _SMALL
            else "The loss is"
        )
        return FalseSymmetryError(
            f"{generator.name} leaves the loss as it is to first order only: with s = {factor:.3g} "
            f"it changes by {deviation:.2g} relative. {why} locally constant in these weights "
            "(rounding, a step function, gradients cut off): leave them out with parameters=[...]. "
            "Or units are all but linear where inputs are this small: give larger inputs. "
            "Or the batches do not say enough: give larger and more varied ones (batch "
            "normalization maps any two samples to ±1)",
            generator,
            deviation,
        )


def _few(batch: Batch) -> Batch:
    """A batch, or so many samples of it that memory lasts."""
    return take(batch, slice(_SAMPLES)) if (count_samples(batch) or 0) > _SAMPLES else batch
