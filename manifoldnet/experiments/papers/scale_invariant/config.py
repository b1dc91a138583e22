"""One run of the scale-invariant paper as data.

Section 5 of [tygert2015scale]: convolutional networks with complex moduli, trained together with a
classification stage by SGD in minibatches of 100, one learning rate h everywhere, no augmentation,
no regularization. What it leaves open (h, m, the loss over a minibatch, the start, how MNIST's
28x28 becomes 32x32) is a field or a documented choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from manifoldnet.experiments.configuration import (
    Bounds,
    Configuration,
    check_choice,
    check_integer,
    checked_real,
)
from manifoldnet.experiments.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """A network of Tables 1-4.

    Attributes:
        side: of the square images.
        widths: output images of each stage.
        kernels: size of the kernels of each stage.
    """

    side: int
    widths: tuple[int, ...]
    kernels: tuple[int, ...]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "larger": Architecture(32, (16, 128, 1024), (3, 2, 2)),
        "smaller": Architecture(32, (16, 64, 256), (3, 2, 2)),
        "imagenet-larger": Architecture(128, (16, 64, 256, 1024), (5, 3, 3, 3)),
        "imagenet-smaller": Architecture(128, (16, 64, 256, 256), (5, 3, 3, 3)),
    }
)
"""Tables 1, 2, 3 and 4."""

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "rescaled": "the paper's stage: directions against the targets of a simplex",
        "logistic": "multinomial logistic regression, the paper's opponent",
        "smoothing": "the same with labels smoothed by 0.1",
        "cosine": "softmax of cosines with class vectors, times a learned scale",
        "etf": "cross-entropy over a fixed simplex (an equiangular tight frame)",
    }
)
"""Classification stages by name; the last three are not the paper's."""

_BOUNDS: Mapping[str, Bounds] = {
    "lr": (0.0, False, float("inf"), False),
    "wrong_labels": (0.0, True, 1.0, True),
    "outliers": (0.0, True, 1.0, True),
    "outlier_scale": (0.0, False, float("inf"), False),
}


@dataclass(frozen=True, kw_only=True)
class StageConfig(Configuration):
    """One run: a convnet and a classification stage, trained together.

    Attributes:
        dataset: ``"mnist"``, ``"cifar10"``, ``"imagenet10"``, ``"digits"``, or any other
            image-classification set.
        architecture: a key of `ARCHITECTURES`.
        method: a key of `METHODS`.
        lr: h, for the loss *averaged* over a minibatch, the same for all weights.
        embedding_dim: m, rows of the stage's matrix; None is as many as classes, which is all
            that methods other than ``"rescaled"`` know.
        spheres: whether the kernels of each convolution are declared on a sphere of the size they
            start with. Not the paper's.
        simplex: targets of ``"rescaled"``: ``"regular"``, as in the paper's figures, or
            ``"standard"``.
        batch_size: images per minibatch.
        epochs: passes through the training images.
        seed: decides the start, the order of the images, the split, and what is corrupted.
        train_size: training images; None takes all that the validation images leave.
        validation_size: images held out of the training set, with the labels that they came with;
            a run that has some sees the test images after its last epoch only.
        wrong_labels: share of the training labels that are replaced by another class.
        outliers: share of the training images that are made outliers.
        outlier_kind: ``"noise"`` replaces them by uniform noise, ``"contrast"`` leaves them as they
            are; either way they are multiplied by `outlier_scale`.
        outlier_scale: how gross they are.
        threads: torch's threads.
    """

    experiment: ClassVar[str] = "scale-invariant"

    dataset: str = "mnist"
    architecture: str = "smaller"
    method: str = "rescaled"
    lr: float | None = 0.1
    embedding_dim: int | None = None
    spheres: bool = False
    simplex: str = "regular"
    batch_size: int = 100
    epochs: int = 10
    seed: int = 0
    train_size: int | None = None
    validation_size: int = 0
    wrong_labels: float = 0.0
    outliers: float = 0.0
    outlier_kind: str = "noise"
    outlier_scale: float = 100.0
    threads: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ConfigError(f"dataset is {self.dataset!r}; give a name such as 'mnist'")
        check_choice("architecture", self.architecture, tuple(ARCHITECTURES))
        check_choice("method", self.method, tuple(METHODS))
        check_choice("simplex", self.simplex, ("regular", "standard"))
        check_choice("outlier_kind", self.outlier_kind, ("noise", "contrast"))
        for name in ("batch_size", "epochs", "threads"):
            check_integer(name, getattr(self, name), at_least=1)
        for name in ("seed", "validation_size"):
            check_integer(name, getattr(self, name), at_least=0)
        for name in ("train_size", "embedding_dim"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)
        if not isinstance(self.spheres, bool):
            raise ConfigError(f"spheres is {self.spheres!r}; it must be True or False")
        for name, bounds in _BOUNDS.items():
            object.__setattr__(self, name, checked_real(name, getattr(self, name), bounds))
        if self.embedding_dim is not None and self.method != "rescaled":
            raise ConfigError(
                f"embedding_dim is {self.embedding_dim}, but {self.method} has as many outputs as "
                "there are classes: leave it out"
            )

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""
        return ARCHITECTURES[self.architecture].side

    @property
    def label(self) -> str:
        """``mnist-smaller-rescaled-h1-m64``."""
        m = "" if self.embedding_dim is None else f"-m{self.embedding_dim}"
        kernels = "-spheres" if self.spheres else ""
        return f"{self.dataset}-{self.architecture}-{self.method}{kernels}-h{self.lr:g}{m}"
