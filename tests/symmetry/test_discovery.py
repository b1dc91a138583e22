"""Discovery: groups of many networks compared with those derived by hand, options and errors.

The networks and their derivations are in `nets`.
"""

import copy
import random
import re
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from cases import source
from nets import (
    CLASSES,
    INPUTS,
    NETS,
    SAMPLES,
    Act,
    Attention,
    canonical,
    classify,
    column,
    generator,
    hidden_units,
    layer,
    perceptron,
    row,
)
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu
from torch.utils.data import DataLoader, TensorDataset

import manifoldnet as mn
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2
from manifoldnet.symmetry import (
    FalseSymmetryError,
    NoGapError,
    ScalingGroup,
    discover,
    reparameterize,
)
from manifoldnet.symmetry.linear_system import Layout, LinearSystem
from manifoldnet.symmetry.working_copy import working_copy

# What a perceptron with four hidden units that are positively homogeneous has.
UNITS = canonical(hidden_units("0", "2", 4))


def found(*arguments, **options):
    """The non-trivial generators that are found."""
    return canonical(discover(*arguments, **options).nontrivial.generators)


def images(samples=SAMPLES, seed=0):
    torch.manual_seed(seed)
    return torch.randn(samples, INPUTS), torch.randint(CLASSES, (samples,))


def parts(size, samples=SAMPLES):
    """Batches of a size; the last one may be smaller."""
    x, t = images(samples)
    return list(zip(x.split(size), t.split(size), strict=True))


BATCHES = [images()]


def plain():
    return perceptron(nn.ReLU())


@pytest.mark.parametrize("name", NETS)
def test_group_equals_the_derived_one(name):
    net = NETS[name]()
    group = discover(net.model, net.loss_fn, net.batches)
    assert canonical(group.nontrivial.generators) == canonical(net.generators), group
    assert group.trivial_dimension == net.matrices
    expected = ScalingGroup.of(net.model, net.generators)
    assert expected in group
    assert group in expected
    assert group.report.verified < 1e-9


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETS)
def test_names_and_order_do_not_depend_on_weights_data_and_seed(name):
    def names(seed):
        net = NETS[name](seed)
        return [g.name for g in discover(net.model, net.loss_fn, net.batches, seed=seed).generators]

    expected = names(1)
    assert names(2) == expected
    assert names(3) == expected


# --- the papers' networks -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 4])
def test_papers_group_is_a_subgroup(depth):
    # Eight filters a layer. (1): a layer but the last × α against the head; (2): a pooled pair of
    # the last × β against its column. Rows of one layer against columns of the next are missing.
    model = Arch1(INPUTS, CLASSES, features=8, depth=depth)
    last = f"hidden.{3 * depth - 3}.weight"
    layers = [
        generator(row(f"hidden.{3 * k}.weight", *range(8)), column("head.weight", *range(4)))
        for k in range(depth - 1)
    ]
    pairs = [generator(row(last, 2 * i, 2 * i + 1), column("head.weight", i)) for i in range(4)]
    paper = ScalingGroup.of(model, layers + pairs)
    group = discover(model, cross_entropy, BATCHES)
    assert paper.dimension == depth + 3
    assert (group.dimension, group.trivial_dimension) == (5 * depth + 1, depth + 1)
    assert paper in group
    assert group not in paper
    assert model.symmetries() in group


def test_rows_before_batch_normalization_in_evaluation():
    net = NETS["batch_norm_in_evaluation"]()
    group = discover(net.model, net.loss_fn, net.batches)
    assert generator(row("hidden.0.weight", 0)) not in group
    assert not group.report.coupled
    net.model.train()
    group = discover(net.model, net.loss_fn, net.batches)
    assert generator(row("hidden.0.weight", 0)) in group
    assert group.report.coupled


@pytest.mark.parametrize("name", ["arch1", "arch2", "three_layers", "attention", "encoder_layer"])
def test_badly_scaled_weights_have_the_same_group(name):
    net = NETS[name]()
    batches = net.batches
    group = ScalingGroup.of(net.model, net.generators)
    element = group.sample(spread=6.9, generator=source(3))  # factors from 1e-3 to 1e3
    scaled = reparameterize(net.model.double(), element)
    assert found(scaled, net.loss_fn, batches) == canonical(net.generators)


# --- normalization's ε ----------------------------------------------------------------------------


