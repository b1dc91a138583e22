"""The scale-invariant paper's runs: networks, stages, corrupted images, training and resuming."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import manifoldnet as mn
from manifoldnet.experiments import ConfigError, Dataset, load, training
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.papers.scale_invariant.config import (
    ARCHITECTURES,
    METHODS,
    StageConfig,
)
from manifoldnet.experiments.papers.scale_invariant.run import (
    EXPERIMENT,
    EpochMeasurements,
    Run,
    build_stage,
    make_parts,
)
from manifoldnet.experiments.training import train_whole
from manifoldnet.nn import Confidence, ModulusFeatures

TINY = StageConfig(epochs=2, batch_size=20, train_size=60)
replace = dataclasses.replace


@pytest.fixture(scope="module")
def squares():
    """Three classes of 32x32 pictures: bright bars at different places."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randint(0, 60, (90, 1, 32, 32), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, 0, 8 * label + 4 : 8 * label + 10] += 150
    return Dataset("squares", images[:72], labels[:72], images[72:], labels[72:], ("a", "b", "c"))


def stage_of(method, features=12, classes=5):
    return build_stage(StageConfig(method=method), features, classes, seeded_generator(0, "start"))


@pytest.mark.parametrize(
    ("name", "channels", "sizes"),
    [
        ("larger", 1, [(16, 15), (128, 7), (1024, 3)]),
        ("smaller", 3, [(16, 15), (64, 7), (256, 3)]),
        ("imagenet-larger", 3, [(16, 62), (64, 30), (256, 14), (1024, 6)]),
        ("imagenet-smaller", 3, [(16, 62), (64, 30), (256, 14), (256, 6)]),
    ],
)
def test_the_networks_are_those_of_tables_1_to_4(name, channels, sizes):
    side, widths, kernels = ARCHITECTURES[name]
    with torch.device("meta"):
        features = ModulusFeatures((channels, side, side), widths, kernels)
        images = torch.empty(2, channels, side, side)
        for stage, (width, size) in zip(features.stages, sizes, strict=True):
            images = stage(images)
            assert images.shape == (2, width, size, size)
    assert features.out_features == images[0].numel() + 1


def test_images_become_squares():
    digits, plain = load("digits", side=32), load("digits")
    assert digits.train_images.shape[1:] == (1, 32, 32)
    assert torch.equal(digits.train_images[:, :, 12:20, 12:20], plain.train_images)
    assert digits.train_images.sum() == plain.train_images.sum()  # zeros around


# Stages


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_has_a_seeded_start_of_unit_rows_a_score_per_class_and_a_mean_loss(method):
    stage, loss = stage_of(method)
    features, labels = torch.randn(7, 12), torch.arange(7) % 5
    scores = stage(features)
    assert scores.shape == (7, 5)
    assert torch.equal(scores, stage_of(method)[0](features))
    each = torch.stack([loss(scores[i : i + 1], labels[i : i + 1]) for i in range(7)])
    assert torch.allclose(loss(scores, labels), each.mean())
    wide, _ = stage_of(method, 400, 10)
    matrix = wide.frame if method == "etf" else wide.weight
    assert 0.9 < matrix.detach().norm(dim=1).mean() < 1.1


@pytest.mark.parametrize("method", METHODS)
def test_torch7_starts_uniform_within_one_over_the_root_of_the_inputs(squares, method):
    at_torch7 = replace(TINY, method=method, start="torch7")
    features, stage = Run(at_torch7, squares).network
    weights = {weight: weight[0].numel() for weight in features.parameters()}
    if method in ("logistic", "smoothing", "cosine"):
        weights[stage.weight] = features.out_features
    for weight, inputs in weights.items():
        largest = float(weight.detach().abs().max()) * inputs**0.5
        assert 0.95 < largest <= 1 + 1e-6
        assert float(weight.detach().std()) * (3 * inputs) ** 0.5 == pytest.approx(1, abs=0.1)
    smaller, _ = Run(replace(at_torch7, start_size=0.5), squares).network
    for ours, theirs in zip(smaller.parameters(), features.parameters(), strict=True):
        assert torch.equal(2 * ours, theirs)


