"""Conservation laws: orthogonal to gradients, counted as published, broken by finite rates."""

import copy
import itertools
import math

import pytest
import torch
from nets import NETS
from torch import nn

from manifoldnet.symmetry import (
    Generator,
    LinearGenerator,
    LinearGroup,
    ScalingGroup,
    Slice,
    conserved,
    discover,
    watch,
    without_eps,
)
from manifoldnet.symmetry.batches import cast

# --- the laws -----------------------------------------------------------------------------------


def relu_net(bias=True):
    return nn.Sequential(nn.Linear(10, 8, bias=bias), nn.ReLU(), nn.Linear(8, 4)).double()


def relu_group(model):
    """Row and bias of each unit against its column."""
    return ScalingGroup.of(
        model,
        [
            Generator(
                {Slice("0.weight", 0, i): 1.0, Slice("2.weight", 1, i): -1.0}
                | ({Slice("0.bias", 0, i): 1.0} if model[0].bias is not None else {})
            )
            for i in range(8)
        ],
    )


def test_relu_laws_are_differences_of_squared_norms():
    model = relu_net()
    laws = conserved(model, relu_group(model))
    w, b, v = model[0].weight, model[0].bias, model[2].weight
    expected = (w.square().sum(1) + b.square() - v.square().sum(0)) / 2
    torch.testing.assert_close(laws.values(model), expected.detach())
    assert len(laws) == len(laws.names) == laws.rank(model) == 8
    assert set(laws.parameters) == {"0.weight", "0.bias", "2.weight"}


def gradients(laws, model):
    """Gradients of the laws by differences of a quadratic, by parameter."""
    weights = laws._weights(model)
    return torch.autograd.functional.jacobian(
        lambda *given: laws._evaluate(dict(zip(weights, given, strict=True))),
        tuple(weights.values()),
    )


@pytest.mark.parametrize("name", NETS)
def test_laws_are_orthogonal_to_gradients_of_the_loss(name):
    net = NETS[name]()
    model = net.model.double()
    with without_eps(model):
        given = cast(net.given, torch.float64, torch.device("cpu"))
        laws = conserved(model, ScalingGroup.of(model, net.generators))
        loss = net.loss_fn(model(given), net.target)
        loss.backward()
    assert len(laws) == len(net.generators)
    if not len(laws):
        return
    named = dict(model.named_parameters())
    total, size = 0.0, 0.0
    for parameter, rows in zip(laws.parameters, gradients(laws, model), strict=True):
        g = named[parameter].grad
        products = (rows * g).reshape(len(laws), -1)
        total, size = total + products.sum(1), size + products.abs().sum(1)
    assert (total.abs() <= 1e-10 * size + 1e-14).all()


@pytest.mark.parametrize("name", NETS)
def test_scaling_laws_are_independent(name):
    net = NETS[name]()
    laws = conserved(net.model, ScalingGroup.of(net.model, net.generators))
    for p in net.model.parameters():  # generic weights: gains and shifts start at one and zero
        nn.init.normal_(p)
    assert laws.rank(net.model) == len(laws)


def test_trivial_generators_and_buffers_give_no_law():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    trivial = {Slice("0.weight", 0, i): 1.0 for i in range(2)}
    trivial |= {Slice("0.weight", 1, j): -1.0 for j in range(3)}
    row = {Slice("0.weight", 0, 0): 1.0, Slice("1.running_mean", 0, 0): 1.0}
    alone = {Slice("1.running_var", 0, 1): 1.0}
    laws = conserved(model, ScalingGroup.of(model, map(Generator, (trivial, row, alone))))
    assert len(laws) == 1
    expected = model[0].weight[0].double().square().sum().item() / 2
    assert laws.values(model).tolist() == pytest.approx([expected])


def test_whole_tensors_scalars_and_higher_dimensions():
    model = nn.Module()
    model.gain, model.kernel = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.randn(2, 3, 4))
    generators = [
        Generator({Slice("gain", None): 2.0, Slice("kernel", None): -0.5}),
        Generator({Slice("kernel", 2, 1): 1.0}),
    ]
    values = conserved(model, ScalingGroup.of(model, generators)).values(model)
    k = model.kernel.detach().double()
    expected = [9.0 - 0.25 * k.square().sum().item(), k[:, :, 1].square().sum().item() / 2]
    assert values.tolist() == pytest.approx(expected)


# --- published counts ---------------------------------------------------------------------------


class Factors(nn.Module):
    """Two linear layers, U Vᵀ with U n × r and V m × r."""

    def __init__(self, n, m, r):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(n, r)), nn.Parameter(torch.randn(m, r))

    def forward(self, x):
        return x @ (self.u @ self.v.mT).mT


