"""The classification stages that are compared, behind one vocabulary: scores, and their loss.

    rescaled    z = Ax/‖Ax‖, ‖A‖_F = √m       ‖z − t_j‖²              (`manifoldnet.nn`)
    logistic    y = Ax                        −ln softmax(y)_j
    smoothing   y = Ax                        the same, 0.1 of each label spread over all classes
    cosine      s · cos(x, a_i)               −ln softmax             s learned, in its logarithm
    etf         y = Px, P fixed               −ln softmax

In each the class is that of the largest score. P has the k vertices of a regular simplex for rows,
turned at random into the space of the features and as long as the features' start asks for (its
matrix has the entries' size of the logistic start): an equiangular tight frame that is not trained,
after [zhu2021geometric].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.nn import SimplexClassifier, SimplexLoss, simplex_targets
from manifoldnet.nn.normalize import normalize

Loss = Callable[[Tensor, Tensor], Tensor]
_SMOOTHING = 0.1


def build_stage(
    config: StageConfig, features: int, classes: int, generator: torch.Generator
) -> tuple[nn.Module, Loss]:
    """The stage of a configuration, and its loss, averaged over a minibatch.

    Raises:
        ConfigError: (a ValueError) when the targets do not fit into `embedding_dim`.
    """
    if config.method == "rescaled":
        stage = SimplexClassifier(
            features,
            classes,
            config.embedding_dim,
            "standard" if config.simplex == "standard" else "regular",
            generator=generator,
        )
        return stage, SimplexLoss()
    if config.method == "cosine":
        return CosineScores(features, classes, generator), cross_entropy
    if config.method == "etf":
        return FixedFrame(features, classes, generator), cross_entropy
    stage_ = nn.utils.skip_init(nn.Linear, features, classes, bias=False)
    with torch.no_grad():
        stage_.weight.normal_(generator=generator).div_(features**0.5)
    if config.method == "smoothing":
        return stage_, lambda y, labels: cross_entropy(y, labels, label_smoothing=_SMOOTHING)
    return stage_, cross_entropy


@final
class CosineScores(nn.Module):
    """Cosines of the features with a learned vector for each class, times a learned scale."""

    def __init__(self, features: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(classes, features).normal_(generator=generator)
        self.weight = nn.Parameter(start.div_(features**0.5))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, features: Tensor) -> Tensor:
        """The scores."""
        return self.log_scale.exp() * linear(normalize(features), normalize(self.weight))


@final
class FixedFrame(nn.Module):
    """Scores of a matrix that is not trained: a regular simplex in the space of the features."""

    frame: Tensor

    def __init__(self, features: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        turned = torch.empty(features, classes).normal_(generator=generator)
        basis = torch.linalg.qr(turned).Q  # classes orthonormal directions
        self.register_buffer("frame", simplex_targets(classes) @ basis.T)

    def forward(self, features: Tensor) -> Tensor:
        """The scores."""
        return linear(features, self.frame)
