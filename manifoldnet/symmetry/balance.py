"""The balanced representative of a model under its scaling group.

    f(s) = (1/p) Σ_e |w_e|^p e^{p(As)_e} − ⟨c, s⟩,    c = Aᵀτ

is convex in the log-scales s of the generators, and As is the same for all its minima s*(w). From
h·w instead of w the minimum is s*(w) − h: so e^{As*} w, the *balanced representative*, is the same
for all parameterizations. Between layers it equalizes the p-norms of what a unit reads and of what
reads the unit, up to a constant [stock2019equi]; in front of a normalization, it fixes norms. For
p → ∞, ranges are equalized [nagel2019data]: largest magnitudes, as quantization needs it.

The gradient of f is a sum over slices, minus c, and so is its Hessian times a vector: the minimum
is found by Newton's method, with conjugate gradients for the steps.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.group import ScalingGroup
from manifoldnet.symmetry.model_check import check_model
from manifoldnet.symmetry.orbit import Family, Logs, Orbit, Powers
from manifoldnet.symmetry.reparameterize import named_tensors, reparameterize
from manifoldnet.symmetry.scaling import ScalingElement

__all__ = ["balance_", "balanced", "balancing_scales", "weights_of"]

# The largest finite p.
_LARGEST = 32.0
# Newton's method: steps, steps of conjugate gradients within each, halvings of a step.
_STEPS, _INNER, _HALVINGS = 60, 400, 40
# The gradient that is left, relative to the sums that it is a difference of.
_SMALL = 1e-13
# Rounds over the families that equalize ranges: before Newton's method, and to the end.
_FEW_ROUNDS, _ROUNDS = 8, 2000
# The largest change of a logarithm in the last round.
_SETTLED = 1e-13


def balance_(model: nn.Module, group: ScalingGroup, *, p: float = 2.0) -> ScalingElement:
    """Scale the weights of a model to the balanced representative of their orbit.

    The loss does not change. A second call changes nothing but roundings, and from weights that a
    group element has scaled the result is the same. A generator that nothing bounds (all its
    weights are zero) keeps the factor 1.

    Args:
        model: it is changed; gradients of its scaled weights are dropped, as their values belong to
            the old ones. An optimizer keeps the state of the old weights: make it afterwards.
        group: scalings that leave the loss of this model invariant.
        p: norm that is balanced, from 1 to 32; `math.inf` equalizes the largest magnitudes.

    Returns:
        The element g that was applied; `reparameterize(model, g.inverse(), in_place=True)` leads
        back.

    Raises:
        ValueError: for a group of another model, weights that are not finite, another p, or
            declared weights that the group moves off their manifolds. The model is unchanged then.
    """
    element = _element(model, group, p)
    reparameterize(model, element, in_place=True)
    return element


def balanced(
    model: nn.Module, group: ScalingGroup, *, p: float = 2.0
) -> tuple[nn.Module, ScalingElement]:
    """A balanced copy of a model, and the element that leads to it; see `balance_`."""
    element = _element(model, group, p)
    return reparameterize(copy.deepcopy(model), element, in_place=True), element


def _element(model: nn.Module, group: ScalingGroup, p: float) -> ScalingElement:
    check_model(model, group)
    if not (1 <= p <= _LARGEST or p == math.inf):
        raise ValueError(
            f"p is {p}: the norm that is balanced has p from 1 to {_LARGEST:g} (above, weights "
            "below the largest are lost to rounding), or p = math.inf"
        )
    orbit = Orbit(group, next(iter(named_tensors(model).values())).device)
    if not orbit.dimension:
        return ScalingElement.identity()
    s = balancing_scales(orbit, weights_of(orbit, model), p)
    kept = group.subgroup(orbit.generators)
    return kept.element(s.cpu())


def weights_of(orbit: Orbit, model: nn.Module) -> dict[str, Tensor]:
    """The weights that a group scales, by name.

    Raises:
        ValueError: if one has no values, or values that are not finite.
    """
    tensors = named_tensors(model)
    found = {name: tensors[name].detach() for name in orbit.dims}
    for name, w in found.items():
        if w.is_meta:
            raise ValueError(f"{name} has no values to balance: it is on the meta device")
        bad = int((~w.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} has {bad} numbers that are not finite: nothing balances them")
    return found


@torch.no_grad()
def balancing_scales(orbit: Orbit, weights: Mapping[str, Tensor], p: float = 2.0) -> Tensor:
    """Log-scales s* of the balanced representative, one for each generator of an orbit.

    Args:
        orbit: of the group.
        weights: by name, finite.
        p: the norm; `math.inf` for ranges.

    Raises:
        RuntimeError: if the minimum is not found to rounding.
    """
    s = orbit.exponents.new_zeros(orbit.dimension)
    s = _equalize_ranges(orbit, weights, s, _FEW_ROUNDS)  # in logarithms: nothing overflows
    power = min(p, 2.0)
    s = _minimize(orbit, weights, s, power)
    while power < p < math.inf:  # large powers are steep: each begins at the minimum before
        power = min(p, 2 * power)
        s = _minimize(orbit, weights, s, power)
    if math.isinf(p):
        s = _equalize_ranges(orbit, weights, s, _ROUNDS)
    return s


# --- Newton's method ------------------------------------------------------------------------------


def _minimize(orbit: Orbit, weights: Mapping[str, Tensor], s: Tensor, p: float) -> Tensor:
    """The minimum of f, from a start where the weights are of ordinary size."""
    c = orbit.targets(weights)
    logs = orbit.by_axis(orbit.logs(s))
    powers = {
        name: Powers(_exactly_scaled(orbit, name, w, logs), orbit.dims[name], p)
        for name, w in weights.items()
    }
    d = torch.zeros_like(s)  # in addition to the start
    point = _Point(orbit, powers, d, p)
    for _ in range(_STEPS):
        gradient = point.pull - c
        size = orbit.gather(point.sums, power=2).clamp(min=0) + c.abs()
        if bool((gradient.abs() <= _SMALL * size).all()):
            return s + d
        step = _newton_step(point, gradient, p)
        slope = float(gradient @ step)
        value = point.value - float(c @ d)
        for halving in range(_HALVINGS):
            length = 0.5**halving
            following = _Point(orbit, powers, d + length * step, p)
            change = following.value - float(c @ (d + length * step)) - value
            # Near the minimum, differences of f are rounding, and its gradient decides.
            smaller = float((following.pull - c).norm()) < float(gradient.norm())
            if change <= 1e-4 * length * slope or (smaller and abs(change) <= 1e-12 * abs(value)):
                break
        else:
            break
        d, point = d + length * step, following
    left = ((point.pull - c).abs() / (orbit.gather(point.sums, power=2) + c.abs())).nan_to_num(0.0)
    worst = int(left.argmax())
    if float(left[worst]) > 1e-9:
        raise RuntimeError(
            f"balancing has not converged: {orbit.generators[worst].name} is off by "
            f"{float(left[worst]):.1e} relative"
        )
    return s + d


def _exactly_scaled(orbit: Orbit, name: str, w: Tensor, logs: Logs) -> Tensor:
    """e^{As} w in float64, whatever the sizes of both factors."""
    log = orbit.log_factors(name, logs)
    half = (log / 2).exp()
    scaled: Tensor = w.double() * half * half
    return scaled


class _Point:
    """Sums, value and Aᵀ of the sums at log-scales d."""

    def __init__(self, orbit: Orbit, powers: Mapping[str, Powers], d: Tensor, p: float) -> None:
        self.orbit, self.powers = orbit, powers
        logs = orbit.by_axis(orbit.logs(d))
        self.weights = {n: e.weights(orbit.part(n, logs)) for n, e in powers.items()}
        sums: Logs = {
            (name, dim): powers[name].sums(dim, self.weights[name])
            for name, dims in orbit.dims.items()
            for dim in dims
        }
        # Every slice of one dimension once: all numbers of a parameter.
        total = sum(float(sums[name, dims[0]].sum()) for name, dims in orbit.dims.items())
        self.value = total / p if math.isfinite(total) else math.inf
        self.sums = orbit.joined(sums)
        self.pull = orbit.gather(self.sums)

    def hessian(self, v: Tensor, p: float) -> Tensor:
        """Aᵀ(p E (Av)): the Hessian times a vector."""
        logs = self.orbit.by_axis(self.orbit.logs(v))
        sums: Logs = {}
        for name, dims in self.orbit.dims.items():
            u = self.orbit.part(name, logs)
            for dim in dims:
                sums[name, dim] = self.powers[name].along(dim, self.weights[name], u)
        return p * self.orbit.gather(self.orbit.joined(sums))


def _newton_step(point: _Point, gradient: Tensor, p: float) -> Tensor:
    """−H⁻¹ times the gradient, by preconditioned conjugate gradients."""
    diagonal = p * point.orbit.gather(point.sums, power=2)
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    step = torch.zeros_like(gradient)
    residual = -gradient
    z = inverse * residual
    direction, rho = z, float(residual @ z)
    enough = 1e-16 * rho * min(1.0, rho)  # quadratic convergence
    for _ in range(min(_INNER, 4 * len(gradient) + 8)):
        if rho <= max(enough, 1e-300):
            break
        product = point.hessian(direction, p)
        curvature = float(direction @ product)
        if curvature <= 0:
            break
        step = step + (rho / curvature) * direction
        residual = residual - (rho / curvature) * product
        z = inverse * residual
        before, rho = rho, float(residual @ z)
        direction = z + (rho / before) * direction
    return step


# --- ranges ---------------------------------------------------------------------------------------


def _equalize_ranges(orbit: Orbit, weights: Mapping[str, Tensor], s: Tensor, rounds: int) -> Tensor:
    """Log-scales that equalize, for each generator, the largest magnitudes up and down.

    Of generators that only increase weights, the largest magnitude becomes 1.
    """
    magnitudes = {name: _Magnitudes(w, orbit.dims[name]) for name, w in weights.items()}
    logs = orbit.by_axis(orbit.logs(s))
    s = s.clone()
    change = math.inf
    for _ in range(rounds):
        change = 0.0
        for family in orbit.families:
            d = _equalizing(orbit, family, magnitudes, logs) / family.overlap
            s[family.start : family.start + family.size] += d
            orbit.add(logs, family, d)
            change = max(change, float(d.abs().max()))
        if change <= _SETTLED:
            return s
    if rounds == _ROUNDS and change > 1e-9:
        warnings.warn(
            f"ranges are equal to {change:.0e} relative only, after {rounds} rounds", stacklevel=4
        )
    return s


class _Magnitudes:
    """log |w| of one parameter, its maximum over the dimensions that index no slices."""

    def __init__(self, w: Tensor, dims: list[int | None]) -> None:
        self.dims = [dim for dim in dims if dim is not None]
        x = w.double().abs().log()
        rest = [d for d in range(x.ndim) if d not in self.dims]
        self.values = x.amax(rest) if rest else x

    def largest(self, dim: int | None, logs: Mapping[int | None, Tensor]) -> Tensor:
        """Largest logarithm in each slice along one dimension."""
        x = self.values
        for position in reversed(range(len(self.dims))):
            other = self.dims[position]
            if other != dim:
                shape = [-1 if d == position else 1 for d in range(x.ndim)]
                x = (x + logs[other].reshape(shape)).amax(position)
        if None in logs and dim is not None:
            x = x + logs[None]
        return x.reshape(-1) + logs[dim]


def _equalizing(
    orbit: Orbit, family: Family, magnitudes: Mapping[str, _Magnitudes], logs: Logs
) -> Tensor:
    """For each generator the d where the largest increased magnitude meets the decreased one."""
    largest: Logs = {}
    for (name, dim), _, _ in family.scaled:
        if (name, dim) not in largest:
            largest[name, dim] = magnitudes[name].largest(dim, orbit.part(name, logs))
    by_exponent: dict[float, Tensor] = {}
    for axis, exponent, index in family.scaled:
        values = largest[axis][index].amax(1)
        known = by_exponent.get(exponent)
        by_exponent[exponent] = values if known is None else torch.maximum(known, values)
    up = {a: m for a, m in by_exponent.items() if a > 0}
    down = {-a: m for a, m in by_exponent.items() if a < 0}
    if not (up and down):
        sign = 1 if up else -1
        crossings = torch.stack([-m / a for a, m in (up or down).items()])
        return (sign * crossings.amin(0)).nan_to_num(0.0, 0.0, 0.0)
    meeting = [
        torch.stack([(n - m) / (a + b) for a, m in up.items()]).amin(0) for b, n in down.items()
    ]
    return torch.stack(meeting).amax(0).nan_to_num(0.0, 0.0, 0.0)
