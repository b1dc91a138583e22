"""FSDP2: unit-norm columns, cut by the sharding, train as on one process."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import manifoldnet as mn

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = dist.get_rank(), dist.get_world_size()


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
    mn.declare(model, "0.weight", mn.Oblique(dim=1), project=True)  # columns, which are sharded
    return model


def train(model, part):
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)  # made after sharding
    data = torch.Generator().manual_seed(1)
    for _ in range(20):
        inputs = torch.randn(64, 20, generator=data)[part]  # in practice a DistributedSampler
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), inputs[:, :5].argmax(1)).backward()
        optimizer.step()
    mn.verify(model)  # on every process
    return model[0].weight


alone = train(start(), slice(None))  # the whole batch on one process
sharded = train(fully_shard(start()), slice(rank, None, world))
difference = (alone - sharded.full_tensor()).abs().max().item()
print(f"process {rank}: {len(sharded.to_local())} of {len(alone)} rows, off by {difference:.0e}")
assert difference < 1e-5
dist.destroy_process_group()
