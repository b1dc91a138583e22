"""The choice of the base learning rate."""

import dataclasses

import pytest
import torch
from test_training import SMALL, Stop, numbers, stop_after

from manifoldnet.experiments import ConfigError, TrainConfig, checkpoint, records, train
from manifoldnet.experiments.data import split
from manifoldnet.experiments.papers.symmetry import run as choosing
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION
from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT, images_of_choice, select
from manifoldnet.experiments.training import train_whole

CHOSEN = dataclasses.replace(
    SMALL, lr=None, selection_epochs=3, selection_train_size=60, selection_validation_size=30
)


def without_clock(selection):
    return dataclasses.replace(selection, seconds=0.0)


def test_the_first_rate_of_lowest_error_is_chosen(tiny, monkeypatch):
    errors = {1e-2: 0.3, 1e-3: 0.1, 1e-4: 0.1, 1e-5: 0.9}
    monkeypatch.setattr(choosing, "_final_error", lambda config, *_: errors[config.lr])
    chosen = select(CHOSEN, tiny, split(tiny, 0))
    assert chosen.errors == (0.3, 0.1, 0.1, 0.9)
    assert chosen.lr == 1e-3


def test_a_rate_that_learns_is_chosen_over_useless_and_divergent_ones(tiny):
    config = dataclasses.replace(
        CHOSEN, architecture="arch1", lr_candidates=(1e30, 1e-12, 1e-2), selection_epochs=20
    )
    chosen = select(config, tiny, split(tiny, 0))
    assert chosen.lr == 1e-2
    assert chosen.errors[0] == 1.0  # not finite
    assert chosen.errors[2] < chosen.errors[1] < 1


def test_the_choice_is_seeded_and_sees_no_validation_image(tiny):
    images = split(tiny, 0)
    chosen = images_of_choice(CHOSEN, images.train)
    one, other = chosen.train, chosen.validation
    assert (len(one), len(other)) == (60, 30)
    rows = {tuple(row) for row in images.validation.pixels.tolist()}
    drawn = [tuple(row) for part in (one, other) for row in part.pixels.tolist()]
    assert not rows & set(drawn)
    assert len(set(drawn)) == 90  # no image twice
    assert torch.equal(images_of_choice(CHOSEN, images.train).train.pixels, one.pixels)
    seed_1 = dataclasses.replace(CHOSEN, seed=1)
    assert not torch.equal(images_of_choice(seed_1, images.train).train.pixels, one.pixels)


def test_the_two_schedules_make_the_same_choice_unless_it_follows_the_schedule(tiny, monkeypatch):
    bold = dataclasses.replace(CHOSEN, schedule="bold-driver")
    images = split(tiny, 0)
    assert without_clock(select(CHOSEN, tiny, images)) == without_clock(select(bold, tiny, images))
    moved = []
    monkeypatch.setattr(choosing.Run, "move_schedule", lambda self, loss: moved.append(loss))
    select(CHOSEN, tiny, images)
    assert not moved
    select(dataclasses.replace(CHOSEN, selection_schedule="own"), tiny, images)
    assert len(moved) == 4 * 3


def test_a_run_uses_and_records_the_chosen_rate(tiny, tmp_path):
    record = train(CHOSEN, tmp_path, tiny)
    assert record.config.lr is None
    assert record.lr == record.selection.lr == record.epochs[0].lr
    assert records.read(tmp_path / "record.jsonl", CLASSIFICATION) == record
    fixed = train(dataclasses.replace(CHOSEN, lr=record.lr), tmp_path / "fixed", tiny)
    assert [e.test_error for e in fixed.epochs] == [e.test_error for e in record.epochs]


def test_a_whole_run_in_memory_is_the_run_with_checkpoints(tiny, tmp_path):
    in_memory, on_disk = train_whole(EXPERIMENT, CHOSEN, tiny), train(CHOSEN, tmp_path, tiny)
    assert numbers(in_memory) == numbers(on_disk)
    assert in_memory.data == on_disk.data
    assert without_clock(in_memory.selection) == without_clock(on_disk.selection)


