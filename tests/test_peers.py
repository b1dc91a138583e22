"""The statements of README.md and docs/coming_from.md about other libraries hold.

The versions are those of constraints.txt.
"""

from __future__ import annotations

from typing import Any

import geoopt
import geotorch
import peers
import pytest
import torch
from adamp import AdamP
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import manifoldnet as mn


def kernel() -> Tensor:
    return torch.randn(6, 3, 5, 5)


def test_one_vector_per_filter() -> None:
    ours = mn.Oblique(dim=0).projx(kernel())
    theirs = geoopt.Sphere().projx(kernel())
    torch.testing.assert_close(ours.flatten(1).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(theirs.norm(dim=-1), torch.ones(6, 3, 5))  # rows of a filter
    layer = weight_norm(nn.Conv2d(3, 6, 5), dim=0)
    assert layer.parametrizations.weight.original0.shape == (6, 1, 1, 1)


def first_step(make: Any, parameter: Tensor, momentum: float) -> Tensor:
    optimizer = make([parameter], lr=1e-2, momentum=momentum)
    (parameter * torch.arange(1.0, 6.0)).sum().backward()
    optimizer.step()
    return parameter.detach()


def test_the_first_step_with_momentum_is_that_without() -> None:
    x = mn.Sphere().random(5)
    ours, theirs = (
        [first_step(make, parameter(x.clone(), on), momentum) for momentum in (0.9, 0.0)]
        for make, parameter, on in (
            (mn.RiemannianSGD, mn.ManifoldParameter, mn.Sphere()),
            (geoopt.optim.RiemannianSGD, geoopt.ManifoldParameter, geoopt.Sphere()),
        )
    )
    torch.testing.assert_close(*ours)
    assert not torch.allclose(*theirs, atol=1e-3)


def free_weights(make: Any) -> Tensor:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20))
    optimizer = make([parameter], lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        parameter.pow(4).sum().backward()
        optimizer.step()
    return parameter.detach()


def test_free_weights_move_as_with_torch() -> None:
    plain = free_weights(torch.optim.SGD)
    assert torch.equal(free_weights(mn.RiemannianSGD), plain)
    assert not torch.allclose(free_weights(geoopt.optim.RiemannianSGD), plain)


@pytest.mark.parametrize(
    ("make", "ascends"), [(mn.RiemannianAdam, True), (geoopt.optim.RiemannianAdam, False)]
)
def test_maximize(make: Any, ascends: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make([parameter], lr=0.1, maximize=True)
    parameter.sum().backward()
    optimizer.step()
    assert (float(parameter.detach()) > 0) is ascends


def test_a_declaration_survives_assignment() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    mn.declare(ours, "weight", mn.Oblique(), project=True)
    theirs.weight = geoopt.ManifoldParameter(ours.weight.detach().clone(), geoopt.Sphere())
    for layer in (ours, theirs):
        plain = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        layer.load_state_dict({k: nn.Parameter(v) for k, v in plain.items()}, assign=True)
    assert mn.manifolds(ours) == {"weight": mn.Oblique()}
    assert not isinstance(theirs.weight, geoopt.ManifoldParameter)


def test_what_is_off_a_manifold() -> None:
    with pytest.raises(ValueError, match="is not on"):
        mn.ManifoldParameter(2 * torch.ones(3), mn.Sphere())
    geoopt.ManifoldParameter(2 * torch.ones(3), geoopt.Sphere())  # accepted as it is


def test_a_distance_of_zero() -> None:
    x = geoopt.Sphere().projx(torch.randn(50, 64))
    assert float(mn.Oblique().dist(x, x)) == 0
    assert float(geoopt.Sphere().dist(x, x).max()) > 1e-4


def growth(layer: nn.Module, weight: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """The growth of filters in 100 steps under a loss that ignores their length."""
    images, labels = torch.randn(128, 20), torch.randint(4, (128,))
    start = weight.detach().norm(dim=1)
    for _ in range(100):
        optimizer.zero_grad()
        scores = nn.functional.normalize(layer.weight, dim=1)
        nn.functional.cross_entropy(5 * images @ scores.T, labels).backward()
        optimizer.step()
    return float((weight.detach().norm(dim=1) / start).mean())


def test_lengths_that_the_loss_ignores() -> None:
    options = {"lr": 0.5, "momentum": 0.9}
    declared = nn.Linear(20, 4, bias=False)
    mn.declare(declared, "weight", mn.Oblique(), project=True)
    ours = growth(declared, declared.weight, mn.RiemannianSGD(mn.param_groups(declared), **options))
    normed = weight_norm(nn.Linear(20, 4, bias=False), dim=0)
    v = normed.parametrizations.weight.original1
    reparameterized = growth(normed, v, torch.optim.SGD(normed.parameters(), **options))
    projected = nn.Linear(20, 4, bias=False)
    adamp = growth(projected, projected.weight, AdamP(projected.parameters(), lr=0.01))
    assert ours == pytest.approx(1, abs=1e-5)
    assert reparameterized > 1.05
    assert adamp > 1.05


def measured(task: str) -> dict[str, dict[str, Any]]:
    """The results of a task of docs/peer_tasks for each library."""
    module = peers.load(task)
    setups = {name: getattr(module, name) for name in peers.LIBRARIES if name not in module.ABSENT}
    return {name: peers.measured(module, setup) for name, setup in setups.items()}


def test_unit_norm_filters() -> None:
    found = {name: values["norms off by"] for name, values in measured("unit_norm").items()}
    assert found.pop("adamp") > 0.1
    assert max(found.values()) < 1e-5


def test_orthogonal_layers() -> None:
    found = measured("orthogonal")
    assert max(found["manifoldnet"].values()) < 1e-5
    assert found["geoopt"]["wide"] == "refused"
    for library in ("geotorch", "torch_parametrizations"):
        assert max(found[library]["tall"], found[library]["wide"]) < 1e-5
    for library in ("geoopt", "geotorch", "torch_parametrizations"):
        assert found[library]["kernel"] > 1


def test_own_optimizers() -> None:
    found = measured("own_optimizer")
    for library in ("manifoldnet", "geotorch"):
        assert max(found[library]["AdamW, off by"], found[library]["Muon, off by"]) < 1e-5
    assert min(found["geoopt"]["AdamW, off by"], found["geoopt"]["Muon, off by"]) > 0.1
    assert found["torch_parametrizations"]["AdamW, off by"] == 1  # all singular values are 0
    assert found["torch_parametrizations"]["Muon, off by"] == 1


@pytest.mark.parametrize(("way", "largest"), [(None, 0), ("matrix_exp", 1), ("cayley", 1)])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon])
def test_orthogonal_of_torch_under_other_optimizers(kind: Any, way: Any, largest: int) -> None:
    layer = orthogonal(nn.Linear(20, 8, bias=False), "weight", way)
    optimizer = kind(layer.parameters(), lr=1e-3)  # AdamW decays by default
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.rand(8, 20)).square().mean().backward()
        optimizer.step()
    singular = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(singular, torch.full((8,), float(largest)))


