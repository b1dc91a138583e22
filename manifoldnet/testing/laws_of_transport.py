"""Parallel transport between two points, and along a geodesic of any length."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from torch import Tensor

from manifoldnet.testing.law import Laws, derivative, far, law, near
from manifoldnet.testing.strategies import seeds

__all__ = ["TransportLaws", "check_isometric"]

_MANY = 100


class TransportLaws(Laws):
    """Transport keeps inner products, is linear, and follows the geodesic."""

    @law(seed=seeds(), size=near)
    def test_transport_is_isometric(self, seed: int, size: float) -> None:
        """`transp(x, y, ·)` maps tangent vectors to tangent vectors and keeps inner products."""
        x, u, y = self._way(seed, size)
        vectors = [u, self.tangent(x, seed + 2, 100.0)]
        carried = [self.manifold.transp(x, y, v) for v in vectors]
        bound = self.roundings(_MANY) * self.room(size)
        check_isometric(self, "transp(x, y, v)", (x, vectors), (y, carried), bound)

    @law(seed=seeds(), size=near)
    def test_transport_back_undoes_transport(self, seed: int, size: float) -> None:
        """`transp(y, x, transp(x, y, v)) = v`."""
        x, _, y = self._way(seed, size)
        v = self.tangent(x, seed + 2)
        back = self.manifold.transp(y, x, self.manifold.transp(x, y, v))
        bound = self.roundings(_MANY) * self.room(size)
        what = "transp(y, x, transp(x, y, v)) − v, relative,"
        self.at_most(self.relative(x, back, v), bound, what)

    @law(seed=seeds(), size=near)
    def test_transport_follows_the_geodesic(self, seed: int, size: float) -> None:
        """`transp(x, y, v)` is v carried along the geodesic to y, its velocity to its velocity."""
        m = self.manifold
        x, u, y = self._way(seed, size)
        v = self.tangent(x, seed + 2)
        bound = self.roundings(_MANY) * self.room(size)
        off = self.relative(y, m.transp_follow_expmap(x, u, v), m.transp(x, y, v))
        self.at_most(off, bound, "transp_follow_expmap(x, u, v) − transp(x, y, v), relative,")
        off = self.relative(y, -m.logmap(y, x), m.transp(x, y, m.logmap(x, y)))
        # What is left of a logarithm of 1e-8 are half of the digits.
        bound = bound * (1 + 1 / size)
        self.at_most(off, bound, "log(y, x) + transp(x, y, log(x, y)), relative,")

    @law(seed=seeds(), size=near, a=st.floats(-5, 5), b=st.floats(-5, 5))
    def test_transport_is_linear(self, seed: int, size: float, a: float, b: float) -> None:
        """`transp(x, y, a v + b w) = a transp(x, y, v) + b transp(x, y, w)`; so along geodesics."""
        m = self.manifold
        x, u, y = self._way(seed, size)
        v, w = (self.tangent(x, seed + i) for i in (2, 3))
        bound = self.roundings(_MANY) * self.room(size) * (abs(a) + abs(b))
        for name, carry, to in (
            ("transp", m.transp, y),
            ("transp_follow_expmap", m.transp_follow_expmap, u),
        ):
            of_sum = carry(x, to, a * v + b * w)
            off = self.length(y, of_sum - (a * carry(x, to, v) + b * carry(x, to, w)))
            self.at_most(off, bound, f"the length of {name}(a v + b w) − a {name}(v) − b {name}(w)")

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_is_isometric(self, seed: int, size: float) -> None:
        """`expmap_transp` ends at `exp(x, u)`, with the inner products it began with."""
        x, u, y = self._way(seed, size)
        vectors = [u, self.tangent(x, seed + 2, 100.0)]
        ends, carried = zip(*(self.manifold.expmap_transp(x, u, v) for v in vectors), strict=True)
        self.at_most(self.apart(ends[0], y), self.roundings(8), "its end − exp(x, u), relative,")
        bound = self.roundings(_MANY) * (1 + size)
        check_isometric(self, "expmap_transp(x, u, v)", (x, vectors), (y, list(carried)), bound)

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_keeps_its_velocity(self, seed: int, size: float) -> None:
        """The velocity is carried to the velocity, and back along it everything comes home."""
        m = self.manifold
        x, u, y = self._way(seed, size)
        v = self.tangent(x, seed + 2)
        ahead, w = (m.transp_follow_expmap(x, u, each) for each in (u, v))
        _, velocity = derivative(lambda t: m.expmap(x, t * u), 1.0, x)
        bound = self.roundings(_MANY) * (1 + size)
        off = self.relative(y, ahead, velocity)
        self.at_most(off, bound, "transp_follow_expmap(x, u, u) − d/dt exp(x, tu), relative,")
        home, back = m.expmap_transp(y, -ahead, w)
        self.at_most(self.apart(home, x), bound, "the way back's end − x, relative,")
        self.at_most(self.relative(x, back, v), bound, "v carried there and back − v, relative,")

    @law(seed=seeds())
    def test_transport_along_a_geodesic_has_no_torsion(self, seed: int) -> None:
        """`d/dt transp_follow_expmap(x, tu, v)` at t = 0 is the same with u and v exchanged.

        With isometry this singles out the transport of the metric among all that are linear: in
        coordinates, the Christoffel symbols are symmetric; on a submanifold, transport agrees with
        the tangent projection to second order.
        """
        x = self.point(seed)
        u, v = (self.tangent(x, seed + i) for i in (1, 2))
        changes = []
        for along, carried in ((u, v), (v, u)):

            def curve(t: Tensor, along: Tensor = along, carried: Tensor = carried) -> Tensor:
                return self.manifold.transp_follow_expmap(x, t * along, carried)

            changes.append(derivative(curve, 0.0, x)[1])
        off = self.length(x, changes[0] - changes[1])
        self.at_most(off, self.roundings(_MANY), "the length of d/dt (T(tu) v − T(tv) u) at t = 0")

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_goes_in_parts(self, seed: int, size: float) -> None:
        """Transport along a geodesic is that along its first half, then along the second."""
        m = self.manifold
        x, u, _ = self._way(seed, size)
        v = self.tangent(x, seed + 2)
        middle, half = m.expmap_transp(x, u / 2, u / 2)
        in_parts = m.expmap_transp(middle, half, m.transp_follow_expmap(x, u / 2, v))[1]
        y, w = m.expmap_transp(x, u, v)
        bound = self.roundings(_MANY) * (1 + size)
        self.at_most(self.relative(y, in_parts, w), bound, "v in two parts − v in one, relative,")

    def _way(self, seed: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
        """A point, a tangent vector, and the end of the geodesic with that velocity."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        return x, u, self.manifold.expmap(x, u)


def check_isometric(
    laws: Laws,
    name: str,
    start: tuple[Tensor, list[Tensor]],
    end: tuple[Tensor, list[Tensor]],
    bound: float,
) -> None:
    """Tangent at the end, and every inner product as before, slice by slice.

    Args:
        laws: the class whose manifold it is.
        name: what to call a vector at the end.
        start: a point and tangent vectors at it.
        end: the point and the vectors that they were carried to.
        bound: how far off may they be, relative to the vectors' lengths.
    """
    (x, vectors), (y, carried) = start, end
    inner = laws.manifold.component_inner
    sizes = [laws.length(x, v) for v in vectors]
    for w, size in zip(carried, sizes, strict=True):
        off = laws.length(y, laws.manifold.proju(y, w) - w) / size
        laws.at_most(off, bound, f"the part of {name} that is not tangent, relative,")
    for i, j in itertools.combinations_with_replacement(range(len(vectors)), 2):
        before, after = inner(x, vectors[i], vectors[j]), inner(y, carried[i], carried[j])
        off = float((after - before).abs().max()) / (sizes[i] * sizes[j] * laws.unit**2)
        laws.at_most(
            off, bound, f"the change of an inner product ⟨v, w⟩ by {name}, against ‖v‖‖w‖,"
        )
