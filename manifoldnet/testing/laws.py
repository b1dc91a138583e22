"""The laws of a manifold, as a test class for one's own.

    from manifoldnet.testing import ManifoldLaws

    class TestPositive(ManifoldLaws):
        manifold = Positive()
        shape = (4, 3)

`ManifoldLaws` puts together

    ValueLaws        frozen, equal, picklable, described by its spec; methods without side effects
    PointLaws        the projection onto the manifold, checks of points, random points
    MetricLaws       the projection onto tangent spaces, the inner product, the gradient
    GeodesicLaws     exp, log and dist                    (`manifoldnet.testing.curve_laws`)
    TransportLaws    parallel transport
    RetractionLaws   retr, retr_transp: all that a new retraction on a known manifold needs
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

import manifoldnet.geometry
from manifoldnet.geometry import Manifold, from_geoopt, from_spec
from manifoldnet.testing.curve_laws import GeodesicLaws, RetractionLaws, TransportLaws
from manifoldnet.testing.law import Laws, law, steps
from manifoldnet.testing.samples import source
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["ManifoldLaws", "MetricLaws", "PointLaws", "ValueLaws"]

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Bounds are for sums of some tens of products and a handful of operations on each: tens of
# roundings, not hundreds.
_MANY = 50

# The largest dimension for which the rank of the projection is computed: it takes a second.
_COUNTED = 512

_any = sizes(1e-8, 1e8)


class ValueLaws(Laws):
    """A manifold is a frozen value, and its methods are functions of their arguments alone."""

    @law()
    def test_equal_to_its_copies(self) -> None:
        """Copies and pickles of a manifold are equal to it, with equal hashes."""
        for how, other in self._copies():
            self.holds(other == self.manifold, f"its {how} is not equal to it")
            self.holds(hash(other) == hash(self.manifold), f"its {how} has another hash")
        for stranger in (None, str(self.manifold), object()):
            self.holds(self.manifold != stranger, f"it is equal to {stranger!r}")

    def _copies(self) -> Iterator[tuple[str, Manifold]]:
        yield "copy", copy.copy(self.manifold)
        yield "deepcopy", copy.deepcopy(self.manifold)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            yield f"pickle {protocol}", pickle.loads(pickle.dumps(self.manifold, protocol))

    @law(seed=seeds())
    def test_copies_step_alike(self, seed: int) -> None:
        """A copy has the same retraction, bit for bit."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1)
        y = self.manifold.retr(x, u)
        for how, other in self._copies():
            self.holds(torch.equal(other.retr(x, u), y), f"retr of its {how} differs")

    @law()
    def test_frozen(self) -> None:
        """Neither a manifold nor its parts can be changed."""
        m = self.manifold
        fields = ("dim", "metric", "projection", "retraction", "geodesics", "new")
        for field in fields:
            self.holds(_frozen(m, field), f"its attribute {field!r} can be set")
        for part in m.parts:
            self.holds(_frozen(part, "new"), f"attributes of {part} can be set")

    @law()
    def test_spec_survives_json(self) -> None:
        """`from_spec` makes an equal manifold of the spec, also of a copy by JSON."""
        spec = self.manifold.spec()
        back = json.loads(json.dumps(spec, allow_nan=False))
        self.holds(back == spec, f"JSON changes its spec {spec} to {back}")
        other = from_spec(back)
        self.holds(other == self.manifold, f"from_spec(spec) is {other}")
        self.holds(other.spec() == spec, f"from_spec(spec).spec() is {other.spec()}")

    @law()
    def test_repr_is_the_call_that_makes_it(self) -> None:
        """`eval(repr(manifold)) == manifold`, if the repr can be evaluated where it is defined."""
        names = dict(vars(manifoldnet.geometry))
        for part in (self.manifold, *self.manifold.parts):
            names |= vars(sys.modules[type(part).__module__])
        try:
            made = eval(repr(self.manifold), names)
        except (NameError, SyntaxError):
            return  # a description in words
        made = from_geoopt(made)
        self.holds(made == self.manifold, f"eval(repr(manifold)) is {made!r}, not equal to it")

    @law(seed=seeds())
    def test_arguments_are_not_changed(self, seed: int) -> None:
        """No method changes the tensors that it is given."""
        x, y = self.pair(seed)
        u, v = (self.tangent(x, seed + i) for i in (2, 3))
        before = [t.clone() for t in (x, y, u, v)]
        for name, arguments in _calls(x, y, u, v).items():
            if name not in self.lacks:
                getattr(self.manifold, name)(*arguments)
            same = all(torch.equal(a, b) for a, b in zip((x, y, u, v), before, strict=True))
            self.holds(same, f"{name} changes its arguments")

    @law(seed=seeds())
    def test_missing_formulas_say_so(self, seed: int) -> None:
        """The methods in `lacks`, and no others, raise NotImplementedError."""
        x, y = self.pair(seed)
        u, v = (self.tangent(x, seed + i) for i in (2, 3))
        calls = _calls(x, y, u, v)
        self.holds(set(self.lacks) <= calls.keys(), f"lacks = {self.lacks} has unknown names")
        for name, arguments in calls.items():
            try:
                getattr(self.manifold, name)(*arguments)
                found = True
            except NotImplementedError:
                found = False
            said = "is in `lacks` and has" if found else "is not in `lacks` and has no"
            self.holds(found is (name not in self.lacks), f"{name} {said} formula")

    @law(seed=seeds())
    def test_results_have_the_type_of_the_point(self, seed: int) -> None:
        """Tensors have the type and shape of the point; numbers have at least float32."""
        m = self.manifold
        start, end = self.pair(seed)
        for dtype in _TYPES:
            x, y = start.to(dtype), end.to(dtype)
            u, v = (self.tangent(x, seed + i, 0.1).to(dtype) for i in (2, 3))
            wide = torch.promote_types(dtype, torch.float32)
            for name, arguments in _calls(x, y, u, v).items():
                if name in self.lacks:
                    continue
                result = getattr(m, name)(*arguments)
                if name in _OF_NUMBERS:
                    given = f"{name} of {dtype} gives {result.dtype}, not {wide}"
                    self.holds(result.dtype == wide, given)
                    continue
                for part in result if isinstance(result, tuple) else (result,):
                    ok = part.dtype == dtype and part.shape == x.shape
                    self.holds(ok, f"{name} of {dtype} gives {part.dtype}, {tuple(part.shape)}")


