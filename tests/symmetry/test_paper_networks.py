"""The two papers' claims of invariance on their networks, and the limits of these claims.

The scaled metric (SM) is invariant under the groups (1)-(3) of the symmetry paper and under A → αA
of the classification stage, and so are whole training runs with it; plain SGD is not, nor AdamW.
"""

from itertools import pairwise

import pytest
import torch
from cases import seeds, source
from hypothesis import given, settings
from scaled_nets import (
    CLASSES,
    FEATURES,
    INPUTS,
    NETWORKS,
    NORMALIZED,
    SPREAD,
    problem,
    rows_against_columns,
    sm,
    trainable,
)
from torch import nn

import manifoldnet as mn
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2
from manifoldnet.symmetry import (
    ScalingElement,
    Slice,
    invariance_error,
    reparameterize,
    without_eps,
)

EACH = pytest.mark.parametrize("name", NETWORKS)
EACH_NORMALIZED = pytest.mark.parametrize("name", NORMALIZED)
BOTH_RETRACTIONS = pytest.mark.parametrize("retraction", ["additive", "geodesic"])
#: float64 to rounding, float32 as well; factors from 1e-3 to 1e3 leave that much.
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["float64", "float32"]
)
few = settings(max_examples=5)

UPDATES = {
    "plain": sm(),
    "momentum": sm(momentum=0.9),
    "adam": lambda m: mn.RiemannianAdam(mn.param_groups(m), lr=1e-2),
}
IGNORING = {
    "B-SGD": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
}


def draw(p, seed, **options):
    return p.group.sample(generator=source(seed), spread=SPREAD, **options)


# --- the groups, as the paper writes them ---------------------------------------------------------


def positive(generator, *shape):
    """Numbers from 1e-3 to 1e3."""
    scales = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    return (SPREAD * scales).exp()


