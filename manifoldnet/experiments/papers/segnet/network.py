"""SegNet: an encoder of convolutions and max-pooling, and a decoder that mirrors it.

    encoder   [ (Conv 3x3 -> BatchNorm -> ReLU) x n -> 2x2 max-pooling ]   n = 2, 2, 3, 3, 3
    decoder   [ 2x2 unpooling -> (Conv 3x3 -> BatchNorm -> ReLU) x n ]     the other way round
    head        Conv 3x3 -> a score per class and pixel

The 13 convolutions of the encoder are those of VGG-16, with 1, 2, 4, 8 and 8 times `width` filters
(64 in the papers). The unpooling of a stage puts its values back to the indices of the maxima of
the pooling of that stage, with zeros around them. No layer has a bias, and the start is that of the
symmetry paper's other networks: Gaussian filters of unit norm.

A batch normalization follows each convolution but the head, so scaling a filter by α > 0 changes
nothing: the symmetries are those of Arch2, (3) of [badrinarayanan2015symmetry].

Source: [badrinarayanan2017segnet]; Section 6 of [badrinarayanan2015symmetry] trains its first
version (arXiv:1505.07293).
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.layers import convolution, scaled_filter
from manifoldnet.symmetry import ScalingGroup

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Convolutions in each stage of the encoder."""

WIDENING = (1, 2, 4, 8, 8)
"""Filters of each stage, over those of the first."""


@final
class SegNet(nn.Module):
    """The encoder-decoder with pooling indices.

    Args:
        classes: number of scores of each pixel.
        width: filters of the first stage.
        channels: of an image.
        standardize: bring each channel of each image to mean 0 and variance 1 first.
        generator: source of the random start; torch's global one by default.

    Attributes:
        encoder: stages of convolutions, each followed by a pooling.
        decoder: stages of convolutions, each after an unpooling, in the order of their use.
        head: the classifier.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int = 64,
        channels: int = 3,
        standardize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [width * factor for factor in WIDENING]
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage([i] + [w] * n, generator)
            for i, w, n in zip(inputs, widths, CONVOLUTIONS, strict=True)
        )
        outputs = [width, *widths[:-1]]
        self.decoder = nn.ModuleList(
            _stage([w] * n + [o], generator)
            for o, w, n in zip(outputs[::-1], widths[::-1], CONVOLUTIONS[::-1], strict=True)
        )
        self.head = convolution(classes, width, generator)
        self.standardize = standardize
        self._pool = nn.MaxPool2d(2, return_indices=True)
        self._unpool = nn.MaxUnpool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``(batch, classes, height, width)`` of a batch of images of that size."""
        if min(images.shape[-2:]) < 2 ** len(CONVOLUTIONS):
            height, width = images.shape[-2:]
            raise ConfigError(
                f"images of {height}x{width} (height x width) are too small for "
                f"{len(CONVOLUTIONS)} poolings: both must be {2 ** len(CONVOLUTIONS)} or more"
            )
        features = nn.functional.instance_norm(images) if self.standardize else images
        pooled = []
        for stage in self.encoder:
            features = stage(features)
            size = features.shape
            features, indices = self._pool(features)
            pooled.append((indices, size))
        for stage in self.decoder:
            indices, size = pooled.pop()
            features = stage(self._unpool(features, indices, output_size=size))
        scores: Tensor = self.head(features)
        return scores

    def symmetries(self) -> ScalingGroup:
        """The paper's group (3): each filter before a batch normalization, by a positive factor.

        The running average of that normalization is scaled with the filter, so that evaluation is
        invariant too; exact up to the normalization's ε (`manifoldnet.symmetry.without_eps`).
        """
        return ScalingGroup.of(
            self,
            [
                scaled_filter(f"{side}.{stage}.{layer}", f"{side}.{stage}.{layer + 1}", i)
                for side in ("encoder", "decoder")
                for stage, layers in enumerate(self.get_submodule(side).children())
                for layer, module in enumerate(layers.children())
                if isinstance(module, nn.Conv2d)
                for i in range(module.out_channels)
            ],
        )


def _stage(channels: list[int], generator: torch.Generator | None) -> nn.Sequential:
    stage = nn.Sequential()
    for before, after in pairwise(channels):
        stage.extend([convolution(after, before, generator), nn.BatchNorm2d(after), nn.ReLU()])
    return stage
