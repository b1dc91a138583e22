"""A convnet and a classification stage under training, for the loop of all experiments.

    images -> `ModulusFeatures` -> stage -> scores

trained by SGD with one learning rate for all weights, without momentum. For ``"rescaled"`` the
stage's matrix is on its sphere, where `RiemannianSGD` is the paper's step and rescaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, Images, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.scale_invariant.config import ARCHITECTURES, StageConfig
from manifoldnet.experiments.papers.scale_invariant.parts import Parts, make_parts
from manifoldnet.experiments.papers.scale_invariant.rows import (
    SCALE_INVARIANT,
    StageEpoch,
    StageResult,
)
from manifoldnet.experiments.papers.scale_invariant.stages import build_stage
from manifoldnet.experiments.papers.scale_invariant.watch import Watch
from manifoldnet.nn import Confidence, ModulusFeatures, SimplexClassifier

_EVALUATION_BATCH = 200
_BINS = 15


class Run(training.Run):
    """A convnet and a stage under training.

    Args:
        config: what is trained.
        data: decides the sizes of the network.

    Raises:
        ConfigError: without a learning rate, or when stage or images do not fit.
    """

    row = StageEpoch
    network: nn.Sequential

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
        if config.spheres:
            for name, kernels in list(features.named_parameters()):
                sphere = mn.Sphere(float(kernels.detach().norm()))
                mn.declare(features, name, sphere, project=True)
        # The kernel where there is a compiler: the same update, at the price of a plain one.
        self.optimizer = mn.RiemannianSGD(self.network.named_parameters(), lr=config.lr, fused=True)
        self.generator = seeded_generator(config.seed, "order")

    def evaluate(self, number: int, parts: Parts, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Errors, and calibration after the last epoch; none after an overflow."""
        measured: dict[str, Any] = {"test_error": math.nan, "overflow": trained["overflow"]}
        last = number == self.config.epochs
        judged = [("validation", parts.validation)] if parts.validation is not None else []
        if last or not judged:
            judged.append(("test", parts.test))
        for name, images in judged:
            if measured["overflow"]:
                break
            scores = self.scores(images, parts.size)
            if not scores.isfinite().all():
                measured["overflow"] = f"scores of the {name} images"
                break
            wrong = scores.argmax(1) != images.labels
            measured[f"{name}_error"] = float(wrong.double().mean())
            if last and name == "test":
                measured |= _calibration(scores, images.labels)
        return measured

    def train_pass(self, parts: Parts) -> dict[str, Any]:
        """One pass over the training images; what was measured, as `StageEpoch` names it.

        It ends at the first number that is not finite.
        """
        features, stage = self.network
        watch = Watch(stage, list(features.parameters()))
        self.network.train()
        order = torch.randperm(len(parts.train), generator=self.generator)
        for rows in order.split(self.config.batch_size):
            labels = parts.train.labels[rows]
            self.optimizer.zero_grad()
            x = features(parts.batch(rows))
            z: Tensor | None = None
            if isinstance(stage, SimplexClassifier):
                z = stage.embed(x)
                scores = stage.cosines(z)
            else:
                scores = stage(x)
            loss = self.loss(scores, labels)
            if not watch.answered(x, z, scores, labels, loss):
                break
            loss.backward()
            if not watch.differentiated():
                break
            self.optimizer.step()
            if not watch.stepped():
                break
        return watch.row()

    def scores(self, images: Images, size: tuple[int, ...]) -> Tensor:
        """The scores of some images, ``(images, classes)``."""
        self.network.eval()
        with torch.no_grad():
            batches = torch.arange(len(images)).split(_EVALUATION_BATCH)
            return torch.cat(
                [self.network(images.vectors(rows).reshape(-1, *size)) for rows in batches]
            )


def _calibration(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Confidence fitted on every other image, judged on the rest."""
    confidence = Confidence.fit(scores[::2], labels[::2])
    found = confidence.reliability(scores[1::2], labels[1::2], _BINS)
    sums = [
        (round(n * right), n * sure) if n else (0, 0.0)
        for right, sure, n in zip(found.accuracy, found.confidence, found.count, strict=True)
    ]
    return {
        "concentration": confidence.concentration,
        "bin_count": found.count,
        "bin_right": tuple(right for right, _ in sums),
        "bin_sure": tuple(sure for _, sure in sums),
    }


def _fault(last: StageEpoch) -> str:
    return f"not finite in epoch {last.epoch}: {last.overflow}" if last.overflow else ""


def _outcome(config: StageConfig, last: StageEpoch) -> dict[str, float]:
    return {"test_error": last.test_error}


EXPERIMENT: training.Experiment[StageConfig, StageEpoch, StageResult] = training.Experiment(
    kind=SCALE_INVARIANT,
    start=Run,
    parts=make_parts,
    outcome=_outcome,
    data_fields=("dataset", "side"),
    fault=_fault,
)
