"""SegNet under training, and pictures of its predictions.

The loss is the class-balanced cross-entropy; void pixels have no part in it. Images are scaled to
[0, 1] and, if the configuration says so, standardized by the network. The network is on the GPU if
torch sees one; images and masks follow minibatch by minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR

import manifoldnet as mn
from manifoldnet.experiments import store, training
from manifoldnet.experiments.checkpoint import checkpoint_path, load_checkpoint
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.errors import DataError
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.papers.segnet import data as scenes
from manifoldnet.experiments.papers.segnet.config import (
    SEGMENTATION,
    SegmentationConfig,
    SegmentationEpoch,
    SegmentationRecord,
    SegmentationResult,
    confusion,
    scores,
)
from manifoldnet.experiments.papers.segnet.data import Scenes, augment, class_weights
from manifoldnet.experiments.papers.segnet.network import SegNet
from manifoldnet.experiments.papers.segnet.report import PREDICTIONS, WITHOUT_PHOTOGRAPHS
from manifoldnet.experiments.papers.updates import declare, in_words
from manifoldnet.experiments.plotting import new_figure, png

_EVALUATION_BATCH = 8


class Run(training.Run):
    """SegNet under training."""

    row = SegmentationEpoch
    network: SegNet

    def __init__(
        self, config: SegmentationConfig, data: Scenes, device: torch.device = training.PROCESSOR
    ) -> None:
        self.config, self.device = config, device
        # torch types no overload of a module's `to` with a memory format.
        self.network = SegNet(
            len(data.classes),
            width=config.filters,
            standardize=config.standardize,
            generator=seeded_generator(config.seed, "start"),
            # torch's types have no overload for both arguments.
        ).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        declare(self.network, config.update)
        self.optimizer = mn.RiemannianSGD(
            self.network.named_parameters(), lr=config.lr, momentum=config.momentum
        )
        self.scheduler = ExponentialLR(self.optimizer, config.decay)
        self.generator = seeded_generator(config.seed, "order")
        power = {"median-frequency": 1.0, "root-median-frequency": 0.5}.get(config.class_balance)
        self.weights = None
        if power is not None:
            weights = class_weights(scenes.parts(config, data)) ** power
            self.weights = weights.to(self.device)

    def train_pass(self, data: Scenes) -> dict[str, Any]:
        """One pass over the training images; their mean loss and global accuracy as they came."""
        pictures, masks = data.part("train")
        self.network.train()
        order = torch.randperm(len(pictures), generator=self.generator)
        losses, right, labelled = [], 0, 0
        for rows in order.split(self.config.batch_size):
            images, labels = augment(pictures[rows], masks[rows], self.config, self.generator)
            labels = labels.long().to(self.device)
            self.optimizer.zero_grad()
            result = self.network(_pixels(images, self.device))
            classes = result.shape[1]
            loss = cross_entropy(result, labels, self.weights, ignore_index=classes)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach() * len(rows))
            matrix = confusion(labels, result.detach().argmax(1), classes)
            right, labelled = right + int(matrix.diagonal().sum()), labelled + int(matrix.sum())
        mean = torch.stack(losses).sum().item() / len(pictures)
        return {"train_loss": mean, "train_accuracy": right / max(labelled, 1)}

    def evaluate(self, number: int, data: Scenes, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Confusion matrices, of the test images after the last epoch only."""
        found: dict[str, Any] = {
            "validation_confusion": _counts(self._confusions(data, "validation").sum(0))
        }
        if number == self.config.epochs and math.isfinite(trained["train_loss"]):
            matrices, names = self._confusions(data, "test"), data.sequences("test")
            found["test_confusion"] = _counts(matrices.sum(0))
            if names:
                found["test_sequences"] = tuple(sorted(set(names)))
                found["sequence_confusions"] = tuple(
                    count
                    for name in found["test_sequences"]
                    for count in _counts(matrices[[n == name for n in names]].sum(0))
                )
        return found

    def _confusions(self, data: Scenes, split: str) -> Tensor:
        """The confusion matrix of each image."""
        pictures, masks = data.part(split)
        pairs = zip(masks, predict(self.network, pictures), strict=True)
        return torch.stack([confusion(*pair, len(data.classes)) for pair in pairs])


def _counts(matrix: Tensor) -> tuple[int, ...]:
    return tuple(matrix.flatten().tolist())


def predict(network: SegNet, pictures: Tensor) -> Tensor:
    """The class of each pixel (uint8, ``(images, height, width)``) of uint8 images."""
    network.eval()
    device = network.head.weight.device
    with torch.no_grad():
        batches = pictures.split(_EVALUATION_BATCH)
        return torch.cat([network(_pixels(b, device)).argmax(1).byte().cpu() for b in batches])


