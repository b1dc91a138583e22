"""SegNet: its structure and symmetries, its scores, its training, its sweep and report."""

import copy
import csv
import dataclasses
import math

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
from manifoldnet.cli import papers
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
from manifoldnet.experiments.papers.segnet import studies
from manifoldnet.experiments.papers.segnet.config import (
    BALANCES,
    PRESETS,
    RATES,
    SegmentationConfig,
    SegmentationEpoch,
    SegmentationRecord,
    configurations,
    confusion,
    scores,
)
from manifoldnet.experiments.papers.segnet.data import augment, class_weights, load
from manifoldnet.experiments.papers.segnet.network import SegNet
from manifoldnet.experiments.papers.segnet.report import (
    PREDICTIONS,
    WITHOUT_PHOTOGRAPHS,
    write_scene_report,
)
from manifoldnet.experiments.papers.segnet.run import EXPERIMENT, Run, predict, write_predictions
from manifoldnet.experiments.papers.updates import declare
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


@pytest.fixture
def go_on(small_preset, tmp_path):
    """A sweep with checkpoints in this process."""

    def run(configs):
        given = {"progress": False, "data_dir": tmp_path / "data", "checkpoints": True}
        return sweep(EXPERIMENT, configs, tmp_path / "out", executor=Here(), **given)

    return run


def test_the_command_trains_reports_and_resumes(small_preset, tmp_path, capsys):
    command, out = (
        ["reproduce", "symmetry", "segnet", "--repetitions", "1", *small_preset],
        tmp_path / "out",
    )
    assert cli.main([*command, "--updates", "un"]) == 0
    assert "1 runs of 1 updates are in out, 0 diverged" in capsys.readouterr().out
    first = {p.name: p.read_bytes() for p in (out / "records").iterdir()}
    assert cli.main(command) == 0  # the other two
    kept = {p.name: p.read_bytes() for p in (out / "records").iterdir()}
    assert first.items() < kept.items()
    assert (out / PREDICTIONS).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["report", "out"]) == 0
    text = capsys.readouterr().out
    assert "# SegNet on road scenes" in text
    assert PREDICTIONS in text
    rows = list(csv.DictReader((out / "segnet.csv").read_text().splitlines()))
    columns = ["update", "seed", "global_accuracy", "class_accuracy", "mean_iou", "seconds"]
    assert list(rows[0]) == columns
    assert [row["update"] for row in rows] == ["b-sgd", "sm", "un"]
    found = store.read_all(out, EXPERIMENT.schema).values()
    by_update = {record.config.update: record.result for record in found}
    for row in rows:
        assert float(row["mean_iou"]) == pytest.approx(by_update[row["update"]].mean_iou, rel=1e-5)
    capsys.readouterr()
    assert cli.main(["reproduce", "symmetry", "table2", "--out", "out", "--quiet"]) == 2
    assert "'segmentation', not 'classification'" in capsys.readouterr().err


def test_the_command_passes_augmentation_on(monkeypatch, tmp_path, capsys):
    swept = []
    monkeypatch.setattr(papers, "_sweep", lambda step, *_: swept.extend(step.configs) or [])
    command = [
        "reproduce",
        "symmetry",
        "segnet",
        "--updates",
        "un",
        "--out",
        str(tmp_path),
        "--epochs",
        "7",
    ]
    assert cli.main([*command, "--zoom", "1.5", "--gamma", "2"]) == 0
    assert {(config.zoom, config.gamma, config.epochs) for config in swept} == {(1.5, 2.0, 7)}
    assert "predictions: not drawn" in capsys.readouterr().out
    assert cli.main([*command, "--zoom", "0.5"]) == 2
    assert "zoom is 0.5" in capsys.readouterr().err


def test_a_sweep_with_checkpoints_resumes_within_a_run(go_on, tmp_path):
    (config,) = configurations(replace(TINY, epochs=3), ["un"], 1)
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
    (config,) = configurations(replace(TINY, epochs=1), ["un"], 1)
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
    found = go_on(configurations(replace(TINY, epochs=1), ["un"], 1))
    (checkpoint,) = (out / "runs").glob("*/checkpoint.pt")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    command = [
        "reproduce",
        "symmetry",
        "segnet",
        "--updates",
        "un",
        "--epochs",
        "1",
        "--repetitions",
        "1",
    ]
    assert cli.main([*command, *small_preset]) == 0  # the run is done all the same
    assert "predictions: not drawn (" in capsys.readouterr().out
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
