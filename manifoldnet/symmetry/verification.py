"""Verification of a group by finite elements, far from the identity, at several weights.

Invariance to first order does not imply invariance: the gradients of a piecewise constant loss (of
rounded weights, say) are zero between its jumps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.batches import InputTarget, cast, count_samples, take
from manifoldnet.symmetry.group import FalseSymmetryError, ScalingGroup
from manifoldnet.symmetry.linear import LinearElement
from manifoldnet.symmetry.losses import (
    LossFunction,
    RepeatableLoss,
    check_penalty,
    evaluate,
    frozen_randomness,
    relative_change,
    scalar_loss,
)
from manifoldnet.symmetry.scaling import ScalingElement
from manifoldnet.symmetry.working_copy import (
    RandomWeights,
    eps_fields,
    working_copy,
    working_loss,
)

__all__ = ["FAINT", "SPREAD", "Verifier"]

SPREAD = 2.0
"""Largest |ln factor| of one generator."""

FAINT = 1e-3
"""Response (relative change of the loss) below which a generator is faint."""

# SPREAD with ε in normalization layers.
_SPREAD_WITH_EPS = 0.5
# Largest relative change of the loss, by the type it is computed in.
_VERIFIED = {torch.float64: 1e-8, torch.float32: 1e-4}
# Number of batches, samples of each, and random weights.
_BATCHES, _SAMPLES = 2, 256
_RANDOM_WEIGHTS = 2
# A relative change of the loss that a small constant in the model may explain.
_SMALL = 1e-4
# Largest |log₂ factor| far from the identity; factors there are powers of two, free of rounding.
_FAR, _FAR_WITH_EPS = 20, 6
# Largest change of the loss there, relative to its response.
_FAR_TOLERANCE = 1e-6


class Verifier:
    """Changes of the loss under scalings, at a model's own weights and at random ones.

    Args:
        model: it is not changed.
        loss_fn: `loss_fn(output, target)`.
        batches: at least one.
        names: parameters that random weights are drawn for.
        seed: decides weights and elements.
        keep_eps: leave ε in normalization layers.

    Attributes:
        dtype: type that losses are computed in: float64, if the model runs in it.
        repeatable: the loss of the first batch, to be checked again at the end.

    Raises:
        ValueError: if the loss at the model's own weights is not one finite number, is not the same
            twice, or depends on the model's parameters by another way than its output.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batches: list[InputTarget],
        names: list[str],
        seed: int,
        keep_eps: bool,
    ) -> None:
        self.source = torch.Generator().manual_seed(seed + 1)
        self.spread = _SPREAD_WITH_EPS if keep_eps else SPREAD
        sizes = [count_samples(batch) or 0 for batch in batches]
        # The last batch of a loader may be too small to normalize.
        full = [b for b, size in zip(batches, sizes, strict=True) if 2 * size >= max(sizes)]
        device = next(model.parameters()).device

        def prepare(dtype: torch.dtype) -> None:
            self.dtype = dtype
            self.loss_fn = working_loss(loss_fn, dtype, device)
            self.batches = [
                cast(take(b, slice(_SAMPLES)) if count_samples(b) else b, dtype, device)
                for b in full[:_BATCHES]
            ]
            self.original = working_copy(model, dtype)
            with torch.enable_grad(), frozen_randomness():
                loss = scalar_loss(self.original, self.loss_fn, self.batches[0], None)
            check_penalty(model, loss, loss_fn, self.loss_fn)
            self.repeatable = RepeatableLoss(self.original, self.loss_fn, self.batches[0])
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
            # The loss at trained weights may be nearly zero, and its rounding errors relatively
            # large; they are small relative to the loss at other weights.
            self.scale = min(self.scale, *losses)
        self.scale = self.scale if math.isfinite(self.scale) else 0.0

    def check(
        self, group: ScalingGroup, tolerance: float, on_progress: Callable[[str, int, int], None]
    ) -> float:
        """Largest relative change of the loss under random elements.

        Args:
            group: the group to verify.
            tolerance: largest change; at least the resolution is tolerated.
            on_progress: as in `discover`.

        Raises:
            FalseSymmetryError: if a change is above the tolerance.
        """
        group = group.nontrivial
        worst = 0.0
        if group.dimension == 0:
            return worst
        tolerance = max(tolerance, self.resolution)
        for i, weights in enumerate(self.weights):
            on_progress("verifying", i, len(self.weights))
            for batch in self.batches:
                log_scales = self._log_scales(group, self.spread)
                change = self.change(self.model, weights, batch, group.element(log_scales))
                if not change <= tolerance:
                    raise self._first_violation(weights, batch, group, log_scales, tolerance)
                worst = max(worst, change)
        on_progress("verifying", len(self.weights), len(self.weights))
        return worst

    @property
    def resolution(self) -> float:
        """Smallest relative change of the loss that is distinguished from rounding errors."""
        return _VERIFIED[self.dtype]

    def check_faint(self, group: ScalingGroup, responses: Sequence[float]) -> None:
        """Verify, far from the identity, generators of slices that the loss hardly depends on.

        A unit that is nearly linear because its inputs are small passes `check`: the loss changes
        by less than the tolerance even without the unit. Here the unit is scaled up and down by the
        inverse of its response, and the loss may change by a small part of the response.

        Args:
            group: faint generators.
            responses: by generator, the relative change of the loss without the unit.

        Raises:
            FalseSymmetryError: if the loss changes by more.
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
                change = self.change(
                    self.model, weights, self.batches[0], group.element(log_scales)
                )
                if not change <= tolerance:
                    raise self._first_violation(
                        weights, self.batches[0], group, log_scales, tolerance
                    )

    def eps_effect(self, group: ScalingGroup) -> float:
        """Relative change of the loss under a small element, with ε in normalization layers."""
        group = group.nontrivial
        if group.dimension == 0:
            return 0.0
        element = group.element(self._log_scales(group, _SPREAD_WITH_EPS))
        return self.change(self.original, self.weights[0], self.batches[0], element)

    def _log_scales(self, group: ScalingGroup, spread: float) -> Tensor:
        """Random log-scales such that the factors of each generator are at most e^spread."""
        largest = [max(map(abs, g.exponents.values())) for g in group.generators]
        uniform = 2 * torch.rand(group.dimension, generator=self.source, dtype=torch.float64) - 1
        return spread * uniform / torch.tensor(largest, dtype=torch.float64)

    def change(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        batch: InputTarget,
        element: ScalingElement | LinearElement,
    ) -> float:
        """Relative change of the loss under a group element; ∞ if it is not finite afterwards."""
        try:
            moved = {name: element.apply(name, weights[name]) for name in element.parameters}
        except ValueError:
            return math.inf
        return self.difference(model, weights, batch, moved)

    def difference(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        batch: InputTarget,
        moved: dict[str, Tensor],
    ) -> float:
        """Relative change of the loss when some weights are replaced; ∞ if it is not finite."""
        before = evaluate(model, self.loss_fn, batch, weights)
        try:
            after = evaluate(model, self.loss_fn, batch, weights | moved)
        except ValueError:
            return math.inf
        if max(abs(before), abs(after)) < self.scale:
            return abs(after - before) / self.scale
        return relative_change(before, after)

    def _first_violation(
        self,
        weights: dict[str, Tensor],
        batch: InputTarget,
        group: ScalingGroup,
        log_scales: Tensor,
        tolerance: float,
    ) -> FalseSymmetryError:
        """Error that names the generator k where the product of the first k generators fails.

        Its deviation is that of generator k alone or, if that is tolerated, of the product.
        """
        indices = torch.arange(group.dimension)

        def change(kept: Tensor) -> float:
            element = group.element(torch.where(kept, log_scales, 0.0))
            return self.change(self.model, weights, batch, element)

        k = bisect_left(
            range(group.dimension - 1), True, key=lambda i: not change(indices <= i) <= tolerance
        )
        generator, deviation = group.generators[k], change(indices == k)
        if deviation <= tolerance:
            deviation = change(indices <= k)
        factor = math.exp(float(log_scales[k]))
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
