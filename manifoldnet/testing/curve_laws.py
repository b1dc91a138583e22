"""Laws of curves on a manifold: geodesics, parallel transport, retractions.

class TestMyRetraction(RetractionLaws):          # for a new retraction on a known manifold
manifold = Oblique(retraction=MyRetraction())
shape = (5, 4)
"""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from manifoldnet.testing.checks import fit_line
from manifoldnet.testing.law import Laws, derivative, far, law, near, steps
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["GeodesicLaws", "RetractionLaws", "TransportLaws"]

# Some tens of operations, sums of some tens of products: 100 roundings are more than it takes.
_MANY = 100
# A retraction differs by O(t²) at least; the terms that follow change the slope a little.
_SLOPE = 1.95


class GeodesicLaws(Laws):
    """The exponential map, the logarithm, the distance and the Hessian: one geometry."""

    @law(seed=seeds())
    def test_geodesic_without_velocity_stays(self, seed: int) -> None:
        """`exp(x, 0) = x`."""
        x = self.point(seed)
        off = self.apart(self.manifold.expmap(x, torch.zeros_like(x)), x)
        self.at_most(off, self.roundings(8), "exp(x, 0) − x, relative,")

    @law(seed=seeds(), size=sizes(1e-8, 1e3))
    def test_geodesic_starts_with_its_velocity(self, seed: int, size: float) -> None:
        """`d/dt exp(x, tu) = u` at t = 0."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        _, velocity = derivative(lambda t: self.manifold.expmap(x, t * u), 0.0, x)
        off = self.relative(x, velocity, u)
        self.at_most(off, self.roundings(_MANY), "d/dt exp(x, tu) − u at t = 0, relative,")

    @law(seed=seeds(), size=steps)
    def test_geodesics_stay_on_the_manifold(self, seed: int, size: float) -> None:
        """`exp(x, u)` is on the manifold."""
        x = self.point(seed)
        y = self.manifold.expmap(x, self.tangent(x, seed + 1, size))
        self.at_most(self.manifold.violation(y).max(), self.roundings(8), "violation(exp(x, u))")

    @law(seed=seeds(), size=steps)
    def test_geodesics_have_constant_speed_and_continue_each_other(
        self, seed: int, size: float
    ) -> None:
        """`‖γ'(t)‖ = ‖u‖` and `exp(γ(t), (1 − t) γ'(t)) = γ(1)`, where `γ(t) = exp(x, tu)`."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1, size)
        y, velocity = derivative(lambda t: m.expmap(x, t * u), 0.6, x)
        before, after = m.component_inner(x, u), m.component_inner(y, velocity)
        bound = self.roundings(_MANY) * (1 + size)
        change = (after - before).abs() / torch.where(before > 0, before, 1.0)
        self.at_most(change.max(), bound, "‖γ'(0.6)‖²/‖γ'(0)‖² − 1")
        # The geodesic from γ(0.6) continues the one from x.
        off = self.apart(m.expmap(y, 0.4 * velocity), m.expmap(x, u))
        self.at_most(off, bound, "exp(γ(0.6), 0.4 γ'(0.6)) − γ(1), relative,")

    @law(seed=seeds(), size=near)
    def test_log_inverts_exp(self, seed: int, size: float) -> None:
        """`log(x, exp(x, u)) = u` below the injectivity radius."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1, size)
        back = m.logmap(x, m.expmap(x, u))
        # Absolute: y = exp(x, u) is rounded relative to x.
        bound = self.roundings(_MANY) * self.condition(size) * (1 + size)
        self.at_most(self.length(x, back - u), bound, "the length of log(x, exp(x, u)) − u")

    @law(seed=seeds())
    def test_exp_inverts_log(self, seed: int) -> None:
        """`exp(x, log(x, y)) = y`, and the logarithm is tangent."""
        m = self.manifold
        x, y = self.pair(seed)
        u = m.logmap(x, y)
        self.holds(m.check_vector_on_tangent(x, u), "log(x, y) is not tangent at x")
        off = self.apart(m.expmap(x, u), y)
        self.at_most(off, self.roundings(_MANY), "exp(x, log(x, y)) − y, relative,")

    @law(seed=seeds(), size=near)
    def test_distance_is_the_length_of_the_geodesic(self, seed: int, size: float) -> None:
        """`dist(x, y) = ∫ ‖γ'(t)‖ dt = ‖log(x, y)‖` of the geodesic; `dist2` is its square."""
        m, x = self.manifold, self.point(seed)
        y = m.expmap(x, self.tangent(x, seed + 1, size))
        u = m.logmap(x, y)
        dist = float(m.dist(x, y))
        # Both use the rounded x and y, which matters at distances of 1e-8.
        bound = self.roundings(_MANY) * (1 + size + 1 / size)
        # The speed is constant by another law.
        z, velocity = derivative(lambda t: m.expmap(x, t * u), 0.4, x)
        travelled = float(m.norm(z, velocity))
        self.at_most(abs(dist / travelled - 1), bound, "dist(x, y)/∫‖γ'‖ dt − 1")
        self.at_most(abs(dist / float(m.norm(x, u)) - 1), bound, "dist(x, y)/‖log(x, y)‖ − 1")
        off = abs(float(m.dist2(x, y)) / dist**2 - 1)
        self.at_most(off, self.roundings(_MANY), "dist2(x, y)/dist(x, y)² − 1")

    @law(seed=seeds(), size=steps)
    def test_no_curve_is_shorter_than_the_distance(self, seed: int, size: float) -> None:
        """`dist(x, y) ≤ Σ dist(xᵢ, xᵢ₊₁)` over any polygon from x to y."""
        m, x = self.manifold, self.point(seed)
        u, bump = (self.tangent(x, seed + i, size) for i in (1, 2))
        # A polygon on a perturbed geodesic from x to exp(x, u).
        times = [i / 8 for i in range(9)]
        polygon = [m.expmap(x, t * u + 0.1 * math.sin(math.pi * t) * bump) for t in times]
        length = sum(float(m.dist(a, b)) for a, b in itertools.pairwise(polygon))
        excess = float(m.dist(x, polygon[-1])) - length
        bound = self.roundings(_MANY) * (length + self.unit)
        self.at_most(excess, bound, "dist(x, y) − Σ dist(xᵢ, xᵢ₊₁)")

    @law(seed=seeds())
    def test_distance_to_itself_is_zero(self, seed: int) -> None:
        """`dist(x, x) = 0`."""
        x = self.point(seed)
        self.at_most(self.manifold.dist(x, x), self.roundings(8) * self.unit, "dist(x, x)")

    @law(seed=seeds(), size=near)
    def test_distance_is_symmetric(self, seed: int, size: float) -> None:
        """`dist(x, y) = dist(y, x)`, for points far apart and near to each other."""
        x, y = self.pair(seed)
        z = self.manifold.expmap(x, self.tangent(x, seed + 2, size))
        for a, b in ((x, y), (x, z)):
            one, other = float(self.manifold.dist(a, b)), float(self.manifold.dist(b, a))
            # Absolute: ln(‖y‖/‖x‖) of near points carries the rounding of the quotient.
            bound = self.roundings(8) * (one + self.unit)
            self.at_most(abs(one - other), bound, "dist(x, y) − dist(y, x)")

    @law(seed=seeds(), size=near)
    def test_distance_obeys_the_triangle_inequality(self, seed: int, size: float) -> None:
        """`dist(x, y) ≤ dist(x, z) + dist(z, y)`."""
        dist = self.manifold.dist
        x, y = self.pair(seed)
        z = self.manifold.expmap(x, self.tangent(x, seed + 2, size))
        slack = self.roundings(_MANY) * self.unit * math.sqrt(x.numel())
        for a, b, c in ((x, y, z), (y, z, x)):
            excess = float(dist(a, b) - dist(a, c) - dist(c, b))
            self.at_most(excess, slack, "dist(x, y) − dist(x, z) − dist(z, y)")

    @law(seed=seeds())
    def test_hessian_is_the_second_derivative_along_geodesics(self, seed: int) -> None:
        """`⟨Hess f[u], u⟩ = d²/dt² f(exp(x, tu))` at t = 0, and Hess f is symmetric and tangent.

        For f(y) = a·y + (b·y)²/2, on manifolds with a Hessian.
        """
        m, x = self.manifold, self.point(seed)
        a, b = self.ambient(seed + 1), self.ambient(seed + 2)
        u, v = (self.tangent(x, seed + i) for i in (3, 4))
        g = a + b * (b * x).sum()
        h = [b * (b * w).sum() for w in (u, v)]
        try:
            hess = [m.ehess2rhess(x, g, each, w) for each, w in zip(h, (u, v), strict=True)]
        except NotImplementedError:
            return
        size = self._differential(x, g) / self.unit * float(m.norm(x, u) * m.norm(x, v))
        size += max(self._differential(x, each) for each in h) * float(m.norm(x, u) + m.norm(x, v))
        for each in hess:
            off = m.norm(x, m.proju(x, each) - each)
            bound = self.roundings(_MANY) * (size / float(m.norm(x, u)))
            self.at_most(off, bound, "the part of Hess f[u] that is not tangent")

        def value(t: Tensor) -> Tensor:
            y = m.expmap(x, t * u)
            return (a * y).sum() + (b * y).sum().square() / 2

        def slope(t: Tensor) -> Tensor:
            rate: Tensor = jvp(value, (t,), (torch.ones_like(t),))[1]
            return rate

        _, second = derivative(slope, 0.0, x)
        size += self._differential(x, g) / self.unit * float(m.norm(x, u)) ** 2
        off = (m.inner(x, hess[0], u) - second).abs() / size
        self.at_most(off, self.roundings(_MANY), "⟨Hess f[u], u⟩ − d²/dt² f(exp(x, tu)), relative,")
        off = (m.inner(x, hess[0], v) - m.inner(x, u, hess[1])).abs() / size
        self.at_most(off, self.roundings(_MANY), "⟨Hess f[u], v⟩ − ⟨u, Hess f[v]⟩, relative,")

    def _differential(self, x: Tensor, g: Tensor) -> float:
        """The length of a differential, its part normal to the manifold included."""
        return float(self.manifold.norm(x, self.manifold.sharp(x, g)))


class TransportLaws(Laws):
    """Parallel transport between two points, and along a geodesic of any length."""

    @law(seed=seeds(), size=near)
    def test_transport_is_isometric(self, seed: int, size: float) -> None:
        """`transp(x, y, ·)` maps tangent vectors to tangent ones and preserves inner products."""
        x, u, y = self._geodesic(seed, size)
        vectors = [u, self.tangent(x, seed + 2, 100.0)]
        carried = [self.manifold.transp(x, y, v) for v in vectors]
        bound = self.roundings(_MANY) * self.condition(size)
        _check_isometric(self, "transp(x, y, v)", (x, vectors), (y, carried), bound)

    @law(seed=seeds(), size=near)
    def test_transport_back_undoes_transport(self, seed: int, size: float) -> None:
        """`transp(y, x, transp(x, y, v)) = v`."""
        x, _, y = self._geodesic(seed, size)
        v = self.tangent(x, seed + 2)
        back = self.manifold.transp(y, x, self.manifold.transp(x, y, v))
        bound = self.roundings(_MANY) * self.condition(size)
        what = "transp(y, x, transp(x, y, v)) − v, relative,"
        self.at_most(self.relative(x, back, v), bound, what)

    @law(seed=seeds(), size=near)
    def test_transport_follows_the_geodesic(self, seed: int, size: float) -> None:
        """`transp(x, y, ·)` is the transport along the geodesic to y, velocity to velocity."""
        m = self.manifold
        x, u, y = self._geodesic(seed, size)
        v = self.tangent(x, seed + 2)
        bound = self.roundings(_MANY) * self.condition(size)
        off = self.relative(y, m.transp_follow_expmap(x, u, v), m.transp(x, y, v))
        self.at_most(off, bound, "transp_follow_expmap(x, u, v) − transp(x, y, v), relative,")
        off = self.relative(y, -m.logmap(y, x), m.transp(x, y, m.logmap(x, y)))
        # A logarithm of length 1e-8 has half of the digits.
        bound = bound * (1 + 1 / size)
        self.at_most(off, bound, "log(y, x) + transp(x, y, log(x, y)), relative,")

    @law(seed=seeds(), size=near, a=st.floats(-5, 5), b=st.floats(-5, 5))
    def test_transport_is_linear(self, seed: int, size: float, a: float, b: float) -> None:
        """`T(a v + b w) = a T(v) + b T(w)` for `T = transp(x, y, ·)`, and along geodesics."""
        m = self.manifold
        x, u, y = self._geodesic(seed, size)
        v, w = (self.tangent(x, seed + i) for i in (2, 3))
        bound = self.roundings(_MANY) * self.condition(size) * (abs(a) + abs(b))
        for name, carry, to in (
            ("transp", m.transp, y),
            ("transp_follow_expmap", m.transp_follow_expmap, u),
        ):
            of_sum = carry(x, to, a * v + b * w)
            off = self.length(y, of_sum - (a * carry(x, to, v) + b * carry(x, to, w)))
            self.at_most(off, bound, f"the length of {name}(a v + b w) − a {name}(v) − b {name}(w)")

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_is_isometric(self, seed: int, size: float) -> None:
        """`expmap_transp` ends at `exp(x, u)` and preserves inner products."""
        x, u, y = self._geodesic(seed, size)
        vectors = [u, self.tangent(x, seed + 2, 100.0)]
        ends, carried = zip(*(self.manifold.expmap_transp(x, u, v) for v in vectors), strict=True)
        self.at_most(self.apart(ends[0], y), self.roundings(8), "its end − exp(x, u), relative,")
        bound = self.roundings(_MANY) * (1 + size)
        _check_isometric(self, "expmap_transp(x, u, v)", (x, vectors), (y, list(carried)), bound)

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_keeps_its_velocity(self, seed: int, size: float) -> None:
        """Transport maps the initial velocity to the final one, and the way back inverts it."""
        m = self.manifold
        x, u, y = self._geodesic(seed, size)
        v = self.tangent(x, seed + 2)
        end_velocity, w = (m.transp_follow_expmap(x, u, each) for each in (u, v))
        _, velocity = derivative(lambda t: m.expmap(x, t * u), 1.0, x)
        bound = self.roundings(_MANY) * (1 + size)
        off = self.relative(y, end_velocity, velocity)
        self.at_most(off, bound, "transp_follow_expmap(x, u, u) − d/dt exp(x, tu), relative,")
        start, back = m.expmap_transp(y, -end_velocity, w)
        self.at_most(self.apart(start, x), bound, "the end of the way back − x, relative,")
        self.at_most(self.relative(x, back, v), bound, "v transported back − v, relative,")

    @law(seed=seeds())
    def test_transport_along_a_geodesic_has_no_torsion(self, seed: int) -> None:
        """`d/dt transp_follow_expmap(x, tu, v)` at t = 0 is the same with u and v exchanged.

        Among linear transports, isometry and this law characterize that of the Levi-Civita
        connection: in coordinates the Christoffel symbols are symmetric; on a submanifold transport
        agrees with the tangent projection to second order.
        """
        x = self.point(seed)
        u, v = (self.tangent(x, seed + i) for i in (1, 2))
        changes = []
        for direction, vector in ((u, v), (v, u)):

            def curve(t: Tensor, direction: Tensor = direction, vector: Tensor = vector) -> Tensor:
                return self.manifold.transp_follow_expmap(x, t * direction, vector)

            changes.append(derivative(curve, 0.0, x)[1])
        off = self.length(x, changes[0] - changes[1])
        self.at_most(off, self.roundings(_MANY), "the length of d/dt (T(tu) v − T(tv) u) at t = 0")

    @law(seed=seeds(), size=far)
    def test_transport_along_a_geodesic_composes(self, seed: int, size: float) -> None:
        """Transport along a geodesic is that along its first half, then along its second."""
        m = self.manifold
        x, u, _ = self._geodesic(seed, size)
        v = self.tangent(x, seed + 2)
        middle, half = m.expmap_transp(x, u / 2, u / 2)
        in_parts = m.expmap_transp(middle, half, m.transp_follow_expmap(x, u / 2, v))[1]
        y, w = m.expmap_transp(x, u, v)
        bound = self.roundings(_MANY) * (1 + size)
        self.at_most(self.relative(y, in_parts, w), bound, "v in two parts − v in one, relative,")

    def _geodesic(self, seed: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
        """A point, a tangent vector, and the end point of the geodesic with that velocity."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        return x, u, self.manifold.expmap(x, u)


