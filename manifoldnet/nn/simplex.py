"""Targets: a unit vector for each class, the vertices of a simplex.

    regular     the k vectors are equally far apart, and their mean is 0: t_i·t_j = −1/(k−1)
    standard    the first k vectors of the standard basis: t_i·t_j = 0

In m ≥ k dimensions the regular one is the standard one, centred and scaled to unit norm again,

    t_j = √(k/(k−1)) (e_j − 1/k (e_1 + … + e_k)),

so that the nearest target is that of the largest among the first k coordinates, for both. The
regular one has a place in m = k − 1 dimensions as well.

Source: [tygert2015scale], Section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Simplex", "check_simplex", "simplex_targets"]

Simplex = Literal["regular", "standard"]
"""Which simplex: one whose corners add up to 0, or the unit vectors."""


def simplex_targets(
    num_classes: int,
    embedding_dim: int | None = None,
    simplex: Simplex = "regular",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The targets t_1 … t_k as rows: ``(num_classes, embedding_dim)``, each of norm 1.

    Args:
        num_classes: k, two or more.
        embedding_dim: m; by default k.
        simplex: ``"regular"`` (m ≥ k − 1) or ``"standard"`` (m ≥ k).
        dtype: floating type of the result; torch's default if None.
        device: where it is made.

    Raises:
        ValueError: if there are fewer than two classes, or they do not fit into m dimensions.
    """
    m = num_classes if embedding_dim is None else embedding_dim
    check_simplex(num_classes, m, simplex)
    k = num_classes
    targets = torch.eye(k, m, dtype=torch.float64)
    if simplex == "regular" and m >= k:
        targets[:, :k] -= 1 / k
        targets *= (k / (k - 1)) ** 0.5
    elif simplex == "regular":
        targets = _in_least_space(k)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return targets.to(dtype=dtype, device=device)


def check_simplex(num_classes: int, embedding_dim: int, simplex: str) -> None:
    """Refuse what is no simplex.

    Raises:
        ValueError: as `simplex_targets`.
    """
    for name, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: a simplex of targets needs at least two")
    if simplex not in ("regular", "standard"):
        raise ValueError(f'simplex must be "regular" or "standard", not {simplex!r}')
    least = num_classes - (simplex == "regular")
    if embedding_dim < least:
        raise ValueError(
            f"embedding_dim is {embedding_dim}, too few for the {simplex} simplex of {num_classes} "
            f"classes: it needs {least} or more"
        )


def _in_least_space(k: int) -> Tensor:
    """The regular simplex in k − 1 dimensions, vertex by vertex.

    Coordinate i of vertices i, i+1, … balances vertex i against all later ones; earlier vertices
    have used up the coordinates before it.
    """
    targets = torch.zeros(k, k - 1, dtype=torch.float64)
    for i in range(k - 1):
        later = k - 1 - i  # vertices after the i-th
        height = (k / (k - 1) * later / (later + 1)) ** 0.5
        targets[i, i] = height
        targets[i + 1 :, i] = -height / later
    return targets
