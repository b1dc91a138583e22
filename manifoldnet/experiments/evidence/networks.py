"""The networks: character-level transformers and a multilayer perceptron.

Each gives scores ``(examples, classes)``: a transformer one row for each place. Queries, keys and
values are three matrices, where nanoGPT packs them into one, so that each method sees the matrices
that act. Of LayerNorm and RMSNorm ε is 1e-12, where nanoGPT has 1e-5: that would be larger than the
variance of a stream that a symmetry has made small.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
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
from manifoldnet.symmetry import ScalingGroup, discover

_EPS = 1e-12
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


def scalings(config: EvidenceConfig, network: nn.Module) -> ScalingGroup:
    """All scalings that leave the loss of a network invariant, but trivial ones.

    They are discovered on a narrow copy, and written for the network.
    """
    inputs, classes = _sizes(network)
    wide = replace(config, batch_size=4)
    return _narrow(config.network, min(config.layers, 3)).widen(
        network, loss, _batch(wide, inputs, classes)
    )


@lru_cache
def _narrow(network: str, layers: int) -> ScalingGroup:
    """The group of a narrow copy; three layers stand for any larger number."""
    config = EvidenceConfig(
        network=network, width=4, heads=2, layers=layers, block=3, batch_size=64
    )
    made = build(config, 5, 5).double()
    return discover(made, loss, [_batch(config, 5, 5, torch.float64)]).nontrivial


def _sizes(network: nn.Module) -> tuple[int, int]:
    if isinstance(network, Transformer):
        return network.tokens.num_embeddings, network.tokens.num_embeddings
    first: Any = network.get_parameter("layers.0.weight")
    return first.shape[1], network.get_parameter("head.weight").shape[0]


def _batch(
    config: EvidenceConfig, inputs: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Random examples, by which symmetries are found and verified."""
    source = seeded_generator(0, "symmetries")
    if config.kind == "text":
        ids = torch.randint(inputs, (config.batch_size, config.block + 1), generator=source)
        return ids[:, :-1], ids[:, 1:]
    images = torch.randn(config.batch_size, inputs, generator=source, dtype=dtype)
    return images, torch.randint(classes, (config.batch_size,), generator=source)
