"""Laws: methods with a strategy for each argument, run by hypothesis for each subclass.

    class MetricLaws(Laws):
        @law(seed=seeds(), size=steps)
        def test_metric_is_positive_definite(self, seed, size):
            '''`⟨u, u⟩ > 0` for every u ≠ 0.'''
            x = self.point(seed)
            u = self.tangent(x, seed + 1, size)
            self.holds(bool((self.manifold.component_inner(x, u) > 0).all()), "⟨u, u⟩ ≤ 0")

A subclass has a manifold, a shape, and the numbers below; when it is defined, each law becomes a
hypothesis test of that class. Only seeds and sizes are drawn. Quantities are measured by plain
torch, not by the arithmetic of the library that is tested.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar, cast
from zlib import crc32

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.func import jvp

from manifoldnet.geometry import Manifold, Slices
from manifoldnet.testing import samples
from manifoldnet.testing.strategies import sizes

__all__ = ["Laws", "derivative", "far", "law", "near", "steps"]

_Method = TypeVar("_Method", bound=Callable[..., None])
_Draw = SearchStrategy[Any] | Callable[[type["Laws"]], SearchStrategy[Any]]

_SMALLEST = 1e-8


@dataclass(frozen=True)
class _Law:
    """A method of `Laws` with its strategies."""

    check: Callable[..., None]
    draws: dict[str, _Draw]

    def test_of(self, laws: type[Laws]) -> Callable[..., None]:
        """The hypothesis test that checks this law for one class."""
        if laws.missing():
            return self.refusal
        if not self.draws:
            return self.check
        strategies = {
            name: draw if isinstance(draw, SearchStrategy) else draw(laws)
            for name, draw in self.draws.items()
        }
        profile = settings()
        tries = max(2, profile.max_examples // 10) if laws.examples is None else laws.examples
        run = settings(
            max_examples=tries,
            deadline=None,
            # One class may be run from several instances: they have no state.
            suppress_health_check=[
                *profile.suppress_health_check,
                HealthCheck.differing_executors,
            ],
        )
        test: Callable[..., None] = run(given(**strategies)(self.check))
        if profile.derandomize:
            # Without it all classes would get the same examples.
            name = f"{laws.__module__}.{laws.__qualname__}.{self.check.__name__}"
            test = with_seed(crc32(name.encode()))(test)
        return test

    @property
    def refusal(self) -> Callable[..., None]:
        """The test of a class without a manifold: it raises TypeError, without hypothesis."""

        def test(self: Laws) -> None:
            raise TypeError(self.missing())

        test.__name__, test.__doc__ = self.check.__name__, self.check.__doc__
        return test


def law(**draws: _Draw) -> Callable[[_Method], _Method]:
    """Make a method a law.

    The message of every AssertionError that the method raises begins with the manifold and the
    first line of the method's docstring.

    Args:
        draws: a strategy for each argument, or a function from the class to a strategy (`near`,
            `far`, `steps`).
    """

    def mark(method: _Method) -> _Method:
        says = (method.__doc__ or "").partition("\n")[0].rstrip(".")

        @wraps(method)
        def check(self: Laws, **drawn: Any) -> None:
            __tracebackhide__ = True
            about = f"{self.manifold} with points of shape {tuple(self.shape)}"
            try:
                method(self, **drawn)
            except AssertionError as error:
                name = f"{method.__name__} ({says})" if says else method.__name__
                error.args = (f"{about} breaks the law {name}: {error}",)
                raise
            except NotImplementedError as error:
                if not self.lacks:
                    error.add_note(f"raised while {method.__name__} was checked for {about}")
                    raise
            except Exception as error:
                error.add_note(f"raised while {method.__name__} was checked for {about}")
                raise

        cast(Any, check).law = _Law(check, draws)
        return cast(_Method, check)

    return mark


class Laws:
    """Laws of one manifold; the attributes are documented in `ManifoldLaws`."""

    manifold: Manifold
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    slack: float = 1.0
    injectivity: float = math.inf
    longest: float = 30.0
    examples: int | None = None
    lacks: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Make each law a test of this class."""
        super().__init_subclass__(**options)
        for name in dir(cls):
            found = getattr(inspect.getattr_static(cls, name), "law", None)
            if isinstance(found, _Law):
                test = found.test_of(cls)
                cast(Any, test).law = found
                setattr(cls, name, test)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def missing(cls) -> str | None:
        """A message about the first attribute that is missing; None if there is none."""
        for name, example in (("manifold", "Oblique()"), ("shape", "(5, 4)")):
            if not hasattr(cls, name):
                return (
                    f"{cls.__name__} does not say which {name} its laws are about: give it a class "
                    f"attribute, as in `{name} = {example}`"
                )
        return None

    # --- random points and vectors ----------------------------------------------------------

    def point(self, seed: int) -> Tensor:
        """A random point; see `samples.point`."""
        return samples.point(self.manifold, self.shape, seed, self.dtype)

    def tangent(self, x: Tensor, seed: int, size: float = 1.0) -> Tensor:
        """A random tangent vector whose longest slice has this length; see `samples.tangent`."""
        return samples.tangent(self.manifold, x, seed, size)

    def pair(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two independent random points, which a geodesic joins."""
        return self.point(seed), self.point(seed + 1)

    def ambient(self, seed: int, size: float = 1.0) -> Tensor:
        """A tensor with Gaussian entries of standard deviation `size`."""
        return size * torch.randn(self.shape, dtype=self.dtype, generator=samples.source(seed))

    # --- measures ---------------------------------------------------------------------------

    def roundings(self, count: float) -> float:
        """The relative size of `count` rounding errors: `count · slack · ε` of the type."""
        return count * self.slack * torch.finfo(self.dtype).eps

    @property
    def unit(self) -> float:
        """The natural unit of length: ρ on spheres, 1 elsewhere."""
        return samples.unit(self.manifold)

    def condition(self, size: float) -> float:
        """The condition of `log` near the cut locus: 1/(1 − size/injectivity)."""
        return 1 / (1 - size / self.injectivity)

    def apart(self, a: Tensor, b: Tensor) -> float:
        """The largest difference between slices of `a` and `b`, relative to those of `b`."""
        off, of = self._norms(a - b), self._norms(b)
        return float((off / torch.where(of > 0, of, 1.0)).max())

    def length(self, x: Tensor, u: Tensor) -> float:
        """The length of the longest slice of `u` at `x`, in natural units."""
        squared = self.manifold.component_inner(x, u)
        # A difference of tangent vectors is tangent up to rounding, so that ⟨u, u⟩ may be < 0.
        return float(squared.abs().sqrt().max()) / self.unit

    def relative(self, x: Tensor, u: Tensor, v: Tensor) -> float:
        """The length of u − v at `x`, relative to that of `v`."""
        return self.length(x, u - v) / max(self.length(x, v), torch.finfo(x.dtype).tiny)

    def _norms(self, x: Tensor) -> Tensor:
        """The Euclidean norms of the slices; of the whole tensor where slices are its elements."""
        slices: Slices = getattr(self.manifold, "slices", Slices(None))
        over = [d for d in range(x.ndim) if d != slices.dim]
        return torch.linalg.vector_norm(x, dim=over) if over else x.abs()

    # --- assertions -------------------------------------------------------------------------

    def at_most(self, amount: Tensor | float, bound: float, what: str) -> None:
        """Raise AssertionError unless `amount` ≤ `bound` (NaN is not)."""
        __tracebackhide__ = True
        if not float(amount) <= bound:
            raise AssertionError(f"{what} is {float(amount):.3g}, where {bound:.3g} is allowed")

    def holds(self, condition: bool, fault: str) -> None:
        """Raise AssertionError with the message `fault` unless the condition holds."""
        __tracebackhide__ = True
        if not condition:
            raise AssertionError(fault)


# --- strategies for sizes that depend on the class ------------------------------------------------


def steps(laws: type[Laws]) -> SearchStrategy[float]:
    """Step sizes of all orders of magnitude."""
    return sizes(_SMALLEST, laws.longest)


def near(laws: type[Laws]) -> SearchStrategy[float]:
    """Step sizes up to 99 % of the injectivity radius, which `log` inverts."""
    return sizes(_SMALLEST, min(0.99 * laws.injectivity, laws.longest))


def far(laws: type[Laws]) -> SearchStrategy[float]:
    """Step sizes of any length, also at, near and far beyond the injectivity radius."""
    r = laws.injectivity
    special = [s for s in (r, r * (1 - 1e-6), r * (1 + 1e-6), 2 * r, 3 * r) if s <= laws.longest]
    return st.sampled_from(special) | steps(laws) if special else steps(laws)


@cache
def _load_forward_mode() -> None:
    """Load torch's formulas of forward mode, whose first use gives warnings of torch's own code."""
    one = torch.ones(())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        jvp(torch.sin, (one,), (one,))


def derivative(
    curve: Callable[[Tensor], Tensor], time: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and velocity of a curve at one time, by forward-mode differentiation."""
    _load_forward_mode()
    t = torch.tensor(time, dtype=like.dtype)
    # torch types the result as any tuple: it is a pair without has_aux.
    moved: tuple[Tensor, Tensor] = jvp(curve, (t,), (torch.ones_like(t),))  # type: ignore[assignment]
    return moved