def with_eps(eps, **options):
    model = Arch2(INPUTS, CLASSES, features=8, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = eps
    return model


@pytest.mark.parametrize("depth", [2, 4])
def test_discovery_with_eps_kept(depth):
    net = NETS["arch2" if depth == 2 else "arch2_depth_4"]()
    group = discover(net.model, net.loss_fn, [images(64)], keep_eps=True)
    assert canonical(group.nontrivial.generators) == canonical(net.generators)
    assert 1e-8 < group.report.eps_effect < 1e-3
    assert 1e-8 < group.report.verified < 1e-2
    assert 1e-6 < group.report.gap.dropped < group.report.gap.kept / 10
    assert "left in while looking" in str(group)


def test_large_eps_closes_the_gap_unless_removed():
    model, batches = with_eps(1e-3), [images(64)]
    group = discover(model, cross_entropy, batches)
    assert group.dimension == 27
    assert group.report.verified < 1e-9 < 1e-7 < group.report.eps_effect
    assert "ε up to 0.001, taken out while looking" in str(group)
    with pytest.raises(NoGapError, match="leave out keep_eps=True"):
        discover(model, cross_entropy, batches, keep_eps=True)


def over_norm(eps):
    return Act(lambda y: y / (y.norm(dim=1, keepdim=True) + eps))


def test_an_eps_inside_the_model_is_reported():
    # This ε is a constant in a formula, not an attribute of a layer that could be set to 0.
    model = nn.Sequential(nn.Linear(INPUTS, 4, bias=False), over_norm(1e-5))
    batch = (images()[0], normalize(torch.randn(SAMPLES, 4)))
    group = discover(model, mse_loss, [batch])
    assert group.nontrivial.dimension == 0
    assert group.report.gap.near_zero_count == 1
    assert "in 1 more directions the loss hardly changes" in str(group)
    model[1] = over_norm(1e-8)
    with pytest.raises(FalseSymmetryError, match="A small constant in the model") as error:
        discover(model, mse_loss, [batch])
    assert 1e-9 < error.value.deviation < 1e-6


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_batches_of_any_size(size):
    group = discover(plain(), cross_entropy, parts(size))
    assert canonical(group.nontrivial.generators) == UNITS
    assert not group.report.coupled


@pytest.mark.parametrize("batches", [parts(3), parts(8, 33), parts(1)[:1] + parts(8)])
def test_coupled_samples_are_detected(batches):
    # 33 samples in batches of eight leave a batch of one, which batch normalization refuses.
    net = NETS["arch2"]()
    group = discover(net.model, cross_entropy, batches)
    assert canonical(group.nontrivial.generators) == canonical(net.generators)
    assert group.report.coupled
    assert "one per minibatch" in str(group)


def test_batch_normalization_of_two_samples_gives_false_symmetries():
    # It maps two samples to ±1, so the gradient of the weights before it vanishes.
    net = NETS["arch2"]()
    with pytest.raises(FalseSymmetryError, match="maps any two samples to ±1"):
        discover(net.model, cross_entropy, parts(2))


def test_a_weighted_mean_couples_samples():
    # The mean divides by the sum of the class weights in a batch.
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    group = discover(plain(), weighted, BATCHES)
    assert canonical(group.nontrivial.generators) == UNITS
    assert group.report.coupled
    assert group.report.dtype == torch.float64
    summed = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="sum")
    assert not discover(plain(), summed, BATCHES).report.coupled


@pytest.mark.parametrize("minibatch", [1, 16, 1000])
def test_the_minibatch_can_be_set(minibatch):
    assert found(plain(), cross_entropy, BATCHES, minibatch=minibatch) == UNITS


def test_batches_come_from_loaders_and_generators(monkeypatch):
    loader = DataLoader(TensorDataset(*images(30)), batch_size=8, shuffle=True)
    assert found(plain(), cross_entropy, loader) == UNITS
    drawn = []

    def endless():
        for i in count():
            drawn.append(i)
            yield images(4, seed=i)

    assert found(plain(), cross_entropy, endless()) == UNITS
    assert len(drawn) == 64
    drawn.clear()
    monkeypatch.setattr("manifoldnet.symmetry.discovery._BYTES", 1000)  # 112 each
    assert found(plain(), cross_entropy, endless()) == UNITS
    assert len(drawn) == 9