def test_the_size_of_the_kernels_is_the_inverse_square_of_their_rate(squares):
    """The rescaled stage sees directions: kernels s times as large take steps 1/s as large."""
    parts, moved = make_parts(TINY, squares), []
    for size in (1.0, 3.0):
        run = Run(replace(TINY, start_size=size, lr=1e-4), squares)
        kernel = run.network[0].stages[0].weight
        before = kernel.detach().clone()
        run.train_pass(parts)
        moved.append(float((kernel.detach() - before).norm() / before.norm()))
    assert moved[0] == pytest.approx(9 * moved[1], rel=1e-2)


def test_records_from_before_the_start_was_a_field_are_found_again():
    plain = StageConfig()
    old = {k: v for k, v in plain.to_dict().items() if not k.startswith("start")}
    text = json.dumps(old, sort_keys=True, separators=(",", ":"))
    assert plain.identity() == hashlib.sha256(text.encode()).hexdigest()[:16]
    others = [plain, replace(plain, start="torch7"), replace(plain, start_size=2.0)]
    assert len({config.identity() for config in others}) == 3
    assert StageConfig.from_dict(old) == plain


def test_the_stages_beyond_the_paper_follow_their_formulas():
    features, labels = torch.randn(7, 12), torch.arange(7) % 5
    frame, _ = stage_of("etf")
    assert not list(frame.parameters())
    assert torch.allclose(frame.frame @ frame.frame.T, (5 * torch.eye(5) - 1) / 4, atol=1e-6)
    cosine, _ = stage_of("cosine")
    cosines = torch.cosine_similarity(features[:, None], cosine.weight[None], dim=2)
    assert torch.allclose(cosine(features), 10 * cosines, atol=1e-5)
    cosine(features).square().sum().backward()
    assert cosine.log_scale.grad > 0
    linear, smoothed = stage_of("smoothing")
    chances = linear(features).log_softmax(1)
    right = chances.gather(1, labels[:, None]).mean()
    assert torch.allclose(smoothed(linear(features), labels), -0.9 * right - 0.1 * chances.mean())


# Images


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_shares_of_wrong_labels_are_exact_and_nested(one, other, seed):
    labels = torch.arange(72) % 3
    images = torch.zeros(72, 1, 32, 32, dtype=torch.uint8)
    data = Dataset("d", images, labels, images[:3], labels[:3], ("a", "b", "c"))
    share, larger = sorted((one, other))
    clean, noisy, noisier = (
        make_parts(StageConfig(seed=seed, wrong_labels=s), data) for s in (0, share, larger)
    )
    wrong = clean.train.labels != noisy.train.labels
    assert int(wrong.sum()) == round(72 * share)
    assert set(noisy.train.labels.tolist()) <= {0, 1, 2}
    assert torch.equal(noisy.train.labels[wrong], noisier.train.labels[wrong])
    assert torch.equal(clean.test.labels, noisy.test.labels)  # never those that judge


@pytest.mark.parametrize("kind", ["noise", "contrast"])
def test_outliers_are_scaled_and_noise_stays_with_its_image(squares, kind):
    data = replace(squares, white=16)
    before = squares.train_images.clone()
    config = StageConfig(outliers=0.25, outlier_kind=kind, outlier_scale=50.0)
    clean, odd = make_parts(StageConfig(), data), make_parts(config, data)
    rows, changed = torch.arange(72), odd.gain != 1
    assert int(changed.sum()) == 18
    assert torch.equal(clean.batch(rows)[~changed], odd.batch(rows)[~changed])
    assert torch.allclose(
        odd.batch(rows)[changed].flatten(1), 50 * odd.train.vectors(rows)[changed]
    )
    pixels = odd.train.pixels[changed]
    if kind == "contrast":
        assert torch.equal(pixels, clean.train.pixels[changed])
    else:
        assert (int(pixels.min()), int(pixels.max())) == (0, 16)
        assert pixels.double().mean().item() == pytest.approx(8, rel=0.02)
    assert torch.equal(squares.train_images, before)


