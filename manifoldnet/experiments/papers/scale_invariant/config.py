"""Runs of the scale-invariant paper as data: one run, and the grids that make its experiments.

Section 5 of [tygert2015scale]: convolutional networks with complex moduli, trained together with a
classification stage by SGD in minibatches of 100, one learning rate h everywhere, no augmentation,
no regularization. What it leaves open (h, m, the loss over a minibatch, the start, how MNIST's
28x28 becomes 32x32) is a field or a documented choice. The experiments:

    figure      every rate h and dimension m on the test images, as the paper draws them
    choice      a grid of short runs, judged by validation images
    comparison  each method at its choice, on all images, three seeds
    robustness  wrong labels and outliers, each method at every h; validation images choose
    stability   one pass at every power of ten

A preset says how much of all this is run: ``"paper"`` all images and as many epochs as its figures
have room for, ``"cpu"`` what ends on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from manifoldnet.experiments import study
from manifoldnet.experiments.configuration import Configuration, field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.nn.simplex import Simplex


class Architecture(NamedTuple):
    """A network of Tables 1-4: side of the square images, widths and kernels of the stages."""

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

PAPERS = ("rescaled", "logistic")
"""The methods that the paper compares."""

STARTS: Mapping[str, str] = MappingProxyType(
    {
        "torch7": "uniform within ±1/√inputs: what Torch7, which the paper used, begins with",
        "normal": "normal with variance 1/inputs: a factor √3 larger",
    }
)
"""Distributions of the first weights: kernels (inputs: channels times q²) and class matrices.

