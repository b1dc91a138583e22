"""The stopping rules of the paper, on made-up epochs."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import epoch as made_up

from manifoldnet.experiments import TrainConfig
from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT, stopping_rule

verdict = EXPERIMENT.verdict
PAPER = TrainConfig(schedule="bold-driver", epochs=60, min_epochs=25)


def epoch(number, validation_loss, **fields):
    usual = {"train_error": 0.01, "validation_error": 0.02, "train_loss": 0.1}
    return made_up(number, validation_loss=validation_loss, **usual | fields)


def epochs(losses, **fields):
    return [epoch(number, loss, **fields) for number, loss in enumerate(losses, start=1)]


def falling(count, step=1e-3):
    return [1.0 - step * number for number in range(count)]


def test_a_run_whose_validation_loss_falls_trains_to_the_last_epoch():
    assert verdict(PAPER, epochs(falling(59))) is None
    result = verdict(PAPER, epochs(falling(60)))
    assert (result.status, result.epochs, result.stopped) == ("finished", 60, "")


FALLING = falling(29)
ROSE, CHANGED = "the validation loss rose over 5 epochs", "changed by less than 1e-05"


@pytest.mark.parametrize(
    ("last", "fields", "rule"),
    [
        (0.5, {"train_error": 0.0}, "the training error fell below 1e-05"),
        (0.5, {"train_error": 2e-5}, ""),  # one image of 50,000
        (FALLING[24] + 1e-9, {}, ROSE),
        (FALLING[-1] + 1e-4, {}, ""),  # above the last one alone
        (FALLING[-1] - 9e-6, {}, f"the validation loss {CHANGED}"),
        (FALLING[-1] - 2e-5, {}, ""),
    ],
)
def test_each_rule_ends_a_run(last, fields, rule):
    assert stopping_rule(PAPER, [*epochs(FALLING), epoch(30, last, **fields)]) == rule


def test_measures_of_rules_are_fields_of_the_configuration():
    by_error = dataclasses.replace(PAPER, validation_measure="error")
    same_error = epochs(falling(25))  # 0.02 in every epoch
    assert stopping_rule(by_error, same_error).startswith("the validation error changed")
    by_loss = dataclasses.replace(PAPER, training_measure="loss")
    learned = epochs(falling(25), train_loss=1e-6)
    assert stopping_rule(by_loss, learned) == "the training loss fell below 1e-05"
    assert stopping_rule(PAPER, learned) == ""


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_no_rule_applies_before_its_first_epoch(losses):
    for count in range(1, min(len(losses), 24) + 1):
        assert verdict(PAPER, epochs(losses[:count], train_error=0.0)) is None


@given(st.lists(st.floats(0, 10), min_size=25, max_size=60), st.sampled_from([1, 5, 24]))
def test_validation_rules_match_their_formulas(losses, back):
    config = dataclasses.replace(PAPER, stop_validation_epochs=back)
    stops = (losses[-1] > losses[-1 - back]) or abs(losses[-1] - losses[-2]) < 1e-5
    assert bool(stopping_rule(config, epochs(losses))) == stops


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_without_the_bold_driver_or_a_first_epoch_for_them_there_are_no_rules(losses):
    exponential = dataclasses.replace(PAPER, schedule="exponential")
    unasked = dataclasses.replace(PAPER, min_epochs=None)
    made_up = epochs(losses, train_error=0.0)
    for config in (exponential, unasked):
        assert stopping_rule(config, made_up) == ""
        assert (verdict(config, made_up) is None) == (len(losses) < 60)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 60))
def test_every_run_ends_and_not_before_min_epochs(losses, first):
    """Any losses have a last epoch, which is not before `min_epochs`."""
    config = (
        dataclasses.replace(PAPER, min_epochs=first, epochs=len(losses))
        if first <= len(losses)
        else dataclasses.replace(PAPER, min_epochs=None, epochs=len(losses))
    )
    ended = [n for n in range(1, len(losses) + 1) if verdict(config, epochs(losses[:n]))]
    assert ended
    assert config.min_epochs is None or ended[0] >= config.min_epochs


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_loss_that_is_not_finite_ends_a_run_at_once(loss):
    result = verdict(PAPER, [epoch(1, 0.5, train_loss=loss)])
    assert result.diverged
    assert "not finite in epoch 1" in result.reason


def test_a_run_that_a_rule_ends_may_have_diverged():
    result = verdict(PAPER, epochs([*falling(24), 5.0], validation_error=0.6))
    assert result.diverged
    assert result.stopped == "the validation loss rose over 5 epochs"
    kept = dataclasses.replace(PAPER, diverged_above=0.7)
    assert not verdict(kept, epochs([*falling(24), 5.0], validation_error=0.6)).diverged
