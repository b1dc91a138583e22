"""The scaled metric in the plane of a filter, and on the cylinder (ln ‖w‖, angle) that it is."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manifoldnet.experiments.drawings.camera import Camera
from manifoldnet.experiments.drawings.palette import Palette
from manifoldnet.experiments.plotting import new_figure
from manifoldnet.geometry import ScaledEuclidean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "draw", "rolled"]

_CAMERA = Camera(azimuth=75, elevation=20)
_START = (1.0, 0.0)
# Tangent vectors at the start: along the ray, across it, and between.
_DIRECTIONS = ((0.9, 0.0), (0.0, 2.6), (0.45, 2.6), (-0.45, 2.6))


def curves(scale: float = 1.0) -> list[Tensor]:
    """Geodesics from scale × the start, each a curve (n, 2) in the plane."""
    manifold = ScaledEuclidean(dim=None)
    x = scale * torch.tensor(_START, dtype=torch.float64)
    times = torch.linspace(0, 1, 120, dtype=torch.float64)
    return [
        torch.stack([manifold.expmap(x, t * scale * torch.tensor(u, dtype=x.dtype)) for t in times])
        for u in _DIRECTIONS
    ]


def rolled(points: Tensor) -> Tensor:
    """The point of the cylinder for each point of the plane: (cos θ, sin θ, ln ‖w‖)."""
    lengths = points.norm(dim=1, keepdim=True)
    return torch.cat([points / lengths, lengths.log()], 1)


def draw(palette: Palette) -> Figure:
    """Left the plane, right the cylinder; the same curves, from w and from 2w."""
    figure = new_figure(7.6, 3.9)
    plane, cylinder = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for axes in (plane, cylinder):
        axes.set_aspect("equal")
        axes.set_axis_off()
    _rings(plane, palette)
    _wall(cylinder, palette)
    for scale, colour in ((1.0, palette.sm), (2.0, palette.un)):
        for curve in curves(scale):
            plane.plot(*curve.T.numpy(), color=colour, linewidth=1.8)
            plane.plot(*curve[-1].numpy(), "o", color=colour, markersize=3.5)
            wrapped = rolled(curve)
            normals = torch.cat([wrapped[:, :2], torch.zeros_like(wrapped[:, 2:])], 1)
            _CAMERA.curve(cylinder, wrapped, normals, color=colour, linewidth=1.8)
        start = scale * torch.tensor([_START], dtype=torch.float64)
        plane.plot(*start.T.numpy(), "o", color=colour, markersize=6)
        cylinder.plot(*_CAMERA.see(rolled(start))[:, :2].T.numpy(), "o", color=colour, markersize=6)
    plane.annotate(
        "$w$", (1, 0), (2, -14), textcoords="offset points", color=palette.sm, fontsize=12
    )
    plane.annotate(
        "$2w$", (2, 0), (2, -14), textcoords="offset points", color=palette.un, fontsize=12
    )
    plane.set_title("in the plane: spirals", color=palette.ink, fontsize=11)
    cylinder.set_title("on the cylinder (angle, ln ‖w‖): straight", color=palette.ink, fontsize=11)
    return figure


def _rings(axes: Axes, palette: Palette) -> None:
    turn = torch.linspace(0, 2 * pi, 121)
    for radius in (0.5, 1, 2, 4):
        axes.plot(
            (radius * turn.cos()).numpy(),
            (radius * turn.sin()).numpy(),
            color=palette.faint,
            linewidth=0.8,
        )
    axes.plot(0, 0, "+", color=palette.muted, markersize=8)
    axes.annotate("0", (0, 0), (-11, -4), textcoords="offset points", color=palette.muted)


def _wall(axes: Axes, palette: Palette) -> None:
    """Rings of equal length ‖w‖ and lines of equal angle."""
    turn = torch.linspace(0, 2 * pi, 121, dtype=torch.float64)
    round_ = torch.stack([turn.cos(), turn.sin(), torch.zeros_like(turn)], 1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    for length in (0.5, 1, 2, 4):
        height = torch.tensor(length, dtype=torch.float64).log()
        _CAMERA.curve(axes, round_ + height * up, round_, color=palette.faint, linewidth=0.9)
    low, high = torch.tensor([0.5, 4.0], dtype=torch.float64).log()
    for direction in round_[:-1:10]:
        line = torch.stack([direction + low * up, direction + high * up])
        _CAMERA.curve(axes, line, direction.expand(2, 3), color=palette.faint, linewidth=0.7)
