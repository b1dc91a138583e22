"""The contents of checkpoints, and the checks of loading one."""

from __future__ import annotations

import io
import pickletools
import re
from collections import OrderedDict

import pytest
import torch
from cases import refused
from declared_net import HANDED, MANIFOLDS, declared, fit, optimizer_of, tied, unchanged, values
from torch import nn

import manifoldnet as mn
from manifoldnet.geometry import NotOnManifoldError

EVERY_MANIFOLD = pytest.mark.parametrize("manifold", MANIFOLDS.values(), ids=MANIFOLDS)
EVERY_WAY = pytest.mark.parametrize("way", ["declared", "assigned"])
EVERY_HANDED = pytest.mark.parametrize("handed", HANDED.values(), ids=HANDED)
BOTH_ASSIGN = pytest.mark.parametrize("assign", [False, True])

# Off these manifolds a weight can be scaled; under the scaled metric every length is a point.
CONSTRAINED = pytest.mark.parametrize(
    "manifold", [MANIFOLDS[k] for k in ("oblique", "sphere", "stiefel")]
)


def names_in_pickle(thing: object) -> set[str]:
    """Every class and function that reading a pickle of this would import."""
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    found = set()
    while file.tell() < len(file.getvalue()):
        try:
            operations = list(pickletools.genops(file))
        except ValueError:
            break  # past the pickles: the tensors' numbers
        found |= {str(argument) for op, argument, _ in operations if op.name == "GLOBAL"}
    return found


# --- what is in it --------------------------------------------------------------------------------


@EVERY_WAY
@EVERY_MANIFOLD
def test_a_state_dict_holds_plain_tensors(manifold, way) -> None:
    model = declared(manifold, way)
    state = model.state_dict()
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert set(state) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    names = names_in_pickle(state)
    assert "collections OrderedDict" in names  # the names were read
    assert not any("manifoldnet" in name or "geoopt" in name for name in names)


def test_the_names_in_a_pickle_are_seen() -> None:
    """The search above finds our classes where they are."""
    model = declared(mn.Oblique(), "assigned")
    assert any("manifoldnet" in name for name in names_in_pickle(model.hidden.weight))


@EVERY_HANDED
@EVERY_WAY
@EVERY_MANIFOLD
def test_an_optimizer_state_holds_tensors_and_plain_types(manifold, way, handed) -> None:
    model = declared(manifold, way)
    optimizer = optimizer_of(model, handed)
    fit(model, optimizer)
    state = optimizer.state_dict()

    def kinds(thing: object) -> set[type]:
        if isinstance(thing, dict):
            return set().union(*map(kinds, thing.keys()), *map(kinds, thing.values()))
        if isinstance(thing, (list, tuple)):
            return set().union(*map(kinds, thing))
        return {type(thing)}

    assert kinds(state) <= {torch.Tensor, int, float, bool, str, type(None)}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert again["param_groups"] == state["param_groups"]


# --- what may be loaded ---------------------------------------------------------------------------


def off(model: nn.Module, factor: float = 1.5) -> dict[str, torch.Tensor]:
    """A checkpoint of other values, the declared weight off its manifold."""
    state = {key: value + 1.0 for key, value in values(model).items()}
    state["hidden.weight"] = model.hidden.weight.detach() * factor
    return state


@BOTH_ASSIGN
@EVERY_WAY
@CONSTRAINED
def test_a_checkpoint_off_the_manifold_is_refused_before_anything_is_loaded(
    manifold, way, assign
) -> None:
    model = declared(manifold, way)
    before, tensors = values(model), dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"hidden\.weight .*project=True"):
        mn.load_state_dict(model, off(model), assign=assign)
    assert unchanged(model, before)
    assert all(p is tensors[name] for name, p in model.named_parameters())


@BOTH_ASSIGN
@EVERY_WAY
@CONSTRAINED
def test_a_checkpoint_off_the_manifold_is_projected_on_demand(manifold, way, assign) -> None:
    model = declared(manifold, way)
    state = off(model)
    given = {key: value.clone() for key, value in state.items()}
    mn.load_state_dict(model, state, project=True, assign=assign)
    expected = manifold.projx(given["hidden.weight"])
    assert torch.equal(model.hidden.weight, expected)
    assert torch.equal(model.head.weight, given["head.weight"])
    assert all(torch.equal(state[key], given[key]) for key in given)  # the caller's is untouched
    mn.verify(model)
    assert mn.manifolds(model) == {"hidden.weight": manifold}


