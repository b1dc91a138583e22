"""`declare` and `undeclare`: the tensor keeps its identity, and bad input changes nothing."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable

import geoopt
import pytest
import torch
from cases import refused
from declared_net import MANIFOLDS, Net, declared, fit, tied, train, unchanged, values
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations, parametrize, prune

import manifoldnet as mn
from manifoldnet import registry
from manifoldnet.geometry import NotOnManifoldError, WrongTensorError

EVERY_MANIFOLD = pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
EVERY_WAY = pytest.mark.parametrize("way", ["declared", "assigned"])
OBLIQUE = mn.Oblique()


def off_by_a_half() -> nn.Linear:
    """Unit rows, but row 2, which has norm 1.5, and row 3, which has norm 0.8."""
    layer = nn.Linear(5, 8)
    with torch.no_grad():
        layer.weight.copy_(OBLIQUE.projx(layer.weight))
        layer.weight[2] *= 1.5
        layer.weight[3] *= 0.8
    return layer


# --- declare --------------------------------------------------------------------------------------


@EVERY_MANIFOLD
def test_a_point_is_declared_as_it_is(manifold) -> None:
    layer = nn.Linear(5, 8)
    with torch.no_grad():
        layer.weight.copy_(manifold.projx(layer.weight))
    weight, address, before = layer.weight, layer.weight.data_ptr(), values(layer)
    mn.declare(layer, "weight", manifold)
    assert layer.weight is weight
    assert weight.data_ptr() == address
    assert unchanged(layer, before)
    assert mn.manifolds(layer) == {"weight": manifold}
    assert type(layer.weight) is nn.Parameter


@EVERY_MANIFOLD
def test_project_puts_the_same_tensor_on_the_manifold(manifold) -> None:
    layer = nn.Linear(5, 8)
    weight, address = layer.weight, layer.weight.data_ptr()
    expected = manifold.projx(weight.detach())
    mn.declare(layer, "weight", manifold, project=True)
    assert layer.weight is weight
    assert weight.data_ptr() == address
    assert torch.equal(weight, expected)
    assert weight.requires_grad
    assert weight.is_leaf


def test_data_off_the_manifold_is_refused_with_the_worst_slice_and_the_way_out() -> None:
    model = nn.Sequential(off_by_a_half())
    before = values(model)
    with pytest.raises(NotOnManifoldError) as error:
        mn.declare(model, "0.weight", OBLIQUE)
    assert str(error.value) == (
        f"0.weight is not on {OBLIQUE}: 2 of 8 slices are off, the worst is row 2 with norm 1.5, "
        "off by 0.5 relative. Put it on the manifold with manifold.projx(data), or with "
        "project=True where that is offered"
    )
    assert unchanged(model, before)
    assert mn.manifolds(model) == {}


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("manifold", [OBLIQUE, mn.ScaledEuclidean()])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_slices_without_projection_are_named(value, manifold, project) -> None:
    layer = nn.Linear(5, 8)
    with torch.no_grad():
        layer.weight[1] = value
        layer.weight[6] = value
    before = layer.weight.detach().clone()
    rows, off = ("row 1", "row 6"), (float("inf"),) * 2
    with refused(NotOnManifoldError, name="weight", slices=rows, amounts=off, total=8):
        mn.declare(layer, "weight", manifold, project=project)
    assert mn.manifolds(layer) == {}
    torch.testing.assert_close(layer.weight.detach(), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(
    ("name", "manifold"),
    [
        ("hidden.bias", mn.Oblique(dim=1)),  # of order 1
        ("hidden.weight", mn.Oblique(dim=2)),
        ("hidden.bias", mn.Oblique(dim=0)),  # slices of one number
        ("head.weight", mn.from_geoopt(geoopt.Stiefel())),  # wide
        ("hidden.bias", mn.Stiefel()),
    ],
)
def test_shapes_that_cannot_be_points(name, manifold, project) -> None:
    model = Net()
    before = values(model)
    with refused(WrongTensorError, name=name, manifold=manifold):
        mn.declare(model, name, manifold, project=project)
    assert unchanged(model, before)
    assert mn.manifolds(model) == {}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_types_that_cannot_be_points(dtype) -> None:
    layer = nn.Linear(5, 8)
    layer.weight = nn.Parameter(torch.ones(8, 5).to(dtype), requires_grad=False)
    with refused(WrongTensorError, name="weight", manifold=OBLIQUE):
        mn.declare(layer, "weight", OBLIQUE, project=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_that_can_be_points(dtype) -> None:
    layer = nn.Linear(5, 8, dtype=dtype)
    mn.declare(layer, "weight", OBLIQUE, project=True)
    assert layer.weight.dtype == dtype
    mn.verify(layer)


@pytest.mark.parametrize("act", [mn.undeclare, lambda m, n: mn.declare(m, n, OBLIQUE)])
def test_an_unknown_submodule(act) -> None:
    with pytest.raises(ValueError, match="'tail'"):
        act(Net(), "tail.weight")


@pytest.mark.parametrize("wrong", ["x", 3, None, [nn.Linear(2, 2)], torch.ones(2, 2)], ids=type)
@pytest.mark.parametrize(
    "act",
    [
        lambda it: mn.declare(it, "weight", OBLIQUE),
        lambda it: mn.undeclare(it, "weight"),
        lambda it: mn.declare_all(it, lambda *_: OBLIQUE),
        lambda it: mn.declare_from(it, {}),
        lambda it: mn.load_state_dict(it, {}),
        *(mn.manifolds, mn.violations, mn.verify, mn.project_, mn.spec, mn.param_groups),
    ],
)
def test_every_function_of_a_model_refuses_what_is_none(act, wrong) -> None:
    with pytest.raises(TypeError, match="give the module"):
        act(wrong)


@pytest.mark.parametrize(
    "act",
    [
        lambda: mn.declare(nn.Linear(4, 3), OBLIQUE, "weight"),
        lambda: mn.undeclare(nn.Linear(4, 3), 0),
        lambda: mn.declare_all(nn.Linear(4, 3), mn.Oblique),
        lambda: mn.declare_from(nn.Linear(4, 3), "weight"),
        lambda: mn.load_state_dict(nn.Linear(4, 3), 3),
        lambda: mn.load_state_dict(nn.Linear(4, 3), [("weight", torch.ones(3, 4))]),
        lambda: mn.param_groups(nn.Linear(4, 3), free=3),
        lambda: mn.param_groups(nn.Linear(4, 3), declared=["lr"]),
        lambda: mn.ManifoldParameter([1.0, 2.0], mn.Sphere()),
        lambda: mn.rules.unit_norm(3),
        lambda: mn.rules.scaled_metric(None),
        lambda: mn.rules.scaled_metric(("head", 3)),
    ],
)
def test_arguments_of_a_wrong_type(act) -> None:
    """The message is ours: it says what to give instead, and what was given."""
    with pytest.raises(TypeError, match=r"(must be|such as) .*\bnot "):
        act()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("0.weights", r"Linear has no parameter 'weights' \(it has: weight, bias\)"),
        ("1.running_mean", "weight, bias"),
        ("2.weight", "none"),
        ("3.bias", "weight"),
        ("0", "is a Linear"),
        ("", "none"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(name, words) -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2, bias=False)
    )
    with pytest.raises(ValueError, match=words):
        mn.declare(model, name, OBLIQUE)
    assert mn.manifolds(model) == {}


def test_a_parametrized_weight_names_what_can_be_declared() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match=r"parametrizations\.weight\.original"):
        mn.declare(model, "0.weight", OBLIQUE)
    name = "0.parametrizations.weight.original1"
    mn.declare(model, name, OBLIQUE, project=True)
    assert mn.manifolds(model) == {name: OBLIQUE}


def test_a_lazy_layer_has_to_run_first() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"0\.weight .*run the model once"):
        mn.declare(model, "0.weight", OBLIQUE, project=True)
    model(torch.ones(2, 3))
    mn.declare(model, "0.weight", OBLIQUE, project=True)
    assert mn.manifolds(model) == {"0.weight": OBLIQUE}


@pytest.mark.parametrize("thing", [mn.Oblique, "oblique", None])
def test_a_manifold_that_is_none(thing) -> None:
    with pytest.raises(TypeError, match="a manifold"):
        mn.declare(nn.Linear(5, 8), "weight", thing)


@EVERY_WAY
@EVERY_MANIFOLD
def test_the_same_declaration_twice(manifold, way) -> None:
    model = declared(manifold, way)
    weight = model.hidden.weight
    mn.declare(model, "hidden.weight", manifold)
    mn.declare(model.hidden, "weight", pickle.loads(pickle.dumps(manifold)))
    assert mn.manifolds(model) == {"hidden.weight": manifold}
    assert model.hidden.weight is weight


@EVERY_WAY
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("other", [mn.Oblique(retraction="geodesic"), mn.Sphere(), mn.Euclidean()])
def test_two_different_declarations_are_refused(other, project, way) -> None:
    model = declared(OBLIQUE, way)
    before = values(model)
    with pytest.raises(ValueError, match=r"hidden\.weight .*undeclare it") as error:
        mn.declare(model, "hidden.weight", other, project=project)
    assert str(OBLIQUE) in str(error.value)
    assert str(other) in str(error.value)
    assert unchanged(model, before)
    assert mn.manifolds(model) == {"hidden.weight": OBLIQUE}
    mn.undeclare(model, "hidden.weight")
    mn.declare(model, "hidden.weight", other, project=True)
    assert mn.manifolds(model) == {"hidden.weight": other}


@pytest.fixture
def first_use(monkeypatch) -> None:
    """As in a process where nothing of ours has been used before."""
    monkeypatch.setattr(nn_module, "_global_parameter_registration_hooks", OrderedDict())
    monkeypatch.setattr(registry, "_hook", None)


@pytest.mark.usefixtures("first_use")
def test_assignments_declare_after_the_first_declaration() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    mn.declare(first, "weight", OBLIQUE, project=True)
    second.weight = first.weight
    del first
    assert mn.manifolds(second) == {"weight": OBLIQUE}


@EVERY_WAY
def test_assignments_declare_after_a_module_was_unpickled(way, request) -> None:
    read = pickle.dumps(declared(OBLIQUE, way))
    request.getfixturevalue("first_use")
    second, first = nn.Linear(5, 8), pickle.loads(read)
    second.weight = first.hidden.weight
    del first
    assert mn.manifolds(second.to("meta")) == {"weight": OBLIQUE}


@pytest.mark.parametrize("first", [False, True], ids=["later", "first use"])
def test_a_parameter_of_geoopt_is_found_and_kept(first, request) -> None:
    """With and without an earlier declaration in this process."""
    if first:
        request.getfixturevalue("first_use")
    stiefel = mn.from_geoopt(geoopt.Stiefel())
    model = Net()
    point = stiefel.projx(model.hidden.weight.detach())
    model.hidden.weight = geoopt.ManifoldParameter(point, geoopt.Stiefel())
    assert mn.manifolds(model) == {"hidden.weight": stiefel}
    with pytest.raises(ValueError, match=r"hidden\.weight .*Stiefel"):
        mn.declare(model, "hidden.weight", OBLIQUE, project=True)
    mn.declare(model, "hidden.weight", stiefel)
    assert mn.manifolds(model.to("meta")) == {"hidden.weight": stiefel}


def test_a_parameter_of_geoopt_can_be_undeclared() -> None:
    layer = nn.Linear(5, 8)
    point = geoopt.Stiefel().projx(layer.weight.detach())
    # Without torch's assignment, so that no hook has run.
    layer._parameters["weight"] = geoopt.ManifoldParameter(point, geoopt.Stiefel())
    mn.undeclare(layer, "weight")
    assert mn.manifolds(layer) == {}
    assert type(layer.weight) is nn.Parameter


def test_names_with_dots_and_names_in_a_part_are_the_same() -> None:
    whole, part = nn.Sequential(nn.Sequential(nn.Linear(3, 4))), nn.Linear(3, 4)
    mn.declare(whole, "0.0.weight", OBLIQUE, project=True)
    mn.declare(part, "weight", OBLIQUE, project=True)
    assert mn.manifolds(whole[0][0]) == mn.manifolds(part) == {"weight": OBLIQUE}
    assert mn.manifolds(nn.Sequential(whole)) == {"0.0.0.weight": OBLIQUE}


def test_a_layer_without_values_is_declared_by_its_shape() -> None:
    layer = nn.Linear(5, 8, device="meta")
    mn.declare(layer, "weight", OBLIQUE)
    with refused(WrongTensorError, name="bias"):
        mn.declare(layer, "bias", mn.Oblique(dim=1))
    layer.to_empty(device="cpu")
    torch.nn.init.normal_(layer.weight)
    mn.project_(layer)
    mn.verify(layer)
    assert mn.manifolds(layer) == {"weight": OBLIQUE}


# --- undeclare ------------------------------------------------------------------------------------


@EVERY_WAY
@EVERY_MANIFOLD
def test_undeclaring_keeps_values_and_identity(manifold, way) -> None:
    model = declared(manifold, way)
    weight, address, before = model.hidden.weight, model.hidden.weight.data_ptr(), values(model)
    mn.undeclare(model, "hidden.weight")
    assert mn.manifolds(model) == {}
    assert model.hidden.weight is weight
    assert weight.data_ptr() == address
    assert type(weight) is nn.Parameter
    assert weight.requires_grad
    assert unchanged(model, before)
    assert repr(weight).startswith("Parameter containing")


@EVERY_WAY
@EVERY_MANIFOLD
def test_undeclared_weights_are_trained_as_by_torch(manifold, way) -> None:
    model, twin = declared(manifold, way), Net()
    twin.load_state_dict(model.state_dict())
    mn.undeclare(model.hidden, "weight")
    train(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    fit(twin, optimizer)
    for name, p in twin.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name


def test_undeclaring_a_free_weight_is_refused() -> None:
    model = declared(OBLIQUE)
    with pytest.raises(ValueError, match=r"head\.weight .*declared: hidden\.weight"):
        mn.undeclare(model, "head.weight")
    with pytest.raises(ValueError, match="declared: none"):
        mn.undeclare(model.head, "nothing")
    mn.undeclare(model, "hidden.weight")
    with pytest.raises(ValueError, match="declared: none"):
        mn.undeclare(model, "hidden.weight")


@pytest.mark.parametrize("called", ["0.weight", "1.weight"])
@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_a_tied_weight_is_undeclared_by_any_of_its_names(name, called) -> None:
    layers = tied(name)
    mn.undeclare(layers, called)
    assert mn.manifolds(layers) == {}
    assert mn.manifolds(layers[0]) == mn.manifolds(layers[1]) == {}


@pytest.mark.parametrize("called", ["0.weight", "1.weight"])
def test_a_tied_manifold_parameter_is_undeclared_by_any_of_its_names(called) -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    layers[0].weight = layers[1].weight = mn.ManifoldParameter(OBLIQUE.random(4, 4), OBLIQUE)
    mn.undeclare(layers, called)
    assert mn.manifolds(layers) == {}
    assert type(layers[0].weight) is nn.Parameter
    mn.declare(layers, "0.weight", mn.Sphere(), project=True)
    assert mn.manifolds(layers) == {"0.weight": mn.Sphere()}


# --- changes of the module after the declaration --------------------------------------------------


@pytest.mark.parametrize("way", ["declared", "assigned"])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: delattr(layer, "weight"),
        lambda layer: setattr(layer, "weight", None),
        parametrizations.weight_norm,
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
    ],
    ids=["deleted", "None", "weight_norm", "parametrized"],
)
def test_a_removed_parameter_is_named(change, way) -> None:
    model = nn.Sequential(declared(OBLIQUE, way))
    if change is parametrizations.weight_norm and way == "assigned":
        with pytest.raises(RuntimeError, match="ManifoldParameter"):
            change(model[0].hidden)  # torch makes no Parameter of one of geoopt's
        assert mn.manifolds(model) == {"0.hidden.weight": OBLIQUE}
        return
    change(model[0].hidden)
    for ask in (mn.manifolds, mn.violations, mn.verify, mn.project_, mn.param_groups):
        with pytest.raises(RuntimeError, match=r"^0\.hidden\.weight .*undeclare\("):
            ask(model)
    with pytest.raises(RuntimeError, match=r"^0\.hidden\.weight"):
        mn.load_state_dict(model, model.state_dict())
    mn.undeclare(model, "0.hidden.weight")
    mn.verify(model)


def test_a_copy_of_a_tie_may_lose_one_of_its_names() -> None:
    """Only the name that was declared is missed; the others came along with the tensor."""
    layer = nn.Linear(4, 4)
    mn.declare(layer, "weight", OBLIQUE, project=True)
    layer.second = layer.weight
    assert mn.manifolds(layer) == {"weight": OBLIQUE}
    del layer.second
    assert mn.manifolds(layer) == {"weight": OBLIQUE}
    layer.second = layer.weight
    mn.declare(layer, "second", OBLIQUE)  # now it is meant
    del layer.second
    with pytest.raises(RuntimeError, match="second"):
        mn.manifolds(layer)


# --- ManifoldParameter ----------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@EVERY_MANIFOLD
def test_a_manifold_parameter_is_one_of_torch_and_geoopt(manifold, requires_grad) -> None:
    data = manifold.random(8, 5)
    p = mn.ManifoldParameter(data, manifold, requires_grad=requires_grad)
    assert isinstance(p, geoopt.ManifoldParameter)
    assert isinstance(p, nn.Parameter)
    assert p.data_ptr() == data.data_ptr()
    assert p.requires_grad is requires_grad
    assert p.is_leaf
    assert p.manifold == manifold
    assert type(p.detach()) is type(p + 1) is torch.Tensor
    assert repr(p).startswith(f"ManifoldParameter on {manifold} containing:\ntensor(")
    assert ("requires_grad=True" in repr(p)) is requires_grad


def test_a_manifold_parameter_of_a_manifold_of_geoopt() -> None:
    p = mn.ManifoldParameter(geoopt.Stiefel().random(8, 5), geoopt.Stiefel())
    assert p.manifold == mn.from_geoopt(geoopt.Stiefel())
    layer = nn.Linear(5, 8)
    layer.weight = p
    assert mn.manifolds(layer) == {"weight": p.manifold}


def test_a_manifold_parameter_of_data_that_needs_a_gradient_is_a_leaf() -> None:
    data = OBLIQUE.projx(torch.randn(8, 5, requires_grad=True))
    p = mn.ManifoldParameter(data, OBLIQUE)
    assert p.is_leaf
    assert p.requires_grad


def test_a_manifold_parameter_is_never_moved_silently() -> None:
    data = off_by_a_half().weight.detach()
    before = data.clone()
    with refused(NotOnManifoldError, slices=("row 2", "row 3"), total=8):
        mn.ManifoldParameter(data, OBLIQUE)
    assert torch.equal(data, before)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (torch.zeros(8, 5), NotOnManifoldError),
        (torch.full((8, 5), torch.nan), NotOnManifoldError),
        (torch.ones(8, 5, dtype=torch.int64), WrongTensorError),
        (torch.ones(()), WrongTensorError),
        (torch.empty(8, device="meta"), WrongTensorError),
    ],
)
def test_a_manifold_parameter_of_other_data_is_refused(bad, error) -> None:
    with refused(error, manifold=OBLIQUE):
        mn.ManifoldParameter(bad, OBLIQUE)


def test_a_manifold_parameter_without_values() -> None:
    p = mn.ManifoldParameter(torch.empty(8, 5, device="meta"), OBLIQUE)
    assert p.is_meta


@EVERY_MANIFOLD
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_bare_manifold_parameter_is_copied_whole(requires_grad, manifold) -> None:
    p = mn.ManifoldParameter(manifold.random(8, 5), manifold, requires_grad)
    with torch.no_grad():
        p.add_(0.5)  # drifted off
    for made, shares in [
        (copy.deepcopy(p), False),
        (pickle.loads(pickle.dumps(p)), False),
        (copy.copy(p), True),
    ]:
        assert type(made) is mn.ManifoldParameter
        assert made is not p
        assert torch.equal(made, p)
        assert (made.data_ptr() == p.data_ptr()) is shares
        assert made.manifold == manifold
        assert made.requires_grad is requires_grad
    pair = copy.deepcopy([p, p])
    assert pair[0] is pair[1]


@EVERY_MANIFOLD
def test_the_methods_that_geoopt_gives_a_parameter(manifold) -> None:
    p = mn.ManifoldParameter(manifold.random(8, 5), manifold)
    x = p.detach()
    u = 0.1 * manifold.random_tangent(x)
    torch.testing.assert_close(p.retr(u), manifold.retr(x, u))
    torch.testing.assert_close(p.expmap(u), manifold.expmap(x, u))
    torch.testing.assert_close(p.proju(torch.ones(8, 5)), manifold.proju(x, torch.ones(8, 5)))
    torch.testing.assert_close(p.inner(u), manifold.inner(x, u))
    y, v = p.retr_transp(u, u)
    torch.testing.assert_close(v, manifold.retr_transp(x, u, u)[1])
    other = manifold.retr(x, u)
    torch.testing.assert_close(y, other)
    torch.testing.assert_close(p.dist(other), (x - other).norm())
    if manifold not in (MANIFOLDS["stiefel"], MANIFOLDS["orthonormal"]):  # which have no formula
        far = manifold.expmap(x, u)
        torch.testing.assert_close(p.dist(far, p="g"), manifold.norm(x, u), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(p.logmap(far), u, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        p.mul_(3.0)
        expected = manifold.projx(p.detach())
        assert p.proj_() is p
    assert torch.equal(p, expected)


# --- messages: what is at that name ---------------------------------------------------------------


def _weight_norm(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(layer)


def _pruned(layer: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def _quantized(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear}
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), kinds)
    return quantized[0]


def _frozen_tensor(layer: nn.Linear) -> nn.Module:
    del layer.weight
    layer.weight = torch.zeros(4, 8, dtype=torch.int8)
    return layer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_weight_norm, "from weight_g and weight_v by torch.nn.utils.weight_norm: call torch"),
        (torch.nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm(layer) first"),
        (_pruned, "torch.nn.utils.prune.remove(layer, 'weight') first"),
        (_quantized, "weight is quantized (torch.ao.nn.quantized"),
        (_frozen_tensor, "weight is a plain tensor of type torch.int8"),
    ],
)
def test_a_weight_that_was_replaced(change: Callable[[nn.Linear], nn.Module], said: str) -> None:
    layer = change(nn.Linear(8, 4))
    with pytest.raises(ValueError, match=re.escape(said)):
        mn.declare(layer, "weight", OBLIQUE)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0", "'0' is a Linear with weight, bias: name one of them, such as '0.weight'"),
        ("1", "'1' is a ReLU without parameters"),
        ("2", "'2' is a Sequential that contains 0.weight, 0.bias, 1.weight, …: name"),
        ("fc.weight", "Sequential has no submodule 'fc' (it has: 0, 1, 2); did you mean '"),
        ("2.7.weight", "Sequential (2) has no submodule '7' (it has: 0, 1)"),
        ("0.wieght", "(it has: weight, bias); wieght is unknown: did you mean 'weight'?"),
        ("2.1.running_mean", "running_mean is a buffer, which no optimizer steps"),
        ("2.0.nothing", "Linear has no parameter 'nothing' (it has: weight, bias)"),
    ],
)
def test_what_is_at_a_name(name: str, said: str) -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), inner)
    with pytest.raises(ValueError, match=re.escape(said)):
        mn.declare(model, name, OBLIQUE, project=True)


def test_a_bias_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="bias is None"):
        mn.declare(nn.Linear(8, 4, bias=False), "bias", mn.Sphere())


def test_a_tensor_in_place_of_its_name_is_not_printed() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(TypeError, match="the name of this one is '0.weight'") as caught:
        mn.declare(model, model[0].weight, OBLIQUE)
    assert "tensor(" not in str(caught.value)
    with pytest.raises(TypeError, match=r"not by a tensor of shape \(3,\)$"):
        mn.declare(model, torch.zeros(3), OBLIQUE)
    with pytest.raises(TypeError, match="not by a Linear$"):
        mn.declare(model, model[0], OBLIQUE)


def test_rows_that_projection_moves_to_the_rim() -> None:
    """A table with Gaussian entries is no start for a Poincaré embedding."""
    table = nn.Embedding(5, 3)
    rows = torch.tensor([[2.0, 0, 0], [0, 4, 0], [0, 0, 0.5], [0.1, 0, 0], [0, 0, 0]])
    table.weight.data = rows.clone()
    with pytest.warns(mn.RimWarning, match="2 of 5 rows were outside .*row 1 by 75% of its norm"):
        mn.declare(table, "weight", geoopt.PoincareBall(), project=True)
    assert 0.99 < float(table.weight.detach()[1].norm()) < 1
    inside = nn.Embedding(5, 3)
    inside.weight.data = rows / 10
    mn.declare(inside, "weight", geoopt.PoincareBall(), project=True)
    assert torch.equal(inside.weight, rows / 10)


def test_a_rim_warning_that_is_an_error_leaves_all_as_it_was() -> None:
    table = nn.Embedding(5, 3)
    table.weight.data = torch.full((5, 3), 2.0)
    with pytest.raises(mn.RimWarning):  # pytest makes errors of warnings
        mn.declare(table, "weight", geoopt.PoincareBall(), project=True)
    assert torch.equal(table.weight, torch.full((5, 3), 2.0))
    assert mn.manifolds(table) == {}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("SPD", "SymmetricPositiveDefinite"), ("Poincare", "PoincareBall"), ("Lorentz", "Lorentz")],
)
def test_manifolds_that_geoopt_has(name: str, theirs: str) -> None:
    with pytest.raises(AttributeError, match=rf"{name}'; declare geoopt\.{theirs}\(\) as it is"):
        getattr(mn, name)
    assert hasattr(geoopt, theirs)
