"""SegNet: its structure and symmetries, its scores, its training, its sweep and report."""

import copy
import csv
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import CAR, ROAD, SKY, VOID, scene, scenes, write_all
from sweeps import Here
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments import (
    ConfigError,
    DataError,
    ExperimentError,
    RecordError,
    records,
    store,
)
from manifoldnet.experiments.checkpoint import record_path
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.papers.segnet import config, report, studies
from manifoldnet.experiments.papers.segnet.config import (
    BALANCES,
    PRESETS,
    SegmentationConfig,
    SegmentationEpoch,
    SegmentationRecord,
    confusion,
    scores,
)
from manifoldnet.experiments.papers.segnet.data import augment, class_weights, load, parts
from manifoldnet.experiments.papers.segnet.network import SegNet
from manifoldnet.experiments.papers.segnet.report import (
    PREDICTIONS,
    WITHOUT_PHOTOGRAPHS,
    write_scene_report,
)
from manifoldnet.experiments.papers.segnet.run import EXPERIMENT, Run, predict, write_predictions
from manifoldnet.experiments.papers.updates import declare
from manifoldnet.experiments.study import repeated
from manifoldnet.experiments.sweep import sweep
from manifoldnet.experiments.training import train_in, train_whole
from manifoldnet.symmetry import invariance_error, without_eps

TINY = SegmentationConfig(height=32, width=40, filters=2, epochs=2, batch_size=3)
replace = dataclasses.replace


@pytest.fixture(scope="module")
def data():
    return scenes()


# The network


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_the_paper_preset_has_the_layout_of_vgg16_and_its_mirror_image():
    with torch.device("meta"):
        network = SegNet(11, width=PRESETS["paper"].filters)
    vgg16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [layer.out_channels for layer in convolutions(network.encoder)] == vgg16
    decoder = convolutions(network.decoder)
    assert [layer.in_channels for layer in decoder] == vgg16[::-1]
    assert [layer.out_channels for layer in decoder] == [*vgg16[-2::-1], 64]
    assert network.head.out_channels == 11
    assert all(layer.bias is None for layer in convolutions(network))
    size = PRESETS["paper"].height, PRESETS["paper"].width
    assert network(torch.empty(12, 3, *size, device="meta")).shape == (12, 11, 360, 480)


@settings(max_examples=20)
@given(st.integers(32, 70), st.integers(32, 70))
def test_scores_have_the_size_of_the_images(height, width):
    with torch.device("meta"):
        network = SegNet(11, width=2)
        assert network(torch.empty(2, 3, height, width)).shape == (2, 11, height, width)


def test_images_too_small_for_five_poolings_are_refused():
    with pytest.raises(ConfigError, match="31x64"):
        SegNet(11, width=2)(torch.zeros(2, 3, 31, 64))


def test_unpooling_puts_maxima_back_to_their_indices():
    network = SegNet(2, width=2, channels=2).eval()
    seen = {}
    network.encoder[-1].register_forward_hook(lambda _, __, out: seen.update(before=out))
    network.decoder[0].register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
    network(torch.rand(1, 2, 32, 32))
    before, after = seen["before"], seen["after"]  # 2x2: one pooling window
    assert after.shape == before.shape
    kept = after != 0
    assert kept.flatten(2).sum(-1).le(1).all()
    assert torch.equal(after[kept], before[kept])
    assert torch.equal(after.amax((2, 3)), before.amax((2, 3)))


