"""Save weights and their declarations, load both into a new model, and go on training."""

import json
from pathlib import Path

import torch
from torch import nn

import manifoldnet as mn


def build():  # or from_pretrained, whose models have no declarations
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def train(model, optimizer):
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


torch.manual_seed(0)
inputs, labels, model = torch.randn(64, 16), torch.randint(4, (64,)), build()
mn.declare(model, "0.weight", mn.Oblique(), project=True)
optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
train(model, optimizer)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "run.pt")
Path("declarations.json").write_text(json.dumps(mn.spec(model)))

saved, again = torch.load("run.pt"), build()
again.load_state_dict(saved["model"])
mn.declare_from(again, json.loads(Path("declarations.json").read_text()))
resumed = mn.RiemannianAdam(mn.param_groups(again), lr=1e-2)
resumed.load_state_dict(saved["optimizer"])
assert train(again, resumed) == train(model, optimizer)
print("resumed as if there had been no break")
