"""Copies of a model to compute with: another type, no ε in normalization, random weights.

`without_eps` removes the ε of normalization layers, which otherwise changes the loss under a
rescaling of their inputs by O(ε/var) [ioffe2015batch].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.losses import LossFunction

__all__ = [
    "RandomWeights",
    "eps_fields",
    "remove_eps",
    "without_eps",
    "working_copy",
    "working_loss",
]

# torch rejects ε = 0 in training; this one is negligible relative to any variance that occurs.
_NO_EPS = 1e-38
# In float64 a larger one is negligible relative to nearly all of them. It keeps rounding errors
# small where a feature is constant (a dead channel), with gradients of the order of 1/√ε.
_LITTLE_EPS = {torch.float64: 1e-16}
_EPS_NAMES = ("eps", "epsilon", "variance_epsilon")


def working_copy(model: nn.Module, dtype: torch.dtype, *, keep_eps: bool = True) -> nn.Module:
    """Copy of a model in a type, without gradients and running averages.

    In training mode the running averages of normalization layers do not enter the loss; without
    them the loss is a function of the parameters that can be vectorized. Embeddings lose
    `padding_idx`, so that gradients are those of the loss.
    """
    work = copy.deepcopy(model).to(dtype).requires_grad_(False)
    for module in work.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        if isinstance(module, nn.Embedding):
            # With padding, gradients are not those of the loss; sparse ones cannot be summed here.
            module.padding_idx, module.sparse = None, False
    if not keep_eps:
        remove_eps(work, dtype)
    return work


def remove_eps(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the ε of normalization layers negligible in a type."""
    for module, field, _ in eps_fields(model):
        setattr(module, field, _LITTLE_EPS.get(dtype, _NO_EPS))


def working_loss(
    loss_fn: LossFunction | None, dtype: torch.dtype, device: torch.device
) -> LossFunction | None:
    """Loss function for a working copy: a module's tensors (class weights) are in its type."""
    if isinstance(loss_fn, nn.Module):
        return copy.deepcopy(loss_fn).to(device, dtype)
    return loss_fn


def eps_fields(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """ε of every layer that has one, as (module, name of the attribute, value)."""
    return [
        (module, field, vars(module)[field])
        for module in model.modules()
        for field in _EPS_NAMES
        if isinstance(vars(module).get(field, ""), float | None)
    ]


@contextmanager
def without_eps(model: nn.Module) -> Iterator[nn.Module]:
    """Set the ε of normalization layers to (practically) zero inside the context.

    Their scale invariance is then exact: the loss does not change at all with the norm of a filter
    before batch normalization, instead of by O(ε/var) [ioffe2015batch].

    Args:
        model: changed in place and restored at the end. The attributes `eps`, `epsilon` and
            `variance_epsilon` of its layers are set.
    """
    fields = eps_fields(model)
    try:
        for module, field, _ in fields:
            setattr(module, field, _NO_EPS)
        yield model
    finally:
        for module, field, value in fields:
            setattr(module, field, value)


class RandomWeights:
    """Random weights of about the size of a model's own, correlated with them or not.

        cos θ · w ⊙ e^(0.3 ν) + sin θ · σ ⊙ ν′

    with standard Gaussian ν, ν′, sizes σ and θ uniform in [π/8, π/2]. No entry stays zero, and
    units that are dead at the model's weights become active. σ is equivariant under scalings of w,
    so that badly scaled weights give the same equations. Entries of vectors are then moved away
    from zero by σ/10: behind a gain near zero a second normalization layer divides by nearly
    nothing, and its ε shows.

    Args:
        model: the source of w; it is not changed.
        names: parameters to draw.
    """

    def __init__(self, model: nn.Module, names: Container[str]) -> None:
        self.own = {n: p.detach() for n, p in model.named_parameters() if n in names}
        self.sizes = [
            {name: _entry_sizes(w, by_entry) for name, w in self.own.items()}
            for by_entry in (False, True)
        ]

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of the model's size, by name."""
        sizes = self.sizes[int(torch.randint(2, (), generator=generator))]
        drawn = {}
        for name, w in self.own.items():
            angle = math.pi * (1 + 3 * float(torch.rand((), generator=generator))) / 8
            jitter, fresh = (
                torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
                for _ in range(2)
            )
            near = w * (0.3 * jitter).exp()
            drawn[name] = _away_from_zero(
                math.cos(angle) * near + math.sin(angle) * sizes[name] * fresh, sizes[name]
            )
        return drawn

    def fresh(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of the size of newly initialized layers, whatever the model's size.

        A unit with small weights is nearly linear, and one with large weights is saturated. Either
        looks like a symmetry at the model's own weights.
        """
        drawn = {}
        for name, w in self.own.items():
            size = _initial_size(w)
            normal = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
            drawn[name] = _away_from_zero(size * normal, size)
        return drawn


def _away_from_zero(w: Tensor, sizes: Tensor | float) -> Tensor:
    """Entries of a vector moved away from zero by a tenth of `sizes`; other weights as they are.

    Gains and biases are vectors, or lie along one dimension; of a matrix no single entry matters.
    """
    return w + w.sign() * sizes / 10 if w.numel() == max(w.shape, default=1) else w


def _initial_size(w: Tensor) -> float:
    """Size of an entry in a newly initialized layer."""
    return (w.shape[0] / w.numel()) ** 0.5 if w.ndim > 1 and w.numel() else 0.3


@torch.no_grad()
def _entry_sizes(w: Tensor, by_entry: bool) -> Tensor:
    """Sizes rᵢcⱼ of the entries of w, equivariant under row and column scalings; 0.3 if w = 0.

    Entries of a vector have one common size or, `by_entry`, their own. The first is wrong where a
    scaling has driven the entries far apart, the second where one is small by chance: both are
    tried.
    """
    nonzero = w != 0
    if not nonzero.any():
        return torch.full_like(w, 0.3)
    logs = w.abs().log()
    mean = logs[nonzero].mean()
    offsets = torch.where(nonzero, logs - mean, 0.0)
    if w.ndim < 2:
        return (mean + offsets * by_entry).exp().expand(w.shape)
    others = [[d for d in range(w.ndim) if d != dim] for dim in (0, 1)]
    # Geometric means first: the largest columns would dominate a root mean square.
    for dims in others:
        count = nonzero.sum(dims, keepdim=True).clamp(min=1)
        mean = mean + offsets.sum(dims, keepdim=True) / count
    size = mean.exp()
    for dims in 2 * others:
        ratio = (w / size).pow(2).mean(dims, keepdim=True).sqrt()
        size = size * torch.where(ratio > 0, ratio, 1.0)
    return size.expand(w.shape)
