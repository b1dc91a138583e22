"""Embeddings with a padding row: what is said of it, and what it is declared by."""

from __future__ import annotations

import pytest
import torch
from cases import refused
from torch import nn

import manifoldnet as mn
from manifoldnet.geometry import NotOnManifoldError, WrongTensorError

LAYERS = {
    "Embedding": lambda row: nn.Embedding(5, 3, padding_idx=row),
    "EmbeddingBag": lambda row: nn.EmbeddingBag(5, 3, padding_idx=row),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)
each_manifold = pytest.mark.parametrize("kind_of", [mn.Oblique, mn.ScaledEuclidean])
PADDED = mn.Oblique(zero_slices=(0,))


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("row", [2, -1])
@each_manifold
@each_layer
def test_the_padding_row_is_named_with_the_way_out(kind, kind_of, row, project) -> None:
    model = nn.Sequential(LAYERS[kind](row))
    index = row % 5
    with pytest.raises(NotOnManifoldError) as raised:
        mn.declare(model, "0.weight", kind_of(), project=project)
    said = str(raised.value)
    assert f"Row {index} is the padding_idx of this {kind}" in said
    assert f"{kind_of.__name__}(…, zero_slices=({index},))" in said
    assert raised.value.slices == (f"row {index}",)
    assert mn.manifolds(model) == {}
    mn.declare(model, "0.weight", kind_of(zero_slices=(index,)), project=True)
    assert not bool(model[0].weight[index].any())
    assert max(mn.violations(model).values()) < 1e-6


def test_it_is_not_named_where_something_else_is_wrong() -> None:
    layer = nn.Embedding(5, 3, padding_idx=0)
    with torch.no_grad():
        layer.weight[0] = 1.0
    for manifold in (mn.Oblique(), PADDED):
        with pytest.raises(NotOnManifoldError) as raised:
            mn.declare(layer, "weight", manifold)
        assert "padding_idx" not in str(raised.value)
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(NotOnManifoldError) as raised:
        mn.declare(layer, "weight", mn.Oblique(1), project=True)
    assert "padding_idx" not in str(raised.value)
    with pytest.raises(NotOnManifoldError) as raised:
        mn.declare(nn.Embedding.from_pretrained(torch.zeros(5, 3)), "weight", mn.Oblique())
    assert "padding_idx" not in str(raised.value)


def test_rows_that_the_weight_does_not_have_are_refused() -> None:
    layer = nn.Embedding(5, 3, padding_idx=0)
    with refused(WrongTensorError, name="weight"):
        mn.declare(layer, "weight", mn.Oblique(zero_slices=(5,)), project=True)
    assert mn.manifolds(layer) == {}


def test_training_leaves_the_row_and_checkpoints_keep_it() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0))
    mn.declare(model, "0.weight", PADDED, project=True)
    optimizer = mn.RiemannianAdam(mn.param_groups(model), lr=0.1)
    for _ in range(3):
        model(torch.tensor([0, 1, 2])).sum().backward()
        optimizer.step()
    assert not bool(model[0].weight[0].any())
    state, spec = model.state_dict(), mn.spec(model)
    other = nn.Sequential(nn.Embedding(5, 3, padding_idx=0))
    mn.declare_from(other, spec, project=True)
    assert mn.manifolds(other) == {"0.weight": PADDED}
    mn.load_state_dict(other, state)
    assert torch.equal(other[0].weight, model[0].weight)
    bad = {"0.weight": state["0.weight"] + 0.1}
    for project in (False, True):
        with pytest.raises(ValueError, match="row 0"):
            mn.load_state_dict(other, bad, project=project)
        assert torch.equal(other[0].weight, model[0].weight)
    bad["0.weight"][0] = 0
    mn.load_state_dict(other, bad, project=True)
    assert not bool(other[0].weight[0].any())


@each_manifold
def test_slices_with_values_are_not_cleared(kind_of) -> None:
    layer = nn.Embedding(5, 3, padding_idx=0)
    with torch.no_grad():
        layer.weight[2:] = 2.0
    before = layer.weight.detach().clone()
    manifold = kind_of(zero_slices=(0, 2, 4))
    with pytest.raises(NotOnManifoldError) as raised:
        mn.declare(layer, "weight", manifold, project=True)
    error = raised.value
    assert str(error) == (
        f"weight: row 2 has norm 3.46, row 4 has norm 3.46, and zero_slices of {manifold} would "
        "set them to zero. Name in zero_slices the slices that are zero already (padding rows), or "
        "set these to zero first"
    )
    assert (error.slices, error.count, error.total) == (("row 2", "row 4"), 2, 5)
    assert mn.manifolds(layer) == {}
    assert torch.equal(layer.weight, before)
    columns = nn.Linear(3, 4)
    with pytest.raises(NotOnManifoldError, match=r"weight: column 1 has norm .*\(dim=1, zero_"):
        mn.declare_all(columns, {"weight": kind_of(1, zero_slices=(1,))}, project=True)


def test_projection_restores_a_zero_row_that_has_moved() -> None:
    layer = nn.Embedding(5, 3, padding_idx=0)
    mn.declare(layer, "weight", PADDED, project=True)
    with torch.no_grad():
        layer.weight += 0.01
    mn.project_(layer)
    assert not bool(layer.weight[0].any())
