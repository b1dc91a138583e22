"""pymanopt's solvers: the adapter of manifolds, `minimize` on whole models, known optima."""

import math
import warnings

import geoopt
import numpy as np
import pymanopt
import pytest
import torch
from cases import each_geometry, few, point, refused, seeds, tangent
from hypothesis import given
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.geometry import (
    Euclidean,
    Oblique,
    ScaledEuclidean,
    Sphere,
    WrongTensorError,
    to_geoopt,
)
from manifoldnet.interop.pymanopt import SOLVERS, minimize, to_pymanopt

QUIET = {"verbosity": 0}
EXACTLY = {"min_gradient_norm": 1e-10, "min_step_size": 0, "max_iterations": 500, **QUIET}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The adapter

SAME = [
    (Sphere(), (3, 4), pymanopt.manifolds.Sphere(3, 4), np.asarray),
    (Oblique(1), (4, 5), pymanopt.manifolds.Oblique(4, 5), np.asarray),
    (Oblique(0), (5, 4), pymanopt.manifolds.Oblique(4, 5), np.transpose),
    (Euclidean(), (3, 4), pymanopt.manifolds.Euclidean(3, 4), np.asarray),
    (
        mn.from_geoopt(geoopt.EuclideanStiefel()),
        (5, 3),
        pymanopt.manifolds.Stiefel(5, 3),
        np.asarray,
    ),
    (mn.Stiefel(retraction="qr"), (5, 3), pymanopt.manifolds.Stiefel(5, 3), np.asarray),
]
each_same = pytest.mark.parametrize(
    ("ours", "shape", "theirs", "layout"), SAME, ids=[str(row[0]) for row in SAME]
)


@each_same
@few
@given(seed=seeds)
def test_it_agrees_with_pymanopts_own(ours, shape, theirs, layout, seed):
    manifold = to_pymanopt(ours, shape)
    assert manifold.dim == theirs.dim
    x = point(ours, shape, seed).numpy()
    u, v = (tangent(ours, torch.from_numpy(x), seed + i, 0.5).numpy() for i in range(2))
    g, h = (random(*shape, seed=seed + i).numpy() for i in range(2))

    def close(name, *given):
        mine = getattr(manifold, name)(*given)
        other = getattr(theirs, name)(*map(layout, given))
        np.testing.assert_allclose(layout(mine), other, rtol=0, atol=1e-12)

    close("inner_product", x, u, v)
    close("norm", x, u)
    close("projection", x, g)
    close("to_tangent_space", x, g)
    close("euclidean_to_riemannian_gradient", x, g)
    close("euclidean_to_riemannian_hessian", x, g, h, u)
    close("zero_vector", x)
    if not str(ours).startswith("geoopt"):  # whose retraction is another
        assert manifold.typical_dist == pytest.approx(theirs.typical_dist)
        y = manifold.exp(x, u)
        close("retraction", x, u)
        if isinstance(ours, mn.Stiefel):  # of which no logarithm is known
            close("transport", x, manifold.retraction(x, u), v)
            return
        close("exp", x, u)
        close("log", x, y)
        close("dist", x, y)
        if theirs.__class__ is not pymanopt.manifolds.Euclidean:
            middle = manifold.pair_mean(x, y)
            assert manifold.dist(x, middle) == pytest.approx(manifold.dist(y, middle), abs=1e-12)


@each_geometry
@few
@given(seed=seeds)
def test_every_method_of_pymanopt(manifold, shape, seed):
    adapted = to_pymanopt(manifold, shape)
    x = adapted.random_point()
    assert manifold.check_point_on_manifold(torch.from_numpy(x))
    u = adapted.random_tangent_vector(x)
    assert adapted.norm(x, u) == pytest.approx(1)
    y = adapted.retraction(x, 0.1 * u)
    carried = adapted.transport(x, y, u)
    if isinstance(manifold, mn.Stiefel):  # whose vectors are projected
        assert 0.9 < adapted.norm(y, carried) <= 1
    else:
        assert adapted.norm(y, carried) == pytest.approx(1)
    np.testing.assert_allclose(adapted.projection(y, carried), carried, atol=1e-12)
    assert adapted.dim == manifold.dimension(shape) > 0
    assert 0 < adapted.typical_dist < math.inf
    assert str(manifold) in str(adapted)


def test_typical_distances_of_a_product_add_up_and_do_not_see_scales():
    product = mn.Product([(Oblique(radius=2.0), (3, 4)), (ScaledEuclidean(1), (2, 5))])
    expected = math.hypot(2 * math.pi * math.sqrt(3), math.pi * math.sqrt(5))
    assert to_pymanopt(product, (22,)).typical_dist == pytest.approx(expected)


