"""Input of the fast paths: weights with gradients and buffers, and hyperparameters.

    d = ± the Riemannian gradient   by `sign`
    v ← keep · v + fresh · d        (d at first, for SGD)
    u = −σ v                        or −σ (d + momentum · v), with Nesterov
    σ = lr                          SGD
    σ = lr / (unbias₁ (√(s/unbias₂) + eps)),  s ← beta2 · s + (1 − beta2) ⟨d, d⟩        Adam
    x, v ← retr_transp(x, u, v)

The steps are in `manifoldnet.optim.plane` and `manifoldnet.optim.native`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from manifoldnet.optim.kind import Kind

__all__ = ["Rates", "Work"]


class Rates(NamedTuple):
    """The hyperparameters of a group. `beta2` is None for SGD."""

    lr: float | Tensor
    sign: float
    keep: float
    fresh: float
    nesterov: bool = False
    beta2: float | None = None
    eps: float = 0.0
    amsgrad: bool = False
    rms: bool = False


class Work(NamedTuple):
    """A weight to step in place.

    Attributes:
        x: the weight, detached.
        g: its gradient, which is left as it is.
        kind: its manifold.
        v: the buffer; None for SGD without momentum.
        first: whether the buffer has no value yet (SGD; Adam's starts with zeros).
        s: Adam's second moments, one number per slice.
        top: the largest of them so far, with amsgrad.
        unbias: 1 − β₁ᵗ and 1 − β₂ᵗ.
    """

    x: Tensor
    g: Tensor
    kind: Kind
    v: Tensor | None = None
    first: bool = False
    s: Tensor | None = None
    top: Tensor | None = None
    unbias: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)