# The methods whose results are numbers, not points or vectors.
_OF_NUMBERS = {
    *("component_inner", "inner", "norm", "component_dist", "dist", "dist2"),
    *("violation", "tangent_violation"),
}


def _calls(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The methods of a manifold with arguments: points x, y and tangent vectors u, v at x."""
    return {
        "projx": (x,),
        "proju": (x, u),
        "egrad2rgrad": (x, u),
        "component_inner": (x, u, v),
        "inner": (x, u, v),
        "norm": (x, u),
        "violation": (x,),
        "tangent_violation": (x, u),
        "expmap": (x, u),
        "expmap_transp": (x, u, v),
        "retr": (x, u),
        "retr_transp": (x, u, v),
        "logmap": (x, y),
        "component_dist": (x, y),
        "dist": (x, y),
        "dist2": (x, y),
        "transp": (x, y, v),
    }


def _frozen(value: object, field: str) -> bool:
    """Test whether setting an attribute is refused."""
    try:
        if hasattr(value, field):
            setattr(value, field, getattr(value, field))
        else:
            setattr(value, field, None)
            delattr(value, field)
    except AttributeError:
        return True
    return False


def _ambient_sizes(laws: type[Laws]) -> SearchStrategy[float]:
    """Sizes whose tenth power does not overflow: 10⁻³⁰ to 10³⁰ in double precision."""
    largest = torch.finfo(laws.dtype).max ** 0.1
    return sizes(1 / largest, largest)


class PointLaws(Laws):
    """The projection onto the manifold, the checks of points, and random points."""

    @law(seed=seeds(), size=_ambient_sizes)
    def test_projection_is_on_the_manifold(self, seed: int, size: float) -> None:
        """`projx(z)` is on the manifold for every tensor z."""
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
    def test_projection_fixes_points(self, seed: int) -> None:
        """`projx(x) = x` for a point x."""
        x = self.point(seed)
        off = self.apart(self.manifold.projx(x), x)
        self.at_most(off, self.roundings(8), "projx(x) − x, relative,")

    @law(seed=seeds())
    def test_points_are_accepted(self, seed: int) -> None:
        """All checks accept points, in all types."""
        m = self.manifold
        for dtype in _TYPES:
            x = m.projx(self.ambient(seed).to(dtype))
            self.holds(m.check_point(x), f"check_point refuses projx(z) in {dtype}")
            on = m.check_point_on_manifold(x)
            self.holds(on, f"check_point_on_manifold refuses projx(z) in {dtype}: {m.validate(x)}")
            m.assert_check_point_on_manifold(x)

    @law(seed=seeds())
    def test_non_points_are_refused(self, seed: int) -> None:
        """Integer, empty and non-finite tensors are refused."""
        m = self.manifold
        for what, x in {
            "an integer tensor": torch.ones(self.shape, dtype=torch.int64),
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
        """`random` gives points of the given shape and type."""
        m = self.manifold
        for dtype in _TYPES:
            x = m.random(self.shape, dtype=dtype, generator=source(seed))
            ok = type(x) is Tensor and x.dtype == dtype and x.shape == self.shape
            given = f"{type(x).__name__} of {x.dtype} and shape {tuple(x.shape)}"
            self.holds(ok, f"random gives a {given} for {dtype} and shape {tuple(self.shape)}")
            bound = 4 * self.slack * torch.finfo(dtype).eps
            self.at_most(m.violation(x).max(), bound, f"violation(random(…)) in {dtype}")

    @law(seed=seeds())
    def test_random_points_repeat(self, seed: int) -> None:
        """Equal seeds give equal points, with a generator or torch's default one."""
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
    def test_random_points_have_both_signs(self) -> None:
        """Entries of random points that are not all zero have both signs, if −x is a point."""
        m, generator = self.manifold, source(0)
        points = [m.random(self.shape, dtype=self.dtype, generator=generator) for _ in range(64)]
        if not all(m.check_point_on_manifold(-x) for x in points[:4]):
            return
        positive, negative = (torch.stack(points).mul(s).gt(0).any(0) for s in (1, -1))
        mixed = positive == negative
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


class MetricLaws(Laws):
    """The tangent projection, the inner product and the Riemannian gradient."""

    @law(seed=seeds(), size=_any)
    def test_tangent_projection_is_idempotent(self, seed: int, size: float) -> None:
        """`proju(x, proju(x, z)) = proju(x, z)` for any tensor z."""
        x, z = self.point(seed), self.ambient(seed + 1, size)
        u = self.manifold.proju(x, z)
        # Relative to z, whose projection may be short (on a circle, almost 0).
        off = (self.manifold.proju(x, u) - u).abs().max() / size
        self.at_most(off, self.roundings(_MANY), "proju(x, proju(x, z)) − proju(x, z), against z,")

    @law(seed=seeds(), size=_any)
    def test_tangent_projection_is_orthogonal(self, seed: int, size: float) -> None:
        """`⟨z − proju(x, z), v⟩ₓ = 0` for every tangent v."""
        m, x, z = self.manifold, self.point(seed), self.ambient(seed + 1, size)
        v = self.tangent(x, seed + 2)
        # ⟨z, z⟩ is defined for tangent vectors, and may be negative for others.
        bound = (m.inner(x, z).abs().sqrt() + m.norm(x, m.proju(x, z))) * m.norm(x, v)
        off = m.inner(x, z - m.proju(x, z), v).abs() / bound
        self.at_most(off, self.roundings(_MANY), "⟨z − proju(x, z), v⟩, against ‖z‖‖v‖,")

    @law(seed=seeds(), size=steps)
    def test_tangent_projection_fixes_tangent_vectors(self, seed: int, size: float) -> None:
        """`proju(x, u) = u` for a tangent u, and `check_vector_on_tangent` accepts it."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        off = self.length(x, self.manifold.proju(x, u) - u) / size
        self.at_most(off, self.roundings(_MANY), "proju(x, u) − u, relative,")
        accepted = self.manifold.check_vector_on_tangent(x, u)
        self.holds(accepted, "check_vector_on_tangent refuses a tangent vector")

    @law(seed=seeds(), size=_any)
    def test_tangent_violation_bounds_the_normal_part(self, seed: int, size: float) -> None:
        """`‖z − proju(x, z)‖/‖z‖ ≤ tangent_violation(x, z) ≤ 1` for any tensor z."""
        m, x, z = self.manifold, self.point(seed), self.ambient(seed + 1, size)
        normal = z - m.proju(x, z)
        rounding = self.roundings(_MANY)
        for what, w in (("z", z), ("z − proju(x, z)", normal)):
            share = float((w - m.proju(x, w)).norm() / w.norm()) if bool(w.any()) else 0.0
            seen = float(m.tangent_violation(x, w).max())
            if share <= rounding:  # every vector is tangent, or this one up to rounding
                continue
            # It may be more than 1 if the projection is not orthogonal in the Euclidean metric.
            unseen = min(share, 1.0) - seen
            self.at_most(unseen, rounding, f"the normal part of {what}, minus tangent_violation,")
            self.at_most(seen - 1, rounding, f"tangent_violation(x, {what}) − 1")
            if share > 0.5:
                accepted = m.check_vector_on_tangent(x, w)
                self.holds(not accepted, f"check_vector_on_tangent accepts {what}")

    @law()
    def test_dimension_is_that_of_tangent_spaces(self) -> None:
        """`dimension` is the rank of the tangent projection (checked up to order 512)."""
        x = self.point(0)
        if x.numel() > _COUNTED:
            return
        basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
        projected = torch.stack([self.manifold.proju(x, e).flatten() for e in basis])
        # Singular values of an idempotent matrix are 0, or at least 1.
        rank = int((torch.linalg.svdvals(projected.double()) > 0.5).sum())
        given = self.manifold.dimension(tuple(self.shape))
        self.holds(given == rank, f"dimension is {given}, where tangent vectors span {rank}")

    @law(seed=seeds(), size=_any)
    def test_metric_is_symmetric(self, seed: int, size: float) -> None:
        """`⟨u, v⟩ₓ = ⟨v, u⟩ₓ`, slice by slice."""
        x = self.point(seed)
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2)
        component = self.manifold.component_inner
        bound = self.manifold.norm(x, u) * self.manifold.norm(x, v)
        off = (component(x, u, v) - component(x, v, u)).abs().max() / bound
        self.at_most(off, self.roundings(8), "⟨u, v⟩ − ⟨v, u⟩, against ‖u‖‖v‖,")

    @law(seed=seeds(), size=_any, factor=st.floats(-1e3, 1e3))
    def test_metric_is_bilinear(self, seed: int, size: float, factor: float) -> None:
        """`⟨c u + v, w⟩ₓ = c ⟨u, w⟩ₓ + ⟨v, w⟩ₓ`, slice by slice."""
        m, x = self.manifold, self.point(seed)
        u, v, w = (self.tangent(x, seed + i, size) for i in (1, 2, 3))
        left = m.component_inner(x, factor * u + v, w)
        right = factor * m.component_inner(x, u, w) + m.component_inner(x, v, w)
        bound = (abs(factor) + 1) * (m.norm(x, u) + m.norm(x, v)) * m.norm(x, w)
        off = (left - right).abs().max() / bound
        self.at_most(off, self.roundings(_MANY), "⟨cu + v, w⟩ − c⟨u, w⟩ − ⟨v, w⟩, relative,")

    @law(seed=seeds(), size=_any)
    def test_metric_is_positive_definite(self, seed: int, size: float) -> None:
        """`⟨u, u⟩ₓ > 0` in every slice of a tangent u that is not zero, and `⟨0, 0⟩ₓ = 0`."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        parts = self.manifold.component_inner(x, u)
        lost = u * ~(parts > 0)
        self.holds(not bool(lost.any()), f"⟨u, u⟩ is {float(parts.min()):.3g} in one slice")
        zero = self.manifold.inner(x, torch.zeros_like(x))
        self.holds(float(zero) == 0.0, f"⟨0, 0⟩ is {float(zero):.3g}")

    @law(seed=seeds(), size=steps)
    def test_inner_is_the_sum_of_its_components(self, seed: int, size: float) -> None:
        """`⟨u, v⟩ₓ = Σᵢ ⟨u, v⟩ₓ,ᵢ`, `‖u‖ₓ² = ⟨u, u⟩ₓ`, and `keepdim` keeps the dimensions."""
        m, x = self.manifold, self.point(seed)
        u, v = (self.tangent(x, seed + i, size) for i in (1, 2))
        parts, whole = m.component_inner(x, u, v), m.inner(x, u, v)
        fits = parts.ndim == x.ndim and torch.broadcast_shapes(parts.shape, x.shape) == x.shape
        shape = tuple(parts.shape)
        self.holds(fits, f"component_inner has the shape {shape}, no broadcast of {tuple(x.shape)}")
        self.holds(whole.shape == (), f"inner is not one number: its shape is {tuple(whole.shape)}")
        bound = float(m.norm(x, u) * m.norm(x, v))
        off = abs(float(whole) - math.fsum(parts.flatten().tolist())) / bound
        self.at_most(off, self.roundings(_MANY), "inner − Σ component_inner, against ‖u‖‖v‖,")
        alone = (m.component_inner(x, u) - m.component_inner(x, u, u)).abs().max()
        self.at_most(alone, 0.0, "component_inner(x, u) − component_inner(x, u, u)")
        squared = (m.norm(x, u) ** 2 / m.inner(x, u) - 1).abs()
        self.at_most(squared, self.roundings(8), "‖u‖² − ⟨u, u⟩, relative,")
        numbers = {"inner": (x, u, v), "norm": (x, u), "dist": (x, x), "dist2": (x, x)}
        for name, arguments in numbers.items():
            if name in self.lacks:
                continue
            shape = tuple(getattr(m, name)(*arguments, keepdim=True).shape)
            self.holds(shape == (1,) * x.ndim, f"{name} with keepdim has the shape {shape}")

    @law(seed=seeds())
    def test_gradient_represents_the_differential(self, seed: int) -> None:
        """`⟨egrad2rgrad(x, g), v⟩ₓ = g · v` for every tangent v."""
        m, x, g = self.manifold, self.point(seed), self.ambient(seed + 2)
        v = self.tangent(x, seed + 1)
        gradient = m.egrad2rgrad(x, g)
        bound = (g * v).abs().sum() + m.norm(x, gradient) * m.norm(x, v)
        off = (m.inner(x, gradient, v) - (g * v).sum()).abs() / bound
        self.at_most(off, self.roundings(_MANY), "⟨egrad2rgrad(x, g), v⟩ − g·v, relative,")

    @law(seed=seeds(), size=steps)
    def test_frame_is_the_root_of_the_metric(self, seed: int, size: float) -> None:
        """`⟨u, v⟩ₓ = (u/q)·(v/q)` and `q (u/q) = u`, if the manifold has a frame."""
        m, x = self.manifold, self.point(seed)
        try:
            frame = m.frame(x)
        except NotImplementedError:
            return
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2)
        dot = (frame.enter(u) * frame.enter(v)).sum()
        off = (dot - m.inner(x, u, v)).abs() / (m.norm(x, u) * m.norm(x, v))
        self.at_most(off, self.roundings(_MANY), "(u/q)·(v/q) − ⟨u, v⟩, against ‖u‖‖v‖,")
        back = self.length(x, frame.leave(frame.enter(u)) - u) / self.length(x, u)
        self.at_most(back, self.roundings(8), "q (u/q) − u, relative,")

    @law(seed=seeds())
    def test_gradient_is_tangent(self, seed: int) -> None:
        """`proju(x, egrad2rgrad(x, g)) = egrad2rgrad(x, g)`."""
        m, x, g = self.manifold, self.point(seed), self.ambient(seed + 1)
        gradient = m.egrad2rgrad(x, g)
        # Relative to the vector before its projection, as above.
        whole = m.norm(x, m.sharp(x, g))
        off = m.norm(x, m.proju(x, gradient) - gradient) / whole
        self.at_most(off, self.roundings(_MANY), "proju(x, gradient) − gradient, relative,")


