"""DDP: two processes with half a batch each train as one process with the whole batch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import manifoldnet as mn

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = dist.get_rank(), dist.get_world_size()


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)  # before or after wrapping
    return model


def train(model, part):
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
    data = torch.Generator().manual_seed(1)
    for _ in range(20):
        inputs = torch.randn(64, 20, generator=data)[part]  # in practice a DistributedSampler
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), inputs[:, :5].argmax(1)).backward()
        optimizer.step()
    mn.verify(model)  # on every process


alone, shared = start(), start()
train(alone, slice(None))  # the whole batch, as one process
train(DistributedDataParallel(shared), slice(rank, None, world))
difference = (alone[0].weight - shared[0].weight).abs().max().item()
print(f"process {rank} of {world}: difference to one process {difference:.0e}")
assert difference < 1e-5
dist.destroy_process_group()
