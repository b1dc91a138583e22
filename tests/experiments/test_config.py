import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet import rules
from manifoldnet.experiments import UPDATES, ConfigError, TrainConfig
from manifoldnet.experiments.config import ARCHITECTURES, SCHEDULES

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
)


@given(configurations)
def test_json_gives_the_same_configuration_back(config):
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
    ],
)
def test_nonsense_is_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{field: value})


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"unknown fields rate; .* lr"):
        TrainConfig.from_dict({"rate": 1})


def test_differences_name_what_departs():
    one, other = TrainConfig(), TrainConfig(lr=0.1, seed=3)
    assert one.differences(other) == "lr 0.1 there, 0.01 here, seed 3 there, 0 here"
    assert one.differences(TrainConfig()) == ""


@pytest.mark.parametrize("name", UPDATES)
def test_every_update_of_the_table_can_be_made(name):
    update = UPDATES[name]
    if update.rule is not None:
        assert callable(getattr(rules, update.rule)(classifier="head", **update.options))
