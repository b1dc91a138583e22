"""The scale-invariant paper's runs: networks, stages, what is corrupted, training and resuming."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import manifoldnet as mn
from manifoldnet.experiments import ConfigError, Dataset, checkpoint, load
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.papers.scale_invariant import grids
from manifoldnet.experiments.papers.scale_invariant.config import (
    ARCHITECTURES,
    METHODS,
    StageConfig,
)
from manifoldnet.experiments.papers.scale_invariant.parts import make_parts
from manifoldnet.experiments.papers.scale_invariant.run import EXPERIMENT, Run
from manifoldnet.experiments.papers.scale_invariant.stages import build_stage
from manifoldnet.experiments.papers.scale_invariant.watch import Watch
from manifoldnet.experiments.training import train_in, train_whole
from manifoldnet.nn import Confidence, ModulusFeatures

TINY = StageConfig(epochs=2, batch_size=20, train_size=60, embedding_dim=None)


@pytest.fixture(scope="module")
def squares():
    """Three classes of 32x32 pictures: bright bars at different places."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randint(0, 60, (90, 1, 32, 32), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, 0, 8 * label + 4 : 8 * label + 10] += 150
    return Dataset("squares", images[:72], labels[:72], images[72:], labels[72:], ("a", "b", "c"))


# Networks


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
    architecture = ARCHITECTURES[name]
    side = architecture.side
    with torch.device("meta"):
        features = ModulusFeatures(
            (channels, side, side), architecture.widths, architecture.kernels
        )
        images = torch.empty(2, channels, side, side)
        for stage, (width, size) in zip(features.stages, sizes, strict=True):
            images = stage(images)
            assert images.shape == (2, width, size, size)
    assert features.out_features == images[0].numel() + 1


def test_images_become_squares(tmp_path):
    digits = load("digits", side=32)
    plain = load("digits")
    assert digits.train_images.shape[1:] == (1, 32, 32)
    assert torch.equal(digits.train_images[:, :, 12:20, 12:20], plain.train_images)
    assert digits.train_images.sum() == plain.train_images.sum()  # zeros around


# Stages


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_gives_a_score_per_class_and_a_mean_loss(method):
    config = StageConfig(method=method)
    stage, loss = build_stage(config, 12, 5, seeded_generator(0, "start"))
    again, _ = build_stage(config, 12, 5, seeded_generator(0, "start"))
    features, labels = torch.randn(7, 12), torch.arange(7) % 5
    scores = stage(features)
    assert scores.shape == (7, 5)
    assert torch.equal(scores, again(features))
    each = torch.stack([loss(scores[i : i + 1], labels[i : i + 1]) for i in range(7)])
    assert torch.allclose(loss(scores, labels), each.mean())


def test_all_stages_start_alike():
    """Entries of the same size: with unit features, scores of order 1 before any scale."""
    sizes = {}
    for method in METHODS:
        stage, _ = build_stage(StageConfig(method=method), 400, 10, seeded_generator(0, "start"))
        matrix = stage.frame if method == "etf" else stage.weight
        sizes[method] = matrix.detach().norm(dim=1).mean().item()
    assert all(0.9 < size < 1.1 for size in sizes.values()), sizes


def test_the_fixed_frame_is_a_simplex_and_is_not_trained():
    stage, _ = build_stage(StageConfig(method="etf"), 12, 5, seeded_generator(0, "start"))
    assert not list(stage.parameters())
    products = stage.frame @ stage.frame.T
    assert torch.allclose(products, (5 * torch.eye(5) - 1) / 4, atol=1e-6)


def test_the_other_stages_are_what_they_are_called():
    features, labels = torch.randn(7, 12), torch.arange(7) % 5
    stage, _ = build_stage(StageConfig(method="cosine"), 12, 5, seeded_generator(0, "start"))
    cosines = torch.cosine_similarity(features[:, None], stage.weight[None], dim=2)
    assert torch.allclose(stage(features), 10 * cosines, atol=1e-5)
    stage(features).square().sum().backward()
    assert stage.log_scale.grad > 0
    stage, smoothed = build_stage(
        StageConfig(method="smoothing"), 12, 5, seeded_generator(0, "start")
    )
    chances = stage(features).log_softmax(1)
    right = chances.gather(1, labels[:, None]).mean()
    assert torch.allclose(smoothed(stage(features), labels), -0.9 * right - 0.1 * chances.mean())


