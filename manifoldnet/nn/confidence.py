"""How sure a scale-invariant classification is, and whether that is true.

The stage gives cosines with the targets. If the directions z of class j scatter around t_j as von
Mises and Fisher's distribution has it, with density ∝ exp(κ z·t_j), and all classes are equally
common, the probability of class j given z is

    p_j = exp(κ z·t_j) / Σ_i exp(κ z·t_i).

The confidence is the largest of these. κ is one number, fitted on images that were not trained on:
it maximizes their likelihood, which is concave in κ. Nothing about the decision changes.

The paper promises "a measure of confidence in its classification" and does not say which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Confidence", "Reliability"]

_LARGEST = 1e4  # of κ: with more, every answer is as good as certain


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width over [0, 1].

    Attributes:
        confidence: mean confidence of the samples of each bin; NaN where there are none.
        accuracy: share of them that are right; NaN likewise.
        count: how many there are.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean over samples of |accuracy − confidence| of their bin."""
        pairs = zip(self.confidence, self.accuracy, self.count, strict=True)
        return sum(n * abs(a - c) for c, a, n in pairs if n) / sum(self.count)


@final
@dataclass(frozen=True)
class Confidence:
    """Probabilities from cosines.

    Attributes:
        concentration: κ ≥ 0; 0 calls all classes equally likely.
    """

    concentration: float

    def __post_init__(self) -> None:
        if not 0 <= self.concentration < float("inf"):
            raise ValueError(f"concentration is {self.concentration}; it must be finite and ≥ 0")

    @classmethod
    def fit(cls, cosines: Tensor, labels: Tensor) -> Confidence:
        """The concentration under which some labels are the most likely.

        Args:
            cosines: of a `SimplexClassifier`, ``(samples, classes)``, on samples that it was not
                trained on.
            labels: their classes, ``(samples,)``.

        Raises:
            ValueError: if there are no samples, numbers that are not finite, or labels that are no
                classes.
        """
        _check(cosines, labels)
        scores = cosines.detach().double()
        right = scores.gather(1, labels.unsqueeze(1)).squeeze(1)

        def slope(concentration: float) -> float:
            """Of the mean log-likelihood; it falls with κ."""
            p = (concentration * scores).softmax(1)
            return float((right - (p * scores).sum(1)).mean())

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
        """p_1 … p_k of each sample, of the shape of ``cosines``."""
        return (self.concentration * cosines).softmax(-1)

    def __call__(self, cosines: Tensor) -> Tensor:
        """The confidence in each decision: the largest probability, in [1/k, 1]."""
        return self.probabilities(cosines).amax(-1)

    def reliability(self, cosines: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
        """Whether the confidence is true: what share of the samples of each confidence is right.

        Args:
            cosines: of samples that κ was not fitted on.
            labels: their classes.
            bins: of equal width over [0, 1].

        Raises:
            ValueError: as `fit`; or for no bins.
        """
        _check(cosines, labels)
        if bins < 1:
            raise ValueError(f"bins is {bins}; at least one is needed")
        sure = self(cosines.detach()).double()
        right = (cosines.argmax(-1) == labels).double()
        index = (sure * bins).long().clamp(max=bins - 1)
        count = torch.bincount(index, minlength=bins)
        return Reliability(
            tuple((torch.bincount(index, sure, minlength=bins) / count).tolist()),
            tuple((torch.bincount(index, right, minlength=bins) / count).tolist()),
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
