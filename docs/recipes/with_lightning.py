"""Lightning, automatic optimization: clip, schedule, checkpoint, resume."""

import lightning as L
import torch
from torch import nn

import manifoldnet as mn

data = torch.utils.data.TensorDataset(torch.randn(128, 20), torch.randint(5, (128,)))


class Network(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
        mn.declare(self, "layers.0.weight", mn.Oblique(), project=True)  # rows are unit vectors

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = mn.RiemannianAdam(mn.param_groups(self), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def train(epochs, **options):
    L.seed_everything(0)
    quiet = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=epochs, gradient_clip_val=1.0, **quiet)
    trainer.fit(model := Network(), torch.utils.data.DataLoader(data, batch_size=16), **options)
    trainer.save_checkpoint("lightning.ckpt")
    return model.layers[0].weight


whole, half, resumed = train(8), train(4), train(8, ckpt_path="lightning.ckpt")
assert torch.equal(whole, resumed)
assert not torch.equal(half, resumed)
print("resumed after 4 of 8 epochs, the weights at the end have the same bits")