def test_only_the_papers_stage_has_a_dimension():
    with pytest.raises(ConfigError, match="logistic has as many outputs as there are classes"):
        StageConfig(method="logistic", embedding_dim=20)


# Data


@given(st.floats(0, 1), st.integers(0, 5))
def test_as_many_labels_are_wrong_as_was_asked_for(share, seed):
    labels = torch.arange(72) % 3
    images = torch.zeros(72, 1, 32, 32, dtype=torch.uint8)
    data = Dataset("d", images, labels, images[:3], labels[:3], ("a", "b", "c"))
    clean = make_parts(StageConfig(seed=seed), data)
    noisy = make_parts(StageConfig(seed=seed, wrong_labels=share), data)
    assert int((clean.train.labels != noisy.train.labels).sum()) == round(72 * share)
    assert noisy.train.labels.min() >= 0
    assert noisy.train.labels.max() < 3
    assert torch.equal(clean.test.labels, noisy.test.labels)  # never those that count


def test_a_larger_share_of_wrong_labels_has_the_smaller_one_inside(squares):
    labels = [
        make_parts(StageConfig(wrong_labels=share), squares).train.labels for share in (0, 0.2, 0.5)
    ]
    few, many = labels[1] != labels[0], labels[2] != labels[0]
    assert torch.equal(labels[1][few], labels[2][few])
    assert many[few].all()


@pytest.mark.parametrize("kind", ["noise", "contrast"])
def test_outliers_are_gross(squares, kind):
    config = StageConfig(outliers=0.25, outlier_kind=kind, outlier_scale=50.0)
    clean, odd = make_parts(StageConfig(), squares), make_parts(config, squares)
    rows = torch.arange(72)
    changed = odd.gain != 1
    assert int(changed.sum()) == 18
    before, after = clean.batch(rows), odd.batch(rows)
    assert torch.equal(before[~changed], after[~changed])
    same = torch.allclose(after[changed], 50 * before[changed])
    assert same == (kind == "contrast")
    assert after[changed].amax() > 10
    assert torch.equal(clean.train.pixels, make_parts(StageConfig(), squares).train.pixels)


def test_noise_is_uniform_over_the_pixels_there_are_and_stays_with_its_image(squares):
    digits = dataclasses.replace(squares, white=16)
    config = StageConfig(outliers=0.25, outlier_scale=50.0)
    parts = make_parts(config, digits)
    odd = (parts.gain != 1).nonzero().flatten()
    pixels = parts.train.pixels[odd]
    assert (int(pixels.min()), int(pixels.max())) == (0, 16)
    assert pixels.double().mean().item() == pytest.approx(8, rel=0.02)
    rows = torch.tensor([int(odd[0]), int(odd[-1])])
    assert torch.allclose(parts.batch(rows).flatten(1), 50 * parts.train.vectors(rows))


def test_the_seed_decides_all_that_is_random_each_by_itself(squares):
    alike = dataclasses.replace(squares, train_labels=torch.zeros_like(squares.train_labels))
    config = StageConfig(validation_size=12, wrong_labels=0.3, outliers=0.3)
    one, other, again = (
        make_parts(dataclasses.replace(config, seed=seed), alike) for seed in (0, 1, 0)
    )
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert torch.equal(one.train.labels, again.train.labels)
    assert not torch.equal(one.validation.pixels, other.validation.pixels)
    wrong, odd = one.train.labels != 0, one.gain != 1
    assert not torch.equal(wrong, other.train.labels != 0)
    assert not torch.equal(odd, other.gain != 1)
    assert not torch.equal(wrong, odd)
    first, second = (Run(dataclasses.replace(TINY, seed=seed), squares) for seed in (0, 1))
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert not torch.equal(ours, theirs)
    assert not torch.equal(first.generator.get_state(), second.generator.get_state())


