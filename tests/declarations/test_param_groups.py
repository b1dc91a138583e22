"""`param_groups`: what may be asked for; `spec` and `declare_from`: declarations that travel."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest
import torch
from cases import refused
from declared_net import MANIFOLDS, Net, declared, fit, tied, unchanged, values
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import manifoldnet as mn
from manifoldnet.geometry import NotOnManifoldError

OBLIQUE = mn.Oblique()


# --- param_groups ---------------------------------------------------------------------------------


def named(group: dict) -> list[str]:
    return [name for name, _ in group["params"]]


@pytest.mark.parametrize("way", ["declared", "assigned"])
@pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
def test_groups_of_declared_and_of_other_parameters(manifold, way) -> None:
    model = declared(manifold, way)
    first, second = mn.param_groups(model, weight_decay=0.1, momentum=0.5, lr=0.3)
    assert named(first) == ["hidden.weight"]
    assert named(second) == ["hidden.bias", "head.weight", "head.bias"]
    assert first["params"][0][1] is model.hidden.weight
    assert (first["weight_decay"], second["weight_decay"]) == (0.0, 0.1)
    for group in (first, second):
        assert (group["momentum"], group["lr"]) == (0.5, 0.3)
    ordered = list(model.parameters())
    for group in (first, second):
        for place, (_, p) in zip(group["model_order"], group["params"], strict=True):
            assert ordered[place] is p
    optimizer = mn.RiemannianSGD([first, second])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1]
    before = model.hidden.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    head = model.head.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.hidden.weight.detach(), before)
    torch.testing.assert_close(model.head.weight.detach(), head * (1 - 0.3 * 0.1))


def test_groups_of_a_model_without_declarations() -> None:
    model = Net()
    (group,) = mn.param_groups(model, weight_decay=0.1)
    assert named(group) == [name for name, _ in model.named_parameters()]
    assert group["weight_decay"] == 0.1


def test_groups_of_a_model_of_nothing_but_declarations() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    mn.declare_all(model, lambda *_: OBLIQUE, project=True)
    (group,) = mn.param_groups(model, weight_decay=0.1)
    assert named(group) == ["0.weight", "1.weight"]
    assert group["weight_decay"] == 0.0
    mn.RiemannianSGD([group], lr=0.1)


def test_flat_space_counts_as_not_declared() -> None:
    model = Net()
    mn.declare(model, "hidden.weight", mn.Euclidean())
    (group,) = mn.param_groups(model, weight_decay=0.1)
    assert "hidden.weight" in named(group)
    assert group["weight_decay"] == 0.1
    assert mn.manifolds(model) == {"hidden.weight": mn.Euclidean()}


def test_a_tied_weight_is_handed_over_once() -> None:
    layers = tied("1.weight")
    first, second = mn.param_groups(layers)
    assert named(first) == ["0.weight"]
    assert named(second) == ["0.bias", "1.bias"]
    assert first["model_order"] + second["model_order"] == [0, 1, 2]


def test_groups_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="ReLU"):
        mn.param_groups(nn.ReLU())


def test_each_group_can_have_options_of_its_own() -> None:
    model = declared(OBLIQUE)
    first, second = mn.param_groups(
        model, lr=0.3, momentum=0.5, declared={"lr": 0.1}, free={"lr": 0.2, "weight_decay": 0.4}
    )
    assert (first["lr"], first["momentum"], first["weight_decay"]) == (0.1, 0.5, 0.0)
    assert (second["lr"], second["momentum"], second["weight_decay"]) == (0.2, 0.5, 0.4)
    optimizer = mn.RiemannianSGD([first, second])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_groups_without_names() -> None:
    model = declared(OBLIQUE)
    groups = mn.param_groups(model, names=False)
    assert groups[0]["params"] == [model.hidden.weight]
    assert all(type(p) is nn.Parameter for group in groups for p in group["params"])
    twin = declared(OBLIQUE)
    optimizers = [
        mn.RiemannianAdam(mn.param_groups(each, names=names), lr=0.1)
        for each, names in ((model, False), (twin, True))
    ]
    assert fit(model, optimizers[0]) == fit(twin, optimizers[1])
    # A plain checkpoint of the whole model is taken over by the places in it.
    plain = mn.RiemannianAdam(twin.parameters(), lr=0.1)
    plain.load_state_dict(torch.optim.Adam(twin.parameters()).state_dict())
    optimizers[0].load_state_dict(plain.state_dict())


@pytest.mark.parametrize("where", ["options", "declared", "free"])
def test_a_misspelt_option_is_refused(where) -> None:
    wrong = {"weigth_decay": 0.1}
    with pytest.raises(ValueError, match=r"did you mean weight_decay\?"):
        mn.param_groups(declared(OBLIQUE), **(wrong if where == "options" else {where: wrong}))
    with pytest.raises(ValueError, match="params"):
        mn.param_groups(declared(OBLIQUE), declared={"params": []})


def test_an_option_of_no_optimizer_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="shininess .*constructor"):
        mn.param_groups(declared(OBLIQUE), shininess=1)


OPTIMIZERS = [
    each
    for each in [*vars(torch.optim).values(), mn.RiemannianSGD, mn.RiemannianAdam]
    if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_the_options_of_every_optimizer_are_known(kind) -> None:
    options = inspect.signature(kind).parameters.keys() - {"params", "defaults"}
    mn.param_groups(declared(OBLIQUE), **dict.fromkeys(options, 0.0), initial_lr=0.1, name="all")


def test_weight_decay_for_declared_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_decay.*free="):
        mn.param_groups(declared(OBLIQUE), declared={"weight_decay": 0.1})
    mn.param_groups(declared(OBLIQUE), declared={"weight_decay": 0})


# --- spec and declare_from ------------------------------------------------------------------------


def through_json(model: nn.Module) -> dict:
    return json.loads(json.dumps(mn.spec(model)))


@pytest.mark.parametrize("way", ["declared", "assigned"])
@pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
def test_declarations_travel_through_json(manifold, way) -> None:
    model, fresh = declared(manifold, way), Net()
    fresh.load_state_dict(model.state_dict())
    assert mn.declare_from(fresh, through_json(model)) == {"hidden.weight": manifold}
    assert mn.manifolds(fresh) == mn.manifolds(model)
    assert mn.spec(fresh) == mn.spec(model)


def test_values_are_projected_on_demand() -> None:
    model, fresh = declared(OBLIQUE), Net()
    before = values(fresh)
    with refused(NotOnManifoldError, name="hidden.weight", manifold=OBLIQUE):
        mn.declare_from(fresh, mn.spec(model))
    assert unchanged(fresh, before)
    assert mn.manifolds(fresh) == {}
    mn.declare_from(fresh, mn.spec(model), project=True)
    mn.verify(fresh)


def test_names_are_matched_without_wrappers() -> None:
    def wrapped() -> nn.Module:
        model = declared(OBLIQUE)
        model.hidden = checkpoint_wrapper(model.hidden)
        return torch.compile(model, backend="eager")

    model = wrapped()
    assert list(mn.manifolds(model)) != ["hidden.weight"]
    assert list(mn.spec(model)) == ["hidden.weight"]
    target = declared(OBLIQUE)
    mn.undeclare(target, "hidden.weight")
    mn.declare_from(target, mn.spec(model))
    assert mn.manifolds(target) == {"hidden.weight": OBLIQUE}
    other = wrapped()
    (name,) = mn.manifolds(other)
    mn.undeclare(other, name)
    assert mn.declare_from(other, mn.spec(target)) == {name: OBLIQUE}
    assert mn.manifolds(other) == {name: OBLIQUE}


def test_a_tied_weight_travels_under_its_first_name() -> None:
    assert list(mn.spec(tied("1.weight"))) == ["0.weight"]
    fresh = tied(None)
    mn.declare_from(fresh, mn.spec(tied("1.weight")), project=True)
    assert mn.manifolds(fresh[1]) == {"weight": OBLIQUE}


def test_a_spec_without_declarations() -> None:
    assert mn.spec(Net()) == {}
    assert mn.declare_from(Net(), {}) == {}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"tail.weight": OBLIQUE.spec(), "hidden.weight": OBLIQUE.spec()}, r"tail\.weight"),
        ({"head.weight": OBLIQUE.spec(), "hidden.weight": 3}, r"hidden\.weight"),
        ({"hidden.weight": {**OBLIQUE.spec(), "manifold": "Torus"}}, "'Torus'"),
        ({"hidden.weight": {**OBLIQUE.spec(), "fields": {"dim": 0, "q": 1}}}, r"hidden\.weight"),
        ({"head.weight": OBLIQUE.spec(), "hidden.weight": mn.Oblique(2).spec()}, r"hidden\.weight"),
        ({3: OBLIQUE.spec()}, "no 3"),
    ],
)
def test_a_spec_that_cannot_be_declared_changes_nothing(spec, words) -> None:
    model = Net()
    before = values(model)
    with pytest.raises(ValueError, match=words):
        mn.declare_from(model, spec, project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


def test_another_declaration_is_not_overwritten() -> None:
    model = declared(mn.Sphere())
    with pytest.raises(ValueError, match=r"hidden\.weight .*Sphere"):
        mn.declare_from(model, mn.spec(declared(OBLIQUE)), project=True)
    assert mn.manifolds(model) == {"hidden.weight": mn.Sphere()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at import
def test_zero_redundancy_optimizer(tmp_path) -> None:
    """It takes no named parameters, and is no foreign optimizer where ours steps within."""
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model, twin = declared(OBLIQUE), declared(OBLIQUE)
        optimizer = ZeroRedundancyOptimizer(
            mn.param_groups(model, names=False), mn.RiemannianSGD, lr=0.1, momentum=0.9
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", mn.ForeignOptimizerWarning)
            losses = fit(model, optimizer)
    finally:
        distributed.destroy_process_group()
    assert losses == fit(twin, mn.RiemannianSGD(mn.param_groups(twin), lr=0.1, momentum=0.9))
    mn.verify(model)