def test_the_start_has_filters_of_unit_norm_and_is_seeded():
    made = [SegNet(11, width=4, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert all(map(torch.equal, made[0].parameters(), made[1].parameters()))
    for layer in convolutions(made[0]):
        assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.ones(layer.out_channels))


def test_a_standardized_network_is_invariant_under_illumination():
    networks = [
        SegNet(5, width=2, standardize=standardize, generator=seeded_generator(0, "start")).double()
        for standardize in (True, False)
    ]
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    gain = torch.tensor([0.5, 2.0, 1.5]).double()[:, None, None]
    # The median: ε may move the index of a maximum.
    moved, plain = ((f(images) - f(gain * images + 0.3)).abs().median() for f in networks)
    assert moved < 2e-3 < 1e-1 < plain


def test_the_memory_format_changes_nothing():
    networks = [SegNet(3, width=2, generator=seeded_generator(0, "start")) for _ in range(2)]
    networks[1].to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 45, 51, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for network, form in zip(networks, (torch.contiguous_format, torch.channels_last), strict=True):
        result = network.double()(images.contiguous(memory_format=form))
        result.square().sum().backward()
        found.append([result, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def exact():
    """A small network in double precision, and a batch of scenes."""
    network = SegNet(11, width=2, generator=torch.Generator().manual_seed(0)).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        batch = torch.rand(4, 3, 32, 32).double(), torch.randint(0, 11, (4, 32, 32))
    return network, batch


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_invariant_under_every_filter_but_the_heads(exact, training):
    network, batch = exact
    group = network.symmetries()
    assert group.dimension == sum(layer.out_channels for layer in convolutions(network)) - 11
    network.train(training)
    element = group.sample(spread=3.0, generator=torch.Generator().manual_seed(0))
    with without_eps(network):
        assert invariance_error.loss(network, element, cross_entropy, batch) < 1e-9


def test_scaled_metric_steps_are_equivariant_and_euclidean_ones_are_not(exact):
    network, batch = exact
    network.train()
    element = network.symmetries().sample(spread=2.0, generator=torch.Generator().manual_seed(0))

    def error(update):
        def optimizer(model):
            declare(model, update)
            return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)

        with without_eps(network):
            return invariance_error.update(network, element, cross_entropy, batch, optimizer)

    assert error("sm") < 1e-6
    assert error("b-sgd") > 1e-3


# Scores


@given(
    arrays("uint8", (3, 5), elements=st.integers(0, 4)),
    arrays("uint8", (3, 5), elements=st.integers(0, 3)),
)
def test_scores_agree_with_counting_by_hand(labels, predicted):
    labels, predicted = torch.from_numpy(labels), torch.from_numpy(predicted)
    both = zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True)
    pairs = [(a, b) for a, b in both if a < 4]  # 4 is void
    matrix = confusion(labels, predicted, 4)
    assert matrix.sum() == len(pairs)
    found = scores(matrix)
    assert repr(scores(matrix.flatten().tolist())) == repr(found)

    def ratio(part, whole):
        return pytest.approx(part / whole if whole else math.nan, nan_ok=True)

    assert found.global_accuracy == ratio(sum(a == b for a, b in pairs), len(pairs))
    for k in range(4):
        right = sum(a == b == k for a, b in pairs)
        assert found.class_accuracies[k] == ratio(right, sum(a == k for a, _ in pairs))
        assert found.ious[k] == ratio(right, sum(k in pair for pair in pairs))
    known = [x for x in found.ious if not math.isnan(x)]
    assert found.mean_iou == ratio(sum(known), len(known))


# Training


def test_weights_are_median_frequency(data):
    masks, weights, frequency = data.train_masks, class_weights(data), {}
    for k in (SKY, ROAD, CAR):
        inside = masks[(masks == k).flatten(1).any(1)]
        frequency[k] = float((inside == k).double().mean())
    median = sorted(frequency.values())[1]
    for k, share in frequency.items():
        assert float(weights[k]) == pytest.approx(median / share, rel=1e-6)
    assert weights[[k for k in range(11) if k not in frequency]].eq(1).all()
    assert weights[CAR] > weights[ROAD]  # rare classes weigh more


class Recorder(nn.Module):
    """Passes its images on as scores, and remembers them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pixels):
        self.seen.append(pixels.detach().clone())
        return pixels.repeat(1, 4, 1, 1)[:, :11].requires_grad_()


def test_masks_are_mirrored_with_their_images(data, monkeypatch):
    run = Run(replace(TINY, batch_size=6), data)
    run.network = Recorder()
    labels = []
    monkeypatch.setattr(
        "manifoldnet.experiments.papers.segnet.run.cross_entropy",
        lambda scores, masks, *_, **__: (
            labels.append(masks.clone()) or cross_entropy(scores, masks, ignore_index=11)
        ),
    )
    run.train_pass(data)
    turned = 0
    for pixels, mask in zip(run.network.seen[0], labels[0], strict=True):
        image = (pixels * 255).round().byte()
        as_is = [torch.equal(image, other) for other in data.train_images]
        mirrored = [torch.equal(image, other.flip(-1)) for other in data.train_images]
        assert sum(as_is) + sum(mirrored) == 1
        turned += any(mirrored)
        expected = data.train_masks[(mirrored if any(mirrored) else as_is).index(True)]
        assert torch.equal(mask.byte(), expected.flip(-1) if any(mirrored) else expected)
    assert 0 < turned < 6


def test_windows_are_enlarged_with_their_masks():
    """Images that show their masks still do, where neighbours agree; half are as they were."""
    _, mask = scene(1)
    masks = torch.from_numpy(mask).expand(60, -1, -1).clone()
    shown = (masks[:, None] * 20).expand(-1, 3, -1, -1).clone()
    config = replace(TINY, mirror=False, zoom=2.0)
    pictures, found = augment(
        shown.clone(), masks.clone(), config, torch.Generator().manual_seed(0)
    )
    assert pictures.shape == shown.shape
    assert set(found.unique().tolist()) <= set(masks.unique().tolist())
    right = (pictures[:, 0].int() - 20 * found.int()).abs() <= 1
    assert right.double().mean() > 0.9
    assert 15 < sum(map(torch.equal, found, masks)) < 45
    assert len({tuple(m.flatten().tolist()) for m in found}) > 15
    sky = [(m == SKY).double().mean().item() for m in found]
    assert min(sky) < (masks[0] == SKY).double().mean() < max(sky)


def test_gamma_leaves_black_white_and_masks():
    shown = torch.arange(256, dtype=torch.uint8).expand(20, 3, 1, -1).clone()
    masks = torch.zeros(20, 1, 256, dtype=torch.uint8)
    config = replace(TINY, mirror=False, gamma=2.0)
    pictures, found = augment(shown.clone(), masks, config, torch.Generator().manual_seed(0))
    assert torch.equal(found, masks)
    assert torch.equal(pictures[..., [0, 255]], shown[..., [0, 255]])
    assert (pictures.int().diff(dim=-1) >= 0).all()
    middle = pictures[:, 0, 0, 128].int()
    assert 60 <= middle.min() < 110 < 150 < middle.max() <= 182
    same, _ = augment(shown, masks, replace(config, gamma=1.0), torch.Generator())
    assert same is shown


@pytest.mark.parametrize("balance", BALANCES)
def test_the_loss_is_the_weighted_mean_over_labelled_pixels(data, balance):
    config = replace(TINY, class_balance=balance, mirror=False, batch_size=9)
    run = Run(config, data)
    logits = Run(config, data).network(data.train_images.float() / 255).detach().double()
    power = {"median-frequency": 1, "root-median-frequency": 0.5, "none": 0}[balance]
    weights = (class_weights(data) ** power).double()
    valid = data.train_masks != VOID
    assert not valid.all()
    labels = data.train_masks[valid].long()
    chances = logits.log_softmax(1).movedim(1, -1)[valid].gather(1, labels[:, None])[:, 0]
    expected = -(weights[labels] * chances).sum() / weights[labels].sum()
    assert run.train_pass(data)["train_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_the_rate_decays_the_steps_have_momentum_and_the_last_epoch_is_tested(data):
    config = replace(TINY, lr=0.02, decay=0.5, momentum=0.7, epochs=3)
    run = Run(config, data)
    epochs = [run.epoch(n, data) for n in (1, 2, 3)]
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.02, 0.01, 0.005])
    assert {group["momentum"] for group in run.optimizer.param_groups} == {0.7}
    assert [epoch.test_confusion is None for epoch in epochs] == [True, True, False]
    predicted = predict(run.network, data.test_images)
    right = (predicted == data.test_masks)[data.test_masks != VOID]
    result = EXPERIMENT.verdict(config, epochs)
    assert result.global_accuracy == pytest.approx(float(right.double().mean()))
    assert EXPERIMENT.verdict(config, epochs[:2]) is None


def test_predictions_are_independent_of_the_batch(data):
    run = Run(TINY, data)
    run.train_pass(data)
    before = copy.deepcopy(run.network.state_dict())
    together = predict(run.network, data.test_images)
    alone = torch.cat([predict(run.network, image[None]) for image in data.test_images])
    assert torch.equal(together, alone)
    assert all(map(torch.equal, before.values(), run.network.state_dict().values()))


@pytest.mark.parametrize("update", ["b-sgd", "sm", "un"])
def test_it_learns_and_stays_on_its_manifold(data, update):
    config = replace(TINY, update=update, epochs=12, filters=4, lr=0.1)
    record = train_whole(EXPERIMENT, config, data)
    first, last = record.epochs[0], record.epochs[-1]
    assert record.result.status == "finished"
    assert last.train_loss < 0.7 * first.train_loss
    assert last.violation < 1e-5
    assert last.train_accuracy > first.train_accuracy + 0.2


def test_a_run_that_diverges_has_no_scores(data):
    record = train_whole(EXPERIMENT, replace(TINY, lr=1e30, update="b-sgd", epochs=9), data)
    assert record.result.diverged
    assert len(record.epochs) < 9
    assert math.isnan(record.result.mean_iou)


class Stop(Exception):
    pass


def stop_after(number):
    def stop(epoch):
        if epoch.epoch == number:
            raise Stop

    return stop


def test_an_interrupted_run_resumes_bit_for_bit(data, assert_resumes):
    assert_resumes(EXPERIMENT, replace(TINY, epochs=3), data)


# Configurations


@pytest.mark.parametrize(
    "field",
    [
        *({"update": "adam"}, {"lr": None}, {"lr": math.nan}, {"height": 31}, {"zoom": 0.5}),
        *({"class_balance": "even"}, {"standardize": 1}, {"mirror": 1}, {"dataset": ""}),
    ],
)
def test_invalid_fields_are_named(field):
    (name,) = field
    with pytest.raises(ConfigError, match=f"^{name} is"):
        SegmentationConfig(**field)


def test_identities_of_configurations_are_stable():
    assert SegmentationConfig().identity() == "45ba31c2dddfe56e"


def test_the_presets_weigh_classes_by_median_frequency():
    assert {preset.class_balance for preset in PRESETS.values()} == {"median-frequency"}


def test_updates_are_named_once():
    assert list(config.first_rates(["un", "sm"])) == ["un", "sm"]
    for updates in (["un", "un"], [], ["adam"]):
        with pytest.raises(ConfigError):
            config.first_rates(updates)


# Sequences


def test_a_sequence_that_is_held_out_is_judged_by_and_not_trained_on(data):
    found = parts(replace(TINY, held_out=("A",)), data)
    assert set(found.train_sequences) == {"B"}
    assert torch.equal(found.train_images, data.train_images[[1, 2, 5]])
    assert torch.equal(found.train_masks, data.train_masks[[1, 2, 5]])
    wanted = torch.cat([data.train_images[[0, 3, 4]], data.validation_images])
    assert torch.equal(found.validation_images, wanted)
    assert len(found.validation_masks) == 6
    assert found.validation_sequences == ("A",) * 6
    assert torch.equal(found.test_images, data.test_images)
    other = parts(replace(TINY, held_out=("B",)), data)
    assert torch.equal(other.validation_images, data.train_images[[1, 2, 5]])
    assert parts(TINY, data) is data


def test_fewer_training_images_are_evenly_spaced(data):
    found = parts(replace(TINY, train_images=3), data)
    assert torch.equal(found.train_images, data.train_images[[0, 2, 4]])
    assert torch.equal(found.validation_images, data.validation_images)
    both = parts(replace(TINY, held_out=("A",), train_images=2), data)
    assert torch.equal(both.train_masks, data.train_masks[[1, 2]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": ("D",)}, "held_out names D; camvid has training images of A, B"),
        ({"held_out": ("A", "B")}, "without A, B there are 0 training images"),
        ({"train_images": 7}, "train_images is 7; without any there are 6"),
    ],
)
def test_parts_that_do_not_exist_are_refused(data, fields, message):
    with pytest.raises(ConfigError, match=message):
        parts(replace(TINY, **fields), data)


def test_frames_without_names_have_no_sequences(data):
    nameless = replace(data, train_sequences=(), validation_sequences=(), test_sequences=())
    with pytest.raises(ConfigError, match="no sequences, as its images have no names"):
        parts(replace(TINY, held_out=("A",)), nameless)
    assert len(parts(replace(TINY, train_images=3), nameless).train_images) == 3
    (last,) = train_whole(EXPERIMENT, replace(TINY, epochs=1), nameless).epochs
    assert last.sequence_confusions is None


def test_class_weights_are_those_of_the_images_trained_on(data):
    few = parts(replace(TINY, held_out=("A",)), data)
    run = Run(replace(TINY, held_out=("A",), class_balance="median-frequency"), data)
    assert torch.equal(run.weights, class_weights(few))
    assert not torch.equal(run.weights, class_weights(data))


def test_test_images_are_scored_by_sequence(data):
    record = train_whole(EXPERIMENT, TINY, data)
    first, last = record.epochs
    assert first.test_sequences is None
    assert last.test_sequences == ("A", "C")
    matrices = torch.tensor(last.sequence_confusions).reshape(2, 11, 11)
    assert torch.equal(matrices.sum(0).flatten(), torch.tensor(last.test_confusion))
    labelled = (data.test_masks[2] != VOID).sum()  # of A
    assert matrices[0].sum() == labelled
    assert records.from_text(records.to_text(record), EXPERIMENT.schema, "it", "") == record


# The choice


def ended(error: float, **fields):
    """A record whose validation images have this share of right pixels."""
    made = replace(TINY, **fields)
    right = round(1000 * error)
    matrix = (right, 1000 - right, 0, 1000)
    epoch = SimpleNamespace(validation_confusion=matrix)
    result = SimpleNamespace(diverged=fields.get("lr", 1) > 1)
    return SimpleNamespace(config=made, epochs=(epoch,), result=result)


def test_the_best_run_is_that_of_highest_mean_iou_on_the_validation_images():
    runs = [
        ended(0.5, update="un", lr=0.1),
        ended(0.8, update="un", lr=0.3),
        ended(0.8, update="un", lr=0.2),
        ended(0.9, update="un", lr=10.0),  # it diverged
        ended(0.1, update="sm", lr=0.2),
    ]
    assert {u: run.lr for u, run in config.best(runs).items()} == {"un": 0.3, "sm": 0.2}
    assert config.judged(runs[3]) == -1
    assert config.judged(runs[0]) == pytest.approx((0.5 + 1000 / 1500) / 2)


def test_grids_of_rates_are_widened_until_the_best_is_inside():
    first = config.first_rates(["un"])
    assert [config.rate(k) for k in first["un"]] == [0.0316, 0.1, 0.316]
    runs = [ended(0.5 + k / 10, update="un", lr=config.rate(k)) for k in first["un"]]
    wider = config.widened(first, runs)
    assert wider == {"un": [-3, -2, -1, 0]}
    runs.append(ended(0.1, update="un", lr=config.rate(0)))
    assert config.widened(wider, runs) == wider


def test_shorter_runs_fall_as_far_and_what_is_chosen_is_taken_over():
    short = config.shortened(PRESETS["cpu"], 40)
    assert short.decay**40 == pytest.approx(PRESETS["cpu"].decay ** 100)
    choice = replace(short, update="sm", lr=0.2, zoom=1.8, gamma=2.0, held_out=("0006R0",))
    taken = config.as_chosen(PRESETS["paper"], choice)
    expected = replace(PRESETS["paper"], update="sm", lr=0.2, zoom=1.8, gamma=2.0)
    assert taken == expected


# The sweep and its report


@pytest.fixture
def small_preset(tmp_path, monkeypatch, in_process):
    """The `cpu` preset on made-up scenes, in a size that takes seconds."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_all(tmp_path / "data" / "camvid")
    monkeypatch.setattr(studies, "PRESETS", {"cpu": TINY, "paper": PRESETS["paper"]})
    monkeypatch.chdir(tmp_path)
    yield ["--data-dir", str(tmp_path / "data"), "--quiet", "--jobs", "1", "--out", "out"]
    datasets.enable_progress_bars()


@pytest.fixture
def go_on(small_preset, tmp_path):
    """A sweep with checkpoints in this process."""

    def run(configs):
        given = {"progress": False, "data_dir": tmp_path / "data", "checkpoints": True}
        return sweep(EXPERIMENT, configs, tmp_path / "out", executor=Here(), **given)

    return run


@pytest.mark.thorough
def test_the_command_chooses_trains_reports_and_resumes(small_preset, tmp_path, capsys):
    command = ["reproduce", "symmetry", "segnet", "--repetitions", "1", *small_preset]
    command += ["--held-out", "A", "--choice-epochs", "1"]
    out = tmp_path / "out"
    assert cli.main([*command, "--updates", "un"]) == 0
    printed = capsys.readouterr().out
    assert "1 runs of 1 updates are in out/updates, 0 diverged" in printed
    assert "un: rate " in printed
    first = {p.name: p.read_bytes() for p in out.glob("*/records/*")}
    choice = store.read_all(out / "choice", EXPERIMENT.schema).values()
    assert {(r.config.zoom, r.config.gamma) for r in choice} == set(config.AUGMENTATIONS)
    assert {(r.config.held_out, r.config.epochs) for r in choice} == {(("A",), 1)}
    assert cli.main(command) == 0  # the other two
    kept = {p.name: p.read_bytes() for p in out.glob("*/records/*")}
    assert first.items() < kept.items()
    assert (out / PREDICTIONS).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["report", "out"]) == 0
    text = capsys.readouterr().out
    assert "# SegNet on road scenes" in text
    assert "Chosen by the mean IoU on the sequence A" in text
    assert PREDICTIONS in text
    rows = list(csv.DictReader((out / "segnet.csv").read_text().splitlines()))
    columns = ["update", "seed", "global_accuracy", "class_accuracy", "mean_iou", "seconds"]
    assert list(rows[0]) == columns
    assert [row["update"] for row in rows] == ["b-sgd", "sm", "un"]
    found = store.read_all(out / "updates", EXPERIMENT.schema).values()
    by_update = {record.config.update: record.result for record in found}
    choice = store.read_all(out / "choice", EXPERIMENT.schema).values()
    for row in rows:
        assert float(row["mean_iou"]) == pytest.approx(by_update[row["update"]].mean_iou, rel=1e-5)
    for record in found:
        own = [r for r in choice if r.config.update == record.config.update]
        chosen = [r for r in own if config.as_chosen(record.config, r.config) == record.config]
        assert max(map(config.judged, own)) == config.judged(chosen[0])
        assert (record.config.held_out, record.config.epochs) == ((), 2)
    capsys.readouterr()
    command = ["reproduce", "symmetry", "table2", "--out", "out/updates", "--quiet"]
    assert cli.main(command) == 2
    assert "'segmentation', not 'classification'" in capsys.readouterr().err


