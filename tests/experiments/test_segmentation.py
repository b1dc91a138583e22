"""SegNet: its structure and symmetries, its scores, and its training, stopped and gone on with."""

import copy
import csv
import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import CAR, ROAD, SKY, VOID, scene, scenes, write_all
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments import (
    ConfigError,
    DataError,
    RecordError,
    SweepError,
    checkpoint,
    folder,
    records,
)
from manifoldnet.experiments.data import seeded_generator
from manifoldnet.experiments.papers.segnet import images, pictures, studies
from manifoldnet.experiments.papers.segnet.config import (
    BALANCES,
    PRESETS,
    RATES,
    SegmentationConfig,
    configurations,
)
from manifoldnet.experiments.papers.segnet.network import SegNet
from manifoldnet.experiments.papers.segnet.report import write_scene_report
from manifoldnet.experiments.papers.segnet.rows import SegmentationEpoch, SegmentationRecord
from manifoldnet.experiments.papers.segnet.run import (
    EXPERIMENT,
    Run,
    class_weights,
    predict,
    varied,
)
from manifoldnet.experiments.papers.segnet.scores import confusion, scores
from manifoldnet.experiments.papers.updates import declare
from manifoldnet.experiments.sweep import sweep
from manifoldnet.experiments.training import train_in, train_whole
from manifoldnet.symmetry import invariance_error, without_eps

TINY = SegmentationConfig(height=32, width=40, filters=2, epochs=2, batch_size=3)


@pytest.fixture(scope="module")
def data():
    return scenes()


# The network


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_the_paper_preset_has_the_layout_of_vgg16_and_its_mirror_image():
    with torch.device("meta"):
        network = SegNet(11, width=PRESETS["paper"].filters)
    encoder = [layer.out_channels for layer in convolutions(network.encoder)]
    vgg16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert encoder == vgg16
    decoder = convolutions(network.decoder)
    assert [layer.in_channels for layer in decoder] == vgg16[::-1]
    assert [layer.out_channels for layer in decoder] == [*vgg16[-2::-1], 64]
    assert network.head.out_channels == 11
    assert all(layer.bias is None for layer in convolutions(network))
    size = PRESETS["paper"].height, PRESETS["paper"].width
    assert network(torch.empty(12, 3, *size, device="meta")).shape == (12, 11, 360, 480)


@given(st.integers(32, 70), st.integers(32, 70))
def test_every_size_comes_out_as_it_went_in(height, width):
    with torch.device("meta"):
        network = SegNet(11, width=2)
        assert network(torch.empty(2, 3, height, width)).shape == (2, 11, height, width)


def test_images_too_small_for_five_poolings_are_refused():
    with pytest.raises(ConfigError, match="31x64 .* too small for 5 poolings"):
        SegNet(11, width=2)(torch.zeros(2, 3, 31, 64))


def test_unpooling_puts_maxima_back_where_they_were():
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


@pytest.fixture(scope="module")
def exact():
    """A small network in double precision, and a batch of scenes."""
    network = SegNet(11, width=2, generator=torch.Generator().manual_seed(0)).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        batch = torch.rand(4, 3, 32, 32).double(), torch.randint(0, 11, (4, 32, 32))
    return network, batch


def test_its_group_is_every_filter_but_the_heads(exact):
    network, _ = exact
    filters = sum(layer.out_channels for layer in convolutions(network)) - 11
    assert network.symmetries().dimension == filters


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_invariant_under_its_group(exact, training):
    network, batch = exact
    network.train(training)
    with without_eps(network):
        error = invariance_error.loss(
            network,
            network.symmetries().sample(spread=3.0, generator=torch.Generator().manual_seed(0)),
            cross_entropy,
            batch,
        )
    assert error < 1e-9


