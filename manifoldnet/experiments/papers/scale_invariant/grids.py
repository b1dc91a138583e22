"""Which runs make a figure, a choice of rates, a comparison, a test of robustness.

    figure      every rate h and dimension m on the test images, as the paper draws them
    choice      a grid of short runs, judged by validation images
    comparison  each method at its choice, on all images, three seeds
    noise       wrong labels and outliers, each method at every h; validation images choose
    stability   one pass at every power of ten

The paper does not give its h and m. A preset says how much of all this is run: ``"paper"`` all
images and as many epochs as its figures have room for, ``"cpu"`` what ends on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.papers.scale_invariant.config import StageConfig
from manifoldnet.experiments.papers.scale_invariant.curves import Curve, best, curves
from manifoldnet.experiments.papers.scale_invariant.rows import StageRecord


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
        rates: h, the same for every method.
        dimensions: m of ``"rescaled"``.
    """

    epochs: int
    train_size: int | None
    rates: tuple[float, ...]
    dimensions: tuple[int, ...]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset(
            epochs=100,
            train_size=None,
            rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
            dimensions=(10, 32, 128),
        ),
        "cpu": Preset(
            epochs=6,
            train_size=5000,
            rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            dimensions=(10, 128),
        ),
    }
)

_LARGER = Preset(
    epochs=5, train_size=2000, rates=(0.03, 0.1, 0.3, 1.0), dimensions=PRESETS["cpu"].dimensions
)
"""In place of ``"cpu"`` for the larger network, a step of which costs many times as much."""

_IMAGENET = Preset(
    epochs=5, train_size=None, rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), dimensions=(128,)
)
"""The same for the 1000 images of ImageNet, each of which takes tens of milliseconds."""

CHOICE = StageConfig(epochs=3, train_size=5000, validation_size=2000)
"""Short runs, from which h and m are chosen; never on test images."""

CHOICE_DIMENSIONS = (10, 128, 1024)
"""m that are tried there, from the number of classes on. Runs that chose of (10, 128) took 128, the
largest."""


def figure(number: int, preset: str) -> list[StageConfig]:
    """The runs of a figure: panel (a) over h and m, panel (b) over h.

    Raises:
        ConfigError: for an unknown figure or preset.
    """
    if number not in FIGURES:
        raise ConfigError(f"there is no figure {number}, only {', '.join(map(str, FIGURES))}")
    which, amount = FIGURES[number], _preset(preset)
    if preset == "cpu" and which.dataset == "imagenet10":
        amount = _IMAGENET
    elif preset == "cpu" and which.architecture == "larger":
        amount = _LARGER
    base = StageConfig(
        dataset=which.dataset,
        architecture=which.architecture,
        epochs=amount.epochs,
        train_size=amount.train_size,
    )
    return grid(base, ("rescaled", "logistic"), amount)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}, only {', '.join(PRESETS)}")
    return PRESETS[name]


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
            runs += [replace(base, method=method, lr=h) for h in amount.rates]
    return runs


def stability() -> list[StageConfig]:
    """500 steps on MNIST, the smaller network, for h from 1e-6 to 1e6.

    The rescaled stage on plain kernels and on kernels that are on spheres, and logistic regression.
    """
    base = StageConfig(dataset="mnist", architecture="smaller", epochs=1, train_size=50_000)
    kinds = [
        replace(base, method="rescaled"),
        replace(base, method="rescaled", spheres=True),
        replace(base, method="logistic"),
    ]
    return [replace(kind, lr=10.0**power) for power in range(-6, 7) for kind in kinds]


SHARES = (0.0, 0.2, 0.4, 0.6)
"""Of wrong labels."""

OUTLIERS = (0.1, 0.3)
"""Shares of training images that are gross outliers."""

OUTLIER_RATES = (1e-5, 1e-4, 1e-3, 3e-3)
"""h that are tried besides the preset's: a gross outlier's gradient is as large as the outlier."""

CLAIMED = 0.4
"""The share of wrong labels that is run with several seeds."""

NOISE_VALIDATION = 2000
"""Images with right labels by which rates are chosen when the training data are corrupted."""


