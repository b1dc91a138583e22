"""Lightning, manual optimization: two optimizers, one of them constrained, and accumulation."""

import lightning as L
import torch
from torch import nn

import manifoldnet as mn


class Network(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
        mn.declare(self, "layers.0.weight", mn.Oblique(), project=True)  # rows are unit vectors

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.manual_backward(loss / 2)
        if index % 2:  # a step for every second batch
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        self.log("loss", loss)

    def configure_optimizers(self):
        declared, free = mn.param_groups(self)
        constrained = mn.constrain(torch.optim.AdamW([declared], lr=1e-2))
        return constrained, torch.optim.AdamW([free], lr=1e-2)


L.seed_everything(0)
inputs = torch.randn(512, 20)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :5].argmax(1))
trainer = L.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(model := Network(), torch.utils.data.DataLoader(data, batch_size=16))
mn.verify(model)
print("loss", loss := trainer.callback_metrics["loss"].item(), mn.violations(model))
assert loss < 0.8  # chance is log 5 = 1.6
