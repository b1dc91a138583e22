"""A manifold is a metric, a projection, a retraction and the metric's geodesics, composed.

    Euclidean        = EuclideanMetric + NoProjection   + Additive   + FlatGeodesics
    Oblique, Sphere  = EuclideanMetric + Normalization  + Projective + SphereGeodesics
    ScaledEuclidean  = ScaledMetric    + NoProjection   + Geodesic   + CylinderGeodesics
    Polar            = PolarMetric     + NoProjection   + Geodesic   + PolarGeodesics
    Stiefel          = EuclideanMetric + PolarProjection + PolarFactor + StiefelGeodesics

`Manifold` is that composition as a frozen value: equal, hashable and picklable by its fields, its
`repr` the call that makes it. It has geoopt's vocabulary, so code written for geoopt's manifolds,
its optimizers included, runs on these. A point is always a whole parameter; there are no hidden
batch dimensions. Half types are raised to float32 and results returned in the type of the point.

`expmap, logmap, dist, transp` are the exact ones of the metric, whatever the retraction (`Stiefel`
has no logarithm and projects between points); `retr, retr_transp, transp_follow_retr` are the
retraction's.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict, final

import torch
from torch import Tensor

from manifoldnet.geometry.geoopt_vocabulary import GeooptVocabulary
from manifoldnet.geometry.parts import Frame, Geodesics, Metric, Projection, name_of, register
from manifoldnet.geometry.settled import laid_out_as, settle
from manifoldnet.geometry.slices import ELEMENTS, Slices, promote
from manifoldnet.geometry.validation import raise_if
from manifoldnet.geometry.zero_slices import (
    GeodesicsExcept,
    MetricExcept,
    ProjectionExcept,
    ZeroSlices,
)

__all__ = [
    "RETRACTIONS",
    "Additive",
    "EuclideanMetric",
    "Geodesic",
    "Manifold",
    "Projective",
    "Retraction",
    "Spec",
    "from_spec",
    "register_manifold",
    "register_retraction",
    "resolve_retraction",
]

SPEC_VERSION = 1


class Spec(TypedDict):
    """A manifold as plain JSON types."""

    manifold: str
    version: int
    fields: dict[str, Any]


class Manifold(GeooptVocabulary):
    """Metric + projection + retraction + geodesics on the slices of a weight, as a frozen value.

    A new manifold is a frozen dataclass (`init=False`) whose constructor gives its parts to this
    one. A manifold that is made of others (a product, one of geoopt's) has no parts: it overrides
    the methods that use them.

    Args:
        slices: the vectors that the parts act on.
        metric: of the tangent spaces.
        projection: to the set and to its tangent spaces.
        retraction: of the steps.
        geodesics: of the metric.
        zero_slices: the slices that are exactly zero and stay so, which the parts do not act on.
        fields: the fields of the dataclass.
    """

    slices: Slices
    metric: Metric
    projection: Projection
    retraction: Retraction
    geodesics: Geodesics

    #: The slices that are exactly zero and stay so, by their numbers along `slices.dim`.
    zero_slices: tuple[int, ...] = ()

    #: The least number of entries a slice must have; a sphere in one dimension is two points.
    min_slice: ClassVar[int] = 1

    def __init__(
        self,
        slices: Slices,
        metric: Metric,
        projection: Projection,
        retraction: Retraction,
        geodesics: Geodesics,
        zero_slices: Iterable[int] = (),
        **fields: Any,
    ) -> None:
        zero = ZeroSlices(slices, zero_slices)
        if zero.indices:
            metric, projection = MetricExcept(metric, zero), ProjectionExcept(projection, zero)
            geodesics = GeodesicsExcept(geodesics, zero)
        parts = {"metric": metric, "projection": projection, "retraction": retraction}
        vars(self).update(slices=slices, geodesics=geodesics, **parts, **fields)
        vars(self).update(zero_slices=zero.indices)

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep the inherited `repr`, in whose place `dataclass` would write another one."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    @property
    def parts(self) -> tuple[Metric | Projection | Retraction | Geodesics, ...]:
        """Metric, projection, retraction and geodesics; nothing where there are none."""
        names = ("metric", "projection", "retraction", "geodesics")
        return tuple(vars(self)[name] for name in names if name in vars(self))

    @property
    def unit(self) -> float:
        """The natural unit of length: ρ on spheres, 1 elsewhere."""
        return 1.0

    @property
    def scale_invariant(self) -> bool:
        """True if the metric is: nothing holds the norms of slices then."""
        return self.metric.scale_invariant

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """The radius of the region in which a solver may trust its model at most, as in pymanopt.

        π radii for each slice of a sphere or cylinder, all together as in Pythagoras' theorem; √d
        for manifolds of dimension d without such a scale.
        """
        return math.sqrt(self.dimension(shape))

    def with_true_steps(self) -> Manifold:
        """The manifold itself; one of geoopt's changes a step that is no retraction."""
        return self

    # --- the metric -------------------------------------------------------------------------

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """⟨u, v⟩ₓ, one number per slice, in a shape that broadcasts against `x`.

        Args:
            x: point.
            u: tangent vector at `x`.
            v: tangent vector at `x`; `u` if left out.

        Returns:
            float32 for half types, else the type of `x`. For `Euclidean` a slice is one element.
        """
        return self.metric.component_inner(*promote(x, u, u if v is None else v))

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ₓ of the whole parameter: one number (with `keepdim`, of shape 1×…×1)."""
        total = settle(self.component_inner(x, u, v).sum())
        return total.reshape((1,) * x.ndim) if keepdim else total

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """√⟨u, u⟩ₓ of the whole parameter."""
        squared = self.inner(x, u, keepdim=keepdim)
        # The derivative of the root is infinite at 0; there the norm's own is taken as 0.
        # Written so that NaN stays NaN.
        zero = squared <= 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """The vector that represents the differential `g` in the metric, not yet projected."""
        return self.metric.sharp(*promote(x, g)).to(x.dtype)

    def frame(self, x: Tensor) -> Frame:
        """The square root of the metric at `x`: coordinates in which it is the dot product."""
        return self.metric.frame(*promote(x))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradient at `x` for the Euclidean gradient `u`.

        It is the tangent vector with ⟨grad, v⟩ₓ = u·v for every tangent v.
        """
        x_, u_ = promote(x, u)
        return self.proju(x_, self.sharp(x_, u_)).to(x.dtype)

    def ehess2rhess(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The Riemannian Hessian at `x` applied to `u`, from Euclidean derivatives.

        Args:
            x: point.
            g: Euclidean gradient of a function at `x`.
            h: its Euclidean Hessian applied to `u`.
            u: tangent vector at `x`.

        Returns:
            ∇ᵤ grad f, the covariant derivative of the Riemannian gradient, tangent at `x`.

        Raises:
            NotImplementedError: for a manifold whose geodesics have no `hessian`.
        """
        return self.geodesics.hessian(*promote(x, g, h, u)).to(x.dtype)

    # --- the projection ---------------------------------------------------------------------

    def projx(self, x: Tensor, *, name: str = "the data") -> Tensor:
        """The nearest point of the manifold; errors call the tensor by `name`.

        Raises:
            NotOnManifoldError: for zero or non-finite slices, which have no nearest point, and for
                a shape or type that no point has.
        """
        raise_if(self._wrong_tensor(x, "point", name))
        y = laid_out_as(x, self.nearest(x))
        if not x.is_meta:
            raise_if(self._off(y, x, math.inf, name))
        return y

    def nearest(self, x: Tensor) -> Tensor:
        """`projx` without its checks: NaN for slices that have no nearest point."""
        return self.projection.to_set(*promote(x)).to(x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The nearest tangent vector at `x`."""
        return self.projection.to_tangent(*promote(x, u)).to(x.dtype)

    def violation(self, x: Tensor) -> Tensor:
        """The distance of each slice of `x` from the manifold, relative to its size.

        ∞ marks slices that no projection can mend: zero where that is not allowed, NaN or ∞.
        """
        return self.projection.violation(*promote(x))

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""
        return self.projection.tangent_violation(*promote(x, u))

    def dimension(self, shape: tuple[int, ...]) -> int:
        """The dimension of the tangent spaces at points of this shape."""
        return math.prod(shape) - self.codimension(torch.Size(shape))

    def codimension(self, shape: torch.Size) -> int:
        """The dimension of the normal spaces at points of this shape."""
        known = self.projection.codimension(shape)
        return self._counted_codimension(shape) if known is None else known

    def _counted_codimension(self, shape: torch.Size) -> int:
        """The dimension minus the trace of the tangent projection, at a random point."""
        source = torch.Generator().manual_seed(0)
        x = self.nearest(torch.randn(shape, dtype=torch.float64, generator=source))
        kept = 0.0
        for i in range(x.numel()):
            unit = torch.zeros_like(x)
            unit.view(-1)[i] = 1
            kept += float(self.proju(x, unit).flatten()[i])
        return x.numel() - round(kept)

    # --- the exact geometry -----------------------------------------------------------------

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential map: the end point of the geodesic from `x` with velocity `u`."""
        return self.geodesics.exp(*promote(x, u)).to(x.dtype)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at `x` with `expmap(x, u) = y`; NaN at antipodes."""
        return self.geodesics.log(*promote(x, y)).to(x.dtype)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the shortest geodesic from `x` to `y`, one number per slice."""
        return self.geodesics.component_dist(*promote(x, y))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The length of the shortest geodesic from `x` to `y`, over all slices together."""
        total = settle(torch.linalg.vector_norm(self.component_dist(x, y)))
        return total.reshape((1,) * x.ndim) if keepdim else total

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The squared distance."""
        parts = self.component_dist(x, y)
        total = settle((parts * parts).sum())
        return total.reshape((1,) * x.ndim) if keepdim else total

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The parallel transport of `v` from `x` to `y` (shortest geodesic); NaN at antipodes."""
        return self.geodesics.transport(*promote(x, y, v)).to(x.dtype)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap(x, u)`, and the parallel transport of `v` along it (also past antipodes)."""
        y, w = self.geodesics.exp_transport(*promote(x, u, v))
        return y.to(x.dtype), w.to(v.dtype)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The parallel transport of `v` along the geodesic from `x` with velocity `u`."""
        return self.expmap_transp(x, u, v)[1]

    # --- the retraction ---------------------------------------------------------------------

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction: the point that the step `u` from `x` leads to."""
        return self.retraction.step(self, *promote(x, u)).to(x.dtype)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr(x, u)`, and the tangent vector `v` transported along that step."""
        y, w = self.retraction.step_transport(self, *promote(x, u, v))
        return y.to(x.dtype), w.to(v.dtype)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` transported along the step `u`."""
        return self.retr_transp(x, u, v)[1]

    # --- points -----------------------------------------------------------------------------

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point: standard Gaussian entries, put on the manifold (uniform on spheres).

        `size` is the shape, as numbers or as one tuple; other arguments are as in `torch.randn`.
        """
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        # A shape given as numbers is a tuple of them; the type checker cannot tell from above.
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)  # type: ignore[arg-type]
        return self.projx(x)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A random tangent vector at `x`: standard Gaussian entries, projected."""
        u = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.proju(x, u)

    # --- values -----------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        plain = {k: v.name if isinstance(v, Retraction) else v for k, v in self._given().items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def _given(self) -> dict[str, Any]:
        """The constructor's arguments: `zero_slices` only if there are any."""
        known: Any = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in known if f.repr}
        return {k: v for k, v in given.items() if k != "zero_slices" or v}

    def __repr__(self) -> str:
        """The call that makes it, without defaults; `dim` is always there."""
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(type(self)).parameters.items()
        }
        shown = []
        for name, value in self._given().items():
            default = defaults.get(name, inspect.Parameter.empty)
            if isinstance(default, str) and isinstance(value, Retraction):
                value = _by_name(value)
            if name == "dim" or value != default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def spec(self) -> Spec:
        """This manifold as plain, versioned JSON types; `from_spec` turns them back."""
        return {
            "manifold": name_of(_MANIFOLDS, type(self)),
            "version": SPEC_VERSION,
            "fields": self._fields(),
        }

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifold:
        return cls(**fields)

    @property
    def ndim(self) -> int:
        """The least order that a point can have."""
        dim = self.slices.dim
        if dim == "elements":
            return 0
        order = 0 if dim is None else dim + 1
        return order if self.min_slice == 1 else max(order, 1 if dim is None else 2)

    @property
    def reversible(self) -> bool | None:
        """True if a step, and the step back along what it transported, ends at its start.

        None where that is not known.
        """
        return self.retraction.reversible

    # --- validation -------------------------------------------------------------------------

    def _label(self, x: Tensor, index: int) -> str:
        return self.slices.label(index, x.ndim)

    def _sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = promote(x)
        return self.slices.largest(x), self.slices.norm(x)

    def _misfit(self, x: Tensor) -> str | None:
        reason = self.projection.misfit(x.dtype)
        if reason:
            return f"has type {x.dtype}, {reason}"
        dim, shape = self.slices.dim, tuple(x.shape)
        if isinstance(dim, int) and dim >= x.ndim:
            return (
                f"has order {x.ndim} (shape {shape}), so there is no dimension "
                f"{dim} to index its slices by"
            )
        if x.numel() == 0:
            return f"is empty (shape {shape})"
        if self.slices.size(x.shape) < self.min_slice:
            return (
                f"has slices of {self.slices.size(x.shape)} number (shape {shape}): "
                f"a unit vector needs at least {self.min_slice} to have somewhere to go"
            )
        return ZeroSlices(self.slices, self.zero_slices).misfit(x.shape)

    def _moved_to_rim(self, x: Tensor, name: str) -> str | None:
        """A warning about rows of `x` that `projx` moves to the rim of an open set, or None."""
        return None

    def _for_zero(self) -> str:
        takes_them = "zero_slices" in getattr(type(self), "__dataclass_fields__", {})
        if not takes_them or not isinstance(self.slices.dim, int):
            return ""
        return (
            "; slices that are to stay zero (the padding row of an embedding) are named in "
            "zero_slices, and a weight that starts at zero is for Polar"
        )


