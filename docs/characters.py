"""A small transformer on characters of Python's own documentation strings.

The tests of the published recipes and `docs/learning_rates.py` train it. The strings are those of
the Python that runs, so that their fingerprint tells two texts apart.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import pathlib
import textwrap
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from manifoldnet.experiments.text import Text

HEADS = 4
MATRICES = ("qkv", "out", "up", "down")


def text() -> str:
    """Docstrings of the standard library."""
    found = []
    for module in (argparse, json, logging, pathlib, textwrap):
        members = [value for _, value in inspect.getmembers(module, inspect.isclass)]
        found += [inspect.getdoc(value) or "" for value in (module, *members)]
    return "\n".join(found)


@cache
def encoded() -> Text:
    """The text as numbers of characters."""
    return Text.of("docstrings of classes", text())


class Layer(nn.Module):
    """Attention and a multilayer perceptron, each behind a layer normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream behind the layer."""
        parts = self.qkv(self.first(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        query, key, value = parts.chunk(3, 1)
        y = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Scores of the next character at each of at most `block` places."""

    def __init__(self, characters: int, *, width: int, block: int, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, width)
        self.places = nn.Embedding(block, width)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of rows of characters."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        logits: Tensor = self.head(self.norm(self.layers(x)))
        return logits
