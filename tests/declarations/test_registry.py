"""The index of declared tensors: right after silent changes, as cheap with many declarations."""

from __future__ import annotations

import copy
import gc
import sys
import threading

import pytest
import torch
from declared_net import declared, fit, optimizer_of, tied
from torch import nn

import manifoldnet as mn
from manifoldnet import registry

OBLIQUE = mn.Oblique()


class Counting(dict):
    """A dictionary of parameters that counts how often it is asked for one."""

    asked = 0

    def get(self, *key):
        type(self).asked += 1
        return super().get(*key)


@pytest.fixture
def crowd() -> list[nn.Linear]:
    """Many declared layers, elsewhere in the process, that notice when they are visited."""
    layers = []
    for _ in range(200):
        layer = nn.Linear(3, 2, bias=False)
        layer.__dict__["_parameters"] = Counting(layer._parameters)
        mn.declare(layer, "weight", OBLIQUE, project=True)
        layers.append(layer)
    Counting.asked = 0
    return layers


@pytest.mark.parametrize(
    "act",
    [
        lambda: nn.Linear(4, 3),
        lambda: mn.declare(nn.Linear(4, 3), "weight", OBLIQUE, project=True),
        lambda: mn.declare(nn.Sequential(nn.Linear(4, 3)), "0.weight", OBLIQUE, project=True),
        lambda: copy.deepcopy(declared(OBLIQUE)),
        lambda: mn.violations(declared(OBLIQUE)),
        lambda: mn.param_groups(declared(OBLIQUE)),
        lambda: mn.undeclare(declared(OBLIQUE), "hidden.weight"),
    ],
    ids=["Linear", "declare", "declare in a model", "copy", "violations", "groups", "undeclare"],
)
def test_actions_do_not_visit_other_declarations(act, crowd) -> None:
    act()
    assert Counting.asked == 0


def test_the_count_above_sees_a_visit(crowd) -> None:
    registry.refresh()
    assert Counting.asked == len(crowd)


def test_a_step_after_declarations_elsewhere_visits_none(crowd) -> None:
    model = declared(OBLIQUE)
    optimizer = optimizer_of(model)
    fit(model, optimizer, 1)
    mn.declare(nn.Linear(4, 3), "weight", OBLIQUE, project=True)
    copies = [copy.deepcopy(layer) for layer in crowd[:3]]
    Counting.asked = 0
    fit(model, optimizer, 1)
    assert Counting.asked == 0
    assert copies


def test_a_model_is_not_searched_for_each_of_its_weights(monkeypatch) -> None:
    model = nn.ModuleList(nn.Linear(3, 2) for _ in range(50))
    visited = []
    modules = nn.Module.modules
    monkeypatch.setattr(nn.Module, "modules", lambda self: visited.append(self) or modules(self))
    for i in range(50):
        mn.declare(model, f"{i}.weight", OBLIQUE, project=True)
    assert visited == []
    assert len(mn.manifolds(model)) == 50
    layers = tied(None)
    mn.declare(layers, "1.weight", OBLIQUE, project=True)
    assert visited == [layers]
    assert mn.manifolds(layers[0]) == {"weight": OBLIQUE}


def test_an_optimizer_looks_up_its_own_weights_only() -> None:
    model, other = declared(OBLIQUE), declared(OBLIQUE)
    optimizer = optimizer_of(model)
    fit(model, optimizer, 1)
    looked = []
    optimizer._resolve = lambda: looked.append(1)
    copy.deepcopy(other)
    mn.undeclare(other, "hidden.weight")
    fit(model, optimizer, 1)
    assert looked == []
    mn.declare(model, "hidden.weight", OBLIQUE)  # a change, though to the same manifold
    fit(model, optimizer, 1)
    assert looked == [1]


def test_more_changes_than_the_registry_remembers() -> None:
    model = declared(OBLIQUE)
    optimizer = optimizer_of(model)
    fit(model, optimizer, 1)
    mn.undeclare(model, "hidden.weight")
    layer = nn.Linear(3, 2)
    for _ in range(registry._changed.maxlen):
        mn.declare(layer, "weight", mn.Euclidean())
    assert registry.changed_since(0) is None
    with pytest.raises(RuntimeError, match="is not declared now"):
        fit(model, optimizer, 1)


# --- torch replaces tensors without notice --------------------------------------------------------


def replaced(layer: nn.Module) -> nn.Parameter:
    """A new tensor in the place of a weight, as `_apply` and fully_shard put one there."""
    with torch.no_grad():
        layer._parameters["weight"] = nn.Parameter(layer.weight.clone())
    return layer.weight