@pytest.mark.parametrize(
    ("manifold", "shape", "expected"),
    [
        (Sphere(2.0), (3, 4), 2 * math.pi),
        (Oblique(radius=2.0), (3, 4), 2 * math.pi * math.sqrt(3)),
        (geoopt.Sphere(), (49,), math.pi),
        (geoopt.SphereExact(), (5, 4), math.pi * math.sqrt(5)),
        (geoopt.Scaled(geoopt.Sphere(), 3.0), (4,), 3 * math.pi),
        (geoopt.Scaled(Sphere(2.0), 3.0), (4,), 6 * math.pi),
        (geoopt.SphereProjection(k=0.25), (2, 3), 2 * math.pi * math.sqrt(2)),
        (
            geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.Sphere(), 4)),
            (7,),
            2**0.5 * math.pi,
        ),
        (
            geoopt.ProductManifold((to_geoopt(Oblique(radius=2.0), (2, 3)), (2, 3))),
            (6,),
            2 * math.pi * math.sqrt(2),
        ),
        (geoopt.Stiefel(), (5, 3), math.sqrt(3)),
        (geoopt.EuclideanStiefel(), (2, 5, 3), math.sqrt(6)),
    ],
)
def test_typical_distances_are_those_of_spheres(manifold, shape, expected):
    assert to_pymanopt(manifold, shape).typical_dist == pytest.approx(expected)


def test_typical_distances_are_pymanopts():
    for ours, shape, theirs, _ in SAME:
        assert to_pymanopt(ours, shape).typical_dist == pytest.approx(theirs.typical_dist)


def test_single_numbers_and_manifolds_of_geoopt_are_taken():
    number = to_pymanopt(Euclidean(), ())
    assert number.retraction(np.array(1.0), np.array(2.0)).shape == ()
    assert to_pymanopt(geoopt.EuclideanStiefel(), (128, 64)).dim == 128 * 64 - 64 * 65 // 2
    assert mn.Product([(geoopt.EuclideanStiefel(), (5, 3))]).dimension((15,)) == 15 - 6


def test_a_shape_without_points_is_refused():
    with refused(WrongTensorError, manifold=Oblique()):
        to_pymanopt(Oblique(), (3, 1))


# Known optima


# Line searches compare costs, and see a slope below √ε only where the cost itself vanishes at the
# optimum: hence the eigenvector of λ − xᵀSx = ‖Fx‖², and rows that have norm 1 already.


class Residual(nn.Module):
    """‖Fx‖² of a unit vector."""

    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", factor)
        self.x = mn.ManifoldParameter(Sphere().random(len(factor), dtype=torch.float64), Sphere())

    def forward(self):
        return (self.factor @ self.x).square().sum()


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_leading_eigenvector(solver):
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(random(8, 8))
    values = torch.tensor([5.0, 3, 2, 1.5, 1, 0.5, 0.2, 0.1], dtype=torch.float64)
    model = Residual((values[0] - values).sqrt()[:, None] * q.T)
    result = minimize(model, model, solver, **EXACTLY)
    assert result.gradient_norm < 1e-10
    assert abs(float(model.x.detach() @ q[:, 0])) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_least_squares_with_unit_rows(solver):
    """min ‖W − B‖² over unit rows: the rows of B, normalized."""
    torch.manual_seed(1)
    b = random(6, 4)
    if solver != "trust-regions":
        b /= b.norm(dim=1, keepdim=True)
    model = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    mn.declare(model, "weight", Oblique(), project=True)

    def loss():
        return (model.weight - b).square().sum()

    result = minimize(model, loss, solver, **EXACTLY)
    assert result.gradient_norm < 1e-10
    expected = b / b.norm(dim=1, keepdim=True)
    assert torch.allclose(model.weight.detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "stiefel", [geoopt.Stiefel(), geoopt.EuclideanStiefel(), mn.Stiefel()], ids=repr
)
def test_trust_regions_on_stiefel_find_what_pymanopts_own_find(stiefel):
    """max Σᵢ nᵢ xᵢᵀ S xᵢ over orthonormal columns: the leading eigenvectors, in order."""
    s = random(7, 7)
    s = s @ s.T
    weights = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    model = nn.Module()
    model.x = nn.Parameter(random(7, 3, seed=1))
    mn.declare(model, "x", stiefel, project=True)

    def loss():
        return -((model.x.T @ s @ model.x).diagonal() * weights).sum()

    theirs = pymanopt.manifolds.Stiefel(7, 3)

    @pymanopt.function.pytorch(theirs)
    def cost(x):
        return -((x.T @ s @ x).diagonal() * weights).sum()

    solver = pymanopt.optimizers.TrustRegions(min_gradient_norm=1e-10, **QUIET)
    start = model.x.detach().numpy().copy()
    other = solver.run(pymanopt.Problem(theirs, cost), initial_point=start)
    result = minimize(model, loss, "trust-regions", **EXACTLY)
    assert result.gradient_norm < 1e-10
    # Quadratic convergence at the end, as with a right Hessian only.
    assert len(result.log["iterations"]["cost"]) < 60
    assert result.cost == pytest.approx(other.cost, rel=1e-12)
    values, vectors = torch.linalg.eigh(s)
    assert -result.cost == pytest.approx(float(values.flip(0)[:3] @ weights), rel=1e-12)
    aligned = (model.x.detach() * vectors.flip(1)[:, :3]).sum(0).abs()
    assert torch.allclose(aligned, torch.ones_like(aligned), rtol=0, atol=1e-10)


