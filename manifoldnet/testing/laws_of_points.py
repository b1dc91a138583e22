"""Points: the projection to the set, the checks at the door, and random ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from manifoldnet.testing.law import Laws, law
from manifoldnet.testing.samples import source
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["PointLaws"]

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _ambient_sizes(laws: type[Laws]) -> SearchStrategy[float]:
    """Sizes whose tenth power does not overflow: 10⁻³⁰ to 10³⁰ in double precision."""
    largest = torch.finfo(laws.dtype).max ** 0.1
    return sizes(1 / largest, largest)


class PointLaws(Laws):
    """What is a point, and how one is made."""

    @law(seed=seeds(), size=_ambient_sizes)
    def test_projection_lands_on_the_manifold(self, seed: int, size: float) -> None:
        """`projx(z)` is on the manifold for any tensor z."""
        y = self.manifold.projx(self.ambient(seed, size))
        # A norm, its root and one division.
        self.at_most(self.manifold.violation(y).max(), self.roundings(8), "violation(projx(z))")

    @law(seed=seeds(), size=_ambient_sizes)
    def test_projection_is_idempotent(self, seed: int, size: float) -> None:
        """`projx(projx(z)) = projx(z)`."""
        y = self.manifold.projx(self.ambient(seed, size))
        off = self.apart(self.manifold.projx(y), y)
        self.at_most(off, self.roundings(8), "projx(projx(z)) − projx(z), relative,")

    @law(seed=seeds())
    def test_projection_leaves_points_where_they_are(self, seed: int) -> None:
        """`projx(x) = x` for a point x."""
        x = self.point(seed)
        off = self.apart(self.manifold.projx(x), x)
        self.at_most(off, self.roundings(8), "projx(x) − x, relative,")

    @law(seed=seeds())
    def test_points_are_accepted(self, seed: int) -> None:
        """Every check accepts points, in every type."""
        m = self.manifold
        for dtype in _TYPES:
            x = m.projx(self.ambient(seed).to(dtype))
            self.holds(m.check_point(x), f"check_point refuses projx(z) in {dtype}")
            on = m.check_point_on_manifold(x)
            self.holds(on, f"check_point_on_manifold refuses projx(z) in {dtype}: {m.validate(x)}")
            m.assert_check_point_on_manifold(x)

    @law(seed=seeds())
    def test_what_is_no_point_is_refused(self, seed: int) -> None:
        """Whole numbers, empty tensors and entries that are not finite are no points."""
        m = self.manifold
        for what, x in {
            "a tensor of whole numbers": torch.ones(self.shape, dtype=torch.int64),
            "an empty tensor": torch.ones((0, *self.shape[1:]), dtype=self.dtype),
        }.items():
            self.holds(not m.check_point(x), f"check_point accepts {what}")
            self._refuses(m.assert_check_point, x, what)
        for bad in (torch.nan, torch.inf):
            x = self.point(seed).clone()
            x.view(-1)[-1] = bad
            on = m.check_point_on_manifold(x)
            self.holds(not on, f"check_point_on_manifold accepts an entry {bad}")
            for check in (m.assert_check_point_on_manifold, m.projx):
                self._refuses(check, x, f"an entry {bad}")

    def _refuses(self, check: Callable[[Tensor], object], x: Tensor, what: str) -> None:
        __tracebackhide__ = True
        try:
            check(x)
        except ValueError:
            return
        self.holds(False, f"{check.__name__} raises no ValueError for {what}")

    @law(seed=seeds())
    def test_random_points_are_points(self, seed: int) -> None:
        """`random` gives points of the shape and type asked for."""
        m = self.manifold
        for dtype in _TYPES:
            x = m.random(self.shape, dtype=dtype, generator=source(seed))
            ok = type(x) is Tensor and x.dtype == dtype and x.shape == self.shape
            given = f"{type(x).__name__} of {x.dtype} and shape {tuple(x.shape)}"
            self.holds(ok, f"random gives a {given} when asked for {dtype}, {tuple(self.shape)}")
            bound = 4 * self.slack * torch.finfo(dtype).eps
            self.at_most(m.violation(x).max(), bound, f"violation(random(…)) in {dtype}")

    @law(seed=seeds())
    def test_random_points_repeat(self, seed: int) -> None:
        """One seed, one point, however the shape is given; torch's generator serves by default."""
        draw = self.manifold.random
        first = draw(self.shape, generator=source(seed))
        for again in (
            draw(*self.shape, generator=source(seed)),
            draw(torch.Size(self.shape), generator=source(seed)),
        ):
            self.holds(torch.equal(again, first), "random gives two points for one seed")
        other = draw(self.shape, generator=source(seed + 1))
        self.holds(not torch.equal(other, first), "random gives one point for two seeds")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first = draw(self.shape)
            torch.manual_seed(seed)
            self.holds(torch.equal(draw(self.shape), first), "random ignores torch.manual_seed")

    @law()
    def test_random_points_are_on_all_sides(self) -> None:
        """Entries of random points have both signs, where −x is a point whenever x is one."""
        m, generator = self.manifold, source(0)
        points = [m.random(self.shape, dtype=self.dtype, generator=generator) for _ in range(64)]
        if not all(m.check_point_on_manifold(-x) for x in points[:4]):
            return
        positive = torch.stack([x > 0 for x in points])
        mixed = positive.any(0) & ~positive.all(0)
        fault = (
            f"{int((~mixed).sum())} of {mixed.numel()} entries have one sign in 64 random points"
        )
        self.holds(bool(mixed.all()), fault)

    @law(seed=seeds())
    def test_random_tangent_vectors_are_tangent(self, seed: int) -> None:
        """`random_tangent` gives tangent vectors of the point's type; one seed, one vector."""
        m = self.manifold
        for dtype in _TYPES:
            x = m.random(self.shape, dtype=dtype, generator=source(seed))
            u, again = (m.random_tangent(x, generator=source(seed + 1)) for _ in range(2))
            ok = u.dtype == dtype and u.shape == x.shape
            self.holds(ok, f"random_tangent gives {u.dtype}, {tuple(u.shape)} at {dtype}")
            self.holds(m.check_vector_on_tangent(x, u), f"random_tangent is not tangent in {dtype}")
            self.holds(torch.equal(again, u), "random_tangent gives two vectors for one seed")