def test_validation_images_choose_and_test_images_judge_at_the_end(squares):
    config = dataclasses.replace(TINY, train_size=40, validation_size=12, lr=0.1)
    first, last = train_whole(EXPERIMENT, config, squares).epochs
    assert math.isnan(first.test_error)
    assert 0 <= last.test_error <= 1
    assert all(0 <= epoch.validation_error <= 1 for epoch in (first, last))
    assert sum(last.bin_count) == 9  # of the 18 test images
    assert train_whole(EXPERIMENT, TINY, squares).epochs[0].validation_error is None


def test_validation_images_are_no_others(squares):
    parts = make_parts(StageConfig(validation_size=12, train_size=40), squares)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (40, 12, 18)
    trained = {tuple(row) for row in parts.train.pixels.tolist()}
    assert not trained & {tuple(row) for row in parts.validation.pixels.tolist()}
    assert not trained & {tuple(row) for row in squares.test_images.flatten(1).tolist()}
    assert make_parts(StageConfig(), squares).validation is None
    wrong = dataclasses.replace(StageConfig(validation_size=12, train_size=40), wrong_labels=1.0)
    assert torch.equal(make_parts(wrong, squares).validation.labels, parts.validation.labels)
    sizes = {EXPERIMENT.sizes(config) for config in (wrong, StageConfig(train_size=40))}
    assert len(sizes) == 2  # what is checked before a sweep
    with pytest.raises(ConfigError, match="does not leave room for 65 training and 12 validation"):
        make_parts(StageConfig(validation_size=12, train_size=65), squares)


# Training


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(squares, method):
    rate = {"rescaled": 0.1, "cosine": 0.1}.get(method, 0.02)
    config = dataclasses.replace(TINY, method=method, lr=rate, epochs=6)
    record = train_whole(EXPERIMENT, config, squares)
    assert record.result.status == "finished"
    assert record.result.test_error < 0.2
    assert record.epochs[-1].violation < 1e-5
    assert record.result.seconds == pytest.approx(sum(epoch.seconds for epoch in record.epochs))
    assert record.epochs[0].gradient_norm > 0
    assert (record.epochs[0].step_ratio > 0) == (method != "etf")
    assert record.epochs[0].largest_step_ratio >= record.epochs[0].step_ratio


