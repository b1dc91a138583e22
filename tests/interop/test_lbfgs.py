"""L-BFGS on manifolds, and every solver in the moving frame: formulas, invariance, bad input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pymanopt
import pytest
import torch
from cases import MANIFOLDS, POLAR, few, over, point, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.interop import lbfgs
from manifoldnet.interop.lbfgs import LBFGS, Pair, descent_direction, line_search
from manifoldnet.interop.pymanopt import (
    SOLVERS,
    MovingFrameManifold,
    minimize,
    to_array,
    to_pymanopt,
    to_tensor,
)
from manifoldnet.objective import Objective
from manifoldnet.symmetry import ScalingGroup, reparameterize, without_eps
from manifoldnet.symmetry.balance import weights_of
from manifoldnet.symmetry.orbit import Orbit
from tests.symmetry.nets import NETS

QUIET = {"verbosity": 0}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The formulas


@pytest.mark.parametrize("pairs", [1, 4])
def test_a_direction_is_that_of_the_matrix_of_bfgs(pairs: int) -> None:
    """H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ from γ I, γ = ⟨s, y⟩/⟨y, y⟩ of the last pair."""
    a = random(6, 6)
    a = a @ a.T + torch.eye(6, dtype=torch.float64)
    steps = [random(6, seed=i + 1) for i in range(pairs)]
    y = a @ steps[-1]
    h = (steps[-1] @ y) / (y @ y) * torch.eye(6, dtype=torch.float64)
    for s in steps:
        y = a @ s
        rho = 1 / (s @ y)
        off = torch.eye(6, dtype=torch.float64) - rho * torch.outer(s, y)
        h = off @ h @ off.T + rho * torch.outer(s, s)
    g = random(6, seed=9)
    useless = Pair(np.ones(6), -np.ones(6))  # ⟨s, y⟩ < 0
    known = [useless, *(Pair(s.numpy(), (a @ s).numpy()) for s in steps)]
    direction = descent_direction(pymanopt.manifolds.Euclidean(6), None, g.numpy(), known)
    np.testing.assert_allclose(direction, -(h @ g).numpy(), rtol=1e-12, atol=1e-13)


@over(row for row in MANIFOLDS if row not in POLAR)  # whose metric has no frame of slices
@few
@given(seed=seeds)
def test_a_direction_is_that_of_coordinates_in_which_the_metric_is_the_dot_product(
    manifold: mn.Manifold, shape: tuple[int, ...], seed: int
) -> None:
    adapted = to_pymanopt(manifold, shape)
    x = point(manifold, shape, seed)
    frame = manifold.frame(x) if "metric" in vars(manifold) else mn.geometry.Frame()
    vectors = [manifold.proju(x, random(*shape, seed=seed + i)) for i in range(4)]
    s, y, g, other = (to_array(v) for v in vectors)
    y = y if adapted.inner_product(x.numpy(), s, y) > 0 else -y
    found = descent_direction(adapted, x.numpy(), g, [Pair(s, y)])
    inside = [to_array(frame.enter(to_tensor(v)).flatten()) for v in (g, s, y)]
    flat = pymanopt.manifolds.Euclidean(x.numel())
    expected = descent_direction(flat, None, inside[0], [Pair(*inside[1:])])
    assert expected @ to_array(frame.enter(to_tensor(other)).flatten()) == pytest.approx(
        adapted.inner_product(x.numpy(), found, other), rel=1e-9, abs=1e-12
    )


def along(value, slope):
    """A problem on the line, whose points are arrays of one number."""
    manifold = pymanopt.manifolds.Euclidean(1)
    return SimpleNamespace(
        manifold=manifold,
        cost=lambda x: value(float(x[0])),
        riemannian_gradient=lambda x: np.array([slope(float(x[0]))]),
    )


@pytest.mark.parametrize(
    ("value", "slope"),
    [
        (lambda x: (x - 1e-3) ** 2, lambda x: 2 * (x - 1e-3)),  # the first trial is too long
        (lambda x: (x - 900) ** 2, lambda x: 2 * (x - 900)),  # and here too short
        (lambda x: abs(x - 0.3) - x / 5, lambda x: math.copysign(1, x - 0.3) - 0.2),
        (lambda x: math.inf if x > 0.1 else -x + x**2, lambda x: 2 * x - 1),
    ],
)
def test_a_line_search_lowers_cost_and_slope(value, slope) -> None:
    problem = along(value, slope)
    x, d = np.zeros(1), np.array([1.0])
    gradient = problem.riemannian_gradient(x)
    trials, found = line_search(problem, x, problem.cost(x), gradient, d)
    assert found is not None
    assert trials < 40
    assert found.cost == value(found.t) <= value(0) + 1e-4 * found.t * slope(0)
    assert found.gradient[0] >= 0.9 * slope(0) or value(found.t + 0.1) == math.inf


def test_a_line_search_without_a_descent_ends() -> None:
    problem = along(lambda x: abs(x), lambda x: 1.0)
    for d in (1.0, 0.0, math.nan):
        trials = line_search(problem, np.zeros(1), 0.0, np.ones(1), np.array([d]))
        assert trials == (0, None)
    trials, found = line_search(problem, np.zeros(1), 0.0, np.ones(1), -np.ones(1))
    assert (trials, found) == (40, None)  # the slope does not belong to the cost


def test_curvature_is_learned() -> None:
    """A quadratic of condition 1e4 in 20 dimensions, which the gradient alone does not solve."""
    scales = torch.logspace(0, 4, 20, dtype=torch.float64)
    costs = {}
    model = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    for solver in ("lbfgs", "steepest-descent"):
        nn.init.ones_(model.weight)
        loss = lambda: 0.5 * (scales * model.weight.square()).sum()  # noqa: E731
        costs[solver] = minimize(model, loss, solver, max_passes=300, **QUIET).cost
    assert costs["lbfgs"] < 0.1 < 10 < costs["steepest-descent"]


def eigenvectors(calls: list[object]) -> pymanopt.Problem:
    """xᵀ diag(1, …, 5) x on the sphere; points are noted."""
    sphere = pymanopt.manifolds.Sphere(5)
    a = np.diag(np.arange(1.0, 6.0))

    def cost(x):
        calls.append(x)
        return x @ a @ x

    def gradient(x):
        return sphere.projection(x, 2 * a @ x)

    wrap = pymanopt.function.numpy(sphere)
    return pymanopt.Problem(sphere, wrap(cost), riemannian_gradient=wrap(gradient))


def test_pairs_are_transported_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, off = [], []

    def noted(manifold, x, gradient, pairs):
        sizes.append(len(pairs))
        off.extend(abs(float(x @ u)) for pair in pairs for u in pair)
        return descent_direction(manifold, x, gradient, pairs)

    monkeypatch.setattr(lbfgs, "descent_direction", noted)
    start = np.ones(5) / math.sqrt(5)
    LBFGS(memory=2, max_iterations=6, **QUIET).run(eigenvectors([]), initial_point=start)
    assert sizes == [0, 1, 2, 2, 2, 2]
    assert max(off) < 1e-14


def test_steps_lower_the_cost_and_all_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    solver = LBFGS(memory=2, max_iterations=7, min_step_size=0, log_verbosity=1)
    calls: list[object] = []
    problem = eigenvectors(calls)
    start = np.ones(5) / math.sqrt(5)
    result = solver.run(problem, initial_point=start)
    costs = result.log["iterations"]["cost"]
    assert len(costs) == result.iterations + 1 == 8
    assert costs == sorted(costs, reverse=True)
    assert result.cost_evaluations == len(calls)
    assert result.cost == costs[-1] == problem.cost(result.point)
    assert "max iterations" in result.stopping_criterion
    assert len(capsys.readouterr().out.splitlines()) >= 8
    more = LBFGS(max_cost_evaluations=4, **QUIET).run(problem, initial_point=start)
    assert "max cost evals" in more.stopping_criterion
    assert LBFGS(**QUIET).run(problem).cost == pytest.approx(1)  # from a random point


# Invariance


def smooth(factors: torch.Tensor) -> nn.Sequential:
    """A network whose filters are scaled without any effect."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, eps=1e-38), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    with torch.no_grad():
        model[0].weight *= factors[:, None]
    mn.declare(model, "0.weight", mn.ScaledEuclidean())
    return model


