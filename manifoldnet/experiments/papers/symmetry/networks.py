"""The networks of the symmetry paper, and convolutional ones made in the same way.

    Arch1      [ Linear              -> ReLU -> 2x1 max-pooling ] x depth            -> head
    Arch2      [ Linear -> BatchNorm -> ReLU -> 2x1 max-pooling ] x depth            -> head
    ConvArch1  [ Conv                -> ReLU -> 2x2 max-pooling ] x depth -> flatten -> head
    ConvArch2  [ Conv   -> BatchNorm -> ReLU -> 2x2 max-pooling ] x depth -> flatten -> head

from images to class scores, with 64 filters a layer and no biases. 2x1 pooling takes pairs of
features and halves the inputs of the next layer, so W1 is 64 x inputs, W2 and every later one
64 x 32, and the classifier `head` classes x 32 (the paper prints W2 as 32 x 64, which its own
pooling contradicts). 2x2 pooling is over space and leaves 64 channels. The start is that of
`papers.layers`: Gaussian weights, each filter and class vector scaled to unit norm.

`network.symmetries()` is the group of scalings that leave the loss invariant:

    without batch normalization, (1)-(2) of the paper: for each hidden layer but the last
        its weight × α, head ÷ α
    and for each channel that the last one gives, after pooling
        its filters × β, the columns of head that see it ÷ β

    with it, (3): for each filter of each hidden layer
        the filter × α, its running mean × α, its running variance × α²

Source: Badrinarayanan, Mishra and Cipolla, "Symmetry-invariant optimization in deep networks",
Sections 2 and 4; the convolutional form is mentioned there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.layers import convolution, linear, scaled_filter
from manifoldnet.experiments.papers.updates import declare as declare
from manifoldnet.symmetry import Generator, ScalingGroup, Slice

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class MaxPoolPairs(nn.Module):
    """2x1 max-pooling with stride 2 over features: the larger of features 2k and 2k + 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(batch, 2n)`` to ``(batch, n)``."""
        # Equal to max_pool1d, and to the maximum of two strided halves; quick at these sizes.
        return features.view(features.shape[0], -1, 2).max(-1).values


class _Network(nn.Module):
    """Base of the four networks: the order of the layers, and the symmetry group.

    Filters that are pooled into one of the last `channels` are tied.
    """

    normalized: ClassVar[bool]
    hidden: nn.Sequential
    head: nn.Linear
    channels: int

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``(batch, classes)``, before the soft-max, of a batch of images."""
        scores: Tensor = self.head(self.hidden(images))
        return scores

    def symmetries(self) -> ScalingGroup:
        """The paper's group of this network: scalings that leave its loss invariant.

        Without batch normalization the group has dimension depth − 1 + channels, and the network
        has more symmetries than those (rows of one layer against columns of the next). With it,
        the dimension is depth × features; the invariance is exact up to batch normalization's ε
        (`manifoldnet.symmetry.without_eps`), in evaluation mode too, since the running averages are
        scaled along. Factors are positive: "any real number" in the paper's (3) overlooks that a
        negative one flips the sign of the normalized feature.
        """
        generators = self._each_filter() if self.normalized else self._layers_and_channels()
        return ScalingGroup.of(self, generators)

    def _stack(
        self,
        layers: Iterable[nn.Linear | nn.Conv2d],
        normalization: Callable[[int], nn.Module],
        pooling: Callable[[], nn.Module],
    ) -> nn.Sequential:
        stack = nn.Sequential()
        for layer in layers:
            stack.append(layer)
            if self.normalized:
                stack.append(normalization(len(layer.weight)))
            stack.extend([nn.ReLU(), pooling()])
        return stack

    def _layers_and_channels(self) -> Iterator[Generator]:
        *others, last = [f"hidden.{name}" for name, _ in self.hidden.named_parameters()]
        features, columns = self.get_parameter(last).shape[0], self.head.in_features
        for weight in others:
            yield _against_head(weight, range(features), range(columns))
        tied, seen = features // self.channels, columns // self.channels
        for k in range(self.channels):
            yield _against_head(
                last, range(k * tied, (k + 1) * tied), range(k * seen, (k + 1) * seen)
            )

    def _each_filter(self) -> Iterator[Generator]:
        for (layer, _), (norm, module) in pairwise(self.hidden.named_children()):
            if isinstance(module, _BatchNorm):
                for i in range(module.num_features):
                    yield scaled_filter(f"hidden.{layer}", f"hidden.{norm}", i)


class _Dense(_Network):
    """Linear layers over rasterized images; pairs of features are pooled."""

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
        self.channels = features // 2
        widths = [inputs] + [self.channels] * (depth - 1)
        layers = (linear(features, width, generator) for width in widths)
        self.hidden = self._stack(layers, nn.BatchNorm1d, MaxPoolPairs)
        self.head = linear(classes, self.channels, generator)


class _Convolutional(_Network):
    """3x3 convolutions over images; space is pooled."""

    def __init__(
        self,
        image: Sequence[int],
        classes: int,
        *,
        depth: int = 2,
        features: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        inputs, height, width = image
        pixels = (height >> depth) * (width >> depth)
        if pixels == 0:
            raise ConfigError(
                f"depth is {depth}: 2x2 max-pooling, {depth} times, leaves nothing of "
                f"{height}x{width} images"
            )
        self.channels = features
        widths = [inputs] + [features] * (depth - 1)
        layers = (convolution(features, width, generator) for width in widths)
        self.hidden = self._stack(layers, nn.BatchNorm2d, partial(nn.MaxPool2d, 2))
        self.hidden.append(nn.Flatten())
        self.head = linear(classes, features * pixels, generator)


@final
class Arch1(_Dense):
    """The plain network: linear maps, ReLU, max-pooling, linear classifier.

    Args:
        inputs: pixels of an image, rasterized.
        classes: number of class scores.
        depth: hidden layers.
        features: filters per hidden layer; even.
        generator: source of the start; torch's global one by default.
    """

    normalized = False


@final
class Arch2(_Dense):
    """Arch1 with batch normalization (trainable scale and shift) before each ReLU.

    The normalization is torch's, with its default ε = 1e-5 and running averages for evaluation; the
    paper gives neither. The arguments are Arch1's.
    """

    normalized = True


@final
class ConvArch1(_Convolutional):
    """Arch1 with 3x3 convolutions (padded, so that size changes by pooling alone).

    Args:
        image: channels, height and width of an image.
        classes: number of class scores.
        depth: hidden layers; each halves height and width.
        features: filters per hidden layer.
        generator: source of the start; torch's global one by default.

    Raises:
        ConfigError: if pooling leaves nothing of such images.
    """

    normalized = False


@final
class ConvArch2(_Convolutional):
    """ConvArch1 with batch normalization before each ReLU, as in Arch2."""

    normalized = True


def build(
    architecture: str, data: Dataset, *, depth: int, features: int, seed: int
) -> Arch1 | Arch2:
    """The network that a configuration names, for the images of a data set."""
    networks: dict[str, type[Arch1] | type[Arch2]] = {"arch1": Arch1, "arch2": Arch2}
    start = seeded_generator(seed, "start")
    return networks[architecture](
        data.inputs, len(data.classes), depth=depth, features=features, generator=start
    )


def _against_head(weight: str, filters: range, columns: range) -> Generator:
    up = {Slice(weight, 0, i): 1 for i in filters}
    return Generator(up | {Slice("head.weight", 1, j): -1 for j in columns})
