"""Runs on today's networks as data: networks, methods, and the choice of their rates.

    text      nanoGPT's configuration for processors: characters, block 64, minibatches of 12, four
              layers of four heads, width 128, LayerNorm without biases, learned position
              embeddings, GELU, a head that is tied to the embedding, no dropout
    modern    the same with RMSNorm, SwiGLU, rotary embeddings, normalized queries and keys
    mlp       three hidden layers with ReLU, on images
    resnet    eight convolutions with batch normalization and two residual blocks, as in fast runs
              on CIFAR-10, with flipped and shifted images

A method steps the hidden matrices at its rate. All other parameters (embeddings, head,
gains) have AdamW at its own best rate, but for the methods that have one rate for all. Every rate
rises over the first tenth of the iterations, and falls to zero along a cosine. Gradients are not
clipped: a clip by their norm depends on the parameterization.

An epoch of the engine is a number of iterations, so that runs are evaluated, and go on, inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from manifoldnet.experiments.configuration import Configuration, field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.text import DOCSTRINGS

WARM_UP = 0.1  # share of the iterations
DECAY = 0.1  # of AdamW and Muon, for matrices that are not declared
SGD_DECAY = 5e-4  # of SGD likewise
MOMENTUM = 0.9  # of SGD
BETAS = (0.9, 0.99)  # of AdamW, as nanoGPT has them for characters
MEASURED = 10  # iterations from one measurement of angles to the next


class Network(NamedTuple):
    """A network: its data, its sizes, and the methods that it is trained by.

    Methods are compared by the test loss, or by the share of test images that is predicted wrong.
    """

    title: str
    kind: str  # of the data: ``"text"`` or ``"images"``
    layers: int
    width: int
    batch_size: int
    widths: tuple[int, ...]  # of the study of widths
    methods: tuple[str, ...]

    @property
    def dataset(self) -> str:
        """The usual data."""
        return DOCSTRINGS if self.kind == "text" else "cifar10"

    @property
    def measure(self) -> str:
        """The measure of comparisons: ``"test loss"`` or ``"test error"``."""
        return "test loss" if self.kind == "text" else "test error"


_USUAL = (
    *("adamw", "muon", "adamh", "muonh", "angular-muown", "ngpt"),
    *("adamw-scaled", "muon-scaled", "adamw-moving"),
)
_OF_FILTERS = ("adamw", "sgd", "sgd-unit", "sgd-scaled", "muon", "muon-unit", "muon-scaled")
CONVOLUTIONS = 8  # of the residual network

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "text": Network("transformer", "text", 4, 128, 12, (64, 128, 256), _USUAL),
        "modern": Network("modern transformer", "text", 4, 128, 12, (64, 128, 256), _USUAL),
        "mlp": Network(
            "multilayer perceptron", "images", 3, 128, 128, (32, 64, 128, 256, 512), _USUAL
        ),
        "resnet": Network(
            "residual network", "images", CONVOLUTIONS, 8, 128, (4, 8, 16), _OF_FILTERS
        ),
    }
)
"""Networks by name."""


class Method(NamedTuple):
    """An optimizer on weights that are declared in one way.

    `first` is the middle of the first rates. `base` is the method without the geometry; "" for one
    that has none. With `alone`, the rate is that of the hidden matrices.
    """

    title: str
    base: str
    first: float
    alone: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "adamw": Method("AdamW", "", 3e-3, False),
        "muon": Method("Muon", "", 3e-2, True),
        "adamh": Method("AdamH: Adam, matrices on spheres, rate an angle", "adamw", 3e-2, True),
        "muonh": Method("MuonH: Muon, matrices on spheres, rate an angle", "muon", 3e-2, True),
        "angular-muown": Method(
            "AngularMuown: Muon on directions, gains apart", "muon", 3e-2, True
        ),
        "ngpt": Method("RiemannianAdam on nGPT's unit vectors", "adamw", 3e-2, True),
        "adamw-scaled": Method("AdamW in the frame of the scaled metric", "adamw", 3e-3, True),
        "muon-scaled": Method("Muon in the frame of the scaled metric", "muon", 3e-2, True),
        "adamw-moving": Method("AdamW in the moving frame of all scalings", "adamw", 1e-2, False),
        "sgd": Method("SGD with momentum", "", 1e-1, False),
        "sgd-unit": Method("RiemannianSGD with momentum on unit-norm filters", "sgd", 1e-1, False),
        "sgd-scaled": Method("the same under the scaled metric", "sgd", 1e-1, False),
        "muon-unit": Method("Muon on unit-norm filters", "muon", 3e-2, True),
    }
)
"""Methods by name."""


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig(Configuration):
    """One run: a network, and a method that trains it.

    Attributes:
        dataset: ``"docstrings"`` (Python's documentation strings) or the path of a text file; for
            images ``"cifar10"``, ``"digits"``, or any other set.
        network: a key of `NETWORKS`.
        method: a key of `METHODS`.
        lr: the method's rate, at the top of the schedule.
        rest_lr: rate of AdamW for the parameters that the method leaves to it; None for methods
            with one rate for all.
        width: of the residual stream, of the hidden layers, or filters of the first convolution.
        layers: blocks of a transformer, hidden layers, or convolutions.
        heads: of attention.
        block: characters that a transformer sees.
        batch_size: passages or images per minibatch.
        steps: iterations of an epoch.
        epochs: of so many iterations each, with an evaluation after it.
        start_size: factor of the first matrices.
        spread: largest |ln factor| of a generator in the element of the scaling group that moves
            the start; 0 leaves it.
        validation_size: images held out for choices; a text has a twentieth of its passages.
    """

    experiment: ClassVar[str] = "evidence"

    dataset: str = DOCSTRINGS
    network: str = field("text", choices=NETWORKS)
    method: str = field("adamw", choices=METHODS)
    lr: float = field(3e-3, above=0)
    rest_lr: float | None = field(None, above=0)
    width: int = field(128, at_least=1)
    layers: int = field(4, at_least=1)
    heads: int = field(4, at_least=1)
    block: int = field(64, at_least=1)
    batch_size: int = field(12, at_least=1)
    steps: int = field(100, at_least=1)
    epochs: int = field(20, at_least=1)
    start_size: float = field(1.0, above=0)
    spread: float = field(0.0, at_least=0)
    validation_size: int = field(5000, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if METHODS[self.method].alone != (self.rest_lr is not None):
            needs = "needs" if METHODS[self.method].alone else "has one rate for all, and takes no"
            raise ConfigError(
                f"rest_lr is {self.rest_lr}: {self.method} {needs} rate for the parameters beside "
                "the hidden matrices"
            )
        # Rotary embeddings turn pairs of numbers.
        parts = self.heads * (2 if self.network == "modern" else 1)
        if self.kind == "text" and self.width % parts:
            raise ConfigError(
                f"width is {self.width}; {self.heads} heads of the network {self.network!r} need a "
                f"multiple of {parts}"
            )

        if self.network == "resnet" and self.layers != CONVOLUTIONS:
            raise ConfigError(f"layers is {self.layers}; the residual network has {CONVOLUTIONS}")

    @property
    def kind(self) -> str:
        """Kind of the data: ``"text"`` or ``"images"``."""
        return NETWORKS[self.network].kind

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return self.epochs * self.steps

    @property
    def matrices(self) -> dict[str, int]:
        """The hidden matrices, and the dimension that indexes their vectors.

        That is rows of what reads the residual stream, and columns of what writes it.
        """
        if self.kind == "images":
            return {f"layers.{i}.weight": 0 for i in range(self.layers)}
        gate = ("gate",) if self.network == "modern" else ()
        dims = dict.fromkeys(("query", "key", "value", *gate, "up"), 0) | {"out": 1, "down": 1}
        return {
            f"layers.{i}.{name}.weight": dim
            for i in range(self.layers)
            for name, dim in dims.items()
        }

    @property
    def label(self) -> str:
        """``text-128-muon-0.03``, and the start where it is not the usual one."""
        start = "" if self.start_size == 1 else f"-x{self.start_size:g}"
        start += f"-spread{self.spread:g}" if self.spread else ""
        return f"{self.network}-{self.width}-{self.method}-{self.lr:g}{start}"


def base(network: str, dataset: str | None = None) -> EvidenceConfig:
    """The usual run of a network, on its usual data or on others."""
    usual = NETWORKS[network]
    return EvidenceConfig(
        dataset=dataset or usual.dataset,
        network=network,
        width=usual.width,
        layers=usual.layers,
        batch_size=usual.batch_size,
    )
