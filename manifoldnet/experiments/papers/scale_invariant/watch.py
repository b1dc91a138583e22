"""What is measured while an epoch is trained, and whether every number in the network is finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Watch:
    """Follows the steps of an epoch. Each method says whether what it has seen is finite.

    Args:
        stage: the classification stage; of its ``weight``, if it has one, the steps are measured.
        others: the weights before the stage.
    """

    def __init__(self, stage: nn.Module, others: list[nn.Parameter]) -> None:
        self._others = others
        self._weights = [*others, *stage.parameters()]
        self._matrix: Tensor | None = getattr(stage, "weight", None)
        self._before: Tensor | None = None
        self._losses: list[float] = []
        self._counts: list[int] = []
        self._norms: list[float] = []
        self._ratios: list[float] = []
        self._wrong = 0
        self._norm_error = 0.0
        self._overflow = ""

    def answered(
        self, features: Tensor, z: Tensor | None, scores: Tensor, labels: Tensor, loss: Tensor
    ) -> bool:
        """After a minibatch went through the network; ``z`` are its directions, if there are."""
        self._losses.append(loss.item())
        self._counts.append(len(labels))
        self._wrong += int((scores.detach().argmax(1) != labels).sum())
        if z is not None:
            off = (z.detach().norm(dim=1) - 1).abs()
            self._norm_error = max(self._norm_error, off.max().item())
        return self._finite("features", features) and self._finite("loss", scores, loss)

    def differentiated(self) -> bool:
        """After the gradient was computed, before the step."""
        gradients = [w.grad for w in self._weights if w.grad is not None]
        self._norms.append(torch.stack([_norm(g) for g in gradients]).norm().item())
        self._before = None if self._matrix is None else self._matrix.detach().clone()
        return self._finite("gradients", *gradients)

    def stepped(self) -> bool:
        """After the step."""
        if self._matrix is not None and self._before is not None:
            moved = _norm(self._matrix.detach() - self._before)
            self._ratios.append((moved / _norm(self._before)).item())
        return self._finite("weights", *self._weights)

    def row(self) -> dict[str, Any]:
        """What was measured, as `StageEpoch` names it."""
        seen = sum(self._counts)
        total = sum(n * loss for n, loss in zip(self._counts, self._losses, strict=True))
        largest = max((float(w.detach().abs().max()) for w in self._others), default=0.0)
        return {
            "train_loss": total / seen,
            "largest_loss": max(self._losses, key=lambda x: math.inf if math.isnan(x) else x),
            "train_error": self._wrong / seen,
            "gradient_norm": sum(self._norms) / max(len(self._norms), 1),
            "largest_gradient_norm": max(self._norms, default=math.nan),
            "step_ratio": sum(self._ratios) / max(len(self._ratios), 1),
            "largest_step_ratio": max(self._ratios, default=0.0),
            "norm_error": self._norm_error,
            "largest_weight": largest,
            "overflow": self._overflow,
        }

    def _finite(self, where: str, *tensors: Tensor) -> bool:
        if not all(bool(t.detach().isfinite().all()) for t in tensors):
            self._overflow = f"{where}, minibatch {len(self._losses)}"
        return not self._overflow


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)  # float32 would overflow first