def costs_from(factors: torch.Tensor) -> list[float]:
    model = smooth(factors)
    images, labels = random(40, 6, seed=2), torch.arange(40) % 3
    loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
    found: list[float] = minimize(model, loss, "lbfgs", max_iterations=12, **QUIET).log[
        "iterations"
    ]["cost"]
    return found


@settings(max_examples=4, deadline=None)
@given(powers=st.lists(st.integers(-12, 12), min_size=5, max_size=5))
def test_lbfgs_does_not_see_powers_of_two(powers: list[int]) -> None:
    factors = 2.0 ** torch.tensor(powers, dtype=torch.float64)
    assert costs_from(factors) == costs_from(torch.ones(5, dtype=torch.float64))


@settings(max_examples=4, deadline=None)
@given(exponents=st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_lbfgs_does_not_see_the_scale_of_filters(exponents: list[float]) -> None:
    factors = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    own = costs_from(torch.ones(5, dtype=torch.float64))
    assert costs_from(factors) == pytest.approx(own, rel=1e-8)


FRAMED = ("relu", "arch2", "depthwise", "attention")


def prepared(name: str):
    net = NETS[name]()
    model = net.model.double()
    group = ScalingGroup.of(model, net.generators)
    given = net.given.double() if net.given.is_floating_point() else net.given
    target = net.target.double() if net.target.is_floating_point() else net.target
    return model, group, lambda m: lambda: net.loss_fn(m(given), target)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", FRAMED)
@settings(max_examples=2, deadline=None)
@given(seed=seeds)
def test_runs_in_the_moving_frame_commute_with_the_group(name: str, solver: str, seed: int) -> None:
    model, group, loss_of = prepared(name)
    element = group.sample(generator=torch.Generator().manual_seed(seed), spread=5.0)
    runs, ends = [], []
    for each in (model, reparameterize(model, element)):
        with without_eps(each):
            result = minimize(
                each, loss_of(each), solver, group=group, max_iterations=5, max_passes=60, **QUIET
            )
        runs.append(result.log["iterations"]["cost"])
        ends.append(each)
    assert runs[0][-1] < runs[0][0]
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    moved = dict(reparameterize(ends[0], element).named_parameters())
    for name_, p in ends[1].named_parameters():
        torch.testing.assert_close(
            p, moved[name_], rtol=1e-3, atol=1e-6 * float(p.detach().abs().max())
        )


def test_runs_outside_of_it_do_not() -> None:
    model, group, loss_of = prepared("relu")
    element = group.sample(generator=torch.Generator().manual_seed(0), spread=3.0)
    costs = [
        minimize(each, loss_of(each), "lbfgs", max_iterations=5, **QUIET).cost
        for each in (reparameterize(model, element), model)
    ]
    assert costs[0] != pytest.approx(costs[1], rel=1e-2)


def framed(name: str) -> tuple[MovingFrameManifold, torch.Tensor]:
    model, group, loss_of = prepared(name)
    orbit = Orbit(group)
    with Objective(model, loss_of(model)) as objective:
        manifold = MovingFrameManifold(
            *(objective.manifold, objective.names, orbit, weights_of(orbit, model), torch.float64)
        )
        return manifold, objective.start.clone()


@pytest.mark.parametrize("name", FRAMED)
def test_the_metric_of_the_moving_frame(name: str) -> None:
    manifold, start = framed(name)
    x = start.numpy()
    u, v, g = (random(len(x), seed=i).numpy() for i in range(3))
    u, v = manifold.projection(x, u), manifold.projection(x, v)
    gradient = manifold.euclidean_to_riemannian_gradient(x, g)
    assert manifold.inner_product(x, gradient, v) == pytest.approx(float(g @ v))
    q = manifold.frame(x)
    assert (q > 0).all()
    assert manifold.norm(x, u) == pytest.approx(float(np.linalg.norm(u / q)))
    y = manifold.retraction(x, 1e-2 * q * u)
    moved = [manifold.transport(x, y, w) for w in (u, v)]
    assert manifold.inner_product(y, *moved) == pytest.approx(manifold.inner_product(x, u, v))
    for refused in (
        lambda: manifold.exp(x, u),
        lambda: manifold.log(x, y),
        lambda: manifold.dist(x, y),
    ):
        with pytest.raises(NotImplementedError, match="not known"):
            refused()


def test_the_hessian_in_the_frame_is_that_along_the_retraction() -> None:
    model, group, loss_of = prepared("attention")
    orbit = Orbit(group)
    with Objective(model, loss_of(model)) as objective:
        manifold = MovingFrameManifold(
            *(objective.manifold, objective.names, orbit, weights_of(orbit, model), torch.float64)
        )
        start = objective.start + 1e-2 * random(len(objective.start))
        x = start.numpy()
        u, v = (manifold.frame(x) * random(len(x), seed=i).numpy() for i in (1, 2))
        product = manifold.euclidean_to_riemannian_hessian(
            x,
            to_array(objective.gradient(start)),
            to_array(objective.hessian(start, to_tensor(u))),
            u,
        )
        t = 1e-4

        def at(a: float, b: float) -> float:
            return objective.cost(to_tensor(manifold.retraction(x, t * (a * u + b * v))))

        mixed = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * t**2)
        assert manifold.inner_product(x, product, v) == pytest.approx(mixed, rel=1e-3)


