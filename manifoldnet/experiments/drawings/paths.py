"""A loss that sees a filter's direction only, trained from w and from 3w, by two optimizers.

    L(w) = 1 − cos(angle between w and a target)

Behind batch normalization every filter is like this. Both optimizers start from both weights with
one learning rate; the scaled metric turns them by the same angles, plain gradient descent does not.
"""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.experiments.drawings.palette import Palette
from manifoldnet.experiments.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "loss", "path"]

LR = 0.35
STEPS = 7
_TARGET = (0.0, 1.0)
_START = (1.0, -0.25)
SCALES = (1.0, 3.0)


def loss(weight: Tensor) -> Tensor:
    """1 − cos of the angle to the target; the length of the weight (1, 2) does not matter."""
    target = torch.tensor([_TARGET], dtype=weight.dtype)
    return 1 - torch.cosine_similarity(weight, target).sum()


def path(scale: float, scaled_metric: bool) -> Tensor:
    """The weights before and after each step, (steps + 1, 2).

    Args:
        scale: of the start.
        scaled_metric: by `RiemannianSGD` under the scaled metric, or by `torch.optim.SGD`.
    """
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(scale * torch.tensor([_START], dtype=torch.float64))
    optimizer: torch.optim.Optimizer
    if scaled_metric:
        mn.declare(model, "weight", mn.ScaledEuclidean())
        optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=LR)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    seen = [model.weight.detach().clone()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model.weight).backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return torch.cat(seen)


def draw(palette: Palette) -> Figure:
    """Two panels; a thin line from the origin joins what both runs have after the same step."""
    figure = new_figure(7.6, 3.9)
    panels = figure.subplots(1, 2)
    for axes, scaled_metric, title in (
        (panels[0], False, "torch.optim.SGD: two trainings"),
        (panels[1], True, "scaled metric: one training"),
    ):
        _panel(axes, palette, scaled_metric)
        axes.set_title(title, color=palette.ink, fontsize=12)
    return figure


def _panel(axes: Axes, palette: Palette, scaled_metric: bool) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    turn = torch.linspace(-0.45, pi / 2 + 0.25, 80)
    for radius in (1, 2, 3):
        axes.plot(
            (radius * turn.cos()).numpy(),
            (radius * turn.sin()).numpy(),
            color=palette.faint,
            linewidth=0.8,
        )
    arrow = {"arrowstyle": "->", "color": palette.muted, "linewidth": 1}
    axes.annotate("", (0, 3.6), (0, 0), arrowprops=arrow)
    axes.text(0.08, 3.5, "lowest loss", color=palette.muted, fontsize=10)
    both = [path(scale, scaled_metric) for scale in SCALES]
    for seen, scale, colour in zip(both, SCALES, (palette.sm, palette.un), strict=True):
        for point in seen:
            end = 3.25 * point / point.norm()
            axes.plot([0, end[0]], [0, end[1]], color=colour, linewidth=0.6, alpha=0.55)
        axes.plot(*seen.T.numpy(), "o-", color=colour, linewidth=1.6, markersize=4.5)
        name = "from $w$" if scale == 1 else f"from ${scale:g}w$"
        axes.annotate(
            name,
            (float(seen[0, 0]), float(seen[0, 1])),
            (0, -14),
            textcoords="offset points",
            color=colour,
            ha="center",
            fontsize=11,
        )
    axes.set_xlim(-0.6, 3.6)
    axes.set_ylim(-1.35, 3.7)
