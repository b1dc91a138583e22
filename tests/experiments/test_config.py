import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet import rules
from manifoldnet.experiments import UPDATES, ConfigError, TrainConfig
from manifoldnet.experiments.papers.symmetry.config import ARCHITECTURES, SCHEDULES

ROOT = str(Path(__file__).parents[2])

configurations = st.builds(
    TrainConfig,
    dataset=st.sampled_from(["digits", "mnist", "owner/name"]),
    architecture=st.sampled_from(ARCHITECTURES),
    depth=st.integers(1, 9),
    features=st.integers(1, 99).map(lambda n: 2 * n),
    update=st.sampled_from(list(UPDATES)),
    schedule=st.sampled_from(SCHEDULES),
    lr=st.floats(0, 1e3, exclude_min=True),
    momentum=st.floats(0, 1, exclude_max=True),
    batch_size=st.integers(2, 1000),
    seed=st.integers(0, 2**40),
    train_size=st.none() | st.integers(1, 10**6),
    decay=st.floats(0, 1, exclude_min=True),
    lr_candidates=st.lists(st.floats(1e-9, 9), min_size=1, max_size=4, unique=True).map(tuple),
    min_epochs=st.none() | st.integers(1, 30),
    validation_measure=st.sampled_from(["loss", "error"]),
)


@given(configurations)
def test_json_round_trip(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", -1e-3, r"lr is -0.001; it must be a number in \(0, inf\)"),
        ("lr", 0, "lr is 0"),
        ("lr", float("nan"), "lr is nan"),
        ("lr", float("inf"), "lr is inf"),
        ("lr", "fast", "lr is 'fast'; it must be a number"),
        ("momentum", 1.0, r"momentum is 1.0; it must be a number in \[0, 1\)"),
        ("decay", 1.1, r"decay is 1.1; .* \(0, 1\]"),
        ("grow", 0.9, "grow is 0.9"),
        ("shrink", 1.0, "shrink is 1.0"),
        ("architecture", "arch3", "architecture is 'arch3'; choose one of arch1, arch2"),
        ("update", "adam", "update is 'adam'; choose one of b-sgd, sm, sm-geodesic, un"),
        ("schedule", "cosine", "schedule is 'cosine'; choose one of exponential, bold-driver"),
        ("dataset", "../mnist", "dataset is '../mnist'"),
        ("dataset", "", "dataset is ''"),
        ("depth", 0, "depth is 0; it must be an integer, 1 or more"),
        ("depth", 2.0, "depth is 2.0"),
        ("epochs", True, "epochs is True"),
        ("features", 7, "features is 7; it must be even"),
        ("batch_size", 1, "batch_size is 1; arch2"),
        ("seed", -1, "seed is -1"),
        ("validation_size", 0, "validation_size is 0"),
        ("threads", 0, "threads is 0"),
        ("lr_candidates", (), "lr_candidates is .*; it must name different rates"),
        ("lr_candidates", (1e-2, 0.01), "it must name different rates"),
        ("lr_candidates", (1e-2, -1), "lr_candidates is -1"),
        ("lr_candidates", "fast", "lr_candidates is 'fast'; it must be a tuple"),
        ("selection_epochs", 0, "selection_epochs is 0"),
        ("selection_schedule", "mine", "selection_schedule is 'mine'; choose one of constant, own"),
        ("min_epochs", 31, "min_epochs is 31; it must not exceed epochs, which is 30"),
        ("stop_train_error", -1.0, "stop_train_error is -1.0"),
        ("validation_measure", "rate", "validation_measure is 'rate'; choose one of loss, error"),
        ("diverged_above", 0, "diverged_above is 0"),
    ],
)
def test_invalid_values_are_refused_by_field(field, value, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{field: value})


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"unknown fields rate; .* lr"):
        TrainConfig.from_dict({"rate": 1})


def test_differences_list_the_fields_that_differ():
    one, other = TrainConfig(), TrainConfig(lr=0.1, seed=3)
    assert one.differences(other) == "lr 0.1 there, 0.01 here, seed 3 there, 0 here"
    assert one.differences(TrainConfig()) == ""


@pytest.mark.parametrize("name", UPDATES)
def test_every_update_of_the_table_can_be_made(name):
    update = UPDATES[name]
    if update.rule is not None:
        assert callable(getattr(rules, update.rule)(classifier="head", **update.options))


@pytest.mark.thorough
def test_the_identity_is_the_same_in_every_process():
    code = "from manifoldnet.experiments import TrainConfig as C; print(C(seed=3).identity())"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        # Another one than here, where it is drawn.
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": ROOT},
    ).stdout.strip()
    assert other == TrainConfig(seed=3).identity()
    assert re.fullmatch(r"[0-9a-f]{16}", other)


OTHER_VALUES = {
    "dataset": "mnist",
    "architecture": "arch1",
    "update": "un",
    "schedule": "bold-driver",
    "features": 32,
    "lr": None,
    "lr_candidates": (1e-2, 1e-3),
    "selection_schedule": "own",
    "training_measure": "loss",
    "validation_measure": "error",
    "train_size": 5,
    "validation_size": 5,
    "min_epochs": 5,
    "epochs": 31,
}


def test_the_identity_changes_with_any_field():
    default = TrainConfig()
    found = [default.identity()]
    for field in dataclasses.fields(TrainConfig):
        value = getattr(default, field.name)
        other = OTHER_VALUES.get(field.name)
        if field.name not in OTHER_VALUES:
            other = value + 1 if isinstance(value, int) else (value + 1.0) / 2
            other = 2.0 if field.name == "grow" else other
        found.append(dataclasses.replace(default, **{field.name: other}).identity())
    assert len(set(found)) == len(found) == 1 + len(dataclasses.fields(TrainConfig))


@given(configurations)
def test_equal_configurations_have_one_identity(config):
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.identity() == config.identity()