The matrix A of ``"rescaled"`` is normal and then brought to its norm √m, as in Section 3.
"""


@dataclass(frozen=True, kw_only=True)
class StageConfig(Configuration):
    """One run: a convnet and a classification stage, trained together.

    Attributes:
        dataset: ``"mnist"``, ``"cifar10"``, ``"imagenet10"``, ``"digits"``, or any other
            image-classification set.
        architecture: a key of `ARCHITECTURES`.
        method: a key of `METHODS`.
        lr: h, for the loss *averaged* over a minibatch, the same for all weights.
        embedding_dim: m, rows of the stage's matrix; None is the number of classes, the only one
            for methods other than ``"rescaled"``.
        start: a key of `STARTS`.
        start_size: factor of the first kernels. Torch7's layers of complex numbers, which count
            real and imaginary parts of the input apart, begin smaller by 1/√2.
        spheres: declare the kernels of each convolution on a sphere of the size they start with.
            Not the paper's.
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
        outlier_scale: factor of the outliers.
        threads: torch's threads.
    """

    experiment: ClassVar[str] = "scale-invariant"

    dataset: str = "mnist"
    architecture: str = field("smaller", choices=ARCHITECTURES)
    method: str = field("rescaled", choices=METHODS)
    lr: float = field(0.1, above=0)
    embedding_dim: int | None = field(None, at_least=1)
    start: str = field("normal", choices=STARTS, later=True)
    start_size: float = field(1.0, above=0, later=True)
    spheres: bool = False
    # Ruff does not know that the alias of a Literal is an immutable type.
    simplex: Simplex = field("regular", choices=("regular", "standard"))  # noqa: RUF009
    batch_size: int = field(100, at_least=1)
    epochs: int = field(10, at_least=1)
    seed: int = field(0, at_least=0)
    train_size: int | None = field(None, at_least=1)
    validation_size: int = field(0, at_least=0)
    wrong_labels: float = field(0.0, at_least=0, at_most=1)
    outliers: float = field(0.0, at_least=0, at_most=1)
    outlier_kind: str = field("noise", choices=("noise", "contrast"))
    outlier_scale: float = field(100.0, above=0)
    threads: int = field(1, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        kernels = "" if self.start == "normal" else f"-{self.start}"
        kernels += "" if self.start_size == 1 else f"-x{self.start_size:g}"
        kernels += "-spheres" if self.spheres else ""
        return f"{self.dataset}-{self.architecture}-{self.method}{kernels}-h{self.lr:g}{m}"


class Choice(NamedTuple):
    """A rate h and a dimension m, which is 0 where it is the number of classes."""

    h: float
    m: int

    def __str__(self) -> str:
        return f"h = {self.h:g}" + (f", m = {self.m}" if self.m else "")

    def of(self, base: StageConfig, method: str) -> StageConfig:
        """A method at this choice."""
        return replace(base, method=method, lr=self.h, embedding_dim=self.m or None)


class Figure(NamedTuple):
    """A data set and a network of Figures 1-6, and its title in the paper."""

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


class Preset(NamedTuple):
    """Amount of work; `dimensions` are those of ``"rescaled"``, no `train_size` is all images."""

    epochs: int
    train_size: int | None
    rates: tuple[float, ...]
    dimensions: tuple[int, ...]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset(100, None, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), (10, 32, 128)),
        "cpu": Preset(6, 5000, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (10, 128)),
    }
)

_LARGER = Preset(5, 2000, (0.03, 0.1, 0.3, 1.0), PRESETS["cpu"].dimensions)
"""``"cpu"`` for the larger network, a step of which costs many times as much."""

_IMAGENET = Preset(5, None, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), (128,))
"""``"cpu"`` for the 1000 images of ImageNet, each of which takes tens of milliseconds."""

CHOICE = StageConfig(epochs=3, train_size=5000, validation_size=2000)
"""Short runs, from which h and m are chosen; never on test images."""

CHOICE_DIMENSIONS = (10, 32, 128, 512, 1024)  # m of the short runs, from the number of classes on
START_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0)  # factors of Torch7's kernels
WRONG_LABELS = (0.0, 0.2, 0.4, 0.6)  # shares of the training labels
OUTLIERS = (0.1, 0.3)  # shares of the training images
# h besides the preset's for outliers: a gross outlier's gradient is as large as the outlier.
OUTLIER_RATES = (1e-5, 1e-4, 1e-3, 3e-3)
# Images with right labels by which rates are chosen when the training data are corrupted.
ROBUSTNESS_VALIDATION = 2000
COMPARISON = "comparison"  # beginning of the names of folders of comparisons
COMPARED_EPOCHS = 10  # of a comparison whose folder names no other number


def figure(number: int, preset: str) -> list[StageConfig]:
    """The runs of a figure: panel (a) over h and m, panel (b) over h."""
    if number not in FIGURES:
        raise ConfigError(f"there is no figure {number}, only {', '.join(map(str, FIGURES))}")
    dataset, architecture, _ = FIGURES[number]
    amount = _preset(preset)
    if preset == "cpu" and dataset == "imagenet10":
        amount = _IMAGENET
    elif preset == "cpu" and architecture == "larger":
        amount = _LARGER
    base = StageConfig(
        dataset=dataset,
        architecture=architecture,
        epochs=amount.epochs,
        train_size=amount.train_size,
    )
    return grid(base, PAPERS, amount.rates, amount.dimensions)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}, only {', '.join(PRESETS)}")
    return PRESETS[name]


def grid(
    base: StageConfig, methods: Sequence[str], rates: Sequence[float], dimensions: Sequence[int]
) -> list[StageConfig]:
    """Every method at every rate, and every dimension where it has one."""
    return [
        Choice(h, m).of(base, method)
        for method in methods
        for h, m in product(rates, dimensions if method == "rescaled" else (0,))
    ]


def stability() -> list[StageConfig]:
    """500 steps on MNIST, the smaller network, for h from 1e-6 to 1e6."""
    base = StageConfig(epochs=1, train_size=50_000)
    variants = [replace(base, spheres=spheres) for spheres in (False, True)]
    variants.append(replace(base, method="logistic"))
    return [replace(one, lr=10.0**power) for power in range(-6, 7) for one in variants]


def start_sizes(dimension: int) -> list[StageConfig]:
    """Short runs of both methods at every size of the kernels and every rate, m given."""
    rates = PRESETS["cpu"].rates
    return [
        run
        for size in START_SIZES
        for run in grid(replace(CHOICE, start_size=size), PAPERS, rates, (dimension,))
    ]


def robustness(preset: str) -> list[StageConfig]:
    """Wrong labels and outliers on MNIST, the smaller network, each method over its grid."""
    amount = _preset(preset)
    base = StageConfig(
        epochs=min(amount.epochs, 10),
        train_size=amount.train_size,
        validation_size=ROBUSTNESS_VALIDATION,
    )
    settings = [(replace(base, wrong_labels=share), amount.rates) for share in WRONG_LABELS]
    lower = (*OUTLIER_RATES, *amount.rates)
    settings += [(replace(base, outliers=share), lower) for share in OUTLIERS]
    return [run for one, rates in settings for run in grid(one, PAPERS, rates, amount.dimensions)]


def choice(
    of: StageConfig,
    methods: Sequence[str],
    train_size: int | None = None,
    epochs: int | None = None,
) -> list[StageConfig]:
    """Runs of every method over its grid, judged by validation images; by default few and short.

    A rate that is the best of short runs may be too large for long ones.
    """
    base = replace(CHOICE, dataset=of.dataset, architecture=of.architecture)
    rates = PRESETS["cpu"].rates
    if of.dataset == "imagenet10":  # 1000 images
        base, rates = replace(base, train_size=800, validation_size=200, epochs=5), _LARGER.rates
    base = replace(
        base,
        train_size=base.train_size if train_size is None else train_size,
        epochs=base.epochs if epochs is None else epochs,
    )
    return grid(base, methods, rates, CHOICE_DIMENSIONS)


def comparison(
    chosen: Mapping[str, Choice], base: StageConfig, repetitions: int
) -> list[StageConfig]:
    """Each method at its choice, seed by seed."""
    return study.repeated([one.of(base, method) for method, one in chosen.items()], repetitions)


def folder_names(base: StageConfig, *length: int | None) -> tuple[str, str]:
    """The folders of a choice and of its comparison: each way of choosing has its own."""
    of = base.dataset + ("-larger" if base.architecture.endswith("larger") else "")
    how = "".join(f"-{n}" for n in length if n is not None)
    size = "" if base.train_size is None else f"-{base.train_size}"
    size += "" if base.epochs == COMPARED_EPOCHS else f"-{base.epochs}-epochs"
    return f"choice-{of}{how}", f"{COMPARISON}-{of}{size}" + (how and f"-by{how}")


def beyond(tried: Sequence[Choice], best: Choice) -> list[Choice]:
    """The choices that widen a grid where the best rate is at its edge."""
    dimensions = sorted({choice.m for choice in tried})
    return [Choice(h, m) for h in study.beyond({c.h for c in tried}, best.h) for m in dimensions]


def choice_of(comparison: str, dataset: str) -> str:
    """The folder of the short runs that choose for a comparison in a folder of that name."""
    _, _, how = comparison.partition("-by")
    return f"choice-{dataset}{how}"
