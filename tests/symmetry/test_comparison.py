"""Declaration rules of groups, and the comparison of updates."""

import geoopt
import pytest
import torch
from cases import source
from nets import column, generator, layer, row
from torch import nn

import manifoldnet as mn
from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2
from manifoldnet.symmetry import Generator, ScalingElement, ScalingGroup, Slice, explain, rule


def pairs(slices, first, second):
    """Two pooled filters of one weight (or entries of a layer) against a column of the next."""
    return [generator(slices(first, 2 * j, 2 * j + 1), column(second, j)) for j in range(4)]


def arch1():
    model = Arch1(6, 3, features=8, generator=source(1))
    inner = pairs(row, "hidden.0.weight", "hidden.3.weight")
    outer = pairs(row, "hidden.3.weight", "head.weight")
    trivial = generator(row("head.weight", *range(3)), column("head.weight", *range(4)))
    return model, ScalingGroup.of(model, [*inner, *outer, trivial]), inner, outer


def arch2():
    model = Arch2(6, 3, features=8, generator=source(1))
    rows = [generator(row("hidden.4.weight", i)) for i in range(8)]
    # Scale and shift of two pooled features against a column: of a hidden layer, of the classifier.
    first = pairs(layer, "hidden.1", "hidden.4.weight")
    second = pairs(layer, "hidden.5", "head.weight")
    return model, ScalingGroup.of(model, [*rows, *first, *second])


def sgd(model):
    return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2)


# --- rules ----------------------------------------------------------------------------------------


def test_rule_of_arch1_is_that_of_the_paper():
    model, group, inner, _ = arch1()
    declared = mn.declare_all(model, rule(group))
    assert declared == {
        "hidden.0.weight": mn.ScaledEuclidean(0),
        "hidden.3.weight": mn.ScaledEuclidean(0),
        "head.weight": mn.ScaledEuclidean(1),
    }
    # The paper's metric is not invariant under rows of W1 against columns of W2.
    assert list(rule(group).uncovered) == inner


def test_a_weight_that_is_scaled_as_a_whole_is_one_vector():
    model, _, _, outer = arch1()
    whole = generator(row("hidden.0.weight", *range(8)), column("head.weight", *range(4)))
    by_rows = ScalingGroup.of(model, [whole])
    by_name = ScalingGroup.of(
        model, [generator([Slice("hidden.0.weight", None)], [Slice("head.weight", None)])]
    )
    for group in (by_rows, by_name):
        assert rule(group).manifolds == {
            "hidden.0.weight": mn.ScaledEuclidean(None),
            "head.weight": mn.ScaledEuclidean(None),
        }
    both = rule(ScalingGroup.of(model, [whole, *outer]))
    assert both.manifolds["head.weight"] == mn.ScaledEuclidean(1)  # columns cover the whole
    assert both.uncovered == ()


def test_rule_follows_the_larger_number_of_generators():
    model = nn.Linear(3, 5, bias=False)
    rows = [generator(row("weight", i)) for i in range(2)]
    columns = [generator(column("weight", j)) for j in range(3)]
    assert rule(ScalingGroup.of(model, rows + columns)).manifolds["weight"].slices.dim == 1
    assert rule(ScalingGroup.of(model, rows + columns[:2])).manifolds["weight"].slices.dim == 0
    assert list(rule(ScalingGroup.of(model, rows + columns)).uncovered) == rows


def test_vectors_and_buffers_are_not_declared():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with_bias = generator(layer("0", 1))
    with_buffers = generator(row("0.weight", 0) + row("1.running_var", 0))
    found = rule(ScalingGroup.of(model, [with_bias, with_buffers]))
    assert found.manifolds == {"0.weight": mn.ScaledEuclidean(0)}
    assert list(found.uncovered) == [with_bias]


def test_invalid_rules():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    vectors = ScalingGroup.of(model, [generator(layer("1", 0))])
    for group in (vectors, ScalingGroup.of(model, [])):
        with pytest.raises(ValueError, match="scales no weight of order two or more"):
            rule(group)
    other = rule(ScalingGroup.of(model, [generator(row("0.weight", 0))]))
    with pytest.raises(ValueError, match=r"another model's: Linear has no 0\.weight"):
        mn.declare_all(nn.Linear(4, 3), other)


# --- the table ------------------------------------------------------------------------------------


def verdicts(table):
    return {update: [row.verdicts[update] for row in table.rows] for update in table.updates}


def test_arch1():
    model, group, _, _ = arch1()
    table = explain(model, group, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2))
    # Rows of W1 against columns of W2; rows of W2 against columns of θ; the trivial one.
    assert verdicts(table) == {
        "SGD": ["ignores", "ignores", "respects"],
        "scaled metric": ["ignores", "respects", "respects"],
        "unit norm": ["fixes", "fixes", "respects"],
        "yours": ["ignores", "ignores", "respects"],
    }
    assert [line.size for line in table.rows] == [4, 4, 1]
    for line in table.rows:
        for update, error in line.errors.items():
            low, high = {"ignores": (1e-2, 1e3), "respects": (0, 1e-12), "fixes": (0, 0)}[
                line.verdicts[update]
            ]
            assert low <= error <= high, (line.name, update, error)


def test_arch2():
    model, group = arch2()
    table = explain(model, group)
    # γ and β against a column of W2: scaling of the rows of W2, a symmetry too, restores their
    # unit norms. So UN admits a one-parameter family of parameterizations, and ignores them.
    assert verdicts(table) == {
        "SGD": ["ignores", "ignores", "ignores"],
        "scaled metric": ["respects", "ignores", "ignores"],
        "unit norm": ["fixes", "ignores", "ignores"],
    }


