"""pymanopt's batch solvers, on this library's manifolds and for whole declared models.

    to_pymanopt(manifold, shape)               a pymanopt manifold, with its Hessian
    minimize(model, loss_closure, solver=…)    all weights of a model at once, as one point

The solver works on one flat vector in numpy; cost, gradient and Hessian-vector products come from
autograd through `manifoldnet.objective.Objective`. On a processor the arrays of one are the tensors
of the other, without a copy. What a step is, on which manifold, is said by the declarations.

Source: [townsend2016pymanopt]; trust regions are those of [absil2008optimization].
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pymanopt
import torch
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor, nn

from manifoldnet.geometry import Slices
from manifoldnet.interop.pymanopt_manifold import (
    Array,
    PymanoptManifold,
    to_array,
    to_pymanopt,
    to_tensor,
)
from manifoldnet.objective import Objective

__all__ = ["SOLVERS", "PymanoptManifold", "minimize", "to_pymanopt"]

SOLVERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        "trust-regions": pymanopt.optimizers.TrustRegions,
        "conjugate-gradient": pymanopt.optimizers.ConjugateGradient,
        "steepest-descent": pymanopt.optimizers.SteepestDescent,
    }
)
"""Solvers by name. The first uses Hessians.

pymanopt's two others start from random points, not from that of a model.
"""

_NEARBY, _STEP, _FITS = 1e-2, 1e-7, 1e-3


def minimize(
    model: nn.Module,
    loss_closure: Callable[[], Tensor],
    solver: str = "trust-regions",
    *,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> OptimizerResult:
    """Minimizes a loss over all trainable parameters of a model, on their manifolds.

        minimize(model, lambda: loss_fn(model(images), labels), max_iterations=50)

    Batch normalization in training mode is fine: of the whole batch, it is a function of the
    weights. Where the loss has kinks (ReLU, max-pooling) Hessians are those of the smooth piece
    around a point; trust regions work with them, and no theorem says so.

    Args:
        model: with its declarations; changed in place at the end.
        loss_closure: called without arguments, gives the loss on the whole batch, without
            `backward()`.
        solver: a key of `SOLVERS`.
        dtype: what is computed in; the model keeps its own type.
        options: of the solver: `max_iterations`, `min_gradient_norm`, `max_time`, …, and
            `verbosity` (0 is silent, 2 prints a line for each iteration).

    Returns:
        pymanopt's result. `log["iterations"]` has lists with an entry for each gradient the solver
        asked for: `time` in seconds, `cost`, `gradient_norm`, and how many costs, gradients and
        Hessian-vector products had been computed until then: `costs`, `gradients`, `hessians`.

    Raises:
        ValueError: for an unknown solver or option, and whatever is wrong with the loss
            (`manifoldnet.objective.Objective`). The model is then as it was.
        KeyboardInterrupt: when interrupted; the model has the best point so far.
    """
    made, run_options = _make_solver(solver, options)
    with Objective(model, loss_closure, dtype) as objective:
        if solver == "trust-regions":
            _check_hessians(objective)
            objective.restart()
        manifold = to_pymanopt(objective.manifold, (objective.manifold.size,), dtype)
        watch = _Watch(objective, manifold, hessians=solver == "trust-regions")
        start = to_array(objective.start.clone())
        try:
            result = made.run(watch.problem(), initial_point=start, **run_options)
        except _Flat as reached:  # solvers divide by the length of the gradient
            result = watch.result(reached.point)
        objective.keep(to_tensor(result.point))
    result.log = (result.log or {"optimizer": str(made)}) | {"iterations": watch.rows}
    _warn_if_stalled(result, dtype)
    return result


class _Flat(Exception):
    """A point where the gradient is 0."""

    def __init__(self, point: Array) -> None:
        super().__init__()
        self.point = point


class _Watch:
    """The functions that pymanopt calls, and what comes by on the way.

    Args:
        objective: what is minimized.
        manifold: where.
        hessians: whether the solver asks for Hessians.
    """

    def __init__(self, objective: Objective, manifold: PymanoptManifold, hessians: bool) -> None:
        self.objective, self.manifold, self.hessians = objective, manifold, hessians
        self.best = math.inf
        names = "time", "cost", "gradient_norm", "costs", "gradients", "hessians"
        self.rows: dict[str, list[float]] = {name: [] for name in names}
        self._began = time.perf_counter()

    def problem(self) -> Any:
        """The problem as pymanopt wants it."""
        wrap = pymanopt.function.numpy(self.manifold)
        return pymanopt.Problem(
            self.manifold,
            wrap(self.cost),
            riemannian_gradient=wrap(self.gradient),
            riemannian_hessian=wrap(self.hessian) if self.hessians else None,
        )

    def cost(self, x: Array) -> float:
        value = self.objective.cost(to_tensor(x))
        if value < self.best:
            self.best = value
            self.objective.keep(to_tensor(x))
        return value

    def gradient(self, x: Array) -> Array:
        point = to_tensor(x)
        slope = self.objective.gradient(point, differentiable=self.hessians)
        result = self.manifold.euclidean_to_riemannian_gradient(x, to_array(slope))
        calls = self.objective.calls
        row = (
            *(time.perf_counter() - self._began, self.cost(x), self.manifold.norm(x, result)),
            *(calls["cost"], calls["gradient"], calls["hessian"]),
        )
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(value)
        if self.rows["gradient_norm"][-1] == 0:
            raise _Flat(x)
        return result

    def result(self, point: Array) -> OptimizerResult:
        """That the gradient is 0 at a point."""
        return OptimizerResult(
            point=point,
            cost=self.rows["cost"][-1],
            iterations=len(self.rows["cost"]) - 1,
            stopping_criterion="Terminated - the gradient is 0.",
            time=self.rows["time"][-1],
            gradient_norm=0.0,
        )

    def hessian(self, x: Array, u: Array) -> Array:
        point, direction = to_tensor(x), to_tensor(u)
        slope = to_array(self.objective.gradient(point, differentiable=True))
        curved = to_array(self.objective.hessian(point, direction))
        return self.manifold.euclidean_to_riemannian_hessian(x, slope, curved, u)


def _make_solver(name: str, options: Mapping[str, Any]) -> tuple[Optimizer, dict[str, Any]]:
    """A solver with its options, and those of its `run`."""
    if name not in SOLVERS:
        raise ValueError(f"there is no solver {name!r}; there are {', '.join(SOLVERS)}")
    kind = SOLVERS[name]
    plain = {"self", "args", "kwargs", "problem", "initial_point", "log_verbosity"}
    of_run = set(inspect.signature(kind.run).parameters) - plain
    both = (*inspect.signature(kind.__init__).parameters, *inspect.signature(Optimizer).parameters)
    of_solver = set(both) - plain
    unknown = sorted(set(options) - of_run - of_solver)
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(of_run | of_solver))}"
        )
    made = kind(**{key: value for key, value in options.items() if key in of_solver})
    return made, {key: value for key, value in options.items() if key in of_run - of_solver}


def _check_hessians(objective: Objective) -> None:
    """That manifolds and loss have second derivatives, before anything is done with them."""
    parts = objective.manifold.split(objective.start)
    for name, (manifold, _), x in zip(
        objective.names, objective.manifold.factors, parts, strict=True
    ):
        try:
            manifold.ehess2rhess(x, x, x, torch.zeros_like(x))
        except NotImplementedError as error:
            raise ValueError(f"{name} is on {manifold}: {error}") from error
    if objective.start.dtype == torch.float64 and all(
        _misfit(objective, seed) > _FITS for seed in range(2)
    ):
        raise ValueError(
            "the second derivatives of autograd do not fit its first ones, so the loss cannot be "
            "differentiated twice: some layer's derivative is its own and has none, or computes in "
            "float32. Use a solver that needs no Hessian, such as conjugate-gradient"
        )


def _misfit(objective: Objective, seed: int) -> float:
    """How far a Hessian times a vector is from a difference of gradients, relatively.

    Not at the start itself, where biases of 0 may put a whole layer on the kink of its ReLU, but
    nearby, and with a step so short that it hardly ever meets another one.
    """
    generator = torch.Generator().manual_seed(seed)
    x = objective.start + _NEARBY * _around(objective, generator)
    u = _STEP * _around(objective, generator)
    difference = (objective.gradient(x + u) - objective.gradient(x - u)) / 2
    product = objective.hessian(x, u)
    size = max(float(difference.norm()), float(product.norm()))
    rounding = torch.finfo(x.dtype).eps * float(objective.gradient(x).norm())
    return float((difference - product).norm()) / size if size > rounding / _FITS else 0.0


def _around(objective: Objective, generator: torch.Generator) -> Tensor:
    """A random vector whose slices are as long as those of the start (1 where those are 0)."""
    parts = []
    for (manifold, _), x in zip(
        objective.manifold.factors, objective.manifold.split(objective.start), strict=True
    ):
        slices: Slices = getattr(manifold, "slices", Slices(None))
        if slices.dim == "elements":
            slices = Slices(None)
        size = slices.norm(x) / slices.size(x.shape) ** 0.5
        random = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        parts.append(torch.where(size > 0, size, 1.0) * random)
    return objective.manifold.join(parts)


def _warn_if_stalled(result: OptimizerResult, dtype: torch.dtype) -> None:
    costs = result.log["iterations"]["cost"]
    still = len(costs) > 3 and costs[-1] >= costs[len(costs) // 2]
    reached = "grad" in result.stopping_criterion
    if (
        dtype == torch.float32
        and not reached
        and (still or "step_size" in result.stopping_criterion)
    ):
        warnings.warn(
            f"the solver stalled at a gradient norm of {result.gradient_norm:.2g}: in float32 "
            "costs are too coarse to go on. Ask for dtype=torch.float64",
            stacklevel=3,
        )
