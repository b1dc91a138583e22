"""Any geoopt manifold behind the vocabulary of this library, to be declared and stepped by it.

    from_geoopt(geoopt.Stiefel())        one frozen value like Oblique() or Sphere()

geoopt's manifolds are modules that compare by identity and may hold tensors. The adapter is a
value: it is equal and hashable by what it was made of, it has a spec, and a module that keeps it
as an attribute does not gain a submodule. geoopt's own formulas do the work, batch dimensions
included.

What they lack is added here: steps and geodesics end on the manifold to rounding, whatever the
point they began at was off (geoopt's Cayley step and its great circles hand an error on), and
vectors are carried to tangent ones. Results that are right to rounding are geoopt's bit for bit.
Scaled and product manifolds are taken apart for this, down to manifolds of one kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import geoopt
import torch
from geoopt.manifolds import BirkhoffPolytope, SymmetricPositiveDefinite
from geoopt.manifolds.stiefel import CanonicalStiefel, EuclideanStiefel, Stiefel
from torch import Tensor

from manifoldnet.geometry.euclidean import Euclidean
from manifoldnet.geometry.geodesics import Geodesics, SphereGeodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold
from manifoldnet.geometry.metric import Metric
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.retraction import Parts, Retraction
from manifoldnet.geometry.to_geoopt import GeooptView

__all__ = ["GeooptManifold", "from_geoopt", "innermost"]

# Results of geoopt that are off by more, relative, are put right.
_ROUNDINGS = 8

# The constructor's arguments of the classes that `from_spec` can make again.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Sphere": (),
    "SphereExact": (),
    "CanonicalStiefel": (),
    "EuclideanStiefel": (),
    "EuclideanStiefelExact": (),
    "BirkhoffPolytope": ("max_iter", "tol", "eps"),
    "Lorentz": ("k",),
    "Stereographic": ("k",),
    "StereographicExact": ("k",),
    "PoincareBall": ("c",),
    "PoincareBallExact": ("c",),
    "SphereProjection": ("k",),
    "SphereProjectionExact": ("k",),
}


def from_geoopt(manifold: Any) -> Manifold:
    """A geoopt manifold as a manifold of this library.

    Args:
        manifold: an instance of `geoopt.manifolds.Manifold`. One of this library is returned as
            it is (out of `to_geoopt`, too), and geoopt's flat space as `Euclidean()`.

    Returns:
        A frozen value with geoopt's metric, projection, retraction and geodesics. Where geoopt
        has no formula (a logarithm, say), calling it raises geoopt's NotImplementedError.

    Raises:
        ValueError: if it is no manifold, or if it has trainable parameters of its own (a learnable
            curvature): a manifold here is a value, and an optimizer would change it unseen.
    """
    if isinstance(manifold, Manifold):
        return manifold
    if isinstance(manifold, GeooptView):
        return manifold.manifold
    if isinstance(manifold, geoopt.Euclidean):
        return Euclidean()
    if not isinstance(manifold, geoopt.manifolds.base.Manifold):
        raise ValueError(f"{manifold!r} is not a manifold: give an object such as mn.Oblique()")
    if any(p.requires_grad for p in manifold.parameters()):
        raise ValueError(
            f"{manifold} has trainable parameters of its own; a declared manifold is a fixed "
            "value: make it with learnable=False"
        )
    return GeooptManifold(manifold)


@final
@dataclass(frozen=True, init=False, eq=False, repr=False)
class GeooptManifold(Manifold):
    """The adapter; made by `from_geoopt`."""

    base: Any

    def __init__(self, base: Any) -> None:
        self._compose(
            base=base,
            dim=None,
            metric=_Metric(base),
            projection=_Projection(base),
            retraction=_Retraction(base),
            geodesics=_Geodesics(base),
            _key=json.dumps(_describe(base), sort_keys=True),
        )

    _key: str

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """geoopt's Riemannian gradient (not always its projection of the representing vector)."""
        return self.metric.sharp(x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ₓ summed over geoopt's batch dimensions."""
        # Without keepdim, geoopt's stereographic models return each pair of batch entries.
        total: Tensor = self.base.inner(x, u, v, keepdim=True).sum()
        return total.reshape((1,) * x.ndim) if keepdim else total

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point, by geoopt's own sampling."""
        if generator is None:
            point: Tensor = self.base.random(*size, dtype=dtype, device=device)
        else:
            # geoopt draws from torch's default generator: lend it one seeded from ours.
            seed = int(torch.randint(2**62, (), generator=generator))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                point = self.base.random(*size, dtype=dtype, device=device)
        return point.detach().as_subclass(Tensor)

    def explain_shape(self, x: Tensor) -> str | None:
        """Why a tensor of this shape and type cannot be a point, geoopt's reasons included."""
        trouble = super().explain_shape(x)
        if trouble is None:
            ok, reason = self.base.check_point(x, explain=True)
            trouble = None if ok else f"is refused by geoopt: {reason}"
        return trouble

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """geoopt's own point of this shape that is always the same."""
        point: Tensor = self.base.origin(*size, dtype=dtype, device=device, seed=seed)
        return point.detach().as_subclass(Tensor)

    @property
    def name(self) -> str:
        """geoopt's name."""
        return str(self.base.name)

    @property
    def ndim(self) -> int:
        """The order of one point; further dimensions of a tensor are a batch."""
        return int(self.base.ndim)

    @property
    def reversible(self) -> bool | None:
        """As geoopt says."""
        known: bool | None = self.base.reversible
        return known

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """geoopt's tensor of the parts of a point."""
        packed: Tensor = self.base.pack_point(*tensors)
        return packed

    def unpack_tensor(self, tensor: Tensor) -> Any:
        """geoopt's parts of a point."""
        return self.base.unpack_tensor(tensor)

    def _slice(self, x: Tensor, number: int) -> tuple[str, Tensor]:
        inner = innermost(self.base)
        if isinstance(inner, Manifold):
            return inner._slice(x, number)
        batch = x.shape[: x.ndim - self.ndim]
        entries = x.reshape(batch.numel(), -1)[number]
        if not batch:
            return "the whole tensor", entries
        if len(batch) == 1:
            return f"{'row' if self.ndim == 1 else 'batch entry'} {number}", entries
        place = [int(i) for i in torch.unravel_index(torch.tensor(number), batch)]
        return f"batch entry ({', '.join(map(str, place))})", entries

    def _parts(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        return [(from_geoopt(part), *pieces) for part, *pieces in _taken_apart(self.base, *tensors)]

    def _fields(self) -> dict[str, Any]:
        return _describe(self.base)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifold:
        name = fields["class"]
        if name in _ARGUMENTS:
            home = geoopt.manifolds.stiefel if "Stiefel" in name else geoopt.manifolds
            arguments = {key: _tensor(value) for key, value in fields["arguments"].items()}
            made = cls(getattr(home, name)(**arguments))
            if made._fields() == fields:
                return made
        raise ValueError(
            f"{fields['description']} of geoopt cannot be made from its description: "
            "make it in code and declare it with from_geoopt"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeooptManifold) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"from_geoopt({self.base})"


def _plain(value: Any) -> Any:
    """A tensor as JSON, with its type; anything else as it is."""
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "value": value.tolist()}
    return value


def _tensor(value: Any) -> Any:
    if isinstance(value, dict):
        return torch.tensor(value["value"], dtype=getattr(torch, value["dtype"]))
    return value


def _describe(base: Any) -> dict[str, Any]:
    name = type(base).__name__
    plain = {k: v for k, v in vars(base).items() if not k.startswith("_") and k != "training"}
    return {
        "class": name,
        "module": type(base).__module__,
        "description": str(base),
        "attributes": {k: repr(v) for k, v in plain.items() if not callable(v)},
        "parts": [_describe(part) for part in base.modules() if part is not base],
        "arguments": {key: _plain(getattr(base, key)) for key in _ARGUMENTS.get(name, ())},
        "state": {key: _plain(value) for key, value in base.state_dict().items()},
    }


# --- what geoopt's formulas are completed by: functions of one manifold that is neither scaled nor
# --- a product, and of points, which `_each` calls for every such part


def innermost(base: Any) -> Any:
    """The manifold that is scaled, where one is: points and tangent spaces are the same."""
    while isinstance(base, geoopt.Scaled):
        base = base.base
    return base


def _taken_apart(base: Any, *tensors: Tensor) -> list[tuple[Any, ...]]:
    """(factor, its part of each tensor) of every factor of a product; nothing of others."""
    base = innermost(base)
    if not isinstance(base, geoopt.ProductManifold):
        return []
    return [
        (factor, *(base.take_submanifold_value(tensor, i) for tensor in tensors))
        for i, factor in enumerate(base.manifolds)
    ]


def _each(function: Callable[..., Tensor], base: Any, *tensors: Tensor) -> Tensor:
    """The value of a function, part by part."""
    parts = _taken_apart(base, *tensors)
    if not parts:
        return function(innermost(base), *tensors)
    batch = tensors[0].shape[:-1]
    values = [_each(function, factor, *pieces) for factor, *pieces in parts]
    return torch.cat([value.reshape(*batch, -1) for value in values], -1)


def _over(base: Any) -> tuple[int, ...]:
    """The dimensions of one point."""
    return tuple(range(-int(base.ndim), 0))


def _length(base: Any, x: Tensor) -> Tensor:
    """The Euclidean norm of each point of a batch."""
    over = _over(base)
    return torch.linalg.vector_norm(x, dim=over, keepdim=True) if over else x.abs()


def _tangent(base: Any, x: Tensor, u: Tensor) -> Tensor:
    """The nearest tangent vector."""
    if isinstance(base, Manifold):
        return base.proju(x, u)
    if isinstance(base, CanonicalStiefel):
        # Its `proju` is the Riemannian gradient, which doubles vectors that are tangent.
        return u - x @ _sym(x.mT @ u)
    if isinstance(base, BirkhoffPolytope):
        # Again a gradient; tangent is what adds up to 0 in every row and column.
        u = u - u.mean(-1, keepdim=True)
        return u - u.mean(-2, keepdim=True)
    tangent: Tensor = base.proju(x, u)
    return tangent


# Formulas of geoopt that end with a projection, to the set or to the tangent space.
_ENDS_PROJECTED = {
    *(geoopt.Sphere.retr, EuclideanStiefel.retr, BirkhoffPolytope.retr),
    *(geoopt.Lorentz.retr, geoopt.Lorentz.expmap),
    *(geoopt.Stereographic.retr, geoopt.Stereographic.expmap),
    *(geoopt.Sphere.transp, EuclideanStiefel.transp),
}


def _settled(formula: str, base: Any, y: Tensor) -> Tensor:
    """`y`, that a formula gave, if on the manifold to rounding; else a point next to it that is.

    For Stiefel one Newton step to the polar factor, `y (3 − yᵀy)/2`, which squares the error and
    costs two products; a singular value decomposition would cost tens of them.
    """
    ours = isinstance(base, Manifold | GeooptView)
    if ours or getattr(type(base), formula) in _ENDS_PROJECTED:
        return y
    rounding = _ROUNDINGS * torch.finfo(y.dtype).eps
    if isinstance(base, Stiefel):
        defect = y.mT @ y - torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        off = torch.linalg.matrix_norm(defect, keepdim=True)  # twice the distance; ‖y‖² = columns
        return torch.where(off > 2 * rounding * y.shape[-1] ** 0.5, y - y @ (defect / 2), y)
    # Symmetric positive definite matrices are open among the symmetric ones.
    z = _sym(y) if isinstance(base, SymmetricPositiveDefinite) else base.projx(y)
    return torch.where(_length(base, z - y) > rounding * _length(base, y), z, y)


def _carried(base: Any, y: Tensor, v: Tensor) -> Tensor:
    """A vector that was carried to `y`, made tangent to rounding."""
    if isinstance(base, Manifold | GeooptView) or type(base).transp in _ENDS_PROJECTED:
        return v
    return _tangent(base, y, v)


def _sym(a: Tensor) -> Tensor:
    return (a + a.mT) / 2


def _violation(base: Any, x: Tensor) -> Tensor:
    """The distance of each point of a batch from the manifold, relative; ∞ for NaN and ∞."""
    base = innermost(base)
    if isinstance(base, Manifold):
        return base.violation(x)
    parts = _taken_apart(base, x)
    if parts:
        batch = x.shape[:-1]
        every = [_violation(factor, part).reshape(*batch, -1) for factor, part in parts]
        return torch.cat(every, -1).amax(-1, keepdim=True)
    over = _over(base)
    if isinstance(base, GeooptView):
        return base.each("violation", x).amax(over, keepdim=True)
    finite = x.isfinite().all(over, keepdim=True) if over else x.isfinite()
    x = torch.where(finite, x, 0.0)  # decompositions raise errors of their own
    size = _length(base, x).clamp(min=torch.finfo(x.dtype).tiny)
    off = _length(base, x - base.projx(x)) / size
    return torch.where(finite, off, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True, eq=False)
class _Metric(Metric):
    base: Any

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return self.base.component_inner(x, u, v)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        # A copy: geoopt's Lorentz changes the gradient that it is given in place.
        return self.base.egrad2rgrad(x, g.clone())


@dataclass(frozen=True, eq=False)
class _Projection(Projection):
    base: Any

    def to_set(self, x: Tensor) -> Tensor:
        return self.base.projx(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return _each(_tangent, self.base, x, u)

    def violation(self, x: Tensor) -> Tensor:
        return _violation(self.base, x)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        size = _length(self.base, u)
        off = _length(self.base, u - self.to_tangent(x, u)) / torch.where(size > 0, size, 1.0)
        # More than 1 where the projection is orthogonal in another metric (Lorentz's) only.
        return off.clamp(max=1.0).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def codimension(self, shape: torch.Size) -> int:
        base = innermost(self.base)
        if isinstance(base, Manifold):
            return base.projection.codimension(shape)
        if isinstance(base, GeooptView):
            one = base.manifold.projection.codimension(torch.Size(base.shape))
            return math.prod(shape[: len(shape) - base.ndim]) * one
        if isinstance(base, geoopt.ProductManifold):
            parts = zip(base.manifolds, base.shapes, strict=True)
            each = (from_geoopt(m).projection.codimension(torch.Size(s)) for m, s in parts)
            return math.prod(shape[:-1]) * sum(each)
        if not isinstance(base, Stiefel):
            return super().codimension(shape)
        columns = shape[-1]  # symmetric matrices of that size, for each of the batch
        return math.prod(shape[:-2]) * columns * (columns + 1) // 2


@dataclass(frozen=True, eq=False)
class _Retraction(Retraction):
    base: Any

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        return _each(partial(_settled, "retr"), self.base, self.base.retr(x, u))

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, carried = self.base.retr_transp(x, u, v)
        y = _each(partial(_settled, "retr"), self.base, y)
        return y, _each(_carried, self.base, y, carried)


@dataclass(frozen=True, eq=False)
class _Geodesics(Geodesics):
    base: Any

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return _each(partial(_settled, "expmap"), self.base, self.base.expmap(x, u))

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y, carried = self.base.expmap_transp(x, u, v)
        y = _each(partial(_settled, "expmap"), self.base, y)
        return y, _each(_carried, self.base, y, carried)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base.logmap(x, y)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base.dist(x, y, keepdim=True)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return _each(_carried, self.base, y, self.base.transp(x, y, v))

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        return _each(_hessian, self.base, x, g, h, u)


def _hessian(base: Any, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
    """The Riemannian Hessian where the formula is known; geoopt has none.

    Euclidean metric: `h − u sym(xᵀg)`, projected [absil2008optimization]. Canonical metric, from
    the bilinear form of [edelman1998geometry]: `e − x eᵀx` of
    `e = h + (x uᵀg + g uᵀx)/2 − (1 − xxᵀ) u sym(xᵀg)`.
    """
    if isinstance(base, Manifold):
        return base.ehess2rhess(x, g, h, u)
    if isinstance(base, GeooptView):
        return base.each("ehess2rhess", x, g, h, u)
    if isinstance(base, geoopt.Euclidean):
        return h
    if isinstance(base, geoopt.Sphere) and base.projector is None:
        rows = (t.reshape(-1, t.shape[-1]) for t in (x, g, h, u))
        return SphereGeodesics(0).hessian(*rows).view_as(x)
    if isinstance(base, EuclideanStiefel):
        return _tangent(base, x, h - u @ _sym(x.mT @ g))
    if isinstance(base, CanonicalStiefel):
        bent = u @ _sym(x.mT @ g)
        e = h + (x @ u.mT @ g + g @ u.mT @ x) / 2 - (bent - x @ (x.mT @ bent))
        return e - x @ e.mT @ x
    raise NotImplementedError(
        f"there is no Hessian for {base}: use a solver that needs none, such as conjugate gradients"
    )


register_manifold("GeooptManifold", GeooptManifold)
