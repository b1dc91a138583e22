"""The published recipes train a transformer on characters of Python's documentation."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import pathlib
import textwrap

import pytest
import torch
from published_recipes import PAGE, RECIPES
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.optim import Optimizer

import manifoldnet as mn

BLOCK, WIDTH, LAYERS, HEADS = 16, 32, 2, 4
MATRICES = ("qkv", "out", "up", "down")


def text() -> str:
    """Docstrings of the standard library."""
    found = []
    for module in (argparse, json, logging, pathlib, textwrap):
        members = [value for _, value in inspect.getmembers(module, inspect.isclass)]
        found += [inspect.getdoc(value) or "" for value in (module, *members)]
    return "\n".join(found)


def encoded() -> tuple[Tensor, int]:
    characters = text()
    alphabet = {c: i for i, c in enumerate(sorted(set(characters)))}
    return torch.tensor([alphabet[c] for c in characters]), len(alphabet)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        y = scaled_dot_product_attention(*parts.chunk(3, 1), is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, WIDTH)
        self.places = nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.layers(x)))


def prepared(recipe: str, characters: int) -> tuple[Transformer, Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(characters)
        if recipe == "lora":
            for layer in model.layers:
                for name in MATRICES:
                    setattr(layer, name, PAGE["Adapter"](getattr(layer, name), 4))
    names = [f"layers.{i}.{name}.weight" for i in range(LAYERS) for name in MATRICES]
    tokens = torch.zeros(1, BLOCK, dtype=torch.long)
    return model, PAGE[recipe](model, tokens if recipe == "ngpt" else names)


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_a_transformer(recipe: str) -> None:
    """The declared weights alone are trained, so that the fall of the loss is theirs."""
    data, characters = encoded()
    model, optimizer = prepared(recipe, characters)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(30):
        starts = torch.randint(len(data) - BLOCK, (32, 1), generator=generator)
        ids = data[starts + torch.arange(BLOCK + 1)]
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    found = torch.stack(losses)
    assert found.isfinite().all()
    assert found[-5:].mean() < found[:5].mean() - 0.2
    mn.verify(model)
