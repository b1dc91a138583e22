"""A plain PyTorch loop with checkpoint and resume: the resumed run has the same bits."""

import tempfile

import torch
from torch import nn

import manifoldnet as mn

path = f"{tempfile.mkdtemp()}/checkpoint.pt"


def train(steps, resume=False):
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 5))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)  # every row a unit vector
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    if resume:
        saved = torch.load(path, weights_only=True)
        mn.load_state_dict(model, saved["model"])  # refuses weights that are off their manifolds
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
    for step in steps:
        inputs = torch.randn(32, 20)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), inputs[:, :5].argmax(1)).backward()
        optimizer.step()
        schedule.step()
        if step == 19:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "random": torch.get_rng_state()}, path)
    return model.state_dict()


whole, resumed = train(range(40)), train(range(20, 40), resume=True)
assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
print("resumed at step 20 of 40, the weights at the end have the same bits")
