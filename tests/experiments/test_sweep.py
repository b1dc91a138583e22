"""Sweeps: what is missing is done, once, whatever dies; what is wrong is said before it starts."""

import dataclasses
import errno
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pytest
from sweeps import FEW, RUNS, Here, content, quiet, without_clock

from manifoldnet.experiments import ConfigError, DataError, RecordError, records, store
from manifoldnet.experiments import sweep as sweeping
from manifoldnet.experiments.papers.symmetry.cells import AXES, TABLE2, configurations
from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT
from manifoldnet.experiments.sweep import SweepError, sweep
from manifoldnet.experiments.training import versions


def test_a_second_call_trains_the_missing_runs(tmp_path):
    first = Here()
    made = quiet(FEW, tmp_path, first)
    assert first.calls == FEW
    assert [record.config for record in made] == FEW
    assert set(content(tmp_path)) == {f"{config.identity()}.jsonl" for config in FEW}
    store.path_of(tmp_path, FEW[1]).unlink()
    kept = content(tmp_path)
    second = Here()
    again = quiet(FEW, tmp_path, second)
    assert second.calls == [FEW[1]]
    assert kept.items() <= content(tmp_path).items()
    assert list(map(without_clock, again)) == list(map(without_clock, made))
    third = Here()
    assert quiet(FEW, tmp_path, third) == again
    assert not third.calls


@pytest.mark.thorough
def test_processes_give_the_records_of_one_process(tmp_path, capfd):
    here = quiet(FEW, tmp_path / "here")
    there = sweep(EXPERIMENT, FEW, tmp_path / "there", jobs=2)
    assert list(map(without_clock, here)) == list(map(without_clock, there))
    assert "3/3 runs" in capfd.readouterr().err


def test_a_run_whose_worker_died_is_retried_once(tmp_path):
    once = Here(BrokenExecutor("died"))
    quiet(FEW, tmp_path / "once", once)
    assert sorted(map(str, once.calls)) == sorted(map(str, [*FEW, FEW[0]]))
    twice = Here(BrokenExecutor("died"), None, None, BrokenExecutor("died again"))
    with pytest.raises(SweepError, match=r"1 of 3 runs failed.*arch1-2-b-sgd-exponential, seed 0"):
        quiet(FEW, tmp_path / "twice", twice)
    assert len(content(tmp_path / "twice")) == 2  # the others went on
    assert len(quiet(FEW, tmp_path / "twice")) == 3


def test_an_invalid_request_is_not_retried(tmp_path):
    wrong = Here(DataError("a worker has other data"))
    with pytest.raises(SweepError, match="a worker has other data"):
        quiet(FEW, tmp_path, wrong)
    assert wrong.calls == FEW


def test_a_worker_with_other_data_is_refused():
    with pytest.raises(DataError, match="a worker has other data named 'digits'"):
        sweeping.run_one(EXPERIMENT, FEW[0], None, "00000000", versions()["manifoldnet"])


def test_a_worker_of_another_version_is_refused():
    with pytest.raises(ConfigError, match=r"a worker has manifoldnet .*, the process .* 9\.9"):
        sweeping.run_one(EXPERIMENT, FEW[0], None, "", "9.9")


def test_a_lost_cluster_is_an_error_of_its_own(tmp_path):
    class Lost(Here):
        def submit(self, *args, **kwargs):
            if len(self.calls) == 1:
                self.calls.append(None)
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
                return future
            return super().submit(*args, **kwargs)

    with pytest.raises(SweepError, match="the workers are gone"):
        quiet(FEW, tmp_path, Lost())
    assert len(quiet(FEW, tmp_path)) == 3


def test_a_sweep_of_failures_stops_early_with_one_message(tmp_path):
    dead = Here(*(BrokenExecutor("died") for _ in range(99)))
    with pytest.raises(SweepError) as caught:
        quiet(RUNS, tmp_path, dead)
    message = str(caught.value)
    assert message.count("died") == 1
    assert "seed 0 and " in message
    assert "none succeeded: stopped there" in message
    assert len(dead.calls) < 2 * len(RUNS) + 1


def test_two_parents_do_not_share_a_folder(tmp_path):
    with store.lock(tmp_path), pytest.raises(RecordError, match="another process is at work in"):
        quiet(FEW, tmp_path)
    quiet(FEW[:1], tmp_path)


def refused(configs, where, **options):
    """The message of a refusal, which trains nothing and touches no record."""
    before = content(where) if (where / "records").is_dir() else None
    here = Here()
    with pytest.raises((RecordError, ConfigError)) as caught:
        quiet(configs, where, here, **options)
    assert not here.calls
    assert before is None or content(where) == before
    return str(caught.value)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    where = tmp_path_factory.mktemp("one")
    return quiet(FEW[:1], where)[0]