def test_a_resumed_run_keeps_its_choice(tiny, tmp_path, monkeypatch):
    whole = train_whole(EXPERIMENT, CHOSEN, tiny)
    with pytest.raises(Stop):
        train(CHOSEN, tmp_path, tiny, on_epoch=stop_after(2))
    monkeypatch.setattr(choosing, "_final_error", lambda *_: pytest.fail("chose again"))
    assert numbers(train(CHOSEN, tmp_path, tiny, resume=True)) == numbers(whole)


def test_too_few_images_are_refused_before_anything_is_written(tiny, tmp_path):
    config = dataclasses.replace(CHOSEN, selection_train_size=140)
    message = "takes 140 and 30 of the training images, of which there are 150"
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run", tiny)
    odd = dataclasses.replace(CHOSEN, selection_train_size=51)
    with pytest.raises(ConfigError, match="51 training images leave a last minibatch of one"):
        train(odd, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_and_a_record_of_format_1_are_still_read(tiny, tmp_path):
    """As they were written before there were selections, rules and validation losses."""
    whole = train(SMALL, tmp_path / "whole", tiny)
    with pytest.raises(Stop):
        train(SMALL, tmp_path / "old", tiny, on_epoch=stop_after(2))
    path = checkpoint.checkpoint_path(tmp_path / "old")
    content = torch.load(path, weights_only=True)
    new_fields = set(TrainConfig().to_dict()) - OLD_FIELDS
    for name in new_fields:
        del content["config"][name]
    for epoch in content["epochs"]:
        del epoch["validation_loss"]
    del content["selection"]
    content["format"] = 1
    torch.save(content, path)
    checkpoint.record_path(tmp_path / "old").unlink()
    record = train(SMALL, tmp_path / "old", tiny, resume=True)
    assert [e.test_error for e in record.epochs] == [e.test_error for e in whole.epochs]
    assert [e.validation_loss is None for e in record.epochs] == [True, True, False, False]


OLD_FIELDS = {
    *("dataset", "architecture", "depth", "features", "update", "schedule", "lr", "momentum"),
    *("batch_size", "epochs", "seed", "train_size", "validation_size", "decay", "grow", "shrink"),
    "threads",
}
OLD_RECORD = """\
{"kind": "run", "format": 1, "config": {"dataset": "digits", "architecture": "arch2", "depth": 2, \
"features": 64, "update": "un", "schedule": "exponential", "lr": 0.01, "momentum": 0.0, \
"batch_size": 100, "epochs": 1, "seed": 3, "train_size": null, "validation_size": null, \
"decay": 0.95, "grow": 1.05, "shrink": 0.5, "threads": 1}, "versions": {"torch": "2.13.0"}, \
"data": "00c0ffee"}
{"kind": "epoch", "epoch": 1, "lr": 0.01, "train_loss": 0.5, "train_error": 0.1, \
"validation_error": 0.05, "test_error": 0.04, "violation": 1e-07, "train_seconds": 0.1, \
"seconds": 0.2}
{"kind": "result", "status": "finished", "reason": "", "epochs": 1, "test_error": 0.04, \
"validation_error": 0.05, "seconds": 0.2}
"""


def test_a_record_of_format_1_is_read(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_text(OLD_RECORD)
    record = records.read(path, CLASSIFICATION)
    assert record.config == TrainConfig(update="un", epochs=1, seed=3)
    assert record.lr == 0.01
    assert record.epochs[0].validation_loss is None
    assert (record.result.test_error, record.result.stopped) == (0.04, "")


def test_candidates_are_evaluated_on_held_out_images(tiny):
    config = dataclasses.replace(CHOSEN, lr_candidates=(1e-2,), selection_epochs=20)
    split_images = split(tiny, 0)
    images, one = split_images.train, images_of_choice(config, split_images.train).train
    seen = {tuple(row) for row in one.pixels.tolist()}
    swapped = [tuple(row) not in seen for row in images.pixels.tolist()]
    labels = torch.where(torch.tensor(swapped), (images.labels + 1) % 3, images.labels)
    assert select(config, tiny, split_images).errors[0] < 0.2
    swapped = dataclasses.replace(split_images, train=dataclasses.replace(images, labels=labels))
    assert select(config, tiny, swapped).errors[0] > 0.8
