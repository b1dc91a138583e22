"""Points of space on paper: a parallel projection, and which of them face the reader."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Camera"]


@dataclass(frozen=True)
class Camera:
    """Looks at the origin from far away.

    Attributes:
        azimuth: degrees around the third axis.
        elevation: degrees above the plane of the first two.
    """

    azimuth: float
    elevation: float

    def frame(self) -> Tensor:
        """Rows: to the right, up, and towards the camera."""
        a, e = radians(self.azimuth), radians(self.elevation)
        return torch.tensor(
            [
                [-sin(a), cos(a), 0.0],
                [-sin(e) * cos(a), -sin(e) * sin(a), cos(e)],
                [cos(e) * cos(a), cos(e) * sin(a), sin(e)],
            ],
            dtype=torch.float64,
        )

    def see(self, points: Tensor) -> Tensor:
        """Right, up and nearness of each point (…, 3)."""
        return points.double() @ self.frame().T

    def curve(self, axes: Axes, points: Tensor, normals: Tensor, **style: Any) -> None:
        """Draws a curve on a surface; what the surface hides is thin and pale.

        Args:
            axes: to draw on.
            points: (n, 3).
            normals: of the surface at the points.
            style: as for `axes.plot`.
        """
        seen = self.see(points)
        front = self.see(normals)[:, 2] >= 0
        nothing = torch.full_like(seen[:, :2], torch.nan)
        near = torch.where(front[:, None], seen[:, :2], nothing)
        far = torch.where(front[:, None], nothing, seen[:, :2])
        axes.plot(*far.T.numpy(), **{**style, "alpha": 0.35, "linewidth": 0.7})
        axes.plot(*near.T.numpy(), **style)