def test_scaled_metric_steps_keep_the_group_and_euclidean_ones_do_not(exact):
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
def test_scores_are_what_counting_by_hand_gives(labels, called):
    labels, called = torch.from_numpy(labels), torch.from_numpy(called)
    both = zip(labels.flatten().tolist(), called.flatten().tolist(), strict=True)
    pairs = [(a, b) for a, b in both if a < 4]
    matrix = confusion(labels, called, 4)
    assert matrix.sum() == len(pairs)
    found = scores(matrix)
    if pairs:
        assert found.global_accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    for k in range(4):
        there, right = sum(a == k for a, _ in pairs), sum(a == b == k for a, b in pairs)
        union = sum(k in pair for pair in pairs)
        assert found.class_accuracies[k] == pytest.approx(
            right / there if there else math.nan, nan_ok=True
        )
        assert found.ious[k] == pytest.approx(right / union if union else math.nan, nan_ok=True)
    known = [x for x in found.ious if not math.isnan(x)]
    assert found.mean_iou == pytest.approx(
        sum(known) / len(known) if known else math.nan, nan_ok=True
    )


def test_void_is_in_no_score():
    labels = torch.tensor([[0, 1, VOID, VOID]])
    assert scores(confusion(labels, torch.tensor([[0, 1, 0, 1]]), 11)).global_accuracy == 1.0


# Training


def test_weights_are_median_frequency(data):
    masks = data.train_masks
    weights = class_weights(data)
    pixels = masks[0].numel()
    frequency = {}
    for k in (SKY, ROAD, CAR):
        inside = [m for m in masks if (m == k).any()]
        frequency[k] = sum(int((m == k).sum()) for m in inside) / (pixels * len(inside))
    median = sorted(frequency.values())[1]
    for k, share in frequency.items():
        assert float(weights[k]) == pytest.approx(median / share, rel=1e-6)
    absent = [k for k in range(11) if k not in frequency]
    assert weights[absent].eq(1).all()
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
    run = Run(dataclasses.replace(TINY, batch_size=6), data)
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
        if any(mirrored):
            turned += 1
            assert torch.equal(mask.byte(), data.train_masks[mirrored.index(True)].flip(-1))
        else:
            assert torch.equal(mask.byte(), data.train_masks[as_is.index(True)])
    assert 0 < turned < 6


def test_windows_are_enlarged_with_their_masks():
    """Images that show their masks still do, where neighbours agree; half are as they were."""
    _, mask = scene(1)
    masks = torch.from_numpy(mask).expand(60, -1, -1).clone()
    shown = (masks[:, None] * 20).expand(-1, 3, -1, -1).clone()
    config = dataclasses.replace(TINY, mirror=False, zoom=2.0)
    pictures, found = varied(shown.clone(), masks.clone(), config, torch.Generator().manual_seed(0))
    assert pictures.shape == shown.shape
    assert set(found.unique().tolist()) <= set(masks.unique().tolist())
    right = (pictures[:, 0].int() - 20 * found.int()).abs() <= 1
    assert right.double().mean() > 0.9
    assert 15 < sum(map(torch.equal, found, masks)) < 45
    assert len({tuple(m.flatten().tolist()) for m in found}) > 15
    sky = [(m == SKY).double().mean().item() for m in found]
    assert min(sky) < (masks[0] == SKY).double().mean() < max(sky)


def test_a_power_of_the_pixels_leaves_black_white_and_masks():
    shown = torch.arange(256, dtype=torch.uint8).expand(20, 3, 1, -1).clone()
    masks = torch.zeros(20, 1, 256, dtype=torch.uint8)
    config = dataclasses.replace(TINY, mirror=False, gamma=2.0)
    pictures, found = varied(shown.clone(), masks, config, torch.Generator().manual_seed(0))
    assert torch.equal(found, masks)
    assert torch.equal(pictures[..., [0, 255]], shown[..., [0, 255]])
    assert (pictures.int().diff(dim=-1) >= 0).all()
    middle = pictures[:, 0, 0, 128].int()
    assert 60 <= middle.min() < 110 < 150 < middle.max() <= 182
    same, _ = varied(shown, masks, dataclasses.replace(config, gamma=1.0), torch.Generator())
    assert same is shown


