"""Simplex classifier and loss: targets, invariance, bounds, update, invalid input."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.nn import SimplexClassifier, SimplexLoss, simplex_targets
from manifoldnet.nn.normalize import normalize

SIMPLICES = st.sampled_from(["regular", "standard"])
seeds = st.integers(0, 2**32 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def stages(draw, dtype=torch.float64):
    """A stage, a batch of features and their labels."""
    k, n, batch = draw(st.integers(2, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    simplex = draw(SIMPLICES)
    m = max(2, k - (simplex == "regular")) + draw(st.integers(0, 4))
    source = generator(draw(seeds))
    stage = SimplexClassifier(n, k, m, simplex, generator=source, dtype=dtype)
    features = torch.randn(batch, n, generator=source, dtype=dtype)
    return stage, features, torch.randint(k, (batch,), generator=source)


# Targets


@given(st.integers(2, 20), st.integers(-1, 5), SIMPLICES)
def test_targets_are_unit_and_equally_far_apart(k, extra, simplex):
    m = max(k + extra, k - (simplex == "regular"))
    targets = simplex_targets(k, m, simplex, dtype=torch.float64)
    assert targets.shape == (k, m)
    products = targets @ targets.T
    assert torch.allclose(products.diagonal(), torch.ones(k, dtype=torch.float64), atol=1e-14)
    expected = -1 / (k - 1) if simplex == "regular" else 0.0
    others = products[~torch.eye(k, dtype=torch.bool)]
    assert torch.allclose(others, torch.full_like(others, expected), atol=1e-14)
    if simplex == "regular":
        assert targets.mean(0).abs().max() < 1e-15


@given(st.integers(2, 9), st.integers(0, 3), SIMPLICES, seeds)
def test_the_nearest_target_is_the_largest_of_the_first_coordinates(k, extra, simplex, seed):
    z = normalize(torch.randn(20, k + extra, generator=generator(seed), dtype=torch.float64))
    targets = simplex_targets(k, k + extra, simplex, dtype=torch.float64)
    assert torch.equal(torch.cdist(z, targets).argmin(1), z[:, :k].argmax(1))


def test_types_of_targets():
    assert simplex_targets(3).dtype == torch.float32
    assert simplex_targets(3, dtype=torch.bfloat16).dtype == torch.bfloat16


# The stage


@given(stages())
def test_decision_and_loss_are_those_of_the_nearest_target(case):
    stage, features, labels = case
    z, cosines = stage.embed(features), stage(features)
    distances = torch.cdist(z, stage.targets)
    nearest = distances.gather(1, cosines.argmax(1, keepdim=True)).squeeze(1)
    assert torch.allclose(nearest, distances.amin(1), atol=1e-7)  # equal but for ties
    losses = SimplexLoss("none")(cosines, labels)
    assert torch.allclose(losses, (z - stage.targets[labels]).square().sum(1), atol=1e-12)
    assert torch.allclose(SimplexLoss()(cosines, labels), losses.mean())
    assert torch.allclose(SimplexLoss("sum")(cosines, labels), losses.sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(data=st.data())
def test_the_loss_lies_between_0_and_4(dtype, data):
    stage, features, labels = data.draw(stages(dtype))
    losses = SimplexLoss("none")(stage(features), labels)
    assert losses.ge(0).all()
    assert losses.le(4).all()


@given(stages(), st.floats(-300, 300))
def test_invariance_under_scalings_of_features_and_weight(case, exponent):
    stage, features, _ = case
    factor = 2.0 ** round(exponent)
    cosines = stage(features)
    assert torch.equal(stage(features * factor), cosines)  # powers of two: bit for bit
    assert torch.allclose(stage(features * 10.0 ** (exponent / 2)), cosines, atol=1e-13)
    with torch.no_grad():
        stage.weight.mul_(2.0 ** round(exponent / 4))
    assert torch.equal(stage(features), cosines)


@given(stages())
def test_negative_factor_changes_the_sign(case):
    """Against the paper's "any nonzero real number"."""
    stage, features, _ = case
    assert torch.equal(stage(-features), -stage(features))
    assert not torch.allclose(stage(-features), stage(features))