@pytest.mark.thorough
def test_limits_are_measured_one_change_at_a_time(small_preset, tmp_path, monkeypatch, capsys):
    few = {
        "as chosen": {},
        "large": {"height": 64, "width": 80},
        "few filters": {"filters": 1},
        "without A": {"held_out": ("A",)},
        "3 images of all": {"train_images": 3},
    }
    for module in (config, studies, report):
        monkeypatch.setattr(module, "LIMITS", few)
    monkeypatch.setattr(report, "PRESETS", {"cpu": TINY})
    monkeypatch.setattr(studies, "first_rates", lambda updates: {u: [-2] for u in updates})
    monkeypatch.setattr(config, "_WIDEST", range(-2, -1))
    common = [*small_preset, "--held-out", "A", "--choice-epochs", "1"]
    assert cli.main(["reproduce", "symmetry", "segnet-limits", *common]) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"choice", "limits-32x40", "limits-64x80"}
    whole = ["reproduce", "symmetry", "segnet", *common, "--updates", "un", "--repetitions", "1"]
    assert cli.main(whole) == 0
    capsys.readouterr()
    assert cli.main(["report", "out", "--pack"]) == 0
    text = capsys.readouterr().out
    lines = text[text.index("## What limits") :].splitlines()
    rows = [" ".join(line.split()) for line in lines if line.startswith("| un")]
    assert [row.split(" | ")[1] for row in rows] == list(few)
    assert rows[0].endswith("| – | – | 1 |")
    assert "## Test images by sequence" in text
    assert {p.parent.name for p in out.glob("*/records.jsonl.gz")} == {
        *("choice", "updates", "limits-32x40", "limits-64x80")
    }
    assert cli.main(["reproduce", "symmetry", "segnet-limits", *common]) == 0  # nothing is missing
    assert not list(out.glob("*/records/*"))