def test_random_choices_are_seeded_separately(squares):
    alike = replace(squares, train_labels=torch.zeros_like(squares.train_labels))
    config = StageConfig(validation_size=12, wrong_labels=0.3, outliers=0.3)
    one, other, again = (make_parts(replace(config, seed=seed), alike) for seed in (0, 1, 0))
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert torch.equal(one.train.labels, again.train.labels)
    assert not torch.equal(one.validation.pixels, other.validation.pixels)
    wrong, odd = one.train.labels != 0, one.gain != 1
    assert not torch.equal(wrong, other.train.labels != 0)
    assert not torch.equal(odd, other.gain != 1)
    assert not torch.equal(wrong, odd)
    first, second = (Run(replace(TINY, seed=seed), squares) for seed in (0, 1))
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert not torch.equal(ours, theirs)
    assert not torch.equal(first.generator.get_state(), second.generator.get_state())


def test_validation_images_are_held_out_and_have_right_labels(squares):
    config = StageConfig(validation_size=12, train_size=40)
    parts = make_parts(config, squares)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (40, 12, 18)
    trained = {tuple(row) for row in parts.train.pixels.tolist()}
    assert not trained & {tuple(row) for row in parts.validation.pixels.tolist()}
    assert not trained & {tuple(row) for row in squares.test_images.flatten(1).tolist()}
    wrong = make_parts(replace(config, wrong_labels=1.0), squares)
    assert torch.equal(wrong.validation.labels, parts.validation.labels)
    assert make_parts(StageConfig(), squares).validation is None
    assert EXPERIMENT.sizes(config) != EXPERIMENT.sizes(replace(config, validation_size=0))
    with pytest.raises(ConfigError, match="65 training and 12 validation"):
        make_parts(replace(config, train_size=65), squares)


def test_test_error_is_measured_at_the_end_if_images_are_held_out(squares):
    config = replace(TINY, train_size=40, validation_size=12)
    first, last = train_whole(EXPERIMENT, config, squares).epochs
    assert math.isnan(first.test_error)
    assert 0 <= last.test_error <= 1
    assert all(0 <= epoch.validation_error <= 1 for epoch in (first, last))
    assert sum(last.bin_count) == 9  # of the 18 test images


