"""`declare_all`: a whole network by a rule, or nothing; and the rules of the paper's Table 1.

UN    hidden layers: unit-norm filters       classifier: free
SM    hidden layers: scaled by filters       classifier: scaled by columns
"""

from __future__ import annotations

import copy

import pytest
import torch
from cases import refused
from declared_net import Net, train, unchanged, values
from torch import nn
from torch.nn.utils import parametrizations

import manifoldnet as mn
from manifoldnet import rules
from manifoldnet.geometry import NotOnManifoldError, WrongTensorError

UN, SM = mn.Oblique, mn.ScaledEuclidean


def mlp() -> nn.Module:
    model = nn.Sequential()
    model.first = nn.Linear(6, 5)
    model.norm = nn.LayerNorm(5)
    model.second = nn.Linear(5, 4, bias=False)
    model.head = nn.Linear(4, 3)
    return model


def conv() -> nn.Module:
    model = nn.Sequential()
    model.embedding = nn.Embedding(7, 2)
    model.backbone = nn.Sequential()
    model.backbone.conv1 = nn.Conv1d(4, 6, 3, groups=2)
    model.backbone.conv2 = nn.Conv2d(4, 6, 3)
    model.backbone.conv3 = nn.Conv3d(2, 3, 2)
    model.backbone.norm = nn.BatchNorm2d(6)
    model.backbone.up1 = nn.ConvTranspose1d(6, 4, 3)
    model.backbone.up2 = nn.ConvTranspose2d(6, 4, 3)
    model.backbone.up3 = nn.ConvTranspose3d(2, 4, 2)
    model.backbone.scale = nn.PReLU(4)
    model.backbone.fc = nn.Linear(4, 3)
    return model


def by_table(kind: type, dims: dict[str, int]) -> dict[str, mn.Manifold]:
    return {f"{layer}.weight": kind(dim=dim) for layer, dim in dims.items()}


HIDDEN = {
    "backbone.conv1": 0,
    "backbone.conv2": 0,
    "backbone.conv3": 0,
    "backbone.up1": 1,
    "backbone.up2": 1,
    "backbone.up3": 1,
}

TABLE_1 = {
    "UN of an MLP": (mlp, rules.unit_norm("head"), by_table(UN, {"first": 0, "second": 0})),
    "SM of an MLP": (
        mlp,
        rules.scaled_metric(classifier="head"),
        by_table(SM, {"first": 0, "second": 0, "head": 1}),
    ),
    "UN of a convolution net": (conv, rules.unit_norm("backbone.fc"), by_table(UN, HIDDEN)),
    "SM of a convolution net": (
        conv,
        rules.scaled_metric("backbone.fc"),
        by_table(SM, {**HIDDEN, "backbone.fc": 1}),
    ),
    "SM with a convolution as classifier": (
        conv,
        rules.scaled_metric(("backbone.conv2", "backbone.up2", "backbone.fc")),
        by_table(SM, {**HIDDEN, "backbone.conv2": 1, "backbone.up2": 0, "backbone.fc": 1}),
    ),
    "UN without a classifier": (
        mlp,
        rules.unit_norm(()),
        by_table(UN, {"first": 0, "second": 0, "head": 0}),
    ),
}


@pytest.mark.parametrize(("make", "rule", "expected"), TABLE_1.values(), ids=TABLE_1)
def test_table_1(make, rule, expected) -> None:
    model = make()
    tensors = dict(model.named_parameters())
    assert mn.declare_all(model, rule, project=True) == expected
    assert mn.manifolds(model) == expected
    assert all(p is tensors[name] for name, p in model.named_parameters())
    mn.verify(model)


@pytest.mark.parametrize("name", ["unit_norm", "scaled_metric"])
def test_other_parameters_keep_their_values(name) -> None:
    model = conv()
    before = values(model)
    found = mn.declare_all(model, getattr(rules, name)("backbone.fc"), project=True)
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    # The scaled metric holds on the values as they are; unit norm has to make them so.
    assert moved == (set(found) if name == "unit_norm" else set())


def test_filters_of_a_transposed_convolution_have_norm_one() -> None:
    model = conv()
    mn.declare_all(model, rules.unit_norm("backbone.fc"), project=True)
    up = model.backbone.up2.weight  # in × out × k × k
    torch.testing.assert_close(up.transpose(0, 1).flatten(1).norm(dim=1), torch.ones(4))
    down = model.backbone.conv2.weight  # out × in × k × k
    torch.testing.assert_close(down.flatten(1).norm(dim=1), torch.ones(6))


