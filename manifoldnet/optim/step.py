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
    "Unbias",
    "coefficients",
    "is_zero",
    "moments",
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
    dim, retraction, zero = manifold.slices.dim, manifold.retraction, manifold.zero_slices
    # A slice that stays zero needs no other step: one without a direction stays as it is.
    projection = getattr(manifold.projection, "of", manifold.projection)
    radius: float | None = getattr(projection, "radius", None)
    ours = (
        ScaledEuclidean(dim, zero_slices=zero)
        if radius is None
        else Oblique(dim, radius, zero_slices=zero)
    )
    known = (Additive if radius is None else Projective, Geodesic)
    alike = all(
        getattr(manifold, part) == getattr(ours, part)
        for part in ("metric", "projection", "geodesics")
    )
    return (
        SliceGeometry(dim, radius, retraction.name) if alike and type(retraction) in known else None
    )


Unbias = tuple[float | Tensor, float | Tensor]
"""The bias corrections 1 − β₁ᵗ and 1 − β₂ᵗ of Adam."""


class HyperParameters(NamedTuple):
    """The numbers of a group, or tensors of one element. `beta2` is None for SGD.

    With `displacement`, g is no gradient but a displacement v = q g in the frame of the metric,
    q = 1 on spheres and ‖x‖ under the scaled metric: the step is the retraction of lr times its
    tangent part, less `decay` times the weight where that is tangent. The sign is the −1 of a
    descent, and there is no buffer.
    """

    lr: float | Tensor
    sign: float = 1.0
    keep: float | Tensor = 0.0
    fresh: float | Tensor = 1.0
    nesterov: bool = False
    beta2: float | Tensor | None = None
    eps: float | Tensor = 0.0
    displacement: bool = False
    decay: float | Tensor = 0.0


class StepInput(NamedTuple):
    """A weight to step in place.

    Attributes:
        x: the weight, detached.
        g: its gradient, which is left as it is.
        geometry: its manifold.
        b: the buffer (momentum or first moment); None for SGD without momentum.
        first: whether the buffer has no value yet (SGD; Adam's starts with zeros).
        s: Adam's second moments, one number per slice.
        max_s: the largest of them so far, with amsgrad.
        unbias: 1 − β₁ᵗ and 1 − β₂ᵗ.
        s_factor: of ⟨d, d⟩ in the second moment: 1, or one over the number of entries of a slice.
        steps: t as a tensor on the device, to compute `unbias` from there.
    """

    x: Tensor
    g: Tensor
    geometry: SliceGeometry
    b: Tensor | None = None
    first: bool = False
    s: Tensor | None = None
    max_s: Tensor | None = None
    unbias: Unbias = (1.0, 1.0)
    s_factor: float = 1.0
    steps: Tensor | None = None

    def products(self, hyper: HyperParameters) -> tuple[str, ...]:
        """The inner products that its coefficients depend on, by the names of `Gram`."""
        if self.geometry.retraction == "additive":
            return ("xx",) if hyper.beta2 is None else ("xx", "gg")
        if self.b is None or self.first or is_zero(hyper.keep):
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

    def along(self, zero: Tensor | None) -> tuple[Any, Any]:
        """The parts of g and b along x, as multiples of x; None if not known.

        Args:
            zero: the zero slices, which have nothing along them; None if there are none.
        """
        found = [
            None if product is None else _unless(zero, 0.0, product / self.xx)
            for product in (self.xg, self.xb)
        ]
        return found[0], found[1]

    def refined(self, parts: Gram) -> Gram:
        """The products, from those of x and of g and b less what they were found to have along x.

        What is left along x is rounding, and taken off as well.
        """
        xx: Any
        xx, xg, gg, xb, gb, bb, _ = parts
        (along_g, along_b), (rest_g, rest_b) = self.along(self.xx == 0), parts.along(xx == 0)
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
        max_s: their maxima (amsgrad).
    """

    x1: Tensor | float
    x2: Tensor | float
    x3: Tensor | float
    b1: Tensor | float
    b2: Tensor | float
    b3: Tensor | float
    s: Tensor | None
    max_s: Tensor | None


def moments(
    squared: Tensor, work: StepInput, hyper: HyperParameters
) -> tuple[Any, Tensor | None, Tensor | None]:
    """The rate of each slice, and Adam's second moments, from ⟨d, d⟩."""
    if hyper.beta2 is None:
        return hyper.lr, None, None
    assert work.s is not None  # Adam's inputs have them
    # Not as a mean of both: ∞ is to stay ∞.
    s, max_s = hyper.beta2 * work.s, work.max_s
    s = s + (1 - hyper.beta2) * work.s_factor * squared
    if max_s is not None:
        max_s = torch.maximum(max_s, s)
    root = ((s if max_s is None else max_s) / work.unbias[1]).sqrt() + hyper.eps
    rate = hyper.lr / (root * work.unbias[0])
    if is_zero(hyper.eps):  # where there never was a gradient there is no step
        rate = torch.where(root == 0, 0.0, rate)
    return rate, s, max_s


