"""pymanopt's batch solvers, on this library's manifolds and for whole declared models.

    to_pymanopt(manifold, shape)               a manifold with pymanopt's methods and arrays
    minimize(model, loss_closure, solver=…)    all weights of a model at once, as one point

The manifold of a model is the product of the manifolds of its weights. The solver works on one
vector in numpy; cost, gradient and Hessian-vector products come from autograd through
`manifoldnet.objective.Objective`. On a processor arrays and tensors share memory. With a scaling
group, the weights that it scales have the metric of its moving frame, which the group leaves
invariant.

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

import numpy as np
import pymanopt
import torch
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor, nn

from manifoldnet.geometry import Manifold, Product, Slices, from_geoopt
from manifoldnet.geometry.validation import raise_if
from manifoldnet.interop.lbfgs import LBFGS
from manifoldnet.objective import Objective
from manifoldnet.symmetry import ScalingGroup
from manifoldnet.symmetry.balance import balancing_scales, weights_of
from manifoldnet.symmetry.model_check import check_model, check_undeclared
from manifoldnet.symmetry.orbit import Orbit

__all__ = [
    "LBFGS",
    "SOLVERS",
    "Array",
    "MovingFrameManifold",
    "PymanoptManifold",
    "minimize",
    "to_pymanopt",
]

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
"""A point or vector of pymanopt."""

SOLVERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        "trust-regions": pymanopt.optimizers.TrustRegions,
        "conjugate-gradient": pymanopt.optimizers.ConjugateGradient,
        "lbfgs": LBFGS,
        "steepest-descent": pymanopt.optimizers.SteepestDescent,
    }
)
"""Solvers by name; the first uses Hessians. pymanopt's two others start from random points."""

# The test of Hessians: distance from the start, step of the difference, accepted relative error.
_NEARBY, _STEP, _FITS = 1e-2, 1e-7, 1e-3


def minimize(
    model: nn.Module,
    loss_closure: Callable[[], Tensor],
    solver: str = "trust-regions",
    *,
    dtype: torch.dtype = torch.float64,
    group: ScalingGroup | None = None,
    max_passes: int | None = None,
    **options: Any,
) -> OptimizerResult:
    """Minimize a loss over all trainable parameters of a model, on their manifolds.

        minimize(model, lambda: loss_fn(model(images), labels), max_iterations=50)

    Batch normalization in training mode is allowed: on the whole batch it is a function of the
    weights. For losses with kinks (ReLU, max-pooling) Hessians are those of the smooth piece around
    a point; trust regions work with them, though without a proof of convergence.

    Args:
        model: with its declarations; changed in place at the end.
        loss_closure: called without arguments, returns the loss on the whole batch, without
            `backward()`.
        solver: a key of `SOLVERS`; "conjugate gradients", "L-BFGS" and the like are understood.
        dtype: the type of the arithmetic; the model keeps its own.
        group: scalings that leave the loss invariant, as of `manifoldnet.symmetry.discover`. The
            weights that it scales then have the metric of its moving frame, so that runs from w and
            from h·w are the same for every element h, up to rounding.
        max_passes: over the batch, after which the solver stops at its best point: a loss or a
            gradient counts as one, a Hessian-vector product as two.
        options: of the solver: `max_iterations`, `min_gradient_norm`, `max_time`, …, and
            `verbosity` (0 is silent, 2 prints a line for each iteration).

    Returns:
        pymanopt's result. `log["iterations"]` has lists with an entry for each gradient:
        `time` in seconds, `cost`, `gradient_norm`, and the numbers of costs, gradients and
        Hessian-vector products so far: `costs`, `gradients`, `hessians`.

    Raises:
        TypeError: if `model` is no module, `loss_closure` no function, `solver` no string, or
            `group` no group of scalings.
        ValueError: for an unknown solver or option, for `max_passes` below 1, for a loss that
            `manifoldnet.objective.Objective` refuses, and for a group of another model, without
            non-trivial generators, or that scales declared weights. The model is then unchanged.
        KeyboardInterrupt: when interrupted; the model has the best point so far.
    """
    solver = _known_solver(solver)
    optimizer, run_options = _make_solver(solver, options)
    if max_passes is not None and (not isinstance(max_passes, int) or max_passes < 1):
        raise ValueError(f"max_passes must be a whole number, at least 1, not {max_passes!r}")
    objective = Objective(model, loss_closure, dtype)
    manifold = _manifold_of(model, objective, group, dtype)
    with objective:
        if solver == "trust-regions":
            _check_hessians(objective)
            objective.restart()
        problem = _Problem(objective, manifold, solver == "trust-regions", max_passes or math.inf)
        start = to_array(objective.start.clone())
        try:
            result = optimizer.run(problem.of_pymanopt(), initial_point=start, **run_options)
        except _StopError as stopped:
            result = problem.result(*stopped.args)
        objective.keep(to_tensor(result.point))
    result.log = (result.log or {"optimizer": str(optimizer)}) | {"iterations": problem.rows}
    _warn_if_stalled(result, dtype)
    return result


