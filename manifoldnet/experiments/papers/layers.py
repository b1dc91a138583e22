"""Layers initialized as in the symmetry paper, for the networks of every paper.

Weights are drawn from a standard Gaussian; each filter, and each row of a
linear layer, is then scaled to unit norm. No layer has a bias.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from manifoldnet.symmetry import Generator, Slice

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)

# skip_init: the layers' own initialization would draw from torch's global generator only to be
# overwritten.


def linear(rows: int, columns: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear map from `columns` to `rows` features."""
    return _unit_norm(nn.utils.skip_init(nn.Linear, columns, rows, bias=False), generator)


def convolution(filters: int, channels: int, generator: torch.Generator | None) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width."""
    layer = nn.utils.skip_init(nn.Conv2d, channels, filters, 3, padding=1, bias=False)
    return _unit_norm(layer, generator)


def _unit_norm(layer: _Layer, generator: torch.Generator | None) -> _Layer:
    weight = layer.weight
    with torch.no_grad():
        weight.normal_(generator=generator)
        weight /= torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return layer


def scaled_filter(layer: str, normalization: str, i: int) -> Generator:
    """The scaling of filter i before a batch normalization, and of its running averages."""
    return Generator(
        {
            Slice(f"{layer}.weight", 0, i): 1,
            Slice(f"{normalization}.running_mean", 0, i): 1,
            Slice(f"{normalization}.running_var", 0, i): 2,
        }
    )
