"""Hugging Face Trainer with `optimizer_cls_and_kwargs`: weight decay and declared weights."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import manifoldnet as mn

words = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))
data = [{"input_ids": row, "labels": row[0] % 2} for row in words]
sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
config = BertConfig(vocab_size=50, num_hidden_layers=2, max_position_embeddings=8, **sizes)
options = {"lr": 1e-2, "decoupled_weight_decay": True}  # not read from TrainingArguments


def train(weight_decay):
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    mn.declare_all(model, mn.rules.transformer(words[:2]), project=True)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), max_steps=20, weight_decay=weight_decay, report_to=[], use_cpu=True
    )
    choice = (mn.RiemannianAdam, options)
    Trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=choice).train()
    mn.verify(model)  # the declared matrices did not decay
    return model.classifier.weight.norm()


without, decayed = train(0.0), train(5.0)
print(f"norm of the classifier, which is free: {decayed:.2f}, without decay {without:.2f}")
assert decayed < 0.9 * without