def test_the_refusal_names_all_weights_and_the_worst_slice() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.declare(model, "1.weight", mn.Oblique(dim=1), project=True)
    state = values(model)
    state["0.weight"][1] *= 3
    state["1.weight"][:, 0] *= 0.5
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        mn.load_state_dict(model, state)
    first, second = str(error.value).split("\n")
    assert first.startswith("nothing was loaded: 0.weight is not on Oblique(dim=0")
    assert "1 of 2 slices are off, the worst is row 1 with norm 3, off by 2 relative" in first
    assert second.startswith("1.weight is not on Oblique(dim=1")
    assert "column 0 with norm 0.5, off by 0.5 relative" in second


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_slices_without_projection_are_refused(bad, project) -> None:
    model = declared(mn.ScaledEuclidean())
    before, state = values(model), values(model)
    state["head.bias"] += 1
    state["hidden.weight"][2] = bad
    with pytest.raises(ValueError, match=r"hidden\.weight.*row 2"):
        mn.load_state_dict(model, state, project=project)
    assert unchanged(model, before)


def test_a_wrong_shape_is_refused_before_anything_is_loaded() -> None:
    model = declared(mn.Oblique())
    before, state = values(model), off(model)
    state["hidden.weight"] = mn.Oblique().random(8, 6)
    with pytest.raises(ValueError, match=r"hidden\.weight has shape"):
        mn.load_state_dict(model, state, project=True)
    assert unchanged(model, before)


def test_strict_is_passed_on() -> None:
    model = declared(mn.Oblique())
    state = values(model)
    del state["head.bias"], state["hidden.weight"]
    state["more"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="Missing key"):
        mn.load_state_dict(model, state)
    keys = mn.load_state_dict(model, state, strict=False)
    assert sorted(keys.missing_keys) == ["head.bias", "hidden.weight"]
    assert keys.unexpected_keys == ["more"]


def test_values_that_are_no_tensors_are_refused_by_torch() -> None:
    model = declared(mn.Oblique())
    with pytest.raises(RuntimeError, match=r"hidden\.weight"):
        mn.load_state_dict(model, {**values(model), "hidden.weight": None})


@BOTH_ASSIGN
def test_assign_is_passed_on(assign) -> None:
    model = declared(mn.Oblique())
    weight, state = model.hidden.weight, values(model)
    mn.load_state_dict(model, state, assign=assign)
    assert (model.hidden.weight is weight) is not assign
    assert (model.hidden.weight.data_ptr() == state["hidden.weight"].data_ptr()) is assign


@EVERY_MANIFOLD
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_assigned_checkpoint_keeps_its_type(dtype, project, manifold) -> None:
    """Checked as what it will be, not as what the model was before."""
    model = declared(manifold)
    state = {k: v.to(dtype) for k, v in values(model).items()}
    if dtype == torch.float64:
        state["hidden.weight"] = manifold.projx(state["hidden.weight"])
    mn.load_state_dict(model, state, assign=True, project=project)
    assert {p.dtype for p in model.parameters()} == {dtype}
    mn.verify(model)


def test_a_rounded_checkpoint_needs_a_projection() -> None:
    """In bfloat16 the weights were on the manifold; as float32 they are rounded to it."""
    model = declared(mn.Oblique())
    state = {k: v.bfloat16() for k, v in values(model).items()}
    with pytest.raises(ValueError, match="project=True"):
        mn.load_state_dict(model, state)
    mn.load_state_dict(model, state, project=True)
    mn.verify(model)