def test_steps_of_the_canonical_metric_start_with_their_velocity():
    for manifold in (geoopt.Stiefel(), mn.Product([(geoopt.Stiefel(), (5, 3))])):
        shape = (15,) if isinstance(manifold, mn.Product) else (5, 3)
        adapted = to_pymanopt(manifold, shape)
        x = adapted.random_point()
        u = adapted.random_tangent_vector(x)
        moved = (adapted.retraction(x, 1e-5 * u) - adapted.retraction(x, -1e-5 * u)) / 2e-5
        np.testing.assert_allclose(moved, u, atol=1e-8)


# Whole models


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    ).to(dtype)
    mn.declare(model, "0.weight", Oblique(), project=True)
    mn.declare(model, "3.weight", ScaledEuclidean(1))
    return model, random(40, 6, seed=2).to(dtype), torch.arange(40) % 3


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_model_is_trained_and_all_else_is_restored(solver):
    model, images, labels = net()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    others = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    tensors = {name: (id(p), p.dtype, p.data_ptr()) for name, p in model.named_parameters()}

    def loss():
        return cross_entropy(model(images), labels)

    before = float(loss().detach())
    for name, buffer in others.items():
        model.state_dict()[name].copy_(buffer)
    result = minimize(model, loss, solver, max_iterations=20, **QUIET)
    assert result.cost < 0.7 * before
    after = model.state_dict()
    assert all(torch.equal(after[name], buffer) for name, buffer in others.items())
    assert {n: (id(p), p.dtype, p.data_ptr()) for n, p in model.named_parameters()} == tensors
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))
    assert float(loss().detach()) == pytest.approx(result.cost, rel=1e-5)
    mn.verify(model)
    rows = result.log["iterations"]
    assert len({len(column) for column in rows.values()}) == 1
    assert rows["cost"][-1] >= result.cost
    assert rows["time"] == sorted(rows["time"])
    assert (rows["hessians"][-1] > 0) == (solver == "trust-regions")
    assert rows["gradients"] == list(range(1, len(rows["cost"]) + 1)) or solver == "trust-regions"


def test_frozen_parameters_stay_and_tied_ones_are_one():
    model, images, labels = net(dtype=torch.float64)
    model[3].bias.requires_grad_(False)
    bias = model[3].bias.clone()
    twin = nn.Linear(6, 5, bias=False, dtype=torch.float64)
    twin.weight = model[0].weight
    both = nn.ModuleList([model, twin])

    def loss():
        return cross_entropy(model(images), labels) + twin(images).square().mean()

    before = float(loss().detach())
    assert minimize(both, loss, max_iterations=3, **QUIET).cost < before
    assert torch.equal(model[3].bias, bias)
    assert twin.weight is model[0].weight


@pytest.mark.parametrize("power", [-10, 3, 10])
def test_trust_regions_do_not_see_the_scale_of_weights(power):
    """Filters before batch normalization, times a power of two: the same costs, bit for bit."""

    def costs(scale):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, eps=1e-38), nn.Tanh(), nn.Linear(5, 3)
        ).double()
        with torch.no_grad():
            model[0].weight *= scale
        mn.declare(model, "0.weight", ScaledEuclidean())
        images, labels = random(40, 6, seed=2), torch.arange(40) % 3
        loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
        return minimize(model, loss, max_iterations=12, **QUIET).log["iterations"]["cost"]

    assert costs(2.0**power) == costs(1.0)


# Bad input


