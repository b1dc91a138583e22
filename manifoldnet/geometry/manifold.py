"""A manifold is a metric, a projection, a retraction and the metric's geodesics, composed.

    Euclidean        = EuclideanMetric + NoProjection   + Additive   + FlatGeodesics
    Oblique, Sphere  = EuclideanMetric + Normalization  + Projective + SphereGeodesics
    ScaledEuclidean  = ScaledMetric    + NoProjection   + Geodesic   + CylinderGeodesics

`Manifold` is that composition as a frozen value: equal, hashable and picklable by its fields, its
`repr` the call that makes it. It speaks geoopt's vocabulary by handing each call to one part, so
code written for geoopt's manifolds, its optimizers included, runs on these. A point is always a
whole parameter; there are no hidden batch dimensions. Here, at the door, half types are raised to
float32 and results returned in the type of the point.

`expmap, logmap, dist, transp` are the exact ones of the metric, whatever the retraction; `retr,
retr_transp, transp_follow_retr` are the retraction's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.geometry.geodesics import Geodesics
from manifoldnet.geometry.metric import Metric
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.retraction import Retraction
from manifoldnet.geometry.slices import Dim

__all__ = ["Manifold", "Spec", "from_spec", "resolve_retraction", "tolerance"]

SPEC_VERSION = 1

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Spec(TypedDict):
    """A manifold as plain JSON types."""

    manifold: str
    version: int
    fields: dict[str, Any]


def tolerance(dtype: torch.dtype) -> float:
    """How far off a point of this type may be and still count as on its manifold, relative."""
    return _TOLERANCE[dtype]


class Manifold(ABC):
    """Metric + projection + retraction (+ geodesics), as one frozen value.

    A new manifold is a frozen dataclass that sets its parts with `_compose` in its constructor.
    """

    metric: Metric
    projection: Projection
    retraction: Retraction
    geodesics: Geodesics

    #: The dimension that indexes the slices (see `manifoldnet.geometry.slices`).
    dim: Dim
    #: The least number of entries a slice must have; a sphere in one dimension is two points.
    min_slice: ClassVar[int] = 1

    def _compose(self, **parts: object) -> None:
        """Set the fields of a frozen value, once, from its constructor."""
        for name, part in parts.items():
            object.__setattr__(self, name, part)

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
        return self.metric.component_inner(*slices.promote(x, u, u if v is None else v))

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ₓ of the whole parameter: one number (with `keepdim`, of shape 1×…×1)."""
        total = self.component_inner(x, u, v).sum()
        return total.reshape((1,) * x.ndim) if keepdim else total

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """√⟨u, u⟩ₓ of the whole parameter."""
        squared = self.inner(x, u, keepdim=keepdim)
        # The derivative of the root is infinite at 0; there the norm's own is taken as 0.
        # Written so that NaN stays NaN.
        zero = squared <= 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradient at `x` for the Euclidean gradient `u`.

        It is the tangent vector with ⟨grad, v⟩ₓ = u·v for every tangent v.
        """
        x_, u_ = slices.promote(x, u)
        return self.projection.to_tangent(x_, self.metric.sharp(x_, u_)).to(x.dtype)

    def ehess2rhess(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The Riemannian Hessian at `x` along `u`, of a function with these Euclidean derivatives.

        Args:
            x: point.
            g: Euclidean gradient at `x`.
            h: Euclidean Hessian at `x`, times `u`.
            u: tangent vector at `x`.

        Returns:
            The covariant derivative of the Riemannian gradient along `u`, tangent at `x`.

        Raises:
            NotImplementedError: for a manifold whose geodesics have no `hessian`.
        """
        return self.geodesics.hessian(*slices.promote(x, g, h, u)).to(x.dtype)

    # --- the projection ---------------------------------------------------------------------

    def projx(self, x: Tensor, *, name: str = "the data") -> Tensor:
        """The nearest point of the manifold; errors call the tensor by `name`.

        Raises:
            ValueError: for zero or non-finite slices, which have no nearest point.
        """
        self.assert_check_point(x, name=name)
        (x_,) = slices.promote(x)
        y = self.projection.to_set(x_).to(x.dtype)
        if not x.is_meta:
            trouble = self.explain(y, tol=math.inf, name=name, near=x)
            if trouble:
                raise ValueError(trouble)
        return y

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The nearest tangent vector at `x`."""
        return self.projection.to_tangent(*slices.promote(x, u)).to(x.dtype)

    def violation(self, x: Tensor) -> Tensor:
        """How far each slice of `x` is off the manifold, relative to its size.

        ∞ marks slices that no projection can mend: zero where that is not allowed, NaN or ∞.
        """
        return self.projection.violation(*slices.promote(x))

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""
        return self.projection.tangent_violation(*slices.promote(x, u))

    # --- the exact geometry -----------------------------------------------------------------

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Where the geodesic from `x` with velocity `u` is after unit time."""
        return self.geodesics.exp(*slices.promote(x, u)).to(x.dtype)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest velocity at `x` that reaches `y`; NaN at antipodes, where there are many."""
        return self.geodesics.log(*slices.promote(x, y)).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The length of the shortest geodesic from `x` to `y`, over all slices together."""
        parts = self.geodesics.component_dist(*slices.promote(x, y))
        total = torch.linalg.vector_norm(parts)
        return total.reshape((1,) * x.ndim) if keepdim else total

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The squared distance."""
        parts = self.geodesics.component_dist(*slices.promote(x, y))
        total = (parts * parts).sum()
        return total.reshape((1,) * x.ndim) if keepdim else total

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` at `x` in parallel to `y` along the shortest geodesic; NaN at antipodes."""
        return self.geodesics.transport(*slices.promote(x, y, v)).to(x.dtype)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap(x, u)`, and `v` in parallel along that geodesic (also past antipodes)."""
        y, w = self.geodesics.exp_transport(*slices.promote(x, u, v))
        return y.to(x.dtype), w.to(v.dtype)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` in parallel along the geodesic from `x` with velocity `u`."""
        return self.expmap_transp(x, u, v)[1]

    # --- the retraction ---------------------------------------------------------------------

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The point that the retraction reaches from `x` by the step `u`."""
        x_, u_ = slices.promote(x, u)
        return self.retraction.step(self, x_, u_).to(x.dtype)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr(x, u)`, and the tangent vector `v` carried along that step."""
        y, w = self.retraction.step_transport(self, *slices.promote(x, u, v))
        return y.to(x.dtype), w.to(v.dtype)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` carried along the step `u`."""
        return self.retr_transp(x, u, v)[1]

    def dimension(self, shape: tuple[int, ...]) -> int:
        """How many numbers a tangent vector has to choose, of all those of a parameter."""
        return math.prod(shape) - self.projection.codimension(torch.Size(shape))

    # --- points -----------------------------------------------------------------------------

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point: standard Gaussian entries, put on the manifold (uniform on spheres).

        Args:
            size: the shape, as numbers or as one tuple.
            dtype: as in `torch.randn`.
            device: as in `torch.randn`.
            generator: the source of randomness; torch's default one if left out.
        """
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        # A shape given as numbers is a tuple of them; the type checker cannot tell from above.
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)  # type: ignore[arg-type]
        return self.projx(x)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A random tangent vector at `x`: standard Gaussian entries, projected."""
        u = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.proju(x, u)

    # --- checks: the numbers are `violation`; these turn them into answers and errors ---------

    def check_point(self, x: Tensor) -> bool:
        """Whether a tensor of this shape and type can be a point."""
        return self.explain_shape(x) is None

    def check_point_on_manifold(self, x: Tensor, *, tol: float | None = None) -> bool:
        """Whether `x` is a point of the manifold, to a tolerance by its type."""
        return self.check_point(x) and self.explain(x, tol=tol) is None

    def check_vector_on_tangent(self, x: Tensor, u: Tensor, *, tol: float | None = None) -> bool:
        """Whether `u` is tangent at `x`, to a tolerance by its type."""
        if not self.check_point(x) or x.shape != u.shape:
            return False
        limit = tolerance(x.dtype) if tol is None else tol
        return bool((self.tangent_violation(x, u) <= limit).all())

    def assert_check_point(self, x: Tensor, *, name: str = "the data") -> None:
        """Raise ValueError if a tensor of this shape or type cannot be a point."""
        trouble = self.explain_shape(x)
        if trouble:
            raise ValueError(f"{name} cannot be a point of {self}: it {trouble}")

    def assert_check_point_on_manifold(
        self, x: Tensor, *, tol: float | None = None, name: str = "the data"
    ) -> None:
        """Raise ValueError if `x` is not a point of the manifold: which slices, by how much."""
        self.assert_check_point(x, name=name)
        trouble = self.explain(x, tol=tol, name=name)
        if trouble:
            raise ValueError(trouble)

    def explain(
        self,
        x: Tensor,
        *,
        tol: float | None = None,
        name: str = "the data",
        near: Tensor | None = None,
    ) -> str | None:
        """What is wrong with the values of a point, in words; None if nothing is.

        Args:
            x: a tensor of a valid shape.
            tol: the relative violation to accept; by type if left out.
            name: what to call the tensor.
            near: where to look up the offending values, if not in `x`.
        """
        near = x if near is None else near
        off = self.violation(x).detach().flatten()
        limit = min(tolerance(x.dtype) if tol is None else tol, torch.finfo(off.dtype).max)
        good = off <= limit  # neither ∞ nor NaN is
        if bool(good.all()):
            return None
        dead = off.isinf() | off.isnan()
        count = int((~good).sum())
        worst = int(torch.where(dead, torch.inf, off).argmax())
        where = slices.label(worst, x.ndim, self.dim)
        if bool(dead[worst]):
            size = float(slices.largest(near.detach(), self.dim).flatten()[worst])
            if size == 0:
                what = "zero"
            elif math.isfinite(size):
                what = f"too small or too large to be squared (largest entry {size:.3g})"
            else:
                what = f"not finite (largest entry {size})"
            return (
                f"{name}: {int(dead.sum())} of {off.numel()} slices cannot be on {self}, "
                f"the first of them {where}, which is {what}. "
                "Give each slice finite values of ordinary size that are not all zero"
            )
        length = float(slices.norm(near.detach(), self.dim).flatten()[worst])
        return (
            f"{name} is not on {self}: {count} of {off.numel()} slices are off, the worst is "
            f"{where} with norm {length:.6g}, off by {float(off[worst]):.2g} relative. Put it on "
            "the manifold with manifold.projx(data), or with project=True where that is offered"
        )

    def explain_shape(self, x: Tensor) -> str | None:
        """Why a tensor of this shape and type cannot be a point; None if it can."""
        if x.dtype not in _TOLERANCE:
            return f"has type {x.dtype}: a point is float64, float32, bfloat16 or float16"
        if isinstance(self.dim, int) and self.dim >= x.ndim:
            return (
                f"has order {x.ndim} (shape {tuple(x.shape)}), so there is no dimension "
                f"{self.dim} to index its slices by"
            )
        if x.numel() == 0:
            return f"is empty (shape {tuple(x.shape)})"
        if slices.size(x.shape, self.dim) < self.min_slice:
            return (
                f"has slices of {slices.size(x.shape, self.dim)} number (shape {tuple(x.shape)}): "
                f"a unit vector needs at least {self.min_slice} to have somewhere to go"
            )
        return None

    # --- values -----------------------------------------------------------------------------

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""

    def spec(self) -> Spec:
        """This manifold as plain, versioned JSON types; `from_spec` turns them back."""
        return {
            "manifold": type(self).__name__,
            "version": SPEC_VERSION,
            "fields": self._fields(),
        }

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifold:
        return cls(**fields)


def from_spec(spec: Spec) -> Manifold:
    """The manifold that `Manifold.spec` described.

    Raises:
        ValueError: if it is no such description, of a newer version, or of an unknown manifold.
    """
    if not isinstance(spec, dict) or not {"manifold", "version", "fields"} <= spec.keys():
        raise ValueError(f"not the description of a manifold, as Manifold.spec gives it: {spec!r}")
    if spec["version"] > SPEC_VERSION:
        raise ValueError(
            f"this description of a manifold has version {spec['version']}, and this release of "
            f"manifoldnet reads up to version {SPEC_VERSION}: install a newer one"
        )
    known = {cls.__name__: cls for cls in Manifold.__subclasses__()}
    if spec["manifold"] not in known:
        raise ValueError(
            f"unknown manifold {spec['manifold']!r} (known: {', '.join(sorted(known))}); "
            "if it is your own, import the module that defines it first"
        )
    return known[spec["manifold"]]._from_fields(spec["fields"])


def resolve_retraction(
    retraction: Retraction | str, refused: type[Retraction], owner: str
) -> Retraction:
    """The retraction meant by an object or by its name, if it makes sense on this manifold.

    Raises:
        ValueError: for an unknown name, or the one that `owner` has no use for.
    """
    known = {cls.name: cls for cls in Retraction.__subclasses__() if cls.by_name}
    offered = ", ".join(repr(name) for name, cls in known.items() if cls is not refused)
    if isinstance(retraction, str) and retraction in known:
        retraction = known[retraction]()
    if not isinstance(retraction, Retraction):
        raise ValueError(f"{owner}: unknown retraction {retraction!r}; there are {offered}")
    if isinstance(retraction, refused):
        raise ValueError(f"{owner} has no use for {retraction!r}; there are {offered}")
    return retraction
