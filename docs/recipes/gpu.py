"""GPU: the kernels of `fused=True`, and the whole training step as a CUDA graph."""

import torch
from torch import nn

import manifoldnet as mn

on_gpu = torch.cuda.is_available()
device = "cuda" if on_gpu else "cpu"  # on a CPU: the C++ kernel, and no graph
inputs, last = torch.randn(256, 20, device=device), torch.zeros((), device=device)
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5)).to(device)
mn.declare(model, "0.weight", mn.Oblique(), project=True)
lr = torch.tensor(1e-2, device=device)  # a schedule writes into it, and the graph reads it
optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=lr, fused=True, capturable=on_gpu)


def step():
    optimizer.zero_grad(set_to_none=False)  # gradients keep their place in memory
    loss = nn.functional.cross_entropy(model(inputs), inputs[:, :5].argmax(1))
    loss.backward()
    optimizer.step()
    last.copy_(loss.detach())


step()  # kernels are compiled, and the optimizer's state is made
if on_gpu:
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        step()
run = graph.replay if on_gpu else step
for _ in range(100):
    inputs.normal_()  # the next batch, in the same memory
    run()
mn.verify(model)
print(f"{device}: loss {last:.2f}, {mn.violations(model)}")
assert last < 0.8  # chance is log 5 = 1.6
