"""Train by AdamW, or by Muon and AdamW, with the rows of hidden layers on unit spheres."""

import torch
from torch import nn

import manifoldnet as mn


def adamw(model):
    groups = mn.param_groups(model, lr=1e-2, free={"weight_decay": 0.1})
    return [mn.constrain(torch.optim.AdamW(groups))]


def muon(model):
    declared, free = mn.param_groups(model)
    directions = mn.optim.Muon([declared], lr=2e-2, weight_decay=0.0)
    return [mn.constrain(directions), torch.optim.AdamW([free], lr=1e-2, weight_decay=0.1)]


torch.manual_seed(0)
inputs = torch.randn(256, 16)
labels = (inputs[:, :4] * inputs[:, 4:8]).argmax(1)
for optimizers_of in (adamw, muon):
    hidden = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(64, 4))
    mn.declare_all(model, mn.rules.unit_norm(classifier="4"), project=True)
    optimizers = optimizers_of(model)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    mn.verify(model)
    print(f"{optimizers_of.__name__}: loss {loss:.2f}, with rows of unit norm")
    assert loss < 0.3
