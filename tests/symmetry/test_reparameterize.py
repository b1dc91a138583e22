"""Reparameterization: scaled tensors, inverse scalings, declarations, errors."""

import copy

import pytest
import torch
from cases import seeds, source
from hypothesis import given
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet.symmetry import Generator, ScalingElement, ScalingGroup, Slice, reparameterize

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Net(nn.Module):
    """Hidden layer, batch normalization, ReLU, classifier."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.hidden(x))))


def net(dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean):
            # Entries are away from 0, so that scaling does not underflow.
            tensor.uniform_(0.5, 1.5).mul_(torch.randn(tensor.shape).sign())
    return model.to(dtype)


def scalings(model):
    """Rows, columns, entries, a whole tensor and buffers."""
    return ScalingGroup.of(
        model,
        [
            Generator({Slice("hidden.weight", 0, 1): 1, Slice("hidden.bias", 0, 1): 1}),
            Generator({Slice("hidden.weight", 1, 2): 1, Slice("hidden.weight", 0, 3): -1}),
            Generator({Slice("head.weight", 1, 7): -1, Slice("norm.weight", 0, 7): 1}),
            Generator({Slice("head.weight", None): 1, Slice("head.bias", None): 1}),
            Generator({Slice("norm.running_mean", 0, 4): 1, Slice("norm.running_var", 0, 4): 2}),
        ],
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=seeds)
def test_powers_of_two_are_undone_bit_for_bit(dtype, seed):
    model = net(dtype)
    before = state(model)
    element = scalings(model).sample(generator=source(seed), spread=6.9, powers_of_two=True)
    scaled = reparameterize(model, element)
    assert same(model, before)
    assert all(value.dtype == before[name].dtype for name, value in scaled.state_dict().items())
    reparameterize(scaled, element.inverse(), in_place=True)
    assert same(scaled, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=seeds)
def test_other_factors_are_undone_to_rounding(dtype, seed):
    model = net(dtype)
    # In float64 the factors themselves are rounded too.
    tolerance = torch.finfo(dtype).eps * (4 if dtype == torch.float64 else 1)
    element = scalings(model).sample(generator=source(seed), spread=6.9)
    back = reparameterize(reparameterize(model, element), element.inverse())
    for name, value in model.state_dict().items():
        off = (back.state_dict()[name].double() - value.double()).abs()
        assert bool((off <= tolerance * value.double().abs()).all()), name


@given(seed=seeds)
def test_every_number_is_multiplied_by_its_factor(seed):
    model = net()
    element = scalings(model).sample(generator=source(seed), spread=3.0)
    scaled = reparameterize(model, element)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = value * element.factors(name, value)
            torch.testing.assert_close(scaled.state_dict()[name], expected, rtol=1e-15, atol=0)
    assert scaled.norm.num_batches_tracked == model.norm.num_batches_tracked


def test_symmetry_preserves_the_output():
    model = net().eval()
    x = torch.randn(7, 5, dtype=torch.float64)
    one = {("hidden.weight", 0): [3.0] * 8, ("hidden.bias", 0): [3.0] * 8}
    element = ScalingElement(
        {**one, ("norm.running_mean", 0): [3.0] * 8, ("norm.running_var", 0): [9.0] * 8}
    )
    model.norm.eps = 0.0
    torch.testing.assert_close(reparameterize(model, element)(x), model(x))
    # An element without the running averages leaves them at the values of the old weights.
    assert not torch.allclose(reparameterize(model, ScalingElement(one))(x), model(x))


# --- in place, or not ---------------------------------------------------------------------------


def test_copy_shares_no_memory():
    model = net()
    before = state(model)
    scaled = reparameterize(model, ScalingElement.identity())
    with torch.no_grad():
        for tensor in (*scaled.parameters(), *scaled.buffers()):
            tensor.zero_()
    assert same(model, before)


def test_in_place_scaling_keeps_tensor_objects():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    element = ScalingElement(
        {Slice("hidden.weight", 0, 1): 4.0, Slice("norm.running_var", None): 2}
    )
    before = state(model)
    assert reparameterize(model, element, in_place=True) is model
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(now[name] is tensor for name, tensor in tensors.items())
    assert torch.equal(model.hidden.weight[1], 4 * before["hidden.weight"][1])
    model(torch.randn(4, 5, dtype=torch.float64)).sum().backward()
    scaled = model.hidden.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.hidden.weight, scaled)


def test_gradients_of_scaled_tensors_are_dropped():
    model = net()
    model(torch.randn(4, 5, dtype=torch.float64)).sum().backward()
    element = ScalingElement({Slice("hidden.weight", 0, 1): 4.0})
    scaled = reparameterize(model, element)
    assert model.hidden.weight.grad is not None
    assert scaled.hidden.weight.grad is None
    reparameterize(model, element, in_place=True)
    assert model.hidden.weight.grad is None
    assert model.head.weight.grad is not None


def test_modes_and_requires_grad_are_kept():
    model = net().eval()
    model.hidden.requires_grad_(False)
    scaled = reparameterize(model, ScalingElement({Slice("hidden.weight", None): 2.0}))
    assert not scaled.training
    assert not scaled.hidden.weight.requires_grad
    assert scaled.head.weight.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("in_place", [False, True])
def test_under_any_gradient_mode(context, in_place):
    model = net()
    expected = 2 * model.head.weight.detach().clone()
    with context():
        scaled = reparameterize(
            model, ScalingElement({Slice("head.weight", None): 2.0}), in_place=in_place
        )
    assert torch.equal(scaled.head.weight, expected)
    assert scaled.head.weight.requires_grad
    assert scaled.head.weight.is_leaf
    if context is not torch.inference_mode or in_place:
        scaled(torch.randn(4, 5, dtype=torch.float64)).sum().backward()
        assert scaled.head.weight.grad is not None


# --- ties, declarations, parametrizations -------------------------------------------------------


def tied():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
@pytest.mark.parametrize("in_place", [False, True])
def test_tied_weights_are_scaled_once_under_either_name(name, in_place):
    model = tied()
    before = model[0].weight.detach().clone()
    scaled = reparameterize(model, ScalingElement({Slice(name, 0, 1): 4.0}), in_place=in_place)
    assert scaled[0].weight is scaled[2].weight
    assert torch.equal(scaled[0].weight[1], 4 * before[1])
    assert torch.equal(scaled[0].weight[0], before[0])


@pytest.mark.parametrize("in_place", [False, True])
def test_declarations_survive(in_place):
    model = net()
    mn.declare(model.hidden, "weight", mn.ScaledEuclidean(dim=0))
    mn.declare(model.head, "weight", mn.ScaledEuclidean(dim=1))
    expected = mn.manifolds(model)
    element = ScalingElement({("hidden.weight", 0): [3.0] * 8, Slice("head.weight", None): 1 / 3})
    scaled = reparameterize(model, element, in_place=in_place)
    assert mn.manifolds(scaled) == expected
    x = torch.randn(16, 5, dtype=torch.float64)
    optimizer = mn.RiemannianSGD(mn.param_groups(scaled), lr=1e-3)
    scaled(x).square().sum().backward()
    optimizer.step()


def test_a_manifold_parameter_stays_one():
    model = net()
    model.hidden.weight = mn.ManifoldParameter(model.hidden.weight.detach(), mn.ScaledEuclidean())
    scaled = reparameterize(model, ScalingElement({Slice("hidden.weight", 0, 2): 2.0}))
    assert isinstance(scaled.hidden.weight, mn.ManifoldParameter)
    assert scaled.hidden.weight.manifold == mn.ScaledEuclidean()
    assert mn.manifolds(scaled) == {"hidden.weight": mn.ScaledEuclidean()}


def test_scaling_off_a_manifold_is_an_error_or_projected():
    model = net()
    mn.declare(model.hidden, "weight", mn.Oblique(), project=True)
    before = state(model)
    element = ScalingElement({Slice("hidden.weight", 0, 3): 4.0, Slice("head.weight", None): 2.0})
    with pytest.raises(
        ValueError,
        match=r"off its manifold.*hidden.weight is not on Oblique.*1 of 8 .*row 3 with norm 4",
    ):
        reparameterize(model, element, in_place=True)
    assert same(model, before)
    scaled = reparameterize(model, element, project=True)
    mn.verify(scaled)
    torch.testing.assert_close(
        scaled.hidden.weight.detach(), before["hidden.weight"], rtol=1e-15, atol=1e-16
    )
    assert torch.equal(scaled.head.weight, 2 * before["head.weight"])


def test_trivial_scaling_stays_on_the_manifold():
    model = net()
    mn.declare(model.hidden, "weight", mn.Oblique(), project=True)
    trivial = ScalingElement.from_log2(
        {Slice("hidden.weight", 0, i): 1.3 for i in range(8)}
        | {Slice("hidden.weight", 1, j): -1.3 for j in range(5)}
    )
    before = state(model)
    assert same(reparameterize(model, trivial), before)


def test_weight_norm():
    torch.manual_seed(1)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU())
    x = torch.randn(7, 5)
    length, direction = (f"0.parametrizations.weight.original{i}" for i in range(2))
    # The direction may have any length, the length scales the rows.
    free = ScalingElement({(direction, 0): [2.0, 4.0, 8.0, 0.5]})
    torch.testing.assert_close(reparameterize(model, free)(x), model(x))
    longer = ScalingElement({(length, 0): [2.0] * 4, Slice("0.bias", None): 2.0})
    torch.testing.assert_close(reparameterize(model, longer)(x), 2 * model(x))
    with pytest.raises(
        ValueError,
        match=r"'0.weight', which Sequential does not have.*weight is parametrized: move what it "
        rf"is computed from, one of .*{direction}",
    ):
        reparameterize(model, ScalingElement({("0.weight", 0): [2.0] * 4}))


# --- refusals, which change nothing -------------------------------------------------------------

VALID = {Slice("norm.weight", None): 2.0}
INVALID = [
    (net, {Slice("other.weight", 0): 2.0}, r"'other.weight', which Net .*\(it has: hidden.weight,"),
    (net, {Slice("hidden", 0): 2.0}, "'hidden', which Net does not have"),
    (net, {Slice("norm.num_batches_tracked", 0): 2.0}, "tracked', which Net does not have"),
    (net, {Slice("hidden.weight", 0, 8): 2.0}, r"of shape \(8, 5\) has no slice 8 along dim=0"),
    (lambda: net(torch.float32), {Slice("head.weight", 1, 7): 2.0**130}, "3 of 24 .* overflow"),
    (lambda: net(torch.float32), {Slice("head.weight", 1, 7): 2.0**-150}, "3 of 24 .* underflow"),
    (tied, {Slice("0.weight", 0, 1): 4.0, Slice("2.weight", 0, 2): 4.0}, "are one tensor"),
]


@pytest.mark.parametrize(("make", "factors", "message"), INVALID)
@pytest.mark.parametrize("in_place", [False, True])
def test_invalid_elements_change_nothing(make, factors, message, in_place):
    model = make()
    before = state(model)
    element = ScalingElement(factors if make is tied else {**VALID, **factors})
    with pytest.raises(ValueError, match=message):
        reparameterize(model, element, in_place=in_place)
    assert same(model, before)


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    element = ScalingElement({Slice("0.weight", 0, 1): 2.0})
    for in_place in (False, True):
        with pytest.raises(ValueError, match=r"0.weight has no shape yet .*run the model once"):
            reparameterize(model, element, in_place=in_place)
    with pytest.raises(ValueError, match=r"0.weight has no shape yet"):
        ScalingGroup.of(model, [])
    model(torch.randn(4, 3))
    assert reparameterize(model, element)[0].weight.shape == (4, 3)


def test_tensors_without_values_are_refused():
    model = net().to("meta")
    with pytest.raises(ValueError, match=r"hidden.weight has no values .*meta"):
        reparameterize(model, ScalingElement({Slice("hidden.weight", 0, 1): 2.0}))
    mixed = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    scaled = reparameterize(mixed, ScalingElement({Slice("1.weight", None): 2.0}))
    assert torch.equal(scaled[1].weight, 2 * mixed[1].weight)


def test_parameters_without_fractions_are_refused():
    model = nn.Module()
    model.counts = nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False)
    with pytest.raises(ValueError, match="counts has the type torch.int64"):
        reparameterize(model, ScalingElement({Slice("counts", None): 2.0}))


def test_the_model_is_copied_as_deepcopy_copies():
    model = net()
    model.note = ["anything"]
    scaled = reparameterize(model, ScalingElement.identity())
    assert scaled.note == model.note
    assert scaled.note is not model.note
    assert same(copy.deepcopy(model), state(scaled))
