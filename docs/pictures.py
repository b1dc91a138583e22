"""Draws the documentation's pictures, by the library that they explain.

python docs/pictures.py    writes docs/pictures/*.svg, for light pages and for dark ones

sphere      a tangent step on the sphere, by both retractions
cylinder    the scaled metric in a plane: its spirals are straight on a cylinder
paths       one loss, from two lengths of the same filter, by two optimizers
verdicts    the table of symmetries and updates
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import cos, pi, radians, sin
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.experiments.plotting import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    RED,
    new_figure,
    write_svg_pair,
)

SCALED_METRIC, GEODESIC, UNIT_NORM = BLUE, GREEN, RED


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def circle() -> Tensor:
    """Angles around a circle, the first again at the end."""
    return torch.linspace(0, 2 * pi, 121, dtype=torch.float64)


def bare(axes: Axes) -> Axes:
    """A panel without frame, whose units are as long either way."""
    axes.set_aspect("equal")
    axes.set_axis_off()
    return axes


@dataclass(frozen=True)
class Camera:
    """A parallel projection: the origin seen from far away, by angles in degrees."""

    azimuth: float
    elevation: float

    def see(self, points: Tensor) -> Tensor:
        """Right, up and nearness of each point (…, 3)."""
        a, e = radians(self.azimuth), radians(self.elevation)
        right = vector(-sin(a), cos(a), 0.0)
        up = vector(-sin(e) * cos(a), -sin(e) * sin(a), cos(e))
        near = vector(cos(e) * cos(a), cos(e) * sin(a), sin(e))
        return points @ torch.stack([right, up, near]).T

    def curve(self, axes: Axes, points: Tensor, normals: Tensor, **style: Any) -> None:
        """A curve (n, 3) on a surface with these normals; hidden parts are thin and pale."""
        seen = self.see(points)[:, :2]
        front = self.see(normals)[:, 2:] >= 0
        far, near = seen.masked_fill(front, torch.nan), seen.masked_fill(~front, torch.nan)
        axes.plot(*far.T.numpy(), **{**style, "alpha": 0.35, "linewidth": 0.7})
        axes.plot(*near.T.numpy(), **style)


# --- sphere ---------------------------------------------------------------------------------------

GLOBE = Camera(azimuth=0, elevation=14)


def step_on_the_sphere() -> dict[str, Tensor]:
    """A point, −(Euclidean gradient), −(Riemannian gradient), and their retractions."""
    projective, geodesic = mn.Sphere(), mn.Sphere(retraction="geodesic")
    x, g = projective.projx(vector(0.42, -0.5, 0.76)), vector(-0.6, -1.1, -1.2)
    u = -projective.egrad2rgrad(x, g)
    ends = {"projective": projective.retr(x, u), "geodesic": geodesic.retr(x, u)}
    return {"x": x, "-g": -g, "u": u, **ends}


def sphere() -> Figure:
    """The sphere, the tangent plane at x, and both retractions of a step."""
    figure = new_figure(6.4, 4.6)
    axes = bare(figure.add_subplot())
    draw_globe(axes)
    found = step_on_the_sphere()
    x, g, u, manifold = found["x"], found["-g"], found["u"], mn.Sphere()
    draw_tangent_plane(axes, x, u)
    times = torch.linspace(0, 1, 80, dtype=torch.float64)
    path = torch.stack([manifold.expmap(x, t * u) for t in times])
    GLOBE.curve(axes, path, path, color=GEODESIC, linewidth=2.6)

    def at(point: Tensor) -> tuple[float, float]:
        right, up, _ = GLOBE.see(point).tolist()
        return right, up

    def arrow(end: Tensor, colour: str) -> None:
        how = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", at(end), at(x), arrowprops=how)

    def line(start: Tensor, end: Tensor, colour: str) -> None:
        ends = zip(at(start), at(end), strict=True)
        axes.plot(*ends, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))

    def label(point: Tensor, text: str, colour: str, shift: tuple[float, float]) -> None:
        how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 11, "va": "center"}
        axes.annotate(text, at(point), shift, color=colour, **how)

    arrow(x + g, MUTED)
    arrow(x + u, INK)
    line(x + g, x + u, MUTED)
    line(x + u, found["projective"], UNIT_NORM)
    for point, colour in (
        (x, INK),
        (found["geodesic"], GEODESIC),
        (found["projective"], UNIT_NORM),
    ):
        axes.plot(*at(point), "o", color=colour, markersize=6, zorder=5)
    label(x, "$w$", INK, (-16, 6))
    label(x + g, "−∇L", MUTED, (8, 4))
    label(x + u, "−grad L, tangent", INK, (10, 0))
    label(found["projective"], "projective: straight back", UNIT_NORM, (12, 8))
    label(found["geodesic"], "geodesic: as long as −grad L", GEODESIC, (12, 0))
    axes.set_xlim(-1.1, 2.6)
    return figure


def draw_globe(axes: Axes) -> None:
    """Outline, parallels and meridians."""
    turn = circle()
    axes.plot(turn.cos().numpy(), turn.sin().numpy(), color=MUTED, linewidth=1)
    parallels = [
        (a.cos() * turn.cos(), a.cos() * turn.sin(), a.sin().expand_as(turn))
        for a in vector(-60, -30, 0, 30, 60) / 180 * pi
    ]
    meridians = [
        (turn.cos() * a.cos(), turn.cos() * a.sin(), turn.sin())
        for a in vector(0, 30, 60, 90, 120, 150) / 180 * pi
    ]
    for ring in parallels + meridians:
        points = torch.stack(ring, 1)
        GLOBE.curve(axes, points, points, color=FAINT, linewidth=0.8)


def draw_tangent_plane(axes: Axes, x: Tensor, u: Tensor) -> None:
    """A piece of the tangent plane at x that holds x + u."""
    forward = u / u.norm()
    across = torch.linalg.cross(x, forward)
    length = float(u.norm()) + 0.25
    corners = ((-0.35, -0.5), (length, -0.5), (length, 0.5), (-0.35, 0.5))
    points = torch.stack([x + a * forward + b * across for a, b in corners])
    outline = GLOBE.see(points)[:, :2].T.numpy()
    colour = SCALED_METRIC
    axes.fill(*outline, facecolor=colour, alpha=0.13, edgecolor="none")
    axes.fill(*outline, facecolor="none", edgecolor=colour, linewidth=0.8, alpha=0.7)


# --- cylinder -------------------------------------------------------------------------------------

WALL = Camera(azimuth=75, elevation=20)
# Tangent vectors at (1, 0): radial, tangential, and between.
DIRECTIONS = ((0.9, 0.0), (0.0, 2.6), (0.45, 2.6), (-0.45, 2.6))


def geodesics(scale: float) -> list[Tensor]:
    """Geodesics of the scaled metric from scale × (1, 0), each a curve (n, 2) in the plane."""
    manifold, x = mn.ScaledEuclidean(dim=None), scale * vector(1, 0)
    times = torch.linspace(0, 1, 120, dtype=torch.float64)
    return [
        torch.stack([manifold.expmap(x, t * scale * vector(*u)) for t in times]) for u in DIRECTIONS
    ]


def rolled(points: Tensor) -> Tensor:
    """The point of the cylinder for each point of the plane: (cos θ, sin θ, ln ‖w‖)."""
    lengths = points.norm(dim=1, keepdim=True)
    return torch.cat([points / lengths, lengths.log()], 1)


def cylinder() -> Figure:
    """Left the plane, right the cylinder; the same curves, from w and from 2w."""
    figure = new_figure(7.6, 3.9)
    left, right = map(bare, figure.subplots(1, 2, width_ratios=(1.15, 1)))
    draw_rings(left)
    draw_wall(right)
    for scale, colour, name in (
        (1.0, SCALED_METRIC, "$w$"),
        (2.0, UNIT_NORM, "$2w$"),
    ):
        for curve in geodesics(scale):
            left.plot(*curve.T.numpy(), color=colour, linewidth=1.8)
            left.plot(*curve[-1].numpy(), "o", color=colour, markersize=3.5)
            wrapped = rolled(curve)
            normals = wrapped * vector(1, 1, 0)
            WALL.curve(right, wrapped, normals, color=colour, linewidth=1.8)
        start = scale * vector(1, 0)[None]
        left.plot(*start.T.numpy(), "o", color=colour, markersize=6)
        right.plot(*WALL.see(rolled(start))[:, :2].T.numpy(), "o", color=colour, markersize=6)
        how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 12}
        left.annotate(name, (scale, 0), (2, -14), color=colour, **how)
    left.set_title("in the plane: spirals", color=INK, fontsize=11)
    right.set_title("on the cylinder (angle, ln ‖w‖): straight", color=INK, fontsize=11)
    return figure


def draw_rings(axes: Axes) -> None:
    turn = torch.linspace(0, 2 * pi, 121)
    for radius in (0.5, 1, 2, 4):
        ring = (radius * turn.cos()).numpy(), (radius * turn.sin()).numpy()
        axes.plot(*ring, color=FAINT, linewidth=0.8)
    axes.plot(0, 0, "+", color=MUTED, markersize=8)
    axes.annotate("0", (0, 0), (-11, -4), textcoords="offset points", color=MUTED)


def draw_wall(axes: Axes) -> None:
    """Rings of equal length ‖w‖ and lines of equal angle."""
    turn, up = circle(), vector(0, 0, 1)
    ring = torch.stack([turn.cos(), turn.sin(), torch.zeros_like(turn)], 1)
    for height in vector(0.5, 1, 2, 4).log():
        WALL.curve(axes, ring + height * up, ring, color=FAINT, linewidth=0.9)
    low, high = vector(0.5, 4.0).log()
    for direction in ring[:-1:10]:
        line = torch.stack([direction + low * up, direction + high * up])
        WALL.curve(axes, line, direction.expand(2, 3), color=FAINT, linewidth=0.7)


# --- paths ----------------------------------------------------------------------------------------

SCALES = (1.0, 3.0)


def path(scale: float, scaled_metric: bool, steps: int = 7, lr: float = 0.35) -> Tensor:
    """The weights (steps + 1, 2) of a training of 1 − cos(angle between w and a target).

    The loss sees a filter's direction only, as behind batch normalization.

    Args:
        scale: of the start.
        scaled_metric: by `RiemannianSGD` under the scaled metric, or by `torch.optim.SGD`.
        steps: of the training.
        lr: the learning rate.
    """
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(scale * vector(1.0, -0.25))
    optimizer: torch.optim.Optimizer
    if scaled_metric:
        mn.declare(model, "weight", mn.ScaledEuclidean())
        optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen = [model.weight.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        (1 - torch.cosine_similarity(model.weight, vector(0, 1)[None]).sum()).backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return torch.cat(seen)


def paths() -> Figure:
    """Two panels; a thin line from the origin joins both weights after the same step."""
    figure = new_figure(7.6, 3.9)
    titles = ("torch.optim.SGD: two trainings", "scaled metric: one training")
    for scaled_metric, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        draw_paths(bare(axes), bool(scaled_metric))
        axes.set_title(title, color=INK, fontsize=12)
    return figure


def draw_paths(axes: Axes, scaled_metric: bool) -> None:
    turn = torch.linspace(-0.45, pi / 2 + 0.25, 80)
    for radius in (1, 2, 3):
        arc = (radius * turn.cos()).numpy(), (radius * turn.sin()).numpy()
        axes.plot(*arc, color=FAINT, linewidth=0.8)
    arrow = {"arrowstyle": "->", "color": MUTED, "linewidth": 1}
    axes.annotate("", (0, 3.6), (0, 0), arrowprops=arrow)
    axes.text(0.08, 3.5, "lowest loss", color=MUTED, fontsize=10)
    for scale, colour in zip(SCALES, (SCALED_METRIC, UNIT_NORM), strict=True):
        weights = path(scale, scaled_metric)
        for x, y in 3.25 * weights / weights.norm(dim=1, keepdim=True):
            axes.plot([0, x], [0, y], color=colour, linewidth=0.6, alpha=0.55)
        axes.plot(*weights.T.numpy(), "o-", color=colour, linewidth=1.6, markersize=4.5)
        name = "from $w$" if scale == 1 else f"from ${scale:g}w$"
        how: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 11}
        axes.annotate(name, tuple(weights[0].tolist()), (0, -14), color=colour, **how)
    axes.set_xlim(-0.6, 3.6)
    axes.set_ylim(-1.35, 3.7)


# --- verdicts -------------------------------------------------------------------------------------

NETWORKS = {False: "Arch1: ReLU, no normalization", True: "Arch2: batch normalization"}


class Network(nn.Module):
    """A narrow network of the symmetry paper: two hidden layers, pairs pooled, a classifier."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.hidden = nn.Sequential()
        for inputs in (12, 4):
            self.hidden.append(nn.Linear(inputs, 8, bias=False))
            self.hidden.extend([nn.BatchNorm1d(8)] if normalized else [])
            self.hidden.extend([nn.ReLU(), nn.MaxPool1d(2)])
        self.head = nn.Linear(4, 3, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                with torch.no_grad():
                    layer.weight.normal_(generator=source)
                    layer.weight /= layer.weight.norm(dim=1, keepdim=True)
        self.batch = torch.randn(64, 12, generator=source), torch.arange(64) % 3

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(images))
        return scores