def gradients(stage, features, labels):
    features = features.clone().requires_grad_()
    loss = SimplexLoss("sum")(stage(features), labels)
    return torch.autograd.grad(loss, [features, stage.weight])


@given(stages())
def test_the_gradient_is_equation_13_and_bounded(case):
    stage, features, labels = case
    for x, label in zip(features, labels, strict=True):
        at_x, at_a = gradients(stage, x[None], label[None])
        a = stage.weight.detach()
        y = a @ x
        z, t = y / y.norm(), stage.targets[label]
        tangent = 2 * ((z @ t) * z - t) / y.norm()
        scale = float(a.norm() / y.norm())
        assert torch.allclose(at_a, torch.outer(tangent, x), atol=1e-11 * scale * float(x.norm()))
        assert torch.allclose(at_x[0], a.T @ tangent, atol=1e-11 * scale)
        bound = 2 * torch.linalg.matrix_norm(a, 2) / y.norm()
        assert at_x.norm() <= bound * (1 + 1e-12)


@given(stages(), st.floats(1e-6, 1e6))
def test_update_is_a_euclidean_step_and_a_rescaling(case, rate):
    stage, features, labels = case
    by_hand = stage.weight.detach() - rate * gradients(stage, features, labels)[1]
    by_hand *= stage.embedding_dim**0.5 / by_hand.norm()
    optimizer = mn.RiemannianSGD(mn.param_groups(stage), lr=rate)
    SimplexLoss("sum")(stage(features), labels).backward()
    optimizer.step()
    scale = stage.embedding_dim**0.5
    assert torch.allclose(stage.weight.detach(), by_hand, atol=1e-9 * scale)
    assert math.isclose(float(stage.weight.detach().norm()), scale, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["huge", "tiny", "least"])
def test_huge_and_tiny_features_have_directions(dtype, size):
    stage = SimplexClassifier(4, 3, generator=generator(0), dtype=dtype)
    about = torch.finfo(dtype)
    unit = {"huge": about.max, "tiny": about.tiny, "least": about.smallest_normal * about.eps}[size]
    features = torch.tensor([[1.0, -0.5, 0.0, 0.25], [0.0, 0.0, 1.0, 0.0]], dtype=dtype) * unit
    z = stage.embed(features)
    error = (z.double().norm(dim=1) - 1).abs().max()
    assert error < {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-2)


