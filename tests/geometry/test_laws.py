"""The laws of every manifold, as the package offers them to everyone, over the one list of them.

Each row of `MANIFOLDS` is a class: `pytest -k "Oblique-dim=1"`, or `-k log_inverts_exp`. Two rows
that differ in their retraction alone share the laws in which none takes part.
"""

import math

from cases import (
    GEOMETRIES,
    MANIFOLDS,
    POLAR,
    SCALED,
    SPHERES,
    STIEFEL,
    ZEROED,
    away_from_zero,
    name,
)

from manifoldnet.geometry import Additive, Geodesic
from manifoldnet.testing import ManifoldLaws, RetractionLaws


class HalfLines:
    """Slices of one number ≠ 0: two pieces each, the positive ones and the negative ones."""

    def pair(self, seed):
        x, y = super().pair(seed)
        return x, y.abs() * x.sign()


class Straight:
    """x + u under the scaled metric, where lengths at the end are measured by its distance to 0."""

    def tangent(self, x, seed, size=1.0):
        return away_from_zero(self.manifold, x, super().tangent(x, seed, size))

    # Vectors are carried along unchanged; the metric is another one at the end.
    test_transport_along_a_step_is_isometric = None


class Matrices:
    """Matrices with orthonormal columns or rows: decompositions, and no logarithm."""

    slack = 10.0
    longest = 6.0
    lacks = ("logmap", "component_dist", "dist", "dist2")

    # Between points vectors are projected.
    test_transport_is_isometric = None
    test_transport_back_undoes_transport = None
    test_transport_follows_the_geodesic = None


class Projected:
    """Vectors are projected along a step."""

    test_transport_along_a_step_is_isometric = None


def laws_of(manifold, shape):
    """The class of laws for one row of the list."""
    row = (manifold, shape)
    numbers = [n for d, n in enumerate(shape) if d != manifold.slices.dim]  # of one slice
    fields = {"manifold": manifold, "shape": shape, "__module__": __name__}
    if row in SPHERES + ZEROED or (row in SCALED and numbers):
        fields["injectivity"] = math.pi
    if row in POLAR:  # less the nearer a slice is to zero
        fields["injectivity"] = math.pi / 2
    bases = [ManifoldLaws if row in GEOMETRIES else RetractionLaws]
    if row in SCALED and not numbers:
        bases.insert(0, HalfLines)
    if row in SCALED + ZEROED and isinstance(manifold.retraction, Additive):
        bases.insert(0, Straight)
    if row in STIEFEL:
        bases.insert(0, Matrices)
        if not isinstance(manifold.retraction, Geodesic):
            bases.insert(0, Projected)
    return type(f"Test-{name(manifold, shape)}", tuple(bases), fields)


globals().update({laws.__name__: laws for laws in (laws_of(*row) for row in MANIFOLDS)})


def test_every_row_has_its_laws():
    found = [value for key, value in globals().items() if key.startswith("Test-")]
    assert len(found) == len(MANIFOLDS)
    whole = [laws for laws in found if issubclass(laws, ManifoldLaws)]
    assert [laws.manifold.geodesics for laws in whole] == [m.geodesics for m, _ in GEOMETRIES]