# --- the metric and the retractions of several manifolds ------------------------------------------


@final
@dataclass(frozen=True)
class EuclideanMetric(Metric):
    """The dot product of each slice; the Riemannian gradient is `g` itself, projected."""

    slices: Slices = ELEMENTS

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨u, v⟩` of each slice."""
        return self.slices.inner(u, v)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`g` itself."""
        return g

    def frame(self, x: Tensor) -> Frame:
        """q = 1."""
        return Frame()


class Retraction(ABC):
    """A map R_x from tangent vectors to points that agrees with exp to first order (or better).

    It comes with a transport of tangent vectors along the step, for momentum, which is defined also
    where the transport between the two end points is not. It is given the manifold that it steps
    on, whose methods are unchecked here and may be called with any intermediate tensor.
    """

    #: True if the step back along the transported step ends at the start; None: unknown.
    reversible: ClassVar[bool | None] = None
    #: True if a step along a tangent vector that is orthogonal to a slice makes its norm larger.
    grows_norms: ClassVar[bool] = False
    #: True for steps of matrices with orthonormal rows or columns, on which slices do not move.
    of_matrices: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name that its class is registered by; `module.Class` where it is not."""
        return name_of(RETRACTIONS, type(self))

    @abstractmethod
    def step(self, manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
        """The point R_x(u)."""

    @abstractmethod
    def step_transport(
        self, manifold: Manifold, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The point R_x(u), and the tangent vector `v` transported to it along the step."""


RETRACTIONS: dict[str, type[Retraction]] = {}
"""Retractions by name, as constructors of manifolds and specs know them."""


def register_retraction(name: str, cls: type[Retraction]) -> None:
    """Register a class of retractions by the name for it in constructors and in specs.

    Args:
        name: not empty.
        cls: a concrete subclass of `Retraction` whose constructor needs no arguments.

    Raises:
        TypeError: if `name` is no string, `cls` no such class, or its constructor needs arguments.
        ValueError: for a name that another class has, and a class that has another name.
    """
    if isinstance(cls, type) and issubclass(cls, Retraction):
        parameters = inspect.signature(cls).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty]
        if needed:
            raise TypeError(
                f"{cls.__name__} needs arguments ({', '.join(needed)}), which a name does not "
                "give: register a subclass that sets them"
            )
        own = getattr(cls, "name", name)
        if isinstance(own, str) and own != name:
            raise ValueError(f"{cls.__name__}.name is {own!r}: register it by that name")
    register(RETRACTIONS, name, cls, Retraction)


@final
@dataclass(frozen=True)
class Additive(Retraction):
    """`x + u`, with vectors transported unchanged; for sets without a constraint.

    The update of the paper's scaled metric. Its distance to the geodesic is of second order.
    """

    reversible: ClassVar[bool | None] = True
    grows_norms: ClassVar[bool] = True

    def step(self, manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
        """`x + u`."""
        return x + u

    def step_transport(
        self, manifold: Manifold, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`x + u`, and `v` as it is."""
        return x + u, v


@final
@dataclass(frozen=True)
class Projective(Retraction):
    """The projection retraction: `x + u`, projected to the set.

    On a sphere it stays on the geodesic's great circle and ends at the angle atan θ < π/2
    instead of θ: third order, and parallel transport between the end points is always defined.
    """

    reversible: ClassVar[bool | None] = True

    def step(self, manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
        """`project(x + u)`."""
        return manifold.nearest(x + u)

    def step_transport(
        self, manifold: Manifold, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`project(x + u)`, and the parallel transport of `v`, made tangent to rounding."""
        y = self.step(manifold, x, u)
        return y, manifold.proju(y, manifold.transp(x, y, v))


@final
@dataclass(frozen=True)
class Geodesic(Retraction):
    """The exponential map, with parallel transport along the geodesic."""

    reversible: ClassVar[bool | None] = True

    def step(self, manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
        """`exp(x, u)`."""
        return manifold.expmap(x, u)

    def step_transport(
        self, manifold: Manifold, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`exp(x, u)`, and the parallel transport of `v`, made tangent to rounding."""
        y, transported = manifold.expmap_transp(x, u, v)
        return y, manifold.proju(y, transported)


register_retraction("additive", Additive)
register_retraction("projective", Projective)
register_retraction("geodesic", Geodesic)


def _by_name(retraction: Retraction) -> Retraction | str:
    """The name of a retraction if it has one and no arguments; else itself."""
    arguments = dataclasses.is_dataclass(retraction) and dataclasses.fields(retraction)
    return retraction if arguments or retraction.name not in RETRACTIONS else retraction.name


# --- specs ----------------------------------------------------------------------------------------

# Filled by `register_manifold`: each file that defines a manifold ends with its name.
_MANIFOLDS: dict[str, type[Manifold]] = {}
# Names whose modules are imported when a spec asks for them.
_ON_DEMAND = {"GeooptManifold": "manifoldnet.geometry.geoopt_manifold"}


def register_manifold(name: str, cls: type[Manifold]) -> None:
    """Register a class of manifolds by the name that stands for it in specs.

    Args:
        name: usually that of the class.
        cls: a concrete subclass of `Manifold`.

    Raises:
        TypeError: if `name` is no string or `cls` no such class.
        ValueError: for a name that another class has, and a class that has another name.
    """
    if name in _ON_DEMAND:  # whose class has the name; nothing if this is the call for it
        importlib.import_module(_ON_DEMAND[name])
    register(_MANIFOLDS, name, cls, Manifold)


def from_spec(spec: Spec) -> Manifold:
    """The manifold that a spec describes, the inverse of `Manifold.spec`.

    Raises:
        TypeError: if it is no dictionary.
        ValueError: if it lacks an entry of a spec, has a newer version, or describes a manifold
            whose class is not registered.
    """
    if (
        not isinstance(spec, dict)
        or not {"manifold", "version", "fields"} <= spec.keys()
        or not isinstance(spec["fields"], dict)
    ):
        message = f"not the description of a manifold, as Manifold.spec gives it: {spec!r}"
        raise ValueError(message) if isinstance(spec, dict) else TypeError(message)
    if spec["version"] > SPEC_VERSION:
        raise ValueError(
            f"this description of a manifold has version {spec['version']}, and this release of "
            f"manifoldnet reads up to version {SPEC_VERSION}: install a newer one"
        )
    if spec["manifold"] in _ON_DEMAND:
        importlib.import_module(_ON_DEMAND[spec["manifold"]])
    if spec["manifold"] not in _MANIFOLDS:
        known = ", ".join(sorted({*_MANIFOLDS, *_ON_DEMAND}))
        raise ValueError(
            f"unknown manifold {spec['manifold']!r} (known: {known}); if "
            "it is your own, name its class with manifoldnet.geometry.register_manifold(name, "
            "cls) where it is defined, and import that module first"
        )
    try:
        return _MANIFOLDS[spec["manifold"]]._from_fields(spec["fields"])
    except KeyError as error:
        raise ValueError(
            f"not the description of a manifold, as Manifold.spec gives it: {spec!r} "
            f"lacks the field {error}"
        ) from error


def resolve_retraction(
    retraction: Retraction | str,
    refused: type[Retraction] | tuple[type[Retraction], ...],
    owner: str,
    *,
    matrices: bool = False,
) -> Retraction:
    """The retraction that an object or a name stands for, if it makes sense on this manifold.

    Args:
        retraction: the object or its name.
        refused: the classes that make no sense.
        owner: the name of the manifold.
        matrices: True if those of matrices make sense.

    Raises:
        TypeError: if it is neither a retraction nor a string.
        ValueError: for an unknown name, or one that `owner` has no use for.
    """

    def fits(cls: type[Retraction]) -> bool:
        return not issubclass(cls, refused) and (matrices or not cls.of_matrices)

    offered = ", ".join(repr(name) for name, cls in RETRACTIONS.items() if fits(cls))
    if isinstance(retraction, str) and retraction in RETRACTIONS:
        retraction = RETRACTIONS[retraction]()
    if not isinstance(retraction, Retraction):
        error = ValueError if isinstance(retraction, str) else TypeError
        raise error(
            f"{owner}: unknown retraction {retraction!r}; there are {offered}. One of your own is "
            "given as an object, or named with manifoldnet.geometry.register_retraction(name, cls)"
        )
    if not fits(type(retraction)):
        raise ValueError(f"{owner} has no use for {retraction!r}; there are {offered}")
    return retraction
