"""The published recipes train a transformer on characters of Python's documentation."""

from __future__ import annotations

import pytest
import torch
from characters import MATRICES, Transformer, encoded
from published_recipes import PAGE, RECIPES
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import manifoldnet as mn

BLOCK, WIDTH, LAYERS = 16, 32, 2


def prepared(recipe: str, characters: int) -> tuple[Transformer, Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(characters, width=WIDTH, block=BLOCK, layers=LAYERS)
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
    text = encoded()
    data, characters = text.codes, len(text.alphabet)
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
