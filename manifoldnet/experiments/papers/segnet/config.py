"""One run of SegNet as data, and the two presets.

Section 6 of [badrinarayanan2015symmetry] says little: the CamVid training set of 367 images, 100
epochs, SGD with the unit-norm update. What it leaves open follows [badrinarayanan2017segnet]
(momentum 0.9, one setting for all layers), or is a field with a default that validation images
chose: with the full class weights of that paper and images as they are, the small networks of the
`cpu` preset call many times too many pixels signs and pedestrians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from manifoldnet.experiments.papers.updates import UPDATES

BALANCES = ("median-frequency", "root-median-frequency", "none")

_BOUNDS: Mapping[str, Bounds] = {
    "lr": (0.0, False, float("inf"), False),
    "momentum": (0.0, True, 1.0, False),
    "decay": (0.0, False, 1.0, True),
    "zoom": (1.0, True, 8.0, True),
    "gamma": (1.0, True, 8.0, True),
}


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Configuration):
    """One run of SegNet.

    Attributes:
        dataset: a folder with ``image`` and ``mask`` columns: ``"camvid"``.
        height: of the images and masks as the network sees them, in pixels.
        width: likewise.
        filters: of the first stage of SegNet; the last has eight times as many.
        update: a key of `UPDATES`.
        lr: learning rate λ of the first epoch, for the weighted *mean* of the cross-entropy over
            the labelled pixels of a minibatch.
        decay: factor of the rate per epoch.
        momentum: 0.9 in the SegNet paper; the symmetry paper gives none.
        batch_size: images per minibatch. A smaller last minibatch is used as it is.
        epochs: passes through the training images.
        seed: decides the start, the order of the images, and which are mirrored.
        class_balance: ``"median-frequency"`` weighs a class by the median of all classes'
            frequencies over its own, a class's frequency being its pixels over the pixels of the
            images it is in; ``"root-median-frequency"`` by the square root of that; ``"none"``
            weighs all the same.
        mirror: whether every image is mirrored left to right with probability ½ when it comes up.
            Neither paper says.
        zoom: with probability ½ an image is cut to a random window when it comes up, up to so many
            times smaller, and enlarged again; 1 leaves all.
        gamma: pixels, in [0, 1], are raised to a random power between 1/gamma and gamma; 1 leaves
            them.
        standardize: whether each channel of each image is brought to mean 0 and variance 1 first,
            in place of the local contrast normalization of [badrinarayanan2017segnet].
        threads: torch's threads, on a processor. A GPU is used if torch sees one.
    """

    experiment: ClassVar[str] = "segmentation"

    dataset: str = "camvid"
    height: int = 96
    width: int = 128
    filters: int = 16
    update: str = "un"
    lr: float | None = 0.1
    decay: float = 0.97
    momentum: float = 0.9
    batch_size: int = 6
    epochs: int = 100
    seed: int = 0
    class_balance: str = "root-median-frequency"
    mirror: bool = True
    zoom: float = 1.0
    gamma: float = 1.0
    standardize: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ConfigError(f"dataset is {self.dataset!r}; give a name such as 'camvid'")
        check_choice("update", self.update, tuple(UPDATES))
        check_choice("class_balance", self.class_balance, BALANCES)
        for name in ("filters", "batch_size", "epochs", "threads"):
            check_integer(name, getattr(self, name), at_least=1)
        for name in ("height", "width"):
            check_integer(name, getattr(self, name), at_least=32)
        check_integer("seed", self.seed, at_least=0)
        for name, bounds in _BOUNDS.items():
            object.__setattr__(self, name, checked_real(name, getattr(self, name), bounds))
        for name in ("mirror", "standardize"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be True or False")

    @property
    def label(self) -> str:
        """The update."""
        return self.update


RATES: Mapping[str, float] = MappingProxyType({"b-sgd": 0.1, "sm": 0.03, "un": 0.1})
"""Base learning rate of each update, from short runs on the validation images.

The additive scaled-metric step multiplies the classifier's columns, which no batch normalization
follows, by their own squared norms: at 0.1 these grow to thousands within 20 epochs, and all
scores are lost.
"""


def configurations(
    preset: SegmentationConfig, updates: Sequence[str], repetitions: int
) -> list[SegmentationConfig]:
    """The runs of some updates, seed by seed, each with its own rate.

    Raises:
        ConfigError: when there would be none, or an update is unknown or named twice.
    """
    if not updates or len(set(updates)) < len(updates):
        raise ConfigError(f"the updates are {', '.join(updates) or 'none'}; name each of them once")
    for update in updates:
        check_choice("update", update, tuple(RATES))
    if repetitions < 1:
        raise ConfigError(f"repetitions is {repetitions}; at least one is needed")
    return [
        replace(preset, update=update, lr=RATES[update], seed=seed)
        for seed in range(repetitions)
        for update in updates
    ]


PRESETS: Mapping[str, SegmentationConfig] = MappingProxyType(
    {
        "cpu": SegmentationConfig(),
        "paper": SegmentationConfig(height=360, width=480, filters=64, batch_size=12),
    }
)
"""``"paper"``: the layout of VGG-16 on whole pictures, for a GPU; ``"cpu"``: the same structure
with a quarter of the filters on small pictures, for a processor."""
