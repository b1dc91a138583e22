"""The networks of the two papers, small: each with a loss, a batch, and the group of its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import source
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2, ConvArch1, ConvArch2
from manifoldnet.symmetry import Generator, ScalingGroup, Slice

INPUTS, CLASSES, FEATURES, SAMPLES = 12, 3, 8, 16
IMAGE = (1, 8, 8)
#: ln of 1e3: factors from 1e-3 to 1e3.
SPREAD = 6.9

Update = Callable[[nn.Module], torch.optim.Optimizer]


class Stage(nn.Module):
    """The scale-invariant classification stage: y = A x, z = y/‖y‖."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # As its paper starts: the Frobenius norm is the root of the number of rows.
        a = torch.randn(outputs, inputs, generator=source(1))
        self.A = nn.Parameter(a * outputs**0.5 / a.norm())

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.A.mT
        return y / y.norm(dim=1, keepdim=True)

    def symmetries(self) -> ScalingGroup:
        """A → αA."""
        return ScalingGroup.of(self, [Generator({Slice("A", None): 1.0})])


def squared_distance(z: Tensor, labels: Tensor) -> Tensor:
    """‖z − t‖², the targets t being the standard basis, averaged over a batch."""
    targets = torch.eye(z.shape[1], dtype=z.dtype)[labels]
    return (z - targets).square().sum(dim=1).mean()


@dataclass(frozen=True)
class Problem:
    """A network, its loss, batches, and scalings that leave it."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batches: list[tuple[Tensor, Tensor]]
    group: ScalingGroup

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.batches[0]

    def declared(self, retraction: str = "geodesic") -> Problem:
        """The same under the scaled metric, where the paper's table has it."""
        if isinstance(self.model, Stage):
            mn.declare(self.model, "A", mn.ScaledEuclidean(dim=None, retraction=retraction))
        else:
            mn.declare_all(self.model, mn.rules.scaled_metric("head", retraction))
        return self


def problem(name: str, dtype: torch.dtype = torch.float64, batches: int = 2) -> Problem:
    """One of `NETWORKS`, with weights and batches that are the same each time.

    Batch normalization has no ε worth mentioning.
    """
    model = NETWORKS[name]().to(dtype)
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-38
    shape = IMAGE if name.startswith("Conv") else (INPUTS,)
    made = []
    for seed in range(batches):
        x = torch.randn(SAMPLES, *shape, generator=source(seed), dtype=torch.float64)
        labels = torch.randint(CLASSES, (SAMPLES,), generator=source(seed))
        made.append((x.to(dtype), labels))
    loss_fn = squared_distance if name == "Stage" else cross_entropy
    return Problem(model, loss_fn, made, model.symmetries())


def trainable(group: ScalingGroup) -> ScalingGroup:
    """The same scalings of the parameters alone, without the running averages."""
    kept = [
        replace(
            generator,
            name="",
            exponents={
                where: a
                for where, a in generator.exponents.items()
                if where.parameter not in group.buffers
            },
        )
        for generator in group.generators
    ]
    return ScalingGroup(tuple(kept), group.shapes, group.buffers)


def _dense(kind: Any, depth: int) -> Callable[[], Any]:
    return lambda: kind(INPUTS, CLASSES, depth=depth, features=FEATURES, generator=source(7))


def _convolutional(kind: Any) -> Callable[[], Any]:
    return lambda: kind(IMAGE, CLASSES, depth=2, features=4, generator=source(7))


NETWORKS: dict[str, Callable[[], Any]] = {
    "Arch1-2": _dense(Arch1, 2),
    "Arch1-4": _dense(Arch1, 4),
    "Arch2-2": _dense(Arch2, 2),
    "Arch2-4": _dense(Arch2, 4),
    "ConvArch1-2": _convolutional(ConvArch1),
    "ConvArch2-2": _convolutional(ConvArch2),
    "Stage": lambda: Stage(INPUTS, 4),
}
NORMALIZED = [name for name in NETWORKS if "Arch2" in name]


def sm(lr: float = 1e-2, momentum: float = 0.0) -> Update:
    """Riemannian descent, on whatever the model is declared with."""
    return lambda model: mn.RiemannianSGD(mn.param_groups(model), lr=lr, momentum=momentum)


def rows_against_columns(model: nn.Module) -> ScalingGroup:
    """Rows of W1, two by two, against the columns of W2: of Arch1, and not of its paper."""
    first, second = (n for n, p in model.named_parameters() if n.startswith("hidden"))
    return ScalingGroup.of(
        model,
        [
            Generator(
                {Slice(first, 0, 2 * k): 1.0, Slice(first, 0, 2 * k + 1): 1.0}
                | {Slice(second, 1, k): -1.0}
            )
            for k in range(FEATURES // 2)
        ],
    )
