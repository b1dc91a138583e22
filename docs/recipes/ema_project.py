"""Average the weights during training (EMA), then put the average back on its manifolds."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import manifoldnet as mn

torch.manual_seed(0)
inputs = torch.randn(512, 16)
labels = inputs[:, :4].argmax(1)
model = nn.Sequential(
    nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)
)
mn.declare(model, "0.weight", mn.Oblique(), project=True)
optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.2, momentum=0.9)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # a copy, declared as well

for _ in range(60):
    rows = torch.randperm(512)[:64]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
    optimizer.step()
    average.update_parameters(model)

off = max(mn.violations(average).values())  # an average of unit vectors is shorter than one
mn.project_(average)
update_bn(inputs.split(64), average)  # running averages belong to the weights as they are now
average.eval()
right = (average(inputs).argmax(1) == labels).float().mean()
print(f"the average was off by {off:.0e}, and is off by {max(mn.violations(average).values()):.0e}")
print(f"{right:.0%} of the labels are right")
assert off > 1e-4
assert right > 0.9
mn.verify(average)