def test_an_assigned_checkpoint_of_integers_is_refused() -> None:
    model = declared(mn.Oblique())
    state = {**values(model), "hidden.weight": torch.ones(8, 5, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"hidden\.weight .*int64"):
        mn.load_state_dict(model, state, assign=True)


def test_a_checkpoint_without_values_can_be_assigned() -> None:
    model = declared(mn.Oblique())
    state = {k: v.to("meta") for k, v in values(model).items()}
    mn.load_state_dict(model, state, assign=True)
    assert model.hidden.weight.is_meta
    assert mn.manifolds(model) == {"hidden.weight": mn.Oblique()}


class Versioned(nn.Linear):
    """Converts checkpoints of version 1, as torch's BatchNorm does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest) -> None:
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("project", [False, True])
def test_versions_of_layers_reach_them(project) -> None:
    model = nn.Sequential(Versioned(3, 4), nn.BatchNorm1d(4))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    state = model.state_dict()
    assert state._metadata["1"]["version"] == 2
    mn.load_state_dict(model, state, project=project)
    assert model[0].seen == 2
    # Without versions torch takes the checkpoint for an old one: so do we.
    mn.load_state_dict(model, OrderedDict(state), project=project)
    assert model[0].seen is None


@pytest.mark.parametrize("bad", ["0.weight", "1.weight"])
@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
@pytest.mark.parametrize("hooked", [False, True])
def test_every_name_of_a_tied_weight_is_checked(hooked, name, bad) -> None:
    layers = tied(name)
    if hooked:  # torch loads the names one after the other, and the last one stays
        layers.register_load_state_dict_pre_hook(lambda *_: None)
    before, state = values(layers), values(layers)
    assert {"0.weight", "1.weight"} <= set(state)
    state[bad] = state[bad] * 2
    with pytest.raises(ValueError, match=re.escape(bad)):
        mn.load_state_dict(layers, state)
    assert unchanged(layers, before)
    mn.load_state_dict(layers, state, project=True)
    mn.verify(layers)
    assert layers[0].weight is layers[1].weight


# --- how far off, in numbers and words ------------------------------------------------------------


def test_violations_are_the_worst_slice_relative() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    mn.declare(model, "0.weight", mn.Oblique(radius=2.0), project=True)
    mn.declare(model, "1.weight", mn.ScaledEuclidean())
    mn.declare(model, "2.weight", mn.Sphere(), project=True)
    assert list(mn.violations(model)) == ["0.weight", "1.weight", "2.weight"]
    assert max(mn.violations(model).values()) < 1e-6
    with torch.no_grad():
        model[0].weight[2] *= 1.25
        model[0].weight[1] *= 0.9
        model[1].weight[0] *= 100.0
        model[2].weight *= 3.0
    found = mn.violations(model)
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx({"0.weight": 0.25, "1.weight": 0.0, "2.weight": 2.0}, abs=1e-5)
    with torch.no_grad():
        model[1].weight[0] = 0.0
        model[2].weight[0, 0] = torch.nan
    assert mn.violations(model)["1.weight"] == float("inf")
    assert mn.violations(model)["2.weight"] == float("inf")


def test_verify_lists_every_trouble() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.declare(model, "1.weight", mn.ScaledEuclidean())
    mn.declare(model, "2.weight", mn.Sphere(), project=True)
    mn.verify(model)
    with torch.no_grad():
        model[0].weight[2] *= 1.25
        model[1].weight[1] = 0.0
    with pytest.raises(ValueError, match=r"0\.weight") as error:
        mn.verify(model)
    first, second = str(error.value).split("\n")
    assert first.startswith("0.weight is not on Oblique(dim=0")
    assert "row 2 with norm 1.25, off by 0.25" in first
    assert second.startswith("1.weight: 1 of 2 slices cannot be on ScaledEuclidean(dim=0")
    assert "row 1, which is zero" in second
    with torch.no_grad():
        model[1].weight[1] = 1.0
    mn.verify(model, tol=0.3)
    with pytest.raises(ValueError, match=r"0\.weight"):
        mn.verify(model, tol=0.2)


def test_verify_refuses_a_wrong_shape() -> None:
    model = declared(mn.Oblique())
    model.hidden.weight = nn.Parameter(torch.ones(8))
    mn.verify(declared(mn.Oblique()))
    with pytest.raises(ValueError, match=r"hidden\.weight cannot be"):
        mn.verify(model)


@CONSTRAINED
@EVERY_WAY
def test_project_works_in_place(manifold, way) -> None:
    model = declared(manifold, way)
    tensors, head = dict(model.named_parameters()), model.head.weight.detach().clone()
    with torch.no_grad():
        model.hidden.weight.mul_(1.7)
    expected = manifold.projx(model.hidden.weight.detach())
    mn.project_(model)
    assert torch.equal(model.hidden.weight, expected)
    assert torch.equal(model.head.weight, head)
    assert all(p is tensors[name] for name, p in model.named_parameters())
    mn.verify(model)


def test_project_changes_nothing_if_one_weight_has_no_projection() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.declare(model, "1.weight", mn.Oblique(), project=True)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[1].weight[1] = 0
    before = values(model)
    with refused(NotOnManifoldError, name="1.weight", slices=("row 1",)):
        mn.project_(model)
    assert unchanged(model, before)


# --- models that convert what they load -----------------------------------------------------------


class Converting(nn.Module):
    """A network that reads checkpoints of its old version, in one of torch's ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(()))
        self.fc = Overriding(4, 3, bias=False) if way == "layer" else nn.Linear(4, 3, bias=False)
        self.last = nn.Linear(3, 2)
        self.heard: list[str] = []
        self.register_load_state_dict_post_hook(lambda *_: self.heard.append("after"))
        if way == "hook":
            self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module: nn.Module, state: dict, prefix: str, *_) -> None:
        if prefix + "old.weight" in state:
            state[prefix + "fc.weight"] = state.pop(prefix + "old.weight").T / 2


