"""torch.compile of the model and of the optimizer's step, with a learning rate that changes."""

import torch
from torch import nn

import manifoldnet as mn

device = "cuda" if torch.cuda.is_available() else "cpu"
backend = "inductor" if device == "cuda" else "aot_eager"  # inductor takes minutes on a CPU
inputs = torch.randn(256, 20, device=device)
labels = inputs[:, :5].argmax(1)


def train(compiled):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5)).to(device)
    mn.declare(model, "0.weight", mn.Oblique(), project=True)  # before or after compiling
    lr = torch.tensor(0.1, device=device)  # each change of a number would recompile
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    forward, step = model, optimizer.step
    if compiled:
        forward, step = (torch.compile(f, backend=backend) for f in (model, optimizer.step))
    for number in range(20):
        torch.compiler.set_stance("default" if number < 2 else "fail_on_recompile")
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(inputs), labels).backward()
        step()
        schedule.step()
    mn.verify(model)
    return model[0].weight.detach()


difference = (train(compiled=True) - train(compiled=False)).abs().max().item()
print(f"20 steps, no compilation after the second, difference to plain steps {difference:.0e}")
assert difference < 1e-5
