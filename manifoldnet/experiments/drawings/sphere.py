"""One gradient step on the sphere: projected to the tangent plane, then brought back, two ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manifoldnet.experiments.drawings.camera import Camera
from manifoldnet.experiments.drawings.palette import Palette
from manifoldnet.experiments.plotting import new_figure
from manifoldnet.geometry import Sphere

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "step"]

_CAMERA = Camera(azimuth=0, elevation=14)
_POINT = (0.42, -0.5, 0.76)
_GRADIENT = (-0.6, -1.1, -1.2)


def step() -> dict[str, Tensor]:
    """A point, −(Euclidean gradient), −(Riemannian gradient), and where retractions lead."""
    projective, geodesic = Sphere(), Sphere(retraction="geodesic")
    x = projective.projx(torch.tensor(_POINT, dtype=torch.float64))
    g = torch.tensor(_GRADIENT, dtype=torch.float64)
    u = -projective.egrad2rgrad(x, g)
    return {
        "x": x,
        "-g": -g,
        "u": u,
        "projective": projective.retr(x, u),
        "geodesic": geodesic.retr(x, u),
    }


def draw(palette: Palette) -> Figure:
    """The sphere, the tangent plane at x, and both ways back."""
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    axes.set_axis_off()
    _globe(axes, palette)
    found = step()
    x, g, u = found["x"], found["-g"], found["u"]
    _plane(axes, palette, x, u)
    manifold = Sphere()
    times = torch.linspace(0, 1, 80, dtype=torch.float64)
    path = torch.stack([manifold.expmap(x, t * u) for t in times])
    _CAMERA.curve(axes, path, path, color=palette.geodesic, linewidth=2.6)
    _arrow(axes, x, x + g, palette.muted)
    _arrow(axes, x, x + u, palette.ink)
    _line(axes, x + g, x + u, palette.muted)
    _line(axes, x + u, found["projective"], palette.un)
    _dot(axes, x, palette.ink)
    _dot(axes, found["geodesic"], palette.geodesic)
    _dot(axes, found["projective"], palette.un)
    _label(axes, x, "$w$", palette.ink, (-16, 6))
    _label(axes, x + g, "−∇L", palette.muted, (8, 4))
    _label(axes, x + u, "−grad L, tangent", palette.ink, (10, 0))
    _label(axes, found["projective"], "projective: straight back", palette.un, (12, 8))
    _label(axes, found["geodesic"], "geodesic: as long as −grad L", palette.geodesic, (12, 0))
    axes.set_xlim(-1.1, 2.6)
    return figure


def _globe(axes: Axes, palette: Palette) -> None:
    """Outline, meridians and parallels."""
    turn = torch.linspace(0, 2 * torch.pi, 121, dtype=torch.float64)
    axes.plot(turn.cos().numpy(), turn.sin().numpy(), color=palette.muted, linewidth=1)
    for height in (-60, -30, 0, 30, 60):
        level = torch.tensor(height / 180 * torch.pi, dtype=torch.float64)
        ring = torch.stack(
            [level.cos() * turn.cos(), level.cos() * turn.sin(), level.sin().expand_as(turn)], 1
        )
        _CAMERA.curve(axes, ring, ring, color=palette.faint, linewidth=0.8)
    for side in range(0, 180, 30):
        angle = torch.tensor(side / 180 * torch.pi, dtype=torch.float64)
        ring = torch.stack([turn.cos() * angle.cos(), turn.cos() * angle.sin(), turn.sin()], 1)
        _CAMERA.curve(axes, ring, ring, color=palette.faint, linewidth=0.8)


def _plane(axes: Axes, palette: Palette, x: Tensor, u: Tensor) -> None:
    """A piece of the tangent plane at x that holds x + u."""
    along = u / u.norm()
    across = torch.linalg.cross(x, along)
    length = float(u.norm()) + 0.25
    corners = [
        x + a * along + b * across
        for a, b in ((-0.35, -0.5), (length, -0.5), (length, 0.5), (-0.35, 0.5))
    ]
    seen = _CAMERA.see(torch.stack(corners))[:, :2].numpy()
    axes.fill(*seen.T, facecolor=palette.sm, alpha=0.13, edgecolor="none")
    axes.fill(*seen.T, facecolor="none", edgecolor=palette.sm, linewidth=0.8, alpha=0.7)


def _flat(point: Tensor) -> tuple[float, float]:
    right, up, _ = _CAMERA.see(point).tolist()
    return right, up


def _arrow(axes: Axes, start: Tensor, end: Tensor, colour: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", _flat(end), _flat(start), arrowprops=arrow)


def _line(axes: Axes, start: Tensor, end: Tensor, colour: str) -> None:
    a, b = _flat(start), _flat(end)
    axes.plot([a[0], b[0]], [a[1], b[1]], color=colour, linewidth=1.2, linestyle=(0, (3, 2)))


def _dot(axes: Axes, point: Tensor, colour: str) -> None:
    axes.plot(*_flat(point), "o", color=colour, markersize=6, zorder=5)


def _label(axes: Axes, point: Tensor, text: str, colour: str, shift: tuple[float, float]) -> None:
    axes.annotate(
        text,
        _flat(point),
        shift,
        textcoords="offset points",
        color=colour,
        fontsize=11,
        va="center",
    )