def field(name="", **sides):
    return LinearGenerator(**sides, name=name)


def gl(r):
    """GL(r): U ↦ U S, V ↦ V S^{-T}, by its r² elementary generators."""
    units = torch.eye(r * r, dtype=torch.float64).reshape(r * r, r, r)
    return [field("GL", right={"u": e, "v": -e.mT}) for e in units]


@pytest.mark.parametrize(("n", "m", "r"), [(4, 3, 2), (3, 2, 5), (1, 1, 2), (1, 2, 5), (3, 3, 1)])
def test_counts_of_two_linear_layers(n, m, r):
    # [marcotte2023abide]: with (U; V) of full rank, UᵀU − VᵀV gives r(r+1)/2 independent laws where
    # n + m ≥ r, and (n+m) r − (n+m)(n+m−1)/2 otherwise.
    model = Factors(n, m, r)
    laws = conserved(model, LinearGroup.of(model, gl(r)))
    rows = n + m
    expected = r * (r + 1) // 2 if rows >= r else rows * r - rows * (rows - 1) // 2
    assert laws.rank(model) == expected
    assert len(laws) == r * (r + 1) // 2


def test_laws_of_a_discovered_linear_group():
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    batches = [(torch.randn(64, 5).double(), torch.randn(64, 2).double())]
    group = discover(model, nn.functional.mse_loss, batches, kind="linear")
    laws = conserved(model, group)
    assert laws.rank(model) == len(laws) == 6  # UᵀU − VᵀV, with three hidden units
    lost = []
    for lr in (1e-2, 1e-3):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=lr)
        for _ in range(round(1 / lr)):
            optimizer.zero_grad()
            nn.functional.mse_loss(trained(batches[0][0]), batches[0][1]).backward()
            optimizer.step()
        lost.append(float((laws.values(trained) - laws.values(model)).norm()))
    assert 0.05 < lost[1] / lost[0] < 0.2


def layers(*sizes, activation):
    """Layers of these sizes, an activation in between."""
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs, bias=False), activation()]
    return nn.Sequential(*parts[:-1]).double()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sizes", "activation", "kind", "expected"),
    [
        # [marcotte2023abide]: ReLU networks have one law for each hidden unit, however deep;
        # linear ones the r(r+1)/2 of each pair of consecutive layers with r units between.
        ((5, 4, 3), nn.ReLU, "scaling", 4),
        ((5, 4, 3, 2), nn.ReLU, "scaling", 4 + 3),
        ((4, 3, 5, 3, 2), nn.ReLU, "scaling", 3 + 5 + 3),
        ((5, 3, 2), nn.Identity, "linear", 6),
        ((5, 3, 4, 2), nn.Identity, "linear", 6 + 10),
        ((3, 2, 3, 2, 3), nn.Identity, "linear", 3 + 6 + 3),
    ],
)
def test_counts_of_discovered_laws(sizes, activation, kind, expected):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = layers(*sizes, activation=activation)
        batch = torch.randn(96, sizes[0]).double(), torch.randn(96, sizes[-1]).double()
    group = discover(model, nn.functional.mse_loss, [batch], kind=kind)
    laws = conserved(model, group)
    assert laws.rank(model) == len(laws) == expected


def test_something_else_than_a_group():
    with pytest.raises(TypeError, match="not a list"):
        conserved(nn.Linear(2, 2), [])


def test_values_of_two_linear_layers():
    model = Factors(4, 3, 2)
    laws = conserved(model, LinearGroup.of(model, gl(2)))
    u, v = model.u.detach().double(), model.v.detach().double()
    invariant = (u.mT @ u - v.mT @ v)[[0, 0, 1], [0, 1, 1]]
    values = laws.values(model)
    # Diagonal entries are laws themselves; the others are found as combinations, up to a factor.
    assert values[:2].tolist() == pytest.approx((invariant[[0, 2]] / 2).tolist())
    assert abs(float(values[2])) == pytest.approx(abs(float(invariant[1])) / math.sqrt(2))


def test_rotations_and_fields_that_move_nothing_give_no_law():
    model = Factors(3, 3, 2)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    rotation = field(right={"u": turn, "v": turn})
    trivial = field(left={"u": torch.eye(3)}, right={"u": -torch.eye(2)})
    assert len(conserved(model, LinearGroup.of(model, [rotation, trivial]))) == 0


