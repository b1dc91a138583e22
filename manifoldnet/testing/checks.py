"""Numerical checks of derivatives, retractions and metrics, for any manifold and any model.

    check_gradient(model, lambda: loss_fn(model(images), labels))       of a model's loss
    check_hessian(Oblique(), cost, x, gradient=…, hessian=…)            of one's own formulas

A function that agrees with its Taylor polynomial up to order k − 1 differs from it by O(tᵏ) at
distance t: on logarithmic axes the error is a line of slope k: 2 for a correct gradient, 3 for a
correct Hessian, less for wrong ones. For long steps the error is no power of t, and for short ones
it is rounding. The slope is measured where the line is straight first, above the rounding. After
the tools of the same names in Manopt [boumal2014manopt].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Manifold, Product
from manifoldnet.objective import Objective
from manifoldnet.testing.samples import tangent_source

__all__ = [
    "HessianCheck",
    "MetricCheck",
    "Slope",
    "check_gradient",
    "check_hessian",
    "check_metric",
    "check_retraction",
    "fit_line",
    "measure_slope",
]

_SLACK = 0.3  # of a slope; a wrong derivative costs 1
_EXACT = 1e-9  # what may be wrong with an identity, relatively

_STEPS = (1e-3, 0.1, 1.0)  # from those that show a normal part of order t² to ordinary ones

# Steps at which slopes are measured, and some at which the error is rounding alone.
_GRID = torch.logspace(-8, -1, 71, dtype=torch.float64)
_TOO_SHORT = (1e-13, 2e-13, 3e-13, 5e-13, 8e-13)
_WINDOW = 8  # neighbouring steps: most of a decade
_STRAIGHT = 0.02  # root mean square distance of points from a line, in logarithms
_ROUNDINGS = 30.0

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Slope:
    """The order of an error as the step goes to 0.

    Attributes:
        value: the slope; ∞ if all errors are rounding.
        steps: lengths t of the steps.
        errors: the error of each.
    """

    value: float
    steps: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class HessianCheck:
    """The measures of a Hessian by `check_hessian`.

    Attributes:
        slope: of the error of the second-order model.
        asymmetry: |⟨Hu, v⟩ − ⟨u, Hv⟩|, relative to ‖Hu‖ + ‖Hv‖ + ‖gradient‖.
        nonlinearity: ‖H(au + bv) − aHu − bHv‖, relative to the same.
    """

    slope: Slope
    asymmetry: float
    nonlinearity: float


@dataclass(frozen=True)
class MetricCheck:
    """The measures of a metric by `check_metric`, relative to the lengths involved.

    Attributes:
        asymmetry: of the inner product.
        nonlinearity: in its first argument.
        least: the least eigenvalue of a Gram matrix over its largest; positive.
        gradient: |⟨grad, v⟩ₓ − g·v| for the Riemannian gradient of a differential g.
    """

    asymmetry: float
    nonlinearity: float
    least: float
    gradient: float


def check_gradient(
    where: Manifold | nn.Module,
    function: Callable[..., Tensor],
    x: Tensor | None = None,
    *,
    gradient: Function | None = None,
    seed: int = 0,
) -> Slope:
    """Check that a gradient is the derivative of a function along a geodesic.

        |f(exp(x, tu)) − f(x) − t ⟨grad f(x), u⟩|  ∝  t²

    Args:
        where: a manifold, or a model with its declarations.
        function: of a point; for a model, a function without arguments that returns its loss on a
            fixed batch, as in `minimize`.
        x: a float64 point of the manifold; a model brings its own.
        gradient: the Euclidean gradient of `function` at a point, if it is not autograd's.
        seed: of the direction.

    Returns:
        The slope, with the steps and errors.

    Raises:
        AssertionError: if it is clearly below 2, or the Riemannian gradient is not tangent.
        TypeError: if `where` is neither a manifold nor a module, or `x` is no tensor.
        ValueError: if the function is not one finite number.
    """
    with _case(where, function, x, gradient, None) as case:
        manifold, at = case.manifold, case.start
        u, _ = _directions(manifold, at, seed)
        euclidean = case.gradient(at)
        grad = manifold.egrad2rgrad(at, euclidean)
        _check_tangent(manifold, at, grad, _size(manifold, at, euclidean), "gradient")
        before, first = case.cost(at), float(manifold.inner(at, grad, u))
        slope = measure_slope(
            lambda t: case.cost(manifold.expmap(at, t * u)) - before - t * first,
            lambda t: abs(before) + t * abs(first) + float(at.norm() * euclidean.norm()),
        )
    if slope.value < 2 - _SLACK:
        raise AssertionError(
            f"the gradient is wrong: the error of the first-order model is "
            f"O(t^{slope.value:.2f}), where a correct gradient gives O(t^2)"
        )
    return slope


def check_hessian(
    where: Manifold | nn.Module,
    function: Callable[..., Tensor],
    x: Tensor | None = None,
    *,
    gradient: Function | None = None,
    hessian: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
) -> HessianCheck:
    """Check that a Hessian is the second derivative of a function along a geodesic.

    The check fails for functions with kinks (ReLU, max) if the geodesic meets one.

        |f(exp(x, tu)) − f(x) − t ⟨grad f, u⟩ − t²/2 ⟨Hess f[u], u⟩|  ∝  t³

    and that it is linear, symmetric and tangent.

    Args:
        where: a manifold, or a model with its declarations.
        function: as in `check_gradient`.
        x: a float64 point of the manifold; a model brings its own.
        gradient: the Euclidean gradient at a point, if it is not autograd's.
        hessian: the Euclidean Hessian at a point times a vector, if it is not autograd's.
        seed: of the directions.

    Returns:
        The measures.

    Raises:
        AssertionError: if the slope is clearly below 3, or the Hessian is not linear, symmetric,
            tangent.
        TypeError: as `check_gradient`.
        ValueError: if the function is not one finite number, or cannot be differentiated twice.
    """
    with _case(where, function, x, gradient, hessian) as case:
        manifold, at = case.manifold, case.start
        u, v = _directions(manifold, at, seed)
        euclidean = case.gradient(at)
        grad = manifold.egrad2rgrad(at, euclidean)

        slope_size = _size(manifold, at, euclidean)

        def curve(w: Tensor) -> Tensor:
            h = case.hessian(at, w)
            result = manifold.ehess2rhess(at, euclidean, h, w)
            _check_tangent(manifold, at, result, _size(manifold, at, h) + slope_size, "Hessian")
            return result

        hu, hv, both = curve(u), curve(v), curve(0.7 * u - 0.3 * v)
        # The rounding of a point changes the function by its size times the derivative.
        rounding = [float(at.norm() * d.norm()) for d in (euclidean, case.hessian(at, u))]
        before = case.cost(at)
        first, second = float(manifold.inner(at, grad, u)), float(manifold.inner(at, hu, u))
        slope = measure_slope(
            lambda t: (
                case.cost(manifold.expmap(at, t * u)) - before - t * first - t * t / 2 * second
            ),
            lambda t: (
                abs(before)
                + t * abs(first)
                + t * t / 2 * abs(second)
                + rounding[0]
                + t * rounding[1]
            ),
        )
        size = float(manifold.norm(at, hu) + manifold.norm(at, hv)) + slope_size
        one, other = float(manifold.inner(at, hu, v)), float(manifold.inner(at, u, hv))
        result = HessianCheck(
            slope,
            _relative(abs(one - other), size),
            _relative(float(manifold.norm(at, both - 0.7 * hu + 0.3 * hv)), size),
        )
    _check_exact("the Hessian is not linear", result.nonlinearity)
    _check_exact("the Hessian is not symmetric", result.asymmetry)
    if slope.value < 3 - _SLACK:
        raise AssertionError(
            f"the Hessian is wrong: the error of the second-order model is "
            f"O(t^{slope.value:.2f}), where a correct Hessian gives O(t^3) (a wrong gradient O(t))"
        )
    return result


def check_retraction(manifold: Manifold, x: Tensor, *, seed: int = 0) -> Slope:
    """Check that a retraction agrees with geodesics to first order, and stays on the manifold.

        ‖retr(x, tu) − exp(x, tu)‖  ∝  t²      (t³ for a retraction of second order)

    Args:
        manifold: with its retraction.
        x: a float64 point.
        seed: of the direction.

    Returns:
        The slope; ∞ where the retraction is the exponential map.

    Raises:
        AssertionError: if the slope is clearly below 2, against the geodesic or against x + tu; if
            retr(x, 0) is not x; if a step leaves the manifold.
    """
    x = _double(manifold, x)
    u, _ = _directions(manifold, x, seed)
    stays = float((manifold.retr(x, 0 * u) - x).norm())
    _check_exact("retr(x, 0) is not x", _relative(stays, float(x.norm())))
    size = float(x.norm())
    curves: dict[str, Function] = {
        "straight step x + tu": lambda v: x + v,
        "geodesic": lambda v: manifold.expmap(x, v),
    }
    for name, curve in curves.items():

        def apart(t: float, curve: Function = curve) -> float:
            return float((manifold.retr(x, t * u) - curve(t * u)).norm())

        slope = measure_slope(apart, lambda t: size)
        if slope.value < 2 - _SLACK:
            raise AssertionError(
                f"this is no retraction: its distance to the {name} is "
                f"O(t^{slope.value:.2f}), where it must be O(t^2)"
            )
    for t in _STEPS:
        y = manifold.retr(x, t * u)
        off = float(manifold.violation(y).max())
        _check_exact(f"a step of length {t:g} leaves the manifold", off)
    return slope


def check_metric(manifold: Manifold, x: Tensor, *, seed: int = 0) -> MetricCheck:
    """Check that a metric is an inner product, and gradients are those of that inner product.

    Args:
        manifold: with its metric.
        x: a float64 point.
        seed: of the vectors.

    Returns:
        The measures.

    Raises:
        AssertionError: if it is not symmetric, linear or positive, or `egrad2rgrad` does not
            represent the differential.
    """
    x = _double(manifold, x)
    count = min(4, manifold.dimension(tuple(x.shape)))
    generator = tangent_source(seed)
    *vectors, w = (_spread(manifold, x, generator) for _ in range(count + 1))
    inner = [[float(manifold.inner(x, a, b)) for b in vectors] for a in vectors]
    gram = torch.tensor(inner, dtype=torch.float64)
    u, v = vectors[0], vectors[-1]
    mixed = float(manifold.inner(x, 0.7 * u - 0.3 * v, w))
    apart = mixed - 0.7 * float(manifold.inner(x, u, w)) + 0.3 * float(manifold.inner(x, v, w))
    g = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    represented = float(manifold.inner(x, manifold.egrad2rgrad(x, g), w))
    plain = float((g * w).sum())
    values = torch.linalg.eigvalsh((gram + gram.T) / 2)
    result = MetricCheck(
        asymmetry=float((gram - gram.T).abs().max() / gram.abs().max()),
        nonlinearity=abs(apart) / float(gram.abs().max()),
        least=float(values[0] / values.abs().max()),
        gradient=_relative(abs(represented - plain), float(g.norm() * w.norm())),
    )
    _check_exact("the metric is not symmetric", result.asymmetry)
    _check_exact("the metric is not linear", result.nonlinearity)
    if result.least <= 0:
        raise AssertionError(
            f"the metric is not positive: a Gram matrix has an eigenvalue of {result.least:.2g} "
            "times its largest"
        )
    _check_exact("egrad2rgrad does not represent the differential", result.gradient)
    return result


def measure_slope(error: Callable[[float], float], scale: Callable[[float], float]) -> Slope:
    """The slope of the first straight part of an error on logarithmic axes.

    Args:
        error: the error at a step.
        scale: the size of the subtracted terms at a step, whose rounding hides the error. The
            rounding of the function itself is measured at the shortest steps.
    """
    steps = _GRID.tolist()
    errors = [abs(error(t)) for t in steps]
    noise = max(abs(error(t)) for t in _TOO_SHORT)
    finite = [(t, e) for t, e in zip(steps, errors, strict=True) if math.isfinite(e)]
    if len(finite) < 2 * _WINDOW:
        raise ValueError("the function is not finite close to the point: choose another one")
    rounding = _ROUNDINGS * torch.finfo(torch.float64).eps
    floor = max(rounding * 1e-6 * max(e for _, e in finite), 10 * noise)
    known = [(math.log(t), math.log(e)) for t, e in finite if e > max(floor, rounding * scale(t))]
    lines = [fit_line(known[i : i + _WINDOW]) for i in range(len(known) - _WINDOW + 1)]
    straight = [slope for slope, off in lines if off < _STRAIGHT]
    straightest = min(lines, key=lambda line: line[1], default=(math.inf, 0.0))[0]
    value = straight[0] if straight else straightest
    return Slope(value, tuple(steps), tuple(errors))


def fit_line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The slope of a line fitted by least squares, and the root mean square residual."""
    xs, ys = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    slope = float((xs * ys).sum() / (xs * xs).sum())
    return slope, float((ys - slope * xs).square().mean().sqrt())


