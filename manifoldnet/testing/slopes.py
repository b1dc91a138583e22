"""How fast an error vanishes with a step: the slope of its line on logarithmic axes.

At steps that are too long the error is no power of the step, at steps that are too short it is
rounding. The slope is measured where the line is straight first, above the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Slope", "measure_slope"]

_STEPS = torch.logspace(-8, -1, 71, dtype=torch.float64)
_TOO_SHORT = (1e-13, 2e-13, 3e-13, 5e-13, 8e-13)
_WINDOW = 8  # neighbouring steps: most of a decade
_STRAIGHT = 0.02  # how far points may be off a line, in logarithms, root mean square
_ROUNDINGS = 30.0


@dataclass(frozen=True)
class Slope:
    """How fast an error vanishes with the step.

    Attributes:
        value: the slope; ∞ if all errors are rounding.
        steps: lengths t of the steps.
        errors: the error of each.
    """

    value: float
    steps: tuple[float, ...]
    errors: tuple[float, ...]


def measure_slope(error: Callable[[float], float], scale: Callable[[float], float]) -> Slope:
    """The slope of an error where it is straight first.

    `scale` is the size of what was subtracted at a step, whose rounding hides the error; how much
    more the function rounds by itself is seen at steps that are too short to matter.
    """
    steps = _STEPS.tolist()
    errors = [abs(error(t)) for t in steps]
    noise = max(abs(error(t)) for t in _TOO_SHORT)
    finite = [(t, e) for t, e in zip(steps, errors, strict=True) if math.isfinite(e)]
    if len(finite) < 2 * _WINDOW:
        raise ValueError("the function is not finite close to the point: choose another one")
    rounding = _ROUNDINGS * torch.finfo(torch.float64).eps
    floor = max(rounding * 1e-6 * max(e for _, e in finite), 10 * noise)
    known = [(math.log(t), math.log(e)) for t, e in finite if e > max(floor, rounding * scale(t))]
    lines = [_line(known[i : i + _WINDOW]) for i in range(len(known) - _WINDOW + 1)]
    straight = [slope for slope, off in lines if off < _STRAIGHT]
    straightest = min(lines, key=lambda line: line[1], default=(math.inf, 0.0))[0]
    value = straight[0] if straight else straightest
    return Slope(value, tuple(steps), tuple(errors))


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the line through points by least squares, and how far they are off on average."""
    xs, ys = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    slope = float((xs * ys).sum() / (xs * xs).sum())
    return slope, float((ys - slope * xs).square().mean().sqrt())