class Overriding(nn.Linear):
    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        if prefix + "old" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "old").T / 2
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Copying(nn.Linear):
    """Leaves nothing to torch."""

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        with torch.no_grad():
            self.weight.copy_(state_dict.pop(prefix + "old").T / 2)


def converting(way: str, factor: float = 1.0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A declared model, and an old checkpoint: its weight on the manifold, times a factor."""
    torch.manual_seed(3)
    model = Converting(way)
    mn.declare(model, "fc.weight", mn.Oblique(), project=True)
    state = {key: value + 1 for key, value in values(model).items() if key != "fc.weight"}
    state["old.weight" if way == "hook" else "fc.old"] = 2 * factor * mn.Oblique().random(3, 4).T
    return model, state


@BOTH_ASSIGN
@pytest.mark.parametrize("way", ["hook", "layer"])
def test_converted_weights_are_checked_as_they_are_loaded(way, assign) -> None:
    model, state = converting(way)
    expected = (state["old.weight" if way == "hook" else "fc.old"].T / 2).clone()
    mn.load_state_dict(model, state, assign=assign)
    assert torch.equal(model.fc.weight, expected)
    assert torch.equal(model.first.weight, state["first.weight"])
    assert model.heard == ["after"]
    mn.verify(model)


@BOTH_ASSIGN
@pytest.mark.parametrize("way", ["hook", "layer"])
def test_converted_weights_off_the_manifold_are_refused_and_nothing_is_loaded(way, assign) -> None:
    model, state = converting(way, factor=3.0)
    before, tensors = values(model), {**dict(model.named_parameters()), "count": model.count}
    with pytest.raises(ValueError, match=r"fc\.weight .*off by 2"):
        mn.load_state_dict(model, state, assign=assign)
    assert unchanged(model, before)
    assert all(p is tensors[name] for name, p in model.named_parameters())
    assert model.count is tensors["count"]
    assert len(model.fc._load_state_dict_pre_hooks) == 0
    given = {key: value.clone() for key, value in state.items()}
    mn.load_state_dict(model, state, assign=assign, project=True)
    mn.verify(model)
    assert torch.equal(model.last.bias, state["last.bias"])
    assert all(torch.equal(state[key], given[key]) for key in given)


def test_a_layer_that_copies_by_itself_is_checked_afterwards() -> None:
    model, state = converting("layer", factor=3.0)
    weight = model.fc.weight
    model.fc.__class__ = Copying
    before = values(model)
    with pytest.raises(ValueError, match=r"fc\.weight"):
        mn.load_state_dict(model, dict(state), strict=False)
    assert unchanged(model, before)
    assert model.fc.weight is weight
    mn.load_state_dict(model, dict(state), strict=False, project=True)
    mn.verify(model)


@pytest.mark.parametrize("way", ["hook", "layer"])
def test_a_load_that_torch_refuses_is_undone(way) -> None:
    model, state = converting(way)
    before = values(model)
    del state["last.weight"]
    with pytest.raises(RuntimeError, match=r"last\.weight"):
        mn.load_state_dict(model, state)
    assert unchanged(model, before)


def test_weights_that_are_not_in_the_checkpoint_are_not_checked() -> None:
    """A weight that has drifted, and is missing in the checkpoint, is accepted."""
    model, state = converting("hook")
    with torch.no_grad():
        model.fc.weight.mul_(2)
    del state["old.weight"]
    mn.load_state_dict(model, state, strict=False)
    assert torch.equal(model.last.bias, state["last.bias"])


def test_extra_state_is_restored() -> None:
    class Extra(nn.Linear):
        note = "old"

        def get_extra_state(self) -> str:
            return self.note

        def set_extra_state(self, note: str) -> None:
            self.note = note

    model, state = converting("hook", factor=3.0)
    model.extra = Extra(2, 2)
    with pytest.raises(ValueError, match="nothing was loaded"):
        mn.load_state_dict(model, {**state, "extra._extra_state": "new"}, strict=False)
    assert model.extra.note == "old"


def test_models_without_conversions_are_not_copied(monkeypatch) -> None:
    """Only where something converts are old values kept."""
    monkeypatch.setattr(mn.checkpoints, "_Snapshot", None)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.load_state_dict(model, values(model))
    converts, state = converting("hook")
    with pytest.raises(TypeError):
        mn.load_state_dict(converts, state)