class _Case(Protocol):
    """A function on a manifold, with its derivatives, and a point."""

    @property
    def manifold(self) -> Manifold: ...
    @property
    def start(self) -> Tensor: ...
    def cost(self, x: Tensor) -> float: ...
    def gradient(self, x: Tensor) -> Tensor: ...
    def hessian(self, x: Tensor, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Plain:
    """A function of a point, with derivatives of its own or autograd's."""

    manifold: Manifold
    start: Tensor
    function: Function
    own_gradient: Function | None
    own_hessian: Callable[[Tensor, Tensor], Tensor] | None

    def cost(self, x: Tensor) -> float:
        with torch.no_grad():
            return float(self._value(x))

    def gradient(self, x: Tensor) -> Tensor:
        if self.own_gradient is not None:
            return self.own_gradient(x)
        return self._slope(x.clone().requires_grad_(), twice=False)

    def hessian(self, x: Tensor, u: Tensor) -> Tensor:
        if self.own_hessian is not None:
            return self.own_hessian(x, u)
        x = x.clone().requires_grad_()
        if self.own_gradient is None:
            slope = self._slope(x, twice=True)
            if not slope.requires_grad:
                return torch.zeros_like(u)  # a linear function
        else:
            with torch.enable_grad():
                slope = self.own_gradient(x)
            if not slope.requires_grad:
                raise ValueError(
                    "the gradient that was given is not differentiable: give the hessian as well"
                )
        (curved,) = torch.autograd.grad(slope, x, u, materialize_grads=True)
        return curved

    def _slope(self, x: Tensor, twice: bool) -> Tensor:
        with torch.enable_grad():
            value = self._value(x)
        if not value.requires_grad:
            raise ValueError("the function is not differentiable in x: compute it from x alone")
        (slope,) = torch.autograd.grad(value, x, create_graph=twice, materialize_grads=True)
        return slope

    def _value(self, x: Tensor) -> Tensor:
        value = self.function(x)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("the function must give a tensor with one number")
        if not bool(value.detach().isfinite()):
            raise ValueError(
                f"the function is {float(value.detach())} at a point: check its formula there"
            )
        return value.reshape(())


@contextmanager
def _case(
    where: Manifold | nn.Module,
    function: Callable[..., Tensor],
    x: Tensor | None,
    gradient: Function | None,
    hessian: Callable[[Tensor, Tensor], Tensor] | None,
) -> Iterator[_Case]:
    if isinstance(where, nn.Module):
        if x is not None or gradient is not None or hessian is not None:
            raise ValueError("a model brings its own point and derivatives: leave them out")
        with Objective(where, function) as objective:
            yield objective
        return
    if not isinstance(where, Manifold):
        raise TypeError(
            f"give a manifold such as Oblique(), or a model, not {type(where).__name__}"
        )
    if x is None:
        raise ValueError("give a point x of the manifold")
    yield _Plain(where, _double(where, x), function, gradient, hessian)


def _double(manifold: Manifold, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, a point of the manifold, not {type(x).__name__}")
    if x.dtype != torch.float64:
        raise ValueError(f"x has type {x.dtype}; slopes can be measured in float64 only")
    manifold.assert_check_point_on_manifold(x, name="x")
    return manifold.projx(x.detach())  # a point that was rounded to float32 is off in float64


def _directions(manifold: Manifold, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two random tangent vectors of length 1."""
    generator = tangent_source(seed)
    u, v = (_spread(manifold, x, generator) for _ in range(2))
    return u / manifold.norm(x, u), v / manifold.norm(x, v)


def _spread(manifold: Manifold, x: Tensor, generator: torch.Generator) -> Tensor:
    """A random tangent vector whose slices have lengths of about 1 in the metric."""
    if isinstance(manifold, Product):
        parts = zip(manifold.factors, manifold.split(x), strict=True)
        return manifold.join(_spread(factor, part, generator) for (factor, _), part in parts)
    u = manifold.random_tangent(x, generator=generator)
    lengths = manifold.component_inner(x, u).abs().sqrt()
    # Random lengths: in Euclidean space every number is a slice, and entries ±1 would not
    # distinguish a diagonal matrix from its mean.
    factors = torch.randn(lengths.shape, dtype=x.dtype, generator=generator)
    return u * factors / torch.where(lengths > 0, lengths, 1.0)


def _check_tangent(manifold: Manifold, x: Tensor, u: Tensor, of: float, what: str) -> None:
    off = float(manifold.norm(x, u - manifold.proju(x, u)))
    _check_exact(f"the {what} is not tangent", _relative(off, of))


def _size(manifold: Manifold, x: Tensor, g: Tensor) -> float:
    """The length of a differential, its part normal to the manifold included."""
    return float(manifold.norm(x, manifold.sharp(x, g)))


def _check_exact(trouble: str, amount: float) -> None:
    if not amount <= _EXACT:
        raise AssertionError(f"{trouble}: off by {amount:.2g}, relatively")


def _relative(amount: float, of: float) -> float:
    return amount / of if of > 0 else amount
