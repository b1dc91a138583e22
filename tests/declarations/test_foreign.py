"""One warning where an optimizer of others steps a declared weight, and none elsewhere."""

from __future__ import annotations

import copy
import pickle
import warnings

import geoopt
import pytest
import torch
from declared_net import MANIFOLDS, Net, batch, declared, fit
from fresh import Forks
from torch import nn

import manifoldnet as mn
from manifoldnet import foreign
from manifoldnet.foreign import ForeignOptimizerWarning

OBLIQUE = mn.Oblique()
MAKERS = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters()),
    "SGD, named": lambda model: torch.optim.SGD(model.named_parameters(), lr=0.1),
    "groups": lambda model: torch.optim.Adam(mn.param_groups(model), lr=0.1),
    "foreach": lambda model: torch.optim.Adam(model.parameters(), foreach=True),
}


def warned(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(model, optimizer, steps)
    return [str(w.message) for w in found if issubclass(w.category, ForeignOptimizerWarning)]


@pytest.mark.parametrize("way", ["declared", "assigned"])
@pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_warning_names_the_weight_and_the_ways_out(make, manifold, way) -> None:
    model = declared(manifold, way)
    (text,) = warned(model, make(model))
    assert all(part in text for part in ("weight", "(8, 5)", str(manifold)))
    assert all(way_out in text for way_out in ("RiemannianAdam", "project_(model)", "undeclare"))
    assert "head" not in text


def test_the_names_are_those_of_the_groups_or_of_the_declaration() -> None:
    model = declared(OBLIQUE)
    assert "hidden.weight (shape" in warned(model, MAKERS["groups"](model))[0]
    assert "weight of a Linear (shape" in warned(model, MAKERS["AdamW"](model))[0]
    whole = Net()
    mn.declare(whole, "hidden.weight", OBLIQUE, project=True)
    assert "hidden.weight (shape" in warned(whole, MAKERS["AdamW"](whole))[0]


def test_each_optimizer_is_warned_of_once() -> None:
    model = declared(OBLIQUE)
    optimizer = MAKERS["AdamW"](model)
    assert len(warned(model, optimizer)) == 1
    declared(OBLIQUE)
    assert warned(model, optimizer) == []
    assert len(warned(model, MAKERS["AdamW"](model))) == 1


def test_no_warning_where_nothing_is_wrong() -> None:
    free, flat, model = Net(), Net(), declared(OBLIQUE)
    mn.declare(flat, "hidden.weight", mn.Euclidean())
    for other in (free, flat):
        assert warned(other, MAKERS["AdamW"](other)) == []
    for kind in (mn.RiemannianSGD, mn.RiemannianAdam):
        assert warned(model, kind(model.parameters(), lr=0.1)) == []
    assert warned(model, torch.optim.SGD(model.head.parameters(), lr=0.1)) == []


def test_optimizers_of_geoopt_follow_their_own_parameters_only() -> None:
    for way, count in (("assigned", 0), ("declared", 1)):
        model = declared(OBLIQUE, way)
        assert len(warned(model, geoopt.optim.RiemannianAdam(model.parameters()))) == count


class Lookahead(torch.optim.Optimizer):
    """A wrapper, as many libraries have one: its parameters are those of the optimizer inside."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


def test_a_wrapper_is_judged_by_the_optimizer_inside() -> None:
    model = declared(OBLIQUE)
    assert warned(model, Lookahead(mn.RiemannianSGD(model.parameters(), lr=0.1))) == []
    # The wrapper, and what steps within it: each is an optimizer.
    assert warned(model, Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)))


def test_an_optimizer_can_be_exempted() -> None:
    model = declared(OBLIQUE)
    optimizer = MAKERS["AdamW"](model)
    foreign.accept(optimizer)
    assert warned(model, optimizer) == []
    # torch drops hooks and attributes in a copy, and so the mark.
    model, optimizer = copy.deepcopy((model, optimizer))
    assert len(warned(model, optimizer)) == 1


def test_replayed_runs_are_not_warned_of() -> None:
    model = declared(OBLIQUE).double()
    x, y = batch(model.head.weight)
    run = mn.symmetry.replay.run

    def wrapped(m: nn.Module) -> torch.optim.Optimizer:
        return Lookahead(torch.optim.SGD(m.parameters(), lr=0.1))

    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignOptimizerWarning)
        for make in (MAKERS["AdamW"], wrapped):
            run(model, nn.functional.cross_entropy, [(x, y)], make, steps=2)


def test_declared_after_the_first_step() -> None:
    model = Net()
    optimizer = MAKERS["AdamW"](model)
    assert warned(model, optimizer) == []
    mn.declare(model, "hidden.weight", OBLIQUE, project=True)
    assert len(warned(model, optimizer)) == 1


def test_a_group_that_is_added_later() -> None:
    model = declared(OBLIQUE)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    assert warned(model, optimizer) == []
    optimizer.add_param_group({"params": list(model.hidden.parameters())})
    assert len(warned(model, optimizer)) == 1


def test_a_frozen_weight_is_not_stepped_until_it_trains() -> None:
    model = declared(OBLIQUE)
    model.hidden.weight.requires_grad_(False)
    optimizer = MAKERS["AdamW"](model)
    assert warned(model, optimizer) == []
    model.hidden.weight.requires_grad_(True)
    assert len(warned(model, optimizer)) == 1


def test_a_closure_and_a_copy_of_the_model() -> None:
    model = pickle.loads(pickle.dumps(declared(OBLIQUE)))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x, y = batch(model.head.weight)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with pytest.warns(ForeignOptimizerWarning, match="LBFGS steps declared weights"):
        optimizer.step(closure)


def test_further_steps_ask_the_registry_nothing(monkeypatch) -> None:
    free, model = Net(), declared(OBLIQUE)
    optimizers = [MAKERS["AdamW"](each) for each in (free, model)]
    warned(free, optimizers[0])
    warned(model, optimizers[1])
    declared(OBLIQUE)  # of others
    asked = []
    monkeypatch.setattr(foreign.registry, "find", asked.append)
    monkeypatch.setattr(foreign.registry, "refresh", lambda: asked.append(None))
    fit(free, optimizers[0])
    fit(model, optimizers[1])
    assert asked == []


def test_an_optimizer_is_not_kept_alive() -> None:
    model = Net()
    optimizer = MAKERS["AdamW"](model)
    warned(model, optimizer)
    before = len(foreign._seen)
    del optimizer
    assert len(foreign._seen) == before - 1


@pytest.mark.thorough
def test_a_compiled_step() -> None:
    torch._dynamo.reset()
    model, twin = declared(OBLIQUE), declared(OBLIQUE)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]
    optimizers[0].step = torch.compile(optimizers[0].step, backend="eager")
    warned(model, optimizers[0])
    warned(twin, optimizers[1])
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


@pytest.mark.thorough
def test_nothing_is_hooked_before_the_first_declaration(fresh: Forks) -> None:
    code = (
        "import torch, manifoldnet as mn\n"
        "from torch.optim import optimizer\n"
        "assert not optimizer._global_optimizer_pre_hooks\n"
        "for _ in range(2):\n"
        "    mn.declare(torch.nn.Linear(3, 2), 'weight', mn.Oblique(), project=True)\n"
        "assert len(optimizer._global_optimizer_pre_hooks) == 1\n"
    )
    fresh(code).check_returncode()


# --- a model in which nothing is declared ---------------------------------------------------------


def test_groups_of_a_model_whose_declarations_were_lost() -> None:
    saved = declared(OBLIQUE)
    fresh = Net()
    fresh.load_state_dict(saved.state_dict())
    with pytest.warns(
        mn.NothingDeclaredWarning, match=r"nothing is declared in this Net.*declare_f"
    ):
        mn.param_groups(fresh)
    mn.declare_from(fresh, mn.spec(saved))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mn.param_groups(fresh)


def test_flat_space_is_a_declaration() -> None:
    model = Net()
    mn.declare(model, "hidden.weight", mn.Euclidean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mn.param_groups(model)


def test_a_parameter_that_no_module_holds_is_named_by_its_place() -> None:
    weight = mn.ManifoldParameter(mn.Oblique().random(4, 3), mn.Oblique())
    weight.grad = torch.randn(4, 3)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    with pytest.warns(ForeignOptimizerWarning, match="parameter 0 of group 0"):
        optimizer.step()


def test_a_weight_that_was_frozen_after_backward_is_stepped_and_named() -> None:
    layer = nn.Linear(3, 4)
    mn.declare(layer, "weight", mn.Oblique(), project=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 3)).sum().backward()
    layer.weight.requires_grad_(False)
    with pytest.warns(ForeignOptimizerWarning, match="weight"):
        optimizer.step()
