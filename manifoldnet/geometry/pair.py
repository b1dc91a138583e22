"""Pairs: two factors of a product W = A Bᵀ, up to the group GL(r).

    group       (A, B) → (A S, B S⁻ᵀ) leaves W unchanged
    metric      ⟨(U, V), (U', V')⟩ = tr(UᵀU' BᵀB) + tr(VᵀV' AᵀA),   that is ‖U Bᵀ‖² + ‖A Vᵀ‖²
    gradient    (g_A (BᵀB)⁻¹, g_B (AᵀA)⁻¹)
    frame       of A: Û = U Kᵀ with B = Q K, Q of orthonormal columns; of B alike, from A
    retraction  (A + U, B + V), with V or U bounded where U Vᵀ would exceed them (`retract`)
    split       stays as it is, unless rounding of A Bᵀ would lose digits (`rebalance`)
    transport   along the step: Û stays, and Q turns to the nearest basis of the new columns

The group acts by isometries [mishra2012riemannian]; with r = 1 it is the scaled metric's. For LoRA
it is the metric of [zhang2024riemannian]. With heads, W is a stack of products, one for each head.

Bases Q belong to the column spaces of A and B, which do not depend on S. `frame` chooses them near
a given one (the orthogonal Procrustes problem): frames that start at one reference, and are carried
from step to step, give coordinates that do not depend on S either.

Where a factor has not full rank, (BᵀB)⁻¹ does not exist. Singular directions of B with σ ≤ 1e-9 σ₁,
or within rounding, have the inverse 0: A is not moved along them. A factor that is zero (LoRA's
start) leaves its partner where it is, and is moved itself. There invariance is not claimed: it
depends on S whether a direction counts as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn, final

import torch
from torch import Tensor

from manifoldnet.geometry.euclidean import FlatGeodesics, NoProjection
from manifoldnet.geometry.manifold import (
    SPEC_VERSION,
    Additive,
    Manifold,
    Spec,
    register_manifold,
)
from manifoldnet.geometry.parts import Frame, Geodesics, Metric
from manifoldnet.geometry.slices import Slices, promote

__all__ = [
    "FactorFrame",
    "FactorMetric",
    "Pair",
    "PairFactor",
    "PairFactorBeside",
    "frame",
    "loses_digits",
    "rebalance",
    "reference_basis",
    "retract",
]

_WHOLE = Slices(None)
# Singular values of a factor below this share of its largest count as zero.
_CUT = 1e-9


# --- frames ---------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class FactorFrame:
    """The frame that a factor B gives to its partner A: B = Q K.

    Attributes:
        q: a basis of the columns of B, orthonormal, of shape (heads, rows, r).
        k: coordinates of the columns, of shape (heads, r, r).
        left, s, right: the singular value decomposition of K.
    """

    q: Tensor
    k: Tensor
    left: Tensor
    s: Tensor
    right: Tensor

    def enter(self, u: Tensor) -> Tensor:
        """The coordinates `U Kᵀ` of a displacement of A: the metric is their dot product."""
        return u @ self.k.mT

    def enter_gradient(self, g: Tensor) -> Tensor:
        """The coordinates `g K⁻¹` of the Riemannian gradient, from the Euclidean one of A."""
        return (g @ self.right.mT * self._inverse) @ self.left.mT

    def leave(self, u: Tensor) -> Tensor:
        """The displacement `Û K⁻ᵀ` of A that has coordinates `Û`."""
        return (u @ self.left * self._inverse) @ self.right

    @property
    def _inverse(self) -> Tensor:
        cut = max(_CUT, torch.finfo(self.s.dtype).eps * self.q.shape[-2])
        kept = self.s > cut * self.s[..., :1]
        # Written so that NaN stays NaN.
        return torch.where(kept | self.s.isnan(), 1 / self.s, 0.0).unsqueeze(-2)


def frame(b: Tensor, near: Tensor | None = None) -> FactorFrame:
    """The frame of a factor, with the basis of its columns that is nearest to another one.

    Args:
        b: the factor, of shape (heads, rows, r).
        near: a basis of its shape, such as that of the step before; None for any.
    """
    q = torch.linalg.qr(b)[0]
    if near is not None:
        left, _, right = _svd(q.mT @ near.to(q))
        q = q @ (left @ right)
    k = q.mT @ b
    return FactorFrame(q, k, *_svd(k))


def reference_basis(b: Tensor) -> Tensor:
    """Fixed columns of the shape of a factor, near to which a first basis is chosen."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(b.shape, dtype=torch.float64, generator=source).to(b)


