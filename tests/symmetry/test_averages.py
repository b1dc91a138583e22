"""Running averages that follow the weights: the loss in evaluation mode is kept, too."""

import copy

import pytest
import torch
from nets import CLASSES, INPUTS, Act, Residual, ResNet, column, layer, row
from torch import nn
from torch.nn.functional import cross_entropy

from manifoldnet.symmetry import (
    Generator,
    ScalingElement,
    ScalingGroup,
    Slice,
    balance_,
    discover,
    reparameterize,
    without_eps,
)


def vectors(*layers):
    return nn.Sequential(*layers), torch.randn(24, INPUTS)


def images(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(16, 2, 6, 6)


NETS = {
    "bias": lambda: vectors(
        nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES)
    ),
    "no scale and shift": lambda: vectors(
        nn.Linear(INPUTS, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, CLASSES)
    ),
    "cumulative": lambda: vectors(
        nn.Linear(INPUTS, 6), nn.ReLU(), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, CLASSES)
    ),
    "squares": lambda: vectors(
        nn.Linear(INPUTS, 4), Act(torch.square), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
    ),
    "convolutions": lambda: images(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.BatchNorm2d(6, momentum=0.3),
        nn.ReLU(),
        nn.Conv2d(6, CLASSES, 1),
    ),
    "after a residual sum": lambda: vectors(
        nn.Linear(INPUTS, 4),
        nn.ReLU(),
        Residual(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, CLASSES),
    ),
    "residual blocks": lambda: (ResNet(3, 4), torch.randn(16, 2, 6, 6)),
}


def trained(name):
    """A model with weights and running averages of its own, in float64, and a batch."""
    torch.manual_seed(0)
    model, x = NETS[name]()
    model, x = model.double(), x.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for _ in range(5):
            model(x + 0.3 * torch.randn_like(x) + 0.2)
    return model, [(x, torch.randint(CLASSES, (len(x),)))]


def loss_in_evaluation(model, batches):
    model = copy.deepcopy(model).eval()
    with without_eps(model), torch.no_grad():
        return float(cross_entropy(model(batches[0][0]), batches[0][1]))