def test_an_interrupt_leaves_the_best_point_so_far():
    model, images, labels = net(dtype=torch.float64)
    seen = []

    def loss():
        value = cross_entropy(model(images), labels)
        seen.append(float(value.detach()))
        if len(seen) == 15:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        minimize(model, loss, "conjugate-gradient", **QUIET)
    assert float(cross_entropy(model(images), labels).detach()) == pytest.approx(min(seen[:-1]))
    assert min(seen[:-1]) < seen[0]


def test_an_error_leaves_the_model_as_it_was():
    model, images, labels = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("out of something")
        return cross_entropy(model(images), labels)

    with pytest.raises(RuntimeError, match="something"):
        minimize(model, loss, **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_pre_hooks


def broken(change):
    model, images, labels = net()
    return change(model, images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: lambda: cross_entropy(m(x), y, reduction="none"), "one real number"),
        (lambda m, x, y: lambda: cross_entropy(m(x), y).item(), "not float"),
        (lambda m, x, y: lambda: cross_entropy(m(x), y).detach(), "not differentiable"),
        (lambda m, x, y: lambda: cross_entropy(m(x), y) * math.nan, "nan at the start"),
        (lambda m, x, y: lambda: m[3].weight.square().sum(), "0.weight, 1.weight"),
        (lambda m, x, y: lambda: m(torch.randn_like(x)).square().sum(), "the same weights"),
        (lambda m, x, y: lambda: backward(cross_entropy(m(x), y)), r"calls backward\(\)"),
        (lambda m, x, y: lambda: (m(x)[:, 0] - 3).sqrt().sum(), "nan"),
        (lambda m, x, y: lambda: m(x).sum() + at_a_kink(m[3].bias), "gradient is not finite"),
        (lambda m, x, y: lambda: cross_entropy(m(x), y, weight=torch.ones(3)), "class weights"),
        (lambda m, x, y: lambda: cross_entropy(m(x).float(), y), "torch.float32"),
    ],
)
def test_a_loss_that_is_no_function_of_the_weights_is_refused(change, message):
    model, images, labels = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    closure = change(model, images, labels)
    with pytest.raises(ValueError, match=message):
        minimize(model, closure, **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def at_a_kink(bias):
    return (bias - bias.detach()).abs().sqrt().sum()


def backward(loss):
    loss.backward(retain_graph=True)
    return loss


def test_random_batches_are_refused_though_their_losses_agree():
    model, images, labels = net()
    mn.undeclare(model, "3.weight")  # on which no column may be 0
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    with pytest.raises(ValueError, match="function of the weights"):
        minimize(model, lambda: cross_entropy(model(images), labels.roll(some_number())), **QUIET)


def some_number(numbers=iter(range(10**6))):  # noqa: B008, the next one at every call
    return next(numbers)


def lend(values):
    return nn.Parameter(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m[3], "bias", lend(torch.ones(3) + 1j)), "3.bias .*complex"),
        (lambda m: setattr(m[3], "bias", lend(torch.zeros(1).expand(3))), "3.bias has entries"),
        (lambda m: setattr(m[3], "bias", lend(m[1].bias.data[:3])), "3.bias and 1.bias"),
        (lambda m: m[3].bias.register_hook(lambda g: g.clamp(-1, 1)), "3.bias .*hook"),
    ],
)
def test_parameters_that_cannot_be_part_of_a_vector_are_refused(change, message):
    model, images, labels = net()
    change(model)
    with pytest.raises(ValueError, match=message):
        minimize(model, lambda: cross_entropy(model(images), labels), **QUIET)


def test_views_that_do_not_overlap_are_parameters_like_any_other():
    model, images, labels = net()
    memory = torch.zeros(8)
    model[1].bias, model[3].bias = nn.Parameter(memory[:5]), nn.Parameter(memory[5:])
    minimize(model, lambda: cross_entropy(model(images), labels), max_iterations=2, **QUIET)
    assert memory.abs().min() > 0


def test_trust_regions_start_at_kinks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.zeros_(model[0].bias)
    images = random(40, 6, seed=2).float()
    images[0] = 0  # all of the layer is on its kink for this one
    labels = torch.arange(40) % 3
    loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
    assert minimize(model, loss, max_iterations=10, **QUIET).cost < 1.1


def test_trust_regions_start_with_filters_of_all_sizes():
    model, images, labels = net()
    mn.undeclare(model, "0.weight")
    with torch.no_grad():
        model[0].weight *= 10 ** torch.tensor([[4.0], [2.0], [0.0], [-2.0], [-4.0]])
    mn.declare(model, "0.weight", ScaledEuclidean())
    with mn.symmetry.without_eps(model):
        minimize(model, lambda: cross_entropy(model(images), labels), max_iterations=3, **QUIET)


