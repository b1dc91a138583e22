"""Stiefel manifolds: matrices with orthonormal columns (tall), rows (wide), or both (square).

A weight is taken as a matrix, one row for each vector that `dim` indexes: a kernel of a convolution
of shape out × in × kh × kw as out × (in·kh·kw). The formulas are those of tall matrices, N × p with
N ≥ p; a wide one is transposed. With sym(a) = (a + aᵀ)/2:

    set         xᵀx = 1                    z → msign(z) = z (zᵀz)^(−1/2), the polar factor
    tangent     sym(xᵀu) = 0               u → u − x sym(xᵀu)
    metric      ⟨u, v⟩ = tr uᵀv            gradient g, projected
    geodesics   [x k] e^{(2a, −kᵀk; 1, 0)} [1; 0] e^{−a},  a = xᵀu, k = u − x a
    retraction  msign(x + u) ("polar"), the Q of x + u = QR ("qr"), Newton–Schulz steps
                m + ½(m − m mᵀm) from m = x + u ("newton-schulz"), or the geodesic ("geodesic")
    transport   v → v − y sym(yᵀv) between points and with the first three; parallel transport
                along geodesics

Every step renews what orthogonality the point has lost: a polar factor and Q do not depend on it,
a Newton–Schulz step squares it. Sources: [edelman1998geometry] for the geodesics of the Euclidean
metric (here with orthonormal frames), [absil2008optimization] for retractions and the Hessian,
[nguyen2024parallel] for parallel transport, [javaloy2026embarrassingly] for Newton–Schulz steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import torch
from torch import Tensor

from manifoldnet.geometry.manifold import (
    Additive,
    EuclideanMetric,
    Manifold,
    Projective,
    Retraction,
    register_manifold,
    register_retraction,
    resolve_retraction,
)
from manifoldnet.geometry.parts import Geodesics, Projection
from manifoldnet.geometry.settled import settle, spread_as
from manifoldnet.geometry.slices import Slices, promote
from manifoldnet.geometry.validation import raise_if

__all__ = [
    "MatrixForm",
    "MatrixRetraction",
    "NewtonSchulz",
    "PolarFactor",
    "PolarProjection",
    "QFactor",
    "Stiefel",
    "StiefelGeodesics",
]

# Newton–Schulz steps that take singular values from √(1/3) or √(5/3) to 1 in double precision.
_ITERATIONS = 6
# The largest number of pieces that vectors are carried along a geodesic in.
_MOST_PIECES = 500


@final
@dataclass(frozen=True)
class MatrixForm:
    """Weights as tall matrices: N × p with N ≥ p.

    Args:
        dim: the dimension that indexes the rows of the matrix that a weight is taken as.
    """

    dim: int = 0

    def sizes(self, shape: torch.Size) -> tuple[int, int]:
        """N and p of a weight's shape."""
        rows = shape[self.dim]
        rest = math.prod(n for d, n in enumerate(shape) if d != self.dim)
        return max(rows, rest), min(rows, rest)

    def tall(self, x: Tensor) -> Tensor:
        """The matrix of a weight, a view where memory allows; the whole of a sharded one."""
        m = settle(x).movedim(self.dim, 0).flatten(1)
        return m if m.shape[0] >= m.shape[1] else m.mT

    def weight(self, m: Tensor, like: Tensor) -> Tensor:
        """A tall matrix in the shape of a weight, and in parts as its are if it is sharded."""
        shape = list(like.shape)
        rows = shape.pop(self.dim)
        m = m if m.shape[0] == rows else m.mT
        whole = m.reshape([rows, *shape]).movedim(0, self.dim).contiguous()
        return spread_as(like, whole)


# --- matrix functions ----------------------------------------------------------------------------


def _sym(a: Tensor) -> Tensor:
    return (a + a.mT) / 2


def _skew(a: Tensor) -> Tensor:
    return (a - a.mT) / 2