def test_a_sweep_with_checkpoints_resumes_within_a_run(go_on, tmp_path):
    (config,) = repeated([replace(TINY, epochs=3)], 1)
    data = load(EXPERIMENT.source(config), tmp_path / "data")
    where = store.run_directory(tmp_path / "out", config)
    with pytest.raises(Stop):
        train_in(EXPERIMENT, config, where, data, on_epoch=stop_after(2))
    whole = train_whole(EXPERIMENT, config, data)
    before = records.read(record_path(where), EXPERIMENT.schema).epochs
    assert len(before) == 2
    (record,) = go_on([config])
    assert record.epochs[:2] == before  # clock and all: they were not trained again
    assert [e.validation_confusion for e in record.epochs] == [
        e.validation_confusion for e in whole.epochs
    ]


def test_runs_of_an_old_version_or_other_data_are_not_resumed(go_on, tmp_path):
    (config,) = repeated([replace(TINY, epochs=1)], 1)
    (record,) = go_on([config])
    (kept,) = (tmp_path / "out" / "records").iterdir()
    kept.unlink()
    own = record_path(store.run_directory(tmp_path / "out", config))
    text = own.read_text()
    for old in (text.replace(record.data, "0"), text.replace(f'"{mn.__version__}"', '"0.0.1"')):
        assert old != text
        own.write_text(old)
        with pytest.raises(ExperimentError, match="delete that directory"):
            go_on([config])
        assert not list((tmp_path / "out" / "records").iterdir())
    own.write_text(text)
    assert go_on([config]) == [record]


