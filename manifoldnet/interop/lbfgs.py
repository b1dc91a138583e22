"""Limited-memory BFGS on a manifold, as a solver of pymanopt.

With the last pairs (s, y) of steps and differences of gradients, transported to the point x,

    d = −H grad f(x)                  H by the two-loop recursion, in the metric at x
    x⁺ = R_x(t d)                     t by a line search; t = 1 is tried first
    s = T(t d),  y = grad f(x⁺) − T(grad f(x))

where T is the transport from x to x⁺. On a Euclidean space it is the usual L-BFGS. Points enter by
the metric, the retraction and the transport alone, so that a run commutes with every isometry that
these commute with: under the scaled metric, with the scaling of slices.

Source: [huang2015broyden]; the line search is that of [lewis2013nonsmooth].
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from pymanopt.tools import printer

__all__ = ["LBFGS"]

# Conditions of Wolfe: the share of the slope that costs must fall by, and that slopes may keep.
_DECREASE, _CURVATURE = 1e-4, 0.9
# Trials of a line search.
_TRIALS = 40
# The cosine of s and y above which a pair is kept.
_CONVEX = 1e-12


class Pair(NamedTuple):
    """A step and the difference of the gradients at its ends, as tangent vectors at one point."""

    s: Any
    y: Any


class Trial(NamedTuple):
    """A point along a direction d.

    Attributes:
        t: the step is t d.
        point: its end.
        cost: there.
        gradient: the Riemannian gradient there.
        direction: d, transported there.
    """

    t: float
    point: Any
    cost: float
    gradient: Any
    direction: Any


# pymanopt carries no types, so its classes are Any to the type checker.
class LBFGS(Optimizer):  # type: ignore[misc]
    """Riemannian L-BFGS.

    Conditions of Wolfe hold for slopes along transported directions, so that ⟨s, y⟩ > 0 where the
    transport is isometric. A pair without that is left out.

    Args:
        memory: number of pairs.
        kwargs: options of all solvers of pymanopt: `max_iterations`, `min_gradient_norm`, …

    Raises:
        ValueError: if `memory` is no number of pairs.
    """

    def __init__(self, memory: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(memory, int) or memory < 1:
            raise ValueError(f"memory must be a number of pairs, at least 1, not {memory!r}")
        self.memory = memory

    def run(self, problem: Any, *, initial_point: Any = None) -> OptimizerResult:
        """Minimize the cost of a problem of pymanopt.

        Args:
            problem: with its manifold.
            initial_point: random if left out.

        Returns:
            The last point, whose cost is the lowest.
        """
        manifold = problem.manifold
        x = manifold.random_point() if initial_point is None else initial_point
        began = time.time()
        cost, gradient = problem.cost(x), problem.riemannian_gradient(x)
        pairs: deque[Pair] = deque(maxlen=self.memory)
        iteration, evaluations, step_size = 0, 1, math.inf
        table = self._table()
        self._initialize_log(optimizer_parameters={"memory": self.memory})
        while True:
            norm = manifold.norm(x, gradient)
            table.print_row([iteration, cost, norm])
            self._add_log_entry(iteration=iteration, point=x, cost=cost, gradient_norm=norm)
            reason = self._check_stopping_criterion(
                start_time=began,
                iteration=iteration,
                gradient_norm=norm,
                step_size=step_size,
                cost_evaluations=evaluations,
            )
            if reason:
                break
            d = descent_direction(manifold, x, gradient, pairs)
            trials, found = line_search(problem, x, cost, gradient, d)
            evaluations += trials
            if found is None and pairs:
                pairs.clear()  # and try the gradient
                continue
            if found is None:
                reason = "Terminated - no step along the gradient lowers the cost."
                break
            y = found.point
            for number, pair in enumerate(pairs):
                pairs[number] = Pair(*(manifold.transport(x, y, u) for u in pair))
            before = manifold.transport(x, y, gradient)
            pair = Pair(found.t * found.direction, found.gradient - before)
            step_size = manifold.norm(y, pair.s)
            if manifold.inner_product(y, *pair) > _CONVEX * step_size * manifold.norm(y, pair.y):
                pairs.append(pair)
            x, cost, gradient = y, found.cost, found.gradient
            iteration += 1
        return self._return_result(
            start_time=began,
            point=x,
            cost=cost,
            iterations=iteration,
            stopping_criterion=reason,
            cost_evaluations=evaluations,
            step_size=step_size,
            gradient_norm=norm,
        )

    def _table(self) -> Any:
        """The printer of a line for each iteration."""
        if self._verbosity < 2:
            return printer.VoidPrinter()
        width = len(str(self._max_iterations))
        columns = [("Iteration", f"{width}d"), ("Cost", "+.16e"), ("Gradient norm", ".8e")]
        table = printer.ColumnPrinter(columns=columns)
        table.print_header()
        return table


def descent_direction(manifold: Any, x: Any, gradient: Any, pairs: Iterable[Pair]) -> Any:
    """−H grad f by the two-loop recursion; without pairs, of length 1 at most.

    Args:
        manifold: of pymanopt.
        x: point.
        gradient: the Riemannian gradient there.
        pairs: tangent vectors there, the oldest first; those with ⟨s, y⟩ ≤ 0 are passed over.
    """
    inner = manifold.inner_product
    known = [(inner(x, *pair), pair) for pair in pairs]
    known = [each for each in known if each[0] > 0]
    if not known:
        return -gradient / max(1.0, manifold.norm(x, gradient))
    q, weights = gradient, []
    for curvature, (s, y) in reversed(known):
        weights.append(inner(x, s, q) / curvature)
        q = q - weights[-1] * y
    curvature, (_, y) = known[-1]
    q = curvature / inner(x, y, y) * q
    for (curvature, (s, y)), weight in zip(known, reversed(weights), strict=True):
        q = q + (weight - inner(x, y, q) / curvature) * s
    return -q


def line_search(
    problem: Any, x: Any, cost: float, gradient: Any, d: Any
) -> tuple[int, Trial | None]:
    """The number of trials, and the first that lowers both cost and slope enough.

    Args:
        problem: of pymanopt.
        x: point.
        cost: there.
        gradient: the Riemannian gradient there.
        d: direction there.

    Returns:
        If no trial lowers the slope enough, the last that lowers the cost; None if there is none.
    """
    manifold = problem.manifold
    slope = manifold.inner_product(x, gradient, d)
    low, high, t = 0.0, math.inf, 1.0
    lower = None
    trials = 0
    while -math.inf < slope < 0 and trials < _TRIALS:
        trials += 1
        y = manifold.retraction(x, t * d)
        value = problem.cost(y)
        if value <= cost + _DECREASE * t * slope:
            there, moved = problem.riemannian_gradient(y), manifold.transport(x, y, d)
            low, lower = t, Trial(t, y, value, there, moved)
            if manifold.inner_product(y, there, moved) >= _CURVATURE * slope:
                break
        else:
            high = t
        t = 2 * low if high == math.inf else (low + high) / 2
    return trials, lower
