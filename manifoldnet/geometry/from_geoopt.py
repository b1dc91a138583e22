"""Any geoopt manifold behind the vocabulary of this library, to be declared and stepped by it.

    from_geoopt(geoopt.Stiefel())        one frozen value like Oblique() or Sphere()

geoopt's manifolds are modules that compare by identity and may hold tensors. The adapter is a
value: it is equal and hashable by what it was made of, it has a spec, and a module that keeps it
as an attribute does not gain a submodule. geoopt's own formulas do the work, batch dimensions
included. This is the only file of the geometry that knows geoopt.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, final

import geoopt
import torch
from geoopt.manifolds.stiefel import CanonicalStiefel, EuclideanStiefel, Stiefel
from torch import Tensor

from manifoldnet.geometry.euclidean import Euclidean
from manifoldnet.geometry.geodesics import Geodesics
from manifoldnet.geometry.manifold import Manifold, register_manifold
from manifoldnet.geometry.metric import Metric
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.retraction import Parts, Retraction

__all__ = ["GeooptManifold", "from_geoopt"]

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
            it is, and geoopt's flat space as `Euclidean()`.

    Returns:
        A frozen value with geoopt's metric, projection, retraction and geodesics. Where geoopt
        has no formula (a logarithm, say), calling it raises geoopt's NotImplementedError.

    Raises:
        ValueError: if it is no manifold, or if it has trainable parameters of its own (a learnable
            curvature): a manifold here is a value, and an optimizer would change it unseen.
    """
    if isinstance(manifold, Manifold):
        return manifold
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


register_manifold("GeooptManifold", GeooptManifold)


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
        if isinstance(self.base, CanonicalStiefel):
            # Its `proju` is the Riemannian gradient, which doubles vectors that are tangent.
            sym = x.mT @ u
            return u - x @ (sym + sym.mT) / 2
        return self.base.proju(x, u)

    def violation(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            return torch.full((1,) * x.ndim, torch.inf)
        off = (x - self.to_set(x)).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
        return off.reshape((1,) * x.ndim)

    def codimension(self, shape: torch.Size) -> int:
        if not isinstance(self.base, Stiefel):
            return super().codimension(shape)
        columns = shape[-1]  # symmetric matrices of that size, for each of the batch
        return math.prod(shape[:-2]) * columns * (columns + 1) // 2

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        off = (u - self.to_tangent(x, u)).norm() / u.norm().clamp(min=torch.finfo(x.dtype).tiny)
        return off.reshape((1,) * x.ndim)


@dataclass(frozen=True, eq=False)
class _Retraction(Retraction):
    base: Any

    def step(self, parts: Parts, x: Tensor, u: Tensor) -> Tensor:
        return self.base.retr(x, u)

    def step_transport(
        self, parts: Parts, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, carried = self.base.retr_transp(x, u, v)
        return y, carried


@dataclass(frozen=True, eq=False)
class _Geodesics(Geodesics):
    base: Any

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self.base.expmap(x, u)

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y, carried = self.base.expmap_transp(x, u, v)
        return y, carried

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base.logmap(x, y)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base.dist(x, y, keepdim=True)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.base.transp(x, y, v)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        if isinstance(self.base, EuclideanStiefel):
            # [absil2008optimization]: h − u sym(xᵀg), projected; geoopt has no Hessians.
            sym = x.mT @ g
            return self.base.proju(x, h - u @ (sym + sym.mT) / 2)
        raise NotImplementedError(
            f"there is no Hessian for {self.base}: use a solver that needs none, such as "
            "conjugate gradients"
        )