def test_huge_and_tiny_features_have_directions_in_one_batch():
    features = torch.tensor([[3.0, 4.0], [3.0, -4.0], [3.0, 4.0]]) * torch.tensor(
        [[1e30], [1.0], [1e-30]]
    )
    stage = SimplexClassifier(2, 3, generator=generator(0))
    cosines = stage(features)
    assert torch.allclose(cosines[0], cosines[2], atol=1e-6)
    assert torch.allclose(stage.embed(features).norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_cosines_in_single_precision(dtype):
    features = torch.randn(4, 5)
    stage = SimplexClassifier(5, 3, generator=generator(0))
    exact = stage(features)
    with torch.autocast("cpu", dtype):
        mixed = stage(features)
    half = stage.to(dtype)(features.to(dtype))
    for cosines in (mixed, half):
        assert cosines.dtype == torch.float32
        assert torch.allclose(cosines, exact, atol=0.05)
        assert (cosines.sum(1).abs() < 1e-5).all()  # as exactly as in float32


def test_torchs_normalize_overflows():
    """torch squares the entries, which overflows."""
    large = torch.full((1, 4), 1e30)
    assert nn.functional.normalize(large).norm() == 0
    assert normalize(large).norm() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_features(dtype):
    stage = SimplexClassifier(4, 3, dtype=dtype)
    features = torch.zeros(2, 4, dtype=dtype)
    features[1] = 1
    labels = torch.tensor([0, 1])
    cosines = stage(features)
    assert cosines[0].eq(0).all()
    assert SimplexLoss("none")(cosines, labels)[0] == 2
    at_x, at_a = gradients(stage, features, labels)
    assert at_x[0].eq(0).all()
    assert at_x.isfinite().all()
    assert at_a.isfinite().all()


@pytest.mark.parametrize("rate", [10.0**p for p in range(-6, 7)])
def test_stability_at_every_learning_rate(rate):
    source = generator(0)
    features = torch.rand(300, 20, generator=source)
    labels = torch.randint(5, (300,), generator=source)
    stage = SimplexClassifier(20, 5, 8, generator=source)
    optimizer = mn.RiemannianSGD(mn.param_groups(stage), lr=rate)
    for _ in range(100):
        optimizer.zero_grad()
        cosines = stage(features)
        loss = SimplexLoss()(cosines, labels)
        loss.backward()
        optimizer.step()
        assert 0 <= loss <= 4
        assert (stage.embed(features).norm(dim=1) - 1).abs().max() < 1e-5


def test_classifier_as_last_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model[2] = SimplexClassifier(model[2].in_features, 3, embedding_dim=8)
    loss_fn = SimplexLoss()
    images, labels = torch.randn(90, 6), torch.arange(90) % 3
    images[torch.arange(90), labels] += 3
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).double().mean() > 0.9
    assert mn.manifolds(model) == {"2.weight": mn.Sphere(8**0.5)}
    mn.verify(model)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: mn.RiemannianSGD(mn.param_groups(model), lr=0.3, momentum=0.9),
        lambda model: mn.RiemannianSGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True),
        lambda model: mn.RiemannianAdam(mn.param_groups(model), lr=1e-2),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
    ],
)
def test_training_with_any_optimizer(make, half):
    source = generator(0)
    features, labels = torch.randn(60, 4, generator=source), torch.arange(60) % 3
    features[torch.arange(60), labels] += 2
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), SimplexClassifier(8, 3, generator=source))
    for trained in (model, copy.deepcopy(model)):
        optimizer = make(trained)
        for _ in range(30):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = SimplexLoss()(trained(features), labels)
            loss.backward()
            optimizer.step()
        assert loss < 0.8
        if type(optimizer) is torch.optim.SGD:
            assert trained[2].weight.norm() > 3**0.5  # off the sphere, and no worse for it
        else:
            mn.verify(trained)


def test_initial_weight_and_retraction():
    stage = SimplexClassifier(200, 100, generator=generator(0), retraction="geodesic")
    assert mn.manifolds(stage) == {"weight": mn.Sphere(10.0, retraction="geodesic")}
    entries = stage.weight.detach().flatten() * 200**0.5  # Gaussian ones, of size 1
    assert entries.mean().abs() < 0.03
    assert entries.pow(4).mean() == pytest.approx(3, rel=0.1)


def test_checkpoints_hold_the_weight_alone():
    one, other = (SimplexClassifier(5, 3, generator=generator(seed)) for seed in (0, 1))
    assert list(one.state_dict()) == ["weight"]
    other.load_state_dict(one.state_dict())
    features = torch.randn(4, 5)
    assert torch.equal(one(features), other(features))
    assert "SimplexClassifier(in_features=5, num_classes=3, embedding_dim=3" in repr(one)


def test_conversions_take_the_targets_along():
    stage = SimplexClassifier(5, 3).to(torch.float64)
    assert stage(torch.randn(4, 5, dtype=torch.float64)).dtype == torch.float64


def test_any_leading_dimensions():
    stage = SimplexClassifier(5, 3)
    features = torch.randn(2, 4, 5)
    assert torch.allclose(stage(features)[1], stage(features[1]), atol=1e-6)
    labels = torch.zeros(2, 4, dtype=torch.int64)
    assert SimplexLoss("none")(stage(features), labels).shape == (2, 4)