def test_an_optimizer_finds_a_silently_replaced_tensor() -> None:
    model = declared(OBLIQUE)
    weight = replaced(model.hidden)
    assert registry.find(weight) is None  # the index has not seen it
    optimizer = mn.RiemannianSGD([weight], lr=0.1)
    assert optimizer.param_groups[0]["manifolds"] == [OBLIQUE.spec()]


def test_questions_to_a_model_correct_the_index() -> None:
    model = declared(OBLIQUE)
    old, weight = model.hidden.weight, replaced(model.hidden)
    assert registry.find(old) is None  # though the index has its id
    assert mn.manifolds(model) == {"hidden.weight": OBLIQUE}
    assert registry.find(weight).manifold == OBLIQUE
    assert registry.find(old) is None
    assert id(old) not in registry._index


def test_tied_after_a_silent_change() -> None:
    layers = tied(None)
    mn.declare(layers, "0.weight", OBLIQUE, project=True)
    layers[1]._parameters["weight"] = replaced(layers[0])
    mn.undeclare(layers, "1.weight")
    assert mn.manifolds(layers) == {}
    assert mn.RiemannianSGD(layers.parameters(), lr=0.1).param_groups[0]["manifolds"] == [None] * 3


def test_two_manifolds_for_a_silently_tied_tensor_are_seen_by_an_optimizer_alone() -> None:
    layers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    mn.declare(layers, "0.weight", OBLIQUE, project=True)
    mn.declare(layers, "1.weight", mn.Sphere(), project=True)
    layers[1]._parameters["weight"] = layers[0].weight
    with pytest.raises(ValueError, match="one tensor"):
        mn.RiemannianSGD([layers[0].weight], lr=0.1)


def test_the_index_does_not_grow() -> None:
    gc.collect()
    mn.declare(nn.Linear(3, 2), "weight", OBLIQUE, project=True)  # clears away what is dead
    before = len(registry._index), len(registry._live)
    for _ in range(20):
        model = declared(OBLIQUE)
        replaced(model.hidden)
        mn.manifolds(copy.deepcopy(model))
        del model
    gc.collect()
    mn.declare(nn.Linear(3, 2), "weight", OBLIQUE, project=True)
    assert (len(registry._index), len(registry._live)) <= (before[0] + 1, before[1] + 1)


def test_a_parameter_that_leads_back_to_its_module_is_copied() -> None:
    """Then its declarations are copied before the dictionary of parameters is filled."""
    layer = nn.Linear(5, 8)
    mn.declare(layer, "weight", OBLIQUE, project=True)

    class Owned(nn.Parameter):
        def __deepcopy__(self, memo):
            copy.deepcopy(registry.Declarations.of(layer), memo)
            return super().__deepcopy__(memo)

    layer._parameters["weight"] = Owned(layer.weight.detach())
    copied = copy.deepcopy(layer)
    assert mn.RiemannianSGD(copied.parameters(), lr=0.1).param_groups[0]["manifolds"] == [
        OBLIQUE.spec(),
        None,
    ]


# --- threads --------------------------------------------------------------------------------------


def test_six_threads_declare_copy_train_and_drop_models() -> None:
    errors: list[BaseException] = []
    kept = [declared(OBLIQUE) for _ in range(50)]
    interval = sys.getswitchinterval()

    def work() -> None:
        try:
            for _ in range(8):
                model = declared(OBLIQUE)
                fit(model, optimizer_of(model), 2)
                copied = copy.deepcopy(model)
                mn.undeclare(copied, "hidden.weight")
                assert mn.manifolds(model) == {"hidden.weight": OBLIQUE}
                mn.verify(model)
        except BaseException as error:
            errors.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert all(mn.manifolds(model) == {"hidden.weight": OBLIQUE} for model in kept)


def test_records_that_an_earlier_version_pickled_are_read() -> None:
    """They called `inherited` by another name, and had no labels."""
    layer = nn.Linear(3, 4)
    mn.declare(layer, "weight", mn.Oblique(), project=True)
    record = registry.Declarations.of(layer)
    assert record is not None
    state = {
        "manifolds": dict(record.manifolds),
        "borrowed": set(),
        "parameters": layer._parameters,
    }
    old = registry.Declarations.__new__(registry.Declarations)
    old.__setstate__(state)
    layer.__dict__["_manifold_declarations"] = old
    mn.declare(layer, "bias", mn.Sphere(), project=True)
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert mn.manifolds(layer) == {"weight": mn.Oblique(), "bias": mn.Sphere()}
    mn.undeclare(layer, "weight")
    assert mn.manifolds(layer) == {"bias": mn.Sphere()}
