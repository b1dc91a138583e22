"""The one list of manifolds that every law runs over, and what tests share about them.

    from cases import each_manifold, few, point, seeds, sizes, tangent

    @each_manifold
    @few
    @given(seed=seeds, size=sizes())
    def test_a_law(manifold, shape, seed, size):
        x = point(manifold, shape, seed)
        u = tangent(manifold, x, seed + 1, size)

An example is a seed and some sizes: a failing one prints as numbers, repeats, and shrinks. Points
and vectors are drawn as the package offers it to everyone (`manifoldnet.testing`); what they are
judged by is written here a second time. A new manifold is one row in `MANIFOLDS`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from manifoldnet.geometry import (
    Euclidean,
    Manifold,
    Oblique,
    Polar,
    ScaledEuclidean,
    Sphere,
    Stiefel,
)
from manifoldnet.testing import point as point
from manifoldnet.testing import sizes as sizes
from manifoldnet.testing import strategies
from manifoldnet.testing import tangent as tangent
from manifoldnet.testing import unit as unit
from manifoldnet.testing.samples import source as source

Row = tuple[Manifold, tuple[int, ...]]

_ON_SPHERES = ("projective", "geodesic")
_SCALED = ("additive", "geodesic")
_OF_MATRICES = ("polar", "qr", "newton-schulz", "geodesic")

MANIFOLDS: list[Row] = [
    (Euclidean(), (7,)),
    (Euclidean(), (5, 4)),
    (Euclidean(), (3, 2, 2, 3)),
    # Rows, columns, the whole matrix; a convolution's filters; a 1-d convolution's inputs; slices
    # of two numbers (circles), on which a tangent space is one line.
    *(
        (Oblique(dim, radius, retraction), shape)
        for (dim, radius, shape), retraction in itertools.product(
            [
                (0, 1.0, (5, 4)),
                (1, 1.0, (4, 5)),
                (None, 1.0, (3, 4)),
                (0, 2.5, (5, 4)),
                (0, 1.0, (4, 3, 2, 2)),
                (1, 0.1, (3, 4, 5)),
                (0, 1.0, (3, 2)),
            ],
            _ON_SPHERES,
        )
    ),
    *((Sphere(1.0, retraction), (6,)) for retraction in _ON_SPHERES),
    *((Sphere(math.sqrt(4), retraction), (4, 3)) for retraction in _ON_SPHERES),
    # The same, and slices of one number: a half-line each.
    *(
        (ScaledEuclidean(dim, retraction), shape)
        for (dim, shape), retraction in itertools.product(
            [
                (0, (5, 4)),
                (1, (4, 5)),
                (None, (3, 4)),
                (0, (4, 3, 2, 2)),
                (1, (3, 4, 5)),
                (0, (6,)),
            ],
            _SCALED,
        )
    ),
    # Gains and directions; directions on circles.
    *(
        (Polar(dim), shape)
        for dim, shape in [
            (0, (5, 4)),
            (1, (4, 5)),
            (None, (3, 4)),
            (0, (4, 3, 2, 2)),
            (0, (3, 2)),
        ]
    ),
    # Some slices that stay zero.
    (Oblique(zero_slices=(0,)), (5, 4)),
    (Oblique(1, 2.5, "geodesic", zero_slices=(0, 2)), (4, 5)),
    (Oblique(zero_slices=(2,)), (4, 3, 2, 2)),
    (ScaledEuclidean(zero_slices=(0,)), (5, 4)),
    (ScaledEuclidean(1, "additive", zero_slices=(1,)), (4, 5)),
    # Tall, wide and square matrices; kernels as out × (in·kh·kw), and as in × (out·k).
    *(
        (Stiefel(dim, retraction), shape)
        for (dim, shape), retraction in itertools.product(
            [
                (0, (5, 3)),
                (0, (3, 4)),
                (0, (3, 3)),
                (0, (3, 2, 2, 2)),
                (1, (2, 5, 2)),
            ],
            _OF_MATRICES,
        )
    ),
]


def name(manifold: Manifold, shape: tuple[int, ...]) -> str:
    """The name of a case in pytest: `Oblique-dim=1-radius=2.5-geodesic-4x5`."""
    fields = manifold.spec()["fields"]
    words = [
        str(value)
        if key == "retraction"
        else f"{key}={value:.3g}"
        if isinstance(value, float)
        else f"{key}={value}"
        for key, value in fields.items()
        if (key, value) != ("radius", 1.0)
    ]
    return "-".join([type(manifold).__name__, *words, "x".join(map(str, shape))])


def over(rows: Iterable[Row]) -> pytest.MarkDecorator:
    """A test with the arguments `manifold` and `shape`, once for each row."""
    rows = list(rows)
    return pytest.mark.parametrize(
        ("manifold", "shape"), rows, ids=[name(manifold, shape) for manifold, shape in rows]
    )


ZEROED = [row for row in MANIFOLDS if row[0].zero_slices]
_MOVING = [row for row in MANIFOLDS if row not in ZEROED]
SPHERES = [row for row in _MOVING if isinstance(row[0], Oblique | Sphere)]
SCALED = [row for row in _MOVING if isinstance(row[0], ScaledEuclidean)]
POLAR = [row for row in MANIFOLDS if isinstance(row[0], Polar)]
STIEFEL = [row for row in MANIFOLDS if isinstance(row[0], Stiefel)]

# One of each two that differ in their retraction alone (the one whose retraction is exact): for
# laws in which none takes part.
GEOMETRIES = list({(row[0].geodesics, row[1]): row for row in MANIFOLDS}.values())

each_manifold = over(MANIFOLDS)
each_geometry = over(GEOMETRIES)
# Of Stiefel manifolds no logarithm and no distance is known.
each_logarithm = over(row for row in GEOMETRIES if row not in STIEFEL)
each_sphere = over(SPHERES)
each_scaled = over(SCALED)

# The rows give the variety; more examples of each would be the same again.
few = settings(max_examples=3)

seeds = strategies.seeds()


def away_from_zero(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """The same step, turned round in slices where x + u would be nearer to zero than x."""
    return u * torch.where(manifold.component_inner(x, x, u) < 0, -1.0, 1.0).to(u.dtype)


@contextmanager
def refused(error: type[Exception], **fields: object) -> Iterator[None]:
    """As `pytest.raises`, for an error of exactly this type whose fields have these values."""
    with pytest.raises(error) as raised:
        yield
    assert type(raised.value) is error
    assert {field: getattr(raised.value, field) for field in fields} == fields


# --- slices, written a second time and differently: tests must not lean on what they test -------


def rows_of(x: Tensor, dim: int | str | None) -> Tensor:
    """The slices of `x` as the rows of a matrix; the whole tensor is one where there is no dim."""
    return x.movedim(dim, 0).flatten(1) if isinstance(dim, int) and x.ndim > 1 else _single(x, dim)


def _single(x: Tensor, dim: int | str | None) -> Tensor:
    return x.reshape(-1, 1) if isinstance(dim, int) else x.reshape(1, -1)


def lengths(x: Tensor, dim: int | str | None) -> Tensor:
    """The norms of the slices, one after the other."""
    return rows_of(x, dim).norm(dim=1)


def scale_slices(x: Tensor, factors: Tensor, dim: int | str | None) -> Tensor:
    """Slice i times `factors[i]`."""
    if not isinstance(dim, int):
        return x * factors.reshape(())
    return x * factors.reshape([-1 if d == dim else 1 for d in range(x.ndim)])


def apart(a: Tensor, b: Tensor, dim: int | str | None, least: Tensor | None = None) -> float:
    """The largest difference between slices of `a` and `b`, relative to those of `b`, or of
    `least` where they are longer."""
    off, of = lengths(a - b, dim), lengths(b, dim)
    if least is not None:
        of = of.maximum(lengths(least, dim))
    return float((off / torch.where(of > 0, of, 1.0)).max())


def length(manifold: Manifold, x: Tensor, u: Tensor) -> float:
    """The length of the longest slice of `u` at `x`, in natural units."""
    return float(manifold.component_inner(x, u).sqrt().max()) / unit(manifold)