def test_checkpoints() -> None:
    found = measured("checkpoints")
    assert list(found["manifoldnet"].values()) == [0, True, True, True]
    assert not found["geoopt"]["on the set after assign=True"]
    for library in ("geotorch", "torch_parametrizations"):
        assert list(found[library].values()) == [0, True, False, True]


def test_sets_of_ones_own() -> None:
    for values in measured("own_manifold").values():
        assert values["mismatch"] < 1e-9


def test_padding_rows() -> None:
    found = measured("cosine_padding")
    assert found["manifoldnet"]["padding row"] == 0
    assert found["torch_parametrizations"]["padding row"] == 0
    assert found["geotorch"]["padding row"] == pytest.approx(1)
    assert found["geoopt"]["padding row"] != found["geoopt"]["padding row"]  # NaN
    layer = weight_norm(nn.Embedding(12, 6, padding_idx=0), dim=0)
    assert layer.weight[0].isnan().all()


def test_low_rank_updates() -> None:
    found = measured("lora")
    assert max(values["losses differ by"] for values in found.values()) < 1e-9
    assert found["geotorch"]["numbers held"] > 10 * found["manifoldnet"]["numbers held"]


def test_weights_that_are_off_a_set() -> None:
    found = measured("off_manifold")
    assert found["manifoldnet"] == {"at the start": "refused"}
    assert found["geoopt"]["at the start, off by"] == pytest.approx(1)
    assert found["geotorch"]["least cosine to the given rows"] < 0.5
    assert found["torch_parametrizations"]["after 20 steps, off by"] > 0.5


def test_what_is_assigned_off_a_set() -> None:
    layer = nn.Linear(20, 8)
    geotorch.sphere(layer, "weight")
    with pytest.raises(ValueError, match="not contained"):
        layer.weight = 2 * layer.weight.detach()
    layer = orthogonal(nn.Linear(20, 8))
    layer.weight = torch.randn(8, 20)  # taken to an orthogonal matrix, silently
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), torch.ones(8))


@pytest.mark.thorough
def test_poincare_embeddings() -> None:
    found = [values["stress"] for values in measured("poincare").values()]
    assert max(found) < 1.02 * min(found)


@pytest.mark.thorough
def test_principal_components() -> None:
    found = {name: abs(values["gap"]) for name, values in measured("pca").items()}
    assert max(found["manifoldnet"], found["pymanopt"]) < 1e-11
    assert max(found.values()) < 1e-7


@pytest.mark.thorough
def test_second_order_solvers_over_a_network() -> None:
    found = {name: v["gradient"] for name, v in measured("second_order_network").items()}
    assert max(found["manifoldnet"], found["pymanopt"]) < 1e-5
    assert min(found["geotorch"], found["torch_parametrizations"]) > 1e-5


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within its compiler
def test_compiled_steps_in_mixed_precision() -> None:
    for values in measured("compile_amp").values():
        assert values["off by"] < 1e-5
        assert values["as the layer uses it"] < 1e-2
