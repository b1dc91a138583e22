"""What trained networks see: image, ground truth, and the prediction of each update.

The weights are those in the directories of the runs, so this belongs to training, not to the
report, which shows the picture if it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments.canvas import new_figure, png
from manifoldnet.experiments.checkpoint import checkpoint_path, load_checkpoint
from manifoldnet.experiments.errors import DataError
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.papers.segnet import images
from manifoldnet.experiments.papers.segnet.config import SegmentationConfig
from manifoldnet.experiments.papers.segnet.images import Scenes
from manifoldnet.experiments.papers.segnet.rows import (
    PREDICTIONS,
    SEGMENTATION,
    WITHOUT_PHOTOGRAPHS,
    SegmentationRecord,
)
from manifoldnet.experiments.papers.segnet.run import EXPERIMENT, Run, predict
from manifoldnet.experiments.training import limited_threads

# The colours of CamVid's classes in the SegNet papers; void is black.
COLOURS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0)),
)
_SHOWN = 4


def write_predictions(
    folder: Path, records: Sequence[SegmentationRecord], data_dir: str | Path | None = None
) -> Path | None:
    """Draws some test images with what the first seed's networks make of them.

    ``segnet_predictions.png`` shows image, ground truth and predictions;
    ``segnet_predictions_only.png`` what can be shown where the photographs may not be: predictions,
    and where they are wrong.

    Args:
        folder: of a sweep with checkpoints that has ended.
        records: its runs; those that diverged are left out.
        data_dir: the folder of data sets.

    Returns:
        The first picture; None when there is nothing to draw it from: all runs diverged, or the
        weights are not here (they stay with the workers of a cluster that does not share the
        folder).

    Raises:
        DataError: when the data cannot be loaded, or are not those of the records.
        RecordError: when a checkpoint is damaged.
        MissingExtraError: without matplotlib.
    """
    first = [
        record.config
        for record in records
        if record.config.seed == records[0].config.seed
        and record.result is not None
        and not record.result.diverged
    ]
    there = [checkpoint_path(folders.run_directory(folder, c)).exists() for c in first]
    if not first or not all(there):
        return None
    data = images.load(EXPERIMENT.source(first[0]), data_dir)
    if data.fingerprint() != records[0].data:
        raise DataError(
            f"no picture is drawn: the runs in {folder} were trained on other data than this "
            f"{data.name!r} (checksum {records[0].data}, now {data.fingerprint()})"
        )
    count = len(data.test_images)
    rows = torch.arange(_SHOWN) * count // _SHOWN + count // (2 * _SHOWN)
    pictures, masks = data.test_images[rows], data.test_masks[rows]
    with limited_threads(first[0].threads):
        called = {c.update: predict(_network(folder, c, data), pictures) for c in first}
    truth = _coloured(masks)
    seen = {"image": pictures.permute(0, 2, 3, 1).numpy(), "ground truth": truth}
    seen |= {update: _coloured(classes) for update, classes in called.items()}
    _draw(folder / PREDICTIONS, seen, data)
    void = len(data.classes)
    alone: dict[str, Any] = {}
    for update, classes in called.items():
        alone[update] = _coloured(classes)
        alone[f"{update}: wrong"] = _errors(masks, classes, void)
    _draw(folder / WITHOUT_PHOTOGRAPHS, alone, data)
    return folder / PREDICTIONS


def _network(folder: Path, config: SegmentationConfig, data: Scenes) -> Any:
    path = checkpoint_path(folders.run_directory(folder, config))
    run = Run(config, data)
    run.network.load_state_dict(load_checkpoint(path, SEGMENTATION).states["model"])
    return run.network


def _coloured(classes: Tensor) -> Any:
    return np.asarray(COLOURS, dtype=np.uint8)[classes.numpy()]


def _errors(masks: Tensor, called: Tensor, void: int) -> Any:
    """White where right, red where wrong, black (void) where nothing is known."""
    shown = torch.where(masks == called, 0, 1)
    shown[masks == void] = 2
    return np.asarray([(255, 255, 255), (200, 30, 30), (0, 0, 0)], dtype=np.uint8)[shown]


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
    from matplotlib.patches import Patch

    wrong = [Patch(facecolor=(200 / 255, 30 / 255, 30 / 255), label="wrong")]
    figure.legend(
        handles=[
            Patch(facecolor=(red / 255, green / 255, blue / 255), label=name)
            for (red, green, blue), name in zip(COLOURS, [*data.classes, "void"], strict=True)
        ]
        + (wrong if any("wrong" in name for name in columns) else []),
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
    )
    write_bytes(path, png(figure))