def test_predictions_are_drawn_from_intact_weights_and_the_same_data(
    go_on, small_preset, tmp_path, capsys
):
    out, data = tmp_path / "out", tmp_path / "data"
    found = go_on(repeated([replace(TINY, epochs=1)], 1))
    (checkpoint,) = (out / "runs").glob("*/checkpoint.pt")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    with pytest.raises(RecordError, match="truncated or damaged"):
        write_predictions(out, found, data)
    checkpoint.write_bytes(whole)
    with pytest.raises(DataError, match="other data"):
        write_predictions(out, [replace(found[0], data="00")], data)
    lost = replace(found[0], result=replace(found[0].result, status="diverged"))
    assert write_predictions(out, [lost], data) is None
    checkpoint.unlink()
    assert write_predictions(out, found, data) is None
    assert not (out / PREDICTIONS).exists()


def made_up(tmp_path, **fields):
    """A record of a run that nobody trained, in a folder."""
    config = replace(TINY, **fields)
    matrix = tuple(range(VOID * VOID))
    epochs = tuple(
        SegmentationEpoch(
            epoch=n,
            lr=0.1,
            train_loss=math.nan if config.lr > 1 else 1.0,
            train_accuracy=0.5,
            validation_confusion=matrix,
            test_confusion=matrix,
            violation=0.0,
            train_seconds=1.0,
            seconds=1.0,
        )
        for n in range(1, config.epochs + 1)
    )
    result = EXPERIMENT.verdict(config, epochs)
    record = SegmentationRecord(config, {"manifoldnet": mn.__version__}, "00", epochs, result)
    (tmp_path / "records").mkdir(parents=True, exist_ok=True)
    store.keep(tmp_path, record)
    return tmp_path / "records" / f"{config.identity()}.jsonl"


