"""Random points and tangent vectors from a seed and a size: numbers that print, repeat and shrink.

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

# Under the scaled metric every order of magnitude of a slice is like the others: norms from 10⁻³
# to 10³ show it, and float32 holds their squares.
_DECADES = 3.0

# Mixed into the seeds of tangent vectors: the numbers that made the point of the same seed would
# make a vector along it, of which nothing is tangent. (Of a seed, torch uses 32 bits on the CPU.)
_APART = 0x9E3779B9


def unit(manifold: Manifold) -> float:
    """The natural unit of length: ρ where the manifold has a `radius`, 1 elsewhere."""
    return manifold.unit


def source(seed: int) -> torch.Generator:
    """A generator of random numbers of its own; torch's default one is left alone."""
    return torch.Generator().manual_seed(seed)


def tangent_source(seed: int) -> torch.Generator:
    """A generator for tangent vectors, with other numbers than one for points."""
    return source(seed ^ _APART)


def point(
    manifold: Manifold, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A random point, the same for the same seed.

    `manifold.random` in float64, then rounded to `dtype`. Under the scaled metric the slices get
    norms from 10⁻³ to 10³, each order of magnitude as likely as the others.

    Args:
        manifold: where the point is.
        shape: its shape.
        seed: a whole number ≥ 0.
        dtype: its type.

    Raises:
        ValueError: if no tensor of this shape is a point.
    """
    generator = source(seed)
    x = manifold.random(shape, dtype=torch.float64, generator=generator)
    if manifold.scale_invariant:
        dims = [d for d in range(x.ndim) if d != manifold.slices.dim]
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True) if dims else x.abs()
        exponent = torch.rand(norm.shape, dtype=x.dtype, generator=generator)
        x = x * 10 ** (_DECADES * (2 * exponent - 1)) / norm
    return x.to(dtype)


def tangent(manifold: Manifold, x: Tensor, seed: int, size: float = 1.0) -> Tensor:
    """A random tangent vector at `x`, the same for the same seed.

    `manifold.random_tangent` in float64, stretched until its longest slice, measured by the
    metric, has the length `size` in natural units (on spheres: `size` radians, whatever the
    radius), then rounded to the type of `x`.

    Args:
        manifold: where the point is.
        x: the point.
        seed: a whole number ≥ 0.
        size: the length of the longest slice, ≥ 0.
    """
    x_ = x.double()
    u = manifold.random_tangent(x_, generator=tangent_source(seed))
    longest = manifold.component_inner(x_, u).sqrt().max()
    u = u * (size * unit(manifold) / longest)
    # Again: of a short slice (on a circle, what is left of a projection) more is normal than ε.
    return manifold.proju(x_, u).to(x.dtype)


def point_with_tangents(
    manifold: Manifold,
    shape: tuple[int, ...],
    seed: int,
    sizes: Sequence[float],
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """A random point and a random tangent vector of each size: (x, u₁, u₂, …).

    `point` at the seed, `tangent` at those that follow it.

    Args:
        manifold: where the point is.
        shape: its shape.
        seed: a whole number ≥ 0.
        sizes: the lengths of the vectors' longest slices, in natural units.
        dtype: the type of all of them.

    Raises:
        ValueError: if no tensor of this shape is a point.
    """
    x = point(manifold, shape, seed, dtype)
    return x, *[tangent(manifold, x, seed + 1 + i, size) for i, size in enumerate(sizes)]
