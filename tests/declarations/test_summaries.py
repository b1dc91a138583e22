"""`summary(model, optimizer)`: what holds and moves each weight, and how optimizers print."""

import geoopt
import pytest
import torch
from torch import nn

import manifoldnet as mn


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    for name in ("0.weight", "2.weight"):
        mn.declare(model, name, mn.Oblique(), project=True)
    mn.declare(model, "4.weight", mn.ScaledEuclidean(dim=1))
    return model


def test_every_weight_is_listed_with_its_manifold():
    model = network()
    found = mn.summary(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert {n: w.manifold for n, w in found.items() if w.manifold} == mn.manifolds(model)
    assert found["0.weight"].slices == 4
    assert found["4.weight"].slices == 4
    assert found["0.bias"] == ((4,), None, 0, 0.0, "", ())
    assert {n: found[n].violation for n in mn.violations(model)} == mn.violations(model)


def test_weights_off_their_manifold_and_frozen_ones():
    model = network()
    model[2].weight.data[1] *= 2
    model[0].bias.requires_grad_(False)
    found = mn.summary(model)
    assert found["2.weight"].remarks == ("off its manifold",)
    assert found["2.weight"].violation == pytest.approx(1, rel=1e-5)
    assert found["0.bias"].remarks == ("frozen",)
    assert not any(found[n].remarks for n in found if n not in ("2.weight", "0.bias"))


def test_optimizers_that_step_a_weight():
    model = network()
    riemannian = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    found = mn.summary(model, riemannian)
    assert found["0.weight"].optimizer == "RiemannianSGD, group 0"
    assert found["0.bias"].optimizer == "RiemannianSGD, group 1"
    assert not any(w.remarks for w in found.values())


def test_a_foreign_optimizer_and_weights_without_one():
    model = network()
    adamw = torch.optim.AdamW([model[0].weight, model[0].bias])
    found = mn.summary(model, [adamw, torch.optim.SGD([model[0].bias, model[4].bias])])
    assert "AdamW does not follow the manifold" in found["0.weight"].remarks[0]
    assert found["0.bias"].remarks == ("stepped more than once",)
    assert found["2.weight"].remarks == ("in no optimizer",)
    assert found["4.bias"].remarks == ()
    mn.constrain(adamw)
    assert mn.summary(model, adamw)["0.weight"].remarks == ()


def test_weights_that_agree_share_a_row():
    model = nn.ModuleList(network() for _ in range(3))
    text = str(mn.summary(model))
    rows = [line.split("  ")[0] for line in text.splitlines()]
    assert rows[0] == "weight"
    assert "*.*.bias (9)" not in rows  # of two shapes
    assert "*.*.bias (6)" in rows
    assert "*.*.weight (3)" in rows
    assert repr(mn.summary(model)) == text


def test_a_shared_tensor_and_a_pair():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    mn.declare(model, mn.Pair("1.weight", "0.weight"))
    found = mn.summary(model)
    assert "2.weight" not in found
    assert found["0.weight"].manifold is not None
    assert found["1.weight"].violation == 0


@pytest.mark.parametrize("wrong", [3, None, "AdamW", [nn.Linear(2, 2)]])
def test_what_is_no_optimizer_is_refused(wrong):
    with pytest.raises(TypeError, match="optimizers must be"):
        mn.summary(network(), wrong)


def test_a_lazy_layer_has_no_shape_yet():
    found = mn.summary(nn.Sequential(nn.LazyLinear(3)))
    assert found["0.weight"].shape == ()
    assert "first forward pass" in found["0.weight"].remarks[0]
    assert "0.weight" in str(found)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="module"):
        mn.summary({"weight": torch.ones(2)})


def test_an_optimizer_prints_a_line_for_each_group():
    model = network()
    optimizer = mn.RiemannianAdam(mn.param_groups(model, weight_decay=0.1), lr=0.01)
    first, declared, free, last = str(optimizer).splitlines()
    assert (first, last) == ("RiemannianAdam(", ")")
    assert "2 on Oblique(" in declared
    assert "1 on ScaledEuclidean(" in declared
    assert declared.endswith("; lr=0.01")
    assert "3 free" in free
    assert "weight_decay=0.1" in free


def test_slices_of_manifolds_that_have_batches_or_factors():
    table = nn.Embedding(5, 3)
    nn.init.uniform_(table.weight, -0.1, 0.1)
    mn.declare(table, "weight", geoopt.PoincareBall())
    assert mn.summary(table)["weight"].slices == 5
    assert "geoopt.PoincareBall()" in str(mn.summary(table))
    product = mn.Product([(mn.Oblique(), (2, 3)), (mn.Sphere(), (4,))])
    model = nn.ParameterDict({"w": nn.Parameter(product.random(10))})
    mn.declare(model, "w", product)
    assert mn.summary(model)["w"].violation < 1e-6
