"""Distributed checkpoint: save under FSDP2, resume under FSDP2, and in one process."""

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import Linear, Sequential, Tanh

import manifoldnet as mn


def start(shard):
    model = Sequential(Linear(20, 32), Tanh(), Linear(32, 5))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    model = fully_shard(model) if shard else model
    return model, mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)


def train(model, optimizer):
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(torch.eye(20)), torch.arange(20) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


torch.distributed.init_process_group("gloo")  # "nccl" on GPUs
run = start(shard=True)
first = train(*run)
saved = dict(zip(("model", "optimizer"), get_state_dict(*run), strict=True))
dcp.save(saved, checkpoint_id="checkpoint")
whole = train(*run)
for again in (start(shard=True), start(shard=False)):  # the second is not sharded
    saved = dict(zip(("model", "optimizer"), get_state_dict(*again), strict=True))
    dcp.load(saved, checkpoint_id="checkpoint")
    set_state_dict(*again, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    assert abs(train(*again) - whole) < 1e-5 < first - whole
print(f"loss {first:.3f}, then {whole:.3f} in all three runs")