# Training


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(squares, method):
    rate = {"rescaled": 0.1, "cosine": 0.1}.get(method, 0.02)
    record = train_whole(EXPERIMENT, replace(TINY, method=method, lr=rate, epochs=6), squares)
    first, last = record.epochs[0], record.epochs[-1]
    assert record.result.status == "finished"
    assert record.result.test_error < 0.2
    assert record.result.seconds == pytest.approx(sum(epoch.seconds for epoch in record.epochs))
    assert last.violation < 1e-5
    assert first.gradient_norm > 0
    assert first.validation_error is None
    assert (first.step_ratio > 0) == (method != "etf")
    assert first.largest_step_ratio >= first.step_ratio
    assert (first.concentration, first.bin_count) == (None, ())  # after the last epoch only
    assert sum(last.bin_count) == 9  # κ is fitted on the other nine
    assert all(right <= n for right, n in zip(last.bin_right, last.bin_count, strict=True))
    assert all(sure <= n for sure, n in zip(last.bin_sure, last.bin_count, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_leaves_nothing_on_the_processor(squares, method):
    """The device "meta" refuses tensors of any other, and holds no numbers."""
    elsewhere = torch.device("meta")
    config = replace(TINY, method=method, outliers=0.5)
    parts = training.moved(make_parts(config, squares), elsewhere)
    run = Run(config, squares, elsewhere)
    rows = torch.arange(5)
    scores = run.network(parts.batch(rows))
    loss = run.loss(scores, parts.train.labels[rows])
    loss.backward()
    tensors = [scores, loss, *run.network.state_dict().values()]
    tensors += [p.grad for p in run.network.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_measurements_neither_overflow_nor_hide_a_nan():
    stage = torch.nn.Linear(2, 1, bias=False)
    metrics = EpochMeasurements(stage, [])
    one, labels = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    assert metrics.after_forward(one, None, one, labels, torch.tensor(1.0))
    stage.weight.data.fill_(1.0)
    stage.weight.grad = torch.full((1, 2), 1e30)  # the square of which float32 does not hold
    assert metrics.after_backward()
    stage.weight.data.fill_(3.0)
    assert metrics.after_step()
    assert not metrics.after_forward(one, None, one, labels, torch.tensor(math.nan))
    measured = metrics.row()
    assert measured["gradient_norm"] == pytest.approx(1e30 * 2**0.5)
    assert measured["step_ratio"] == 2  # of the matrix before the step
    assert math.isnan(measured["largest_loss"])
    assert measured["overflow"] == "loss, minibatch 2"


def test_measurements_of_an_epoch_are_over_its_minibatches(squares):
    config = replace(TINY, batch_size=25, lr=0.5)  # the last one has ten
    run, parts = Run(config, squares), make_parts(config, squares)
    assert isinstance(mn.manifolds(run.network)["1.weight"], mn.Sphere)
    with torch.no_grad():
        run.network[0].stages[0].weight[0, 0, 0, 0] = -5.0
    seen, wrong, losses, steps, norms = [], [], [], [], []
    loss, step = run.loss, run.optimizer.step

    def observed_loss(scores, labels):
        value = loss(scores, labels)
        seen.append(labels)
        wrong.append(float((scores.detach().argmax(1) != labels).sum()))
        losses.append(float(value.detach()))
        return value

    def observed_step():
        before = run.network[1].weight.detach().clone()
        norms.append(float(torch.cat([p.grad.flatten() for p in run.network.parameters()]).norm()))
        step()
        steps.append(float((run.network[1].weight.detach() - before).norm() / before.norm()))

    run.loss, run.optimizer.step = observed_loss, observed_step
    measured = run.train_pass(parts)
    assert not torch.equal(torch.cat(seen), parts.train.labels)  # in an order of their own
    assert torch.equal(torch.cat(seen).sort().values, parts.train.labels.sort().values)
    means = [25 * losses[0] + 25 * losses[1] + 10 * losses[2], sum(3 * norms), sum(3 * steps)]
    assert {name: measured[name] for name in measured if name not in ("overflow",)} == {
        "train_loss": pytest.approx(means[0] / 60),
        "largest_loss": max(losses),
        "train_error": sum(wrong) / 60,
        "gradient_norm": pytest.approx(sum(norms) / 3, rel=1e-5),
        "largest_gradient_norm": pytest.approx(max(norms), rel=1e-5),
        "step_ratio": pytest.approx(sum(steps) / 3, rel=1e-5),
        "largest_step_ratio": pytest.approx(max(steps), rel=1e-5),
        "norm_error": pytest.approx(0, abs=1e-5),
        "largest_weight": pytest.approx(5, rel=0.2),  # it was a negative one
    }


def test_kernels_can_be_on_spheres(squares):
    config = replace(TINY, spheres=True)
    record = train_whole(EXPERIMENT, config, squares)
    assert 0 < record.epochs[-1].violation < 1e-5
    assert record.result.status == "finished"
    run, plain = Run(config, squares), Run(TINY, squares)
    assert sum(isinstance(m, mn.Sphere) for m in mn.manifolds(run.network).values()) == 4
    for ours, theirs in zip(run.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)  # both start alike


def test_confidence_is_fitted_and_evaluated_on_separate_test_images(squares):
    config = replace(TINY, lr=0.02, epochs=1)
    run, parts = Run(config, squares), make_parts(config, squares)
    epoch = run.epoch(1, parts)
    scores, labels = run.scores(parts.test, parts.size), parts.test.labels
    confidence = Confidence.fit(scores[::2], labels[::2])
    assert epoch.concentration == confidence.concentration
    assert confidence != Confidence.fit(scores[1::2], labels[1::2])
    right = (scores[1::2].argmax(1) == labels[1::2]).sum()
    assert (sum(epoch.bin_count), sum(epoch.bin_right)) == (9, int(right))
    assert sum(epoch.bin_sure) == pytest.approx(float(confidence(scores[1::2]).sum()), rel=1e-6)


# Numbers that are not finite


@pytest.mark.parametrize("h", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("spheres", [False, True])
def test_the_rescaled_stage_is_stable_at_every_rate(squares, h, spheres):
    record = train_whole(EXPERIMENT, replace(TINY, lr=h, spheres=spheres, epochs=3), squares)
    assert record.result.status == "finished"
    for epoch in record.epochs:
        assert epoch.overflow == ""
        assert epoch.norm_error < 1e-5
        assert 0 <= epoch.train_loss <= epoch.largest_loss <= 4


def test_the_first_overflow_is_named_and_ends_the_run(squares):
    record = train_whole(EXPERIMENT, replace(TINY, method="logistic", lr=1e30, epochs=3), squares)
    assert record.result.diverged
    where, minibatch = record.epochs[-1].overflow.split(", ")
    assert where in {"features", "loss", "gradients", "weights"}  # not what it led to later
    assert minibatch in {"minibatch 1", "minibatch 2"}
    assert record.result.reason == f"not finite in epoch 1: {record.epochs[-1].overflow}"
    assert math.isnan(record.result.test_error)


def spoil_features(run):
    with torch.no_grad():
        next(run.network[0].parameters()).mul_(math.inf)


def spoil_loss(run):
    run.loss = lambda scores, labels: scores.sum() * math.nan


def spoil_gradients(run):
    run.network[1].weight.register_hook(lambda gradient: gradient * math.inf)


def spoil_weights(run):
    step = run.optimizer.step
    run.optimizer.step = lambda: (step(), run.network[1].weight.detach().fill_(math.inf))


@pytest.mark.parametrize("spoil", [spoil_features, spoil_loss, spoil_gradients, spoil_weights])
def test_an_epoch_ends_with_the_first_number_that_is_not_finite(squares, spoil):
    config = replace(TINY, method="logistic", lr=0.01)
    run = Run(config, squares)
    spoil(run)
    before = run.network[1].weight.detach().clone()
    measured = run.train_pass(make_parts(config, squares))
    where = spoil.__name__.removeprefix("spoil_")
    assert measured["overflow"] == f"{where}, minibatch 1"
    assert torch.equal(run.network[1].weight, before) == (where != "weights")
    assert math.isfinite(measured["largest_loss"]) == (where not in {"features", "loss"})


def test_scores_that_overflow_on_other_images_are_a_divergence(squares):
    run, parts = Run(TINY, squares), make_parts(TINY, squares)
    measured = run.train_pass(parts)

    def then_overflow(parts):
        with torch.no_grad():
            for weight in run.network[0].parameters():
                weight.mul_(1e38)
        return measured

    run.train_pass = then_overflow
    epoch = run.epoch(2, parts)
    assert math.isnan(epoch.test_error)
    assert epoch.overflow == "scores of the test images"


# Resuming, refusing


def test_an_interrupted_run_resumes_bit_for_bit(squares, assert_resumes):
    assert_resumes(EXPERIMENT, TINY, squares)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_dim": 1}, "embedding_dim is 1"),
        ({"embedding_dim": 2, "simplex": "standard"}, "standard simplex"),
        ({"architecture": "imagenet-smaller"}, "stage 4 of 4"),
    ],
)
def test_a_configuration_that_does_not_fit_the_data_is_refused(squares, fields, message):
    with pytest.raises(ConfigError, match=message):
        train_whole(EXPERIMENT, replace(TINY, **fields), squares)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("method", {"method": "svm"}),
        ("lr", {"lr": None}),
        ("wrong_labels", {"wrong_labels": 1.5}),
        ("outlier_kind", {"outlier_kind": "odd"}),
        ("train_size", {"train_size": 0}),
        ("spheres", {"spheres": 1}),
        ("embedding_dim", {"method": "logistic", "embedding_dim": 20}),
    ],
)
def test_invalid_fields_are_named(name, fields):
    with pytest.raises(ConfigError, match=f"^{name} is"):
        StageConfig(**fields)


def test_identities_of_configurations_are_stable():
    config = StageConfig(lr=1, embedding_dim=128, train_size=5)
    assert config.identity() == "55e5b2016168db28"
