"""Training in the moving frame: `manifoldnet.symmetry.make_invariant` on the paper's networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry import networks, run
from manifoldnet.experiments.papers.symmetry.config import Epoch, Result
from manifoldnet.experiments.papers.symmetry.moving_frame.config import FRAME, FrameConfig
from manifoldnet.experiments.papers.updates import declare
from manifoldnet.symmetry import Generator, ScalingGroup, Slice


class Run(run.Run):
    """A network of the paper under training, in some coordinates."""

    def __init__(
        self, config: FrameConfig, data: Dataset, device: torch.device = training.PROCESSOR
    ) -> None:
        self.batch_size = config.batch_size
        self.network = self.start(config, data).to(device)
        self.optimizer = _optimizer(config, self.network)
        self.scheduler = ExponentialLR(self.optimizer, config.decay)
        self.generator = seeded_generator(config.seed, "order")

    def start(self, config: FrameConfig, data: Dataset) -> networks.Arch1 | networks.Arch2:
        """The network with its first weights, before anything is declared."""
        return networks.build(
            config.architecture,
            data,
            depth=config.depth,
            features=config.features,
            seed=config.seed,
        )


def _optimizer(config: FrameConfig, network: networks.Arch1 | networks.Arch2) -> Optimizer:
    if config.update == "scaled-metric":
        declare(network, "sm")
    if config.lr is None:
        raise ConfigError("lr is None: the runs of the grid choose it, and a run needs a number")
    decay: dict[str, Any] = {"weight_decay": config.weight_decay}
    groups: Any = network.named_parameters()
    made: Optimizer
    if config.optimizer == "sgd":
        made = mn.RiemannianSGD(groups, lr=config.lr, fused=True)
    elif config.update == "scaled-metric":
        made = mn.constrain(torch.optim.AdamW(mn.param_groups(network, **decay), lr=config.lr))
    else:
        made = torch.optim.AdamW(groups, lr=config.lr, **decay)
    if config.update == "moving-frame":
        mn.symmetry.make_invariant(made, network, whole_group(network))
    return made


def whole_group(network: networks.Arch1 | networks.Arch2) -> ScalingGroup:
    """All scalings that leave the loss of a network of the paper invariant, but trivial ones.

    A channel after pooling is scaled against the columns that read it: through the filters that
    are pooled into it, or, behind batch normalization, through their gains and biases. There each
    filter has a scale of its own besides.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm1d)]
    found = list(network.symmetries().generators) if norms else []
    scaled = [[f"{n}.weight", f"{n}.bias"] for n in norms] or [[f"{n}.weight"] for n in layers]
    for names, (following, layer) in zip(scaled, [*layers.items()][1:], strict=False):
        for k in range(layer.in_features):
            up = {Slice(name, 0, i): 1.0 for name in names for i in (2 * k, 2 * k + 1)}
            found.append(Generator(up | {Slice(f"{following}.weight", 1, k): -1.0}))
    return ScalingGroup.of(network, found)


EXPERIMENT: training.Experiment[FrameConfig, Epoch, Result] = training.Experiment(
    schema=FRAME,
    start=Run,
    parts=run.images_for,
    outcome=run.outcome,
    size_fields=("architecture", "batch_size", "train_size", "validation_size"),
)
