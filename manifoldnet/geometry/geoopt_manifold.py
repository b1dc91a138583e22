"""geoopt's manifolds as values of this library: the results of `from_geoopt`.

geoopt's manifolds are modules that compare by identity and may hold tensors. The adapter is a
value: it is equal and hashable by what it was made of, it has a spec, and a module that keeps it
as an attribute does not gain a submodule. geoopt's own formulas do the work, batch dimensions
included.

What they lack is added here: steps and geodesics end on the manifold to rounding, whatever the
point they began at was off (geoopt's Cayley step and its great circles hand an error on), and
vectors are transported to tangent ones. Results that are right to rounding are geoopt's bit for
bit. Scaled and product manifolds are taken apart for this, down to manifolds of one class.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from manifoldnet.geometry._geoopt import geoopt
from manifoldnet.geometry.euclidean import Euclidean
from manifoldnet.geometry.geoopt_view import GeooptView
from manifoldnet.geometry.manifold import Manifold, Projective, Retraction, register_manifold
from manifoldnet.geometry.oblique import SphereGeodesics
from manifoldnet.geometry.parts import Frame
from manifoldnet.geometry.settled import settle
from manifoldnet.geometry.slices import Slices, euclidean_norm, promote
from manifoldnet.geometry.validation import NotOnManifoldError

__all__ = ["GeooptManifold", "adapted"]

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


def adapted(manifold: Any) -> Manifold | None:
    """The value for an object of geoopt's (see `from_geoopt`), or itself; None if it is neither."""
    if isinstance(manifold, Manifold):
        return manifold
    if isinstance(manifold, GeooptView):
        return manifold.manifold
    if isinstance(manifold, geoopt.Euclidean):
        return Euclidean()
    if not isinstance(manifold, geoopt.manifolds.base.Manifold):
        return None
    if any(p.requires_grad for p in manifold.parameters()):
        raise ValueError(
            f"{manifold} has trainable parameters of its own; a declared manifold is a fixed "
            "value: make it with learnable=False"
        )
    return GeooptManifold(manifold)


def _part(manifold: Any) -> Manifold:
    """The value for a factor of geoopt's product."""
    found = adapted(manifold)
    if found is None:
        raise TypeError(f"{manifold!r} is not a manifold")
    return found


