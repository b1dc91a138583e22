"""Flat space: every number by itself, no constraint. What an undeclared parameter lives in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from manifoldnet.geometry.geodesics import FlatGeodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold
from manifoldnet.geometry.metric import EuclideanMetric
from manifoldnet.geometry.projection import NoProjection
from manifoldnet.geometry.retraction import Additive

__all__ = ["Euclidean"]


@final
@dataclass(frozen=True, init=False)
class Euclidean(Manifold):
    """ℝⁿ with the dot product; a component is one element.

    Optimizers treat a parameter declared `Euclidean()` exactly as an undeclared one.
    """

    def __init__(self) -> None:
        self._compose(
            dim="elements",
            metric=EuclideanMetric(),
            projection=NoProjection(),
            retraction=Additive(),
            geodesics=FlatGeodesics(),
        )

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """Zero.

        Args:
            size: the shape, as numbers or as one tuple.
            dtype: as in `torch.zeros`.
            device: as in `torch.zeros`.
            seed: has no meaning here.
        """
        return torch.zeros(*size, dtype=dtype, device=device)  # type: ignore[arg-type]

    def _fields(self) -> dict[str, Any]:
        return {}


register_manifold("Euclidean", Euclidean)
