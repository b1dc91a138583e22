"""The laws of a manifold, as a test class for one's own.

    from manifoldnet.testing import ManifoldLaws

    class TestPositive(ManifoldLaws):
        manifold = Positive()
        shape = (4, 3)

`ManifoldLaws` puts together

    ValueLaws        frozen, equal, picklable, described by its spec; methods without side effects
    PointLaws        the projection to the set, checks of points, random points
    MetricLaws       the projection to tangent spaces, the inner product, the gradient
    GeodesicLaws     exp, log and dist
    TransportLaws    parallel transport
    RetractionLaws   retr, retr_transp: all that a new retraction on a known manifold needs
"""

from __future__ import annotations

from manifoldnet.testing.laws_of_geodesics import GeodesicLaws
from manifoldnet.testing.laws_of_metrics import MetricLaws
from manifoldnet.testing.laws_of_points import PointLaws
from manifoldnet.testing.laws_of_retractions import RetractionLaws
from manifoldnet.testing.laws_of_transport import TransportLaws
from manifoldnet.testing.laws_of_values import ValueLaws

__all__ = ["ManifoldLaws"]


class ManifoldLaws(ValueLaws, PointLaws, MetricLaws, GeodesicLaws, TransportLaws, RetractionLaws):
    """What must hold on every manifold; subclass it and give it a `manifold` and a `shape`.

    Each law is one test method, which hypothesis runs with seeds and sizes of steps. One that fails
    says which law it is, for which manifold, how much it is off and how much is allowed, at the
    simplest seed and size at which it does. Sizes are lengths in natural units: radians on a
    sphere (anything with a `radius`), the metric's own length elsewhere.

    A law that is not meant to hold is switched off by its name, and one with a reason of its own is
    overridden like any method:

        class TestAdditiveStep(ManifoldLaws):
            manifold, shape = ScaledEuclidean(retraction="additive"), (5, 4)
            test_transport_along_a_step_is_isometric = None

    Curves are differentiated in forward mode (`torch.func.jvp`), so what `expmap` and `retr` are
    made of must know it.

    Attributes:
        manifold: the manifold; to be given.
        shape: the shape of its points; to be given.
        dtype: the type they are drawn and computed in, float64 if not changed.
        slack: what every bound is multiplied by. Bounds are 8 to 100 roundings, right for
            elementary functions and sums of some tens of numbers; a manifold made of matrix
            decompositions, or of large slices, asks for a slack of 10 or more.
        injectivity: the length up to which every geodesic is the shortest one, so that `logmap`
            inverts `expmap` below it: π for spheres (in radians), ∞ if not changed.
        longest: the longest step that is drawn, 30 if not changed. Less where `expmap` leaves the
            range or the precision of the type sooner.
        examples: how many examples each law tries. If not given, a tenth of the `max_examples` of
            the hypothesis profile that is loaded when the class is defined: 10 by default, 100
            with a profile of 1000 (`pytest --hypothesis-profile thorough`).

    What is drawn can be overridden as well: `point(seed)`, `tangent(x, seed, size)`, `pair(seed)`
    (two points that a geodesic joins; where the manifold has several pieces, they must be in the
    same one) and `ambient(seed, size)` (what `projx` and `proju` have to put right).
    """
