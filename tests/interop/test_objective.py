"""A model's loss as a function of one vector: values, and what is computed how often."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.objective import Objective


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    images, labels = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 2
    calls = []

    def loss():
        calls.append(1)
        return cross_entropy(model(images), labels)

    return model, loss, calls


def test_values_are_those_of_autograd():
    model, loss, _ = net()
    parameters = list(model.parameters())
    value = loss()
    slopes = torch.autograd.grad(value, parameters, create_graph=True)
    directions = [torch.randn_like(p) for p in parameters]
    curved = torch.autograd.grad(slopes, parameters, directions)
    with Objective(model, loss) as objective:
        assert objective.names == tuple(dict(model.named_parameters()))
        x, u = objective.start, objective.manifold.join(directions)
        assert objective.cost(x) == pytest.approx(float(value.detach()), rel=1e-14)
        for ours, theirs in ((objective.gradient(x), slopes), (objective.hessian(x, u), curved)):
            for a, b in zip(objective.manifold.split(ours), theirs, strict=True):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_point_is_passed_through_the_model_once():
    model, loss, calls = net()
    with Objective(model, loss) as objective:
        x, u = objective.start, torch.ones_like(objective.start)
        calls.clear()
        objective.cost(x)
        objective.gradient(x.clone(), differentiable=True)
        objective.hessian(x, u)
        objective.hessian(x, 2 * u)
        objective.gradient(x)
        objective.cost(x)
        assert len(calls) == 1
        assert objective.calls == {"cost": 1, "gradient": 1, "hessian": 2}
        objective.cost(x + 1e-3 * u)
        assert len(calls) == 2
        objective.gradient(x)  # another point was in between
        assert len(calls) == 3
        objective.hessian(x, u)  # and this gradient was not to be differentiated
        assert len(calls) == 4


def test_points_changed_in_place_have_new_values():
    model, loss, _ = net()
    with Objective(model, loss) as objective:
        x = objective.start.clone()
        before = objective.cost(x), objective.gradient(x)
        x += 0.1
        assert objective.cost(x) != before[0]
        assert not torch.equal(objective.gradient(x), before[1])
        before[1].zero_()  # a copy
        assert objective.gradient(x).abs().max() > 0


def test_the_model_gets_the_kept_point():
    for keep in (False, True):
        model, loss, _ = net()
        before = [p.detach().clone() for p in model.parameters()]
        with Objective(model, loss) as objective:
            x = objective.manifold.retr(objective.start, 0.1 * objective.gradient(objective.start))
            objective.cost(x)
            if keep:
                objective.keep(x)
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(same) is not keep


def test_a_linear_loss_and_a_loss_of_nan():
    model = nn.Linear(3, 1, bias=False).double()
    with Objective(model, lambda: model.weight.sum()) as objective:
        x = objective.start
        assert objective.hessian(x, torch.ones_like(x)).tolist() == [0, 0, 0]
    with Objective(model, lambda: (model.weight + 2).sqrt().sum()) as objective:
        assert objective.cost(objective.start - 9) == float("inf")


def test_images_of_another_type_are_cast_on_the_way():
    model, _, _ = net()
    images, labels = torch.randn(10, 4), torch.arange(10) % 2
    with Objective(model, lambda: cross_entropy(model(images), labels)) as objective:
        assert objective.gradient(objective.start).dtype == torch.float64


def test_values_are_inside_the_block_only_and_each_block_is_new():
    model, loss, _ = net()
    objective = Objective(model, loss)
    with pytest.raises(RuntimeError, match="with block"):
        objective.cost(torch.zeros(3))
    with objective:
        objective.keep(objective.start + 0.0)
    with torch.no_grad():
        model[3].bias += 1
    after = model[3].bias.clone()
    with objective:
        assert objective.cost(objective.start) == pytest.approx(float(loss().detach()))
    assert torch.equal(model[3].bias, after)  # what the first block kept is forgotten
    with pytest.raises(RuntimeError, match="with block"):
        objective.cost(objective.start)


def test_the_gradient_of_an_embedding_is_that_of_the_loss():
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, padding_idx=0, sparse=True)
    words = torch.tensor([[0, 1], [2, 0]])
    with Objective(table, lambda: (table(words) - 1).square().sum()) as objective:
        slope = objective.manifold.split(objective.gradient(objective.start))[0]
        assert slope[0].abs().min() > 0
    assert (table.padding_idx, table.sparse) == (0, True)
