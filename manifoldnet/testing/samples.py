"""Random points and tangent vectors, each determined by a seed and a size.

A failing example is printed, repeated and shrunk as these two numbers.

    x = point(Oblique(), (5, 4), seed=0)
    u = tangent(Oblique(), x, seed=1, size=0.5)      # its longest slice is half a radian long

Sizes are in natural units: `unit(manifold)` is the radius of a sphere, on which sizes are angles
in radians, and 1 elsewhere. hypothesis is not needed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldnet.geometry import Manifold

__all__ = ["point", "point_with_tangents", "source", "tangent", "unit"]

# The scaled metric is invariant under scaling of slices: their norms range from 10⁻³ to 10³, whose
# squares are in the range of float32.
_DECADES = 3.0

# Exclusive or with the seeds of tangent vectors: with the seed of the point the vector would be
# parallel to the point, and its projection 0. (torch uses 32 bits of a seed on the CPU.)
_TANGENT_SEEDS = 0x9E3779B9


def unit(manifold: Manifold) -> float:
    """The natural unit of length: ρ where the manifold has a `radius`, 1 elsewhere."""
    return manifold.unit


def source(seed: int) -> torch.Generator:
    """A new random generator; torch's default generator is not used."""
    return torch.Generator().manual_seed(seed)


def tangent_source(seed: int) -> torch.Generator:
    """A new generator for tangent vectors; its numbers differ from those of `source(seed)`."""
    return source(seed ^ _TANGENT_SEEDS)


def point(
    manifold: Manifold, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A random point, the same for the same seed.

    `manifold.random` in float64, then rounded to `dtype`. Under the scaled metric the slices get
    norms from 10⁻³ to 10³, each order of magnitude as likely as the others.

    Args:
        manifold: its manifold.
        shape: its shape.
        seed: a whole number ≥ 0.
        dtype: type of its entries.

    Raises:
        ValueError: if no tensor of this shape is a point.
    """
    generator = source(seed)
    x = manifold.random(shape, dtype=torch.float64, generator=generator)
    if manifold.scale_invariant:
        dims = [d for d in range(x.ndim) if d != manifold.slices.dim]
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True) if dims else x.abs()
        exponent = torch.rand(norm.shape, dtype=x.dtype, generator=generator)
        length = torch.where(norm > 0, norm, 1.0)  # of a slice that is to be zero as well
        x = x * 10 ** (_DECADES * (2 * exponent - 1)) / length
    return x.to(dtype)


def tangent(manifold: Manifold, x: Tensor, seed: int, size: float = 1.0) -> Tensor:
    """A random tangent vector at `x`, the same for the same seed.

    `manifold.random_tangent` in float64, scaled so that the longest slice has length `size` in the
    metric, in natural units (on spheres: `size` radians), then rounded to the type of `x`.

    Args:
        manifold: its manifold.
        x: the point.
        seed: a whole number ≥ 0.
        size: the length of the longest slice, ≥ 0.
    """
    x_ = x.double()
    u = manifold.random_tangent(x_, generator=tangent_source(seed))
    longest = manifold.component_inner(x_, u).sqrt().max()
    u = u * (size * unit(manifold) / longest)
    # Projected again: a short slice (on a circle) has a normal part of more than ε.
    return manifold.proju(x_, u).to(x.dtype)


def point_with_tangents(
    manifold: Manifold,
    shape: tuple[int, ...],
    seed: int,
    sizes: Sequence[float],
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """A random point and a random tangent vector of each size: (x, u₁, u₂, …).

    The point has the seed `seed`, the tangent vectors have `seed + 1`, `seed + 2`, …

    Args:
        manifold: its manifold.
        shape: its shape.
        seed: a whole number ≥ 0.
        sizes: the lengths of the vectors' longest slices, in natural units.
        dtype: the type of all of them.

    Raises:
        ValueError: if no tensor of this shape is a point.
    """
    x = point(manifold, shape, seed, dtype)
    return x, *[tangent(manifold, x, seed + 1 + i, size) for i, size in enumerate(sizes)]
