"""The way from geoopt's manifolds to those of this library, and back.

    from_geoopt(geoopt.Stiefel())        one frozen value like Oblique() or Sphere()
    to_geoopt(Oblique(), (5, 4))         a module of geoopt, for its `ProductManifold`

Most code written for geoopt takes `Oblique()` as it is: its optimizers, its `ManifoldParameter`,
`geoopt.Scaled`. geoopt is imported by a call of `to_geoopt`, or of `from_geoopt` with
one of its objects.
"""

from __future__ import annotations

import sys
from typing import Any

from manifoldnet.geometry.manifold import Manifold

__all__ = ["from_geoopt", "to_geoopt"]


def from_geoopt(manifold: Any) -> Manifold:
    """A geoopt manifold as a manifold of this library.

    geoopt takes the first dimensions of a tensor for a batch: its `Stiefel()` on a kernel of a
    convolution is a frame for each kh × kw slice, and has no wide matrices. `manifoldnet.Stiefel`
    is one frame for a weight of any shape.

    Args:
        manifold: an instance of `geoopt.manifolds.Manifold`. One of this library is returned as
            it is (out of `to_geoopt`, too), and geoopt's Euclidean space as `Euclidean()`.

    Returns:
        A frozen value with geoopt's metric, projection, retraction and geodesics. Where geoopt
        has no formula (a logarithm, say), calling it raises geoopt's NotImplementedError.

    Raises:
        TypeError: if it is no manifold.
        ValueError: if it has trainable parameters of its own (a learnable curvature): a manifold
            here is a value, and an optimizer would change it unseen.
    """
    if isinstance(manifold, Manifold):
        return manifold
    if "geoopt" in sys.modules:  # else it cannot be one of geoopt's
        from manifoldnet.geometry.geoopt_manifold import adapted

        found = adapted(manifold)
        if found is not None:
            return found
    if isinstance(manifold, type):
        name = manifold.__name__
        raise TypeError(f"{manifold!r} is a class, not a manifold: give an object of it, {name}()")
    raise TypeError(f"{manifold!r} is not a manifold: give an object such as mn.Oblique()")


def to_geoopt(manifold: Manifold, shape: int | tuple[int, ...]) -> Any:
    """A manifold of this library as one of geoopt's, a `GeooptView`.

    `geoopt.ProductManifold` registers its factors as submodules, which a plain value is not. The
    view also has the shape of one point, so that more dimensions are a batch, as everywhere in
    geoopt:

        torus = geoopt.ProductManifold((to_geoopt(Oblique(), (5, 4)), (5, 4)), (geoopt.Sphere(), 3))

    Args:
        manifold: any.
        shape: of one of its points.

    Raises:
        ValueError: if no tensor of that shape is a point.
    """
    from manifoldnet.geometry.geoopt_view import GeooptView

    return GeooptView(manifold, (shape,) if isinstance(shape, int) else tuple(shape))
