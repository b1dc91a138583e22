"""A convnet and a classification stage under training, for the loop of all experiments.

    images -> `ModulusFeatures` -> stage -> scores

trained by SGD with one learning rate for all weights, without momentum. For ``"rescaled"`` the
stage's matrix is on its sphere, where `RiemannianSGD` is the paper's step and rescaling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments import sources
from manifoldnet.experiments.data import Dataset, Images, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.loop import Experiment, Notice, Stateful
from manifoldnet.experiments.scale_invariant.config import ARCHITECTURES, StageConfig
from manifoldnet.experiments.scale_invariant.parts import Parts, make_parts
from manifoldnet.experiments.scale_invariant.rows import SCALE_INVARIANT, StageEpoch, StageResult
from manifoldnet.experiments.scale_invariant.stages import build_stage
from manifoldnet.nn import ModulusFeatures

_EVALUATION_BATCH = 200


class Run:
    """What changes while a run goes on: network, optimizer, source of randomness.

    Args:
        config: what is trained.
        data: decides the sizes of the network.

    Raises:
        ConfigError: without a learning rate, or when stage or images do not fit.
    """

    def __init__(self, config: StageConfig, data: Dataset) -> None:
        if config.lr is None:
            raise ConfigError("lr is None; a run needs a number")
        self.config = config
        start = seeded_generator(config.seed, "start")
        architecture = ARCHITECTURES[config.architecture]
        try:
            features = ModulusFeatures(
                data.train_images.shape[1:],
                architecture.widths,
                architecture.kernels,
                generator=start,
            )
            stage, self.loss = build_stage(config, features.out_features, len(data.classes), start)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.network = nn.Sequential(features, stage)
        self.matrix: Tensor | None = getattr(stage, "weight", None)
        self.optimizer = mn.RiemannianSGD(mn.param_groups(self.network), lr=config.lr)
        self.generator = seeded_generator(config.seed, "order")

    @property
    def stateful(self) -> Stateful:
        """See `loop.Run`."""
        return {
            "model": self.network,
            "optimizer": self.optimizer,
            "generator": self.generator,
        }

    def epoch(self, number: int, parts: Parts) -> StageEpoch:
        """Trains one epoch and evaluates."""
        began = time.perf_counter()
        measured = self.train_pass(parts)
        trained = time.perf_counter()
        finite = math.isfinite(measured["train_loss"])
        return StageEpoch(
            epoch=number,
            lr=self.optimizer.param_groups[0]["lr"],
            **measured,
            test_error=self.error(parts.judge, parts.size) if finite else math.nan,
            violation=max(map(float, mn.violations(self.network).values()), default=0.0),
            train_seconds=trained - began,
            seconds=time.perf_counter() - began,
        )

    def train_pass(self, parts: Parts) -> dict[str, float]:
        """One pass over the training images; what was measured, as `StageEpoch` names it.

        It ends at the first loss that is not finite.
        """
        self.network.train()
        order = torch.randperm(len(parts.train), generator=self.generator)
        losses, norms, ratios, wrong, seen = [], [], [0.0], 0, 0
        for rows in order.split(self.config.batch_size):
            labels = parts.train.labels[rows]
            self.optimizer.zero_grad()
            scores = self.network(parts.batch(rows))
            loss = self.loss(scores, labels)
            losses.append(loss.item() * len(rows))
            seen += len(rows)
            wrong += int((scores.detach().argmax(1) != labels).sum())
            if not math.isfinite(losses[-1]):
                break
            loss.backward()
            norms.append(self._gradient_norm())
            before = None if self.matrix is None else self.matrix.detach().clone()
            self.optimizer.step()
            if self.matrix is not None and before is not None:
                moved = (self.matrix.detach() - before).norm() / before.norm()
                ratios.append(moved.item())
        steps = max(len(norms), 1)
        return {
            "train_loss": sum(losses) / seen,
            "train_error": wrong / seen,
            "gradient_norm": sum(norms) / steps,
            "largest_gradient_norm": max(norms, default=math.nan),
            "step_ratio": sum(ratios) / steps,
            "largest_step_ratio": max(ratios),
        }

    def error(self, images: Images, size: tuple[int, ...]) -> float:
        """Error rate on some images."""
        self.network.eval()
        wrong = 0
        with torch.no_grad():
            for rows in torch.arange(len(images)).split(_EVALUATION_BATCH):
                scores = self.network(images.vectors(rows).reshape(-1, *size))
                wrong += int((scores.argmax(1) != images.labels[rows]).sum())
        return wrong / len(images)

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        return torch.stack([g.norm() for g in gradients]).norm().item()


def verdict(config: StageConfig, epochs: Sequence[StageEpoch]) -> StageResult | None:
    """The result of a run: after all epochs, or when the loss is not finite."""
    if not epochs:
        return None
    last = epochs[-1]
    finite = math.isfinite(last.train_loss)
    if finite and last.epoch < config.epochs:
        return None
    return StageResult(
        status="finished" if finite else "diverged",
        reason="" if finite else f"the training loss was not finite in epoch {last.epoch}",
        epochs=last.epoch,
        seconds=sum(epoch.seconds for epoch in epochs),
        test_error=last.test_error,
    )


def _source(config: StageConfig) -> tuple[str, int]:
    return config.dataset, ARCHITECTURES[config.architecture].side


def _load(source: tuple[Any, ...], data_dir: str | Path | None, notice: Notice | None) -> Dataset:
    name, side = source
    return sources.load(name, data_dir, notice, side)


def _sizes(config: StageConfig) -> tuple[Any, ...]:
    return config.train_size, config.validation_size


EXPERIMENT: Experiment[StageConfig, StageEpoch, StageResult] = Experiment(
    kind=SCALE_INVARIANT,
    source=_source,
    load=_load,
    parts=make_parts,
    sizes=_sizes,
    start=Run,
    verdict=verdict,
)
