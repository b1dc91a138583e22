"""The balanced representative: unique, idempotent, of the same loss, invertible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import manifoldnet as mn
from manifoldnet.symmetry import Generator, ScalingGroup, Slice, balance_, balanced, reparameterize
from manifoldnet.testing import assert_loss_invariant, elements
from tests.symmetry.nets import NETS, generator, row

SCALED = sorted(name for name, make in NETS.items() if make().generators)
POWERS = [2.0, 1.0, 4.0, math.inf]


def group_of(name: str) -> tuple[nn.Module, ScalingGroup]:
    net = NETS[name]()
    model = net.model.double()
    return model, ScalingGroup.of(model, net.generators)


def difference(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of two models' weights, relative to the largest weight."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-300)) for x, y in pairs)


@pytest.mark.parametrize("name", SCALED)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_every_parameterization_has_one_balanced_representative(name: str, data: st.DataObject):
    model, group = group_of(name)
    element = data.draw(elements(group, smallest=1e-3, largest=1e3))
    p = data.draw(st.sampled_from(POWERS))
    found, _ = balanced(model, group, p=p)
    assert difference(found, balanced(reparameterize(model, element), group, p=p)[0]) < 1e-11
    assert difference(found, balanced(found, group, p=p)[0]) < 1e-12


@pytest.mark.parametrize("name", ["relu", "arch2", "residual" if "residual" in NETS else "prelu"])
def test_balancing_is_a_group_element(name: str):
    net = NETS[name]()
    model, group = group_of(name)
    start = [p.detach().clone() for p in model.parameters()]
    element = balance_(model, group)
    assert element in group
    given = (net.given.double(), net.target)
    with mn.symmetry.without_eps(model):
        assert_loss_invariant(model, element, net.loss_fn, given)
    reparameterize(model, element.inverse(), in_place=True)
    for p, w in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-13, atol=0)


def test_units_read_as_much_as_is_read_from_them_up_to_a_constant():
    model, group = group_of("relu")
    found, _ = balanced(model, group)
    first, second = found[0], found[-1]
    reads = first.weight.square().sum(1) + first.bias.square()
    gap = reads - second.weight.square().sum(0)
    # A row with its bias counts 2, a column has one number in each row of `second`.
    expected = torch.full_like(gap, 2 - second.weight.shape[0] / second.weight.shape[1])
    torch.testing.assert_close(gap, expected)


def test_ranges_are_equal():
    model, group = group_of("relu")
    found, _ = balanced(model, group, p=math.inf)
    reads = torch.maximum(found[0].weight.abs().amax(1), found[0].bias.abs())
    torch.testing.assert_close(reads, found[-1].weight.abs().amax(0))


def test_zero_rows_and_dead_units_stay_where_they_are():
    model, group = group_of("relu")
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1], model[-1].weight[:, 1] = 0.0, 0.0, 0.0
        model[0].weight[2], model[0].bias[2] = 0.0, 0.0
    found, element = balanced(model, group)
    assert element.factor(Slice("0.weight", 0, 1)) == pytest.approx(1.0)
    assert all(bool(p.isfinite().all()) for p in found.parameters())
    assert difference(found, balanced(found, group)[0]) < 1e-12


@pytest.mark.parametrize("size", [1e-120, 1e120])
def test_squares_that_leave_the_type(size: float):
    model, group = group_of("relu")
    found, _ = balanced(model, group)
    with torch.no_grad():
        model[0].weight.mul_(size), model[0].bias.mul_(size)
        model[-1].weight.div_(size)
    assert difference(found, balanced(model, group)[0]) < 1e-11


def test_weights_of_float32():
    model, group = group_of("arch2")
    element = group.sample(generator=torch.Generator().manual_seed(0), spread=3.0)
    found, _ = balanced(model.float(), group)
    assert difference(found, balanced(reparameterize(model, element), group)[0]) < 1e-5


def test_a_recurrent_weight_whose_rows_and_columns_meet():
    cell = nn.Linear(4, 4, bias=False).double()
    exponents = [{Slice("weight", 0, i): 1.0, Slice("weight", 1, i): -1.0} for i in range(3)]
    group = ScalingGroup.of(cell, [Generator(e) for e in exponents])
    element = group.sample(generator=torch.Generator().manual_seed(0), spread=5.0)
    found, _ = balanced(cell, group)
    assert difference(found, balanced(reparameterize(cell, element), group)[0]) < 1e-11
    for p in (math.inf,):
        a, _ = balanced(cell, group, p=p)
        assert difference(a, balanced(reparameterize(cell, element), group, p=p)[0]) < 1e-6


def test_exponents_other_than_one():
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    generators = [Generator({Slice("0.weight", 0, 0): 2.0, Slice("1.weight", None): -1.0})]
    group = ScalingGroup.of(model, generators)
    element = group.element([3.0])
    found, _ = balanced(model, group)
    assert difference(found, balanced(reparameterize(model, element), group)[0]) < 1e-11


def test_refusals_leave_the_model_unchanged():
    model, group = group_of("relu")
    start = [p.detach().clone() for p in model.parameters()]
    for p in (33.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="p is"):
            balance_(model, group, p=p)
    with pytest.raises(ValueError, match="group"):
        balance_(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)), group)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"0\.weight has 1 number"):
        balance_(model, group)
    with torch.no_grad():
        model[0].weight[0, 0] = start[0][0, 0]
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    kept = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="manifold"):
        balance_(model, group)
    for p, w in zip(model.parameters(), kept, strict=True):
        assert torch.equal(p.detach(), w)


def test_a_group_without_generators_changes_nothing():
    model = nn.Linear(3, 2)
    assert balance_(model, ScalingGroup.of(model, [])).is_identity
    assert generator(row("weight", 0)) is not None


@pytest.mark.parametrize("name", ["relu", "arch2"])
def test_large_powers_have_one_representative_too(name: str):
    model, group = group_of(name)
    element = group.sample(generator=torch.Generator().manual_seed(5), spread=6.9)
    found, _ = balanced(model, group, p=32.0)
    assert difference(found, balanced(reparameterize(model, element), group, p=32.0)[0]) < 1e-11
