"""bf16: float32 weights under autocast, against weights that are bfloat16 themselves."""

import torch
from torch import nn

import manifoldnet as mn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = torch.randn(256, 20, device=device)
labels = inputs[:, :5].argmax(1)


def train(dtype):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5)).to(device, dtype)
    mn.declare(model, "0.weight", mn.Oblique(), project=True)  # rows are unit vectors
    start = model[0].weight.detach().clone()
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-4)
    for _ in range(100):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    mn.verify(model)  # the tolerance is that of the weight's type
    moved = (model[0].weight != start).float().mean().item()
    off = mn.violations(model)["0.weight"]
    print(f"{dtype}: norms of rows off by {off:.0e}, {moved:.0%} of the entries have moved")
    return off, moved


(off, moved), (off_bf16, moved_bf16) = train(torch.float32), train(torch.bfloat16)
assert off < 1e-6 < off_bf16 < 1e-2
assert moved_bf16 < moved / 2  # most steps are smaller than half a unit in the last place
