"""`declare_all` by a manifold, by patterns of names and by a spec; and its report."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import geoopt
import pytest
import torch
from declared_net import tied, unchanged, values
from torch import nn

import manifoldnet as mn
from manifoldnet.geometry import WrongTensorError

ROWS, COLUMNS = mn.Oblique(dim=0), mn.Oblique(dim=1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(4, 3), nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)


def network() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(5, 4)
    model.blocks = nn.ModuleList(Block() for _ in range(12))
    model.head = nn.Linear(4, 1)
    return model


# --- a manifold -----------------------------------------------------------------------------------


def test_a_manifold_goes_to_all_weights_that_it_fits() -> None:
    model = network()
    report = mn.declare_all(model, COLUMNS, project=True)
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    # A column of one number has no direction.
    assert report == dict.fromkeys(matrices - {"head.weight"}, COLUMNS) == mn.manifolds(model)
    assert "slices of 1 number (shape (1, 4))" in report.free["head.weight"]
    assert report.free["blocks.3.norm.weight"] == "fewer than two dimensions"
    mn.verify(model)


def test_a_manifold_of_geoopt() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    report = mn.declare_all(model, geoopt.Stiefel(), project=True)
    assert report == {"0.weight": mn.from_geoopt(geoopt.Stiefel())}
    assert "1.weight" in report.free


def test_a_manifold_that_fits_nothing() -> None:
    with pytest.raises(ValueError, match=r"declares none of the model's parameters \(.*dim=3"):
        mn.declare_all(network(), mn.Oblique(dim=3))
    with pytest.raises(ValueError, match="declares none"):
        mn.declare_all(nn.LayerNorm(3), ROWS)


def test_a_manifold_on_a_weight_that_cannot_be_projected() -> None:
    model = network()
    nn.init.zeros_(model.blocks[7].o.weight)
    before = values(model)
    with pytest.raises(ValueError, match=r"blocks\.7\.o\.weight"):
        mn.declare_all(model, ROWS, project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


def test_a_lazy_module_is_refused() -> None:
    with pytest.raises(ValueError, match="lazy"):
        mn.declare_all(nn.LazyLinear(3), ROWS)


# --- patterns -------------------------------------------------------------------------------------


def test_patterns_of_names() -> None:
    model = network()
    report = mn.declare_all(
        model,
        {"blocks.*.q.weight": ROWS, "blocks.?.o.weight": COLUMNS, "head.weight": mn.Sphere()},
        project=True,
    )
    expected: dict[str, mn.Manifold] = {f"blocks.{i}.q.weight": ROWS for i in range(12)}
    expected |= {f"blocks.{i}.o.weight": COLUMNS for i in range(10)}
    assert report == {**expected, "head.weight": mn.Sphere()} == mn.manifolds(model)
    assert report.why["blocks.3.q.weight"] == "blocks.*.q.weight"
    assert report.free["blocks.11.o.weight"] == "no pattern matches"


def test_patterns_match_names_without_those_of_wrappers() -> None:
    model = nn.Module()
    model._orig_mod = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))  # as torch.compile does
    report = mn.declare_all(model, {"?.weight": ROWS}, project=True)
    assert list(report) == ["_orig_mod.0.weight", "_orig_mod.1.weight"]


def test_a_name_with_brackets_is_a_name() -> None:
    model = nn.ParameterDict({"a[0]": torch.randn(3, 3), "a0": torch.randn(3, 3)})
    assert set(mn.declare_all(model, {"a[0]": ROWS}, project=True)) == {"a[0]"}
    assert set(mn.declare_all(model, {"a[[]0]": ROWS, "a?": ROWS}, project=True)) == {"a[0]", "a0"}


def test_patterns_that_agree_may_overlap() -> None:
    model = network()
    assert len(mn.declare_all(model, {"*.q.weight": ROWS, "blocks.0.q.*t": ROWS}, True)) == 12


def test_a_spec() -> None:
    model = network()
    mn.declare_all(model, {"*.q.weight": ROWS, "head.weight": mn.Sphere()}, project=True)
    again = network()
    report = mn.declare_all(again, json.loads(json.dumps(mn.spec(model))), project=True)
    assert report == mn.manifolds(model) == mn.manifolds(again)


def test_a_report_declares_another_model() -> None:
    report = mn.declare_all(network(), {"*.q.weight": ROWS}, project=True)
    assert mn.declare_all(network(), report, project=True) == report


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no match": ({"*.q.weight": ROWS, "blocks.*.query.weight": ROWS}, ValueError, "near to it"),
    "a near miss": ({"block.*.q.weight": ROWS}, ValueError, r"near to it: blocks\.\*\.q\.weight"),
    "no match, no near one": ({"zzz": ROWS}, ValueError, r"it has embed\.weight, blocks\.\*\.q"),
    "two manifolds": (
        {"blocks.*.q.weight": ROWS, "blocks.0.*.weight": COLUMNS},
        ValueError,
        r"blocks\.0\.q\.weight is matched by 'blocks\.\*\.q\.weight', which gives it Obl.*disjoint",
    ),
    "what it does not fit": ({"blocks.0.*": ROWS}, WrongTensorError, r"blocks\.0\.q\.bias"),
    "no manifold": ({"head.weight": "Oblique"}, TypeError, r"head\.weight: .*not a manifold"),
    "a class": ({"head.weight": mn.Oblique}, TypeError, r"head\.weight: .*not a manifold"),
    "None": ({"head.weight": None}, TypeError, r"head\.weight: .*not a manifold"),
    "a broken spec": ({"head.weight": {"manifold": "no"}}, ValueError, r"head\.weight: "),
    "no string": ({0: ROWS}, TypeError, "a pattern is a string"),
    "no pattern": ({}, ValueError, "declares none"),
    "no rule": ("*.weight", TypeError, "by a manifold, or by a dictionary"),
    "the class of a manifold": (mn.Oblique, TypeError, "by a manifold, or by a dictionary"),
    "nothing": (None, TypeError, "by a manifold, or by a dictionary"),
}


@pytest.mark.parametrize(("given", "error", "text"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(given: Any, error: type[Exception], text: str) -> None:
    model = network()
    before = values(model)
    with pytest.raises(error, match=text):
        mn.declare_all(model, given, project=True)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)


def test_one_tensor_under_two_names() -> None:
    model = tied(declare=None)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one tensor"):
        mn.declare_all(model, {"0.weight": ROWS, "1.weight": COLUMNS}, project=True)
    assert mn.declare_all(model, {"1.weight": ROWS}, project=True) == {"1.weight": ROWS}
    assert mn.manifolds(model) == {"0.weight": ROWS}


def test_declared_otherwise_already() -> None:
    model = network()
    mn.declare(model, "head.weight", mn.Sphere(), project=True)
    with pytest.raises(ValueError, match=r"head\.weight is declared on Sphere.* already"):
        mn.declare_all(model, ROWS, project=True)
    assert mn.manifolds(model) == {"head.weight": mn.Sphere()}


# --- the report -----------------------------------------------------------------------------------


def test_the_report_prints_what_was_declared_what_is_free_and_why() -> None:
    model = network()
    model.blocks[3].norm = nn.Identity()
    report = mn.declare_all(model, mn.rules.unit_norm("head"), project=True)
    assert str(report).splitlines() == [
        "Oblique(dim=0)",
        "  blocks.*.q.weight (12)  filters of a hidden layer",
        "  blocks.*.o.weight (12)  filters of a hidden layer",
        "free",
        "  embed.weight            no weight of a linear or convolution layer",
        "  47 parameters           fewer than two dimensions",
        "  head.weight             the classifier",
    ]


def test_the_report_counts_parameters_of_few_dimensions() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.long)
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    lines = str(mn.declare_all(model, mn.rules.transformer(tokens), project=True)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "Oblique(dim=0)",
        "0.weight vectors of an embedding",
        "free",
        "3 parameters fewer than two dimensions",
        "2.weight a head: its length sets the sharpness of the softmax",
    ]


def test_a_rule_without_reasons() -> None:
    report = mn.declare_all(nn.Linear(3, 2), lambda name, *_: ROWS if "w" in name else None, True)
    assert report.free == {"bias": "left free by the rule"}
    assert "free\n  bias" in str(report)


def test_a_rule_that_is_bound_to_the_model() -> None:
    class Largest:
        def __call__(self, *_: Any) -> None:
            raise AssertionError

        def bind(self, model: nn.Module) -> Any:
            largest = max(model.parameters(), key=torch.numel)
            return lambda name, module, parameter: ROWS if parameter is largest else None

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 9))
    assert mn.declare_all(model, Largest(), project=True) == {"1.weight": ROWS}


def test_the_report_is_a_dictionary_that_can_be_copied() -> None:
    report = mn.declare_all(network(), ROWS, project=True)
    for other in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert other == report
        assert str(other) == str(report)
        assert other.free == report.free


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (mn.rules.unit_norm, r"unit_norm\(classifier.*makes one: call it first"),
        (lambda name, module: None, r"\(name, module\) does not take these"),
    ],
)
def test_a_function_that_takes_other_arguments_is_no_rule(rule, said) -> None:
    with pytest.raises(TypeError, match=rf"is called with \(name, module, parameter\), .*{said}"):
        mn.declare_all(nn.Linear(3, 2), rule)
