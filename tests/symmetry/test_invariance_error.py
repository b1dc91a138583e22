"""Errors of invariance: values by hand, any optimizer, unchanged models, invalid arguments."""

import copy
import math
import pickle

import geoopt
import pytest
import torch
from cases import source
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import manifoldnet as mn
from manifoldnet.symmetry import Deviation, ScalingElement, Slice, invariance_error

ROW = Slice("w", 0, 0)
COLUMN = Slice("v", 1, 0)


class Line(nn.Module):
    """y = v·w·x: a chain of numbers, for which everything can be worked out by hand."""

    def __init__(self, w=1.0, v=2.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[w]], dtype=torch.float64))
        self.v = nn.Parameter(torch.tensor([[v]], dtype=torch.float64))

    def forward(self, x):
        return x @ self.w.mT @ self.v.mT


def half_square(output, target):
    return (output - target).square().sum() / 2


#: x = 1, t = 5.
BATCH = (torch.ones(1, 1, dtype=torch.float64), 5 * torch.ones(1, 1, dtype=torch.float64))
#: w × 2, v ÷ 2: the loss stays.
SYMMETRY = ScalingElement({ROW: 2.0, COLUMN: 0.5})


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Net(nn.Module):
    def __init__(self, dtype=torch.float64, dropout=0.0, norm=False):
        super().__init__()
        torch.manual_seed(3)
        self.hidden = nn.Linear(5, 8, dtype=dtype)
        self.norm = nn.BatchNorm1d(8, dtype=dtype) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3, dtype=dtype)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.hidden(x)))))


def batch_of(dtype=torch.float64, seed=1, size=16):
    x = torch.randn(size, 5, generator=source(seed), dtype=torch.float64)
    return x.to(dtype), torch.arange(size) % 3


def units(*factors):
    """A symmetry of `Net`: row and bias of a unit × s, its column ÷ s."""
    return ScalingElement(
        {("hidden.weight", 0): factors, ("hidden.bias", 0): factors}
        | {("head.weight", 1): [1 / f for f in factors]}
    )


UNITS = units(2.0, 0.25, 8.0, 0.5, 16.0)
entropy = nn.CrossEntropyLoss()


def declared(model):
    mn.declare(model.hidden, "weight", mn.ScaledEuclidean(dim=0))
    mn.declare(model.head, "weight", mn.ScaledEuclidean(dim=1))
    return model


# --- numbers, by hand ---------------------------------------------------------------------------


def test_loss_by_hand():
    # y = 2, L = 9/2; w × 2 alone: y = 4, L = 1/2.
    assert invariance_error.loss(Line(), SYMMETRY, half_square, BATCH) == 0
    error = invariance_error.loss(Line(), ScalingElement({ROW: 2.0}), half_square, BATCH)
    assert error == (4.5 - 0.5) / 4.5
    assert error.where == "the loss is 4.5, and 0.5 at g·w"
    assert error.parameter == ""


def test_metric_by_hand():
    # ‖g·dw‖ = 8 ‖dw‖ in the flat metric; in the scaled one of the rows, nothing changes.
    model = Line()
    element = ScalingElement({ROW: 8.0, COLUMN: 0.5})
    error = invariance_error.metric(model, element)
    assert error == pytest.approx(7 / 8)
    assert error.parameter == "w"
    assert "w (Euclidean()): a step of length" in error.where
    assert "row 0, factor 8" in error.where
    mn.declare(model, "w", mn.ScaledEuclidean(dim=0))
    error = invariance_error.metric(model, element)
    assert error == pytest.approx(1 / 2)
    assert (error.parameter, "column 0, factor 0.5" in error.where) == ("v", True)
    mn.declare(model, "v", mn.ScaledEuclidean(dim=1))
    assert invariance_error.metric(model, element) == 0


def test_update_by_hand():
    # ∂L/∂w = v (vw − 5) = −6, ∂L/∂v = −3. A step of 0.1: w = 1.6, v = 2.3. From w = 2, v = 1, the
    # gradients are −3 and −6: w = 2.3 and v = 1.6, scaled back 1.15 and 3.2.
    error = invariance_error.update(Line(), SYMMETRY, half_square, BATCH, sgd)
    of_w, of_v = abs(1.15 - 1.6) / 0.6, abs(3.2 - 2.3) / 1.2
    assert (of_w, of_v) == (pytest.approx(0.75), pytest.approx(0.75))
    assert error == pytest.approx(0.75)
    # With one of them frozen, there is only the other.
    for name, frozen in (("w", "v"), ("v", "w")):
        model = Line()
        model.get_parameter(frozen).requires_grad_(False)
        error = invariance_error.update(model, SYMMETRY, half_square, BATCH, sgd)
        assert error == pytest.approx(0.75)
        assert error.parameter == name
        factor = "2" if name == "w" else "0.5"
        assert f"{name} is off by 0.75 relative" in error.where
        assert f"factor {factor})" in error.where


