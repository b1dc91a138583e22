"""Verdicts on updates under linear groups."""

import pytest
import torch
from cases import source
from nets import NETS
from test_linear_discovery import Reader
from test_linear_elements import GL, ROTATIONS, chain, paired, skew
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.symmetry import LinearGenerator, LinearGroup, explain, rule
from manifoldnet.testing import assert_trajectory_invariant


def verdicts(table, update):
    return [row.verdicts[update] for row in table.rows]


def riemannian(model):
    return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2, momentum=0.9)


def test_pairs_respect_general_maps_and_sgd_rotations():
    table = explain(paired(), GL, riemannian)
    assert verdicts(table, "yours") == ["respects"]
    assert verdicts(table, "SGD") == ["ignores"]
    assert "respects" in str(table)
    assert str(table).splitlines()[1].endswith("GL(3)")
    for make, verdict in (
        (lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9), "respects"),
        (lambda m: mn.optim.Muon(m.parameters(), lr=1e-2), "respects"),
        (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2), "ignores"),
    ):
        assert verdicts(explain(chain(), ROTATIONS, make), "yours") == [verdict]
        assert verdicts(explain(chain(), GL, make), "yours") == ["ignores"]


def test_scalings_get_the_verdicts_of_their_own_group():
    """Scalings of a discovered linear group, against those of the same scaling group."""
    net = NETS["three_layers"]()
    model = net.model.double()
    x, y = net.batches[0]
    linear = mn.symmetry.discover(model, cross_entropy, [(x.double(), y)], kind="linear")
    scalings = linear.scalings
    assert scalings.nontrivial.dimension == 7
    assert all(g in scalings for g in net.generators)
    (block,) = {b.kind for b in linear.blocks if b.generators[0].kind == "scaling"}
    blocks = [b for b in linear.blocks if b.kind == block]
    table, expected = explain(model, linear.subgroup(blocks)), explain(model, scalings)
    assert table.updates == expected.updates == ("SGD", "scaled metric", "unit norm")
    for update in table.updates:
        assert set(verdicts(table, update)) == set(verdicts(expected, update))
    assert rule(scalings).manifolds
    with pytest.raises(TypeError, match=r"group\.scalings"):
        rule(linear)


def test_shifts_are_translations():
    """W ↦ W + t 1 vᵀW moves all logits alike; steps differ by another such translation."""
    model = chain(bias=True)
    group = mn.symmetry.discover(
        model, cross_entropy, [(torch.randn(60, 5, dtype=torch.float64), torch.arange(60) % 3)],
        kind="linear",
    )  # fmt: skip
    assert [b.kind for b in group.blocks] == ["GL(3)", "shift", "translation"]
    assert verdicts(explain(model, group), "SGD") == ["ignores", "respects", "respects"]

    def adamw(m):
        return torch.optim.AdamW(m.parameters(), lr=1e-2)

    # Weight decay has an origin.
    assert verdicts(explain(model, group, adamw), "yours")[2] == "ignores"


def test_what_leaves_a_manifold():
    model = chain()
    mn.declare(model, "1.weight", mn.Oblique(), project=True)

    def rows(i: int) -> LinearGenerator:
        unit = torch.zeros(3, 3)
        unit[i, i] = 1.0
        return LinearGenerator({"1.weight": unit}, name="rows of 1")

    # One number for each row: unit norms leave one of the equivalent weights.
    scaled = LinearGroup.of(model, [rows(i) for i in range(3)])
    assert verdicts(explain(model, scaled, riemannian), "yours") == ["fixes"]
    # Columns may be rotated on the manifold, and its metric is that of the space around it.
    generators = skew(list(GL.generators))
    columns = [LinearGenerator({}, {"1.weight": g.right["1.weight"]}) for g in generators]
    turned = LinearGroup.of(model, columns)
    assert verdicts(explain(model, turned, riemannian), "yours") == ["respects"]
    # Nine directions and three norms: six are left, along which the metric changes.
    assert verdicts(explain(model, GL, riemannian), "yours") == ["ignores"]


def test_make_invariant_respects_the_scalings_of_a_linear_group():
    net = NETS["relu"]()
    model = net.model.double()
    batches = [(net.given.double(), net.target)]
    group = mn.symmetry.discover(model, cross_entropy, batches, kind="linear")

    def moving(m):
        adamw = torch.optim.AdamW(m.parameters(), lr=1e-2)
        return mn.symmetry.make_invariant(adamw, m, group.scalings)

    part = group.subgroup([b for b in group.blocks if b.kind == "scaling"])
    assert verdicts(explain(model, part, moving), "yours") == ["respects"]


def test_bad_input():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="LinearGroup"):
        explain(model, model)
    with pytest.raises(ValueError, match="no symmetry to explain"):
        explain(model, LinearGroup.of(model, []))
    with pytest.raises(ValueError, match="another model's"):
        explain(model, GL)
    x = torch.randn(2, 2, dtype=torch.float64, generator=source(0))
    assert LinearGenerator({"weight": x}) in LinearGroup.of(model, [LinearGenerator({"weight": x})])


@pytest.mark.thorough
def test_pairs_of_attention():
    """Query and key, value and output of two heads of size 2: GL(2) four times."""
    torch.manual_seed(0)
    model = Reader(5, 2, 2).double()
    batch = (torch.randn(40, 4, 5, dtype=torch.float64), torch.arange(40) % 4)
    group = mn.symmetry.discover(model, cross_entropy, [batch], kind="linear")
    mn.declare(model, mn.Pair("q.weight", "k.weight", heads=2, shared=(0, 0)))
    mn.declare(model, mn.Pair("o.weight", "v.weight", heads=2))
    table = explain(model, group, riemannian)
    general = [row for row, block in zip(table.rows, group.blocks, strict=True)
               if block.kind == "GL(2)"]  # fmt: skip
    assert len(general) == 4
    for row in general:
        assert (row.verdicts["yours"], row.verdicts["SGD"]) == ("respects", "ignores")
    part = group.subgroup([block for block in group.blocks if block.kind == "GL(2)"])
    error = assert_trajectory_invariant(model, part, cross_entropy, [batch], riemannian, steps=20)
    assert error < 1e-9


def test_lora_at_its_start():
    """B = 0: A stays where it is in the first step, and B follows the metric."""
    model = paired()
    with torch.no_grad():
        model[1].weight.zero_()
    table = explain(model, GL, riemannian)
    assert "scaled metric" not in table.updates  # a column of zeros has no relative metric
    assert verdicts(table, "yours") == ["respects"]
    assert verdicts(table, "SGD") == ["ignores"]
