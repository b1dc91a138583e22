"""Hugging Face Trainer with `optimizers=`: a small GPT-2, checkpoint and resume."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import manifoldnet as mn

words = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))
data = [{"input_ids": row, "labels": row} for row in words]
ends = {"bos_token_id": None, "eos_token_id": None}
config = GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2, **ends)
folder = tempfile.mkdtemp()
often = {"save_steps": 10, "logging_steps": 10}
arguments = TrainingArguments(folder, max_steps=20, report_to=[], use_cpu=True, **often)


def train(resume=None):
    set_seed(0)
    model = GPT2LMHeadModel(config)
    mn.declare_all(model, mn.rules.transformer(words[:2]), project=True)
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule))
    loss = trainer.train(resume_from_checkpoint=resume).training_loss
    mn.verify(model)
    return model.state_dict(), loss


whole, loss = train()
resumed, loss_of_second_half = train(f"{folder}/checkpoint-10")
assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
assert loss_of_second_half < loss
print("resumed at step 10 of 20, the weights at the end have the same bits")
