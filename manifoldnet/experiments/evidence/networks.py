"""The networks: character-level transformers, a multilayer perceptron and a residual network.

Each gives scores ``(examples, classes)``: a transformer one row for each position. Queries, keys
and values are three matrices, where nanoGPT packs them into one, so that each method sees the
matrices that act. Of LayerNorm and RMSNorm ε is 1e-20, where nanoGPT has 1e-5: that would be larger
than the variance of a stream that a symmetry has made small.

The residual network is the one of fast runs on CIFAR-10 with widths w, 2w, 4w and 8w, residual
blocks behind the first and the last pooling, and the maximum over space in front of the head. Its
batch normalization has ε = 1e-12, since the variance of a unit that is dead is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    cross_entropy,
    gelu,
    linear,
    max_pool2d,
    relu,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.evidence.config import EvidenceConfig
from manifoldnet.symmetry import Generator, ScalingGroup, Slice

_EPS = 1e-20
_SMALL = 1e-12  # ε of batch normalization
_DEVIATION = 0.02  # of the first weights of a transformer


class Layer(nn.Module):
    """Attention and a multilayer perceptron, each behind a normalization."""

    def __init__(self, width: int, heads: int, modern: bool) -> None:
        super().__init__()
        self.heads, self.modern = heads, modern
        self.norms = nn.ModuleList(_norm(width, modern) for _ in range(2))
        self.query, self.key, self.value, self.out = (_matrix(width, width) for _ in range(4))
        hidden = 8 * round(width / 3) if modern else 4 * width
        if modern:
            self.gate = _matrix(width, hidden)
        self.up, self.down = _matrix(width, hidden), _matrix(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream behind the layer."""
        y = self.norms[0](x)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.modern:
            query, key = (_turned(rms_norm(t, t.shape[-1:], eps=_EPS)) for t in (query, key))
        y = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        hidden = silu(self.gate(y)) * self.up(y) if self.modern else gelu(self.up(y))
        return x + self.down(hidden)


def _norm(width: int, modern: bool) -> nn.Module:
    return nn.RMSNorm(width, _EPS) if modern else nn.LayerNorm(width, _EPS, bias=False)


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)


def _turned(x: Tensor) -> Tensor:
    """Rotary position embeddings: pairs of numbers, turned in proportion to the position."""
    positions, size = x.shape[-2:]
    rates = 10_000.0 ** -torch.arange(0, 1, 2 / size, device=x.device, dtype=x.dtype)
    angles = torch.arange(positions, device=x.device, dtype=x.dtype)[:, None] * rates
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Transformer(nn.Module):
    """Scores of the next character at each position."""

    def __init__(self, config: EvidenceConfig, characters: int) -> None:
        super().__init__()
        modern = config.network == "modern"
        self.tokens = nn.utils.skip_init(nn.Embedding, characters, config.width)
        self.positions = (
            None if modern else nn.utils.skip_init(nn.Embedding, config.block, config.width)
        )
        self.layers = nn.ModuleList(
            Layer(config.width, config.heads, modern) for _ in range(config.layers)
        )
        self.norm = _norm(config.width, modern)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw the first weights as nanoGPT does; those that write the stream are smaller."""
        writes = (2 * len(self.layers)) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim > 1:
                p.normal_(std=_DEVIATION, generator=generator)
                p.mul_(writes if name.endswith(("out.weight", "down.weight")) else 1.0)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of rows of characters, ``(rows · positions, characters)``."""
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return linear(self.norm(x), self.tokens.weight).flatten(0, 1)