def coefficients(
    gram: Gram,
    work: StepInput,
    hyper: HyperParameters,
    *,
    rate: Any = None,
    ask: bool = False,
) -> Coefficients | None:
    """The coefficients of a step, in the type of the products.

    A slice that is zero has no direction: it stays as it is, and its buffer is zero. On a sphere a
    slice whose step is zero stays as it is.

    Args:
        gram: the inner products of the slices.
        work: their weight, of which only what is one number per slice is read.
        hyper: the numbers of its group.
        rate: σ, if the gradient and the buffer have been made one new buffer, which g stands for.
        ask: whether to read values, and to answer None where the ordinary formulas do not do: for
            zero slices, steps of zero, squares that overflow, and tangent parts that are small
            beside the vectors they are part of, of which rounding leaves nothing in a difference
            (`Gram.refined`). Without it there are exceptions for the first two.
    """
    rr, sphere = gram.xx, work.geometry.radius is not None
    mixed, zero = rate is not None, None if ask else rr == 0
    adam = hyper.beta2 is not None and not mixed
    carries = not (mixed or work.b is None or work.first or is_zero(hyper.keep))
    # The gradient d = scale · g (its tangent part on a sphere), the buffer n = n_g g + n_b b, and
    # the direction m = m_g g + m_b b of the step −rate · m.
    scale: Any = 1.0 if mixed or sphere else rr.sqrt() if hyper.displacement else rr
    scale = scale if mixed else scale * hyper.sign
    n_g = scale * hyper.fresh if carries or adam else scale
    n_b: Any = hyper.keep if carries else 0.0
    m_g, m_b = n_g, n_b
    if hyper.nesterov:
        m_g, m_b = scale + hyper.keep * n_g, hyper.keep * n_b
    s = max_s = None
    gg: Any = gram.gg
    if work.geometry.retraction == "additive":
        if ask and not float(rr.min()) > 0:
            return None
        if not mixed:
            rate, s, max_s = moments(rr * gg if adam else rr, work, hyper)
        if zero is not None and (carries or mixed):  # what is left of the buffer of a zero slice
            kept = (~zero).to(rr.dtype)
            if mixed:
                m_g, n_g = m_g * kept, n_g * kept
            else:
                m_b, n_b = m_b * kept, n_b * kept
        return Coefficients(
            1.0 - hyper.decay, -rate * m_g, -rate * m_b if carries else 0.0, 0.0, n_g, n_b, s, max_s
        )

    # What g and b have along x, and the products of what is orthogonal to it.
    along_g, along_b = gram.along(zero)
    gb: Any = gram.gb
    bb: Any = gram.bb
    if not gram.tangent:
        xg: Any = gram.xg
        gg = torch.addcmul(gg, along_g, xg, value=-1)
        if carries:
            gb, bb = gb - along_g * gram.xb, bb - along_b * gram.xb
    if ask and (float(hyper.lr) == 0 or not float((gg / gram.gg).min()) > _LEFT):
        return None
    if not ask:
        gg = gg.clamp(min=0)
    if not mixed:
        squared = gg if sphere or not adam else rr * (gg + along_g * gram.xg)
        rate, s, max_s = moments(squared, work, hyper)
    mm, s_m = _times(m_g, _times(m_g, gg)), _times(m_g, along_g)
    if carries:
        apart = mm + m_b * bb.clamp(min=0) * m_b
        mm, s_m = apart + 2 * m_g * gb * m_b, s_m + m_b * along_b
        least = torch.minimum(mm / apart, bb / gram.bb) if ask else None
        if least is not None and not float(least.min()) > _LEFT:
            return None
        mm = mm.clamp(min=0)
    c: Any
    if hyper.nesterov:
        mn, s_n = m_g * gg * n_g, n_g * along_g
        if carries:
            mn = mn + (m_g * n_b + m_b * n_g) * gb + m_b * bb * n_b
            s_n = s_n + n_b * along_b
        a, b, c, d, e = _turn_and_carry(work, rr, rate, s_m, s_n, mm, mn)
        b2, b3 = d * m_g + e * n_g, d * m_b + e * n_b
    else:
        along = s_m if sphere or is_zero(hyper.decay) else s_m + hyper.decay / rate
        a, b, c, b2 = _turn(work, rr, rate, along, mm)
        if work.b is not None:
            b2, b3 = _times(n_g, b2), b2 * n_b if carries else 0.0
    # A sphere's slice without a step stays, whatever rounding left of its radius.
    still = zero | (rate * mm == 0) if zero is not None and sphere else zero
    x1 = _unless(still, 1.0, torch.addcmul(a, b, s_m, value=-1))
    x2 = _unless(still, 0.0, _times(m_g, b))
    x3 = _unless(still, 0.0, b * m_b) if carries else 0.0
    if work.b is None:
        return Coefficients(x1, x2, x3, 0.0, 0.0, 0.0, s, max_s)
    b1 = torch.addcmul(c, b2, along_g, value=-1)
    if not carries:  # a buffer without a value must not be read, not even times zero
        b3 = 0.0
    else:
        b1, b3 = b1 - b3 * along_b, _unless(zero, 0.0, b3)
    return Coefficients(x1, x2, x3, _unless(zero, 0.0, b1), _unless(zero, 0.0, b2), b3, s, max_s)


