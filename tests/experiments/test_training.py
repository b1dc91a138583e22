import dataclasses
import math
import os
import re
from contextlib import contextmanager

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
)
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.papers.symmetry.rows import CLASSIFICATION
from manifoldnet.experiments.papers.symmetry.run import evaluate

SMALL = TrainConfig(dataset="tiny", features=8, batch_size=25, epochs=4, lr=1e-2)


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


def test_balanced_sgd_is_torchs_sgd(tiny, tmp_path):
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


def test_the_record_on_disk_is_what_is_returned(tiny, tmp_path):
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
def test_a_stopped_run_goes_on_bit_for_bit(tiny, tmp_path, update, schedule):
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
def test_what_a_kill_left_out_of_the_record_is_written_again(tiny, tmp_path, missing):
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


def test_temporary_files_of_a_killed_process_go_away(tiny, tmp_path):
    (tmp_path / ".record.jsonl.abc.tmp").write_text("half")
    train(SMALL, tmp_path, tiny)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "record.jsonl"]


def test_a_write_that_fails_leaves_the_last_version(tiny, tmp_path, monkeypatch):
    def broken(content, stream):
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(2))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            train(SMALL, tmp_path, tiny, resume=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    train(SMALL, tmp_path, tiny, resume=True)


def refused(config, directory, data, **how):
    """The message of a refusal, which must not have touched a file."""
    before = {p: p.read_bytes() for p in directory.iterdir()}
    with pytest.raises(RecordError) as caught:
        train(config, directory, data, **how)
    assert {p: p.read_bytes() for p in directory.iterdir()} == before
    return str(caught.value)


def test_a_run_that_is_there_is_not_written_over(tiny, tmp_path):
    train(SMALL, tmp_path, tiny)
    assert "already holds a run: go on with it by --resume" in refused(SMALL, tmp_path, tiny)
    train(SMALL, tmp_path, tiny, overwrite=True)


@pytest.mark.parametrize("kept", ["record.jsonl", "checkpoint.pt"])
def test_a_directory_of_another_configuration(tiny, tmp_path, kept):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(1))
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    other = dataclasses.replace(SMALL, lr=0.5)
    message = refused(other, tmp_path, tiny, resume=True)
    assert "belongs to another configuration (lr 0.01 there, 0.5 here)" in message


def test_a_directory_that_is_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecordError, match="file is a file; a run needs a directory"):
        train(SMALL, tmp_path / "file", tiny)


def test_other_data(tiny, digits, tmp_path):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(1))
    assert "was trained on other data" in refused(SMALL, tmp_path, digits, resume=True)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_checkpoint(tiny, tmp_path, keep):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(1))
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    message = refused(SMALL, tmp_path, tiny, resume=True)
    assert "checkpoint.pt is truncated or damaged" in message
    assert "train the run again with --overwrite" in message


def stopped_after_an_epoch(tiny, directory):
    with pytest.raises(Stop):
        train(SMALL, directory, tiny, on_epoch=stop_after(1))
    return checkpoint.checkpoint_path(directory)


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(tiny, tmp_path):
    path = stopped_after_an_epoch(tiny, tmp_path)
    whole, found = path.read_bytes(), checkpoint.load_checkpoint(path, CLASSIFICATION)
    outcomes = []
    for i in range(7, len(whole), len(whole) // 80):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        try:
            again = checkpoint.load_checkpoint(path, CLASSIFICATION)
        except RecordError as error:
            message = str(error)
            outcomes.append("checkpoint.pt" in message and "put an intact copy there" in message)
        else:
            outcomes.append(equal(again.states, found.states) and again.record() == found.record())
    assert all(outcomes)
    weights = found.states["model"]["head.weight"].numpy().tobytes()
    at = whole.index(weights)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    message = refused(SMALL, tmp_path, tiny, resume=True)
    assert "checkpoint.pt is truncated or damaged (BadZipFile" in message


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "values that are not finite"), (3.0, "is not on Oblique")]
)
def test_weights_that_training_cannot_go_on_from(tiny, tmp_path, value, message):
    config = dataclasses.replace(SMALL, update="un")
    with pytest.raises(Stop):
        train(config, tmp_path, tiny, on_epoch=stop_after(1))
    path = checkpoint.checkpoint_path(tmp_path)
    content = torch.load(path, weights_only=True)
    content["states"]["model"]["hidden.0.weight"][0] = value
    torch.save(content, path)
    said = refused(config, tmp_path, tiny, resume=True)
    assert "checkpoint.pt holds weights that training cannot go on from (hidden.0.weight" in said
    assert message in said
    assert "--overwrite" in said


