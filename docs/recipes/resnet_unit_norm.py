"""Fine-tune a ResNet with unit-norm filters: batch normalization ignores their lengths."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

import manifoldnet as mn


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)

    def forward(self, x):
        return relu(x + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


torch.manual_seed(0)
stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
model = nn.Sequential(stem, Block(8), Block(8), nn.Flatten(), nn.Linear(512, 8))
labels = torch.arange(256) % 8  # the class is the bright row; your data goes here
images = torch.rand(256, 1, 8, 8)
images[torch.arange(256), 0, labels] += 0.5

before = model(images)  # in practice after model.load_state_dict(...)
mn.declare_all(model, mn.rules.unit_norm(classifier="4"), project=True)
assert torch.allclose(model(images), before, atol=1e-3)  # the same function: nothing is lost

optimizer = mn.RiemannianSGD(mn.param_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
for _ in range(20):
    optimizer.zero_grad()
    loss = cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
mn.verify(model)  # every filter is a unit vector, or this is an error
print(f"loss {loss:.2f}: trained, with unit filters")
assert loss < 0.5