class _StopError(Exception):
    """Raised to end a run: the point that it ends at, its cost, and the reason."""


class _Problem:
    """The functions that pymanopt calls, a row of values for each gradient, and the best point.

    Args:
        objective: the objective to minimize.
        manifold: its manifold.
        hessians: the solver uses Hessians.
        most: passes over the batch, after which the run ends.
    """

    def __init__(
        self, objective: Objective, manifold: PymanoptManifold, hessians: bool, most: float
    ) -> None:
        self.objective, self.manifold, self.hessians = objective, manifold, hessians
        self.most = most
        self.best, self.point = math.inf, to_array(objective.start.clone())
        names = "time", "cost", "gradient_norm", "costs", "gradients", "hessians"
        self.rows: dict[str, list[float]] = {name: [] for name in names}
        self._began = time.perf_counter()

    def of_pymanopt(self) -> Any:
        """The problem as an object of pymanopt."""
        wrap = pymanopt.function.numpy(self.manifold)
        return pymanopt.Problem(
            self.manifold,
            wrap(self.cost),
            riemannian_gradient=wrap(self.gradient),
            riemannian_hessian=wrap(self.hessian) if self.hessians else None,
        )

    def cost(self, x: Array) -> float:
        self.check_passes()
        value = self.objective.cost(to_tensor(x))
        if value < self.best:
            self.best, self.point = value, x.copy()
            self.objective.keep(to_tensor(x))
        return value

    def gradient(self, x: Array) -> Array:
        cost = self.cost(x)
        self.check_passes()
        gradient = self.objective.gradient(to_tensor(x), differentiable=self.hessians)
        result = self.manifold.euclidean_to_riemannian_gradient(x, to_array(gradient))
        calls = self.objective.calls
        row = (
            *(time.perf_counter() - self._began, cost, self.manifold.norm(x, result)),
            *(calls["cost"], calls["gradient"], calls["hessian"]),
        )
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(value)
        if self.rows["gradient_norm"][-1] == 0:  # solvers divide by it
            raise _StopError(x, cost, "Terminated - the gradient is 0.")
        return result

    def hessian(self, x: Array, u: Array) -> Array:
        self.check_passes()
        point, direction = to_tensor(x), to_tensor(u)
        gradient = to_array(self.objective.gradient(point, differentiable=True))
        product = to_array(self.objective.hessian(point, direction))
        return self.manifold.euclidean_to_riemannian_hessian(x, gradient, product, u)

    def check_passes(self) -> None:
        """End the run at its best point if there have been enough passes over the batch."""
        calls = self.objective.calls
        passes = calls["cost"] + calls["gradient"] + 2 * calls["hessian"]
        if passes >= self.most:
            reason = f"Terminated - max passes reached: {passes}."
            raise _StopError(self.point, self.best, reason)

    def result(self, point: Array, cost: float, reason: str) -> OptimizerResult:
        """The result of a run that ended at a point."""
        return OptimizerResult(
            point=point,
            cost=cost,
            iterations=max(0, len(self.rows["cost"]) - 1),
            stopping_criterion=reason,
            time=time.perf_counter() - self._began,
            gradient_norm=self.rows["gradient_norm"][-1] if self.rows["cost"] else math.nan,
        )