@given(seed=seeds)
def test_the_group_of_arch1_is_1_and_2(seed):
    """W1 → α₀ W1, W2 → β W2, θ → θ β_s⁻¹/α₀ with β = Diag(β1, β1, β2, β2, …)."""
    model = Arch1(INPUTS, CLASSES, features=FEATURES, generator=source(1)).double()
    group = model.symmetries()
    assert group.dimension == 1 + FEATURES // 2
    draws = source(seed)
    alpha, beta = positive(draws), positive(draws, FEATURES // 2)
    first, second = (f"hidden.{name}" for name, _ in model.hidden.named_parameters())
    element = ScalingElement(
        {
            Slice(first, None): alpha,
            (second, 0): beta.repeat_interleave(2),
            ("head.weight", 1): 1 / (alpha * beta),
        }
    )
    assert element in group
    scaled = reparameterize(model, element)
    w1, w2 = (model.get_parameter(name) for name in (first, second))
    matrices = {
        first: alpha * w1,
        second: torch.diag(beta.repeat_interleave(2)) @ w2,
        "head.weight": model.head.weight @ torch.diag(1 / beta) / alpha,
    }
    for name, expected in matrices.items():
        torch.testing.assert_close(scaled.get_parameter(name), expected)
    # Without (2), the classifier would see other features.
    assert ScalingElement({Slice(first, None): 2.0}) not in group


@given(seed=seeds)
def test_the_group_of_arch2_is_3(seed):
    """W1 → Diag(α) W1, W2 → Diag(β) W2, everything else stays (running averages follow)."""
    model = Arch2(INPUTS, CLASSES, features=FEATURES, generator=source(1)).double()
    group = trainable(model.symmetries())
    assert group.dimension == 2 * FEATURES
    weights = [name for name, p in model.hidden.named_parameters() if p.ndim == 2]
    draws = source(seed)
    element = ScalingElement({(f"hidden.{n}", 0): positive(draws, FEATURES) for n in weights})
    assert element in group
    assert group.parameters == tuple(f"hidden.{n}" for n in weights)


# --- what is invariant ----------------------------------------------------------------------------


@PRECISIONS
@EACH
@few
@given(seed=seeds)
def test_the_loss_is_invariant(name, dtype, bound, seed):
    p = problem(name, dtype)
    element = draw(p, seed)
    assert invariance_error.loss(p.model, element, p.loss_fn, p.batch) <= bound
    # In evaluation as well, where the running averages are what it is normalized by.
    p.model(p.batch[0])
    assert invariance_error.loss(p.model.eval(), element, p.loss_fn, p.batch) <= bound


@EACH
@few
@given(seed=seeds)
def test_the_scaled_metric_is_invariant(name, seed):
    p = problem(name).declared()
    element = draw(p, seed)
    assert invariance_error.metric(p.model, element, generator=source(seed)) <= 1e-12


@EACH
def test_the_euclidean_metric_is_not_invariant(name):
    p = problem(name)
    assert invariance_error.metric(p.model, draw(p, 1)) > 1e-2


@PRECISIONS
@EACH
@BOTH_RETRACTIONS
@settings(max_examples=2)
@given(seed=seeds)
def test_updates_with_the_scaled_metric_are_equivariant(name, retraction, dtype, bound, seed):
    p = problem(name, dtype).declared(retraction)
    element = draw(p, seed)
    for kind, update in UPDATES.items():
        error = invariance_error.update(p.model, element, p.loss_fn, p.batch, update, steps=3)
        assert error <= bound, (kind, error.where)


@pytest.mark.parametrize("update", IGNORING.values(), ids=IGNORING)
@EACH
@settings(max_examples=2)
@given(seed=seeds)
def test_updates_without_the_scaled_metric_are_not_equivariant(name, update, seed):
    p = problem(name)
    while spread_of(element := draw(p, seed)) < 1:
        seed += 1  # factors near 1 make the error small for every update
    error = invariance_error.update(p.model, element, p.loss_fn, p.batch, update)
    assert error > 1e-2
    # These updates do not depend on the declared metric.
    p = p.declared()
    assert invariance_error.update(p.model, element, p.loss_fn, p.batch, update) == error


def spread_of(element):
    """The largest |log₂| of its factors."""
    return max(abs(element.log2(where)) for where in element.slices)


# --- trajectories ---------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("steps", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_trajectories_with_the_scaled_metric_are_invariant(name, steps):
    p = problem(name).declared()
    element = draw(p, 3)
    assert spread_of(element) > 3
    update = sm(3e-3, momentum=0.9)
    error = invariance_error.trajectory(p.model, element, p.loss_fn, p.batches, update, steps=steps)
    assert error <= 1e-8, error.where


@BOTH_RETRACTIONS
@EACH
@pytest.mark.parametrize("most", [100, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_runs_with_powers_of_two_are_equal_bit_for_bit(name, retraction, most):
    p = problem(name, torch.float32).declared(retraction)
    element = draw(p, 3, powers_of_two=True)
    assert spread_of(element) > 3
    # Long runs for the smallest network, and for one with convolutions and normalization.
    steps = most if name in ("Arch1-2", "ConvArch2-2") and retraction == "geodesic" else 30
    update = sm() if retraction == "geodesic" else sm(momentum=0.9)
    error = invariance_error.trajectory(p.model, element, p.loss_fn, p.batches, update, steps=steps)
    assert error == 0.0, error.where


def test_trajectories_of_riemannian_adam_are_invariant():
    p = problem("Arch2-2", torch.float32).declared()
    update, element = UPDATES["adam"], draw(p, 3, powers_of_two=True)
    assert (
        invariance_error.trajectory(p.model, element, p.loss_fn, p.batches, update, steps=50) == 0
    )


@EACH
def test_runs_of_plain_descent_differ_by_orders_of_magnitude(name):
    p = problem(name)
    element = draw(p, 3)
    error = invariance_error.trajectory(
        p.model, element, p.loss_fn, p.batches, IGNORING["B-SGD"], steps=50
    )
    assert error > 1e-1


# --- what the scaled metric is not invariant under ------------------------------------------------


@BOTH_RETRACTIONS
@pytest.mark.thorough
def test_rows_of_w1_against_columns_of_w2(retraction):
    p = problem("Arch1-2").declared(retraction)
    others = rows_against_columns(p.model)
    assert all(generator not in p.group for generator in others.generators)
    element = others.sample(generator=source(3), spread=SPREAD)
    assert invariance_error.loss(p.model, element, p.loss_fn, p.batch) <= 1e-12
    assert invariance_error.metric(p.model, element) > 1e-3
    for update in UPDATES.values():
        assert invariance_error.update(p.model, element, p.loss_fn, p.batch, update) > 1e-2
    error = invariance_error.trajectory(p.model, element, p.loss_fn, p.batches, sm(3e-3), steps=200)
    assert error > 1e-2


def test_rows_of_w1_against_columns_of_w2_with_other_declarations():
    """Each weight is invariant on one side: W1 by rows, W2 by columns, and then not (1) and (2)."""
    p = problem("Arch1-2")
    first, second = (n for n, _ in p.model.named_parameters() if n.startswith("hidden"))
    for name, dim in ((first, 0), (second, 1)):
        mn.declare(p.model, name, mn.ScaledEuclidean(dim))
    element = rows_against_columns(p.model).sample(generator=source(3), spread=SPREAD)
    assert invariance_error.update(p.model, element, p.loss_fn, p.batch, sm(), steps=3) <= 1e-9
    assert invariance_error.update(p.model, draw(p, 3), p.loss_fn, p.batch, sm()) > 1e-2


# --- batch normalization's ε ----------------------------------------------------------------------


@EACH_NORMALIZED
def test_the_error_of_the_loss_is_proportional_to_epsilon(name):
    p = problem(name)
    element = p.group.sample(generator=source(3), spread=0.7)
    norms = [m for m in p.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    errors = []
    for eps in (1e-3, 1e-4, 1e-5, 1e-6):
        for norm in norms:
            norm.eps = eps
        errors.append(invariance_error.loss(p.model, element, p.loss_fn, p.batch))
        with without_eps(p.model):
            assert invariance_error.loss(p.model, element, p.loss_fn, p.batch) <= 1e-9
        assert all(norm.eps == eps for norm in norms)
    for larger, smaller in pairwise(errors):
        assert larger / smaller == pytest.approx(10, rel=0.1)


def test_the_error_of_the_loss_is_inverse_to_the_variance():
    """O(ε/var): weights twice as long have a quarter of the error."""
    p = problem("Arch2-2")
    element = p.group.sample(generator=source(3), spread=0.7)
    for module in p.model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-5
    errors = []
    for _ in range(3):
        errors.append(invariance_error.loss(p.model, element, p.loss_fn, p.batch))
        double = {Slice(w, None): 2.0 for w, t in p.model.named_parameters() if t.ndim == 2}
        del double[Slice("head.weight", None)]
        reparameterize(p.model, ScalingElement(double), in_place=True)
    for larger, smaller in pairwise(errors):
        assert larger / smaller == pytest.approx(4, rel=0.05)


@EACH_NORMALIZED
def test_error_of_the_update_with_the_default_epsilon(name):
    p = problem(name).declared()
    for module in p.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 1e-5
    element = p.group.sample(generator=source(3), spread=0.7)
    error = invariance_error.update(p.model, element, p.loss_fn, p.batch, sm())
    assert 1e-8 < error < 1e-1
    with without_eps(p.model):
        assert invariance_error.update(p.model, element, p.loss_fn, p.batch, sm()) <= 1e-9


# --- unit norms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Arch2-2", "Arch2-4", "ConvArch2-2"])
def test_unit_norms_project_scaled_weights_to_one_point(name):
    p = problem(name)
    mn.declare_all(p.model, mn.rules.unit_norm("head"), project=True)
    element = trainable(p.group).sample(generator=source(3), spread=SPREAD)
    with pytest.raises(ValueError, match=r"off its manifold.* is not on Oblique.*(filter|row)"):
        reparameterize(p.model, element)
    same = reparameterize(p.model, element, project=True)
    mn.verify(same)
    for key, value in p.model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[key], value, rtol=1e-14, atol=1e-15)
    # From the same point, the same run.
    here, there = (
        invariance_error.run(model, p.loss_fn, p.batches, sm(), steps=30)
        for model in (p.model, same)
    )
    torch.testing.assert_close(here.losses, there.losses, rtol=1e-9, atol=0)


def test_unit_norms_undo_powers_of_two_bit_for_bit():
    p = problem("Arch2-2", torch.float32)
    mn.declare_all(p.model, mn.rules.unit_norm("head"), project=True)
    group = trainable(p.group)
    element = group.sample(generator=source(3), spread=SPREAD, powers_of_two=True)
    once = reparameterize(p.model, ScalingElement.identity(), project=True)
    here = reparameterize(once, element * element.inverse(), project=True)
    there = reparameterize(once, element, project=True)
    for key, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[key], value), key


def test_unit_norms_change_the_loss_of_arch1():
    # Without batch normalization the loss depends on the norms of filters, which the projection
    # changes. (Columns of θ, which has no constraint, could compensate for it.)
    p = problem("Arch1-2")
    mn.declare_all(p.model, mn.rules.unit_norm("head"), project=True)
    element = draw(p, 3)
    projected = reparameterize(p.model, element, project=True)
    assert invariance_error.loss(p.model, element, p.loss_fn, p.batch) <= 1e-9
    before, after = (
        float(p.loss_fn(m(p.batch[0]), p.batch[1]).detach()) for m in (p.model, projected)
    )
    assert abs(after - before) > 1e-2 * before


# --- the classification stage ---------------------------------------------------------------------


def test_sphere_projects_scaled_stages_to_one_point():
    p = problem("Stage")
    mn.declare(p.model, "A", mn.Sphere(radius=2.0), project=True)
    element = draw(p, 3)
    with pytest.raises(ValueError, match=r"A is not on Sphere\(radius=2.0"):
        reparameterize(p.model, element)
    same = reparameterize(p.model, element, project=True)
    torch.testing.assert_close(same.A, p.model.A, rtol=1e-14, atol=1e-15)


@given(seed=seeds)
def test_the_gradient_of_the_stage_scales_inversely(seed):
    """(4) of the symmetry paper: ∂c/∂A at αA is 1/α of that at A."""
    p = problem("Stage")
    x, labels = p.batch
    element = draw(p, seed)
    scaled = reparameterize(p.model, element)
    for model in (p.model, scaled):
        p.loss_fn(model(x), labels).backward()
    alpha = element.factor(Slice("A", None))
    torch.testing.assert_close(scaled.A.grad * alpha, p.model.A.grad, rtol=1e-9, atol=1e-14)


# --- negative factors -----------------------------------------------------------------------------


def test_factors_of_3_must_be_positive():
    """A negative α flips the normalized feature; the sign of γ flips it back."""
    p = problem("Arch2-2")
    filters, norm = "hidden.0.weight", "hidden.1"
    flip = ScalingElement({Slice(filters, 0, 3): -2.0}, signed=True)
    assert flip not in p.group
    assert invariance_error.loss(p.model, flip, p.loss_fn, p.batch) > 1e-3
    repaired = flip * ScalingElement({Slice(f"{norm}.weight", 0, 3): -1.0}, signed=True)
    assert invariance_error.loss(p.model, repaired, p.loss_fn, p.batch) <= 1e-12
    # In evaluation, with the running averages scaled along: the mean changes its sign, too.
    averages = ScalingElement(
        {Slice(f"{norm}.running_mean", 0, 3): -2.0, Slice(f"{norm}.running_var", 0, 3): 4.0},
        signed=True,
    )
    p.model(p.batch[0])
    p.model.eval()
    assert invariance_error.loss(p.model, flip * averages, p.loss_fn, p.batch) > 1e-3
    assert invariance_error.loss(p.model, repaired * averages, p.loss_fn, p.batch) <= 1e-12
    p.model.train()
    p.declared()
    # Two such are positive again.
    assert invariance_error.loss(p.model, flip * flip, p.loss_fn, p.batch) <= 1e-12
    assert invariance_error.update(p.model, repaired, p.loss_fn, p.batch, sm(), steps=3) <= 1e-9


def test_negative_factors_in_1_and_2_change_the_loss():
    p = problem("Arch1-2")
    both = {("hidden.0.weight", 0): [-2.0] * FEATURES, ("head.weight", 1): [-0.5] * (FEATURES // 2)}
    negative = ScalingElement(both, signed=True)
    positive = ScalingElement({key: [-f for f in factors] for key, factors in both.items()})
    assert invariance_error.loss(p.model, negative, p.loss_fn, p.batch) > 1e-2
    assert invariance_error.loss(p.model, positive, p.loss_fn, p.batch) <= 1e-12


def test_factors_of_the_stage_must_be_positive():
    """x → −x and A → −A turn z into −z."""
    p = problem("Stage")
    x, labels = p.batch
    z = p.model(x)
    minus = ScalingElement({Slice("A", None): -1.0}, signed=True)
    flipped = reparameterize(p.model, minus)
    assert torch.equal(p.model(-x), -z)
    assert torch.equal(flipped(x), -z)
    assert torch.equal(flipped(-x), z)
    assert invariance_error.loss(p.model, minus, p.loss_fn, p.batch) > 1e-2
    # ‖z − t‖² = 2 − 2⟨z, t⟩, so that the two losses add up to 4.
    total = p.loss_fn(z, labels) + p.loss_fn(-z, labels)
    assert float(total.detach()) == pytest.approx(4.0, rel=1e-12)
    # … and the nearest target is another class (the farthest, of two).
    nearest, now = (z @ torch.eye(4, dtype=z.dtype)).argmax(1), (-z).argmax(1)
    assert not torch.equal(nearest, now)


# --- ties of ReLU and max -------------------------------------------------------------------------


def test_ties_of_relu_and_max():
    """Powers of two keep ties; the loss does not change at one under any factor."""
    p = problem("Arch1-2", torch.float32).declared()
    weight = p.model.hidden[-3].weight
    with torch.no_grad():
        weight[1] = weight[0]  # max(h, h): torch gives the gradient to one of them
        weight[3] = -weight[2].abs()  # no sample passes: max(0, 0)
    element = draw(p, 3, powers_of_two=True)
    update = sm(momentum=0.9)
    error = invariance_error.trajectory(p.model, element, p.loss_fn, p.batches, update, steps=50)
    assert error == 0.0
    assert invariance_error.loss(p.model, draw(p, 4), p.loss_fn, p.batch) <= 1e-6
