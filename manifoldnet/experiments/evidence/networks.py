"""The networks: character-level transformers and a multilayer perceptron.

Each gives scores ``(examples, classes)``: a transformer one row for each place. Queries, keys and
values are three matrices, where nanoGPT packs them into one, so that each method sees the matrices
that act. Of LayerNorm and RMSNorm ε is 1e-20, where nanoGPT has 1e-5: that would be larger than the
variance of a stream that a symmetry has made small.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    cross_entropy,
    gelu,
    linear,
    relu,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.evidence.config import EvidenceConfig
from manifoldnet.symmetry import Generator, ScalingGroup, Slice

_EPS = 1e-20
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
    """Rotary places: pairs of numbers, turned by angles that grow with the place."""
    places, size = x.shape[-2:]
    rates = 10_000.0 ** -torch.arange(0, 1, 2 / size, device=x.device, dtype=x.dtype)
    angles = torch.arange(places, device=x.device, dtype=x.dtype)[:, None] * rates
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Transformer(nn.Module):
    """Scores of the next character at each place."""

    def __init__(self, config: EvidenceConfig, characters: int) -> None:
        super().__init__()
        modern = config.network == "modern"
        self.tokens = nn.utils.skip_init(nn.Embedding, characters, config.width)
        self.places = (
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
        """Scores of rows of characters, ``(rows · places, characters)``."""
        x = self.tokens(ids)
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return linear(self.norm(x), self.tokens.weight).flatten(0, 1)


class Perceptron(nn.Module):
    """Hidden layers with ReLU, and a linear head; no biases."""

    def __init__(self, config: EvidenceConfig, inputs: int, classes: int) -> None:
        super().__init__()
        sizes = (inputs, *[config.width] * (config.layers - 1))
        self.layers = nn.ModuleList(_matrix(size, config.width) for size in sizes)
        self.head = _matrix(config.width, classes)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw the first weights: normal with variance 2/inputs, of the head 1/inputs."""
        for name, p in self.named_parameters():
            p.normal_(generator=generator)
            p.mul_(((1 if name == "head.weight" else 2) / p.shape[1]) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of rasterized images, ``(images, classes)``."""
        x = images
        for layer in self.layers:
            x = relu(layer(x))
        scores: Tensor = self.head(x)
        return scores


def build(config: EvidenceConfig, inputs: int, classes: int) -> Transformer | Perceptron:
    """The network of a configuration with its first weights, which the seed decides.

    Args:
        config: of the run.
        inputs: different characters, or pixels of an image.
        classes: the same characters, or classes of images.
    """
    network = (
        Transformer(config, inputs)
        if config.kind == "text"
        else Perceptron(config, inputs, classes)
    )
    network.start(seeded_generator(config.seed, "start"))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(config.start_size if p.ndim > 1 else 1.0)
    return network


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, averaged."""
    return cross_entropy(scores, targets.flatten())


def scalings(network: Transformer | Perceptron) -> ScalingGroup:
    """All scalings that leave the loss of a network invariant, but trivial ones.

    Each unit between two matrices trades its rows in the first against its columns in the second,
    unless a function that is not homogeneous lies between them. So do the gains of a normalization
    and the columns behind it. Where queries and keys are normalized, those of each head have a
    scale of their own. The last normalization takes out the scale of the residual stream.
    """
    found = _of_transformer if isinstance(network, Transformer) else _of_perceptron
    return ScalingGroup.of(network, map(Generator, found(network)))


Axis = tuple[str, int]
"""A parameter, and the dimension that indexes its slices."""


def _traded(network: nn.Module, up: Axis, *down: Axis) -> Iterator[dict[Slice, float]]:
    """For each index the slice of one axis times s, and those of the others divided by s."""
    name, dim = up
    for i in range(network.get_parameter(name).shape[dim]):
        yield {Slice(name, dim, i): 1.0} | {Slice(n, d, i): -1.0 for n, d in down}


def _of_transformer(network: Any) -> Iterator[dict[Slice, float]]:
    stream = {Slice("tokens.weight", None): 1.0, Slice("norm.weight", None): -1.0}
    if network.places is not None:
        stream[Slice("places.weight", None)] = 1.0
    for k, layer in enumerate(network.layers):
        name = f"layers.{k}.{{}}.weight".format
        attention = [(name(n), 1) for n in ("query", "key", "value")]
        hidden = [(name(n), 1) for n in (("gate", "up") if layer.modern else ("up",))]
        yield from _traded(network, (name("norms.0"), 0), *attention)
        yield from _traded(network, (name("norms.1"), 0), *hidden)
        yield from _traded(network, (name("value"), 0), (name("out"), 1))
        if layer.modern:
            yield from _traded(network, (name("up"), 0), (name("down"), 1))
            for each in ("query", "key"):
                for rows in torch.arange(layer.query.out_features).chunk(layer.heads):
                    yield {Slice(name(each), 0, i): 1.0 for i in rows.tolist()}
        else:
            yield from _traded(network, (name("query"), 0), (name("key"), 0))
        stream |= {Slice(name("out"), None): 1.0, Slice(name("down"), None): 1.0}
    yield stream


def _of_perceptron(network: Any) -> Iterator[dict[Slice, float]]:
    names = [*(f"layers.{k}.weight" for k in range(len(network.layers))), "head.weight"]
    for one, following in pairwise(names):
        yield from _traded(network, (one, 0), (following, 1))