def test_weights_that_the_group_does_not_scale_keep_their_manifolds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model = model.double()
    mn.declare(model, "4.weight", mn.Oblique(), project=True)
    model[2].bias.requires_grad_(False)
    images, labels = random(20, 4), torch.arange(20) % 2
    loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
    group = mn.symmetry.discover(model, cross_entropy, [(images, labels)]).nontrivial
    assert {w.parameter for g in group.generators for w in g.exponents} == {
        *("0.weight", "0.bias", "2.weight")
    }
    before, bias = float(loss().detach()), model[2].bias.clone()
    for solver in SOLVERS:
        minimize(model, loss, solver, group=group, max_iterations=3, **QUIET)
        mn.verify(model)
    assert float(loss().detach()) < before
    assert torch.equal(model[2].bias, bias)


# Budgets and bad input


@pytest.mark.parametrize("most", [1, 2, 25, 60])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_ends_after_so_many_passes_at_its_best_point(solver: str, most: int) -> None:
    model, _, loss_of = prepared("arch2")
    seen = []

    def loss() -> torch.Tensor:
        value = loss_of(model)()
        seen.append(float(value.detach()))
        return value

    exact = {} if solver == "trust-regions" else {"min_step_size": 0}
    result = minimize(
        model,
        loss,
        solver,
        max_passes=most,
        min_gradient_norm=0,
        max_iterations=10**6,
        **exact,
        **QUIET,
    )
    passes = int(result.stopping_criterion.rstrip(".").split()[-1])
    assert most <= passes < most + 4
    assert result.cost == min(seen)
    assert float(loss_of(model)().detach()) == pytest.approx(result.cost, rel=1e-12)
    assert math.isnan(result.gradient_norm) == (most == 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_passes": 0}, ValueError, "max_passes must be .* at least 1, not 0"),
        ({"max_passes": 1.5}, ValueError, "max_passes must be"),
        ({"memory": 0}, ValueError, "memory must be .* not 0"),
        ({"memory": 2.0}, ValueError, "memory must be"),
        ({"kwargs": 1}, ValueError, "no option kwargs; it has .*memory"),
        ({"group": "all"}, TypeError, "group must be a ScalingGroup"),
    ],
)
def test_wrong_options_are_refused(options, error, message) -> None:
    model, _, loss_of = prepared("relu")
    with pytest.raises(error, match=message):
        minimize(model, loss_of(model), "lbfgs", **options, **QUIET)


def test_groups_that_do_not_fit_are_refused() -> None:
    model, group, loss_of = prepared("relu")
    other, _, other_loss = prepared("arch2")
    with pytest.raises(ValueError, match="not one of this"):
        minimize(other, other_loss(other), "lbfgs", group=group, **QUIET)
    with pytest.raises(ValueError, match="leave it out"):
        minimize(model, loss_of(model), "lbfgs", group=group.subgroup([]), **QUIET)
    name = next(iter(group.generators[0].exponents)).parameter
    mn.declare(model, name, mn.ScaledEuclidean())
    with pytest.raises(ValueError, match=f"{name} is declared"):
        minimize(model, loss_of(model), "lbfgs", group=group, **QUIET)
