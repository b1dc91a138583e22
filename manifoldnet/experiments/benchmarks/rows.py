"""What a benchmark tells: who did which work, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

IMPLEMENTATIONS = (
    *("torch fused", "torch foreach", "torch loop"),
    *("manifoldnet fused", "manifoldnet", "manifoldnet reference"),
    *("geoopt", "weight_norm", "geotorch"),
)
BASE = IMPLEMENTATIONS[0]


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    shapes: str
    manifold: str
    optimizer: str
    threads: int

    @property
    def label(self) -> str:
        """``resnet50, oblique rows, adam, 2 threads``."""
        return f"{self.shapes}, {self.manifold}, {self.optimizer}, {self.threads} threads"


@dataclass(frozen=True)
class Row:
    """One implementation in one cell.

    Attributes:
        cell: what was done.
        implementation: who did it.
        median_ms: of a step.
        ratio: to torch's fused step of the same optimizer on the same shapes.
        peak_extra_bytes: while a step was taken; −1 where the system does not tell.
        compile_s: of the first step, less a later one.
    """

    cell: Cell
    implementation: str
    median_ms: float
    ratio: float
    peak_extra_bytes: int
    compile_s: float