def test_a_report_of_two_protocols_is_refused(tmp_path):
    with pytest.raises(RecordError, match="holds no records"):
        write_scene_report(tmp_path)
    for update in ("un", "b-sgd"):
        made_up(tmp_path, update=update)
    assert "Updates against B-SGD" in write_scene_report(tmp_path).text
    for fields, message in (({"epochs": 5}, "epochs"), ({"lr": 0.07}, "un with seed 0")):
        odd = made_up(tmp_path, update="un", **fields)
        with pytest.raises(RecordError, match=message):
            write_scene_report(tmp_path)
        odd.unlink()


def test_runs_that_all_diverged_are_reported(tmp_path):
    made_up(tmp_path, update="un", lr=10.0)
    report = write_scene_report(tmp_path)
    assert "Updates against B-SGD" not in report.text  # there is none
    (line,) = (line for line in report.text.splitlines() if line.startswith("| un"))
    assert [cell.strip() for cell in line.split("|")][3:8] == ["–", "–", "–", "0", "1"]
    made_up(tmp_path, update="b-sgd")
    lines = [" ".join(line.split()) for line in write_scene_report(tmp_path).text.splitlines()]
    assert "| un − b-sgd | mean IoU | – | – | 0 |" in lines


def test_photographs_are_not_copied_to_other_folders(tmp_path):
    made_up(tmp_path / "runs")
    for name in (PREDICTIONS, WITHOUT_PHOTOGRAPHS):
        (tmp_path / "runs" / name).write_bytes(b"\x89PNG" + name.encode())
    here = write_scene_report(tmp_path / "runs")
    assert tmp_path / "runs" / PREDICTIONS in here.files
    away = write_scene_report(tmp_path / "runs", tmp_path / "out")
    drawn = {path.name for path in away.files if "predictions" in path.name}
    assert drawn == {WITHOUT_PHOTOGRAPHS}
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    (tmp_path / "runs" / WITHOUT_PHOTOGRAPHS).unlink()  # records alone are left
    assert write_scene_report(tmp_path / "runs", tmp_path / "out").text == away.text


def test_a_confusion_matrix_that_is_not_square_is_refused(tmp_path):
    path = made_up(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"validation_confusion": [0, 1, ', '"validation_confusion": [0, '))
    with pytest.raises(RecordError, match="line 2 is damaged: confusion matrices of 120"):
        write_scene_report(tmp_path)


@pytest.mark.slow
def test_the_paper_preset_takes_a_step():
    """13 + 13 convolutions of VGG-16's widths on 360x480: about 15 GB and a minute."""
    data = scenes((2, 1, 1), 360, 480)
    run = Run(replace(PRESETS["paper"], batch_size=2, threads=2), data)
    assert math.isfinite(run.train_pass(data)["train_loss"])
    assert max(map(float, mn.violations(run.network).values())) < 1e-5
