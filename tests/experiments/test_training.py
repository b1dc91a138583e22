"""Training, its record and its checkpoint: bit for bit, resumed, damaged, refused."""

import dataclasses
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from manifoldnet.experiments import (
    UPDATES,
    ConfigError,
    RecordError,
    TrainConfig,
    checkpoint,
    records,
    train,
    training,
)
from manifoldnet.experiments.files import held, write_bytes
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION
from manifoldnet.experiments.papers.symmetry.run import evaluate

SMALL = TrainConfig(dataset="tiny", features=8, batch_size=25, epochs=4, lr=1e-2)
UNIT = dataclasses.replace(SMALL, update="un")


def numbers(record):
    """A record without its clock."""
    epochs = [dataclasses.replace(e, seconds=0.0, train_seconds=0.0) for e in record.epochs]
    result = record.result and dataclasses.replace(record.result, seconds=0.0)
    return repr((record.config, epochs, result))


def states(directory):
    return torch.load(checkpoint.checkpoint_path(directory), weights_only=True)["states"]


def equal(one, other):
    """Equality of nested states, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


class Stop(Exception):
    pass


def stop_after(count):
    def on_epoch(epoch):
        if epoch.epoch == count:
            raise Stop

    return on_epoch


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("architecture", ["arch1", "arch2"])
def test_every_update_learns(digits, tmp_path, update, architecture):
    lr = {"arch1": 1e-3, "arch2": 1e-2}[architecture]
    config = TrainConfig(update=update, architecture=architecture, lr=lr, epochs=3)
    record = train(config, tmp_path, digits)
    assert record.result.status == "finished"
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    assert record.result.test_error < {"arch1": 0.5, "arch2": 0.06}[architecture]
    assert record.epochs[-1].violation < 1e-6
    assert [e.lr for e in record.epochs] == pytest.approx([lr * 0.95**n for n in range(3)])


def test_b_sgd_equals_torchs_sgd(tiny, tmp_path):
    """The loop is a few lines of plain torch, written out."""
    from manifoldnet.experiments.data import seeded_generator, split
    from manifoldnet.experiments.papers.symmetry.networks import Arch2
    from manifoldnet.experiments.training import limited_threads

    config = dataclasses.replace(SMALL, momentum=0.9)
    train(config, tmp_path, tiny)
    images = split(tiny, 0).train
    pixels = images.pixels.float() / 255
    model = Arch2(16, 3, features=8, generator=seeded_generator(0, "start"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    generator = seeded_generator(0, "order")
    with limited_threads(config.threads):  # others round otherwise
        for _ in range(config.epochs):
            for rows in torch.randperm(150, generator=generator).split(25):
                optimizer.zero_grad()
                scores = model(pixels[rows])
                torch.nn.functional.cross_entropy(
                    scores, images.labels[rows], reduction="sum"
                ).backward()
                optimizer.step()
            scheduler.step()
    trained = states(tmp_path)["model"]
    assert equal(dict(model.state_dict()), dict(trained))


def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(tiny, tmp_path):
    one, same = (train(SMALL, tmp_path / name, tiny) for name in "ab")
    other = train(dataclasses.replace(SMALL, seed=1), tmp_path / "c", tiny)
    assert numbers(one) == numbers(same)
    assert numbers(one) != numbers(other)
    assert equal(states(tmp_path / "a"), states(tmp_path / "b"))


def test_the_returned_record_equals_that_on_disk(tiny, tmp_path):
    record = train(SMALL, tmp_path, tiny)
    assert records.read(tmp_path / "record.jsonl", CLASSIFICATION) == record
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "record.jsonl"]
    assert record.result.epochs == len(record.epochs) == 4


def test_errors_are_those_of_the_network(tiny, tmp_path):
    from manifoldnet.experiments.data import split
    from manifoldnet.experiments.papers.symmetry.networks import Arch2

    record = train(SMALL, tmp_path, tiny)
    model = Arch2(16, 3, features=8)
    model.load_state_dict(states(tmp_path)["model"])
    model.eval()
    test = split(tiny, 0).test
    wrong = model(test.pixels / 255).argmax(1) != test.labels
    assert record.result.test_error == wrong.double().mean().item()
    assert evaluate(model, test)[1] == record.result.test_error


@pytest.mark.parametrize("schedule", ["exponential", "bold-driver"])
@pytest.mark.parametrize("update", UPDATES)
def test_an_interrupted_run_resumes_bit_for_bit(tiny, tmp_path, update, schedule):
    config = dataclasses.replace(SMALL, update=update, schedule=schedule, momentum=0.5, epochs=6)
    whole = train(config, tmp_path / "whole", tiny)
    for count in (1, 4):
        with pytest.raises(Stop):
            train(config, tmp_path / "parts", tiny, resume=True, on_epoch=stop_after(count))
    parts = train(config, tmp_path / "parts", tiny, resume=True)
    assert numbers(parts) == numbers(whole)
    assert equal(states(tmp_path / "parts"), states(tmp_path / "whole"))
    assert numbers(records.read(tmp_path / "parts" / "record.jsonl", CLASSIFICATION)) == numbers(
        whole
    )


def test_the_bold_driver_follows_the_mean_training_loss(tiny, tmp_path):
    config = dataclasses.replace(SMALL, schedule="bold-driver", lr=0.05, epochs=12)
    epochs = train(config, tmp_path, tiny).epochs
    for before, now, after in zip(epochs, epochs[1:], epochs[2:], strict=False):
        factor = 1.05 if now.train_loss <= before.train_loss else 0.5
        assert after.lr == pytest.approx(now.lr * factor)
    assert len({e.lr for e in epochs}) > 3


def test_a_finished_run_is_returned_and_left_alone(tiny, tmp_path):
    record = train(SMALL, tmp_path, tiny)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    again = train(SMALL, tmp_path, tiny, resume=True, on_epoch=lambda e: pytest.fail("trained"))
    assert again == record
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("missing", ["record.jsonl", "last epoch", "result"])
def test_the_record_is_completed_from_the_checkpoint(tiny, tmp_path, missing):
    whole = train(SMALL, tmp_path, tiny)
    path = tmp_path / "record.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if missing == "record.jsonl":
        path.unlink()
    else:
        path.write_text("".join(lines[: -1 if missing == "result" else -2]))
    again = train(SMALL, tmp_path, tiny, resume=True, on_epoch=lambda e: pytest.fail("trained"))
    assert again == whole
    assert path.read_text() == "".join(lines)


def test_temporary_files_of_a_killed_process_are_removed(tiny, tmp_path):
    (tmp_path / ".record.jsonl.abc.tmp").write_text("half")
    train(SMALL, tmp_path, tiny)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "record.jsonl"]


@pytest.fixture(scope="module")
def after_two_epochs(tiny, tmp_path_factory):
    where = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stop):
        train(UNIT, where, tiny, on_epoch=stop_after(2))
    return where


@pytest.fixture
def stopped(after_two_epochs, tmp_path):
    """The directory of a run that was stopped after two epochs."""
    return Path(shutil.copytree(after_two_epochs, tmp_path / "run"))


def test_a_write_that_fails_leaves_the_last_version(tiny, stopped, monkeypatch):
    def broken(content, stream):
        stream.write(b"half")
        raise OSError("disk full")

    before = content(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            train(UNIT, stopped, tiny, resume=True)
    assert content(stopped) == before
    train(UNIT, stopped, tiny, resume=True)


def content(directory):
    return {p: p.read_bytes() for p in directory.iterdir()}


def refused(config, directory, data, **how):
    """The message of a refusal, which must not have touched a file."""
    before = content(directory)
    with pytest.raises(RecordError) as caught:
        train(config, directory, data, **how)
    assert content(directory) == before
    return str(caught.value)


def test_an_existing_run_is_not_overwritten(tiny, stopped):
    assert "go on with it by --resume" in refused(UNIT, stopped, tiny)
    train(UNIT, stopped, tiny, overwrite=True)


@pytest.mark.parametrize("lost", ["record.jsonl", "checkpoint.pt"])
def test_a_directory_of_another_configuration_is_refused(tiny, stopped, lost):
    (stopped / lost).unlink()
    message = refused(dataclasses.replace(UNIT, lr=0.5), stopped, tiny, resume=True)
    assert "(lr 0.01 there, 0.5 here)" in message


def test_a_file_in_place_of_the_directory_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecordError, match="is a file"):
        train(SMALL, tmp_path / "file", tiny)


def test_resuming_on_other_data_is_refused(tiny, digits, stopped):
    assert "was trained on other data" in refused(UNIT, stopped, digits, resume=True)


def cut(name, keep):
    def damage(directory):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])

    return damage


def change(edit):
    def damage(directory):
        state = torch.load(directory / "checkpoint.pt", weights_only=True)
        edit(state)
        torch.save(state, directory / "checkpoint.pt")

    return damage


def write(state):
    return lambda directory: torch.save(state, directory / "checkpoint.pt")


def flip_a_weight(directory):
    path = directory / "checkpoint.pt"
    found = checkpoint.load_checkpoint(path, CLASSIFICATION)
    whole = path.read_bytes()
    at = whole.index(found.states["model"]["head.weight"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def tell_of_other_epochs(directory):
    path = directory / "record.jsonl"
    record = records.read(path, CLASSIFICATION)
    changed = dataclasses.replace(record.epochs[0], test_error=0.0625)
    records.write(dataclasses.replace(record, epochs=(changed, record.epochs[1])), path)


def first_weight(value):
    return lambda state: state["states"]["model"]["hidden.0.weight"][0].fill_(value)


DAMAGED = "checkpoint.pt is truncated or damaged"


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (cut("checkpoint.pt", 0), [DAMAGED, "--overwrite"]),
        (cut("checkpoint.pt", 100), [DAMAGED]),
        (cut("checkpoint.pt", 0.5), [DAMAGED]),
        (flip_a_weight, [DAMAGED, "BadZipFile"]),
        (write({}), [DAMAGED]),
        (write([1]), [DAMAGED]),
        (write({"format": 0}), ["format 0"]),
        (write({"format": 1, "config": {"lr": -1}}), ["does not describe a run"]),
        (change(first_weight(math.nan)), ["(hidden.0.weight", "not finite", "--overwrite"]),
        (change(first_weight(3.0)), ["(hidden.0.weight", "is not on Oblique", "--overwrite"]),
        (
            change(lambda state: state["states"].pop("optimizer")),
            ["does not hold the state of this run", "--overwrite"],
        ),
        (
            lambda directory: (directory / "checkpoint.pt").unlink(),
            ["checkpoint.pt is missing, without which this run of 2 epochs cannot go on"],
        ),
        (cut("record.jsonl", 0.99), ["record.jsonl, line 3 is damaged", "--resume"]),
        (tell_of_other_epochs, ["different epochs"]),
    ],
)
def test_a_damaged_run_is_refused_and_left_alone(tiny, stopped, damage, messages):
    damage(stopped)
    said = refused(UNIT, stopped, tiny, resume=True)
    assert all(message in said for message in messages), said


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(stopped):
    path = stopped / "checkpoint.pt"
    whole, found = path.read_bytes(), checkpoint.load_checkpoint(path, CLASSIFICATION)
    for i in range(7, len(whole), len(whole) // 40):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        refused = None
        try:
            again = checkpoint.load_checkpoint(path, CLASSIFICATION)
        except RecordError as error:
            refused = str(error)
        if refused is None:
            assert equal(again.states, found.states)
            assert again.record() == found.record()
        else:
            assert "put an intact copy there" in refused


def test_a_run_resumes_after_deletion_of_a_damaged_record(tiny, stopped, tmp_path):
    (stopped / "record.jsonl").unlink()
    whole = train(UNIT, tmp_path / "whole", tiny)
    assert numbers(train(UNIT, stopped, tiny, resume=True)) == numbers(whole)


def test_two_processes_do_not_share_a_directory(tiny, tmp_path):
    with held(tmp_path / "run"):
        message = refused(SMALL, tmp_path / "run", tiny)
    assert f"process {os.getpid()} on " in message
    train(SMALL, tmp_path / "run", tiny)


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_a_run_finished_by_another_process_is_kept(tiny, tmp_path, monkeypatch, options):
    records_of_others = []

    @contextmanager
    def overtaken(directory):
        monkeypatch.setattr(training, "held", held)
        records_of_others.append(train(SMALL, directory, tiny))
        with held(directory):
            yield

    monkeypatch.setattr(training, "held", overtaken)
    if options:
        assert repr(train(SMALL, tmp_path, tiny, **options)) == repr(records_of_others[0])
    else:
        with pytest.raises(RecordError, match="already holds a run"):
            train(SMALL, tmp_path, tiny)


def test_unwritable_files_are_named(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    write_bytes(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_bytes(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tiny, tmp_path):
    config = dataclasses.replace(SMALL, architecture="arch1", lr=1e30, epochs=50)
    record = train(config, tmp_path, tiny)
    assert record.result.status == "diverged"
    assert record.result.reason == f"the training loss was not finite in epoch {len(record.epochs)}"
    assert len(record.epochs) < 50
    assert 0 <= record.result.test_error <= 1
    assert math.isnan(records.read(tmp_path / "record.jsonl", CLASSIFICATION).epochs[-1].train_loss)
    assert train(config, tmp_path, tiny, resume=True).result.diverged


def test_a_run_that_ends_no_better_than_chance_is_diverged(tiny, tmp_path):
    record = train(dataclasses.replace(SMALL, lr=1e-12, epochs=1), tmp_path, tiny)
    assert record.result.diverged
    assert record.result.reason.startswith("the validation error ended at 0.")


def test_a_last_minibatch_of_one_is_refused_before_anything_is_written(tiny, tmp_path):
    config = dataclasses.replace(SMALL, train_size=101)
    with pytest.raises(ConfigError, match="101 training images leave a last minibatch of one"):
        train(config, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()
    train(dataclasses.replace(config, architecture="arch1", lr=1e-3), tmp_path / "run", tiny)


def test_threads_are_set_for_the_run_and_restored(tiny, tmp_path):
    before = torch.get_num_threads()
    seen = []
    config = dataclasses.replace(SMALL, threads=before + 1)
    train(config, tmp_path, tiny, on_epoch=lambda e: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_torchs_global_random_numbers_are_left_alone(tiny, tmp_path):
    before = torch.get_rng_state()
    train(SMALL, tmp_path, tiny)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore::manifoldnet.optim.NormGrowthWarning")
@pytest.mark.parametrize("update", ["sm", "un"])
def test_a_diverged_run_that_was_stopped_before_its_result_is_completed(tiny, tmp_path, update):
    config = dataclasses.replace(SMALL, update=update, architecture="arch1", lr=1e30)
    with pytest.raises(Stop):
        train(config, tmp_path, tiny, on_epoch=stop_after(1))
    record = train(config, tmp_path, tiny, resume=True)
    assert record.result is not None
    assert record.result.diverged