def repeated(runs: Sequence[StageConfig], repetitions: int) -> list[StageConfig]:
    """Runs with several seeds, seed by seed.

    Raises:
        ConfigError: when there would be none.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions is {repetitions}; at least one is needed")
    return [replace(run, seed=seed) for seed in range(repetitions) for run in runs]


def choice(
    dataset: str,
    architecture: str,
    methods: Sequence[str],
    *,
    train_size: int | None = None,
    epochs: int | None = None,
) -> list[StageConfig]:
    """Runs of every method over its grid, judged by validation images.

    Args:
        dataset: what is chosen for.
        architecture: with which network.
        methods: to choose a rate for.
        train_size: images to train on; by default few, for short runs. A rate that is the best of
            short runs may be too large for long ones.
        epochs: of each run; by default few.

    Raises:
        ConfigError: for numbers that are not positive.
    """
    base, amount = replace(CHOICE, dataset=dataset, architecture=architecture), PRESETS["cpu"]
    if dataset == "imagenet10":  # 1000 images
        base, amount = replace(base, train_size=800, validation_size=200, epochs=5), _LARGER
    if train_size is not None:
        base = replace(base, train_size=train_size)
    if epochs is not None:
        base = replace(base, epochs=epochs)
    return grid(base, methods, replace(amount, dimensions=CHOICE_DIMENSIONS))


COMPARISON = "comparison"
"""With this begin the names of folders of comparisons."""


def folder_names(dataset: str, train_size: int | None, *length: int | None) -> tuple[str, str]:
    """The folders of a choice and of its comparison: each way of choosing has its own.

    Args:
        dataset: what is compared on.
        train_size: images of the comparison.
        *length: images and epochs of the short runs, where they are not the usual ones.
    """
    how = "".join(f"-{n}" for n in length if n is not None)
    size = "" if train_size is None else f"-{train_size}"
    return f"choice-{dataset}{how}", f"{COMPARISON}-{dataset}{size}" + (how and f"-by{how}")


def choice_of(comparison: str, dataset: str) -> str:
    """The folder of the short runs that choose for a comparison in a folder of that name."""
    _, _, how = comparison.partition("-by")
    return f"choice-{dataset}{how}"


def chosen(records: Sequence[StageRecord], methods: Sequence[str]) -> dict[str, Curve]:
    """The best rate and dimension of each method in the runs of `choice`.

    Raises:
        RecordError: when a method has no run that did not diverge.
    """
    found = curves(records)
    picked = {}
    for method in methods:
        curve = best(found, method)
        if curve is None:
            raise RecordError(f"no short run of {method} ended: there is no rate to choose")
        picked[method] = curve
    return picked


def at_edge(curve: Curve, found: Sequence[Curve]) -> tuple[str, ...]:
    """Which of ``"h"`` and ``"m"`` is at the edge of what was tried: a better one may be beyond.

    The smallest m that was tried is no edge: it is the number of classes, and there is none below.
    """
    own = [c for c in found if c.method == curve.method]
    rates = {c.lr for c in own}
    dimensions = {c.embedding_dim for c in own if c.embedding_dim is not None}
    h = ("h",) if curve.lr in (min(rates), max(rates)) else ()
    m = ("m",) if dimensions and curve.embedding_dim == max(dimensions) else ()
    return h + m


def edge_label(curve: Curve, found: Sequence[Curve]) -> str:
    """``h = 3, m = 128 (edge of the grid: m)``."""
    edges = at_edge(curve, found)
    return curve.label + (f" (edge of the grid: {', '.join(edges)})" if edges else "")


def comparison(
    picked: Mapping[str, Curve],
    dataset: str,
    architecture: str,
    epochs: int,
    repetitions: int,
    train_size: int | None = None,
) -> list[StageConfig]:
    """Each method at its choice, seed by seed, on all training images or so many.

    Raises:
        ConfigError: when there would be no runs.
    """
    base = StageConfig(
        dataset=dataset, architecture=architecture, epochs=epochs, train_size=train_size
    )
    runs = [
        replace(base, method=method, lr=curve.lr, embedding_dim=curve.embedding_dim)
        for method, curve in picked.items()
    ]
    return repeated(runs, repetitions)


def noise(preset: str) -> list[StageConfig]:
    """Wrong labels and outliers on MNIST, the smaller network, each method over its grid.

    Raises:
        ConfigError: for an unknown preset.
    """
    amount = _preset(preset)
    base = StageConfig(
        dataset="mnist",
        architecture="smaller",
        epochs=min(amount.epochs, 10),
        train_size=amount.train_size,
        validation_size=NOISE_VALIDATION,
    )
    settings = [(replace(base, wrong_labels=share), amount) for share in SHARES]
    lower = replace(amount, rates=(*OUTLIER_RATES, *amount.rates))
    settings += [(replace(base, outliers=share), lower) for share in OUTLIERS]
    return [
        config
        for setting, tried in settings
        for config in grid(setting, ("rescaled", "logistic"), tried)
    ]


def noise_again(records: Sequence[StageRecord], repetitions: int) -> list[StageConfig]:
    """What `noise` chose on clean training data and on `CLAIMED` wrong labels, with more seeds."""
    settings = [
        [r for r in records if r.config.wrong_labels == share and not r.config.outliers]
        for share in (0.0, CLAIMED)
    ]
    picked = [
        best(curves(runs), method) for runs in settings for method in ("rescaled", "logistic")
    ]
    return repeated([curve.config for curve in picked if curve is not None], repetitions)
