"""How well pixels are classified: everything from the confusion matrix.

    C_ij                    labelled pixels of class i that were called j
    global accuracy         Σ_i C_ii / Σ_ij C_ij
    class accuracy_i        C_ii / Σ_j C_ij                       (class average: the mean over i)
    IoU_i                   C_ii / (Σ_j C_ij + Σ_j C_ji − C_ii)   (mean IoU: the mean over i)

Counts are over all pixels of all images of a set, as in [badrinarayanan2017segnet]; void pixels are
in none of them. A class without labelled pixels has no accuracy (NaN), and one that is neither
there nor ever called has no IoU; means are over the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The three numbers of the field, in [0, 1], and what they are means of.

    Attributes:
        global_accuracy: share of the labelled pixels that are right.
        class_accuracy: mean of the classes' accuracies.
        mean_iou: mean of the classes' intersections over unions.
        class_accuracies: for each class; NaN where there are none of it.
        ious: likewise.
    """

    global_accuracy: float
    class_accuracy: float
    mean_iou: float
    class_accuracies: tuple[float, ...]
    ious: tuple[float, ...]


def confusion(labels: Tensor, called: Tensor, classes: int) -> Tensor:
    """The confusion matrix (int64, ``(classes, classes)``) of some pixels.

    Args:
        labels: class of each pixel, of any shape; what is not in ``0 … classes - 1`` is void.
        called: the class that it was given, of the same shape.
        classes: how many there are.
    """
    there = (labels >= 0) & (labels < classes)
    cells = labels[there].long() * classes + called[there].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def scores(matrix: Tensor) -> Scores:
    """The scores of a confusion matrix."""
    counts = matrix.double()
    right, there, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    accuracies, ious = right / there, right / (there + called - right)  # 0/0 is NaN
    return Scores(
        float(right.sum() / counts.sum()),
        float(accuracies.nanmean()),
        float(ious.nanmean()),
        tuple(accuracies.tolist()),
        tuple(ious.tolist()),
    )
