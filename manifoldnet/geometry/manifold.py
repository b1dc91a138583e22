"""A manifold is a metric, a projection, a retraction and the metric's geodesics, composed.

    Euclidean        = EuclideanMetric + NoProjection   + Additive   + FlatGeodesics
    Oblique, Sphere  = EuclideanMetric + Normalization  + Projective + SphereGeodesics
    ScaledEuclidean  = ScaledMetric    + NoProjection   + Geodesic   + CylinderGeodesics

`Manifold` is that composition as a frozen value: equal, hashable and picklable by its fields, its
`repr` the call that makes it. It speaks geoopt's vocabulary by handing each call to one part, so
code written for geoopt's manifolds, its optimizers included, runs on these. A point is always a
whole parameter; there are no hidden batch dimensions. Here, at the door, half types are raised to
float32 and results returned in the type of the point. Checks are in `manifoldnet.geometry.checks`.

`expmap, logmap, dist, transp` are the exact ones of the metric, whatever the retraction; `retr,
retr_transp, transp_follow_retr` are the retraction's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor

from manifoldnet.geometry import slices
from manifoldnet.geometry.checks import Checks, tolerance
from manifoldnet.geometry.geodesics import Geodesics
from manifoldnet.geometry.metric import Metric
from manifoldnet.geometry.naming import add_name, name_of
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.retraction import RETRACTIONS, Retraction

__all__ = [
    "Manifold",
    "Spec",
    "from_spec",
    "register_manifold",
    "resolve_retraction",
    "tolerance",
]

SPEC_VERSION = 1


class _Scaling(NamedTuple):
    """Powers of the unit of length: of results, and of arguments by name."""

    results: tuple[float, ...] = ()
    kwargs: Mapping[str, float] = MappingProxyType({})


class Spec(TypedDict):
    """A manifold as plain JSON types."""

    manifold: str
    version: int
    fields: dict[str, Any]


class Manifold(Checks):
    """Metric + projection + retraction (+ geodesics), as one frozen value.

    A new manifold is a frozen dataclass that sets its parts with `_compose` in its constructor.
    """

    metric: Metric
    projection: Projection
    retraction: Retraction
    geodesics: Geodesics

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

    # --- values -----------------------------------------------------------------------------

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""

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

    # --- what else geoopt's manifolds have ----------------------------------------------------

    # How results and arguments grow with the unit of length, for `geoopt.Scaled`.
    __scaling__: ClassVar[Mapping[str, _Scaling]] = {
        "dist": _Scaling((1,)),
        "dist2": _Scaling((2,)),
        "logmap": _Scaling((1,)),
        **dict.fromkeys(
            (
                *("retr", "retr_transp", "transp_follow_retr"),
                *("expmap", "expmap_transp", "transp_follow_expmap"),
            ),
            _Scaling((), {"u": -1}),
        ),
    }

    device: ClassVar[torch.device | None] = None
    dtype: ClassVar[torch.dtype | None] = None

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    @property
    def ndim(self) -> int:
        """The least order that a point can have."""
        if self.dim == "elements":
            return 0
        order = 0 if self.dim is None else self.dim + 1
        return order if self.min_slice == 1 else max(order, 1 if self.dim is None else 2)

    @property
    def reversible(self) -> bool | None:
        """True if a step, and the step back along what it carried there, ends where it began.

        None where that is not known.
        """
        return self.retraction.reversible

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """One point of this shape, always the same: `random` at a seed.

        Args:
            size: the shape, as numbers or as one tuple.
            dtype: as in `torch.randn`.
            device: as in `torch.randn`.
            seed: of the point; None takes one by torch's default generator.
        """
        source = None
        if seed is not None:
            device = torch.get_default_device() if device is None else device
            source = torch.Generator(device).manual_seed(seed)
        return self.random(*size, dtype=dtype, device=device, generator=source)

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """The tensor itself: a point has one part here.

        Raises:
            ValueError: for any other number of tensors than one.
        """
        if len(tensors) != 1:
            raise ValueError(f"a point of {self} is one tensor, not {len(tensors)}")
        return tensors[0]

    def unpack_tensor(self, tensor: Tensor) -> Any:
        """The tensor itself: a point has one part here."""
        return tensor

    def extra_repr(self) -> str:
        """The fields, as `repr` has them."""
        return repr(self).partition("(")[2].removesuffix(")")

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        trouble = self.explain_shape(torch.empty(shape, dtype=torch.double, device="meta"))
        return trouble is None, trouble and f"{name} {trouble}"

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return self.check_point_on_manifold(x, atol=atol, rtol=rtol, explain=True)

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return self.check_vector_on_tangent(x, u, ok_point=True, atol=atol, rtol=rtol, explain=True)


# Filled by `register_manifold`: each file that defines a manifold ends with its name.
_MANIFOLDS: dict[str, type[Manifold]] = {}


def register_manifold(name: str, cls: type[Manifold]) -> None:
    """Give a class of manifolds the name by which specs mention it, and `from_spec` finds it.

    Args:
        name: usually that of the class.
        cls: a concrete subclass of `Manifold`.

    Raises:
        ValueError: for a name that another class has, a class that has another name, and what is
            no such class.
    """
    add_name(_MANIFOLDS, name, cls, Manifold)


def from_spec(spec: Spec) -> Manifold:
    """The manifold that `Manifold.spec` described.

    Raises:
        ValueError: if it is no such description, of a newer version, or of a manifold whose class
            is not registered.
    """
    if not isinstance(spec, dict) or not {"manifold", "version", "fields"} <= spec.keys():
        raise ValueError(f"not the description of a manifold, as Manifold.spec gives it: {spec!r}")
    if spec["version"] > SPEC_VERSION:
        raise ValueError(
            f"this description of a manifold has version {spec['version']}, and this release of "
            f"manifoldnet reads up to version {SPEC_VERSION}: install a newer one"
        )
    if spec["manifold"] not in _MANIFOLDS:
        raise ValueError(
            f"unknown manifold {spec['manifold']!r} (known: {', '.join(sorted(_MANIFOLDS))}); if "
            "it is your own, name its class with manifoldnet.geometry.register_manifold(name, "
            "cls) where it is defined, and import that module first"
        )
    return _MANIFOLDS[spec["manifold"]]._from_fields(spec["fields"])


def resolve_retraction(
    retraction: Retraction | str, refused: type[Retraction], owner: str
) -> Retraction:
    """The retraction meant by an object or by its name, if it makes sense on this manifold.

    Raises:
        ValueError: for an unknown name, or the one that `owner` has no use for.
    """
    offered = ", ".join(repr(name) for name, cls in RETRACTIONS.items() if cls is not refused)
    if isinstance(retraction, str) and retraction in RETRACTIONS:
        retraction = RETRACTIONS[retraction]()
    if not isinstance(retraction, Retraction):
        raise ValueError(
            f"{owner}: unknown retraction {retraction!r}; there are {offered}. One of your own is "
            "given as an object, or named with manifoldnet.geometry.register_retraction(name, cls)"
        )
    if isinstance(retraction, refused):
        raise ValueError(f"{owner} has no use for {retraction!r}; there are {offered}")
    return retraction