class ManifoldLaws(ValueLaws, PointLaws, MetricLaws, GeodesicLaws, TransportLaws, RetractionLaws):
    """Laws of every manifold; subclass it with a `manifold` and a `shape`.

    Each law is one test method, which hypothesis runs with seeds and step sizes. A failure names
    the law, the manifold, the error and the bound, at the simplest seed and size that fail. Sizes
    are lengths in natural units: radians on a sphere (any manifold with a `radius`), lengths in the
    metric elsewhere.

    A law that need not hold is switched off by its name, and any law can be overridden:

        class TestAdditiveStep(ManifoldLaws):
            manifold, shape = ScaledEuclidean(retraction="additive"), (5, 4)
            test_transport_along_a_step_is_isometric = None

    Curves are differentiated in forward mode (`torch.func.jvp`), which the operations in `expmap`
    and `retr` must support.

    Attributes:
        manifold: the manifold (required).
        shape: the shape of its points (required).
        dtype: the type of the points and of the arithmetic; float64 by default.
        slack: a factor of every bound. Bounds are 8 to 100 roundings, for elementary functions and
            sums of some tens of numbers; manifolds with matrix decompositions, or with large
            slices, need 10 or more.
        injectivity: the injectivity radius, below which `logmap` inverts `expmap`: π for spheres
            (in radians); ∞ by default.
        longest: the longest step; 30 by default. Less where `expmap` leaves the range or the
            precision of the type.
        lacks: names of methods for which there is no formula and which raise NotImplementedError
            ("logmap", "dist", …): they are called to see that they do, laws that need them are
            passed over, and retractions are compared to geodesics in the Euclidean norm.
        examples: the number of examples of each law. By default a tenth of the `max_examples` of
            the hypothesis profile that is loaded when the class is defined: 10, or 100 with a
            profile of 1000 (`pytest --hypothesis-profile thorough`).

    The random inputs can be overridden as well: `point(seed)`, `tangent(x, seed, size)`,
    `pair(seed)` (two points that a geodesic joins; on a disconnected manifold, of one component)
    and `ambient(seed, size)` (arguments of `projx` and `proju`).
    """