class TwoInputs(nn.Module):
    """Two images through one layer; a mask over features that has no samples."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(INPUTS, 4), nn.Linear(8, CLASSES)

    def forward(self, first, second, mask=None):
        a, b = self.hidden(first).relu(), self.hidden(second).relu()
        return self.head(torch.cat([a, b if mask is None else b * mask], dim=1))


# Unit i gives two features, one for each image.
SHARED = canonical(generator(layer("hidden", i), column("head.weight", i, 4 + i)) for i in range(4))


@pytest.mark.parametrize(("kind", "masked"), [(tuple, False), (dict, False), (dict, True)])
def test_inputs_may_be_tuples_and_dicts(kind, masked):
    x, t = images()
    given = (x, x.flip(0), torch.tensor([1.0, 2.0, 3.0, 4.0]))[: 3 if masked else 2]
    if kind is dict:
        given = dict(zip(("first", "second", "mask"), given, strict=False))
    group = discover(TwoInputs(), cross_entropy, [(given, t)])
    assert canonical(group.nontrivial.generators) == SHARED
    assert group.report.coupled == masked  # then no samples can be told apart


def test_square_mask_is_not_indexed_by_samples():
    # The mask is as large as the batch; the error shows only when single samples are taken.
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES)

        def forward(self, x, mask):
            return self.head(self.hidden(mask @ x).relu())

    x, t = images()
    group = discover(Masked(), cross_entropy, [((x, torch.rand(SAMPLES, SAMPLES)), t)])
    assert canonical(group.nontrivial.generators) == canonical(hidden_units("hidden", "head", 4))


def test_targets_may_be_anything():
    def loss(output, target):
        return ((output - target["mean"]) ** 2 / target["spread"]).sum()

    x, _ = images()
    target = {"mean": torch.randn(SAMPLES, CLASSES), "spread": torch.rand(SAMPLES, 1) + 0.5}
    assert found(plain(), loss, [(x, target)]) == UNITS


# --- what the batches do not reach ----------------------------------------------------------------


def test_dead_pixels_are_left_out():
    x, t = images()
    x[:, [1, 3]] = 0
    group = discover(plain(), cross_entropy, [(x, t)])
    assert canonical(group.nontrivial.generators) == UNITS
    assert group.trivial_dimension == 2
    assert group.report.unreached == ("0.weight[columns 1,3]",)
    assert "no gradient reaches them: 0.weight[columns 1,3]" in str(group)


def embedding(tokens=6, **options):
    """An embedding and a linear layer: column j of one against column j of the other."""
    model = nn.Sequential(nn.Embedding(tokens, 4, **options), nn.Linear(4, CLASSES))
    return model, canonical(
        generator(column("0.weight", j), column("1.weight", j)) for j in range(4)
    )


def test_tokens_that_never_occur_are_left_out():
    model, expected = embedding()
    tokens = torch.randint(4, (SAMPLES, 3))
    group = discover(model, classify, [(tokens, torch.randint(CLASSES, (SAMPLES, 3)))])
    assert canonical(group.nontrivial.generators) == expected
    assert group.report.unreached == ("0.weight[rows 4,5]",)


def test_tokens_of_one_sample_among_thousands_are_reached():
    model, expected = embedding(12)
    tokens = torch.randint(4, (6000, 3))
    tokens[1234] = torch.tensor([4, 5, 6])
    tokens[4321] = torch.tensor([7, 8, 9])
    tokens[5678] = torch.tensor([10, 11, 11])
    labels = torch.randint(CLASSES, tokens.shape)
    group = discover(model, classify, zip(tokens.split(1000), labels.split(1000), strict=True))
    assert canonical(group.nontrivial.generators) == expected
    assert group.report.unreached == ()


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"sparse": True}])
def test_embeddings_with_options(options):
    # The gradient of a padding row is left out by torch, though the loss depends on it.
    model, expected = embedding(**options)
    tokens = torch.randint(6, (SAMPLES, 3))
    batches = [(tokens, torch.randint(CLASSES, tokens.shape))]
    assert found(model, classify, batches) == expected
    assert (model[0].padding_idx, model[0].sparse) == (
        options.get("padding_idx"),
        options.get("sparse", False),
    )


def test_gradients_that_are_rounding_errors_are_zero():
    # The soft-max is invariant to the bias of keys (`attention_generators`): its gradient is 0.
    model = nn.Sequential(Attention(4, 2), nn.Linear(4, CLASSES))
    batches = [(torch.randn(12, 5, 4), torch.randint(CLASSES, (12, 5)))]
    free = canonical(generator(row("0.k.bias", i)) for i in range(4))
    assert found(model, classify, batches, parameters=["0.k.bias"]) == free
    assert found(model, classify, batches, parameters=["0.k.bias", "0.k.weight"]) == free


# --- models that are hard to compute with ---------------------------------------------------------


class Doubled(torch.autograd.Function):
    """2 x, without a rule for vectorization."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def by_its_signs(x):
    return x.relu() if (x > 0).sum().item() > x.numel() / 2 else 2 * x.relu()