def test_the_retraction_is_passed_on() -> None:
    found = mn.declare_all(mlp(), rules.unit_norm("head", retraction="geodesic"), project=True)
    assert set(found.values()) == {mn.Oblique(retraction="geodesic")}
    found = mn.declare_all(mlp(), rules.scaled_metric("head", retraction="additive"))
    assert found["head.weight"] == mn.ScaledEuclidean(1, "additive")
    assert found["first.weight"] == mn.ScaledEuclidean(0, mn.Additive())
    with pytest.raises(ValueError, match="Oblique .*Additive"):
        rules.unit_norm("head", retraction="additive")
    with pytest.raises(ValueError, match="'nonsense'"):
        rules.scaled_metric("head", retraction="nonsense")


@pytest.mark.parametrize("name", ["unit_norm", "scaled_metric"])
@pytest.mark.parametrize("classifier", ["tail", "norm", "", ("head", "tail")])
def test_an_unknown_classifier(classifier, name) -> None:
    model = mlp()
    before = values(model)
    with pytest.raises(ValueError, match="there are: first, second, head"):
        mn.declare_all(model, getattr(rules, name)(classifier), project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


def test_a_classifier_by_itself() -> None:
    layer = nn.Linear(4, 3)
    assert mn.declare_all(layer, rules.scaled_metric("")) == {"weight": SM(dim=1)}


@pytest.mark.parametrize("name", ["unit_norm", "scaled_metric"])
def test_a_grouped_transposed_convolution_is_refused(name) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3, groups=2))
    model.head = nn.Linear(4, 3)
    before = values(model)
    with pytest.raises(ValueError, match=r"1\.weight: .*grouped transposed"):
        mn.declare_all(model, getattr(rules, name)("head"), project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


def test_a_grouped_transposed_convolution_may_be_free() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3, groups=2))
    assert list(mn.declare_all(model, rules.unit_norm("1"), project=True)) == ["0.weight"]
    with pytest.raises(ValueError, match="grouped transposed"):
        mn.declare_all(copy.deepcopy(model), rules.scaled_metric("1"))


# --- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("bad", ["zero", "shape"])
def test_one_bad_layer_and_nothing_is_declared(bad, project) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    if bad == "zero":
        with torch.no_grad():
            model[2].weight[1] = 0.0
    before, layers = values(model), {"0.weight": mn.Oblique()}
    layers["1.weight"] = mn.Oblique() if project else mn.ScaledEuclidean()
    layers["2.weight"] = mn.Oblique() if bad == "zero" else mn.Oblique(dim=2)
    error = NotOnManifoldError if bad == "zero" else WrongTensorError
    with refused(error, name="2.weight"):
        mn.declare_all(model, lambda name, *_: layers.get(name), project=project)
    assert mn.manifolds(model) == {"0.weight": mn.Oblique()}
    assert unchanged(model, before)


def test_without_project_the_weights_must_be_points() -> None:
    model = mlp()
    before = values(model)
    with refused(NotOnManifoldError, name="first.weight", manifold=UN()):
        mn.declare_all(model, rules.unit_norm("head"))
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (mlp(), lambda *_: None),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), rules.unit_norm(())),
        (nn.Linear(3, 2), rules.unit_norm("")),
    ],
)
def test_a_rule_that_declares_nothing(model, rule) -> None:
    with pytest.raises(ValueError, match="declares none"):
        mn.declare_all(model, rule, project=True)


def test_a_rule_sees_every_parameter_with_its_module() -> None:
    model = mlp()
    model.tied = nn.Linear(5, 4, bias=False)
    model.tied.weight = model.second.weight
    seen = []

    def rule(name: str, module: nn.Module, parameter: nn.Parameter) -> mn.Manifold | None:
        seen.append(name)
        assert parameter is model.get_parameter(name)
        assert module is model.get_submodule(name.rpartition(".")[0])
        return mn.Sphere() if name == "tied.weight" else None

    assert mn.declare_all(model, rule, project=True) == {"tied.weight": mn.Sphere()}
    assert seen == [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert mn.manifolds(model) == {"second.weight": mn.Sphere()}  # by its first name


def test_a_rule_may_be_applied_again() -> None:
    model = Net()
    rule = rules.scaled_metric("head")
    once = mn.declare_all(model, rule)
    train(model)
    assert mn.declare_all(model, rule) == once == mn.manifolds(model)
    with pytest.raises(ValueError, match=r"hidden\.weight"):
        mn.declare_all(model, rules.unit_norm("head"), project=True)
    assert mn.manifolds(model) == once


def test_an_error_of_a_rule_changes_nothing() -> None:
    model = mlp()
    before = values(model)

    def rule(name: str, module: nn.Module, parameter: nn.Parameter) -> mn.Manifold | None:
        if name == "head.bias":
            raise LookupError(name)
        return mn.Oblique() if parameter.ndim == 2 else None

    with pytest.raises(LookupError):
        mn.declare_all(model, rule, project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)
