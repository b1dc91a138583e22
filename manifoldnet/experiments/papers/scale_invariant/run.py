"""A convnet and a classification stage under training.

    images, some corrupted -> `ModulusFeatures` -> stage -> scores

trained by SGD with one learning rate for all weights, without momentum. The stages:

    rescaled    z = Ax/‖Ax‖, ‖A‖_F = √m       ‖z − t_j‖²              (`manifoldnet.nn`)
    logistic    y = Ax                        −ln softmax(y)_j
    smoothing   y = Ax                        the same, 0.1 of each label spread over all classes
    cosine      s · cos(x, a_i)               −ln softmax             s is trained as ln s
    etf         y = Px, P fixed               −ln softmax

The predicted class is that of the largest score. The matrix A of ``"rescaled"`` is a point of the
sphere of radius √m, where `RiemannianSGD` is the paper's step and rescaling. The rows of P are the
vertices of a regular simplex under a random isometry into the space of the features: an equiangular
tight frame that is not trained, after [zhu2021geometric]. They have unit norm, as the rows of the
logistic matrix have on average at initialization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, Images, seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.scale_invariant.config import ARCHITECTURES, StageConfig
from manifoldnet.experiments.papers.scale_invariant.records import (
    SCALE_INVARIANT,
    StageEpoch,
    StageResult,
)
from manifoldnet.nn import (
    Confidence,
    ModulusFeatures,
    SimplexClassifier,
    SimplexLoss,
    simplex_targets,
)
from manifoldnet.nn.normalize import normalize

Loss = Callable[[Tensor, Tensor], Tensor]
_SMOOTHING = 0.1
_EVALUATION_BATCH = 200
_BINS = 15


@dataclass(frozen=True, eq=False)
class Parts:
    """The images of a run; the training images come with a factor each."""

    train: Images
    gain: Tensor
    validation: Images | None
    test: Images
    size: tuple[int, ...]

    def batch(self, rows: Tensor) -> Tensor:
        """Input of the network: float32 images, ``(rows, channels, height, width)``."""
        return (self.train.vectors(rows) * self.gain[rows, None]).reshape(-1, *self.size)


def make_parts(config: StageConfig, data: Dataset) -> Parts:
    """The images of a configuration, with the corruption that it specifies.

    The seed determines the training images, and the corrupted ones among them; the images that are
    corrupted at a smaller share are among those at a larger one.
    """
    available, held_out = len(data.train_labels), config.validation_size
    count = available - held_out if config.train_size is None else config.train_size
    if count < 1 or count + held_out > available:
        raise ConfigError(
            f"{data.name} has {available} images outside its test set, which does not leave room "
            f"for {count} training and {held_out} validation images: lower train_size or "
            "validation_size"
        )
    order = torch.randperm(available, generator=seeded_generator(config.seed, "split"))
    pixels = data.train_images.flatten(1)

    def select(rows: Tensor) -> Images:
        return Images(pixels[rows], data.train_labels[rows], data.white)

    train = select(order[held_out : held_out + count])  # a copy; corrupted in place below
    _replace_labels(train.labels, len(data.classes), config)
    return Parts(
        train=train,
        gain=_make_outliers(train, config),
        validation=select(order[:held_out]) if held_out else None,
        test=Images(data.test_images.flatten(1), data.test_labels, data.white),
        size=tuple(data.train_images.shape[1:]),
    )


def _replace_labels(labels: Tensor, classes: int, config: StageConfig) -> None:
    source = seeded_generator(config.seed, "wrong labels")
    order = torch.randperm(len(labels), generator=source)
    shift = torch.randint(1, classes, (len(labels),), generator=source)
    wrong = order[: round(config.wrong_labels * len(labels))]
    labels[wrong] = (labels[wrong] + shift[wrong]) % classes


def _make_outliers(images: Images, config: StageConfig) -> Tensor:
    """Overwrite the pixels of outliers, and return the factor of each image."""
    source = seeded_generator(config.seed, "outliers")
    outliers = torch.randperm(len(images), generator=source)[: round(config.outliers * len(images))]
    if config.outlier_kind == "noise" and len(outliers):
        shape = (len(outliers), images.pixels.shape[1])
        images.pixels[outliers] = torch.randint(
            0, images.white + 1, shape, generator=source, dtype=torch.uint8
        )
    gain = torch.ones(len(images))
    gain[outliers] = config.outlier_scale
    return gain


def build_stage(
    config: StageConfig, features: int, classes: int, generator: torch.Generator
) -> tuple[nn.Module, Loss]:
    """The stage of a configuration, and its loss, averaged over a minibatch."""
    if config.method == "rescaled":
        stage = SimplexClassifier(
            features, classes, config.embedding_dim, config.simplex, generator=generator
        )
        return stage, SimplexLoss()
    if config.method == "cosine":
        cosine = CosineScores(features, classes)
        _draw(cosine.weight, features, config, generator)
        return cosine, cross_entropy
    if config.method == "etf":
        return FixedFrame(features, classes, generator), cross_entropy
    scores = nn.utils.skip_init(nn.Linear, features, classes, bias=False)
    _draw(scores.weight, features, config, generator)
    if config.method == "smoothing":
        return scores, lambda y, labels: cross_entropy(y, labels, label_smoothing=_SMOOTHING)
    return scores, cross_entropy


@torch.no_grad()
def _draw(weight: Tensor, inputs: int, config: StageConfig, generator: torch.Generator) -> None:
    """Draw the first weights of a layer, in place."""
    if config.start == "torch7":
        weight.uniform_(-1, 1, generator=generator)
    else:
        weight.normal_(generator=generator)
    weight.div_(inputs**0.5)


@torch.no_grad()
def _start_kernels(
    features: ModulusFeatures, config: StageConfig, generator: torch.Generator
) -> None:
    """Bring kernels that were drawn normal to the configuration's start, in place."""
    for weight in features.parameters():
        if config.start != "normal":
            _draw(weight, weight[0].numel(), config, generator)
        weight.mul_(config.start_size)
        # A fifth faster on processors than with channels first.
        weight.data = weight.to(memory_format=torch.channels_last)