def in_place(x):
    y = torch.zeros(x.shape, dtype=x.dtype)
    for i in range(x.shape[1]):
        y[:, i] = x[:, i]
    return y.relu_()


@pytest.mark.parametrize(
    "function",
    [by_its_signs, in_place, lambda x: Doubled.apply(x.relu())],
    ids=["control flow", "in place", "autograd function"],
)
def test_models_that_cannot_be_vectorized(function):
    assert found(perceptron(Act(function)), cross_entropy, BATCHES) == UNITS


class WarmUp(nn.Module):
    """ReLU in its first three calls, counted in a buffer in place, and tanh from the fourth on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return x.relu() if self.calls < 4 else x.tanh()


def test_layers_that_write_to_buffers():
    # Discovery leaves the buffer unchanged: each of its calls is the first one of the user.
    model = perceptron(WarmUp())
    assert found(model, cross_entropy, BATCHES) == UNITS
    assert model[1].calls == 0
    model[1].calls += 3
    assert found(model, cross_entropy, BATCHES) == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_models_of_any_type(dtype):
    x, t = images()
    group = discover(plain().to(dtype), cross_entropy, [(x.to(dtype), t)])
    assert canonical(group.nontrivial.generators) == UNITS
    assert group.report.dtype == torch.float64


@pytest.mark.parametrize("name", ["arch2", "three_layers", "pre_norm_transformer"])
def test_single_precision_finds_the_same(name):
    net = NETS[name]()
    group = discover(net.model, net.loss_fn, net.batches, dtype=torch.float32)
    assert canonical(group.nontrivial.generators) == canonical(net.generators)
    assert group.report.dtype == torch.float32
    assert group.report.verified < 1e-8  # in double precision


@pytest.mark.parametrize(
    ("function", "loss_fn"),
    [
        (lambda x: x.relu().float(), cross_entropy),
        (lambda x: x.relu() @ torch.eye(4), cross_entropy),
        (relu, partial(cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0]))),
    ],
    ids=["cast", "constant", "class weights"],
)
def test_models_that_need_single_precision(function, loss_fn):
    group = discover(perceptron(Act(function)), loss_fn, BATCHES)
    assert canonical(group.nontrivial.generators) == UNITS
    assert group.report.dtype == torch.float32


def test_loss_near_zero():
    # Rounding errors are large relative to this loss.
    model = plain().double()
    x, _ = images()
    with torch.no_grad():
        batch = (x.double(), model(x.double()))
    assert found(model, mse_loss, [batch]) == UNITS


def test_a_declared_model_stays_declared():
    net = NETS["arch1"]()
    mn.declare_all(net.model, mn.rules.unit_norm("head"), project=True)
    net.model.head.weight = mn.ManifoldParameter(
        normalize(net.model.head.weight.detach(), dim=0), manifold=mn.Oblique(dim=1)
    )
    before = {name: m for name, (_, m) in mn.registry.declared_parameters(net.model).items()}
    weights = copy.deepcopy(net.model.state_dict())
    assert found(net.model, net.loss_fn, net.batches) == canonical(net.generators)
    after = {name: m for name, (_, m) in mn.registry.declared_parameters(net.model).items()}
    assert len(before) == 3
    assert before == after
    assert all(torch.equal(weights[k], v) for k, v in net.model.state_dict().items())


def test_model_loader_and_generator_are_unchanged():
    model = nn.Sequential(
        nn.Linear(INPUTS, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, CLASSES)
    )
    model[4].eval()
    model[0].bias.requires_grad_(False)
    cross_entropy(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    modules = [dict(vars(module)) for module in model.modules()]
    loader = DataLoader(TensorDataset(*images()), batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    discover(model, cross_entropy, loader)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name])
    for name, p in model.named_parameters():
        assert p.requires_grad == (name != "0.bias")
        assert (p.grad is None) if grads[name] is None else torch.equal(p.grad, grads[name])
    assert [module.training for module in model.modules()] == modes
    assert [dict(vars(module)) for module in model.modules()] == modules


def test_seed_determines_the_result():
    net = NETS["leaky_relu_and_dropout"]()
    loader = DataLoader(TensorDataset(*images(64)), batch_size=16, shuffle=True)
    torch.manual_seed(1)
    once = discover(net.model, cross_entropy, loader, seed=5)
    torch.manual_seed(2)
    again = discover(net.model, cross_entropy, loader, seed=5)
    assert (once.generators, once.report) == (again.generators, again.report)
    other = discover(net.model, cross_entropy, loader, seed=6)
    assert other.report != once.report
    assert other.generators == once.generators


def test_only_some_parameters():
    # A unit is scaled by its row, its bias and its column: no two of them have a symmetry.
    assert found(plain(), cross_entropy, BATCHES, parameters=["0.weight", "2.weight"]) == set()
    named = ["0.weight", "0.bias", "2.weight"]
    assert found(plain(), cross_entropy, BATCHES, parameters=named) == UNITS
    assert discover(plain(), cross_entropy, BATCHES, parameters="0.weight").dimension == 1
    frozen = plain().requires_grad_(False)
    assert found(frozen, cross_entropy, BATCHES, parameters=named) == UNITS
    tied = NETS["tied_embedding"]()
    group = discover(tied.model, classify, tied.batches, parameters=["scores.weight"])
    assert (group.dimension, group.trivial_dimension) == (1, 1)


def test_progress_is_reported():
    told = []
    discover(plain(), cross_entropy, BATCHES, on_progress=lambda *step: told.append(step))
    expected, *others = told
    assert re.fullmatch(r"23 slices, about 0.01 GiB and \d+ s", expected[0])
    assert {what for what, _, _ in others} == {"equations", "factorizing", "verifying"}
    assert all(0 <= done <= total for _, done, total in told)
    last = {what: (done, total) for what, done, total in others}
    assert all(done == total for done, total in last.values())


def test_the_estimate_changes_nothing():
    net = NETS["three_layers"]()
    layout = Layout({name: tuple(p.shape) for name, p in net.model.named_parameters()})

    def rows(estimate):
        work = working_copy(net.model, torch.float64)
        batches = [(net.given.double(), net.target)]
        system = LinearSystem(work, net.loss_fn, batches, layout, source(0))
        if estimate:
            system.cost("slices", 7)
        return system.rows(30), system.reached, system.response, system.norms

    for once, again in zip(rows(False), rows(True), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("kind", ["scaling", "linear"])
def test_too_large_models_are_refused_before_anything_else(kind):
    def batches():
        raise AssertionError("no batch should be taken")
        yield

    with pytest.raises(ValueError, match="narrower copy"):
        discover(nn.Linear(17_000, 3), cross_entropy, batches(), kind=kind)


# --- mistakes -------------------------------------------------------------------------------------


def test_without_any_symmetry_the_group_has_dimension_0():
    # The slope is the only parameter: no other one can compensate for its scaling.
    group = discover(nn.PReLU(), mse_loss, [(torch.randn(8, 2), torch.randn(8, 2))])
    assert (group.dimension, group.trivial_dimension) == (0, 0)
    assert group.sample().is_identity
    assert "dimension 0: there is no scaling symmetry" in str(group)


def infinite():
    model = plain()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    return model


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.spare = plain(), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


X, T = BATCHES[0]


@pytest.mark.parametrize(
    ("model", "loss_fn", "batches", "options", "message"),
    [
        (nn.ReLU(), cross_entropy, BATCHES, {}, "ReLU has no parameters"),
        (plain().requires_grad_(False), cross_entropy, BATCHES, {}, "all 4 parameters .* frozen"),
        (plain(), cross_entropy, [(X * torch.nan, T)], {}, "the loss on this batch is nan"),
        (infinite(), cross_entropy, BATCHES, {}, "weights or inputs that are not finite"),
        (Unused(), cross_entropy, BATCHES, {}, r"spare.weight gets no gradient.*requires_grad_"),
        (perceptron(Act(torch.round)), cross_entropy, BATCHES, {}, "0.weight gets no gradient"),
        (plain(), lambda o, t: 0 * o.sum(), BATCHES, {}, "no gradient .* was finite and not zero"),
        (plain(), lambda o, t: o.detach().sum(), BATCHES, {}, "no gradient .* was finite"),
        (plain(), cross_entropy, [], {}, "batches is empty"),
        (plain(), cross_entropy, [X], {}, r"a pair \(input, target\).*not Tensor"),
        (plain(), cross_entropy, BATCHES[0], {}, r"One batch alone is \[\(input, target\)\]"),
        (plain(), cross_entropy, [(X, T, T)], {}, "not tuple of 3"),
        (plain(), nn.CrossEntropyLoss(reduction="none"), BATCHES, {}, r"not shape \(24,\).*'mean'"),
        (plain(), lambda o, t: 0.0, BATCHES, {}, "one real number, not float"),
        (plain(), cross_entropy, BATCHES, {"parameters": ["no"]}, "no parameter 'no' .there are"),
        (plain(), cross_entropy, BATCHES, {"parameters": []}, "parameters names nothing"),
        (plain(), cross_entropy, BATCHES, {"minibatch": 0}, "minibatch is 0"),
        (plain(), cross_entropy, BATCHES, {"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
        (
            nn.Linear(17_000, 3),
            cross_entropy,
            [(torch.randn(2, 17_000), T[:2])],
            {},
            r"17006 slices need 15 GiB.*at most 16000.*narrower copy.*widen.*parameters=\[...\]",
        ),
        (
            nn.ParameterList([torch.zeros(2, dtype=torch.complex64)]),
            cross_entropy,
            BATCHES,
            {"parameters": ["0"]},
            "0: only real numbers are scaled, not torch.complex64",
        ),
    ],
)
def test_invalid_arguments_of_discover(model, loss_fn, batches, options, message):
    with pytest.raises(ValueError, match=message):
        discover(model, loss_fn, batches, **options)


class CutOff(nn.Module):
    """A perceptron plus A x/‖A x‖ times ‖A‖, where ‖A‖ is detached."""

    def __init__(self):
        super().__init__()
        self.net = perceptron(nn.ReLU())
        self.A = nn.Linear(INPUTS, CLASSES, bias=False)

    def forward(self, x):
        return self.net(x) + normalize(self.A(x), dim=1) * self.A.weight.detach().norm()


class Rounded(torch.autograd.Function):
    """Rounding to whole numbers, with the gradient zero."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Quantized(CutOff):
    def forward(self, x):
        y = self.A(x)
        return self.net(x) + normalize(y, dim=1) + Rounded.apply(y)