def _pixels(pictures: Tensor, device: torch.device) -> Tensor:
    pixels = pictures.to(device).float().div_(255)
    return pixels.contiguous(memory_format=torch.channels_last)


def _outcome(config: SegmentationConfig, last: SegmentationEpoch) -> dict[str, float]:
    found = None if last.test_confusion is None else scores(last.test_confusion)
    names = ("global_accuracy", "class_accuracy", "mean_iou")
    return {name: getattr(found, name, math.nan) for name in names}


EXPERIMENT: training.Experiment[SegmentationConfig, SegmentationEpoch, SegmentationResult] = (
    training.Experiment(
        schema=SEGMENTATION,
        start=Run,
        parts=scenes.parts,
        outcome=_outcome,
        load=scenes.load,
        data_fields=("dataset", "height", "width"),
        size_fields=("held_out", "train_images"),
        resident=False,
    )
)


# The colours of CamVid's classes in the SegNet papers; void is black.
COLOURS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0)),
)
_WRONG = (200, 30, 30)
_SHOWN = 4


def write_predictions(
    folder: Path,
    records: Sequence[SegmentationRecord],
    data_dir: str | Path | None = None,
    output: Path | None = None,
) -> Path | None:
    """Draw some test images with the predictions of the first seed's networks.

    ``segnet_predictions.png`` shows image, ground truth and predictions;
    ``segnet_predictions_only.png`` what can be shown where the photographs may not be: predictions,
    and their errors. Both are in `output`, by default `folder`. None when all runs diverged, or the
    weights are not here (they stay with the workers of a cluster that does not share the folder).
    """
    first = [
        record.config
        for record in records
        if record.config.seed == records[0].config.seed
        and record.result is not None
        and not record.result.diverged
    ]
    weights = [checkpoint_path(store.run_directory(folder, config)) for config in first]
    if not first or not all(path.exists() for path in weights):
        return None
    data = scenes.load(EXPERIMENT.source(first[0]), data_dir)
    if data.fingerprint() != records[0].data:
        raise DataError(
            f"no picture is drawn: the runs in {folder} were trained on other data than this "
            f"{data.name!r} (checksum {records[0].data}, now {data.fingerprint()})"
        )
    count = len(data.test_images)
    rows = torch.arange(_SHOWN) * count // _SHOWN + count // (2 * _SHOWN)
    pictures, masks = data.test_images[rows], data.test_masks[rows]
    truth = _coloured(masks, COLOURS)
    seen = {"image": pictures.permute(0, 2, 3, 1).numpy(), "ground truth": truth}
    alone = {}
    for config, path in zip(first, weights, strict=True):
        with training.limited_threads(first[0].threads):
            network = Run(config, data).network
            network.load_state_dict(load_checkpoint(path, SEGMENTATION).states["model"])
            classes = predict(network, pictures)
        errors = torch.where(masks == classes, 0, 1)
        errors[masks == len(data.classes)] = 2
        name = in_words(config.update)
        seen[name] = alone[name] = _coloured(classes, COLOURS)
        alone[f"{name}: wrong"] = _coloured(errors, ((255, 255, 255), _WRONG, (0, 0, 0)))
    output = folder if output is None else output
    _draw(output / PREDICTIONS, seen, data)
    _draw(output / WITHOUT_PHOTOGRAPHS, alone, data)
    return output / PREDICTIONS


def _coloured(numbers: Tensor, colours: Sequence[tuple[int, int, int]]) -> Any:
    return np.asarray(colours, dtype=np.uint8)[numbers.numpy()]


def _draw(path: Path, columns: dict[str, Any], data: Scenes) -> None:
    rows = len(next(iter(columns.values())))
    height, width = data.test_masks.shape[1:]
    figure = new_figure(2.2 * len(columns), 2.2 * rows * height / width + 0.9, dpi=130)
    every_axes = figure.subplots(rows, len(columns), squeeze=False)
    for j, (name, pictures) in enumerate(columns.items()):
        every_axes[0, j].set_title(name, fontsize=10)
        for i in range(rows):
            every_axes[i, j].imshow(pictures[i], interpolation="nearest")
            every_axes[i, j].set_axis_off()
    from matplotlib.patches import Patch  # `new_figure` has seen that it is installed

    legend = dict(zip([*data.classes, "void"], COLOURS, strict=True))
    legend |= {"wrong": _WRONG} if any("wrong" in name for name in columns) else {}
    figure.legend(
        handles=[
            Patch(facecolor=(red / 255, green / 255, blue / 255), label=name)
            for name, (red, green, blue) in legend.items()
        ],
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
    )
    write_bytes(path, png(figure))
