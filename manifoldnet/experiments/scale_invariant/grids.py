"""Which runs make a figure, a choice of rates, a comparison, a test of robustness.

    figure      every rate h and dimension m on the test images, as the paper draws them
    choice      the same grid on short runs, judged by validation images
    comparison  each method at its choice, on all images, three seeds
    noise       wrong labels and outliers, each method at every h

The paper does not give its h and m. A preset says how much of all this is run: ``"paper"`` all
images and as many epochs as its figures have room for, ``"cpu"`` what ends on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.scale_invariant.config import StageConfig


@dataclass(frozen=True)
class Figure:
    """One of Figures 1-6: a data set and a network.

    Attributes:
        dataset: its name.
        architecture: a key of `ARCHITECTURES`.
        title: as in the paper.
    """

    dataset: str
    architecture: str
    title: str


FIGURES: Mapping[int, Figure] = MappingProxyType(
    {
        1: Figure("cifar10", "larger", "CIFAR-10 — larger architecture"),
        2: Figure("mnist", "larger", "MNIST — larger architecture"),
        3: Figure("imagenet10", "imagenet-larger", "ImageNet subset — larger architecture"),
        4: Figure("cifar10", "smaller", "CIFAR-10 — smaller architecture"),
        5: Figure("mnist", "smaller", "MNIST — smaller architecture"),
        6: Figure("imagenet10", "imagenet-smaller", "ImageNet subset — smaller architecture"),
    }
)


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        epochs: of a figure's runs.
        train_size: images of a figure's runs; None takes all.
        rates: h of ``"rescaled"``.
        logistic_rates: h of the methods with a softmax.
        dimensions: m of ``"rescaled"``.
    """

    epochs: int
    train_size: int | None
    rates: tuple[float, ...]
    logistic_rates: tuple[float, ...]
    dimensions: tuple[int, ...]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset(
            epochs=100,
            train_size=None,
            rates=(0.01, 0.03, 0.1, 0.3, 1.0),
            logistic_rates=(0.001, 0.003, 0.01, 0.03, 0.1),
            dimensions=(10, 32, 128, 512),
        ),
        "cpu": Preset(
            epochs=6,
            train_size=5000,
            rates=(0.03, 0.1, 0.3),
            logistic_rates=(0.003, 0.01, 0.03, 0.1),
            dimensions=(10, 128),
        ),
    }
)

CHOICE = StageConfig(epochs=3, train_size=5000, validation_size=2000)
"""Short runs, from which h and m are chosen; never on test images."""


def figure(number: int, preset: str) -> list[StageConfig]:
    """The runs of a figure: panel (a) over h and m, panel (b) over h.

    Raises:
        ConfigError: for an unknown figure or preset.
    """
    if number not in FIGURES:
        raise ConfigError(f"there is no figure {number}, only {', '.join(map(str, FIGURES))}")
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}, only {', '.join(PRESETS)}")
    which, amount = FIGURES[number], PRESETS[preset]
    base = StageConfig(
        dataset=which.dataset,
        architecture=which.architecture,
        epochs=amount.epochs,
        train_size=None if which.dataset == "imagenet10" else amount.train_size,
    )
    return grid(base, ("rescaled", "logistic"), amount)


def grid(base: StageConfig, methods: Sequence[str], amount: Preset) -> list[StageConfig]:
    """Every method at every rate, and every dimension where it has one."""
    runs = []
    for method in methods:
        if method == "rescaled":
            runs += [
                replace(base, method=method, lr=h, embedding_dim=m)
                for h, m in product(amount.rates, amount.dimensions)
            ]
        else:
            runs += [replace(base, method=method, lr=h) for h in amount.logistic_rates]
    return runs