@pytest.mark.parametrize("model", [CutOff(), Quantized()])
def test_false_symmetry_error_has_generator_and_deviation(model):
    # The generators of the perceptron precede the false one and are not reported.
    with pytest.raises(FalseSymmetryError, match="first order only") as error:
        discover(model, cross_entropy, BATCHES)
    assert canonical([error.value.generator]) == canonical([generator(row("A.weight", 0, 1, 2))])
    assert error.value.deviation > 1e-3
    assert f"changes by {error.value.deviation:.2g} relative" in str(error.value)


def test_rounding_of_tiny_weights_is_detected():
    model = Quantized()
    with torch.no_grad():
        model.A.weight.mul_(1e-3)  # all of it is rounded to zero
    with pytest.raises(FalseSymmetryError, match="A.weight.all rows.*rounding"):
        discover(model, cross_entropy, BATCHES)


def test_straight_through_rounding_has_no_symmetry():
    # The gradient is that at the rounded weight, so its product with the weight does not cancel.
    class Rounding(nn.Module):
        def forward(self, w):
            return w + ((4 * w).round() / 4 - w).detach()

    model = plain()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Rounding())
    assert found(model, cross_entropy, BATCHES) == set()


# --- where the data cannot tell -------------------------------------------------------------------

SMALL = [1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-20]


