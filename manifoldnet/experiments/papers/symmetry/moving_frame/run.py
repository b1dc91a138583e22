"""Training in the moving frame: `manifoldnet.symmetry.make_invariant` on the paper's networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.symmetry import networks, run
from manifoldnet.experiments.papers.symmetry.config import Epoch, Result
from manifoldnet.experiments.papers.symmetry.moving_frame.config import (
    FRAME,
    TABLE_SCHEMA,
    FrameConfig,
    TableConfig,
)
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
        self.scheduler = run.schedule(config, self.optimizer)
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


@final
class Together(Optimizer):
    """Optimizers that step one after the other, as one with the groups of all.

    Args:
        parts: of different parameters.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([p for part in parts for g in part.param_groups for p in g["params"]], {})
        self.parts = parts
        self._share_groups()

    def _share_groups(self) -> None:
        """Take the groups of the parts: a schedule changes their rates."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    # Narrower than torch's: each part would evaluate a closure anew.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of the parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _optimizer(config: FrameConfig, network: networks.Arch1 | networks.Arch2) -> Optimizer:
    if config.update == "scaled-metric":
        declare(network, "sm" if config.retraction == "additive" else "sm-geodesic")
    if config.lr is None:
        raise ConfigError("lr is None, to be chosen by the study, and a run needs a number")
    if config.optimizer == "sgd":
        parts: list[Optimizer] = [
            mn.RiemannianSGD(network.named_parameters(), lr=config.lr, fused=True)
        ]
    else:
        parts = _parts(config, network, config.lr)
        if config.update == "scaled-metric":
            parts = [mn.constrain(part) for part in parts]
    if config.update == "moving-frame":
        mn.symmetry.make_invariant(parts, network, whole_group(network))
    return parts[0] if len(parts) == 1 else Together(parts)


def _parts(
    config: FrameConfig, network: networks.Arch1 | networks.Arch2, lr: float
) -> list[Optimizer]:
    """AdamW for all parameters; or Muon for matrices of hidden layers, and AdamW for the rest."""
    groups: list[dict[str, Any]] = [
        {"params": [*network.named_parameters()], "weight_decay": config.weight_decay}
    ]
    if config.update == "scaled-metric":
        groups = mn.param_groups(network, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(groups, lr=lr)]
    hidden = {id(m.weight) for m in network.hidden.modules() if isinstance(m, nn.Linear)}

    def some(inside: bool) -> list[dict[str, Any]]:
        found = [
            {
                "params": [(n, p) for n, p in group["params"] if (id(p) in hidden) is inside],
                "weight_decay": group["weight_decay"],
            }
            for group in groups
        ]
        return [group for group in found if group["params"]]

    muon = mn.optim.Muon(some(True), lr=lr, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(some(False), lr=lr)]


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

TABLE: training.Experiment[TableConfig, Epoch, Result] = training.Experiment(
    schema=TABLE_SCHEMA,
    start=Run,
    parts=run.images_for,
    outcome=run.outcome,
    size_fields=run.EXPERIMENT.size_fields,
    choose=partial(run.select, start=Run),
    stopping_rule=run.stopping_rule,
)
"""The cells of Table 2 with other optimizers."""
