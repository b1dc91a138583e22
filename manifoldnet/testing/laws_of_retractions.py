"""Retractions: a step that begins as the geodesic does, and the transport along that step.

    class TestMyRetraction(RetractionLaws):          # for a new retraction on a known manifold
        manifold = Oblique(retraction=MyRetraction())
        shape = (5, 4)

`ManifoldLaws` has these tests among others.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from manifoldnet.testing.law import Laws, derivative, law, steps
from manifoldnet.testing.laws_of_transport import check_isometric
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["RetractionLaws"]

_MANY = 100
# A retraction is of order t² at least; the terms that follow change the slope a little.
_SLOPE = 1.95


class RetractionLaws(Laws):
    """Laws in which the retraction takes part; all others are about the geometry alone."""

    @law(seed=seeds())
    def test_no_step_is_no_move(self, seed: int) -> None:
        """`retr(x, 0) = x`."""
        x = self.point(seed)
        off = self.apart(self.manifold.retr(x, torch.zeros_like(x)), x)
        self.at_most(off, self.roundings(8), "retr(x, 0) − x, relative,")

    @law(seed=seeds(), size=sizes(1e-8, 1e3))
    def test_retraction_starts_with_the_velocity_asked_for(self, seed: int, size: float) -> None:
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
            gap = float(m.dist(m.retr(x, t * u), m.expmap(x, t * u)))
            if not gap <= floor:  # what is below is as good as exact
                measured.append((math.log(t), math.log(gap)))
        if len(measured) > 1:
            slope = _slope(measured)
            fault = f"dist(retr(x, tu), exp(x, tu)) falls like t^{slope:.2f} as t → 0"
            self.holds(slope >= _SLOPE, f"{fault}, where at least t^{_SLOPE} is asked for")

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
        """`transp_follow_retr(x, u, ·)` keeps inner products."""
        m, x = self.manifold, self.point(seed)
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2, 100.0)
        y = m.retr(x, u)
        carried = [m.transp_follow_retr(x, u, each) for each in (u, v)]
        bound = self.roundings(_MANY) * (1 + size)
        check_isometric(self, "transp_follow_retr(x, u, v)", (x, [u, v]), (y, carried), bound)


def _slope(points: list[tuple[float, float]]) -> float:
    """The slope of the straight line that fits best."""
    x, y = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())