def test_update_with_the_scaled_metric_by_hand():
    # Under the scaled metric of one number, w⁺ = w − λ w² ∂L/∂w, which scales with w.
    model = Line()
    mn.declare(model, "w", mn.ScaledEuclidean(retraction="additive"))
    mn.declare(model, "v", mn.ScaledEuclidean(dim=1, retraction="additive"))
    seen = []

    def factory(model):
        seen.append(model)
        return mn.RiemannianSGD(model.parameters(), lr=0.1)

    assert invariance_error.update(model, SYMMETRY, half_square, BATCH, factory) == 0
    assert [m.w.item() for m in seen] == [pytest.approx(1.6), pytest.approx(3.2)]
    assert [m.v.item() for m in seen] == [pytest.approx(2 + 0.1 * 4 * 3), pytest.approx(1.6)]


def test_trajectory_by_hand():
    # Losses before each step: 4.5 from both; then (1.6·2.3 − 5)²/2 = 0.8712 from both as well,
    # since only w and v have changed places. After two steps they still have.
    error = invariance_error.trajectory(Line(), SYMMETRY, half_square, [BATCH], sgd, steps=2)
    w, v = 1.0, 2.0
    for _ in range(2):
        gap = v * w - 5
        w, v = w - 0.1 * v * gap, v - 0.1 * w * gap
    # w̃ = v and ṽ = w, scaled back v/2 and 2 w.
    expected = max(abs(v / 2 - w) / max(v / 2, w), abs(2 * w - v) / max(2 * w, v))
    assert error == pytest.approx(expected)
    # One step of w alone: 4.5 twice, then (1.6·2 − 5)²/2 = 1.62 and (2.3·1 − 5)²/2 = 3.645.
    model = Line()
    model.v.requires_grad_(False)
    error = invariance_error.trajectory(model, SYMMETRY, half_square, [BATCH], sgd, steps=2)
    assert error == pytest.approx((3.645 - 1.62) / 3.645)
    assert error.where == "the loss at step 1 is 1.62, and 3.645 from g·w"


def test_broken_symmetry_shows_at_step_0():
    element = ScalingElement({ROW: 2.0})
    error = invariance_error.trajectory(Line(), element, half_square, [BATCH], sgd, steps=1)
    assert error >= (4.5 - 0.5) / 4.5


def test_deviation_is_a_float_with_attributes():
    error = Deviation(0.25, "row 3", "w")
    assert error == 0.25
    assert isinstance(error, float)
    assert f"{error:.1%} {max(error, 0.1)}" == "25.0% 0.25"
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (twin, twin.where, twin.parameter) == (0.25, "row 3", "w")
    assert Deviation(1.0).where == ""


def test_the_worst_parameter_and_slice_are_named():
    # Only row 2 and column 2 are scaled by much.
    error = invariance_error.update(Net(), units(1, 1, 100.0), entropy, batch_of(), sgd)
    assert error.parameter in ("hidden.weight", "head.weight", "hidden.bias")
    assert "2, factor" in error.where
    assert error > 0.5


def test_parameters_without_factors_are_compared():
    # The classifier's bias moves with the rest of the network, though it has the factor 1.
    element = ScalingElement({("hidden.weight", 0): [3.0] * 8, ("hidden.bias", 0): [3.0] * 8})
    model = Net()
    for name in ("hidden.weight", "hidden.bias", "head.weight"):
        model.get_parameter(name).requires_grad_(False)
    error = invariance_error.update(model, element, entropy, batch_of(), sgd)
    assert error.parameter == "head.bias"
    assert error > 1e-2


# --- any optimizer ------------------------------------------------------------------------------