def is_zero(number: float | Tensor) -> bool:
    """Test for a number that is zero; tensors, which may be on a device, are not asked."""
    return not isinstance(number, Tensor) and number == 0


def _times(factor: float | Tensor, x: Any) -> Any:
    return x if not isinstance(factor, Tensor) and factor == 1 else factor * x


def _unless(exception: Tensor | None, value: float, ordinary: Any) -> Any:
    return ordinary if exception is None else torch.where(exception, value, ordinary)


def _turn(work: StepInput, rr: Tensor, rate: Any, s: Any, mm: Tensor) -> tuple[Any, ...]:
    """The step −rate · m = −rate (s x + t): x⁺ = a x + b t and, carried along, m⁺ = c x + d t.

    So written, no number is as large as the square of a rate.
    """
    radius: Any = work.geometry.radius
    buffered = work.b is not None
    if work.geometry.retraction == "projective":
        r = rr.sqrt()
        per = torch.hypot(r, mm.sqrt() * rate).reciprocal_()
        a = per if radius == 1 else per * radius
        return a, a * -rate, *((per * rate * mm / r, r * per) if buffered else (None, None))
    unit = rr if radius is None else radius**2
    qq = mm / unit
    cos, sinc = slices.cos_sinc((qq.sqrt() * rate).square())
    sine = rate * sinc
    if radius is None:
        k = (s * -rate).exp()
        c, d = (k * (s * cos + sine * qq), k * (cos - s * sine)) if buffered else (None, None)
        return k * cos, -k * sine, c, d
    k = radius / (cos.square() * rr + sine.square() * mm).sqrt_()
    a, b = k * cos, -k * sine
    if not buffered:
        return a, b, None, None
    # What rounding of the radius left along the new point, most of all in half precision.
    off = a * sine * (qq * rr - mm) / unit
    return a, b, sine * qq - off * a, cos - off * b


def _turn_and_carry(
    work: StepInput, rr: Tensor, rate: Any, s_m: Any, s_n: Any, mm: Tensor, mn: Tensor
) -> tuple[Any, ...]:
    """The same with another vector carried along: n⁺ = c x + d t_m + e t_n (Nesterov)."""
    radius: Any = work.geometry.radius
    if work.geometry.retraction == "projective":
        r = rr.sqrt()
        end = torch.hypot(r, rate * mm.sqrt())
        per, turn = rate / end, rate / (end + r) * mn
        return radius / end, -radius * per, turn * (1 / r + 1 / end), -turn * per, 1.0
    unit = rr if radius is None else radius**2
    cos, sinc = slices.cos_sinc((rate * (mm / unit).sqrt()).square())
    sine = rate * sinc
    c = sine * mn / unit
    d = (cos - 1) * mn / mm.clamp(min=torch.finfo(mm.dtype).tiny)
    if radius is None:
        k = (-rate * s_m).exp()
        return k * cos, -k * sine, k * (s_n * cos + c), k * (d - s_n * sine), k
    k = radius / (cos * cos * rr + sine * sine * mm).sqrt()
    a, b = k * cos, -k * sine
    # What rounding of the radius left along the new point.
    off = (a * c * rr + b * (d * mm + mn)) / unit
    return a, b, c - off * a, d - off * b, 1.0
