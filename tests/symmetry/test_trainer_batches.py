"""Batches as transformers' Trainer takes them: mappings with labels, outputs with a loss or logits.

Every door is tried with a model that has its own class of outputs; the real library, where it is
installed, with a small GPT-2.
"""

import copy
from collections import UserDict, namedtuple
from functools import partial

import pytest
import torch
from nets import canonical, hidden_units
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.symmetry import discover, invariance_error
from manifoldnet.testing import assert_loss_invariant, assert_trajectory_invariant

INPUTS, HIDDEN, CLASSES, SAMPLES = 5, 4, 3, 48


class Output(dict):
    """Items that are attributes, too; no plain dict to torch's pytree."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Named = namedtuple("Named", "loss logits")
KINDS = {
    "mapping": Output,
    "dict": dict,
    "tuple": lambda loss=None, logits=None: (logits,) if loss is None else (loss, logits),
    "named tuple": lambda loss=None, logits=None: Named(loss, logits),
}


class Classifier(nn.Module):
    """ReLU perceptron that computes its loss if it is given labels."""

    def __init__(self, kind="mapping"):
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.kind = KINDS[kind]

    def forward(self, features, mask=None, labels=None):
        hidden = self.first(features if mask is None else features * mask).relu()
        logits = self.second(hidden)
        if labels is None:
            return self.kind(logits=logits)
        return self.kind(loss=cross_entropy(logits, labels), logits=logits)


def batch(kind=dict, **others):
    source = torch.Generator().manual_seed(0)
    drawn = {
        "features": torch.randn(SAMPLES, INPUTS, generator=source),
        "labels": torch.randint(CLASSES, (SAMPLES,), generator=source),
    }
    return kind(**drawn, **others)


def pair():
    given = batch()
    return given["features"], given["labels"]


UNITS = canonical(hidden_units("first", "second", HIDDEN))


def found(model, loss_fn, *batches):
    return canonical(discover(model, loss_fn, batches).nontrivial.generators)


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [dict, UserDict, Output])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_the_model(kind, mapping):
    assert found(Classifier(kind), None, batch(mapping)) == UNITS


def test_loss_of_the_model_alone():
    model = Classifier()
    model.kind = lambda loss=None, logits=None: loss
    assert found(model, None, batch()) == UNITS


LOSSES = {
    "function": cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "partial": partial(cross_entropy, label_smoothing=0.1),
    "of logits": lambda logits, labels: cross_entropy(logits, labels),
    "arithmetic": lambda logits, labels: (logits.mT + labels).square().mean(),
    "of the whole output": lambda output, labels: cross_entropy(output["logits"], labels),
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", ["mapping", "dict"])
def test_labels_are_the_target_of_a_loss_function(kind, loss_fn):
    assert found(Classifier(kind), loss_fn, batch(), batch(UserDict)) == UNITS


@pytest.mark.parametrize("kind", ["mapping", "dict", "named tuple"])
def test_logits_of_pairs(kind):
    features, labels = pair()
    model = Classifier(kind)
    assert found(model, cross_entropy, (features, labels)) == UNITS
    assert found(model, cross_entropy, (UserDict(features=features), labels)) == UNITS


def test_a_loss_that_takes_the_output_gets_all_of_it():
    seen = []

    def loss_fn(output, labels):
        seen.append(type(output))
        return cross_entropy(output.logits, labels)

    invariance_error.loss(Classifier(), mn.symmetry.ScalingElement({}), loss_fn, batch())
    assert set(seen) == {Output}


def test_inputs_without_a_sample_dimension():
    assert found(Classifier(), None, batch(mask=torch.ones(INPUTS))) == UNITS


def test_every_door_takes_them():
    torch.manual_seed(0)
    model, given = Classifier().double(), batch()
    given["features"] = given["features"].double()
    group = discover(model, None, [given])
    element = group.nontrivial.sample(generator=torch.Generator().manual_seed(0))

    def sgd(m):
        return torch.optim.SGD(m.parameters(), lr=0.1)

    def framed(m):
        return mn.symmetry.make_invariant(sgd(m), m, group)

    same = given["features"], given["labels"]
    for loss_fn in (None, cross_entropy):
        assert invariance_error.loss(model, element, loss_fn, given) < 1e-14
        update = invariance_error.update(model, element, loss_fn, given, sgd)
        assert update == invariance_error.update(model, element, cross_entropy, same, sgd) > 1e-3
        assert invariance_error.trajectory(model, element, loss_fn, [given], sgd, steps=3) > 1e-3
        assert_loss_invariant(model, group, loss_fn, given)
        assert_trajectory_invariant(model, group, loss_fn, [given], framed, steps=20)
        wide = copy.deepcopy(model)
        wide.first, wide.second = nn.Linear(INPUTS, 9), nn.Linear(9, CLASSES)
        assert group.widen(wide, loss_fn, given).nontrivial.dimension == 9
    linear = discover(model, None, [given], kind="linear")
    assert linear.dimension == discover(model, cross_entropy, [same], kind="linear").dimension
    before = model(**given).loss.item()
    mn.symmetry.balance_(model, group)
    assert model(**given).loss.item() == pytest.approx(before, rel=1e-14)


# --- what is refused ------------------------------------------------------------------------------


def without(name):
    given = batch()
    del given[name]
    return given


def renamed(**others):
    given = batch()
    return {others.get(name, name): value for name, value in given.items()}


class Silent(Classifier):
    def forward(self, features, labels=None):
        return {"loss": None, "logits": super().forward(features)["logits"]}


@pytest.mark.parametrize(
    ("model", "loss_fn", "given", "message"),
    [
        (Classifier(), None, without("labels"), "has no loss.* the batch has features: add"),
        (Silent(), None, batch(), "has no loss"),
        (Classifier("tuple"), None, without("labels"), "must be one real number, not shape"),
        (Classifier(), cross_entropy, without("labels"), "dict of features without 'labels'"),
        (Classifier(), None, renamed(labels="label"), "has label, which Classifier does not take"),
        (Classifier(), cross_entropy, batch(ids=torch.ones(SAMPLES)), "has ids, which Classifier"),
        (Classifier(), None, pair(), "must be a dict"),
        (Classifier(), None, pair()[0], "a pair .* or a dict with 'labels', not Tensor"),
    ],
)
def test_wrong_batches(model, loss_fn, given, message):
    with pytest.raises(ValueError, match=message):
        discover(model, loss_fn, [given])
    with pytest.raises(ValueError, match=message):
        invariance_error.loss(model, mn.symmetry.ScalingElement({}), loss_fn, given)


def test_one_batch_alone():
    with pytest.raises(ValueError, match=r"one batch alone is \[batch\]"):
        discover(Classifier(), None, batch())


def test_errors_of_the_users_code_stay():
    def broken(output, labels):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        discover(Classifier(), broken, [batch()])
    model = Classifier()
    model.kind = None
    with pytest.raises(TypeError, match="not callable"):
        discover(model, None, [batch()])


# --- the real library -----------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_a_transformer_of_hugging_face(blocks):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=blocks, n_head=2, n_inner=12
    )
    model = transformers.GPT2LMHeadModel(config)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (16, 8), generator=source)
    given = transformers.BatchEncoding({"input_ids": ids, "labels": ids})
    # A block has 8 channels each of query against key, value against output, and LayerNorm 1 and 2
    # against what reads them. The key's 8 biases shift all scores of a query. One more for what
    # writes to the stream (the tied embedding reads ln_f). GELU is not homogeneous.
    group = discover(model, None, [given])
    assert group.nontrivial.dimension == blocks * 5 * 8 + 1

    def shifted(output, labels):
        return cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    same = discover(model, shifted, [given])
    assert canonical(same.nontrivial.generators) == canonical(group.nontrivial.generators)
    element = group.nontrivial.sample(generator=source)
    with mn.symmetry.without_eps(model.double()):
        assert invariance_error.loss(model, element, None, given) < 1e-12


def test_a_wrong_attribute_of_the_output_is_named():
    with pytest.raises(AttributeError, match="logit"):
        discover(
            Classifier("mapping"),
            lambda output, labels: cross_entropy(output.logit, labels),
            [batch()],
        )


def test_a_loss_function_that_is_none():
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        discover(Classifier(), "cross_entropy", [batch()])


def test_arguments_in_another_order_are_refused() -> None:
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    with pytest.raises(TypeError, match="model, loss_fn, batches"):
        discover(nn.Linear(3, 2), [(x, y)], cross_entropy)