class RetractionLaws(Laws):
    """The retraction, and the vector transport along its steps."""

    @law(seed=seeds())
    def test_retraction_of_zero(self, seed: int) -> None:
        """`retr(x, 0) = x`."""
        x = self.point(seed)
        off = self.apart(self.manifold.retr(x, torch.zeros_like(x)), x)
        self.at_most(off, self.roundings(8), "retr(x, 0) − x, relative,")

    @law(seed=seeds(), size=sizes(1e-8, 1e3))
    def test_retraction_starts_with_its_velocity(self, seed: int, size: float) -> None:
        """`d/dt retr(x, tu) = u` at t = 0."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        _, velocity = derivative(lambda t: self.manifold.retr(x, t * u), 0.0, x)
        off = self.relative(x, velocity, u)
        self.at_most(off, self.roundings(_MANY), "d/dt retr(x, tu) − u at t = 0, relative,")

    @law(seed=seeds())
    def test_retraction_agrees_with_the_geodesic_to_first_order(self, seed: int) -> None:
        """`dist(retr(x, tu), exp(x, tu)) = O(t²)` as t → 0: a slope of at least 1.95."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1)
        floor = self.roundings(_MANY) * self.unit * math.sqrt(x.numel())
        measured = []
        for t in (2.0**-4, 2.0**-5, 2.0**-6, 2.0**-7):
            y, z = m.retr(x, t * u), m.expmap(x, t * u)
            gap = float((y - z).norm() if "dist" in self.lacks else m.dist(y, z))
            if not gap <= floor:  # below it there is rounding only
                measured.append((math.log(t), math.log(gap)))
        if len(measured) > 1:
            slope, _ = fit_line(measured)
            fault = f"dist(retr(x, tu), exp(x, tu)) is O(t^{slope:.2f}) as t → 0"
            self.holds(slope >= _SLOPE, f"{fault}, where O(t^{_SLOPE}) is required")

    @law(seed=seeds(), size=steps)
    def test_steps_end_on_the_manifold(self, seed: int, size: float) -> None:
        """`retr(x, u)` is on the manifold."""
        x = self.point(seed)
        y = self.manifold.retr(x, self.tangent(x, seed + 1, size))
        self.at_most(self.manifold.violation(y).max(), self.roundings(8), "violation(retr(x, u))")

    @law(seed=seeds(), size=steps)
    def test_steps_in_single_precision_end_on_the_manifold(self, seed: int, size: float) -> None:
        """`retr(x, u)` and `retr_transp(x, u, u)` are on the manifold in float32, to float32."""
        x = self.point(seed).float()
        u = self.tangent(x, seed + 1, size)
        bound = 8 * self.slack * torch.finfo(torch.float32).eps
        for name, y in {
            "retr(x, u)": self.manifold.retr(x, u),
            "retr_transp(x, u, u)": self.manifold.retr_transp(x, u, u)[0],
        }.items():
            self.at_most(self.manifold.violation(y).max(), bound, f"violation of {name} in float32")

    @law(seed=seeds(), size=steps)
    def test_transport_along_a_step_goes_with_it(self, seed: int, size: float) -> None:
        """`retr_transp(x, u, v)` ends at `retr(x, u)`, with v tangent there; v itself if u = 0."""
        m, x = self.manifold, self.point(seed)
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2)
        y, w = m.retr_transp(x, u, v)
        off = self.apart(y, m.retr(x, u))
        self.at_most(off, self.roundings(8), "the end of retr_transp − retr(x, u), relative,")
        off = self.relative(y, m.proju(y, w), w)
        self.at_most(off, self.roundings(_MANY) * (1 + size), "its part that is not tangent")
        off = self.relative(x, m.transp_follow_retr(x, torch.zeros_like(u), v), v)
        self.at_most(off, self.roundings(_MANY), "transp_follow_retr(x, 0, v) − v, relative,")

    @law(seed=seeds(), size=steps, a=st.floats(-5, 5), b=st.floats(-5, 5))
    def test_transport_along_a_step_is_linear(
        self, seed: int, size: float, a: float, b: float
    ) -> None:
        """`transp_follow_retr(x, u, ·)` is linear."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1, size)
        v, w = (self.tangent(x, seed + i) for i in (2, 3))
        of_v, of_w, of_sum = (m.transp_follow_retr(x, u, z) for z in (v, w, a * v + b * w))
        y = m.retr(x, u)
        scale = abs(a) * self.length(y, of_v) + abs(b) * self.length(y, of_w)
        off = self.length(y, of_sum - (a * of_v + b * of_w))
        bound = self.roundings(_MANY) * (1 + size) * scale
        self.at_most(off, bound, "the length of T(a v + b w) − a T(v) − b T(w)")

    @law(seed=seeds(), size=steps)
    def test_transport_along_a_step_is_isometric(self, seed: int, size: float) -> None:
        """`transp_follow_retr(x, u, ·)` preserves inner products."""
        m, x = self.manifold, self.point(seed)
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2, 100.0)
        y = m.retr(x, u)
        carried = [m.transp_follow_retr(x, u, each) for each in (u, v)]
        bound = self.roundings(_MANY) * (1 + size)
        _check_isometric(self, "transp_follow_retr(x, u, v)", (x, [u, v]), (y, carried), bound)


def _check_isometric(
    laws: Laws,
    name: str,
    start: tuple[Tensor, list[Tensor]],
    end: tuple[Tensor, list[Tensor]],
    bound: float,
) -> None:
    """Assert that transported vectors are tangent, with the same inner products in every slice.

    Args:
        laws: the class whose manifold it is.
        name: of a transported vector, in messages.
        start: a point and tangent vectors at it.
        end: the other point and the transported vectors.
        bound: of the errors, relative to the lengths of the vectors.
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