def _eye_like(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _newton_schulz(m: Tensor) -> Tensor:
    """`m + ½(m − m mᵀm)`: the polar factor stays, and what is off from it is squared."""
    return torch.addmm(m, m, m.mT @ m, beta=1.5, alpha=-0.5)


def _exp(a: Tensor) -> Tensor:
    """The exponential of a square matrix."""
    # A block of norm 1 beside it: torch's polynomial for norms from 3e-4 to 0.05 is off by 2e-12
    # (2.13), those for larger ones by rounding.
    n = a.shape[-1]
    return torch.linalg.matrix_exp(torch.block_diag(a, torch.ones_like(a[:1, :1])))[:n, :n]


class _Lyapunov(torch.autograd.Function):
    """The solution of `p s + s p = c`, p symmetric and positive.

    The derivatives of the decomposition do not exist where eigenvalues are equal, as those of every
    point are; the solution's do.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, c: Tensor) -> Tensor:
        values, v = torch.linalg.eigh(p)
        return v @ ((v.mT @ c @ v) / (values[:, None] + values)) @ v.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        p, s = ctx.saved_tensors
        c = _lyapunov(p, g)
        return -(c @ s.mT + s.mT @ c), c

    @staticmethod
    def jvp(ctx: Any, dp: Tensor, dc: Tensor) -> Tensor:
        p, s = ctx.saved_tensors
        return _lyapunov(p, dc - dp @ s - s @ dp)


class _PolarFactor(torch.autograd.Function):
    """`q = m (mᵀm)^(−1/2)` of a tall matrix of full rank, by its singular values.

    Its derivative along z is `q Ω + (z − q qᵀz) p⁻¹` with p = qᵀm and p Ω + Ω p = qᵀz − zᵀq, which
    is a self-adjoint map of z.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(m, full_matrices=False)
        return _newton_schulz(u @ vh)  # whose rounding grows with p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        m, q = ctx.saved_tensors
        return _polar_derivative(m, q, g)

    @staticmethod
    def jvp(ctx: Any, dm: Tensor) -> Tensor:
        m, q = ctx.saved_tensors
        return _polar_derivative(m, q, dm)


def _lyapunov(p: Tensor, c: Tensor) -> Tensor:
    found: Tensor = _Lyapunov.apply(p, c)  # type: ignore[no-untyped-call]
    return found


def _polar_derivative(m: Tensor, q: Tensor, z: Tensor) -> Tensor:
    p, k = _sym(q.mT @ m), q.mT @ z
    normal: Tensor = torch.linalg.solve(p, (z - q @ k).mT).mT
    return q @ _lyapunov(p, k - k.mT) + normal


def polar_factor(m: Tensor) -> Tensor:
    """`m (mᵀm)^(−1/2)` of a tall matrix; NaN if an entry is not finite."""
    finite = m.isfinite().all()  # a decomposition raises an error of its own
    q: Tensor = _PolarFactor.apply(torch.where(finite, m, 0.0))  # type: ignore[no-untyped-call]
    return torch.where(finite, q, torch.nan)


# --- the set --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PolarProjection(Projection):
    """The projection of a matrix to the nearest one with orthonormal columns or rows."""

    matrices: MatrixForm

    def to_set(self, x: Tensor) -> Tensor:
        """`x (xᵀx)^(−1/2)`; NaN if the columns are dependent to rounding: no point is nearest."""
        m = self.matrices.tall(x)
        found = m.detach()
        values = torch.linalg.svdvals(torch.where(found.isfinite().all(), found, 0.0))
        least = 4 * torch.finfo(m.dtype).eps * values.amax()
        q = torch.where(values.amin() > least, polar_factor(m), torch.nan)
        return self.matrices.weight(q, x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """`u − x sym(xᵀu)`."""
        m, v = self.matrices.tall(x), self.matrices.tall(u)
        inner = m.mT @ v
        return self.matrices.weight(torch.addmm(v, m, inner + inner.mT, alpha=-0.5), x)

    def violation(self, x: Tensor) -> Tensor:
        """`‖xᵀx − 1‖/(2√p)`: for small ones the distance from the set, relative to a point's norm.

        ∞ if the columns are dependent (to rounding of xᵀx) or entries are not finite.
        """
        m = self.matrices.tall(x)
        # What a point is off by is below the rounding of a long sum in its own type.
        wide = m if m.device.type == "mps" else m.double()
        gram = wide.mT @ wide
        p = gram.shape[-1]
        off = torch.linalg.matrix_norm(gram - _eye_like(gram)) / (2 * math.sqrt(p))
        least = 4 * p * torch.finfo(gram.dtype).eps * gram.diagonal().mean()
        info = torch.linalg.cholesky_ex(gram - least * _eye_like(gram))[1]
        off = torch.where((info == 0) & off.isfinite(), off, torch.inf)
        return off.to(m.dtype).reshape((1,) * x.ndim)

    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """`‖sym(xᵀu)‖ / ‖u‖`."""
        m, v = self.matrices.tall(x), self.matrices.tall(u)
        size = torch.linalg.matrix_norm(v)
        share = torch.linalg.matrix_norm(_sym(m.mT @ v)) / torch.where(size > 0, size, 1.0)
        return share.clamp(max=1.0).nan_to_num(nan=torch.inf).reshape((1,) * x.ndim)

    def codimension(self, shape: torch.Size) -> int:
        """`p (p + 1)/2`, that of the symmetric matrices xᵀx."""
        p = self.matrices.sizes(shape)[1]
        return p * (p + 1) // 2


# --- geodesics ------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class StiefelGeodesics(Geodesics):
    """Geodesics of the Euclidean metric on matrices with orthonormal columns or rows.

    In the frame [x k], which the skew matrix Ω = 2 x a xᵀ + k xᵀ − x kᵀ turns,

        γ(t) = e^{tΩ} x e^{−ta},       Ω [x k] = [x k] (2a, −kᵀk; 1, 0)

    and a vector `e^{tΩ} (x b + z) e^{−ta}`, z orthogonal to x, is parallel along γ if

        b' = −(3/2)(a b − b a) + skew(kᵀz),       z' = −k b + z a

    an equation with constant coefficients, whose right-hand side is a skew map of (b, z). There is
    no formula for logarithm and distance.
    """

    matrices: MatrixForm

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The end point `[x k] e^{(2a, −kᵀk; 1, 0)} [1; 0] e^{−a}`, orthonormal to rounding."""
        m = self.matrices.tall(x)
        a, k, c = _frame(m, self.matrices.tall(u))
        y = _turned(m, k / c, _generator(a, k, c)) @ _exp(-a)
        # Twice for long steps, whose phase is rounded.
        return self.matrices.weight(_newton_schulz(_newton_schulz(y)), x)

    def exp_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The end point, and `e^Ω (x b + z) e^{−a}` for the (b, z) that v has become.

        Beyond some tens of turns, v is projected instead.
        """
        y = self.exp(x, u)
        m, w = self.matrices.tall(x), self.matrices.tall(v)
        a, k, c = _frame(m, self.matrices.tall(u))
        z = w - m @ (m.mT @ w)
        parallel = _parallel(a, k, c, _skew(m.mT @ w), k.mT @ z)
        if parallel is None:
            return y, self.transport(x, y, v)
        b, h, q = parallel
        # e^Ω z = z − φ(Ω) x kᵀz with φ(Ω) = (e^Ω − 1)/Ω, the corner of a larger exponential.
        turned, integrated = _turned_and_integrated(m, k / c, _generator(a, k, c))
        w = z + (turned @ b + k @ h - integrated @ q) @ _exp(-a)
        return y, self.matrices.weight(w, x)

    def log(self, x: Tensor, y: Tensor) -> NoReturn:
        """None is known in closed form.

        Raises:
            NotImplementedError: always.
        """
        raise _no_logarithm()

    def component_dist(self, x: Tensor, y: Tensor) -> NoReturn:
        """None is known in closed form.

        Raises:
            NotImplementedError: always.
        """
        raise _no_logarithm()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v − y sym(yᵀv)`: the projection; the geodesic from x to y is not known."""
        return PolarProjection(self.matrices).to_tangent(y, v)

    def hessian(self, x: Tensor, g: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """`h − u sym(xᵀg)`, projected."""
        form = self.matrices
        m, w = form.tall(x), form.tall(h) - form.tall(u) @ _sym(form.tall(x).mT @ form.tall(g))
        return form.weight(w - m @ _sym(m.mT @ w), x)


def _no_logarithm() -> NotImplementedError:
    return NotImplementedError(
        "the logarithm and the distance of Stiefel() have no formula: measure the chord (y − x)"
        ".norm(), which is shorter and agrees to third order, and carry vectors by transp, "
        "retr_transp or expmap_transp, which need no logarithm"
    )


def _frame(m: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a and k of a tangent vector, and a bound c of the length of k, as a constant.

    Results do not depend on c, but [x k/c] is a frame of vectors that are alike in length.
    """
    a = _skew(m.mT @ u)
    k = u - m @ (m.mT @ u)
    c = _spectral_bound(k.detach())
    return a, k, torch.where(c > 0, c, 1.0)


def _generator(a: Tensor, k: Tensor, c: Tensor) -> Tensor:
    """Ω in the frame [x k/c]."""
    below = torch.cat([c * _eye_like(a), torch.zeros_like(a)], 1)
    return torch.cat([torch.cat([2 * a, -(k.mT @ k) / c], 1), below])


def _turned(m: Tensor, k: Tensor, generator: Tensor) -> Tensor:
    """`e^Ω x` in the frame [x k], given Ω there."""
    p = m.shape[1]
    first = _exp(generator)[:, :p]
    return m @ first[:p] + k @ first[p:]


def _turned_and_integrated(m: Tensor, k: Tensor, generator: Tensor) -> tuple[Tensor, Tensor]:
    """`e^Ω x`, and its integral `φ(Ω) x` over the way there."""
    p = m.shape[1]
    corner = torch.nn.functional.pad(_eye_like(m), (0, 0, 0, p))
    larger = torch.nn.functional.pad(torch.cat([generator, corner], 1), (0, 0, 0, p))
    found = _exp(larger)
    blocks = found[: 2 * p, :p], found[: 2 * p, 2 * p :]
    turned, integrated = (m @ block[:p] + k @ block[p:] for block in blocks)
    return turned, integrated


def _parallel(
    a: Tensor, k: Tensor, c: Tensor, b: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(b, h, kᵀz) after unit time, where z = z₀ e^{ta} + k h and q = kᵀz₀; None beyond some turns.

    Power series in pieces of unit length, of as many terms as the type needs, with h times c.
    """
    square = k.mT @ k
    size = 4 * _spectral_bound(a.detach()) + 2 * c
    length = float(size)
    if not length <= _MOST_PIECES:
        return None
    count = max(1, math.ceil(length))
    terms, left = 1, length / count
    while left > torch.finfo(a.dtype).eps / 4:
        terms += 1
        left *= length / (count * terms)
    h = torch.zeros_like(b)
    for _ in range(count):
        db, dh, dq = b, h, q
        for term in range(1, terms + 1):
            step = 1 / (count * term)
            turn = _skew(dq + square @ dh / c) - 1.5 * (a @ db - db @ a)
            db, dh, dq = step * turn, step * (dh @ a - c * db), step * (dq @ a)
            b, h, q = b + db, h + dh, q + dq
    h = h / c
    return b, h, q + square @ h


def _spectral_bound(a: Tensor) -> Tensor:
    """A bound of the largest singular value, close for matrices with many alike: ‖(aᵀa)²‖^(1/4)."""
    largest = a.abs().amax()
    a = a / torch.where(largest > 0, largest, 1.0)
    square = a.mT @ a
    return largest * torch.linalg.matrix_norm(square @ square) ** 0.25


# --- retractions ----------------------------------------------------------------------------------


class MatrixRetraction(Retraction):
    """A retraction of matrices with orthonormal columns or rows, with transport by projection."""

    of_matrices: ClassVar[bool] = True
    reversible: ClassVar[bool | None] = False

    @abstractmethod
    def end(self, m: Tensor, u: Tensor) -> Tensor:
        """The point that the step `u` from `m` leads to, both as tall matrices."""

    def step(self, manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
        """The end point."""
        assert isinstance(manifold, Stiefel)  # which resolve_retraction sees to
        form = manifold.matrices
        return form.weight(self.end(form.tall(x), form.tall(u)), x)

    def step_transport(
        self, manifold: Manifold, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The end point y, and `v − y sym(yᵀv)`."""
        y = self.step(manifold, x, u)
        return y, manifold.proju(y, v)


@final
@dataclass(frozen=True)
class PolarFactor(MatrixRetraction):
    """`msign(x + u)`, the point that is nearest to x + u: the projection retraction.

    Third order. It commutes with x → q x r for orthogonal q, r.
    """

    def end(self, m: Tensor, u: Tensor) -> Tensor:
        """`msign(m + u)`."""
        return polar_factor(m + u)


@final
@dataclass(frozen=True)
class QFactor(MatrixRetraction):
    """The Q of `x + u = QR`, R with a positive diagonal: Gram–Schmidt, column by column.

    Second order. It commutes with x → q x for orthogonal q, and depends on the order of columns
    (rows of a wide matrix).
    """

    def end(self, m: Tensor, u: Tensor) -> Tensor:
        """The Q of `m + u`."""
        q, r = torch.linalg.qr(m + u)
        return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


@final
@dataclass(frozen=True)
class NewtonSchulz(MatrixRetraction):
    """Newton–Schulz steps `m + ½(m − m mᵀm)` from m = x + u to its polar factor.

    Matrix products alone: made for accelerators, where decompositions are slow. One step is that of
    [javaloy2026embarrassingly]; it squares what m is off by, so that a few end on the set to
    rounding. They converge for singular values below √3: steps with ‖uᵀu‖ > 4 are shortened to
    that length, up to which the retraction is that by the polar factor.
    """

    def end(self, m: Tensor, u: Tensor) -> Tensor:
        """The limit of the steps."""
        square = torch.linalg.matrix_norm(u.mT @ u)  # at least the square of the spectral norm
        long = square > 4
        u = u * torch.where(long, 2 / torch.where(long, square, 1.0).sqrt(), 1.0)
        # 1 ≤ σ² ≤ 1 + s: put in the middle of (0, 2), which the limit does not depend on.
        m = (m + u) * (2 / (2 + square.detach().clamp(max=4))).sqrt()
        for _ in range(_ITERATIONS):
            m = _newton_schulz(m)
        return m


register_retraction("polar", PolarFactor)
register_retraction("qr", QFactor)
register_retraction("newton-schulz", NewtonSchulz)


# --- the manifold ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True, init=False)
class Stiefel(Manifold):
    """Matrices with orthonormal rows, or columns, whichever are fewer: `x xᵀ = 1` or `xᵀx = 1`.

    A weight is the matrix n × m, with n its size along `dim` and m that of all the rest: a linear
    layer out × in, a kernel of a convolution out × (in·kh·kw). If n < m its rows are orthonormal,
    if n > m its columns, and if n = m it is orthogonal. The metric is `⟨u, v⟩ = Σ uᵢvᵢ`, one number
    for the whole matrix; the Riemannian gradient of a tall one is `g − x sym(xᵀg)`.

    Logarithm and distance have no formula (`NotImplementedError`), and `transp` is the projection
    to the tangent space at the end point. `expmap` and `expmap_transp` are exact.

    Args:
        dim: the dimension that indexes the vectors, rows of that matrix: 0 for rows and filters, 1
            for transposed convolutions.
        retraction: "polar" (the nearest point to x + u), "qr" (faster for small matrices; depends
            on the order of vectors), "newton-schulz" (matrix products alone) or "geodesic".

    Raises:
        TypeError: for a `dim` that is no whole number.
        ValueError: for a negative `dim`, None (one vector: `Sphere`), or a retraction that leaves
            the manifold.
    """

    dim: int
    retraction: Retraction

    def __init__(self, dim: int = 0, retraction: Retraction | str = "polar") -> None:
        if dim is None:
            raise ValueError(
                "dim=None is the whole tensor as one vector: declare Sphere(), or name the "
                "dimension that indexes the vectors which are to be orthonormal"
            )
        whole, matrices = Slices(None), MatrixForm(dim)
        Slices.of_vectors(dim)  # raises
        super().__init__(
            whole,
            EuclideanMetric(whole),
            PolarProjection(matrices),
            resolve_retraction(retraction, (Additive, Projective), "Stiefel", matrices=True),
            StiefelGeodesics(matrices),
            dim=dim,
        )

    @property
    def matrices(self) -> MatrixForm:
        """The way from weights to matrices and back."""
        return MatrixForm(self.dim)

    @property
    def ndim(self) -> int:
        """The least order that a point can have."""
        return max(self.dim + 1, 2)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The nearest tangent vector at `x`."""
        point, v = promote(x, u)
        v = self.projection.to_tangent(point, v)
        if point.dtype != x.dtype:  # what x is off by in a half type, v is: the second is squared
            v = self.projection.to_tangent(point, v)
        return v.to(x.dtype)

    def typical_dist(self, shape: tuple[int, ...]) -> float:
        """√p, as in pymanopt: the norm of a point."""
        return math.sqrt(self.matrices.sizes(torch.Size(shape))[1])

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A random point, uniformly distributed: the Q of Gaussian entries [mezzadri2007generate].

        Arguments are as in `torch.randn`.
        """
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        # A shape given as numbers is a tuple of them; the type checker cannot tell from above.
        z = torch.randn(shape, dtype=dtype, device=device, generator=generator)  # type: ignore[arg-type]
        raise_if(self._wrong_tensor(z, "point", "the data"))
        (wide,) = promote(z)
        m = self.matrices.tall(wide)
        return self.matrices.weight(QFactor().end(m, torch.zeros_like(m)), z).to(z.dtype)

    def _label(self, x: Tensor, index: int) -> str:
        rows = x.shape[self.dim]
        return f"the {rows}×{x.numel() // rows} matrix"

    def _defect(self, size: float) -> tuple[str, str]:
        if size == 0 or not math.isfinite(size):
            return super()._defect(size)
        few = "has linearly dependent rows or columns"
        return f"{few} (largest entry {size:.3g})", "Give it independent ones, as random ones are"

    def _misfit(self, x: Tensor) -> str | None:
        shape = tuple(x.shape)
        if x.ndim < 2:
            return (
                f"has order {x.ndim} (shape {shape}), and a matrix at least 2: a single unit "
                "vector is a point of Sphere()"
            )
        if self.dim >= x.ndim:
            return (
                f"has order {x.ndim} (shape {shape}), so there is no dimension "
                f"{self.dim} to index its vectors by"
            )
        if x.numel() == 0:
            return f"is empty (shape {shape})"
        if x.numel() == 1:
            return f"is a single number (shape {shape}): ±1 have nowhere to go"
        return None


register_manifold("Stiefel", Stiefel)