def _svd(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition; singular values of what is not finite are NaN."""
    finite = m.isfinite().all(-1).all(-1)
    left, s, right = torch.linalg.svd(torch.where(finite[..., None, None], m, 0.0))
    return left, torch.where(finite.unsqueeze(-1), s, torch.nan), right


def retract(of_a: FactorFrame, of_b: FactorFrame, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Displacements (U, V) of both factors of a step with coordinates (Û, V̂).

    They are (Û K_B⁻ᵀ, V̂ K_A⁻ᵀ), for which W changes by Û Q_Bᵀ + Q_A V̂ᵀ + U Vᵀ. Along a singular
    value σ of W that is smaller than the step, the last term would be the largest. If both factors
    would change by more than themselves, that of the smaller relative change is bounded: σ⁻¹ in V
    becomes max(σ, ‖V̂‖)⁻¹, so that ‖U Vᵀ‖ ≤ ‖Û‖ (or the other way round). All of this commutes
    with the group.

    Args:
        of_a: the frame of A.
        of_b: the frame of B.
        u: coordinates of the displacement of A, of shape (heads, rows of A, r).
        v: coordinates of the displacement of B.
    """
    x, s, y = _svd(of_a.k @ of_b.k.mT)  # W = Q_A (x s y) Q_Bᵀ
    s = s.unsqueeze(-2)
    uy, vx = u @ y.mT, v @ x
    tiny = torch.finfo(s.dtype).tiny
    relative_u, relative_v = ((w / s.clamp(min=tiny)).square().sum((-2, -1)) for w in (uy, vx))
    large = torch.minimum(relative_u, relative_v) > 1
    u_is_smaller = relative_u < relative_v
    size_u, size_v = (torch.linalg.matrix_norm(w)[..., None, None] for w in (u, v))
    bounded_u = (uy / torch.maximum(s, size_u).clamp(min=tiny)) @ x.mT @ of_a.k
    bounded_v = (vx / torch.maximum(s, size_v).clamp(min=tiny)) @ y @ of_b.k
    return (
        torch.where((large & u_is_smaller)[..., None, None], bounded_u, of_b.leave(u)),
        torch.where((large & ~u_is_smaller)[..., None, None], bounded_v, of_a.leave(v)),
    )


def loses_digits(of_a: FactorFrame, of_b: FactorFrame) -> Tensor:
    """Heads whose product is rounded by more than 1e-4 of its norm: ε ‖A‖ ‖B‖ > 1e-4 ‖A Bᵀ‖."""
    whole = torch.linalg.matrix_norm(of_a.k @ of_b.k.mT)
    rounding = torch.linalg.matrix_norm(of_a.k) * torch.linalg.matrix_norm(of_b.k)
    return torch.finfo(whole.dtype).eps * rounding > 1e-4 * whole


def rebalance(a: Tensor, b: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (A S, B S⁻ᵀ) with equal Gram matrices, for which ‖A‖ ‖B‖ ≤ √r ‖A Bᵀ‖.

    Computed in float64, on the CPU, as not all devices have this type.

    Args:
        a: the factor A, of shape (heads, rows of A, r).
        b: the factor B.
        where: heads to change; others stay as they are.
    """
    eps = torch.finfo(a.dtype).eps
    (qa, ka), (qb, kb) = (torch.linalg.qr(w.cpu().double()) for w in (a, b))
    x, s, y = _svd(ka @ kb.mT)
    root = torch.maximum(s, eps * s[..., :1]).sqrt().unsqueeze(-2)  # no column is lost
    where = where[..., None, None] & (s[..., :1, None] > 0).to(where.device)
    new_a, new_b = (qa @ x * root).to(a), (qb @ y.mT * root).to(b)
    return torch.where(where, new_a, a), torch.where(where, new_b, b)


# --- one factor -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _NoMetric(Metric):
    """The metric of one factor alone, which there is not."""

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(
            "the metric of a factor of a Pair depends on its partner: use Pair.inner, "
            "Pair.gradient, or PairFactor.beside(partner)"
        )

    def sharp(self, x: Tensor, g: Tensor) -> NoReturn:
        """Raise NotImplementedError."""
        self.component_inner(x, g, g)

    def frame(self, x: Tensor) -> NoReturn:
        """Raise NotImplementedError."""
        self.component_inner(x, x, x)


@final
@dataclass(frozen=True, init=False)
class PairFactor(Manifold):
    """One factor of a `Pair`, as the registry knows it: any matrix of its shape is a point.

    Args:
        heads: blocks of the shared dimension.
        dim: the shared dimension of the weight: 1 for a weight n × heads·r, 0 for heads·r × n.

    Raises:
        TypeError: for arguments that are no whole numbers.
        ValueError: for `heads` below 1, and a `dim` that is neither 0 nor 1.
    """

    heads: int
    dim: int

    def __init__(self, heads: int = 1, dim: int = 1) -> None:
        _check_whole("heads", heads)
        _check_whole("dim", dim)
        if heads < 1 or dim not in (0, 1):
            raise ValueError(f"a factor has 1 or more heads and dim 0 or 1, not {heads} and {dim}")
        parts = _NoMetric(), NoProjection(_WHOLE), Additive(), FlatGeodesics()
        super().__init__(_WHOLE, *parts, heads=heads, dim=dim)

    def rank(self, shape: tuple[int, ...]) -> int | None:
        """The number r of shared columns in each head of a weight; None if it is no factor."""
        if len(shape) != 2 or shape[self.dim] % self.heads:
            return None
        return shape[self.dim] // self.heads

    def split(self, x: Tensor) -> Tensor:
        """A weight as its heads, of shape (heads, n, r), as columns that are shared."""
        if self.dim == 1:
            return x.reshape(x.shape[0], self.heads, -1).transpose(0, 1)
        return x.reshape(self.heads, -1, x.shape[1]).mT

    def join(self, heads: Tensor) -> Tensor:
        """The weight that is made of such heads."""
        if self.dim == 1:
            return heads.transpose(0, 1).reshape(heads.shape[1], -1)
        return heads.mT.reshape(-1, heads.shape[1])

    def beside(self, partner: Tensor) -> PairFactorBeside:
        """The flat geometry of this factor while its partner stays where it is.

        Args:
            partner: the other factor as heads, of shape (heads, rows, r).
        """
        return PairFactorBeside(self, *promote(partner))

    def _misfit(self, x: Tensor) -> str | None:
        shape = tuple(x.shape)
        if x.ndim != 2:
            return f"has order {x.ndim} (shape {shape}), and a factor of a pair is a matrix"
        if x.numel() == 0:
            return f"is empty (shape {shape})"
        if shape[self.dim] % self.heads:
            return f"has {shape[self.dim]} shared columns or rows, which {self.heads} do not divide"
        if shape[self.dim] // self.heads > shape[1 - self.dim]:
            return (
                f"has the shape {shape}, and with r = {shape[self.dim] // self.heads} shared "
                f"columns for {shape[1 - self.dim]} numbers each these are never independent, so "
                "that their Gram matrix has no inverse: take a smaller r, or name the factors in "
                "the order of their product, Pair(left, right) for left @ right"
            )
        return None


@final
@dataclass(frozen=True)
class FactorMetric(Metric):
    """`tr(UᵀV BᵀB)` of a factor's displacements, summed over heads, for a given partner B."""

    factor: PairFactor
    of_partner: FactorFrame

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`⟨U Kᵀ, V Kᵀ⟩`, of shape (1, 1)."""
        u, v = (self.of_partner.enter(self.factor.split(w)) for w in (u, v))
        return (u * v).sum().reshape(1, 1)

    def sharp(self, x: Tensor, g: Tensor) -> Tensor:
        """`g (BᵀB)⁻¹`."""
        seen = self.of_partner.enter_gradient(self.factor.split(g))
        return self.factor.join(self.of_partner.leave(seen))

    def frame(self, x: Tensor) -> Frame:
        """None: the metric scales no slices.

        Raises:
            NotImplementedError: in any case.
        """
        raise NotImplementedError("the metric of a pair scales no slices: use FactorFrame")


@final
@dataclass(frozen=True)
class _FlatBeside(Geodesics):
    """Straight lines, with lengths by the metric of a factor."""

    metric: FactorMetric

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """`x + u`."""
        return x + u

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`x + u`, and `v` as it is."""
        return x + u, v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`y − x`."""
        return y - x

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` as it is."""
        return v

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h (BᵀB)⁻¹`."""
        return self.metric.sharp(x, h)

    def component_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """`‖(y − x) Kᵀ‖`, of shape (1, 1)."""
        squared = self.metric.component_inner(x, y - x, y - x)
        zero = squared == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


@final
@dataclass(frozen=True, init=False, eq=False)
class PairFactorBeside(Manifold):
    """A factor of a pair beside a partner that is held: flat, with the metric tr(UᵀV BᵀB)."""

    factor: PairFactor
    partner: Tensor = field(repr=False)

    def __init__(self, factor: PairFactor, partner: Tensor) -> None:
        metric = FactorMetric(factor, frame(partner))
        parts = metric, NoProjection(_WHOLE), Additive(), _FlatBeside(metric)
        super().__init__(_WHOLE, *parts, factor=factor, partner=partner)

    def _misfit(self, x: Tensor) -> str | None:
        return self.factor._misfit(x)


# --- the pair -------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Pair:
    """Two parameters of a module that act by their product alone, W = A Bᵀ for each head.

    LoRA: `Pair("lora_B.weight", "lora_A.weight")`. Query and key of attention, packed by heads:
    `Pair("q.weight", "k.weight", heads=12, shared=(0, 0))`; value and output:
    `Pair("out.weight", "v.weight", heads=12)`. It is declared by `manifoldnet.declare(model, pair)`
    and then trained by `RiemannianSGD`, `RiemannianAdam`, or `manifoldnet.constrain(optimizer)`.

    A step keeps the split into factors. Only where rounding would lose digits of the product
    (ε ‖A‖ ‖B‖ > 1e-4 ‖A Bᵀ‖, with the precision ε of float32 or float64), the optimizer splits it
    anew, into factors with equal Gram matrices; steps after it are those of the old split.

    It is for weights that nothing else reads. A bias of one of the layers, normalization or a
    rotary embedding between them takes part of the symmetry away: then a step is still a step of
    descent, but the loss does not have the invariance.

    Args:
        left: the name of the first parameter in the module.
        right: that of the second.
        heads: blocks of the shared dimension, each with a product of its own.
        shared: the shared dimension of each parameter, of size heads·r: (1, 0) for `left @ right`,
            out × r and r × in.

    Raises:
        TypeError: for names that are no strings and numbers that are not whole.
        ValueError: for twice the same name, `heads` below 1, and dimensions other than 0 and 1.
    """

    left: str
    right: str
    heads: int = 1
    shared: tuple[int, int] = (1, 0)

    def __post_init__(self) -> None:
        for name in (self.left, self.right):
            if not isinstance(name, str) or not name:
                raise TypeError(f"a pair is of two names of parameters, not {name!r}")
        if self.left == self.right:
            raise ValueError(
                f"{self.left} is given twice: a pair is of two parameters. Factors that are packed "
                "in one (query and key of torch's MultiheadAttention) have to be split"
            )
        if not isinstance(self.shared, tuple | list) or len(self.shared) != 2:
            raise TypeError(f"shared must be two dimensions, such as (1, 0), not {self.shared!r}")
        object.__setattr__(self, "shared", tuple(self.shared))
        assert self.factors  # checks the numbers

    @property
    def factors(self) -> tuple[PairFactor, PairFactor]:
        """The manifolds of the two parameters."""
        left, right = self.shared
        return PairFactor(self.heads, left), PairFactor(self.heads, right)

    def misfit(self, left: Tensor, right: Tensor) -> str | None:
        """The reason why two tensors are no factors of one product; None if they are."""
        shapes = tuple(left.shape), tuple(right.shape)
        sizes = [shape[dim] for shape, dim in zip(shapes, self.shared, strict=True)]
        if sizes[0] != sizes[1]:
            return (
                f"have the shapes {shapes[0]} and {shapes[1]}, and share dimensions "
                f"{self.shared} of sizes {sizes[0]} and {sizes[1]}: give the shared dimension of "
                "each as shared=(…, …)"
            )
        if left.dtype != right.dtype or left.device != right.device:
            return (
                f"are of {left.dtype} on {left.device} and of {right.dtype} on {right.device}: "
                "a pair is of one type and on one device"
            )
        return None

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The products A Bᵀ, of shape (heads, rows of A, rows of B)."""
        a, b = self._split(left, right)
        return a @ b.mT

    def inner(self, x: Factors, u: Factors, v: Factors | None = None) -> Tensor:
        """`tr(UᵀU' BᵀB) + tr(VᵀV' AᵀA)`, summed over heads.

        Args:
            x: the two parameters.
            u: displacements of both.
            v: displacements of both; `u` if left out.
        """
        (a, b), first, second = (self._split(*w) for w in (x, u, u if v is None else v))
        return ((first[0] @ b.mT) * (second[0] @ b.mT)).sum() + (
            (a @ first[1].mT) * (a @ second[1].mT)
        ).sum()

    def gradient(self, x: Factors, g: Factors) -> Factors:
        """The Riemannian gradient `(g_A (BᵀB)⁻¹, g_B (AᵀA)⁻¹)` for Euclidean gradients `g`."""
        a, b = self._split(*x)
        left, right = self.factors
        return left.beside(b).sharp(x[0], g[0]), right.beside(a).sharp(x[1], g[1])

    def retract(self, x: Factors, u: Factors) -> Factors:
        """`(A + U, B + V)`, one of them bounded where U Vᵀ would exceed both (`retract`)."""
        (a, b), (du, dv) = self._split(*x), self._split(*u)
        of_a, of_b = frame(a), frame(b)
        moved = retract(of_a, of_b, of_b.enter(du), of_a.enter(dv))
        left, right = (f.join(w) for f, w in zip(self.factors, moved, strict=True))
        return (x[0] + left).to(x[0].dtype), (x[1] + right).to(x[1].dtype)

    def act(self, x: Factors, s: Tensor) -> Factors:
        """`(A S, B S⁻ᵀ)`, the same product by other factors.

        Args:
            x: the two parameters.
            s: an invertible matrix, r × r, or one for each head.
        """
        a, b = self._split(*x)
        other = torch.linalg.solve(s, b.mT).mT
        left, right = self.factors
        return left.join(a @ s), right.join(other)

    def spec(self) -> Spec:
        """This pair as plain, versioned JSON types; `Pair.from_spec` turns them back."""
        fields = {"left": self.left, "right": self.right, "heads": self.heads}
        return {
            "manifold": "Pair",
            "version": SPEC_VERSION,
            "fields": {**fields, "shared": list(self.shared)},
        }

    @classmethod
    def from_spec(cls, spec: Spec) -> Pair:
        """The pair that `spec` describes."""
        return cls(**spec["fields"])

    def _split(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left, right = promote(left, right)
        a, b = self.factors
        return a.split(left), b.split(right)


Factors = tuple[Tensor, Tensor]


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")


register_manifold("PairFactor", PairFactor)