def test_what_is_measured_of_a_step_is_right(squares):
    config = dataclasses.replace(TINY, batch_size=60, lr=0.5)  # one step an epoch
    run = Run(config, squares)
    parts = make_parts(config, squares)
    before = [p.detach().clone() for p in run.network.parameters()]
    measured = run.train_pass(parts)
    after = [p.detach() for p in run.network.parameters()]
    gradients = [p.grad for p in run.network.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert measured["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    ratio = (after[-1] - before[-1]).norm() / before[-1].norm()
    assert measured["step_ratio"] == pytest.approx(ratio.item(), rel=1e-5)
    assert isinstance(mn.manifolds(run.network)["1.weight"], mn.Sphere)


def test_what_is_measured_neither_overflows_nor_hides_a_nan():
    stage = torch.nn.Linear(2, 1, bias=False)
    watch = Watch(stage, [])
    one, labels = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    assert watch.answered(one, None, one, labels, torch.tensor(1.0))
    stage.weight.data.fill_(1.0)
    stage.weight.grad = torch.full((1, 2), 1e30)  # the square of which float32 does not hold
    assert watch.differentiated()
    stage.weight.data.fill_(3.0)
    assert watch.stepped()
    assert not watch.answered(one, None, one, labels, torch.tensor(math.nan))
    measured = watch.row()
    assert measured["gradient_norm"] == pytest.approx(1e30 * 2**0.5)
    assert measured["step_ratio"] == 2  # of what the matrix was before
    assert math.isnan(measured["largest_loss"])
    assert measured["overflow"] == "loss, minibatch 2"


def test_what_is_measured_of_an_epoch_is_over_its_minibatches(squares):
    config = dataclasses.replace(TINY, batch_size=25, lr=0.5)  # the last one has ten
    run, parts = Run(config, squares), make_parts(config, squares)
    with torch.no_grad():
        run.network[0].stages[0].weight[0, 0, 0, 0] = -5.0
    seen, asked, told, loss = [], [], [], run.loss
    steps, norms, step = [], [], run.optimizer.step

    def keep(scores, labels):
        seen.append(labels)
        asked.append((scores.detach().argmax(1) != labels).sum())
        told.append(loss(scores, labels))
        return told[-1]

    def watched():
        before = run.network[1].weight.detach().clone()
        gradients = [p.grad.flatten() for p in run.network.parameters()]
        norms.append(float(torch.cat(gradients).norm()))
        step()
        steps.append(float((run.network[1].weight.detach() - before).norm() / before.norm()))

    run.loss, run.optimizer.step = keep, watched
    measured = run.train_pass(parts)
    assert not torch.equal(torch.cat(seen), parts.train.labels)  # in an order of their own
    assert torch.equal(torch.cat(seen).sort().values, parts.train.labels.sort().values)
    losses = [float(value.detach()) for value in told]
    assert measured["train_error"] == float(sum(asked)) / 60
    mean = (25 * losses[0] + 25 * losses[1] + 10 * losses[2]) / 60
    assert measured["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert measured["largest_loss"] == max(losses)
    assert measured["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
    assert measured["largest_gradient_norm"] == pytest.approx(max(norms), rel=1e-5)
    assert measured["step_ratio"] == pytest.approx(sum(steps) / 3, rel=1e-5)
    assert measured["largest_step_ratio"] == pytest.approx(max(steps), rel=1e-5)
    assert measured["largest_weight"] > 4  # it was a negative one
    assert measured["norm_error"] < 1e-5


def test_kernels_can_be_on_spheres(squares):
    record = train_whole(EXPERIMENT, dataclasses.replace(TINY, spheres=True, lr=0.1), squares)
    assert 0 < record.epochs[-1].violation < 1e-5
    assert record.result.status == "finished"
    run = Run(dataclasses.replace(TINY, spheres=True), squares)
    plain = Run(TINY, squares)
    assert sum(isinstance(m, mn.Sphere) for m in mn.manifolds(run.network).values()) == 4
    for ours, theirs in zip(run.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)  # both start alike


def test_the_confidence_is_fitted_on_half_of_the_test_images_and_judged_on_the_other(squares):
    config = dataclasses.replace(TINY, lr=0.02, epochs=1)
    run, parts = Run(config, squares), make_parts(config, squares)
    epoch = run.epoch(1, parts)
    scores, labels = run.scores(parts.test, parts.size), parts.test.labels
    confidence = Confidence.fit(scores[::2], labels[::2])
    assert epoch.concentration == confidence.concentration
    assert confidence != Confidence.fit(scores[1::2], labels[1::2])
    right = (scores[1::2].argmax(1) == labels[1::2]).sum()
    assert (sum(epoch.bin_count), sum(epoch.bin_right)) == (9, int(right))
    assert sum(epoch.bin_sure) == pytest.approx(float(confidence(scores[1::2]).sum()), rel=1e-6)


def test_the_confidence_is_measured_after_the_last_epoch(squares):
    record = train_whole(EXPERIMENT, dataclasses.replace(TINY, lr=0.1), squares)
    first, last = record.epochs
    assert (first.concentration, first.bin_count) == (None, ())
    assert sum(last.bin_count) == 9  # κ is fitted on the other nine
    assert last.concentration >= 0
    assert all(right <= n for right, n in zip(last.bin_right, last.bin_count, strict=True))
    assert all(sure <= n for sure, n in zip(last.bin_sure, last.bin_count, strict=True))


@pytest.mark.parametrize("h", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("spheres", [False, True])
def test_the_rescaled_stage_is_stable_at_every_rate(squares, h, spheres):
    config = dataclasses.replace(TINY, lr=h, spheres=spheres, epochs=3)
    record = train_whole(EXPERIMENT, config, squares)
    assert record.result.status == "finished"
    for epoch in record.epochs:
        assert epoch.overflow == ""
        assert epoch.norm_error < 1e-5
        assert 0 <= epoch.train_loss <= epoch.largest_loss <= 4


def test_scores_that_overflow_on_other_images_are_a_divergence(squares):
    run = Run(TINY, squares)
    parts = make_parts(TINY, squares)
    measured = run.train_pass(parts)
    run.train_pass = lambda parts: (blow_up(run), measured)[1]
    epoch = run.epoch(2, parts)
    assert math.isnan(epoch.test_error)
    assert epoch.overflow == "scores of the test images"


def blow_up(run):
    with torch.no_grad():
        for weight in run.network[0].parameters():
            weight.mul_(1e38)


def test_what_overflowed_is_named(squares):
    config = dataclasses.replace(TINY, method="logistic", lr=1e30, epochs=3)
    record = train_whole(EXPERIMENT, config, squares)
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
    config = dataclasses.replace(TINY, method="logistic", lr=0.01)
    run, parts = Run(config, squares), make_parts(config, squares)
    spoil(run)
    before = run.network[1].weight.detach().clone()
    measured = run.train_pass(parts)
    where = spoil.__name__.removeprefix("spoil_")
    assert measured["overflow"] == f"{where}, minibatch 1"
    assert torch.equal(run.network[1].weight, before) == (where != "weights")
    assert math.isfinite(measured["largest_loss"]) == (where not in {"features", "loss"})


def test_logistic_regression_overflows_where_the_rescaled_stage_does_not(squares):
    def ended(method):
        config = dataclasses.replace(TINY, method=method, lr=1e6, epochs=3)
        return train_whole(EXPERIMENT, config, squares)

    assert ended("logistic").result.diverged
    losses = [epoch.train_loss for epoch in ended("rescaled").epochs]
    assert all(0 <= loss <= 4 for loss in losses)


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_bit_for_bit(squares, tmp_path):
    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        train_in(EXPERIMENT, TINY, tmp_path / "parts", squares, on_epoch=stop)
    parts = train_in(EXPERIMENT, TINY, tmp_path / "parts", squares, resume=True)
    whole = train_in(EXPERIMENT, TINY, tmp_path / "whole", squares)
    clock = {"seconds": 0.0, "train_seconds": 0.0}
    assert [dataclasses.replace(e, **clock) for e in parts.epochs] == [
        dataclasses.replace(e, **clock) for e in whole.epochs
    ]
    states = [
        torch.load(checkpoint.checkpoint_path(tmp_path / name), weights_only=True)["states"][
            "model"
        ]
        for name in ("parts", "whole")
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_dim": 1}, "embedding_dim is 1, too few for the regular simplex of 3 classes"),
        ({"embedding_dim": 2, "simplex": "standard"}, "too few for the standard simplex"),
        ({"architecture": "imagenet-smaller"}, "stage 4 of 4: images of 256x2x2 have height 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(squares, fields, message):
    with pytest.raises(ConfigError, match=message):
        train_whole(EXPERIMENT, dataclasses.replace(TINY, **fields), squares)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "svm"}, "method is 'svm'; choose one of rescaled, logistic"),
        ({"lr": None}, "lr is None; it must be a number"),
        ({"wrong_labels": 1.5}, r"wrong_labels is 1.5; it must be a number in \[0, 1\]"),
        ({"outlier_kind": "odd"}, "choose one of noise, contrast"),
        ({"train_size": 0}, "train_size is 0"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        StageConfig(**fields)


def test_rates_may_be_chosen_on_longer_runs() -> None:
    short = grids.choice("mnist", "smaller", ["rescaled", "logistic"])
    longer = grids.choice("mnist", "smaller", ["rescaled", "logistic"], train_size=50_000, epochs=2)
    assert len(longer) == len(short) == 28
    assert {(run.train_size, run.epochs, run.validation_size) for run in longer} == {
        (50_000, 2, 2000)
    }
    assert [run.lr for run in longer] == [run.lr for run in short]
    with pytest.raises(ConfigError, match="epochs"):
        grids.choice("mnist", "smaller", ["logistic"], epochs=0)