@pytest.fixture
def started(tmp_path, one_run):
    store.path_of(tmp_path, FEW[0]).parent.mkdir()
    store.keep(tmp_path, one_run)
    return tmp_path


def test_foreign_files_are_named(started):
    (started / "records" / "notes.txt").write_text("mine")
    assert "notes.txt is none of the records of a sweep" in refused(FEW, started)


def test_a_damaged_record_is_named(started):
    path = store.path_of(started, FEW[0])
    path.write_text(path.read_text()[:-9])
    message = refused(FEW, started)
    assert "is damaged: it is cut off; move it away, and the same command trains" in message


def test_a_renamed_record_is_named(started):
    path = store.path_of(started, FEW[0])
    path.rename(path.with_name("0" * 16 + ".jsonl"))
    assert "does not hold the run of its name" in refused(FEW, started)


def test_a_record_of_another_version_is_named(started, one_run):
    store.keep(started, dataclasses.replace(one_run, versions={"manifoldnet": "0.0.1"}))
    assert "is of manifoldnet 0.0.1, this is " in refused(FEW, started)


def test_records_of_a_version_with_the_same_runs_go_on(started, one_run):
    store.keep(started, dataclasses.replace(one_run, versions={"manifoldnet": "0.1.0"}))
    (record, *_) = quiet(FEW, started)
    assert record.versions == {"manifoldnet": "0.1.0"}  # not trained again


def test_a_record_that_has_not_ended_is_named(started, one_run):
    store.keep(started, dataclasses.replace(one_run, result=None))
    assert "is of a run that has not ended" in refused(FEW, started)


def test_records_of_another_protocol_are_named_and_those_of_other_cells_are_not(started):
    longer = [dataclasses.replace(config, epochs=5) for config in FEW]
    message = refused(longer, started, axes=AXES)
    assert "does not belong with the runs of this command (epochs 4 there, 5 here)" in message
    quiet(FEW[1:2], started, axes=AXES)
    assert len(content(started)) == 2


def test_records_of_other_data_are_named(started, one_run):
    store.keep(started, dataclasses.replace(one_run, data="00000000"))
    assert "was trained on other data" in refused(FEW, started)


def test_data_that_are_too_small_are_refused_before_anything_starts(tmp_path):
    large = [dataclasses.replace(config, train_size=9999) for config in FEW]
    assert "does not leave room for 9999 training" in refused(large, tmp_path)
    greedy = [dataclasses.replace(config, selection_train_size=390) for config in FEW]
    assert "takes 390 and 100 of the training images" in refused(greedy, tmp_path)


def test_invalid_sweeps_are_refused(tmp_path):
    assert "each of them once" in refused([], tmp_path)
    assert "each of them once" in refused([FEW[0], FEW[0]], tmp_path)
    other = dataclasses.replace(FEW[0], dataset="mnist")
    assert "of one data set" in refused([FEW[0], other], tmp_path)
    assert "jobs is 0" in refused(FEW, tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="repetitions is 0"):
        configurations(TABLE2, 0)
    with pytest.raises(ConfigError, match="there are no cells"):
        configurations([], 1)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file is a file; records need a folder" in refused(FEW, tmp_path / "file")
    (tmp_path / "records").write_text("mine")
    assert "records is a file; records need a folder" in refused(FEW, tmp_path)


def test_an_unwritable_folder_is_an_error(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "cannot be written (Read-only file system)" in refused(FEW, tmp_path / "new")


def test_an_unwritable_folder_of_records_is_an_error_before_training(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", denied)
    assert "cannot be written (Permission denied): choose another" in refused(FEW, tmp_path)


def test_a_disk_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unlockable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unlockable)
    assert "cannot be locked (No locks available)" in refused(FEW, tmp_path)


def test_a_full_disk_ends_the_sweep_and_keeps_what_is_finished(tmp_path, monkeypatch):
    write, written = records.write, []

    def full(record, path):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(record, path)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", full)
        with pytest.raises(RecordError, match=r"No space left on device.*finished runs are kept"):
            quiet(FEW, tmp_path)
    assert list(content(tmp_path)) == [written[0].name]
    assert len(quiet(FEW, tmp_path)) == 3


def test_temporary_files_of_a_killed_parent_are_removed(started):
    name = f".{FEW[0].identity()}.jsonl.abc.tmp"
    (started / "records" / name).write_text("half")
    quiet(FEW[:1], started)
    assert list(content(started)) == [f"{FEW[0].identity()}.jsonl"]