class Square(nn.Module):
    """relu(w)², which one step may bring to exactly 0."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start], dtype=torch.float64))

    def forward(self):
        return self.w.relu().square().sum() + 0 * self.w.sum()


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("start", [2.0, -1.0])
def test_solvers_stop_at_a_gradient_of_zero(solver, start):
    model = Square(start)
    result = minimize(model, model, solver, max_iterations=50, **QUIET)
    assert result.gradient_norm < 1e-5
    assert float(model().detach()) == result.cost < 1e-10


def test_dropout_is_refused_and_allowed_when_it_is_off():
    model, images, labels = net()
    model.append(nn.Dropout(0.5))
    loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        minimize(model, loss, **QUIET)
    model[4].eval()
    minimize(model, loss, max_iterations=1, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "newton"}, "'newton'; there are 'trust-regions'"),
        ({"max_iter": 3}, "max_iter; it has .*max_iterations"),
        ({"log_verbosity": 1}, "log_verbosity"),
        ({"dtype": torch.bfloat16}, "dtype"),
    ],
)
def test_unknown_solvers_and_options_are_refused(arguments, message):
    model, images, labels = net()
    with pytest.raises(ValueError, match=message):
        minimize(model, lambda: cross_entropy(model(images), labels), **arguments)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="ReLU"):
        minimize(nn.ReLU(), lambda: torch.ones(()))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("model", [nn.Linear(2, 2)]),
        ("loss_closure", "loss"),
        ("solver", 3),
        ("solver", ["trust-regions"]),
        ("dtype", "float64"),
    ],
)
def test_arguments_of_a_wrong_type(name, wrong):
    model, images, labels = net()
    given = {"model": model, "loss_closure": lambda: cross_entropy(model(images), labels)}
    with pytest.raises(TypeError, match=f"^{name} must be .* not "):
        minimize(**(given | {name: wrong}))


def test_weights_off_their_manifold_are_refused():
    model, images, labels = net()
    with torch.no_grad():
        model[0].weight *= 2
    with pytest.raises(ValueError, match="0.weight"):
        minimize(model, lambda: cross_entropy(model(images), labels), **QUIET)


def test_a_manifold_without_hessian_is_refused_by_trust_regions_alone():
    model = nn.Linear(3, 5, bias=False, dtype=torch.float64)
    mn.declare(model, "weight", mn.from_geoopt(geoopt.PoincareBall()), project=True)
    b = random(5, 3)
    loss = lambda: (model.weight - b).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="weight .*no Hessian"):
        minimize(model, loss, **QUIET)
    for solver in ("steepest-descent", "conjugate-gradient"):
        before = float(loss().detach())
        assert minimize(model, loss, solver, max_iterations=5, **QUIET).cost < before


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_a_layer_without_second_derivative_is_refused_by_trust_regions_alone():
    model, images, _ = net()
    loss = lambda: Once.apply(model(images)).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match="twice"):
        minimize(model, loss, **QUIET)
    minimize(model, loss, "conjugate-gradient", max_iterations=2, **QUIET)


@pytest.mark.thorough
def test_float32_that_stalls_warns():
    model, images, labels = net()
    loss = lambda: cross_entropy(model(images), labels)  # noqa: E731
    options = {"max_iterations": 3000, "min_gradient_norm": 1e-12, **QUIET}
    with pytest.warns(UserWarning, match=r"stalled at a gradient norm .* dtype=torch.float64"):
        minimize(model, loss, "conjugate-gradient", dtype=torch.float32, **options)
    with pytest.warns(UserWarning, match="stalled at a gradient norm"):
        minimize(model, loss, dtype=torch.float32, **(options | {"max_iterations": 150}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimize(model, loss, "conjugate-gradient", max_iterations=2, **QUIET)


def test_progress_is_shown(capsys):
    model, images, labels = net()
    minimize(model, lambda: cross_entropy(model(images), labels), max_iterations=2)
    assert "f: +" in capsys.readouterr().out


@pytest.mark.parametrize(
    "written", ["conjugate gradients", "conjugate-gradients", "Trust_Regions", "L-BFGS"]
)
def test_a_solver_as_it_is_written_elsewhere(written: str) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    minimize(model, lambda: model.weight.square().sum(), written, max_iterations=1, verbosity=0)
    with pytest.raises(
        ValueError, match="there are 'trust-regions', 'conjugate-gradient', 'lbfgs', 'steep"
    ):
        minimize(model, lambda: model.weight.square().sum(), "nelder-mead")