@final
class CosineScores(nn.Module):
    """Cosines of the features with a learned vector for each class, times a learned scale."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, features: Tensor) -> Tensor:
        """The scores."""
        return self.log_scale.exp() * linear(normalize(features), normalize(self.weight))


@final
class FixedFrame(nn.Module):
    """Scores of a matrix that is not trained: a regular simplex in the space of the features."""

    frame: Tensor

    def __init__(self, features: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        gaussian = torch.empty(features, classes).normal_(generator=generator)
        basis = torch.linalg.qr(gaussian).Q  # orthonormal columns, one for each class
        self.register_buffer("frame", simplex_targets(classes) @ basis.T)

    def forward(self, features: Tensor) -> Tensor:
        """The scores."""
        return linear(features, self.frame)


class EpochMeasurements:
    """Losses, errors, gradient norms and step sizes over the steps of an epoch.

    The methods ``after_…`` return False from the first number that is not finite.
    """

    def __init__(self, stage: nn.Module, others: list[nn.Parameter]) -> None:
        self._others = others
        self._weights = [*others, *stage.parameters()]
        self._matrix: Tensor | None = getattr(stage, "weight", None)
        self._before: Tensor | None = None
        self._losses: list[float] = []
        self._counts: list[int] = []
        self._norms: list[float] = []
        self._ratios: list[float] = []
        self._wrong = 0
        self._norm_error = 0.0
        self._overflow = ""

    def after_forward(
        self, features: Tensor, z: Tensor | None, scores: Tensor, labels: Tensor, loss: Tensor
    ) -> bool:
        """After the loss of a minibatch; ``z`` are the unit vectors of a stage that has them."""
        self._losses.append(loss.item())
        self._counts.append(len(labels))
        self._wrong += int((scores.detach().argmax(1) != labels).sum())
        if z is not None:
            off = (z.detach().norm(dim=1) - 1).abs()
            self._norm_error = max(self._norm_error, off.max().item())
        return self._finite("features", features) and self._finite("loss", scores, loss)

    def after_backward(self) -> bool:
        """After the gradient, before the step."""
        gradients = [w.grad for w in self._weights if w.grad is not None]
        self._norms.append(torch.stack([_norm(g) for g in gradients]).norm().item())
        self._before = None if self._matrix is None else self._matrix.detach().clone()
        return self._finite("gradients", *gradients)

    def after_step(self) -> bool:
        """After the step."""
        if self._matrix is not None and self._before is not None:
            moved = _norm(self._matrix.detach() - self._before)
            self._ratios.append((moved / _norm(self._before)).item())
        return self._finite("weights", *self._weights)

    def row(self) -> dict[str, Any]:
        """The measurements, under the names of the fields of `StageEpoch`."""
        seen = sum(self._counts)
        total = sum(n * loss for n, loss in zip(self._counts, self._losses, strict=True))
        largest = max((float(w.detach().abs().max()) for w in self._others), default=0.0)
        return {
            "train_loss": total / seen,
            "largest_loss": max(self._losses, key=lambda x: math.inf if math.isnan(x) else x),
            "train_error": self._wrong / seen,
            "gradient_norm": sum(self._norms) / max(len(self._norms), 1),
            "largest_gradient_norm": max(self._norms, default=math.nan),
            "step_ratio": sum(self._ratios) / max(len(self._ratios), 1),
            "largest_step_ratio": max(self._ratios, default=0.0),
            "norm_error": self._norm_error,
            "largest_weight": largest,
            "overflow": self._overflow,
        }

    def _finite(self, name: str, *tensors: Tensor) -> bool:
        if not all(bool(t.detach().isfinite().all()) for t in tensors):
            self._overflow = f"{name}, minibatch {len(self._losses)}"
        return not self._overflow


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)  # float32 would overflow first


class Run(training.Run):
    """A convnet and a stage under training."""

    row = StageEpoch
    network: nn.Sequential

    def __init__(
        self, config: StageConfig, data: Dataset, device: torch.device = training.PROCESSOR
    ) -> None:
        self.config = config
        start = seeded_generator(config.seed, "start")
        _, widths, kernels = ARCHITECTURES[config.architecture]
        shape = data.train_images.shape[1:]
        try:
            features = ModulusFeatures(shape, widths, kernels, generator=start)
            _start_kernels(features, config, start)
            stage, self.loss = build_stage(config, features.out_features, len(data.classes), start)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.network = nn.Sequential(features, stage).to(device)
        if config.spheres:
            for name, weight in list(features.named_parameters()):
                sphere = mn.Sphere(float(weight.detach().norm()))
                mn.declare(features, name, sphere, project=True)
        # With a C++ compiler, the kernel: the same update at about the cost of a Euclidean one.
        self.optimizer = mn.RiemannianSGD(self.network.named_parameters(), lr=config.lr, fused=True)
        self.generator = seeded_generator(config.seed, "order")

    def train_pass(self, parts: Parts) -> dict[str, Any]:
        """One pass over the training images, and its measurements as fields of `StageEpoch`.

        It ends at the first number that is not finite.
        """
        features, stage = self.network
        measured = EpochMeasurements(stage, list(features.parameters()))
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
            if not measured.after_forward(x, z, scores, labels, loss):
                break
            loss.backward()
            if not measured.after_backward():
                break
            self.optimizer.step()
            if not measured.after_step():
                break
        return measured.row()

    def evaluate(self, number: int, parts: Parts, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Errors, and calibration after the last epoch; none after an overflow."""
        measured: dict[str, Any] = {"test_error": math.nan, "overflow": trained["overflow"]}
        last = number == self.config.epochs
        evaluated = [("validation", parts.validation)] if parts.validation is not None else []
        if last or not evaluated:
            evaluated.append(("test", parts.test))
        for name, images in evaluated:
            if measured["overflow"]:
                break
            scores = self.scores(images, parts.size)
            if not scores.isfinite().all():
                measured["overflow"] = f"scores of the {name} images"
                break
            labels = images.labels.cpu()
            measured[f"{name}_error"] = float((scores.argmax(1) != labels).double().mean())
            if last and name == "test":
                measured |= _calibration(scores, labels)
        return measured

    def scores(self, images: Images, size: tuple[int, ...]) -> Tensor:
        """The scores of some images, ``(images, classes)``."""
        self.network.eval()
        with torch.no_grad():
            batches = torch.arange(len(images)).split(_EVALUATION_BATCH)
            return torch.cat(
                [self.network(images.vectors(rows).reshape(-1, *size)) for rows in batches]
            ).cpu()


def _calibration(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Confidence fitted on every other image, and its reliability on the rest."""
    confidence = Confidence.fit(scores[::2], labels[::2])
    bins = confidence.reliability(scores[1::2], labels[1::2], _BINS)
    pairs = list(zip(bins.count, bins.accuracy, bins.confidence, strict=True))
    return {
        "concentration": confidence.concentration,
        "bin_count": bins.count,
        "bin_right": tuple(round(n * right) if n else 0 for n, right, _ in pairs),
        "bin_sure": tuple(n * sure if n else 0.0 for n, _, sure in pairs),
    }


def _fault(last: StageEpoch) -> str:
    return f"not finite in epoch {last.epoch}: {last.overflow}" if last.overflow else ""


def _outcome(config: StageConfig, last: StageEpoch) -> dict[str, float]:
    return {"test_error": last.test_error}


EXPERIMENT: training.Experiment[StageConfig, StageEpoch, StageResult] = training.Experiment(
    schema=SCALE_INVARIANT,
    start=Run,
    parts=make_parts,
    outcome=_outcome,
    data_fields=("dataset", "side"),
    fault=_fault,
)