def nearly_linear(activation, weights=1.0, bias=True, everywhere=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=bias), activation, nn.Linear(6, 4))
    with torch.no_grad():
        for p in (model if everywhere else model[0]).parameters():
            p.mul_(weights)
    return model


def inputs(size):
    torch.manual_seed(1)
    return [(size * torch.randn(64, 8), torch.randint(4, (64,)))]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("size", SMALL)
def test_small_weights_do_not_make_a_unit_linear(size, everywhere):
    # It is nonlinear at weights of the size of an initialized layer.
    model = nearly_linear(nn.Tanh(), size, everywhere=everywhere)
    assert found(model, cross_entropy, inputs(1.0)) == set()


@pytest.mark.parametrize("size", [1e-20, 1e-8, 1e-4, 1e3])
def test_weights_of_any_size_have_the_same_group(size):
    model = nearly_linear(nn.ReLU(), size, everywhere=True)
    assert found(model, cross_entropy, inputs(1.0)) == canonical(hidden_units("0", "2", 6))


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_large_weights_do_not_make_an_activation_homogeneous(size):
    model = nearly_linear(nn.GELU(), size, everywhere=True)
    assert found(model, cross_entropy, inputs(1.0)) == set()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softplus(), nn.SiLU()])
@pytest.mark.parametrize("size", [*SMALL, 1e-7, 1e-10, 1e-14])
@pytest.mark.thorough
def test_small_inputs_give_no_false_symmetry(activation, size, bias):
    model = nearly_linear(activation, bias=bias)
    said = "give larger inputs"
    try:
        generators = found(model, cross_entropy, inputs(size))
    except (FalseSymmetryError, NoGapError) as error:
        generators, said = set(), str(error)
    assert generators == set()
    assert re.search("give (larger inputs|inputs of ordinary size)", said, re.IGNORECASE)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-10])
