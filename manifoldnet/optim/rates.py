"""Rates as angles: the angle that weight decay sets by itself, and angles that steps have.

A weight whose length the loss ignores, under a rate η and decoupled or coupled decay λ, comes to an
equilibrium in which decay shortens it as much as steps across it lengthen it. Each step then turns
it by the same angle on average [kosson2024rotational], whatever the gradients are:

    AdamW               √(2ηλ · (1 − β₁)/(1 + β₁))
    SGD, momentum α     √(2ηλ/(1 + α))

On a sphere there is no such equilibrium, and the angle is the rate itself. So `angle_of` carries a
rate over, and `Angles` measures, under any optimizer, what to compare.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Euclidean
from manifoldnet.geometry.settled import settled_numbers
from manifoldnet.geometry.slices import Slices, promote
from manifoldnet.optim.checks import check_number
from manifoldnet.registry import check_module, declared_parameters

__all__ = ["Angles", "angle_of"]


def angle_of(
    *,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    betas: tuple[float, float] | None = None,
    momentum: float | None = None,
) -> float:
    """The angle per step, in radians, of a weight in the equilibrium of steps and weight decay.

    Of AdamW if `betas` is given, √(2ηλ(1 − β₁)/(1 + β₁)), and of SGD with coupled decay if
    `momentum` is, √(2ηλ/(1 + α)) [kosson2024rotational]. It holds for weights whose length the loss
    ignores, on average over steps, once the decay had some 1/(ηλ) steps. With it a rate that is
    known from a free weight becomes that of a norm-constrained one:
    `constrain(optimizer, length="angle")` turns each slice by its `lr`.

    Args:
        lr: the rate η.
        weight_decay: the decay λ.
        betas: those of AdamW; β₂ has no part in it.
        momentum: α of SGD, 0 for none, without dampening and Nesterov's correction.

    Raises:
        TypeError: for what is no number; unless exactly one of `betas` and `momentum` is given.
        ValueError: for numbers out of range; without decay, where there is no equilibrium; for a
            decay of 1/η or more, which leaves nothing of the weight.
    """
    if (betas is None) == (momentum is None):
        raise TypeError(
            "give either betas (of AdamW) or momentum (of SGD; 0 for none): the angle depends on it"
        )
    check_number("lr", lr)
    check_number("weight_decay", weight_decay)
    if float(weight_decay) == 0:
        raise ValueError(
            "weight_decay=0: without decay there is no equilibrium. A weight whose length the loss "
            "ignores grows, and its angle per step falls with every step"
        )
    shrunk = float(lr) * float(weight_decay)
    if shrunk >= 1:
        raise ValueError(
            f"lr · weight_decay = {shrunk:g}: a step of 1 or more leaves nothing of the weight"
        )
    if momentum is not None:
        check_number("momentum", momentum, below=1.0)
        return math.sqrt(2 * shrunk / (1 + float(momentum)))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, as AdamW takes them, not {betas!r}")
    for i, beta in enumerate(betas):
        check_number(f"betas[{i}]", beta, below=1.0)
    beta1 = float(betas[0])
    return math.sqrt(2 * shrunk * (1 - beta1) / (1 + beta1))


class Angles:
    """The angles by which weights turn in a `with` block, and their norms.

        angles = mn.optim.Angles(model)
        for batch in batches:
            …
            with angles:
                optimizer.step()
        print(angles)

    For each declared weight, and each other of two dimensions or more, the root mean square over
    its slices of the angle between the slice before and after the block, and of its norm after it.
    Slices are those of the manifold; of a free weight they are indexed by `dim`, and of a
    manifold that is made of others the whole tensor is one. Slices that are zero have no angle and
    do not count. The block may hold any number of steps of any optimizers; within it a copy of
    the weights is kept. Sharded weights are measured whole: all processes enter and leave together.

    Args:
        model: the network.
        dim: the dimension that indexes the slices of undeclared weights; None for whole tensors.

    Attributes:
        angle: radians, by the parameter's qualified name; NaN if all of its slices are zero.
        norm: norms after the block.

    Raises:
        TypeError: if `model` is no module.
        ValueError: for a negative `dim`; if the model has no such weight; on leaving, if a weight
            is gone or has another shape than on entering.
    """

    angle: dict[str, float]
    norm: dict[str, float]

    def __init__(self, model: nn.Module, *, dim: int | None = 0) -> None:
        check_module(model)
        self._model, self._free = model, Slices.of_vectors(dim)
        self.angle, self.norm = {}, {}
        self._before: dict[str, Tensor] = {}
        if not self._weights():
            raise ValueError(
                f"{type(model).__name__} has no declared weight and none of two dimensions or more"
            )

    def _weights(self) -> dict[str, tuple[Tensor, Slices]]:
        """The weights to look at, each with its slices."""
        declared = declared_parameters(self._model)
        found: dict[str, tuple[Tensor, Slices]] = {}
        for name, p in self._model.named_parameters():
            manifold = declared[name][1] if name in declared else Euclidean()
            if not isinstance(manifold, Euclidean):
                # A manifold that is made of others has no slices of its own.
                found[name] = p.detach(), getattr(manifold, "slices", Slices(None))
            elif p.is_floating_point() and p.ndim > 1:
                found[name] = p.detach(), self._free
        return found

    def __enter__(self) -> Angles:
        self._before = {name: x.clone() for name, (x, _) in self._weights().items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        before, self._before = self._before, {}
        if kind is None:
            self._measure(before)

    @torch.no_grad()
    def _measure(self, before: dict[str, Tensor]) -> None:
        weights = self._weights()
        sums: list[Tensor] = []
        for name, x in before.items():
            if name not in weights or weights[name][0].shape != x.shape:
                now = tuple(weights[name][0].shape) if name in weights else "gone"
                raise ValueError(
                    f"{name} had shape {tuple(x.shape)} at the beginning of the block and is {now} "
                    "at its end: make Angles anew"
                )
            sums += _sums(x, *weights[name])
        numbers = settled_numbers(sums)
        for i, name in enumerate(before):
            angles, count, norms, slices = numbers[4 * i : 4 * i + 4]
            self.angle[name] = math.sqrt(angles / count) if count else math.nan
            self.norm[name] = math.sqrt(norms / slices) if slices else math.nan

    def __str__(self) -> str:
        """A table of names, angles in radians, and norms."""
        width = max((len(name) for name in self.angle), default=6)
        rows = [f"{n:<{width}}  {a:<9.3e}  {self.norm[n]:.4g}" for n, a in self.angle.items()]
        return "\n".join([f"{'weight':<{width}}  {'angle':<9}  norm", *rows])


def _sums(x: Tensor, y: Any, slices: Slices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ angle², the number of angles, Σ ‖y‖² and the number of slices of a weight."""
    x, y = promote(x, y.to(x))
    lengths = slices.norm(x), slices.norm(y)
    u, v = (t / torch.where(n > 0, n, 1.0) for t, n in zip((x, y), lengths, strict=True))
    # By half the angle: exact where it is small, which the arc cosine is not.
    angle = 2 * torch.atan2(slices.norm(u - v), slices.norm(u + v))
    known = (lengths[0] > 0) & (lengths[1] > 0)
    squared = torch.where(known, angle * angle, 0.0)
    ones = torch.ones_like(angle)
    return squared.sum(), (known * ones).sum(), (lengths[1] * lengths[1]).sum(), ones.sum()