def test_running_averages_change_no_verdict():
    """They follow the rows in front of them; the weights alone say which family is fixed."""
    model, group = arch2()
    gains, rows = group.generators[8:], group.generators[:8]
    followed = [
        Generator(
            dict(each.exponents)
            | {Slice("hidden.5.running_mean", 0, i): 1.0, Slice("hidden.5.running_var", 0, i): 2.0}
        )
        for i, each in enumerate(rows)
    ]
    # With their averages the rows are as many tensors as the gains, which come first.
    table = explain(model, ScalingGroup.of(model, [*gains, *followed]))
    assert verdicts(table)["unit norm"] == ["ignores", "ignores", "fixes"]


def test_users_update_follows_the_declarations():
    model, group, _, _ = arch1()
    mn.declare_all(model, mn.rules.scaled_metric("head", retraction="additive"))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    for make in (
        sgd,
        lambda m: mn.RiemannianSGD(mn.param_groups(m), lr=1e-2, momentum=0.9, nesterov=True),
        lambda m: mn.RiemannianAdam(mn.param_groups(m), lr=1e-2),
    ):
        table = explain(model, group, make)
        assert verdicts(table)["yours"] == ["ignores", "respects", "respects"]
        assert verdicts(table)["SGD"] == ["ignores", "ignores", "respects"]
    assert mn.manifolds(model)["head.weight"] == mn.ScaledEuclidean(1, "additive")
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_geoopt_optimizer_and_sphere():
    model, group = rows_of_a_layer()
    sphere = geoopt.Sphere()
    model.weight = geoopt.ManifoldParameter(sphere.random(3, 4), sphere)
    table = explain(model, group, lambda m: geoopt.optim.RiemannianSGD(m.parameters(), lr=0.1))
    assert verdicts(table) == {
        "SGD": ["ignores"],
        "scaled metric": ["respects"],
        "unit norm": ["fixes"],
        "yours": ["fixes"],
    }


def test_stage_on_a_sphere_and_under_the_scaled_metric():
    model = nn.Linear(4, 3, bias=False)
    group = ScalingGroup.of(model, [generator([Slice("weight", None)])])
    mn.declare(model, "weight", mn.Sphere(), project=True)
    assert verdicts(explain(model, group, sgd))["yours"] == ["fixes"]
    mn.undeclare(model, "weight")
    mn.declare(model, "weight", mn.ScaledEuclidean(None))
    assert verdicts(explain(model, group, sgd))["yours"] == ["respects"]


def test_a_classifier_can_be_named_as_in_the_rules():
    model, group, _, _ = arch1()
    assert verdicts(explain(model, group, classifier="head")) == verdicts(explain(model, group))
    with pytest.raises(ValueError, match="classifier='tail' is no linear"):
        explain(model, group, classifier="tail")


def test_printed_table():
    model, group, _, _ = arch1()
    lines = str(explain(model, group)).splitlines()
    assert lines[0].split() == ["SGD", "scaled", "metric", "unit", "norm", "symmetry"]
    assert lines[2].split("  ")[0].startswith("ignores (")
    assert lines[2].endswith(
        "hidden.3.weight[rows 0,1] × s, head.weight[column 0] ÷ s, and 3 more like it"
    )
    assert "respects" in lines[2]
    assert lines[3].endswith("(trivial)")
    assert len({line.index("h", 40) for line in lines[1:]}) == 1  # columns are aligned


def test_empty_group_is_an_error():
    model, _, _, _ = arch1()
    with pytest.raises(ValueError, match="no symmetry to explain"):
        explain(model, ScalingGroup.of(model, []))
    with pytest.raises(ValueError, match="no parameter 'other'"):
        ScalingGroup.of(model, [generator(row("other", 0))])


def test_group_of_another_model_is_an_error():
    _, group, _, _ = arch1()
    with pytest.raises(ValueError, match="another model's"):
        explain(nn.Linear(4, 3), group)


def test_factory_of_something_else_is_an_error():
    model, group, _, _ = arch1()
    with pytest.raises(ValueError, match="makes an optimizer"):
        explain(model, group, lambda m: ScalingElement.identity())


# --- unusual optimizers ---------------------------------------------------------------------------


class IgnoresItsClosure(torch.optim.SGD):
    def step(self, closure=None):
        return super().step()


class TakesNoClosure(torch.optim.SGD):
    def step(self):
        return super().step()


class Spoils(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(float("nan"))


class AddsNoise(torch.optim.SGD):
    """Multiplicative noise: equivariant if both runs draw the same numbers."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 + 0.1 * torch.rand(()))


def rows_of_a_layer():
    model = nn.Linear(4, 3, bias=False)
    return model, ScalingGroup.of(model, [generator(row("weight", i)) for i in range(3)])


@pytest.mark.parametrize("kind", [IgnoresItsClosure, TakesNoClosure, torch.optim.LBFGS])
def test_optimizers_with_unusual_closures(kind):
    model, group = rows_of_a_layer()
    row = explain(model, group, lambda m: kind(m.parameters(), lr=0.1)).rows[0]
    assert row.verdicts["yours"] == "ignores"
    assert row.errors["yours"] > 1e-2


def test_update_that_gives_nan_ignores_the_symmetry():
    model, group = rows_of_a_layer()
    row = explain(model, group, lambda m: Spoils(m.parameters(), lr=0.1)).rows[0]
    assert (row.verdicts["yours"], row.errors["yours"]) == ("ignores", float("inf"))


def test_random_update_draws_equal_numbers():
    model, group = rows_of_a_layer()
    before = torch.get_rng_state()
    row = explain(model, group, lambda m: AddsNoise(m.parameters(), lr=0.1)).rows[0]
    assert row.verdicts["yours"] == "respects"
    assert torch.equal(torch.get_rng_state(), before)
