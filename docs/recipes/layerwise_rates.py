"""Fine-tune with a learning rate for each layer, a warm-up and a cosine schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import manifoldnet as mn

torch.manual_seed(0)
inputs = torch.randn(256, 16)
labels = inputs[:, :4].argmax(1)
layers = [nn.Sequential(nn.Linear(n, 32), nn.ReLU()) for n in (16, 32, 32)]
model = nn.Sequential(*layers, nn.Linear(32, 4))  # your pretrained model goes here
mn.declare_all(model, mn.rules.unit_norm(classifier="3"), project=True)

# One group for each layer: the last has the rate 0.02, every layer in front of it half as much.
groups = [
    {"params": list(layer.named_parameters(str(place))), "lr": 2e-2 * 0.5 ** (3 - place)}
    for place, layer in enumerate(model)
]
optimizer = mn.RiemannianAdam(groups)  # a group may mix declared and free weights
warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=10)
cosine = CosineAnnealingLR(optimizer, T_max=50)
schedule = SequentialLR(optimizer, [warm_up, cosine], milestones=[10])

with mn.optim.Angles(model) as turned:  # how far the rows turn, from here to the end of the block
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
mn.verify(model)
angles = [turned.angle[f"{place}.0.weight"] for place in range(3)]
print(f"loss {loss:.2f}; rows turned by", *(f"{angle:.2f}" for angle in angles), "radians")
assert loss < 0.5
assert angles[0] < angles[1] < angles[2]
