"""SegNet: its structure and symmetries, its scores, and its training, stopped and gone on with."""

import csv
import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import CAR, ROAD, SKY, VOID, scenes, write_all
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments import ConfigError, RecordError, folder, records, rundir
from manifoldnet.experiments.loop import train_in, train_whole
from manifoldnet.experiments.models import declare
from manifoldnet.experiments.segmentation import images, pictures
from manifoldnet.experiments.segmentation.config import (
    PRESETS,
    RATES,
    SegmentationConfig,
    configurations,
)
from manifoldnet.experiments.segmentation.network import SegNet
from manifoldnet.experiments.segmentation.report import write_scene_report
from manifoldnet.experiments.segmentation.run import EXPERIMENT, Run, class_weights, predict
from manifoldnet.experiments.segmentation.scores import confusion, scores
from manifoldnet.experiments.sweep import sweep
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
        "manifoldnet.experiments.segmentation.run.cross_entropy",
        lambda scores, masks, *_, **__: (
            labels.append(masks.clone()) or cross_entropy(scores, masks, ignore_index=11)
        ),
    )
    run.train_pass(*data.part("train"))
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


def test_what_lies_under_void_is_not_trained_on(data):
    """Other numbers at void pixels, and no other step."""

    def trained(void):
        masks = data.train_masks.clone()
        masks[masks == VOID] = void
        run = Run(TINY, data)
        run.train_pass(data.train_images, masks)
        return [p.detach().clone() for p in run.network.parameters()]

    assert all(map(torch.equal, trained(VOID), trained(VOID)))
    assert not all(map(torch.equal, trained(VOID), trained(ROAD)))


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
        torch.load(rundir.checkpoint_path(tmp_path / name), weights_only=True)["states"]["model"]
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
        ({"class_balance": "even"}, "choose one of median-frequency, none"),
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
    monkeypatch.setattr("manifoldnet.cli.papers.PRESETS", {"cpu": TINY, "paper": PRESETS["paper"]})
    monkeypatch.chdir(tmp_path)
    yield ["--data-dir", str(tmp_path / "data"), "--quiet", "--jobs", "1", "--out", "out"]
    datasets.enable_progress_bars()


def test_the_command_trains_reports_and_goes_on(small_preset, tmp_path, capsys):
    command = ["reproduce", "segnet", "--repetitions", "1", *small_preset]
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


def test_a_folder_of_another_experiment_is_refused(small_preset, tmp_path, capsys, data):
    sweep_options = {"jobs": 1, "progress": False, "data_dir": tmp_path / "data"}
    sweep(EXPERIMENT, configurations(TINY, ["un"], 1), tmp_path / "out", **sweep_options)
    capsys.readouterr()
    assert cli.main(["reproduce", "table2", "--out", "out", "--quiet"]) == 2
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
    before = records.read(rundir.record_path(where), EXPERIMENT.kind).epochs
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


def test_a_report_needs_records(tmp_path):
    with pytest.raises(RecordError, match="holds no records"):
        write_scene_report(tmp_path)


@pytest.mark.slow
def test_a_step_of_the_paper_preset():
    """13 + 13 convolutions of VGG-16's widths on 360x480: about 15 GB and a minute."""
    config = dataclasses.replace(PRESETS["paper"], batch_size=2, threads=2)
    data = scenes((2, 1, 1), 360, 480)
    run = Run(config, data)
    loss, _ = run.train_pass(*data.part("train"))
    assert math.isfinite(loss)
    assert max(map(float, mn.violations(run.network).values())) < 1e-5
