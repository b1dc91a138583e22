"""Geodesics, their logarithm and their distance: `expmap`, `logmap`, `dist` are one geometry."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.func import jvp

from manifoldnet.testing.law import Laws, derivative, law, near, steps
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["GeodesicLaws"]

# Some tens of operations, sums of some tens of products: 100 roundings are more than it takes.
_MANY = 100


class GeodesicLaws(Laws):
    """The exponential map, the logarithm and the distance."""

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
    def test_geodesics_have_constant_speed_and_go_on_as_they_began(
        self, seed: int, size: float
    ) -> None:
        """`‖γ'(t)‖ = ‖u‖` and `exp(γ(t), (1 − t) γ'(t)) = γ(1)`, where `γ(t) = exp(x, tu)`."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1, size)
        y, velocity = derivative(lambda t: m.expmap(x, t * u), 0.6, x)
        speed, there = m.component_inner(x, u), m.component_inner(y, velocity)
        bound = self.roundings(_MANY) * (1 + size)
        self.at_most((there / speed - 1).abs().max(), bound, "‖γ'(0.6)‖²/‖γ'(0)‖² − 1")
        # It is one curve, not one for each starting point.
        off = self.apart(m.expmap(y, 0.4 * velocity), m.expmap(x, u))
        self.at_most(off, bound, "exp(γ(0.6), 0.4 γ'(0.6)) − γ(1), relative,")

    @law(seed=seeds(), size=near)
    def test_log_inverts_exp(self, seed: int, size: float) -> None:
        """`log(x, exp(x, u)) = u` below the injectivity radius."""
        m, x = self.manifold, self.point(seed)
        u = self.tangent(x, seed + 1, size)
        back = m.logmap(x, m.expmap(x, u))
        # Absolute: y = exp(x, u) is rounded relative to x.
        bound = self.roundings(_MANY) * self.room(size) * (1 + size)
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
        # Both see x and y rounded, which is what is left of a distance of 1e-8.
        bound = self.roundings(_MANY) * (1 + size + 1 / size)
        # The speed is the same all the way, as another law says.
        z, velocity = derivative(lambda t: m.expmap(x, t * u), 0.4, x)
        travelled = float(m.norm(z, velocity))
        self.at_most(abs(dist / travelled - 1), bound, "dist(x, y)/∫‖γ'‖ dt − 1")
        self.at_most(abs(dist / float(m.norm(x, u)) - 1), bound, "dist(x, y)/‖log(x, y)‖ − 1")
        off = abs(float(m.dist2(x, y)) / dist**2 - 1)
        self.at_most(off, self.roundings(_MANY), "dist2(x, y)/dist(x, y)² − 1")

    @law(seed=seeds(), size=steps)
    def test_no_curve_is_shorter_than_the_distance(self, seed: int, size: float) -> None:
        """`dist(x, y) ≤ Σ dist(xᵢ, xᵢ₊₁)` over any way from x to y."""
        m, x = self.manifold, self.point(seed)
        u, bump = (self.tangent(x, seed + i, size) for i in (1, 2))
        # A wobbly way from x to exp(x, u), as the polygon of its points.
        times = [i / 8 for i in range(9)]
        way = [m.expmap(x, t * u + 0.1 * math.sin(math.pi * t) * bump) for t in times]
        walked = sum(float(m.dist(a, b)) for a, b in itertools.pairwise(way))
        excess = float(m.dist(x, way[-1])) - walked
        bound = self.roundings(_MANY) * (walked + self.unit)
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
            there, back = float(self.manifold.dist(a, b)), float(self.manifold.dist(b, a))
            # Absolute: ln(‖y‖/‖x‖) of near points carries the rounding of the quotient.
            bound = self.roundings(8) * (there + self.unit)
            self.at_most(abs(there - back), bound, "dist(x, y) − dist(y, x)")

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

        Where the manifold has a Hessian, for f(y) = a·y + (b·y)²/2.
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
        """The length of a differential, what is normal to the manifold included."""
        return float(self.manifold.norm(x, self.manifold.sharp(x, g)))