def _manifold_of(
    model: nn.Module, objective: Objective, group: ScalingGroup | None, dtype: torch.dtype
) -> PymanoptManifold:
    """The manifold of all trainable weights, in the moving frame of a group if there is one."""
    product = objective.manifold
    if group is None:
        return to_pymanopt(product, (product.size,), dtype)
    check_model(model, group)
    orbit = Orbit(group, torch.device("cpu"))
    if not orbit.dimension:
        raise ValueError("the group has no generator that changes weights: leave it out")
    check_undeclared(model, orbit)
    weights = {name: w.cpu() for name, w in weights_of(orbit, model).items()}
    return MovingFrameManifold(product, objective.names, orbit, weights, dtype)


def _known_solver(name: str) -> str:
    """The key of `SOLVERS` for a name that may also be written "conjugate gradients"."""
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name such as 'trust-regions', not {name!r}")
    written = _letters(name)
    for key in SOLVERS:
        if _letters(key) == written:
            return key
    raise ValueError(f"there is no solver {name!r}; there are {', '.join(map(repr, SOLVERS))}")


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name.lower())).rstrip("s")


def _make_solver(name: str, options: Mapping[str, Any]) -> tuple[Optimizer, dict[str, Any]]:
    """A solver made with its options, and the options of its `run`."""
    solver = SOLVERS[name]
    plain = {"self", "args", "kwargs", "problem", "initial_point", "log_verbosity"}
    of_run = set(inspect.signature(solver.run).parameters) - plain
    both = (
        *inspect.signature(solver.__init__).parameters,
        *inspect.signature(Optimizer).parameters,
    )
    of_solver = set(both) - plain
    unknown = sorted(set(options) - of_run - of_solver)
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(of_run | of_solver))}"
        )
    made = solver(**{key: value for key, value in options.items() if key in of_solver})
    return made, {key: value for key, value in options.items() if key in of_run - of_solver}


def _check_hessians(objective: Objective) -> None:
    """Raise ValueError unless the manifolds and the loss have second derivatives."""
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
            "differentiated twice: the derivative of some layer is a function of its own that has "
            "none, or computes in float32. Use a solver that needs no Hessian, such as "
            "'conjugate-gradient'"
        )