@final
@dataclass(frozen=True, init=False, eq=False, repr=False)
class GeooptManifold(Manifold):
    """The adapter; made by `from_geoopt`.

    Args:
        base: geoopt's manifold.
        retraction: in place of geoopt's own.
    """

    base: Any
    retraction: Retraction = field(init=False)  # only where it is not geoopt's
    _key: str = field(init=False)

    def __init__(self, base: Any, retraction: Retraction | None = None) -> None:
        vars(self).update(base=base, _key=json.dumps(_describe(base), sort_keys=True))
        if retraction is not None:
            vars(self).update(retraction=retraction)

    # --- geoopt's formulas, completed -------------------------------------------------------

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """⟨u, v⟩ₓ of each batch entry, or finer where geoopt's is."""
        inner: Tensor = self.base.component_inner(*promote(x, u, u if v is None else v))
        return inner

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ₓ summed over geoopt's batch dimensions."""
        # Without keepdim, geoopt's stereographic models return each pair of batch entries.
        total: Tensor = self.base.inner(x, u, v, keepdim=True).sum()
        return total.reshape((1,) * x.ndim) if keepdim else total

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """geoopt's Riemannian gradient."""
        # A copy: geoopt's Lorentz changes the gradient that it is given in place.
        gradient: Tensor = self.base.egrad2rgrad(x, g.clone())
        return gradient

    def frame(self, x: Tensor) -> Frame:
        """The frame of geoopt's conformal models (Poincaré ball, stereographic), `q = 1/λ(x)`.

        Raises:
            NotImplementedError: for other manifolds of geoopt.
        """
        if not isinstance(self.base, geoopt.Stereographic):
            raise NotImplementedError(f"{self!r} has no known square root of its metric")
        (x,) = promote(x)
        return Frame(1 / self.base.lambda_x(x, keepdim=True))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """geoopt's Riemannian gradient (not always its projection of the representing vector)."""
        return self.sharp(x, u)

    def ehess2rhess(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The Riemannian Hessian at `x` applied to `u`, where its formula is known here."""
        return _each(_hessian, self.base, *promote(x, g, h, u)).to(x.dtype)

    def nearest(self, x: Tensor) -> Tensor:
        """`projx` without its checks."""
        point: Tensor = self.base.projx(*promote(x))
        return point.to(x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The nearest tangent vector at `x`."""
        return _each(_tangent, self.base, *promote(x, u)).to(x.dtype)

    def violation(self, x: Tensor) -> Tensor:
        """The distance of each batch entry from the manifold, relative to its size."""
        return _violation(self.base, *promote(settle(x)))

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each batch entry of `u` that is not tangent at `x`."""
        x, u = promote(settle(x), settle(u))
        size = _length(self.base, u)
        off = _length(self.base, u - self.proju(x, u)) / torch.where(size > 0, size, 1.0)
        # More than 1 where the projection is orthogonal in another metric (Lorentz's) only.
        return off.clamp(max=1.0).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def codimension(self, shape: torch.Size) -> int:
        """The dimension of the normal spaces, counted where no formula is known."""
        known = _codimension(self.base, shape)
        return self._counted_codimension(shape) if known is None else known

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential map."""
        return self._point("expmap", x, u)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The exponential map, and parallel transport along it."""
        return self._point_and_vector("expmap", x, u, v)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm."""
        u: Tensor = self.base.logmap(*promote(x, y))
        return u.to(x.dtype)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each batch entry."""
        distances: Tensor = self.base.dist(*promote(x, y), keepdim=True)
        return distances

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """geoopt's transport from `x` to `y`."""
        x_, y_, v_ = promote(x, y, v)
        return _each(_transported, self.base, y_, self.base.transp(x_, y_, v_)).to(x.dtype)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction."""
        return super().retr(x, u) if self.parts else self._point("retr", x, u)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The retraction, and `v` transported along the step."""
        if self.parts:
            return super().retr_transp(x, u, v)
        return self._point_and_vector("retr", x, u, v)

    def _point(self, formula: str, x: Tensor, u: Tensor) -> Tensor:
        y = getattr(self.base, formula)(*promote(x, u))
        return _each(partial(_settled, formula), self.base, y).to(x.dtype)

    def _point_and_vector(
        self, formula: str, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, transported = getattr(self.base, f"{formula}_transp")(*promote(x, u, v))
        y = _each(partial(_settled, formula), self.base, y)
        return y.to(x.dtype), _each(_transported, self.base, y, transported).to(v.dtype)

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """π radii for each sphere, all together as in Pythagoras' theorem; √d for others."""
        return _typical_dist(self.base, shape, self.dimension(shape))

    @property
    def scale_invariant(self) -> bool:
        """False."""
        return False

    def with_true_steps(self) -> Manifold:
        """The manifold with a retraction whose derivative at 0 is the identity.

        That of geoopt's canonical Stiefel manifold doubles what lies in the span of `x`, which a
        second-order model does not survive: it is exchanged for the projection retraction.
        """
        canonical = isinstance(_innermost(self.base), geoopt.CanonicalStiefel)
        return GeooptManifold(self.base, Projective()) if canonical else self

    # --- points -----------------------------------------------------------------------------

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

    def _label(self, x: Tensor, index: int) -> str:
        base = _innermost(self.base)
        if isinstance(base, Manifold):
            return base._label(x, index)
        batch = x.shape[: x.ndim - self.ndim]
        if not batch:
            return "the whole tensor"
        if len(batch) == 1:
            return f"{'row' if self.ndim == 1 else 'batch entry'} {index}"
        place = [int(i) for i in torch.unravel_index(torch.tensor(index), batch)]
        return f"batch entry ({', '.join(map(str, place))})"

    def _sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        base = _innermost(self.base)
        if isinstance(base, Manifold):
            return base._sizes(x)
        (x,) = promote(settle(x))
        rows = x.reshape(x.shape[: x.ndim - self.ndim].numel(), -1)
        return rows.abs().amax(1), euclidean_norm(rows, (1,)).squeeze(1)

    def _misfit(self, x: Tensor) -> str | None:
        if x.numel() == 0:
            return f"is empty (shape {tuple(x.shape)})"
        ok, reason = self.base.check_point(x, explain=True)
        if ok:
            return None
        ours = isinstance(_innermost(self.base), geoopt.Stiefel)
        advice = "; manifoldnet's own Stiefel() takes wide matrices and kernels" if ours else ""
        return f"is refused by geoopt: {reason}{advice}"

    def _moved_to_rim(self, x: Tensor, name: str) -> str | None:
        """A warning about rows outside of a ball of negative curvature; None if there are none."""
        base = _innermost(self.base)
        if not isinstance(base, geoopt.Stereographic) or float(base.k) >= 0:
            return None
        error = self.validate(x, name=name)
        if not isinstance(error, NotOnManifoldError):
            return None
        place = f"{error.slices[0]} by {error.amounts[0]:.0%} of its norm"
        return (
            f"{name}: {error.count} of {error.total} rows were outside of {self} and are at its "
            f"rim now, the farthest moved {place}. Distances from the rim are very large: start "
            "within the ball, such as with torch.nn.init.uniform_(weight, -1e-3, 1e-3)"
        )

    def _factors(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        return [(_part(part), *pieces) for part, *pieces in _taken_apart(self.base, *tensors)]

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
        return (
            isinstance(other, GeooptManifold)
            and self._key == other._key
            and self.parts == other.parts
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return _call(self.base)


def _call(base: Any) -> str:
    """The call that makes a manifold of geoopt; "geoopt's …" where its arguments are not known."""
    if isinstance(base, Manifold):
        return repr(base)
    name = type(base).__name__
    if type(base) is geoopt.Scaled:
        return f"geoopt.Scaled({_call(base.base)}, {_number(base.scale)})"
    if type(base) is geoopt.ProductManifold:
        factors = (
            f"({_call(manifold)}, {tuple(shape)})"
            for manifold, shape in zip(base.manifolds, base.shapes, strict=True)
        )
        return f"geoopt.ProductManifold({', '.join(factors)})"
    known = _ARGUMENTS.get(name)
    if known is None or len(base.state_dict()) > len(known):  # a sphere in a subspace
        return f"geoopt's {str(base).removesuffix(' manifold')}"
    defaults = inspect.signature(type(base)).parameters
    given = {key: _number(getattr(base, key)) for key in known}
    shown = (f"{k}={v}" for k, v in given.items() if v != repr(defaults[k].default))
    return f"geoopt.{name}({', '.join(shown)})"


def _number(value: Any) -> str:
    """A number of geoopt's, which keeps numbers as tensors of torch's default type."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        return repr(value)
    number = float(f"{float(value):.6g}")  # of which geoopt may keep a logarithm
    if value.dtype == torch.float32:
        return repr(number)
    return f"torch.tensor({number}, dtype={value.dtype})"


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
        "module": getattr(base, "spec_module", type(base).__module__),
        "description": str(base),
        "attributes": {k: repr(v) for k, v in plain.items() if not callable(v)},
        "parts": [_describe(part) for part in base.modules() if part is not base],
        "arguments": {key: _plain(getattr(base, key)) for key in _ARGUMENTS.get(name, ())},
        "state": {key: _plain(value) for key, value in base.state_dict().items()},
    }


# --- what geoopt's formulas are completed by: functions of one manifold that is neither scaled nor
# --- a product, and of points, which `_each` calls for every such part


def _innermost(base: Any) -> Any:
    """The manifold that is scaled, where one is: points and tangent spaces are the same."""
    while isinstance(base, geoopt.Scaled):
        base = base.base
    return base


def _taken_apart(base: Any, *tensors: Tensor) -> list[tuple[Any, ...]]:
    """(factor, its part of each tensor) of every factor of a product; nothing of others."""
    base = _innermost(base)
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
        return function(_innermost(base), *tensors)
    batch = tensors[0].shape[:-1]
    values = [_each(function, factor, *pieces) for factor, *pieces in parts]
    return torch.cat([value.reshape(*batch, -1) for value in values], -1)


def _over(base: Any) -> tuple[int, ...]:
    """The dimensions of one point."""
    return tuple(range(-int(base.ndim), 0))


def _length(base: Any, x: Tensor) -> Tensor:
    """The Euclidean norm of each point of a batch."""
    return euclidean_norm(x, _over(base))


def _tangent(base: Any, x: Tensor, u: Tensor) -> Tensor:
    """The nearest tangent vector."""
    if isinstance(base, Manifold):
        return base.proju(x, u)
    if isinstance(base, geoopt.CanonicalStiefel):
        # Its `proju` is the Riemannian gradient, which doubles vectors that are tangent.
        return u - x @ _sym(x.mT @ u)
    if isinstance(base, geoopt.BirkhoffPolytope):
        # Again a gradient; tangent is what adds up to 0 in every row and column.
        u = u - u.mean(-1, keepdim=True)
        return u - u.mean(-2, keepdim=True)
    tangent: Tensor = base.proju(x, u)
    return tangent


# Formulas of geoopt that end with a projection, to the set or to the tangent space.
_ENDS_PROJECTED = {
    *(geoopt.Sphere.retr, geoopt.EuclideanStiefel.retr, geoopt.BirkhoffPolytope.retr),
    *(geoopt.Lorentz.retr, geoopt.Lorentz.expmap),
    *(geoopt.Stereographic.retr, geoopt.Stereographic.expmap),
    *(geoopt.Sphere.transp, geoopt.EuclideanStiefel.transp),
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
    if isinstance(base, geoopt.Stiefel):
        defect = y.mT @ y - torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        off = torch.linalg.matrix_norm(defect, keepdim=True)  # twice the distance; ‖y‖² = columns
        return torch.where(off > 2 * rounding * y.shape[-1] ** 0.5, y - y @ (defect / 2), y)
    # Symmetric positive definite matrices are open among the symmetric ones.
    z = _sym(y) if isinstance(base, geoopt.SymmetricPositiveDefinite) else base.projx(y)
    return torch.where(_length(base, z - y) > rounding * _length(base, y), z, y)


def _transported(base: Any, y: Tensor, v: Tensor) -> Tensor:
    """A vector that was transported to `y`, made tangent to rounding."""
    if isinstance(base, Manifold | GeooptView) or type(base).transp in _ENDS_PROJECTED:
        return v
    return _tangent(base, y, v)


def _sym(a: Tensor) -> Tensor:
    return (a + a.mT) / 2


def _violation(base: Any, x: Tensor) -> Tensor:
    """The distance of each point of a batch from the manifold, relative; ∞ for NaN and ∞."""
    base = _innermost(base)
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


def _codimension(base: Any, shape: torch.Size) -> int | None:
    """The dimension of the normal spaces, where a formula is known."""
    base = _innermost(base)
    if isinstance(base, Manifold):
        return base.codimension(shape)
    if isinstance(base, GeooptView):
        one = base.manifold.codimension(torch.Size(base.shape))
        return math.prod(shape[: len(shape) - base.ndim]) * one
    if isinstance(base, geoopt.ProductManifold):
        parts = zip(base.manifolds, base.shapes, strict=True)
        each = (_part(m).codimension(torch.Size(s)) for m, s in parts)
        return math.prod(shape[:-1]) * sum(each)
    if not isinstance(base, geoopt.Stiefel):
        return None
    columns = shape[-1]  # symmetric matrices of that size, for each of the batch
    return math.prod(shape[:-2]) * columns * (columns + 1) // 2


def _typical_dist(base: Any, shape: tuple[int, ...], dimension: int) -> float:
    if isinstance(base, geoopt.Scaled):
        return float(base.scale) * _typical_dist(base.base, shape, dimension)
    if isinstance(base, Manifold):
        return base.typical_dist(shape)
    count = math.prod(shape[: len(shape) - base.ndim])
    if isinstance(base, GeooptView):
        return math.sqrt(count) * base.manifold.typical_dist(base.shape)
    if isinstance(base, geoopt.ProductManifold):
        parts = zip(base.manifolds, base.shapes, strict=True)
        each = (_part(part).typical_dist(tuple(size)) for part, size in parts)
        return math.sqrt(count) * math.hypot(*each)
    if isinstance(base, geoopt.Sphere):
        return math.pi * math.sqrt(count)
    if isinstance(base, geoopt.Stereographic) and float(base.k) > 0:
        return math.pi * math.sqrt(count / float(base.k))
    if isinstance(base, geoopt.Stiefel):
        return math.sqrt(count * shape[-1])
    return math.sqrt(dimension)


def _hessian(base: Any, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
    """The Riemannian Hessian where its formula is known; geoopt has none.

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
        return SphereGeodesics(Slices(0)).hessian(*rows).view_as(x)
    if isinstance(base, geoopt.EuclideanStiefel):
        return _tangent(base, x, h - u @ _sym(x.mT @ g))
    if isinstance(base, geoopt.CanonicalStiefel):
        bent = u @ _sym(x.mT @ g)
        e = h + (x @ u.mT @ g + g @ u.mT @ x) / 2 - (bent - x @ (x.mT @ bent))
        return e - x @ e.mT @ x
    raise NotImplementedError(
        f"there is no Hessian for {_call(base)}: use a solver that needs none, such as conjugate "
        "gradients"
    )


register_manifold("GeooptManifold", GeooptManifold)