class Perceptron(nn.Module):
    """Hidden layers with ReLU, and a linear head; no biases."""

    def __init__(self, config: EvidenceConfig, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        sizes = (prod(shape), *[config.width] * (config.layers - 1))
        self.layers = nn.ModuleList(_matrix(size, config.width) for size in sizes)
        self.head = _matrix(config.width, classes)

    def start(self, generator: torch.Generator) -> None:
        """Draw the first weights: normal with variance 2/inputs, of the head 1/inputs."""
        _start(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of rasterized images, ``(images, classes)``."""
        x = images
        for layer in self.layers:
            x = relu(layer(x))
        scores: Tensor = self.head(x)
        return scores


class Residual(nn.Module):
    """Convolutions with batch normalization and ReLU, two residual blocks, and a linear head."""

    def __init__(self, config: EvidenceConfig, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.shape, w = shape, config.width
        sizes = (w, 2 * w, 2 * w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Conv2d, i, o, 3, padding=1, bias=False)
            for i, o in pairwise((shape[0], *sizes))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size, _SMALL) for size in sizes)
        self.head = _matrix(sizes[-1], classes)

    def start(self, generator: torch.Generator) -> None:
        """Draw the first weights as those of the perceptron."""
        _start(self, generator)

    def _unit(self, k: int, x: Tensor) -> Tensor:
        return relu(self.norms[k](self.layers[k](x)))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of rasterized images, ``(images, classes)``."""
        x = self._unit(0, images.unflatten(1, self.shape))
        x = max_pool2d(self._unit(1, x), 2)
        x = x + self._unit(3, self._unit(2, x))
        x = max_pool2d(self._unit(4, x), 2)
        x = max_pool2d(self._unit(5, x), 2)
        x = x + self._unit(7, self._unit(6, x))
        scores: Tensor = self.head(x.amax((2, 3)))
        return scores


@torch.no_grad()
def _start(network: nn.Module, generator: torch.Generator) -> None:
    for name, p in network.named_parameters():
        if p.ndim > 1:
            p.normal_(generator=generator)
            p.mul_(((1 if name == "head.weight" else 2) / p[0].numel()) ** 0.5)


Network = Transformer | Perceptron | Residual


def build(config: EvidenceConfig, shape: Sequence[int], classes: int) -> Network:
    """The network of a configuration with its first weights, which the seed decides.

    Args:
        config: of the run.
        shape: of an image, ``(channels, height, width)``; of a text it has no part in it.
        classes: different characters, or classes of images.
    """
    network: Network
    if config.kind == "text":
        network = Transformer(config, classes)
    else:
        made = Residual if config.network == "resnet" else Perceptron
        network = made(config, shape, classes)
    network.start(seeded_generator(config.seed, "start"))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(config.start_size if p.ndim > 1 else 1.0)
    return network


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, averaged."""
    return cross_entropy(scores, targets.flatten())


def scalings(network: Network) -> ScalingGroup:
    """All scalings that leave the loss of a network invariant, but trivial ones.

    Rows of a matrix are scaled against the columns that read them, unless a function that is not
    homogeneous lies between them. So are the gains of a normalization, with its biases, and the
    columns behind it. Where queries and keys are normalized, those of each head have a scale of
    their own, and each filter in front of batch normalization has one. The last normalization of a
    transformer takes out the scale of the residual stream.
    """
    if isinstance(network, Transformer):
        found = _of_transformer(network)
    elif isinstance(network, Perceptron):
        found = _of_perceptron(network)
    else:
        found = _of_residual(network)
    return ScalingGroup.of(network, map(Generator, found))


Axis = tuple[str, int]
"""A parameter, and the dimension that indexes its slices."""


def _against(
    network: nn.Module, up: Sequence[Axis], down: Sequence[Axis]
) -> Iterator[dict[Slice, float]]:
    """For each index the slices of some axes times s, and those of others divided by s."""
    name, dim = up[0]
    for i in range(network.get_parameter(name).shape[dim]):
        yield {Slice(n, d, i): 1.0 for n, d in up} | {Slice(n, d, i): -1.0 for n, d in down}


def _of_transformer(network: Any) -> Iterator[dict[Slice, float]]:
    stream = {Slice("tokens.weight", None): 1.0, Slice("norm.weight", None): -1.0}
    if network.positions is not None:
        stream[Slice("positions.weight", None)] = 1.0
    for k, layer in enumerate(network.layers):
        name = f"layers.{k}.{{}}.weight".format
        attention = [(name(n), 1) for n in ("query", "key", "value")]
        hidden = [(name(n), 1) for n in (("gate", "up") if layer.modern else ("up",))]
        yield from _against(network, [(name("norms.0"), 0)], attention)
        yield from _against(network, [(name("norms.1"), 0)], hidden)
        yield from _against(network, [(name("value"), 0)], [(name("out"), 1)])
        if layer.modern:
            yield from _against(network, [(name("up"), 0)], [(name("down"), 1)])
            for each in ("query", "key"):
                for rows in torch.arange(layer.query.out_features).chunk(layer.heads):
                    yield {Slice(name(each), 0, i): 1.0 for i in rows.tolist()}
        else:
            yield from _against(network, [(name("query"), 0)], [(name("key"), 0)])
        stream |= {Slice(name("out"), None): 1.0, Slice(name("down"), None): 1.0}
    yield stream


def _of_perceptron(network: Any) -> Iterator[dict[Slice, float]]:
    names = [*(f"layers.{k}.weight" for k in range(len(network.layers))), "head.weight"]
    for one, following in pairwise(names):
        yield from _against(network, [(one, 0)], [(following, 1)])


# Normalizations whose outputs are added, and the layers that read the sum.
_READ = (
    ((0,), (1,)),
    ((1, 3), (2, 4)),
    ((2,), (3,)),
    ((4,), (5,)),
    ((5, 7), (6, -1)),
    ((6,), (7,)),
)


def _of_residual(network: Any) -> Iterator[dict[Slice, float]]:
    for k, layer in enumerate(network.layers):
        for i in range(layer.out_channels):
            yield {
                Slice(f"layers.{k}.weight", 0, i): 1.0,
                Slice(f"norms.{k}.running_mean", 0, i): 1.0,
                Slice(f"norms.{k}.running_var", 0, i): 2.0,
            }
    for written, readers in _READ:
        up = [(f"norms.{k}.{name}", 0) for k in written for name in ("weight", "bias")]
        down = [("head.weight" if k < 0 else f"layers.{k}.weight", 1) for k in readers]
        yield from _against(network, up, down)
