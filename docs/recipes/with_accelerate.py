"""accelerate: prepare, accumulate gradients, clip, save_state and load_state."""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn

import manifoldnet as mn

accelerator = Accelerator(gradient_accumulation_steps=2)
inputs = torch.randn(128, 20)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :5].argmax(1))
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
mn.declare(model, "0.weight", mn.Oblique(), project=True)  # before the optimizer is made
optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)


def train(epochs):
    for batch, labels in (pair for _ in range(epochs) for pair in loader):
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(batch), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return [weight.detach().clone() for weight in model.parameters()]


saved, folder = train(4), accelerator.save_state(tempfile.mkdtemp())
whole = train(4)
accelerator.load_state(folder)
assert all(map(torch.equal, whole, train(4)))
assert not torch.equal(whole[0], saved[0])
print("resumed after 4 of 8 epochs, the weights at the end have the same bits")
