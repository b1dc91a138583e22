"""SegNet under training, for the training loop (`manifoldnet.experiments.training`).

The loss is the class-balanced cross-entropy; void pixels have no part in it. Images are scaled to
[0, 1]; whether they are standardized then, the network knows. It is on the GPU if torch sees one,
and images and masks come to it minibatch by minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments import training
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.segnet import images
from manifoldnet.experiments.papers.segnet.config import SegmentationConfig
from manifoldnet.experiments.papers.segnet.images import Scenes
from manifoldnet.experiments.papers.segnet.network import SegNet
from manifoldnet.experiments.papers.segnet.rows import (
    SEGMENTATION,
    SegmentationEpoch,
    SegmentationResult,
)
from manifoldnet.experiments.papers.segnet.scores import confusion, scores
from manifoldnet.experiments.papers.updates import declare

_EVALUATION_BATCH = 8


class Run(training.Run):
    """SegNet under training.

    Args:
        config: what is trained.
        data: decides how many classes there are, and what they weigh.
    """

    row = SegmentationEpoch
    network: SegNet

    def __init__(self, config: SegmentationConfig, data: Scenes) -> None:
        assert config.lr is not None  # SegmentationConfig sees to it
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # torch types no overload of a module's `to` with a memory format.
        self.network = SegNet(
            len(data.classes),
            width=config.filters,
            standardize=config.standardize,
            generator=seeded_generator(config.seed, "start"),
        ).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        declare(self.network, config.update)
        self.optimizer = mn.RiemannianSGD(
            self.network.named_parameters(), lr=config.lr, momentum=config.momentum
        )
        self.scheduler = ExponentialLR(self.optimizer, config.decay)
        self.generator = seeded_generator(config.seed, "order")
        power = {"median-frequency": 1.0, "root-median-frequency": 0.5}.get(config.class_balance)
        self.weights = None if power is None else (class_weights(data) ** power).to(self.device)

    def train_pass(self, data: Scenes) -> dict[str, Any]:
        """One pass over the training images; their mean loss and global accuracy as they came."""
        pictures, masks = data.part("train")
        self.network.train()
        order = torch.randperm(len(pictures), generator=self.generator)
        losses, right, labelled = [], 0, 0
        for rows in order.split(self.config.batch_size):
            chosen, labels = varied(pictures[rows], masks[rows], self.config, self.generator)
            labels = labels.long().to(self.device)
            self.optimizer.zero_grad()
            result = self.network(_pixels(chosen, self.device))
            classes = result.shape[1]
            loss = cross_entropy(result, labels, self.weights, ignore_index=classes)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach() * len(rows))
            matrix = confusion(labels, result.detach().argmax(1), classes)
            right, labelled = right + int(matrix.diagonal().sum()), labelled + int(matrix.sum())
        loss_per_image = torch.stack(losses).sum().item() / len(pictures)
        return {"train_loss": loss_per_image, "train_accuracy": right / max(labelled, 1)}

    def evaluate(self, number: int, data: Scenes, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Confusion matrices, of the test images after the last epoch only."""
        last = number == self.config.epochs and math.isfinite(trained["train_loss"])
        return {
            "validation_confusion": self._judge(data, "validation"),
            "test_confusion": self._judge(data, "test") if last else None,
        }

    def _judge(self, data: Scenes, split: str) -> tuple[int, ...]:
        pictures, masks = data.part(split)
        called = predict(self.network, pictures)
        return tuple(confusion(masks, called, len(data.classes)).flatten().tolist())


def predict(network: SegNet, pictures: Tensor) -> Tensor:
    """The class of each pixel (uint8, ``(images, height, width)``) of uint8 images."""
    network.eval()
    device = network.head.weight.device
    with torch.no_grad():
        batches = pictures.split(_EVALUATION_BATCH)
        return torch.cat([network(_pixels(b, device)).argmax(1).byte().cpu() for b in batches])


def varied(
    pictures: Tensor, masks: Tensor, config: SegmentationConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images and masks (their own copies) as they are shown once; see `SegmentationConfig`."""
    count = len(pictures)
    if config.mirror:
        turned = torch.rand(count, generator=generator) < 0.5
        pictures[turned], masks[turned] = pictures[turned].flip(-1), masks[turned].flip(-1)
    if config.zoom > 1:
        for i, (cut, by, down, right) in enumerate(torch.rand(count, 4, generator=generator)):
            if cut < 0.5:
                factor = 1 + (config.zoom - 1) * by
                pictures[i], masks[i] = _enlarged(pictures[i], masks[i], factor, down, right)
    if config.gamma > 1:
        power = config.gamma ** (2 * torch.rand(count, generator=generator) - 1)
        raised = (pictures.float() / 255) ** power[:, None, None, None]
        pictures = (255 * raised).round().byte()
    return pictures, masks


def _enlarged(
    picture: Tensor, mask: Tensor, factor: Tensor, down: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """A window of 1/``factor`` of the size, ``down`` and ``right`` in [0, 1], at full size."""
    height, width = mask.shape
    h, w = round(height / float(factor)), round(width / float(factor))
    top, left = round(float(down) * (height - h)), round(float(right) * (width - w))
    cut = picture[:, top : top + h, left : left + w].float()
    labels = mask[top : top + h, left : left + w].float()
    image = interpolate(cut[None], (height, width), mode="bilinear")[0].round()
    known = interpolate(labels[None, None], (height, width), mode="nearest-exact")[0, 0]
    return image.to(picture.dtype), known.to(mask.dtype)


def class_weights(data: Scenes) -> Tensor:
    """Median-frequency weights of the classes on the training masks; see `SegmentationConfig`.

    A class that no mask holds weighs 1: it is in no loss.
    """
    masks = data.train_masks.flatten(1).long()
    classes = len(data.classes)
    counts = torch.stack([torch.bincount(m, minlength=classes + 1) for m in masks])[:, :classes]
    seen_in = (counts > 0).sum(0) * masks.shape[1]
    frequency = counts.sum(0) / seen_in  # 0/0 is NaN: a class that is nowhere
    weights = frequency.nanmedian() / frequency
    return torch.where(weights.isnan(), 1.0, weights).float()


def _outcome(config: SegmentationConfig, last: SegmentationEpoch) -> dict[str, float]:
    names = ("global_accuracy", "class_accuracy", "mean_iou")
    if last.test_confusion is None:
        return dict.fromkeys(names, math.nan)
    classes = math.isqrt(len(last.test_confusion))
    found = scores(torch.tensor(last.test_confusion).reshape(classes, classes))
    return {name: getattr(found, name) for name in names}


def _pixels(pictures: Tensor, device: torch.device) -> Tensor:
    pixels = pictures.to(device).float().div_(255)
    return pixels.contiguous(memory_format=torch.channels_last)


def _parts(config: SegmentationConfig, data: Scenes) -> Scenes:
    for split in images.SPLITS:
        if len(data.part(split)[0]) == 0:
            raise ConfigError(f"{data.name}: there are no {split} images")
    return data


EXPERIMENT: training.Experiment[SegmentationConfig, SegmentationEpoch, SegmentationResult] = (
    training.Experiment(
        kind=SEGMENTATION,
        start=Run,
        parts=_parts,
        outcome=_outcome,
        load=images.load,
        data_fields=("dataset", "height", "width"),
        size_fields=(),
    )
)