def test_two_processes_do_not_share_a_directory(tiny, tmp_path):
    with checkpoint.held(tmp_path / "run"):
        message = refused(SMALL, tmp_path / "run", tiny)
    assert re.match(rf"process {os.getpid()} on .+ is at work in .*run: wait for it", message)
    train(SMALL, tmp_path / "run", tiny)


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_a_run_that_another_process_has_trained_meanwhile_is_kept(
    tiny, tmp_path, monkeypatch, options
):
    held, records_of_others = checkpoint.held, []

    @contextmanager
    def overtaken(directory):
        monkeypatch.setattr(checkpoint, "held", held)
        records_of_others.append(train(SMALL, directory, tiny))
        with held(directory):
            yield

    monkeypatch.setattr(checkpoint, "held", overtaken)
    if options:
        assert repr(train(SMALL, tmp_path, tiny, **options)) == repr(records_of_others[0])
    else:
        with pytest.raises(RecordError, match="already holds a run"):
            train(SMALL, tmp_path, tiny)


def test_what_cannot_be_written_is_named(tmp_path):
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


@pytest.mark.parametrize("content", [{}, {"format": 0}, {"format": 1, "config": {"lr": -1}}, [1]])
def test_a_checkpoint_that_is_something_else(tiny, tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    assert "checkpoint.pt" in refused(SMALL, tmp_path, tiny, resume=True)


def test_a_missing_checkpoint(tiny, tmp_path):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(2))
    (tmp_path / "checkpoint.pt").unlink()
    message = refused(SMALL, tmp_path, tiny, resume=True)
    assert "checkpoint.pt is missing, without which this run of 2 epochs cannot go on" in message


def test_a_garbled_record_and_the_way_out_that_its_error_names(tiny, tmp_path):
    whole = train(SMALL, tmp_path / "whole", tiny)
    with pytest.raises(Stop):
        train(SMALL, tmp_path / "run", tiny, on_epoch=stop_after(2))
    path = tmp_path / "run" / "record.jsonl"
    path.write_text(path.read_text()[:-20])
    message = refused(SMALL, tmp_path / "run", tiny, resume=True)
    assert "record.jsonl, line 3 is damaged" in message
    assert "delete record.jsonl and go on with the run (--resume)" in message
    path.unlink()
    assert numbers(train(SMALL, tmp_path / "run", tiny, resume=True)) == numbers(whole)


def test_a_record_that_tells_of_other_epochs(tiny, tmp_path):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(2))
    path = tmp_path / "record.jsonl"
    record = records.read(path, CLASSIFICATION)
    changed = dataclasses.replace(record.epochs[0], test_error=0.0625)
    records.write(dataclasses.replace(record, epochs=(changed, record.epochs[1])), path)
    assert "tell of different epochs" in refused(SMALL, tmp_path, tiny, resume=True)


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


def test_threads_are_the_runs_own(tiny, tmp_path):
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


def test_a_checkpoint_without_all_its_states_is_refused(tiny, tmp_path):
    with pytest.raises(Stop):
        train(SMALL, tmp_path, tiny, on_epoch=stop_after(2))
    path = checkpoint.checkpoint_path(tmp_path)
    content = torch.load(path, weights_only=True)
    del content["states"]["optimizer"]
    torch.save(content, path)
    with pytest.raises(RecordError, match=r"does not hold the state of this run.*--overwrite"):
        train(SMALL, tmp_path, tiny, resume=True)
