"""The step of SGD and Adam on spheres and under the scaled metric, as a function of six numbers.

For a slice with weight x, gradient g and buffer b,

    d = ± grad f(x)                     the Riemannian gradient; the sign is `HyperParameters.sign`
    n = keep · b + fresh · d            the new buffer (d at first, for SGD)
    u = −σ n                            or −σ (d + keep · n), with Nesterov
    σ = lr                              SGD
    σ = lr / (unbias₁ (√(s/unbias₂) + eps)),  s ← beta2 · s + (1 − beta2) ⟨d, d⟩        Adam
    x⁺, b⁺ = retr_transp(x, u, n)

stays in the span of x, g and b:

    x⁺ = x₁ x + x₂ g + x₃ b        b⁺ = b₁ x + b₂ g + b₃ b

and the six coefficients depend on the slice through its Gram matrix alone: ⟨x,x⟩, ⟨x,g⟩, ⟨g,g⟩,
⟨x,b⟩, ⟨g,b⟩, ⟨b,b⟩. So every implementation of a step is *products → coefficients → update*, and
`coefficients` is what all of them compute. With u = s_u x + t_u and n = s_n x + t_n, t ⊥ x,
r² = ⟨x,x⟩ and ρ the radius,

    x⁺ = a x + b t_u,   n⁺ = c x + d t_u + e t_n

    sphere, projection  R = √(r² + ‖t_u‖²), w = −⟨t_u,t_n⟩/(R + r):
                        a = b = ρ/R, c = w (1/r + 1/R), d = w/R, e = 1
    sphere, geodesic    θ = ‖t_u‖/ρ, q = ρ/√(cos²θ r² + sinc²θ ‖t_u‖²): a = q cos θ, b = q sinc θ,
                        c = −p sinc θ, d = −p (1 − cos θ)/θ², p = ⟨t_u,t_n⟩/ρ², e = 1
    scaled, geodesic    θ = ‖t_u‖/r, k = exp s_u: a = k cos θ, b = k sinc θ, p = ⟨t_u,t_n⟩/r²,
                        c = k (s_n cos θ − p sinc θ), d = k (s_n sinc θ − p (1 − cos θ)/θ²), e = k
    scaled, additive    x⁺ = x + u, n⁺ = n

Sources: [badrinarayanan2015symmetry] for the additive and the projected step,
[becigneul2019riemannian] for Adam with one second moment per slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import (
    Additive,
    Geodesic,
    Manifold,
    Oblique,
    Projective,
    ScaledEuclidean,
    slices,
)
from manifoldnet.geometry.slices import Dim

__all__ = [
    "Coefficients",
    "Gram",
    "HyperParameters",
    "SliceGeometry",
    "StepInput",
    "coefficients",
    "slice_geometry",
]

# What may be left of a difference before it counts as cancelled.
_LEFT = 0.25


@dataclass(frozen=True)
class SliceGeometry:
    """A manifold whose steps follow from six numbers per slice.

    Attributes:
        dim: the dimension that indexes the slices.
        radius: of the spheres; None under the scaled metric.
        retraction: its name.
    """

    dim: Dim
    radius: float | None
    retraction: str


@cache
def slice_geometry(manifold: Manifold) -> SliceGeometry | None:
    """The geometry of a manifold's slices.

    None for manifolds that are composed otherwise: they take the reference step.
    """
    if not manifold.parts or manifold.slices.dim == "elements":
        return None
    dim, retraction = manifold.slices.dim, manifold.retraction
    radius: float | None = getattr(manifold.projection, "radius", None)
    ours = ScaledEuclidean(dim) if radius is None else Oblique(dim, radius)
    known = (Additive if radius is None else Projective, Geodesic)
    alike = all(
        getattr(manifold, part) == getattr(ours, part)
        for part in ("metric", "projection", "geodesics")
    )
    return (
        SliceGeometry(dim, radius, retraction.name) if alike and type(retraction) in known else None
    )


class HyperParameters(NamedTuple):
    """The numbers of a group. `beta2` is None for SGD.

    With `displacement`, g is no gradient but a displacement in the ambient space: the step is the
    retraction of lr times its tangent part, with the sign −1 of a descent, and there is no buffer.
    """

    lr: float | Tensor
    sign: float = 1.0
    keep: float = 0.0
    fresh: float = 1.0
    nesterov: bool = False
    beta2: float | None = None
    eps: float = 0.0
    amsgrad: bool = False
    displacement: bool = False


class StepInput(NamedTuple):
    """A weight to step in place.

    Attributes:
        x: the weight, detached.
        g: its gradient, which is left as it is.
        geometry: its manifold.
        b: the buffer (momentum or first moment); None for SGD without momentum.
        first: whether the buffer has no value yet (SGD; Adam's starts with zeros).
        s: Adam's second moments, one number per slice.
        top: the largest of them so far, with amsgrad.
        unbias: 1 − β₁ᵗ and 1 − β₂ᵗ.
        share: what ⟨d, d⟩ counts for in the second moment: 1, or one over the entries of a slice.
    """

    x: Tensor
    g: Tensor
    geometry: SliceGeometry
    b: Tensor | None = None
    first: bool = False
    s: Tensor | None = None
    top: Tensor | None = None
    unbias: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)
    share: float = 1.0

    def products(self, hyper: HyperParameters) -> tuple[str, ...]:
        """The inner products that its coefficients depend on, by the names of `Gram`."""
        if self.geometry.retraction == "additive":
            return ("xx",) if hyper.beta2 is None else ("xx", "gg")
        if self.b is None or self.first or hyper.keep == 0:
            return ("xx", "xg", "gg")
        return ("xx", "xg", "gg", "xb", "gb", "bb")


class Gram(NamedTuple):
    """Inner products of the weight, the gradient and the buffer, one number per slice.

    With `tangent`, those without x are of the parts orthogonal to x, formed as vectors: where g
    or b is nearly parallel to x, nothing but rounding is left of ⟨g,g⟩ − ⟨x,g⟩²/⟨x,x⟩. Products
    that a step does not depend on may be None.
    """

    xx: Tensor
    xg: Tensor | None = None
    gg: Tensor | None = None
    xb: Tensor | None = None
    gb: Tensor | None = None
    bb: Tensor | None = None
    tangent: bool = False

    def cancelled(self) -> Tensor:
        """Test slices for tangent parts that differences do not give: zero, or with g or b along x.

        True also where a square is not finite.
        """
        found = self.xx == 0
        for square, along in ((self.gg, self.xg), (self.bb, self.xb)):
            if square is not None and along is not None:
                whole = square * self.xx
                found = found | ~(whole - along.square() > _LEFT * whole)
        return found

    def along(self) -> tuple[Any, Any]:
        """The parts of g and b along x, in multiples of x; 0 at zero slices, None if not known."""
        per = torch.where(self.xx == 0, 0.0, 1 / self.xx)
        g, b = (None if known is None else known * per for known in (self.xg, self.xb))
        return g, b

    def refined(self, parts: Gram) -> Gram:
        """The products, from those of x and of g and b less what they were found to have along x.

        What is left along x is rounding, and taken off as well.
        """
        xx: Any
        xx, xg, gg, xb, gb, bb, _ = parts
        (along_g, along_b), (rest_g, rest_b) = self.along(), parts.along()
        found = {"xx": xx, "xg": xg + along_g * xx, "gg": gg - rest_g * xg}
        if xb is not None:
            found["xb"] = xb + along_b * xx
            found |= {"gb": gb - rest_g * xb, "bb": bb - rest_b * xb}
        return Gram(**found, tangent=True)


class Coefficients(NamedTuple):
    """The step x⁺ = x1 x + x2 g + x3 b, b⁺ = b1 x + b2 g + b3 b, slice by slice.

    A number stands for the same in all slices.

    Attributes:
        s: the new second moments (Adam).
        top: their maxima (amsgrad).
    """

    x1: Tensor | float
    x2: Tensor | float
    x3: Tensor | float
    b1: Tensor | float
    b2: Tensor | float
    b3: Tensor | float
    s: Tensor | None
    top: Tensor | None


def coefficients(
    gram: Gram, work: StepInput, hyper: HyperParameters, *, regular: bool = False
) -> Coefficients:
    """The coefficients of a step, in the type of the products.

    A slice that is zero has no direction: it stays as it is, and its buffer is zero. On a sphere a
    slice whose step is zero stays as it is.

    Args:
        gram: the inner products of the slices.
        work: their weight, of which only what is one number per slice is read.
        hyper: the numbers of its group.
        regular: whether the products are those of ordinary slices: none is zero or cancelled
            (`Gram.cancelled`). It saves the exceptions.
    """
    sphere, rr = work.geometry.radius is not None, gram.xx
    zero = None if regular else rr == 0
    carries = work.b is not None and not work.first and not is_zero(hyper.keep)
    # The gradient d = scale · g (its tangent part on a sphere), and the buffer n = n_g g + n_b b.
    scale: Any = hyper.sign if sphere or hyper.displacement else rr * hyper.sign
    mixes = hyper.beta2 is not None or carries
    n_g = scale * hyper.fresh if mixes else scale
    n_b = hyper.keep if carries else 0.0

    # What g and b have along x, and the products of what is orthogonal to it.
    along_g: Any = 0.0
    along_b: Any = 0.0
    gg: Any = gram.gg
    gb: Any = gram.gb
    bb: Any = gram.bb
    if gram.xg is not None:
        per = _unless(zero, 0.0, 1 / rr)
        along_g = gram.xg * per
        gg = _orthogonal(gg, along_g, gram.xg, gram.tangent).clamp(min=0)
        if gram.xb is not None:
            along_b = gram.xb * per
            gb = _orthogonal(gb, along_g, gram.xb, gram.tangent)
            bb = _orthogonal(bb, along_b, gram.xb, gram.tangent).clamp(min=0)

    rate: Any = hyper.lr
    s: Any = work.s
    top = work.top
    if hyper.beta2 is not None:
        squared = gg if sphere else rr * (gg if gram.xg is None else gg + along_g * gram.xg)
        s = hyper.beta2 * s + (1 - hyper.beta2) * (squared * work.share)
        if top is not None:
            top = torch.maximum(top, s)
        root = ((s if top is None else top) / work.unbias[1]).sqrt() + hyper.eps
        rate = hyper.lr / (root * work.unbias[0])
        if not regular or is_zero(hyper.eps):  # where there never was a gradient is no step
            rate = _unless(root == 0, 0.0, rate)

    # The direction m = m_g g + m_b b of the step −rate · m.
    m_g, m_b = (scale + hyper.keep * n_g, hyper.keep * n_b) if hyper.nesterov else (n_g, n_b)
    if work.geometry.retraction == "additive":
        x3_b3: Any = (-rate * m_b, n_b) if carries else (0.0, 0.0)
        if carries and zero is not None:  # `where` makes single precision of two numbers
            x3_b3 = (torch.where(zero, 0.0, c * torch.ones_like(rr)) for c in x3_b3)
        x3, b3 = x3_b3
        return Coefficients(1.0, -rate * m_g, x3, 0.0, n_g, b3, s, top)
    mm, mn = m_g * gg * m_g, m_g * gg * n_g
    if carries:
        mm = (mm + 2 * m_g * gb * m_b + m_b * bb * m_b).clamp(min=0)
        mn = mn + (m_g * n_b + m_b * n_g) * gb + m_b * bb * n_b if hyper.nesterov else mm
    s_m, s_n = m_g * along_g + m_b * along_b, n_g * along_g + n_b * along_b
    a, b, c, d, e = _carry(work, rr, rate, s_m, s_n, mm, mn)
    # A sphere's slice without a step stays, whatever rounding left of its radius.
    still = zero | (rate * mm == 0) if zero is not None and sphere else zero
    x1, x2 = _unless(still, 1.0, a - b * s_m), _unless(still, 0.0, b * m_g)
    x3 = _unless(still, 0.0, b * m_b) if carries else 0.0
    if work.b is None:
        return Coefficients(x1, x2, x3, 0.0, 0.0, 0.0, s, top)
    b2, b3 = d * m_g + e * n_g, d * m_b + e * n_b if carries else 0.0
    b1 = c - b2 * along_g - b3 * along_b
    if carries:  # a buffer without a value must not be read, not even times zero
        b3 = _unless(zero, 0.0, b3)
    return Coefficients(x1, x2, x3, _unless(zero, 0.0, b1), _unless(zero, 0.0, b2), b3, s, top)


def is_zero(number: float | Tensor) -> bool:
    return not isinstance(number, Tensor) and number == 0


def _unless(exception: Tensor | None, value: float, ordinary: Any) -> Any:
    return ordinary if exception is None else torch.where(exception, value, ordinary)


def _orthogonal(uv: Any, along: Tensor, xv: Tensor, tangent: bool) -> Tensor:
    """⟨u,v⟩ of the parts orthogonal to x: as it is given, or less what both have along x."""
    return uv if tangent else uv - along * xv


def _carry(
    work: StepInput, rr: Tensor, rate: Any, s_m: Tensor, s_n: Tensor, mm: Tensor, mn: Tensor
) -> tuple[Any, ...]:
    """The numbers a to e of the module's docstring, with t_m = −t_u / rate in place of t_u.

    So no number is as large as the square of a rate. Those from c on are for a buffer.
    """
    radius, buffered = work.geometry.radius, work.b is not None
    if work.geometry.retraction == "projective":
        assert radius is not None
        r = rr.sqrt()
        end = torch.hypot(r, rate * mm.sqrt())
        a, per = radius / end, rate / end
        if not buffered:
            return a, -radius * per, None, None, None
        turn = rate / (end + r) * mn
        return a, -radius * per, turn * (1 / r + 1 / end), -turn * per, 1.0
    unit = rr if radius is None else radius**2
    cos, sinc = slices.cos_sinc((rate * (mm / unit).sqrt()).square())
    sine = rate * sinc
    k = (
        (-rate * s_m).exp()
        if radius is None
        else radius / (cos * cos * rr + sine * sine * mm).sqrt()
    )
    a, b = k * cos, -k * sine
    if not buffered:
        return a, b, None, None, None
    c = sine * mn / unit
    d = (cos - 1) * mn / mm.clamp(min=torch.finfo(mm.dtype).tiny)
    if radius is None:
        return a, b, k * (s_n * cos + c), k * (d - s_n * sine), k
    # What rounding of the radius left along the new point.
    off = (a * c * rr + b * (d * mm + mn)) / unit
    return a, b, c - off * a, d - off * b, 1.0