def test_small_inputs_are_undecided_below_the_resolution(size):
    model = nearly_linear(nn.ReLU(), bias=False)
    if size < 1e-8:
        with pytest.raises(NoGapError, match="undecided: .* more like it, cannot be seen.*float64"):
            discover(model, cross_entropy, inputs(size))
    else:
        units = canonical(generator(row("0.weight", i), column("2.weight", i)) for i in range(6))
        assert found(model, cross_entropy, inputs(size)) == units


def test_singular_values_between_two_gaps_are_undecided():
    def almost(x):
        return x.relu() + 1e-9 * x**2

    with pytest.raises(NoGapError, match="undecided: .* far above the 1.0e-13 that rounding"):
        discover(nearly_linear(Act(almost)), cross_entropy, inputs(1.0))


# --- what a copy does not see ---------------------------------------------------------------------


class Penalized(nn.Module):
    """A loss with a penalty on the weights of a model that it stores."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, output, target):
        return cross_entropy(output, target) + self.model[0].weight.square().sum()


def penalty_of(model):
    return lambda o, t: cross_entropy(o, t) + 1e-6 * model[0].weight.square().sum()


class Itself(nn.Module):
    """A layer read through a closure, which deepcopy does not copy."""

    def __init__(self, layer):
        super().__init__()
        self.read = lambda: layer.weight.square().sum()

    def forward(self, x):
        return x * self.read()


@pytest.mark.parametrize("make", [penalty_of, Penalized])
def test_penalty_in_the_loss_is_an_error(make):
    model = plain()
    with pytest.raises(ValueError, match="depends on 0.weight by another way.*penalty"):
        discover(model, make(model), BATCHES)
    layer = nn.Linear(CLASSES, CLASSES)
    with pytest.raises(ValueError, match="depends on 0.weight by another way"):
        discover(nn.Sequential(layer, Itself(layer)), cross_entropy, [(X[:, :CLASSES], T)])


def test_loss_with_parameters_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return cross_entropy(self.scale * output, target)

    teacher = plain()
    model = plain()
    assert found(model, Scaled(), BATCHES) == UNITS
    assert found(model, penalty_of(teacher), BATCHES) == UNITS


def test_penalty_in_the_forward_breaks_the_symmetry():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return self.net(x), 0.01 * sum(p.square().sum() for p in self.net.parameters())

    assert found(Both(), lambda o, t: cross_entropy(o[0], t) + o[1], BATCHES) == set()


class Noisy(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls, self.source = kind, 0, torch.Generator()

    def forward(self, x):
        self.calls += 1
        return {
            "python": lambda: x * (1 + 0.1 * random.random()),
            "numpy": lambda: x * (1 + 0.1 * np.random.rand()),  # noqa: NPY002
            "generator": lambda: x + 0.1 * torch.rand(x.shape, generator=self.source),
            "counter": lambda: x * (1 + 0.01 * self.calls),
            "late": lambda: x if self.calls < 8 else x.tanh(),
        }[self.kind]()


@pytest.mark.parametrize("kind", ["python", "numpy", "generator", "counter", "late"])
def test_noise_outside_of_torch_is_an_error(kind):
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.ReLU(), Noisy(kind), nn.Linear(4, CLASSES))
    with pytest.raises(ValueError, match="same weights was .* noise of its own .*counts its calls"):
        discover(model, cross_entropy, BATCHES)