def measured(normalized: bool) -> mn.symmetry.Explanation:
    """The table of a network, with AdamW as the reader's update."""
    network = Network(normalized)
    group = mn.symmetry.discover(network, cross_entropy, [network.batch])
    return mn.symmetry.explain(
        network, group, lambda m: torch.optim.AdamW(m.parameters()), classifier="head"
    )


def verdicts() -> Figure:
    """A row for each family of symmetries that changes a weight, a column for each update."""
    figure = new_figure(7.6, 5.2)
    axes = figure.add_subplot()
    axes.set_axis_off()
    y = 0.0
    for normalized, title in NETWORKS.items():
        table = measured(normalized)
        bold: dict[str, Any] = {"fontweight": "bold", "fontsize": 11.5, "va": "center"}
        axes.text(-2.95, y, title, color=INK, **bold)
        for x, update in enumerate(table.updates):
            name = "AdamW" if update == "yours" else update.replace(" ", "\n")
            axes.text(x, y, name, color=INK, ha="center", va="center", fontsize=11.5)
        for row in table.rows:
            if not row.trivial:
                y += 1.0
                scaled = row.name.partition(", and ")[0]
                name = scaled.replace("hidden.", "").replace(" × s, ", " × s\n")
                axes.text(-2.95, y, name, color=MUTED, va="center", fontsize=9.5)
                for x, verdict in enumerate(row.verdicts.values()):
                    draw_verdict(axes, x, y, verdict)
        y += 1.15
    axes.set_xlim(-2.95, len(table.updates) - 0.45)
    axes.set_ylim(y - 0.6, -0.4)
    return figure


def draw_verdict(axes: Axes, x: float, y: float, verdict: str) -> None:
    """A word in a frame."""
    colours = {
        "respects": SCALED_METRIC,
        "fixes": GEODESIC,
        "ignores": UNIT_NORM,
    }
    colour, weak = colours[verdict], verdict == "ignores"
    frame = {"boxstyle": "round,pad=0.4", "facecolor": "none", "edgecolor": colour}
    how: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10.5, "color": colour}
    how |= {"fontweight": "normal" if weak else "bold"}
    axes.text(x, y, verdict, bbox=frame | {"linewidth": 0.6 if weak else 1.8}, **how)


PICTURES = {"cylinder": cylinder, "paths": paths, "sphere": sphere, "verdicts": verdicts}


def main(folder: Path = Path(__file__).parent / "pictures") -> None:
    """Writes every picture twice: sphere-light.svg, sphere-dark.svg, …"""
    for name, draw in PICTURES.items():
        write_svg_pair(draw(), folder / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