def test_translations_give_sums():
    model = nn.Sequential(nn.Linear(3, 4)).double()
    shifts = [field("shift of the bias", translation={"0.bias": torch.ones(4)})]
    laws = conserved(model, LinearGroup.of(model, shifts))
    torch.testing.assert_close(laws.values(model)[0], model[0].bias.detach().sum())
    x, y = torch.randn(16, 3).double(), torch.randint(4, (16,))
    log = watch(torch.optim.SGD(model.parameters(), lr=1.0), model, laws)
    train(model, log_steps=5, data=(x, y), optimizer=None, lr=1.0)
    assert log.steps == [0]  # another optimizer was stepped
    torch.testing.assert_close(laws.values(model), log.values[0])  # linear laws: for any rate


# --- drift --------------------------------------------------------------------------------------


def train(model, log_steps, data, optimizer=None, lr=0.1):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    x, y = data
    for _ in range(log_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_drift_is_proportional_to_the_rate():
    start, data = relu_net(), (torch.randn(64, 10).double(), torch.randint(4, (64,)))
    drifts = []
    rates = [0.1, 0.05, 0.025, 0.0125]
    for lr in rates:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        log = watch(optimizer, model, conserved(model, relu_group(model)))
        train(model, round(4 / lr), data, optimizer)
        drifts.append(float(log.drift[-1].abs().max()))
    logs = [[math.log(v) for v in values] for values in (rates, drifts)]
    slope = (logs[1][0] - logs[1][-1]) / (logs[0][0] - logs[0][-1])
    assert abs(slope - 1) < 0.1
    assert drifts[0] > 1e-6


def test_other_flows_have_other_laws():
    start, data = relu_net(), (torch.randn(64, 10).double(), torch.randint(4, (64,)))
    drift = {}
    for name, make in {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
        "decay": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    }.items():
        model = copy.deepcopy(start)
        optimizer = make(model.parameters())
        log = watch(optimizer, model, conserved(model, relu_group(model)))
        train(model, 50, data, optimizer)
        drift[name] = float(log.drift.abs().max())
    assert drift["sgd"] < drift["decay"] / 10 < drift["adam"]


def test_log_of_every_third_step():
    model, data = relu_net(), (torch.randn(8, 10).double(), torch.randint(4, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    laws = conserved(model, relu_group(model))
    log = watch(optimizer, model, laws, every=3)
    train(model, 7, data, optimizer)
    assert log.steps == [0, 3, 6]
    assert log.values.shape == log.drift.shape == (3, 8)
    assert not log.drift[0].any()
    assert log.drift[1:].all()
    log.remove()
    train(model, 3, data, optimizer)
    assert log.steps == [0, 3, 6]


def test_plot():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    model, data = relu_net(), (torch.randn(8, 10).double(), torch.randint(4, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = watch(optimizer, model, conserved(model, relu_group(model)))
    axes = Figure().add_subplot()
    assert log.plot(axes) is axes  # nothing logged yet
    train(model, 4, data, optimizer)
    log.plot(axes)
    largest = axes.lines[-1].get_ydata()
    assert list(largest) == pytest.approx(log.drift[1:].abs().amax(1).tolist())
    assert axes.get_yscale() == "log"


# --- bad input ----------------------------------------------------------------------------------


def test_group_of_another_model():
    group = relu_group(relu_net())
    with pytest.raises(ValueError, match=r"0\.weight"):
        conserved(nn.Linear(10, 8), group)
    wider = nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 4))
    with pytest.raises(ValueError, match=r"0\.weight.*\(9, 10\)"):
        conserved(wider, group)


def test_layer_replaced_or_frozen_afterwards():
    model = relu_net()
    laws = conserved(model, relu_group(model))
    model[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"2\.weight is frozen"):
        conserved(model, relu_group(model))
    model[2] = nn.Linear(8, 5)
    with pytest.raises(ValueError, match=r"2\.weight"):
        laws.values(model)


def test_watch_refuses():
    model = relu_net()
    group = relu_group(model)
    laws = conserved(model, group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="conserved"):
        watch(optimizer, model, group)
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="every"):
            watch(optimizer, model, laws, every=every)
    with pytest.raises(ValueError, match=r"0\.weight"):
        watch(torch.optim.SGD(relu_net().parameters(), lr=0.1), model, laws)
    assert not optimizer._optimizer_step_post_hooks


def test_a_group_without_symmetry_has_no_law():
    model = relu_net()
    laws = conserved(model, ScalingGroup.of(model, []))
    assert len(laws) == laws.rank(model) == 0
    assert laws.values(model).shape == (0,)
    log = watch(torch.optim.SGD(model.parameters(), lr=0.1), model, laws)
    assert log.drift.shape == (1, 0)