def _misfit(objective: Objective, seed: int) -> float:
    """The relative difference of a Hessian-vector product and a difference of gradients.

    It is computed near the start: at the start, biases of 0 may put a whole layer on the kink of
    its ReLU. The step is so short that it rarely crosses another kink.
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
    """A random vector whose slices have the lengths of those of the start (1 where those are 0)."""
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


# --- manifolds ------------------------------------------------------------------------------------


def to_pymanopt(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> PymanoptManifold:
    """A manifold of this library (or of geoopt, adapted) for pymanopt's solvers.

    Args:
        manifold: any; its retraction is the solver's (that of geoopt's canonical Stiefel manifold,
            whose steps are too long, is replaced by the projection).
        shape: of its points, which are numpy arrays.
        dtype: of random points.

    Raises:
        ValueError: if no tensor of that shape is a point.
    """
    manifold = from_geoopt(manifold).with_true_steps()
    raise_if(manifold.validate(torch.empty(shape, dtype=dtype, device="meta")))
    return PymanoptManifold(manifold, tuple(shape), dtype)


# pymanopt carries no types, so its classes are Any to the type checker.
class PymanoptManifold(pymanopt.manifolds.manifold.Manifold):  # type: ignore[misc]
    """A manifold with pymanopt's methods and arrays; made by `to_pymanopt`."""

    def __init__(self, manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(f"{manifold} of shape {shape}", manifold.dimension(shape))
        self.manifold, self.shape, self.dtype = manifold, shape, dtype

    @property
    def typical_dist(self) -> float:
        """The largest radius of a trust region."""
        return self.manifold.typical_dist(self.shape)

    def inner_product(
        self, point: Array, tangent_vector_a: Array, tangent_vector_b: Array
    ) -> float:
        """⟨u, v⟩ₓ."""
        return float(self._call("inner", point, tangent_vector_a, tangent_vector_b))

    def norm(self, point: Array, tangent_vector: Array) -> float:
        """√⟨u, u⟩ₓ."""
        return float(self._call("norm", point, tangent_vector))

    def dist(self, point_a: Array, point_b: Array) -> float:
        """The length of the shortest geodesic."""
        return float(self._call("dist", point_a, point_b))

    def projection(self, point: Array, vector: Array) -> Array:
        """The nearest tangent vector."""
        return self._array("proju", point, vector)

    def to_tangent_space(self, point: Array, vector: Array) -> Array:
        """The nearest tangent vector."""
        return self._array("proju", point, vector)

    def euclidean_to_riemannian_gradient(self, point: Array, euclidean_gradient: Array) -> Array:
        """The Riemannian gradient."""
        return self._array("egrad2rgrad", point, euclidean_gradient)

    def euclidean_to_riemannian_hessian(
        self,
        point: Array,
        euclidean_gradient: Array,
        euclidean_hessian: Array,
        tangent_vector: Array,
    ) -> Array:
        """The Riemannian Hessian: the covariant derivative of the gradient along a vector."""
        given = point, euclidean_gradient, euclidean_hessian, tangent_vector
        return self._array("ehess2rhess", *given)

    def retraction(self, point: Array, tangent_vector: Array) -> Array:
        """The manifold's own retraction."""
        return self._array("retr", point, tangent_vector)

    def exp(self, point: Array, tangent_vector: Array) -> Array:
        """The exponential map."""
        return self._array("expmap", point, tangent_vector)

    def log(self, point_a: Array, point_b: Array) -> Array:
        """The logarithm."""
        return self._array("logmap", point_a, point_b)

    def transport(self, point_a: Array, point_b: Array, tangent_vector_a: Array) -> Array:
        """Parallel transport along the shortest geodesic; where there is none, a projection."""
        try:
            return self._array("transp", point_a, point_b, tangent_vector_a)
        except NotImplementedError:  # some of geoopt's manifolds
            return self._array("proju", point_b, tangent_vector_a)

    def pair_mean(self, point_a: Array, point_b: Array) -> Array:
        """The midpoint of the shortest geodesic."""
        return self.exp(point_a, 0.5 * self.log(point_a, point_b))

    def random_point(self) -> Array:
        """A random point, from torch's default generator."""
        return to_array(self.manifold.random(self.shape, dtype=self.dtype))

    def random_tangent_vector(self, point: Array) -> Array:
        """A random tangent vector of length 1."""
        u = to_array(self.manifold.random_tangent(to_tensor(point)))
        return u / self.norm(point, u)

    def zero_vector(self, point: Array) -> Array:
        """0."""
        return np.zeros_like(point)

    def _call(self, name: str, *arrays: Array) -> Tensor:
        with torch.no_grad():
            result: Tensor = getattr(self.manifold, name)(*map(to_tensor, arrays))
        return result

    def _array(self, name: str, *arrays: Array) -> Array:
        return to_array(self._call(name, *arrays))


class MovingFrameManifold(PymanoptManifold):
    """The weights of a model in the moving frame of a scaling group.

    The frame q(x) = e^{−As*(x)} of the balanced representative is a positive factor for each number
    (`manifoldnet.symmetry.balance`), and q(h·x) = h q(x) for every element h of the group. On the
    numbers that the group scales, the metric is Σ uv/q², its gradient q² g, the retraction x + u.
    Vectors are transported with their coordinates u/q, and lengths are kept. All of these commute
    with the group. Other numbers are those of their manifolds: q = 1.

    The Hessian is that of the cost along the retraction, q² times the Euclidean one, as trust
    regions need it; it is not the covariant derivative of the gradient. Geodesics are not known.

    Args:
        product: of the manifolds of the trainable weights.
        names: of these weights.
        orbit: of the group.
        weights: all that it scales, by name; those among `names` are taken from the point.
        dtype: of random points.
    """

    def __init__(
        self,
        product: Product,
        names: tuple[str, ...],
        orbit: Orbit,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(product.with_true_steps(), (product.size,), dtype)
        self.product, self.names, self.orbit, self.weights = product, names, orbit, weights
        self._known: list[tuple[Array, Array]] = []

    def frame(self, point: Array) -> Array:
        """q, one number for each number of the point.

        Raises:
            RuntimeError: if the balanced representative is not found to rounding.
        """
        for known, q in self._known:
            if np.array_equal(known, point):
                return q
        x = to_tensor(point)
        parts = dict(zip(self.names, self.product.split(x), strict=True))
        weights = {name: parts.get(name, w) for name, w in self.weights.items()}
        logs = self.orbit.by_axis(self.orbit.logs(balancing_scales(self.orbit, weights)))
        found = {name: -self.orbit.log_factors(name, logs) for name in weights}
        joined = self.product.join(
            found[name].exp().expand_as(part) if name in found else torch.ones_like(part)
            for name, part in parts.items()
        )
        q = to_array(joined.to(x))
        self._known = [(point.copy(), q), *self._known[:1]]  # both ends of a step
        return q

    def inner_product(
        self, point: Array, tangent_vector_a: Array, tangent_vector_b: Array
    ) -> float:
        """⟨u/q, v/q⟩ₓ."""
        q = self.frame(point)
        return super().inner_product(point, tangent_vector_a / q, tangent_vector_b / q)

    def norm(self, point: Array, tangent_vector: Array) -> float:
        """The length of u/q."""
        return super().norm(point, tangent_vector / self.frame(point))

    def euclidean_to_riemannian_gradient(self, point: Array, euclidean_gradient: Array) -> Array:
        """q² g."""
        q = self.frame(point)
        return q * super().euclidean_to_riemannian_gradient(point, q * euclidean_gradient)

    def euclidean_to_riemannian_hessian(
        self,
        point: Array,
        euclidean_gradient: Array,
        euclidean_hessian: Array,
        tangent_vector: Array,
    ) -> Array:
        """q² times the Euclidean one."""
        given = point, euclidean_gradient, euclidean_hessian, tangent_vector
        return self.frame(point) ** 2 * super().euclidean_to_riemannian_hessian(*given)

    def transport(self, point_a: Array, point_b: Array, tangent_vector_a: Array) -> Array:
        """q(y)/q(x) u; parallel transport for numbers that the group leaves alone."""
        moved = super().transport(point_a, point_b, tangent_vector_a)
        return self.frame(point_b) / self.frame(point_a) * moved

    def exp(self, point: Array, tangent_vector: Array) -> Array:
        """The exponential map, which is not known."""
        raise NotImplementedError(f"the geodesics of {self} are not known: use retraction")

    def log(self, point_a: Array, point_b: Array) -> Array:
        """The logarithm, which is not known."""
        raise NotImplementedError(f"the geodesics of {self} are not known")

    def dist(self, point_a: Array, point_b: Array) -> float:
        """The distance, which is not known."""
        raise NotImplementedError(f"the geodesics of {self} are not known, nor is the distance")


def to_tensor(array: Array) -> Tensor:
    """The array as a tensor; copied only if it is not contiguous."""
    return torch.from_numpy(np.asarray(array, order="C"))


def to_array(tensor: Tensor) -> Array:
    """The tensor as an array on the same memory."""
    return tensor.detach().numpy()