class OwnOptimizer:
    """An optimizer without torch's base class: no groups, no closure."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        for p in self.parameters:
            p.data -= 0.1 * p.grad


class Sharpness(torch.optim.Optimizer):
    """Steps with the gradient a little further up: needs gradients, and then a closure."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure):
        moved = []
        for p in self.param_groups[0]["params"]:
            up = 0.05 * p.grad / p.grad.norm()
            p.add_(up)
            moved.append(up)
        closure()
        for p, up in zip(self.param_groups[0]["params"], moved, strict=True):
            p.sub_(up).sub_(self.param_groups[0]["lr"] * p.grad)


class WithoutClosure(torch.optim.SGD):
    def step(self):
        super().step()


def with_schedule(model, kind=torch.optim.SGD):
    optimizer = kind(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    return optimizer


IGNORING = {
    "sgd": sgd,
    "sgd with momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "sgd with a schedule": with_schedule,
    "without a closure": lambda m: with_schedule(m, WithoutClosure),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
    "geoopt": lambda m: geoopt.optim.RiemannianSGD(m.parameters(), lr=0.1),
    "riemannian, undeclared": lambda m: mn.RiemannianSGD(m.parameters(), lr=0.1),
    "own": lambda m: OwnOptimizer(m.parameters()),
    "sharpness": lambda m: Sharpness(m.parameters()),
}


@pytest.mark.parametrize("factory", IGNORING.values(), ids=IGNORING)
def test_optimizers_that_ignore_the_symmetry(factory):
    assert invariance_error.update(Net(), UNITS, entropy, batch_of(), factory, steps=3) > 1e-2
    error = invariance_error.trajectory(Net(), UNITS, entropy, [batch_of()], factory, steps=5)
    assert error > 1e-2
    # Without a scaling the error is exactly 0.
    none = ScalingElement.identity()
    assert invariance_error.update(Net(), none, entropy, batch_of(), factory, steps=3) == 0
    assert invariance_error.trajectory(Net(), none, entropy, [batch_of()], factory, steps=5) == 0


def manifold_parameters(retraction="geodesic"):
    model = Net()
    for layer, dim in ((model.hidden, 0), (model.head, 1)):
        manifold = mn.ScaledEuclidean(dim, retraction)
        layer.weight = mn.ManifoldParameter(layer.weight.detach(), manifold)
        layer.bias.requires_grad_(False)
    return model


FOLLOWING = {
    "sgd": lambda m: mn.RiemannianSGD(mn.param_groups(m), lr=1e-2),
    "sgd with momentum": lambda m: mn.RiemannianSGD(mn.param_groups(m), lr=1e-2, momentum=0.9),
    "adam": lambda m: mn.RiemannianAdam(mn.param_groups(m), lr=1e-2),
    "geoopt sgd": lambda m: geoopt.optim.RiemannianSGD(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("retraction", ["additive", "geodesic"])
@pytest.mark.parametrize("factory", FOLLOWING.values(), ids=FOLLOWING)
def test_optimizers_that_follow_the_geometry(factory, retraction):
    model = manifold_parameters(retraction)
    assert invariance_error.update(model, UNITS, entropy, batch_of(), factory, steps=3) == 0
    # Several batches in turn, and factors that are not powers of two.
    element = units(3.0, 0.1, 700.0, 0.002, 1.7)
    batches = [batch_of(seed=seed) for seed in range(3)]
    error = invariance_error.trajectory(model, element, entropy, batches, factory, steps=20)
    assert 0 < error < 1e-9


def test_geoopts_adam_follows_single_slices_only():
    # Its second moments are entry by entry: with the metric of the whole tensor it is invariant if
    # all entries of a weight have the same factor. Adam is not.
    model = manifold_parameters()
    for layer in (model.hidden, model.head):
        mn.undeclare(layer, "weight")
        layer.weight = mn.ManifoldParameter(layer.weight.detach(), mn.ScaledEuclidean(None))

    def adam(model):
        return geoopt.optim.RiemannianAdam(model.parameters(), lr=1e-2)

    together = units(*[4.0] * 8)
    assert invariance_error.update(model, together, entropy, batch_of(), adam, steps=3) < 1e-6
    assert invariance_error.update(model, UNITS, entropy, batch_of(), adam, steps=3) > 1e-2


def test_a_noisy_optimizer_draws_the_same_noise_in_both_runs():
    class Langevin(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-3)

    def langevin(model):
        return Langevin(model.parameters(), lr=0.1)

    model, none = Net(), ScalingElement.identity()
    before = torch.get_rng_state()
    assert invariance_error.trajectory(model, none, entropy, [batch_of()], langevin, steps=3) == 0
    assert torch.equal(torch.get_rng_state(), before)


# --- nothing is changed -------------------------------------------------------------------------

MEASURES = {
    "loss": lambda m: invariance_error.loss(m, UNITS, entropy, batch_of()),
    "metric": lambda m: invariance_error.metric(m, UNITS),
    "update": lambda m: invariance_error.update(m, UNITS, entropy, batch_of(), sgd, steps=2),
    "trajectory": lambda m: invariance_error.trajectory(
        m, UNITS, entropy, DataLoader(TensorDataset(*batch_of()), 4, shuffle=True), sgd, steps=6
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_model_and_generator_are_unchanged(measure, training):
    model = declared(Net(norm=True, dropout=0.3)).train(training)
    entropy(model(batch_of()[0]), batch_of()[1]).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    manifolds = mn.manifolds(model)
    versions = [t._version for t in (*model.parameters(), *model.buffers())]
    rng = torch.get_rng_state()
    value = measure(model)
    assert all(torch.equal(v, state[name]) for name, v in model.state_dict().items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(p.grad, g) for p, g in pairs)
    assert [t._version for t in (*model.parameters(), *model.buffers())] == versions
    assert mn.manifolds(model) == manifolds
    assert all(module.training == training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    # A second measurement is equal, for any state of torch's generator.
    torch.manual_seed(99)
    assert measure(model) == value


def test_dropout_is_repeated():
    # With powers of two the error is exactly 0 only if the same units are dropped.
    model = declared(Net(dropout=0.5))
    assert invariance_error.loss(model, UNITS, entropy, batch_of()) == 0
    for bias in (model.hidden.bias, model.head.bias):
        bias.requires_grad_(False)

    def sm(model):
        return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)

    batches = [batch_of(seed=seed) for seed in range(2)]
    assert invariance_error.trajectory(model, UNITS, entropy, batches, sm, steps=10) == 0
    # Different steps drop different units.
    run = invariance_error.run(model, entropy, batches[:1], lambda m: sgd_of(m, 0.0), steps=3)
    assert len(set(run.losses)) == 3


def test_loss_is_deterministic_within_a_step():
    # A line search compares losses, which needs the same dropped units in all its calls.
    seen = []

    class Looking(torch.optim.SGD):
        def step(self, closure):
            seen.append([float(closure()) for _ in range(3)])
            super().step()

    run = invariance_error.run(
        Net(dropout=0.5), entropy, [batch_of()], lambda m: Looking(m.parameters(), lr=0.0), steps=2
    )
    assert seen == [[loss] * 3 for loss in run.losses]
    assert run.losses[0] != run.losses[1]


def sgd_of(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_tied_weights_are_measured_once_under_either_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    batch = (torch.randn(6, 4), torch.arange(6) % 4)
    found = [
        (
            invariance_error.loss(model, element, entropy, batch),
            invariance_error.metric(model, element),
            invariance_error.update(model, element, entropy, batch, sgd),
            invariance_error.trajectory(model, element, entropy, [batch], sgd, steps=2),
        )
        for element in (
            ScalingElement({Slice(name, 0, 1): 3.0}) for name in ("0.weight", "2.weight")
        )
    ]
    assert found[0] == found[1]
    assert {error.parameter for error in found[0][1:3]} == {"0.weight"}
    assert min(found[0]) > 1e-2


def test_batches_are_cycled():
    batches = [batch_of(seed=seed) for seed in range(3)]
    run = invariance_error.run(Net(), entropy, batches, sgd, steps=7)
    assert len(run.losses) == 7
    still = invariance_error.run(Net(), entropy, batches, lambda m: sgd_of(m, 0.0), steps=7)
    assert list(still.losses) == [still.losses[i % 3] for i in range(7)]
    assert len(set(still.losses)) == 3


def test_no_more_batches_are_taken_than_steps():
    def endless():
        seed = 0
        while True:
            yield batch_of(seed=seed)
            seed += 1

    none = ScalingElement.identity()
    assert invariance_error.trajectory(Net(), none, entropy, endless(), sgd, steps=3) == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_under_any_gradient_mode(context):
    with context():
        error = invariance_error.update(Net(), UNITS, entropy, batch_of(), sgd)
    assert error == invariance_error.update(Net(), UNITS, entropy, batch_of(), sgd)


def test_metrics_are_drawn_from_the_generator_given():
    model = Net()
    first, again, other = (
        invariance_error.metric(model, UNITS, generator=source(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


# --- rounding is not taken for a difference -----------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-7), (torch.float32, 1e-2)])
def test_bias_with_a_gradient_of_rounding_errors(dtype, bound):
    # Batch normalization takes the mean away: the gradient of the bias before it is rounding.
    model = Net(dtype, norm=True)
    mn.declare(model.hidden, "weight", mn.ScaledEuclidean(dim=0))
    with torch.no_grad():
        model.hidden.bias.zero_()
    model.norm.eps = 1e-38
    element = ScalingElement({("hidden.weight", 0): [3.0, 0.1, 70.0, 0.02, 1.7, 1.3, 0.4, 11.0]})

    def sm(model):
        return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)

    batch = batch_of(dtype)
    assert 0 < invariance_error.update(model, element, entropy, batch, sm) < bound
    assert invariance_error.trajectory(model, element, entropy, [batch], sm, steps=5) < bound


@pytest.mark.thorough
def test_loss_that_converges_to_zero():
    # The model fits its target: the last losses are rounding errors of about 1e-31, or 0.
    model = Line()
    for name, dim in (("w", 0), ("v", 1)):
        mn.declare(model, name, mn.ScaledEuclidean(dim))
    element = ScalingElement({ROW: 3.0, COLUMN: 1 / 3})

    def sm(model):
        return mn.RiemannianSGD(model.parameters(), lr=1e-2)

    run = invariance_error.run(model, half_square, [BATCH], sm, steps=200)
    assert run.losses[-1] < 1e-25
    error = invariance_error.trajectory(model, element, half_square, [BATCH], sm, steps=200)
    assert error < 1e-9


def test_constant_parameters_have_no_error():
    model = Net()
    model.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    element = UNITS * ScalingElement({Slice("unused", 0, 1): 3.0})
    error = invariance_error.update(model, element, entropy, batch_of(), sgd)
    assert error.parameter != "unused"


def test_large_float32_weights_are_compared_in_float64():
    # Scaled back they exceed the range of float32; the comparison is in float64.
    model = Line().float()
    batch = tuple(x.float() for x in BATCH)
    element = ScalingElement({ROW: 2.0**-60, COLUMN: 2.0**60})
    error = invariance_error.update(
        model, element, half_square, batch, lambda m: torch.optim.SGD(m.parameters(), lr=2.0**50)
    )
    assert error == pytest.approx(1, abs=1e-6)


# --- half types ---------------------------------------------------------------------------------


def test_bfloat16_models():
    model = Net(torch.bfloat16)
    for layer, dim in ((model.hidden, 0), (model.head, 1)):
        mn.declare(layer, "weight", mn.ScaledEuclidean(dim))
        layer.bias.requires_grad_(False)
    batch = batch_of(torch.bfloat16)

    def sm(model):
        return mn.RiemannianSGD(mn.param_groups(model), lr=1e-1)

    assert invariance_error.loss(model, UNITS, entropy, batch) == 0
    assert invariance_error.trajectory(model, UNITS, entropy, [batch], sm, steps=5) == 0


def test_metric_of_half_types_with_large_factors():
    model = Net(torch.float16)
    mn.declare(model.hidden, "weight", mn.ScaledEuclidean(dim=0))
    element = ScalingElement(
        {Slice("hidden.weight", 0, 1): 1e6, Slice("hidden.weight", 0, 2): 1e-6}
    )
    assert invariance_error.metric(model, element) < 1e-9


# --- refusals -----------------------------------------------------------------------------------

X, T = batch_of()
NAN = (torch.full_like(X, math.nan), T)
OTHER = ScalingElement({Slice("other.weight", 0, 1): 2.0})


def call(measure, model=None, element=UNITS, loss_fn=entropy, batch=(X, T), factory=sgd, **more):
    model = Net() if model is None else model
    if measure == "loss":
        return invariance_error.loss(model, element, loss_fn, batch)
    if measure == "metric":
        return invariance_error.metric(model, element)
    if measure == "update":
        return invariance_error.update(model, element, loss_fn, batch, factory, **more)
    more = {"steps": 3, **more}
    batches = more.pop("batches", [batch])
    return invariance_error.trajectory(model, element, loss_fn, batches, factory, **more)


STEPPING = ("update", "trajectory")
WITH_A_LOSS = ("loss", *STEPPING)
LAZY = {"model": nn.Sequential(nn.LazyLinear(3)), "element": ScalingElement({("0.weight", 0): [2]})}
INVALID = [
    (tuple(MEASURES), {"element": OTHER}, "'other.weight', which Net does not have"),
    (tuple(MEASURES), LAZY, "0.weight has no shape yet .*run the model once"),
    (WITH_A_LOSS, {"batch": NAN}, "the loss .*is nan|is not finite after 1 of"),
    (WITH_A_LOSS, {"loss_fn": nn.CrossEntropyLoss(reduction="none")}, r"not shape \(16,\)"),
    (WITH_A_LOSS, {"loss_fn": lambda output, target: 1.0}, "one real number, not float"),
    *(
        (WITH_A_LOSS, {"batch": batch}, r"a batch is a pair \(input, target\).*, not ")
        for batch in (X, (X,), (X, T, T), X[:2], None)
    ),
    *((STEPPING, {"steps": n}, f"steps is {n!r}") for n in (0, -1, 1.5, "3", None)),
    *((("trajectory",), {"batches": none}, "batches is empty") for none in ([], iter([]))),
    *(
        (STEPPING, {"factory": lambda m, made=made: made}, "a function that makes .* it gave")
        for made in (None, "sgd", torch.optim.SGD, nn.Linear(2, 2))
    ),
    (STEPPING, {"model": Net().requires_grad_(False)}, "no parameter that requires a gradient"),
    (
        STEPPING,
        {"model": Line(), "element": SYMMETRY, "loss_fn": half_square, "batch": BATCH}
        | {"factory": lambda m: sgd_of(m, 1e200), "steps": 9},
        "from the model's own weights is not finite after",
    ),
]


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [(measure, options, message) for measures, options, message in INVALID for measure in measures],
)
def test_invalid_arguments(measure, options, message):
    with pytest.raises(ValueError, match=message):
        call(measure, **options)


@pytest.mark.parametrize("measure", WITH_A_LOSS)
def test_penalty_on_the_own_weights_is_an_error(measure):
    # The penalty is the same constant before and after scaling, and its gradient is the model's.
    model = Net()

    def loss_fn(output, target):
        return entropy(output, target) + model.hidden.weight.square().sum()

    with pytest.raises(ValueError, match="depends on hidden.weight by another way"):
        call(measure, model=model, loss_fn=loss_fn)
    assert model.hidden.weight.grad is None


@pytest.mark.parametrize("measure", STEPPING)
@pytest.mark.parametrize("early", [True, False])
def test_optimizer_of_another_model_is_an_error(measure, early):
    # Such an optimizer trains the user's model, not the two copies that are compared.
    model = Net()
    before = copy.deepcopy(model.state_dict())
    optimizer = sgd(model)
    with pytest.raises(ValueError, match="something else than the model it was given"):
        call(measure, model=model, factory=lambda m: optimizer if early else sgd(model))
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize("measure", STEPPING)
def test_weights_that_leave_their_manifold_are_an_error(measure):
    model = Net()
    mn.declare(model.hidden, "weight", mn.Oblique(), project=True)
    with pytest.raises(ValueError, match=r"hidden.weight is not on Oblique"):
        call(measure, model=model)
    assert call("metric", model=model) > 0.5
    assert call("loss", model=model) == 0


@pytest.mark.parametrize("measure", STEPPING)
def test_divergence_from_scaled_weights_is_an_infinite_error(measure):
    element = ScalingElement({ROW: 2.0**200, COLUMN: 2.0**-200})
    error = call(measure, Line(), element, half_square, BATCH, sgd, steps=9)
    assert error == math.inf
    assert "diverges" in error.where


def test_metric_at_nan_is_an_error():
    model = nn.Linear(4, 3, bias=False)
    mn.declare(model, "weight", mn.ScaledEuclidean(0))
    model.weight.data[0, 0] = float("nan")
    element = ScalingElement({Slice("weight", 0, 0): 2.0})
    with pytest.raises(ValueError, match=r"weight .* a step there has the length nan"):
        invariance_error.metric(model, element)


def test_a_parameter_that_overflows_is_the_worst():
    """A deviation ∞/∞ counts as ∞."""
    here = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0])}
    there = {"a": torch.tensor([1.0, 2.1]), "b": torch.tensor([math.inf, 2.0])}
    start = {name: torch.zeros(2) for name in here}
    element = ScalingElement({Slice("a", 0, 0): 1.0})
    found = invariance_error.worst_parameter(here, there, start, element)
    assert found == math.inf
    assert found.parameter == "b"
