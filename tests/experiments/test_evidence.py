"""The evidence on today's networks: networks, methods, runs, choices, and commands."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from math import prod

import pytest
import torch
from test_text import SOME
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet import cli
from manifoldnet.experiments import training
from manifoldnet.experiments.errors import ConfigError, RecordError
from manifoldnet.experiments.evidence import records, run, studies
from manifoldnet.experiments.evidence.config import METHODS, NETWORKS, EvidenceConfig, base
from manifoldnet.experiments.evidence.networks import build, loss, scalings
from manifoldnet.experiments.evidence.records import EvidenceResult
from manifoldnet.experiments.records import RunRecord
from manifoldnet.experiments.text import Text

SMALL = EvidenceConfig(
    width=8, layers=2, heads=2, block=6, batch_size=4, steps=6, epochs=2, validation_size=100
)
WHOLE = Text.of("some", 40 * SOME)


def of(network: str, method: str = "adamw", **fields) -> EvidenceConfig:
    """A small run of a network by a method."""
    dataset = WHOLE.name if NETWORKS[network].kind == "text" else "digits"
    rest = 1e-2 if METHODS[method].alone else None
    fixed = {"network": network, "method": method, "rest_lr": rest, "dataset": dataset}
    if network == "resnet":
        fixed |= {"layers": 8, "width": 2}
    return replace(SMALL, **fixed | fields)


SHAPES = {"text": (), "modern": (), "mlp": (1, 3, 3), "resnet": (1, 8, 8)}


def data_of(network: str, digits):
    return WHOLE if NETWORKS[network].kind == "text" else digits


def inputs_of(network: str) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    if NETWORKS[network].kind == "text":
        return torch.randint(9, (3, 6), generator=source)
    return torch.randn(3, prod(SHAPES[network]), generator=source)


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "muon"}, "needs rate"),
        ({"rest_lr": 0.1}, "one rate for all"),
        ({"width": 9}, "multiple of 2"),
        ({"network": "modern", "width": 6}, "multiple of 4"),
        ({"network": "resnet"}, "residual network has 8"),
        ({"lr": 0.0}, "lr is 0"),
        ({"spread": -1.0}, "spread"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **fields)


def test_the_usual_transformer_is_nanogpts():
    usual = base("text")
    sizes = (usual.block, usual.batch_size, usual.layers, usual.heads, usual.width)
    assert sizes == (64, 12, 4, 4, 128)
    assert usual.iterations == 2000
    # 0.80 million parameters, as nanoGPT counts them (without positions), for 65 characters.
    network = build(usual, (), 65)
    counted = sum(p.numel() for name, p in network.named_parameters() if name != "positions.weight")
    assert counted == 12 * 4 * 128**2 + 65 * 128 + 9 * 128


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_gives_scores_and_its_seed_decides_them(network):
    made = build(of(network), SHAPES[network], 9)
    scores = made(inputs_of(network))
    assert scores.shape == ((18, 9) if NETWORKS[network].kind == "text" else (3, 9))
    again, other = (
        build(of(network, seed=seed), SHAPES[network], 9)(inputs_of(network)) for seed in (0, 1)
    )
    assert torch.equal(scores, again)
    assert not torch.equal(scores, other)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_hidden_matrices_are_all_matrices_of_the_layers(network):
    config = of(network)
    made = build(config, SHAPES[network], 9)
    found = {n for n, p in made.named_parameters() if p.ndim > 1 and n.startswith("layers.")}
    assert set(config.matrices) == found


@pytest.mark.parametrize("network", ["text", "modern"])
def test_a_transformer_sees_no_later_characters(network):
    made = build(of(network), SHAPES[network], 9)
    ids = inputs_of(network)
    changed = ids.clone()
    changed[:, 4:] = (ids[:, 4:] + 1) % 9
    one, other = (made(each).view(3, 6, 9) for each in (ids, changed))
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.equal(one[:, 4:], other[:, 4:])


def test_rotary_places_depend_on_distances_alone():
    made = build(of("modern", layers=1), (), 9).double()
    with torch.no_grad():
        made.tokens.weight.mul_(50)
    ids = torch.tensor([[1, 2, 3, 1, 2, 3]])
    scores = made(ids).view(6, 9)
    assert not torch.allclose(scores[0], scores[3])
    from manifoldnet.experiments.evidence.networks import _turned

    x = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    turned = _turned(x.expand(1, 1, 6, 4))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    same = _turned(x[..., :1, :].expand(1, 1, 6, 4))[0, 0]
    products = same @ same.T
    torch.testing.assert_close(products.diagonal(1), products[0, 1].expand(5))
    assert not torch.allclose(products[0, 1], products[0, 2])


def test_starts_are_of_the_usual_size_times_a_factor():
    once, twice = (build(of("text", width=64, start_size=s), (), 50) for s in (1.0, 2.0))
    for (name, p), q in zip(once.named_parameters(), twice.parameters(), strict=True):
        assert torch.equal(q, 2 * p if p.ndim > 1 else p), name
    assert float(once.tokens.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    out = once.get_parameter("layers.0.out.weight").detach()
    assert float(out.std()) == pytest.approx(0.02 / 2, rel=0.05)
    hidden = build(of("mlp", width=64), (1, 10, 10), 10).get_parameter("layers.0.weight").detach()
    assert float(hidden.std()) == pytest.approx((2 / 100) ** 0.5, rel=0.05)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_element_of_the_group_leaves_the_scores_as_they_are(network):
    made = build(of(network), SHAPES[network], 9).double()
    inputs = inputs_of(network)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-30  # it sees the scale of filters, at 1e-5 of their variance
    element = scalings(made).sample(generator=torch.Generator().manual_seed(1), spread=6.9)
    moved = mn.symmetry.reparameterize(made, element)
    pairs = zip(made.parameters(), moved.parameters(), strict=True)
    assert all(not torch.equal(p, q) or not p.any() for p, q in pairs)
    torch.testing.assert_close(moved(inputs), made(inputs), rtol=1e-8, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS)
def test_the_group_is_the_one_that_is_discovered(network):
    small = {"width": 2} if network == "resnet" else {"width": 4, "block": 3}
    made = build(of(network, **small), SHAPES[network], 5).double()
    source = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (64, 4), generator=source)
    batch = targets[:, :-1], targets[:, 1:]
    if NETWORKS[network].kind == "images":
        inputs = torch.randn(64, prod(SHAPES[network]), generator=source, dtype=torch.float64)
        batch = inputs, targets[:, 0]
    found = mn.symmetry.discover(made, loss, [batch]).nontrivial
    written = scalings(made)
    assert written.dimension == found.dimension
    assert found in written


# --- methods --------------------------------------------------------------------------------------


def started(config: EvidenceConfig, digits) -> tuple[run.Run, run.Parts]:
    whole = data_of(config.network, digits)
    return run.Run(config, whole), run.make_parts(config, whole)


DECLARED = {
    "sgd-unit": mn.Oblique,
    "muon-unit": mn.Oblique,
    "sgd-scaled": mn.ScaledEuclidean,
    "adamh": mn.Sphere,
    "muonh": mn.Sphere,
    "angular-muown": mn.Polar,
    "ngpt": mn.Oblique,
    "adamw-scaled": mn.ScaledEuclidean,
    "muon-scaled": mn.ScaledEuclidean,
}


@pytest.mark.parametrize(
    ("network", "method"), [(n, m) for n, usual in NETWORKS.items() for m in usual.methods]
)
def test_a_method_trains_and_keeps_its_manifolds(network, method, digits):
    config = of(network, method, lr=1e-2)
    training_run, parts = started(config, digits)
    network_ = training_run.network
    declared = mn.manifolds(network_)
    assert {type(m) for m in declared.values()} <= {DECLARED.get(method)}
    if method in DECLARED:
        assert set(declared) >= set(config.matrices)
    if DECLARED.get(method) in (mn.Oblique, mn.ScaledEuclidean):
        assert {n: declared[n].dim for n in config.matrices} == config.matrices
    held = [p for each in training_run.stepped for g in each.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, network_.parameters()))
    before = {name: p.detach().clone() for name, p in network_.named_parameters()}
    row = training_run.epoch(1, parts)
    assert not row.fault
    assert math.isfinite(row.train_loss)
    assert math.isfinite(row.validation_loss)
    assert all(not torch.equal(before[n], p) for n, p in network_.named_parameters())
    assert row.violation < 1e-5
    mn.verify(network_)
    assert len(row.norms) == len(row.angles) == len(config.matrices)
    assert all(0 < angle < 1 for angle in row.angles)


@pytest.mark.parametrize("method", ["adamh", "muonh"])
def test_rates_of_hyperball_are_angles_and_norms_stay(method, digits):
    config = of("text", method, lr=0.05, steps=1, epochs=2)
    training_run, parts = started(config, digits)
    norms = {n: training_run.network.get_parameter(n).norm() for n in config.matrices}
    rate = training_run.optimizer.param_groups[0]["lr"]
    row = training_run.epoch(1, parts)
    for name, norm in norms.items():
        torch.testing.assert_close(training_run.network.get_parameter(name).norm(), norm)
    # A step that is not tangent turns by a little less, since it has a part along the weight.
    assert all(0.5 * rate < angle < 1.1 * rate for angle in row.angles)


def test_embeddings_are_unit_vectors_for_ngpt(digits):
    training_run, _ = started(of("text", "ngpt"), digits)
    declared = mn.manifolds(training_run.network)
    assert {"tokens.weight", "positions.weight"} < set(declared)
    rows = training_run.network.tokens.weight.norm(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_matrices_decay_and_gains_do_not(digits):
    training_run, _ = started(of("text", "muon"), digits)
    muon, rest = training_run.stepped
    assert muon.param_groups[0]["weight_decay"] == 0.1
    by_decay = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in rest.param_groups}
    assert by_decay == {0.1: {2}, 0.0: {1}}


@pytest.mark.parametrize(("method", "invariant"), [("adamw", False), ("adamw-moving", True)])
def test_a_rescaled_start_trains_alike_in_the_moving_frame(method, invariant, digits):
    losses = []
    for spread in (0.0, math.log(1000)):
        config = of("text", method, lr=1e-2, spread=spread)
        training_run, parts = started(config, digits)
        losses.append(training_run.train_pass(parts)["train_loss"])
    assert (abs(losses[0] - losses[1]) < 1e-3 * losses[0]) is invariant


# --- runs -----------------------------------------------------------------------------------------


def test_rates_rise_and_fall_alike_for_all_optimizers(digits):
    config = of("text", "angular-muown", lr=0.02, steps=10, epochs=2)
    training_run, parts = started(config, digits)
    seen = []
    optimizers = [schedule.optimizer for schedule in training_run.schedules]
    assert len(optimizers) == 3  # of directions, of other parameters, of gains
    first = [0.02, 0.01, 0.01]
    for _ in range(20):
        rates = [each.param_groups[0]["lr"] for each in optimizers]
        seen.append(rates[0] / 0.02)
        assert rates == pytest.approx([seen[-1] * lr for lr in first])
        inputs, targets = parts.batch(2, training_run.generator)
        loss(training_run.network(inputs), targets).backward()
        training_run._step()
    expected = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 18)) for k in range(18)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("method", NETWORKS["text"].methods)
def test_a_run_resumes_bit_for_bit(method, assert_resumes):
    assert_resumes(run.EXPERIMENT, of("text", method, lr=1e-2), WHOLE)


@pytest.mark.parametrize(
    ("network", "method"), [("mlp", "muonh"), ("resnet", "muon-unit"), ("resnet", "sgd-scaled")]
)
def test_a_run_on_images_resumes_bit_for_bit(network, method, assert_resumes, digits):
    assert_resumes(run.EXPERIMENT, of(network, method, lr=1e-2), digits)


def test_the_same_configuration_gives_the_same_numbers():
    one, other = (training.train_whole(run.EXPERIMENT, of("text"), WHOLE) for _ in range(2))
    assert without_clocks(one) == without_clocks(other)


def without_clocks(record):
    return [{k: v for k, v in vars(epoch).items() if "seconds" not in k} for epoch in record.epochs]


def test_a_run_that_explodes_is_recorded_as_diverged():
    record = training.train_whole(run.EXPERIMENT, of("text", lr=1e30), WHOLE)
    assert record.result.diverged
    assert "not finite" in record.result.reason
    from manifoldnet.experiments.records import from_text, to_text

    back = from_text(to_text(record), records.EVIDENCE, "here", "")
    assert back.result.diverged
    assert math.isnan(back.epochs[-1].test_loss)


def test_a_loss_of_equal_scores_counts_as_diverged(digits):
    training_run, parts = started(of("mlp", lr=1e-30), digits)
    with torch.no_grad():
        training_run.network.head.weight.mul_(100)
    training_run.epoch(1, parts)
    row = training_run.epoch(2, parts)
    assert row.validation_loss > math.log(10)
    assert "equal scores" in row.fault
    assert math.isfinite(row.test_loss)


def test_test_data_are_seen_after_the_last_epoch_only():
    first, last = training.train_whole(run.EXPERIMENT, of("text"), WHOLE).epochs
    assert math.isnan(first.test_loss)
    assert math.isfinite(last.test_loss)
    assert 0 < last.test_error < 1


def test_scores_are_those_of_all_examples(digits):
    training_run, parts = started(of("mlp"), digits)
    found, wrong = training_run._scores(parts.test())
    test = parts.split.test
    scores = training_run.network(2 * test.vectors(torch.arange(len(test))) - 1).detach()
    assert found == pytest.approx(float(cross_entropy(scores, test.labels)), rel=1e-5)
    assert wrong == float((scores.argmax(1) != test.labels).double().mean())


# --- parts ----------------------------------------------------------------------------------------


def test_passages_of_three_kinds_share_no_character():
    codes = torch.arange(7 * 410)
    whole = Text("numbers", codes, "")
    parts = run.Passages.of(SMALL, whole)
    kinds = (parts.train, parts.held_out.flatten(), parts.tested.flatten())
    assert torch.equal(torch.cat(kinds).sort().values, codes)
    assert len(parts.held_out) == len(parts.tested) == 20
    assert int(parts.held_out[0, 0]) == 180 * 7
    inputs, targets = parts.batch(5, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (5, 6)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    few = list(parts.validation(last=False))
    assert sum(len(x) for x, _ in few) == 20


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="1337 or more"):
        run.Passages.of(SMALL, Text.of("short", 1336 * "a"))
    assert len(run.Passages.of(SMALL, Text.of("long", 1337 * "a")).tested) == 1


def test_images_are_flipped_and_shifted_by_pixels():
    """Pixels are the numbers of their columns, and those of their rows."""
    across = torch.arange(32.0).expand(200, 1, 32, 32)
    images = torch.cat([across, across.transpose(2, 3)], 1)
    moved = run._moved(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    inner = moved[:, :, 3:-3, 3:-3]
    steps = inner[:, 0].diff(dim=2)
    assert (steps.abs() == 1).all()
    flipped = steps[:, 0, 0] < 0
    assert 60 < int(flipped.sum()) < 140
    assert (inner[:, 1].diff(dim=1) == 1).all()  # never upside down
    shifts = [(inner[:, 1, 0, 0] - 3).unique(), (inner[~flipped, 0, 0, 0] - 3).unique()]
    assert all(torch.equal(found, torch.arange(-2.0, 3)) for found in shifts)
    assert torch.equal(moved[0, 0, 0], moved[0, 0, -1])


# --- choices --------------------------------------------------------------------------------------


def ended(config: EvidenceConfig, validation: float, *, diverged: bool = False):
    result = EvidenceResult(
        status="diverged" if diverged else "finished",
        reason="",
        epochs=config.epochs,
        seconds=1.0,
        validation_loss=validation,
        test_loss=validation,
        test_error=0.5,
    )
    return RunRecord(config, {"manifoldnet": "0"}, "00", (), result)


def grid(config: EvidenceConfig, losses: dict[float, float]):
    return [ended(replace(config, lr=lr), value) for lr, value in losses.items()]


def test_grids_are_widened_until_the_best_rate_is_inside():
    adamw, muon = of("text"), of("text", "muon")
    runs = grid(adamw, {1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.0}) + grid(muon, {0.01: 2, 0.03: 1, 0.1: 3})
    wider = records.missing(records.losses(runs), level=True)
    assert wider == [(records.cell_of(adamw), 0.03)]
    runs += grid(adamw, {0.03: 1.5})
    level = records.missing(records.losses(runs), level=True)
    assert level == [(records.cell_of(muon), 0.3)]  # both edges are as near: the upper one
    assert records.missing(records.losses(runs), level=False) == []
    runs += grid(muon, {0.3: 4})
    assert records.missing(records.losses(runs), level=True) == []


def test_a_rate_with_a_run_that_diverged_is_not_chosen():
    runs = grid(of("text"), {1e-3: 2.0, 3e-3: 1.0})
    runs.append(ended(of("text", lr=3e-3, seed=1), 0.5, diverged=True))
    found = records.losses(runs)
    assert records.chosen(found) == {records.cell_of(of("text")): 1e-3}
    only = records.losses([ended(of("text", lr=lr), 1.0, diverged=True) for lr in (0.1, 0.3)])
    assert records.missing(only, level=False)[0][1] == 0.03
    with pytest.raises(RecordError, match="all 2 rates from 0.1 to 0.3 diverged"):
        records.chosen(only)


def best_rate(config: EvidenceConfig) -> float:
    """Made up: rates of Muon are ten times as high, and wider networks have lower ones."""
    return (0.1 if config.method == "muon" else 0.01) * 64 / config.width


def swept(study: str, options) -> list:
    """The sweeps of an experiment whose runs have made-up losses."""
    steps = studies.STUDIES[study].steps(options)
    seen, found = [], None
    while True:
        try:
            step = steps.send(found)
        except StopIteration:
            return seen
        if isinstance(step, str):
            found = None
            continue
        seen.append(step)
        found = [
            ended(c, 1 + abs(math.log10(c.lr / best_rate(c))), diverged=c.lr > 100 * best_rate(c))
            for c in step.configs
        ]


TWO = {"methods": ("adamw", "muon"), "network": "text"}


def test_methods_are_compared_at_the_rates_of_as_many_trials(tmp_path):
    *choices, comparison = swept("rates", studies.RatesOptions(out=tmp_path, choice_seeds=2, **TWO))
    assert choices[0].folder == tmp_path / "choice-text"
    assert {c.method for c in choices[0].configs} == {"adamw"}
    last = {(c.method, c.lr) for c in choices[-1].configs}
    counts = [sum(m == method for m, _ in last) for method in ("adamw", "muon")]
    assert counts[0] == counts[1] >= 5
    assert {c.iterations for c in choices[-1].configs} == {500}
    assert {c.seed for c in choices[-1].configs} == {0, 1}
    assert comparison.folder == tmp_path / "comparison-text"
    assert comparison.checkpoints
    runs = {(c.method, c.lr, c.rest_lr, c.iterations) for c in comparison.configs}
    best = {m: best_rate(of("text", m, width=128)) for m in ("adamw", "muon")}
    assert {run[0] for run in runs} == {"adamw", "muon"}
    for method, lr, rest, iterations in runs:
        assert abs(math.log10(lr / best[method])) < 0.26
        assert iterations == 2000
        assert (rest is None) == (method == "adamw")
    assert {c.seed for c in comparison.configs} == set(range(5))
    assert comparison.axes == records.AXES["comparison"]


def test_every_width_has_rates_of_its_own_and_those_of_the_others(tmp_path):
    options = studies.WidthOptions(out=tmp_path, widths=(256, 16), repetitions=1, **TWO)
    *_, last = swept("width", options)
    assert last.folder == tmp_path / "width-text"
    rates = {
        (c.method, c.width): {
            d.lr for d in last.configs if (d.method, d.width) == (c.method, c.width)
        }
        for c in last.configs
    }
    assert set(rates) == {(m, w) for m in ("adamw", "muon") for w in (16, 256)}
    assert rates["adamw", 16] == rates["adamw", 256] == {0.03, 0.003}
    assert {c.rest_lr for c in last.configs if c.method == "muon"} == {0.03, 0.003}


def test_starts_are_run_at_the_rates_of_the_usual_one(tmp_path):
    *_, last = swept("starts", studies.StartsOptions(out=tmp_path, **TWO))
    assert last.folder == tmp_path / "starts-text"
    assert {(c.start_size, c.spread) for c in last.configs} == set(studies.STARTS)
    assert len({c.lr for c in last.configs if c.method == "muon"}) == 1
    assert len(last.configs) == 2 * len(studies.STARTS) * 3


def test_a_preset_is_the_most_of_everything(tmp_path):
    options = studies.RatesOptions(out=tmp_path, preset="short", **TWO)
    *choices, comparison = swept("rates", options)
    assert len(choices) == 2  # nothing is widened
    assert {c.width for c in comparison.configs} == {32}
    assert {c.iterations for c in comparison.configs} == {200}
    assert {c.seed for c in comparison.configs} == {0, 1}
    less = studies.RatesOptions(out=tmp_path, preset="short", iterations=50, **TWO)
    assert {c.iterations for c in swept("rates", less)[-1].configs} == {50}


def test_iterations_are_whole_epochs(tmp_path):
    with pytest.raises(ConfigError, match="no multiple of 100"):
        swept("rates", studies.RatesOptions(out=tmp_path, iterations=250, **TWO))


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.usefixtures("in_process")
def test_the_command_goes_on_is_deterministic_and_reports(tmp_path, monkeypatch, capsys):
    path = tmp_path / "some.txt"
    path.write_text(300 * SOME, encoding="utf-8")

    def reproduce(study: str, out: str, *more: str) -> None:
        command = ["reproduce", "evidence", study, "--preset", "short", "--text", str(path)]
        command += ["--methods", "adamw", "muonh", "--choice-iterations", "4", "--jobs", "1"]
        assert cli.main([*command, "--out", str(tmp_path / out), "--quiet", *more]) == 0

    for out in ("one", "two"):
        reproduce("rates", out, "--iterations", "6")
    assert "muonh: rate" in capsys.readouterr().out
    one, two = (numbers(tmp_path / out) for out in ("one", "two"))
    assert one == two
    for name in sorted(one)[::3]:  # as if a killed sweep had not come to these
        (tmp_path / "one" / name).unlink()
    reproduce("rates", "one", "--iterations", "6")
    assert numbers(tmp_path / "one") == one
    reproduce("starts", "one", "--repetitions", "2")
    assert cli.main(["report", str(tmp_path / "one"), "--pack"]) == 0
    text = (tmp_path / "one" / "evidence.md").read_text(encoding="utf-8")
    assert "| muonh " in text
    assert (tmp_path / "one" / "evidence_starts_text-dark.svg").exists()
    assert cli.main(["report", str(tmp_path / "one")]) == 0  # of packed records
    assert (tmp_path / "one" / "evidence.md").read_text(encoding="utf-8") == text


def numbers(folder):
    """The records below a folder without their seconds."""
    return {
        str(path.relative_to(folder)): [
            {k: v for k, v in json.loads(line).items() if "seconds" not in k}
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in folder.glob("*/records/*.jsonl")
    }