def test_a_standardized_network_sees_no_illumination():
    network = SegNet(5, width=2, standardize=True, generator=seeded_generator(0, "start")).double()
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    gain = torch.tensor([0.5, 2.0, 1.5]).double()[:, None, None]
    plain = SegNet(5, width=2, generator=seeded_generator(0, "start")).double()

    def moved(network):  # the median: ε may turn a maximum that is pooled
        return (network(images) - network(gain * images + 0.3)).abs().median()

    assert moved(network) < 2e-3 < 1e-1 < moved(plain)


@pytest.mark.parametrize("balance", BALANCES)
def test_the_loss_is_the_weighted_mean_over_labelled_pixels(data, balance):
    config = dataclasses.replace(TINY, class_balance=balance, mirror=False, batch_size=9)
    run = Run(config, data)
    scores = Run(config, data).network(data.train_images.float() / 255).detach().double()
    power = {"median-frequency": 1, "root-median-frequency": 0.5, "none": 0}[balance]
    weights = class_weights(data) ** power
    total, weight = 0.0, 0.0
    for score, mask in zip(scores.log_softmax(1), data.train_masks, strict=True):
        for label in range(VOID):  # void is not among them
            there = mask == label
            total -= float(weights[label] * score[label][there].sum())
            weight += float(weights[label] * there.sum())
    assert (data.train_masks == VOID).any()
    loss = run.train_pass(data)["train_loss"]
    assert loss == pytest.approx(total / weight, rel=1e-4)


def test_the_rate_decays_and_the_steps_have_momentum(data):
    config = dataclasses.replace(TINY, lr=0.02, decay=0.5, momentum=0.7, epochs=3)
    run = Run(config, data)
    assert [run.epoch(n, data).lr for n in (1, 2, 3)] == pytest.approx([0.02, 0.01, 0.005])
    assert {group["momentum"] for group in run.optimizer.param_groups} == {0.7}


