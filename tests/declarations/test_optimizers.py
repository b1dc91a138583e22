"""An optimizer never treats a declared weight as Euclidean in silence.

It finds the manifolds of bare tensors by itself; where it cannot any more, it raises an error.
"""

from __future__ import annotations

import copy
import pickle
import weakref

import geoopt
import pytest
import torch
from declared_net import (
    HANDED,
    MANIFOLDS,
    Net,
    batch,
    declared,
    fit,
    optimizer_of,
    train,
)
from torch import nn
from torch.nn.utils import parametrize, prune

import manifoldnet as mn
from manifoldnet import registry

EVERY_MANIFOLD = pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
EVERY_WAY = pytest.mark.parametrize("way", ["declared", "assigned"])
EVERY_HANDED = pytest.mark.parametrize("handed", HANDED.values(), ids=HANDED)
OPTIMIZERS = pytest.mark.parametrize("kind", [mn.RiemannianSGD, mn.RiemannianAdam])

OBLIQUE = mn.Oblique()


def step_on_ones(optimizer: torch.optim.Optimizer) -> None:
    """A step without a model: every gradient is one."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def assert_steps_on_or_refuses(optimizer: torch.optim.Optimizer) -> None:
    """The declared weights stay on the unit rows of `Oblique()`, or the step says why not."""
    weights = [p for g in optimizer.param_groups for p in g["params"] if p.shape == (8, 5)]
    assert weights
    before = [p.detach().clone() for p in weights]
    refused = ""
    try:
        step_on_ones(optimizer)
    except RuntimeError as error:
        refused = str(error)
    for p, old in zip(weights, before, strict=True):
        assert torch.equal(p, old) is bool(refused)
        torch.testing.assert_close(p.norm(dim=1), torch.ones(8))
    assert not refused or "is not declared now" in refused


@EVERY_HANDED
@EVERY_WAY
@pytest.mark.parametrize("steps", [0, 2])
def test_a_deleted_model_is_still_trained_on_its_manifold(steps, way, handed) -> None:
    model = declared(OBLIQUE, way)
    weight, reference = model.hidden.weight, weakref.ref(model)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer, steps)
    del model
    assert reference() is None
    declared(OBLIQUE)  # a change of the registry
    before = weight.detach().clone()
    step_on_ones(optimizer)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(8))


@EVERY_HANDED
@EVERY_WAY
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_an_optimizer_is_copied_without_its_model(copied, steps, way, handed) -> None:
    model = declared(OBLIQUE, way)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer, steps)
    assert_steps_on_or_refuses(copied(optimizer))


@OPTIMIZERS
def test_a_copy_of_an_optimizer_alone_says_what_is_wrong(kind) -> None:
    model = declared(OBLIQUE)
    optimizer = kind(mn.param_groups(model), lr=0.1)
    with pytest.raises(RuntimeError, match=r"hidden\.weight .*is not declared now"):
        step_on_ones(copy.deepcopy(optimizer))


def redeclare(model: nn.Module) -> None:
    mn.undeclare(model, "hidden.weight")
    mn.declare(model, "hidden.weight", mn.Sphere(), project=True)


@OPTIMIZERS
@EVERY_HANDED
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("way", "change", "words"),
    [
        (None, lambda m: mn.declare(m, "hidden.weight", OBLIQUE, project=True), "was not declared"),
        ("declared", lambda m: mn.undeclare(m, "hidden.weight"), "is not declared now"),
        ("assigned", lambda m: mn.undeclare(m, "hidden.weight"), "is not declared now"),
        ("declared", redeclare, r"was declared on Oblique.* on Sphere.* now"),
    ],
    ids=["declared", "undeclared", "undeclared after assignment", "redeclared"],
)
def test_a_declaration_that_changes_after_the_optimizer_was_made(
    way, change, words, steps, handed, kind
) -> None:
    model = declared(OBLIQUE, way) if way else Net()
    optimizer = kind(handed(model), lr=0.1)
    fit(model, optimizer, steps)
    change(model)
    before = model.hidden.weight.detach().clone()
    with pytest.raises(RuntimeError, match=words):
        step_on_ones(optimizer)
    assert torch.equal(model.hidden.weight, before)


@EVERY_HANDED
def test_declaring_flat_space_changes_nothing_for_an_optimizer(handed) -> None:
    model, twin = Net(), Net()
    twin.load_state_dict(model.state_dict())
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer)
    mn.declare(model, "head.weight", mn.Euclidean())
    other = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    fit(twin, other)
    assert fit(model, optimizer) == fit(twin, other)


# --- trainers rewrite the groups ------------------------------------------------------------------


def replaced(optimizer: torch.optim.Optimizer) -> None:
    """New tensors in the place of all old ones, as trainers put them after sharding or moving."""
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_new_tensors_that_the_model_has_too_are_trained(manifold, way, handed) -> None:
    model, twin = declared(manifold, way), declared(manifold, way)
    optimizer = optimizer_of(model, handed)
    new = {p: nn.Parameter(p.detach().clone()) for p in model.parameters()}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            setattr(module, name, new[p])
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    assert fit(model, optimizer) == train(twin, handed)
    mn.verify(model)


def replaced_with_one_more(optimizer: torch.optim.Optimizer) -> None:
    replaced(optimizer)
    group = next(g for g in optimizer.param_groups if g["params"][0].shape == (8, 5))
    group["params"] = [*group["params"], nn.Parameter(torch.zeros(1))]


def replaced_without_manifolds(optimizer: torch.optim.Optimizer) -> None:
    replaced(optimizer)
    optimizer.param_groups = [
        {k: v for k, v in group.items() if k != "manifolds"} for group in optimizer.param_groups
    ]


@EVERY_HANDED
@EVERY_WAY
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("change", [replaced, replaced_with_one_more, replaced_without_manifolds])
def test_new_tensors_that_no_model_declares_are_refused(change, steps, way, handed) -> None:
    model = declared(OBLIQUE, way)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer, steps)
    change(optimizer)
    for _ in range(2):  # also at the second attempt
        with pytest.raises(RuntimeError, match="declared"):
            step_on_ones(optimizer)


# --- the tensor moves to another name -------------------------------------------------------------


@EVERY_WAY
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
        lambda layer: prune.identity(layer, "weight"),
    ],
    ids=["parametrized", "pruned"],
)
def test_a_tensor_under_another_name_is_not_trained_as_euclidean(change, way) -> None:
    model = declared(OBLIQUE, way)
    weight = model.hidden.weight
    change(model.hidden)
    with pytest.raises(RuntimeError, match=r"hidden\.weight"):
        mn.manifolds(model)
    train(model, HANDED["parameters"])
    assert any(p is weight for p in model.parameters())
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(8))


# --- an optimizer of geoopt -----------------------------------------------------------------------


@EVERY_MANIFOLD
def test_geoopt_steps_an_assigned_parameter_until_it_is_undeclared(manifold) -> None:
    x, y = batch(torch.zeros(1))

    def moved(model: nn.Module) -> torch.Tensor:
        optimizer = geoopt.optim.RiemannianSGD(model.parameters(), lr=0.3)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return model.hidden.weight.detach()

    ours = declared(manifold, "assigned")
    optimizer = mn.RiemannianSGD(ours.parameters(), lr=0.3)
    fit(ours, optimizer, 1)
    torch.testing.assert_close(moved(declared(manifold, "assigned")), ours.hidden.weight.detach())

    free = declared(manifold, "assigned")
    weight = free.hidden.weight
    start = weight.detach().clone()
    mn.undeclare(free, "hidden.weight")
    moved(free)
    assert free.hidden.weight is weight
    torch.testing.assert_close(weight.detach(), start - 0.3 * weight.grad)


# --- lifetime -------------------------------------------------------------------------------------


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_a_declared_model_and_its_records_are_collected(manifold, way, handed) -> None:
    model = declared(manifold, way)
    copied = copy.deepcopy(model)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer)
    optimizer.state_dict()
    records = [registry.Declarations.of(each.hidden) for each in (model, copied)]
    assert all(registry.find(each.hidden.weight) is not None for each in (model, copied))
    ghosts = [weakref.ref(each) for each in (model, model.hidden, copied.hidden, *records)]
    kept = [each.hidden.weight for each in (model, copied)]
    del model, copied, optimizer, records
    assert all(ghost() is None for ghost in ghosts)
    assert not any(registry.records(weight) for weight in kept)
    declared(manifold)  # the index is cleared at the next change
    assert not any(id(weight) in registry._index for weight in kept)


def test_a_reused_id_is_not_taken_for_a_declared_tensor() -> None:
    seen = set()
    for _ in range(300):
        layer = nn.Linear(3, 2, bias=False)
        address = id(layer.weight)
        assert mn.manifolds(layer) == {}
        assert mn.RiemannianSGD(layer.parameters(), lr=0.1).param_groups[0]["manifolds"] == [None]
        mn.declare(layer, "weight", OBLIQUE, project=True)
        reused = address in seen
        seen.add(address)
        del layer
    assert reused or len(seen) < 300  # else this showed nothing
