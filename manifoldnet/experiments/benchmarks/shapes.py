"""Which weights are stepped, and what a step of them must move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from manifoldnet.experiments.benchmarks.rows import Cell

Shape = tuple[int, ...]


def _resnet50() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in (
                (width, inside, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
                *([(4 * width, inside, 1, 1)] if block == 0 else []),
            ):
                shapes += [shape, (shape[0],), (shape[0],)]
            inside = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _gpt2() -> list[Shape]:
    layer: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
    layer += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *(12 * layer), (768,), (768,)]


SHAPES: Mapping[str, tuple[Shape, ...]] = MappingProxyType(
    {
        "mlp": ((64, 784), (64, 32), (64, 32), (64, 32), (10, 32)),
        "resnet50": tuple(_resnet50()),
        "gpt2": tuple(_gpt2()),
        "matrix": ((8192, 4096),),
    }
)
"""The symmetry paper's four-layer network, ResNet-50, GPT-2 (124M), and one large matrix."""

GROWTH: Mapping[str, tuple[Shape, ...]] = MappingProxyType(
    {
        **{f"size-{n**2}": ((n, n),) for n in (100, 320, 1000, 3200, 10_000)},
        **{f"count-{n}": n * ((64, 64),) for n in (10, 100, 1000)},
    }
)
"""One square matrix of ever more numbers, and ever more small ones: how a step's time grows."""


def of(cell: Cell) -> tuple[Shape, ...]:
    """The shapes of a cell."""
    return GROWTH[cell.shapes] if cell.shapes in GROWTH else SHAPES[cell.shapes]


def least_bytes(cell: Cell, implementation: str) -> int:
    """What a step must read and write, in float32: weights, gradients, and buffers both ways.

    A declared weight has one second moment for each slice, and torch's one for each number.
    """
    total = 0
    for shape in of(cell):
        numbers = math.prod(shape)
        buffers = {"sgd": 0, "momentum": 1, "adam": 2}[cell.optimizer]
        if implementation.startswith("manifoldnet") and len(shape) > 1:
            buffers = min(buffers, 1)
        total += 4 * numbers * (3 + 2 * buffers)
    return total
