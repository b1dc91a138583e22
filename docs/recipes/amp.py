"""AMP: autocast and GradScaler. A step that overflows leaves the weights as they were."""

import torch
from torch import nn

import manifoldnet as mn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = torch.randn(256, 20, device=device)
labels = inputs[:, :5].argmax(1)

model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5)).to(device)
mn.declare(model, "0.weight", mn.Oblique(), project=True)  # stays float32
optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
scaler = torch.amp.GradScaler(device, init_scale=2.0**40)  # too large, so that steps are skipped

losses, skipped = [], 0
for _ in range(100):
    optimizer.zero_grad()
    with torch.autocast(device, dtype=torch.float16):  # bfloat16 needs no scaler
        loss = nn.functional.cross_entropy(model(inputs), labels)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # before gradients are clipped
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    before, scale = model[0].weight.detach().clone(), scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
    if scaler.get_scale() < scale:
        skipped += 1
        assert torch.equal(model[0].weight, before)
mn.verify(model)
print(f"{skipped} of 100 steps skipped, loss {losses[0]:.2f} → {losses[-1]:.2f}")
assert skipped > 0
assert losses[-1] < losses[0] / 2
