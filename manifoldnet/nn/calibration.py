"""Confidence of a scale-invariant classification, and its calibration.

Let the directions z of class j have a von Mises-Fisher distribution around t_j, with density
∝ exp(κ z·t_j), and let all classes be equally frequent. Then the probability of class j given z is

    p_j = exp(κ z·t_j) / Σ_i exp(κ z·t_i).

The confidence is the largest p_j. The concentration κ maximizes the likelihood, which is concave in
κ, of samples outside the training set. It does not change the predicted classes.

The paper mentions "a measure of confidence in its classification" without defining it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Confidence", "Reliability"]

_LARGEST = 1e4  # κ; beyond it every prediction is practically certain


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy, in bins of equal width over [0, 1].

    Attributes:
        confidence: mean confidence in each bin; NaN in empty bins.
        accuracy: share of correct predictions in each bin; NaN in empty bins.
        count: number of samples in each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean over samples of |accuracy − confidence| of the bin."""
        pairs = zip(self.confidence, self.accuracy, self.count, strict=True)
        return sum(n * abs(a - c) for c, a, n in pairs if n) / sum(self.count)


@final
@dataclass(frozen=True)
class Confidence:
    """Probabilities from cosines.

    Attributes:
        concentration: κ ≥ 0; with 0 all classes are equally likely.
    """

    concentration: float

    def __post_init__(self) -> None:
        if not 0 <= self.concentration < float("inf"):
            raise ValueError(f"concentration is {self.concentration}; it must be finite and ≥ 0")

    @classmethod
    def fit(cls, cosines: Tensor, labels: Tensor) -> Confidence:
        """Maximum-likelihood concentration of labelled samples.

        Args:
            cosines: output of a `SimplexClassifier` for samples outside its training set,
                ``(samples, classes)``.
            labels: their classes, ``(samples,)``.

        Raises:
            ValueError: if there are no samples, cosines are not finite, or labels are no classes.
        """
        _check(cosines, labels)
        scores = cosines.detach().double()
        target_scores = scores.gather(1, labels.unsqueeze(1)).squeeze(1)

        def slope(concentration: float) -> float:
            """Derivative of the mean log-likelihood, decreasing in κ."""
            p = (concentration * scores).softmax(1)
            return float((target_scores - (p * scores).sum(1)).mean())

        low, high = 0.0, 1.0
        while high < _LARGEST and slope(high) > 0:
            low, high = high, 2 * high
        if slope(low) <= 0:
            return cls(low)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) > 0 else (low, middle)
        return cls(min(low, _LARGEST))

    def probabilities(self, cosines: Tensor) -> Tensor:
        """Probabilities p_1 … p_k, in the shape of ``cosines``."""
        return (self.concentration * cosines).softmax(-1)

    def __call__(self, cosines: Tensor) -> Tensor:
        """Confidence of each prediction: the largest probability, in [1/k, 1]."""
        return self.probabilities(cosines).amax(-1)

    def reliability(self, cosines: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
        """Accuracy of predictions by confidence.

        Args:
            cosines: cosines of samples that κ was not fitted on.
            labels: their classes.
            bins: number of bins of equal width over [0, 1].

        Raises:
            ValueError: as `fit`; if there are no bins.
        """
        _check(cosines, labels)
        if bins < 1:
            raise ValueError(f"bins is {bins}; at least one is needed")
        confidence = self(cosines.detach()).double()
        correct = (cosines.argmax(-1) == labels).double()
        index = (confidence * bins).long().clamp(max=bins - 1)
        count = torch.bincount(index, minlength=bins)
        return Reliability(
            tuple((torch.bincount(index, confidence, minlength=bins) / count).tolist()),
            tuple((torch.bincount(index, correct, minlength=bins) / count).tolist()),
            tuple(count.tolist()),
        )


def _check(cosines: Tensor, labels: Tensor) -> None:
    if cosines.ndim != 2 or len(cosines) == 0 or labels.shape != cosines.shape[:1]:
        raise ValueError(
            f"cosines of shape {tuple(cosines.shape)} and labels of shape {tuple(labels.shape)}: "
            "(samples, classes) and (samples,) are needed, one sample or more"
        )
    if not cosines.isfinite().all():
        raise ValueError("some cosines are not finite")
    if labels.dtype != torch.int64 or labels.min() < 0 or labels.max() >= cosines.shape[1]:
        raise ValueError(
            f"labels are {labels.dtype} from {labels.min()} to {labels.max()}; they must be int64, "
            f"0 … {cosines.shape[1] - 1}"
        )
