"""The networks of the symmetry paper: Arch1, and Arch2 with batch normalization.

    images -> [ Linear -> (BatchNorm) -> ReLU -> 2x1 max-pooling ] x depth -> head -> class scores

Both have 64 filters a layer; pooling halves what the next layer sees, so W1 is 64 x inputs, W2 and
every later one 64 x 32, and the classifier `head` classes x 32 (the paper prints W2 as 32 x 64,
which its own pooling contradicts). There are no biases. The networks differ from what is usual in
their *start*: weights drawn from a standard Gaussian, then each filter and each class vector (a row
either way) scaled to unit norm.

Source: Badrinarayanan, Mishra and Cipolla, "Symmetry-invariant optimization in deep networks",
Sections 2 and 4.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn


class MaxPoolPairs(nn.Module):
    """2x1 max-pooling with stride 2 over features: the larger of features 2k and 2k + 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(batch, 2n)`` to ``(batch, n)``."""
        # Equal to max_pool1d, and to the maximum of two strided halves; quick at these sizes.
        return features.view(features.shape[0], -1, 2).max(-1).values


class _Network(nn.Module):
    """What Arch1 and Arch2 share: everything but the normalization."""

    normalized: ClassVar[bool]

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        depth: int = 2,
        features: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [inputs] + [features // 2] * depth
        self.hidden = nn.Sequential()
        for width in widths[:-1]:
            self.hidden.append(_unit_rows(features, width, generator))
            if self.normalized:
                self.hidden.append(nn.BatchNorm1d(features))
            self.hidden.extend([nn.ReLU(), MaxPoolPairs()])
        self.head = _unit_rows(classes, widths[-1], generator)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``(batch, classes)``, before the soft-max, of images ``(batch, inputs)``."""
        scores: Tensor = self.head(self.hidden(images))
        return scores


@final
class Arch1(_Network):
    """The plain network: linear maps, ReLU, max-pooling, linear classifier.

    Args:
        inputs: pixels of an image, rasterized.
        classes: scores to give.
        depth: hidden layers.
        features: filters per hidden layer; even.
        generator: where the start is drawn from; torch's global one by default.
    """

    normalized = False


@final
class Arch2(_Network):
    """Arch1 with batch normalization (trainable scale and shift) before each ReLU.

    The normalization is torch's, with its default ε = 1e-5 and running averages for evaluation; the
    paper gives neither. The arguments are Arch1's.
    """

    normalized = True


def build(
    architecture: str,
    inputs: int,
    classes: int,
    *,
    depth: int,
    features: int,
    generator: torch.Generator,
) -> nn.Module:
    """The network that a configuration names."""
    network = {"arch1": Arch1, "arch2": Arch2}[architecture]
    return network(inputs, classes, depth=depth, features=features, generator=generator)


def _unit_rows(rows: int, columns: int, generator: torch.Generator | None) -> nn.Linear:
    # skip_init: Linear's own initialization would draw from torch's global generator only to be
    # overwritten.
    layer = nn.utils.skip_init(nn.Linear, columns, rows, bias=False)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.weight /= layer.weight.norm(dim=1, keepdim=True)
    return layer