def test_a_prediction_depends_on_its_own_image_alone(data):
    run = Run(TINY, data)
    run.train_pass(data)
    before = copy.deepcopy(run.network.state_dict())
    together = predict(run.network, data.test_images)
    alone = torch.cat([predict(run.network, image[None]) for image in data.test_images])
    assert torch.equal(together, alone)
    after = run.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_order_in_memory_changes_nothing():
    networks = [SegNet(3, width=2, generator=seeded_generator(0, "start")) for _ in range(2)]
    networks[1].to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 45, 51, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for network, kind in zip(networks, (torch.contiguous_format, torch.channels_last), strict=True):
        scores = network.double()(images.contiguous(memory_format=kind))
        scores.square().sum().backward()
        found.append([scores, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("update", ["b-sgd", "sm", "un"])
def test_it_learns_and_stays_on_its_manifold(data, update):
    config = dataclasses.replace(TINY, update=update, epochs=12, filters=4, lr=0.1)
    record = train_whole(EXPERIMENT, config, data)
    assert record.result.status == "finished"
    assert record.epochs[-1].train_loss < 0.7 * record.epochs[0].train_loss
    assert record.epochs[-1].violation < 1e-5
    assert record.epochs[-1].train_accuracy > record.epochs[0].train_accuracy + 0.2


def test_the_result_is_that_of_the_last_weights_on_the_test_images(data):
    run = Run(TINY, data)
    epochs = [run.epoch(number, data) for number in (1, 2)]
    assert epochs[0].test_confusion is None
    called = predict(run.network, data.test_images)
    right = (called == data.test_masks)[data.test_masks != VOID]
    result = EXPERIMENT.verdict(TINY, epochs)
    assert result.global_accuracy == pytest.approx(float(right.double().mean()))
    assert EXPERIMENT.verdict(TINY, epochs[:1]) is None


def test_a_run_that_diverges_has_no_scores(data):
    record = train_whole(
        EXPERIMENT, dataclasses.replace(TINY, lr=1e30, update="b-sgd", epochs=9), data
    )
    assert record.result.diverged
    assert len(record.epochs) < 9
    assert math.isnan(record.result.mean_iou)


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    def stop(_):
        raise Stop

    config = dataclasses.replace(TINY, epochs=3)
    with pytest.raises(Stop):
        train_in(EXPERIMENT, config, tmp_path / "parts", data, on_epoch=stop)
    parts = train_in(EXPERIMENT, config, tmp_path / "parts", data, resume=True)
    whole = train_in(EXPERIMENT, config, tmp_path / "whole", data)
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
        ({"update": "adam"}, "update is 'adam'; choose one of"),
        ({"lr": None}, "lr is None; it must be a number"),
        ({"lr": math.nan}, "lr is nan"),
        ({"height": 31}, "height is 31; it must be an integer, 32 or more"),
        ({"class_balance": "even"}, "choose one of median-frequency, root-median-frequency, none"),
        ({"zoom": 0.5}, "zoom is 0.5; it must be a number in [1, 8]"),
        ({"standardize": 1}, "standardize is 1; it must be True or False"),
        ({"mirror": 1}, "mirror is 1; it must be True or False"),
        ({"dataset": ""}, "dataset is ''"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SegmentationConfig(**fields)


def test_configurations_name_updates_once():
    runs = configurations(PRESETS["cpu"], ["un", "sm"], 2)
    assert [(run.update, run.seed) for run in runs] == [("un", 0), ("sm", 0), ("un", 1), ("sm", 1)]
    assert all(run.lr == RATES[run.update] for run in runs)
    for updates, repetitions in ((["un", "un"], 1), ([], 1), (["un"], 0), (["adam"], 1)):
        with pytest.raises(ConfigError):
            configurations(PRESETS["cpu"], updates, repetitions)


# The sweep and its report


@pytest.fixture
def small_preset(tmp_path, monkeypatch):
    """The `cpu` preset on made-up scenes, in a size that takes seconds."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_all(tmp_path / "data" / "camvid")
    monkeypatch.setattr(studies, "PRESETS", {"cpu": TINY, "paper": PRESETS["paper"]})
    monkeypatch.chdir(tmp_path)
    yield ["--data-dir", str(tmp_path / "data"), "--quiet", "--jobs", "1", "--out", "out"]
    datasets.enable_progress_bars()


def test_the_command_trains_reports_and_goes_on(small_preset, tmp_path, capsys):
    command = ["reproduce", "symmetry", "segnet", "--repetitions", "1", *small_preset]
    assert cli.main([*command, "--updates", "un"]) == 0
    assert "1 runs of 1 updates are in out, 0 diverged" in capsys.readouterr().out
    first = {p.name: p.read_bytes() for p in (tmp_path / "out" / "records").iterdir()}
    assert cli.main(command) == 0  # the other two
    kept = {p.name: p.read_bytes() for p in (tmp_path / "out" / "records").iterdir()}
    assert first.items() < kept.items()
    assert len(kept) == 3
    assert (tmp_path / "out" / pictures.PREDICTIONS).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["report", "out"]) == 0
    out = capsys.readouterr().out
    assert "# SegNet on road scenes" in out
    assert pictures.PREDICTIONS in out
    with (tmp_path / "out" / "segnet.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "update",
        "seed",
        "global_accuracy",
        "class_accuracy",
        "mean_iou",
        "seconds",
    ]
    assert [row["update"] for row in rows] == ["b-sgd", "sm", "un"]
    kept_records = folder.read_all(tmp_path / "out", EXPERIMENT.kind)
    by_update = {record.config.update: record.result for record in kept_records.values()}
    for row in rows:
        assert float(row["mean_iou"]) == pytest.approx(by_update[row["update"]].mean_iou, rel=1e-5)


def test_the_command_passes_augmentation_on(small_preset, tmp_path, capsys):
    command = [
        "reproduce",
        "symmetry",
        "segnet",
        "--repetitions",
        "1",
        "--updates",
        "un",
        *small_preset,
    ]
    assert cli.main([*command, "--zoom", "1.5", "--gamma", "2", "--epochs", "1"]) == 0
    (record,) = folder.read_all(tmp_path / "out", EXPERIMENT.kind).values()
    assert (record.config.zoom, record.config.gamma, record.config.epochs) == (1.5, 2.0, 1)
    assert cli.main([*command, "--zoom", "0.5"]) == 2
    assert "zoom is 0.5" in capsys.readouterr().err


def test_a_folder_of_another_experiment_is_refused(small_preset, tmp_path, capsys, data):
    sweep_options = {"jobs": 1, "progress": False, "data_dir": tmp_path / "data"}
    sweep(EXPERIMENT, configurations(TINY, ["un"], 1), tmp_path / "out", **sweep_options)
    capsys.readouterr()
    assert cli.main(["reproduce", "symmetry", "table2", "--out", "out", "--quiet"]) == 2
    assert "it is of the experiment 'segmentation', not 'classification'" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1


def test_a_sweep_with_checkpoints_goes_on_inside_a_run(small_preset, tmp_path, monkeypatch):
    (config,) = configurations(dataclasses.replace(TINY, epochs=3), ["un"], 1)
    data = images.load(EXPERIMENT.source(config), tmp_path / "data")
    trained = []

    def stop(epoch):
        trained.append(epoch.epoch)
        if epoch.epoch == 2:
            raise Stop

    where = folder.run_directory(tmp_path / "out", config)
    with pytest.raises(Stop):
        train_in(EXPERIMENT, config, where, data, on_epoch=stop)
    whole = train_whole(EXPERIMENT, config, data)
    before = records.read(checkpoint.record_path(where), EXPERIMENT.kind).epochs
    assert len(before) == 2
    (record,) = sweep(
        EXPERIMENT,
        [config],
        tmp_path / "out",
        checkpoints=True,
        jobs=1,
        progress=False,
        data_dir=tmp_path / "data",
    )
    assert record.epochs[:2] == before  # clock and all: they were not trained again
    assert [e.validation_confusion for e in record.epochs] == [
        e.validation_confusion for e in whole.epochs
    ]


def made_up(tmp_path, **fields):
    """A record of a run that nobody trained, in a folder."""
    config = dataclasses.replace(TINY, **fields)
    matrix = tuple(range(VOID * VOID))
    lasting = {"lr": 0.1, "violation": 0.0, "train_seconds": 1.0, "seconds": 1.0}
    epochs = tuple(
        SegmentationEpoch(
            epoch=n,
            train_loss=math.nan if config.lr > 1 else 1.0,
            train_accuracy=0.5,
            validation_confusion=matrix,
            test_confusion=matrix,
            **lasting,
        )
        for n in range(1, config.epochs + 1)
    )
    result = EXPERIMENT.verdict(config, epochs)
    record = SegmentationRecord(config, {"manifoldnet": mn.__version__}, "00", epochs, result)
    (tmp_path / "records").mkdir(parents=True, exist_ok=True)
    folder.keep(tmp_path, record)
    return record


def test_a_report_is_on_one_protocol(tmp_path):
    for update in ("un", "b-sgd"):
        made_up(tmp_path, update=update)
    report = write_scene_report(tmp_path)
    assert "Updates against B-SGD" in report.text
    for fields, message in (
        ({"epochs": 5}, "epochs 5 there, 2 here|epochs 2 there, 5 here"),
        ({"filters": 3}, "filters"),
        ({"lr": 0.07}, "another run of un with seed 0 is there"),
    ):
        odd = made_up(tmp_path, update="un", **fields)
        with pytest.raises(RecordError, match=message):
            write_scene_report(tmp_path)
        (tmp_path / "records" / f"{odd.config.identity()}.jsonl").unlink()


def test_runs_that_all_diverged_are_reported(tmp_path):
    made_up(tmp_path, update="un", lr=10.0)
    report = write_scene_report(tmp_path)
    assert "Updates against B-SGD" not in report.text  # there is none
    (line,) = (line for line in report.text.splitlines() if line.startswith("| un"))
    assert [cell.strip() for cell in line.split("|")][3:8] == ["–", "–", "–", "0", "1"]


def test_photographs_stay_where_the_runs_are(tmp_path):
    made_up(tmp_path / "runs")
    for name in (pictures.PREDICTIONS, pictures.WITHOUT_PHOTOGRAPHS):
        (tmp_path / "runs" / name).write_bytes(b"\x89PNG" + name.encode())
    here = write_scene_report(tmp_path / "runs")
    assert tmp_path / "runs" / pictures.PREDICTIONS in here.files
    away = write_scene_report(tmp_path / "runs", tmp_path / "out")
    assert {path.name for path in away.files if "predictions" in path.name} == {
        pictures.WITHOUT_PHOTOGRAPHS
    }
    assert not (tmp_path / "out" / pictures.PREDICTIONS).exists()
    (tmp_path / "runs" / pictures.WITHOUT_PHOTOGRAPHS).unlink()  # records alone are left
    again = write_scene_report(tmp_path / "runs", tmp_path / "out")
    assert again.text == away.text


def test_a_matrix_that_is_not_square_is_damage(tmp_path):
    record = made_up(tmp_path)
    path = tmp_path / "records" / f"{record.config.identity()}.jsonl"
    path.write_text(
        path.read_text().replace('"validation_confusion": [0, 1, ', '"validation_confusion": [0, ')
    )
    with pytest.raises(RecordError, match="line 2 is damaged: confusion matrices of 120"):
        write_scene_report(tmp_path)


def test_what_an_old_version_or_other_data_left_is_not_gone_on_with(small_preset, tmp_path):
    (config,) = configurations(dataclasses.replace(TINY, epochs=1), ["un"], 1)
    given = {"jobs": 1, "progress": False, "data_dir": tmp_path / "data", "checkpoints": True}
    (record,) = sweep(EXPERIMENT, [config], tmp_path / "out", **given)
    (kept,) = (tmp_path / "out" / "records").iterdir()
    kept.unlink()
    own = checkpoint.record_path(folder.run_directory(tmp_path / "out", config))
    text = own.read_text()
    for old in (text.replace(record.data, "0"), text.replace(f'"{mn.__version__}"', '"0.0.1"')):
        assert old != text
        own.write_text(old)
        with pytest.raises(SweepError, match="delete that directory"):
            sweep(EXPERIMENT, [config], tmp_path / "out", **given)
        assert not list((tmp_path / "out" / "records").iterdir())
    own.write_text(text)
    assert sweep(EXPERIMENT, [config], tmp_path / "out", **given) == [record]


def test_pictures_are_of_the_data_that_was_trained_on(small_preset, tmp_path, capsys):
    command = [
        "reproduce",
        "symmetry",
        "segnet",
        "--repetitions",
        "1",
        "--updates",
        "un",
        *small_preset,
    ]
    assert cli.main(command) == 0
    (checkpoint,) = (tmp_path / "out" / "runs").glob("*/checkpoint.pt")
    (tmp_path / "out" / pictures.PREDICTIONS).unlink()
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    assert cli.main(command) == 0  # the runs are done all the same
    assert "predictions: not drawn (" in capsys.readouterr().out
    checkpoint.write_bytes(whole)
    (record,) = folder.read_all(tmp_path / "out", EXPERIMENT.kind).values()
    other = dataclasses.replace(record, data="00")
    with pytest.raises(DataError, match="were trained on other data"):
        pictures.write_predictions(tmp_path / "out", [other], tmp_path / "data")
    lost = dataclasses.replace(record, result=dataclasses.replace(record.result, status="diverged"))
    assert pictures.write_predictions(tmp_path / "out", [lost], tmp_path / "data") is None
    assert not (tmp_path / "out" / pictures.PREDICTIONS).exists()


def test_a_report_needs_records(tmp_path):
    with pytest.raises(RecordError, match="holds no records"):
        write_scene_report(tmp_path)


@pytest.mark.slow
def test_a_step_of_the_paper_preset():
    """13 + 13 convolutions of VGG-16's widths on 360x480: about 15 GB and a minute."""
    config = dataclasses.replace(PRESETS["paper"], batch_size=2, threads=2)
    data = scenes((2, 1, 1), 360, 480)
    run = Run(config, data)
    loss = run.train_pass(data)["train_loss"]
    assert math.isfinite(loss)
    assert max(map(float, mn.violations(run.network).values())) < 1e-5