@pytest.mark.parametrize("name", NETS)
def test_the_loss_in_evaluation_is_kept(name):
    model, batches = trained(name)
    group = discover(model, cross_entropy, batches)
    assert group.report.averages == sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert not group.report.stale
    assert group.report.evaluated < 1e-12
    before = loss_in_evaluation(model, batches)
    element = group.nontrivial.sample(generator=torch.Generator().manual_seed(1), spread=3.0)
    moved = reparameterize(model, element)
    assert loss_in_evaluation(moved, batches) == pytest.approx(before, rel=1e-11)
    assert any(
        not torch.allclose(b, c, rtol=0.1)
        for b, c in zip(moved.buffers(), model.buffers(), strict=True)
        if b.is_floating_point()
    )
    back = reparameterize(moved, element.inverse())
    for one, other in zip(back.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    balance_(model, group)
    assert loss_in_evaluation(model, batches) == pytest.approx(before, rel=1e-11)


def test_each_generator_alone():
    model, batches = trained("bias")
    before = loss_in_evaluation(model, batches)
    for one in discover(model, cross_entropy, batches).nontrivial.generators:
        after = loss_in_evaluation(reparameterize(model, one.element(3.0)), batches)
        assert after == pytest.approx(before, rel=1e-11), one


def test_exponents_and_shifts_are_those_derived_by_hand():
    # The mean of W x + b is W x̄ + b: it scales with the row but for its term b.
    model, batches = trained("bias")
    found = {
        frozenset(g.exponents.items()): g
        for g in discover(model, cross_entropy, batches).nontrivial.generators
    }
    for i in range(6):
        mean, bias = Slice("1.running_mean", 0, i), Slice("0.bias", 0, i)
        (w,) = row("0.weight", i)
        filters = found.pop(frozenset({(w, 1), (mean, 1), (Slice("1.running_var", 0, i), 2)}))
        biases = found.pop(frozenset({(bias, 1)}))
        assert filters.shifts == biases.shifts == ((mean, bias),)
        assert "running" not in filters.name
        up = [(s, 1) for s in layer("1", i)]
        assert not found.pop(frozenset([*up, *((s, -1) for s in column("3.weight", i))])).shifts
    assert not found


def test_powers_have_their_exponents():
    model, batches = trained("squares")
    for g in discover(model, cross_entropy, batches).nontrivial.generators:
        powers = {w.parameter: a for w, a in g.exponents.items()}
        if "0.weight" in powers:
            assert powers["2.running_mean"] == 2 * powers["0.weight"]
            assert powers["2.running_var"] == 4 * powers["0.weight"]


def test_generators_that_no_factor_follows_are_named():
    # β of the first normalization shifts all means of the second, by what a column weighs.
    torch.manual_seed(0)
    model, x = vectors(
        nn.Linear(INPUTS, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, CLASSES),
    )
    group = discover(model, cross_entropy, [(x, torch.randint(CLASSES, (len(x),)))])
    assert len(group.report.stale) == 8
    assert "cannot follow" in str(group)
    for g in group.nontrivial.generators:
        touched = {w.parameter for w in g.exponents} & {"1.weight", "1.bias"}
        assert (g.name in group.report.stale) == bool(touched)


def test_no_running_averages():
    model, batches = trained("bias")
    for each in model.modules():
        if isinstance(each, nn.BatchNorm1d):
            each.eval()  # frozen: constants of the loss
    assert discover(model, cross_entropy, batches).report.averages == 0
    model, batches = vectors(nn.Linear(INPUTS, 4), nn.ReLU(), nn.Linear(4, CLASSES)), None
    group = discover(model[0], cross_entropy, [(model[1], torch.randint(CLASSES, (24,)))])
    assert group.report.averages == 0
    assert "running" not in str(group)


def test_buffers_that_enter_the_loss_are_no_running_averages():
    class Level(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("level", torch.zeros(()))

        def forward(self, x):
            self.level.mul_(0.9).add_(0.1 * x.detach().square().mean())
            return x * (1 + self.level)

    torch.manual_seed(0)
    model, x = vectors(nn.Linear(INPUTS, 4), nn.ReLU(), nn.Linear(4, CLASSES), Level())
    group = discover(model, cross_entropy, [(x, torch.randint(CLASSES, (24,)))])
    assert (group.nontrivial.dimension, group.report.averages) == (4, 0)


def test_widening_carries_them():
    torch.manual_seed(0)

    def make(width):
        return nn.Sequential(
            nn.Linear(INPUTS, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, CLASSES)
        ).double()

    x = torch.randn(24, INPUTS).double()
    batches = [(x, torch.randint(CLASSES, (24,)))]
    wide = make(9)
    with torch.no_grad():
        wide(x + 0.3)
    group = discover(make(4), cross_entropy, batches).widen(wide, cross_entropy, batches[0])
    assert group.nontrivial.dimension == 27
    before = loss_in_evaluation(wide, batches)
    balance_(wide, group)
    assert loss_in_evaluation(wide, batches) == pytest.approx(before, rel=1e-11)
    assert ScalingGroup.of(wide, [Generator({Slice("0.weight", 0, 8): 1.0})]) in group


def test_shifts_compose_and_invert():
    mean, bias = Slice("mean", 0, 1), Slice("bias", 0, 0)
    tensors = {"mean": torch.randn(3).double(), "bias": torch.randn(2).double()}
    a = ScalingElement.from_log2({mean: 1.0, bias: -2.0}, shifts=[(mean, bias)])
    b = ScalingElement.from_log2({bias: 3.0}, shifts=[(mean, bias)])
    one = (a * b).move(tensors)
    two = b.move(a.move(tensors))
    back = (a * b).inverse().move(one)
    for name, x in tensors.items():
        torch.testing.assert_close(one[name], two[name])
        torch.testing.assert_close(back[name], x)
    names = {"mean": "x.mean", "bias": "x.bias"}
    renamed = (a * b).renamed(names).move({names[n]: x for n, x in tensors.items()})
    torch.testing.assert_close(renamed["x.mean"], one["mean"])
    half = (a**0.5).move((a**0.5).move(tensors))
    torch.testing.assert_close(half["mean"], a.move(tensors)["mean"])