def test_compilation_and_torch_func():
    stage = SimplexClassifier(5, 3).double()
    features, labels = torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 0])
    counter = CompileCounter()
    compiled = torch.compile(stage, backend=counter, fullgraph=True)
    assert torch.allclose(compiled(features), stage(features))
    assert torch.allclose(compiled(features), stage(features))
    assert counter.frame_count == 1  # not again because of what was checked in between
    each = torch.func.vmap(torch.func.grad(lambda x, y: SimplexLoss()(stage(x), y)))
    assert torch.allclose(each(features, labels), gradients(stage, features, labels)[0])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 10, 9, "standard"), "embedding_dim is 9, too few for the standard simplex of 10"),
        ((4, 10, 8, "regular"), "embedding_dim is 8, .*it needs 9 or more"),
        ((4, 2, 1), "embedding_dim is 1, where a direction is 1 or -1"),
        ((4, 1), "num_classes is 1: a simplex of targets needs at least two"),
        ((4, 2.0), "num_classes must be a whole number, not 2.0"),
        ((4, 3, True), "embedding_dim must be a whole number, not True"),
        ((0, 3), "in_features must be a positive whole number, not 0"),
        ((4, 3, 3, "round"), "simplex must be"),
    ],
)
def test_invalid_classifiers(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimplexClassifier(*arguments)


def test_features_of_another_length_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(2, 4\); .* in_features = 5"):
        SimplexClassifier(5, 3)(torch.zeros(2, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_features(value):
    stage, features = SimplexClassifier(5, 3), torch.ones(2, 5)
    features[1, 3] = value
    with pytest.raises(ValueError, match=r"1 of 10 features are not finite, the first at \(1, 3\)"):
        stage(features)
    stage(torch.ones(2, 5))
    cosines = stage(features)
    assert cosines[0].isfinite().all()
    assert cosines[1].isnan().all()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 3]), ValueError, r"the label at \(1,\) is 3; classes are 0 … 2"),
        (torch.tensor([0, -1]), ValueError, r"the label at \(1,\) is -1; classes are 0 … 2"),
        (torch.tensor([0]), ValueError, r"labels must be int64 of shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), ValueError, "not torch.float32"),
    ],
)
def test_invalid_labels(labels, error, message):
    with pytest.raises(error, match=message):
        SimplexLoss()(SimplexClassifier(5, 3)(torch.ones(2, 5)), labels)


def test_scores_that_are_no_cosines():
    with pytest.raises(ValueError, match="the scores reach 3, so they are no cosines"):
        SimplexLoss()(torch.tensor([[0.5, -3.0]]), torch.tensor([0]))


def test_loss_of_rounded_cosines():
    cosines = torch.tensor([[1 + 1e-6, -1 - 1e-6], [1.009, -1.009]])
    for label, bound in ((0, 0.0), (1, 4.0)):
        losses = SimplexLoss("none")(cosines, torch.tensor([label, label]))
        assert losses.eq(bound).all()
    with pytest.raises(ValueError, match="the scores reach 1.05, so they are no cosines"):
        SimplexLoss()(torch.tensor([[0.5, 1.05]]), torch.tensor([0]))


def test_tensors_without_values():
    features = torch.randn(4, 5)
    stage = SimplexClassifier(5, 3)
    assert torch.func.vmap(stage)(features).shape == (4, 3)
    with torch.device("meta"):
        assert SimplexClassifier(5, 3)(torch.empty(2, 5)).shape == (2, 3)
    stage = SimplexClassifier(5, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert stage(torch.empty(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_materialization_from_the_meta_device(m):
    source = SimplexClassifier(5, 3, m)
    with torch.device("meta"):
        stage = SimplexClassifier(5, 3, m)
    stage.to_empty(device="cpu")
    mn.load_state_dict(stage, source.state_dict())
    features = torch.randn(4, 5)
    assert torch.equal(stage(features), source(features))
    assert torch.equal(stage.targets, source.targets)
    assert torch.equal(stage.half().float().targets, source.targets)


def test_unknown_reduction_is_an_error():
    with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "none"'):
        SimplexLoss("max")


def test_the_cross_entropy_has_no_bound():
    """The comparison for the stage: the same wrong label costs more and more."""
    scores = torch.tensor([[1.0, 0.0, 0.0]])
    losses = [float(cross_entropy(scores * s, torch.tensor([1]))) for s in (1, 10, 100, 1000)]
    assert losses[-1] > 900
