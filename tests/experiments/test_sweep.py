"""Sweeps: what is missing is done, once, whatever dies; what is wrong is said before it starts."""

import dataclasses
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path

import pytest
from test_training import numbers

from manifoldnet import cli
from manifoldnet.experiments import (
    ConfigError,
    DataError,
    RecordError,
    TrainConfig,
    folder,
    records,
)
from manifoldnet.experiments import sweep as sweeping
from manifoldnet.experiments.sweep import SweepError, sweep
from manifoldnet.experiments.symmetry_paper.cells import (
    AXES,
    FIGURE3,
    GEODESIC,
    PROTOCOL,
    TABLE2,
    Cell,
    configurations,
    named,
)
from manifoldnet.experiments.training import EXPERIMENT
from manifoldnet.experiments.workers import Processes

ROOT = str(Path(__file__).parents[2])
SHORT = TrainConfig(
    lr=None,
    lr_candidates=(1e-2, 1e-3),
    selection_epochs=1,
    selection_train_size=200,
    selection_validation_size=100,
    features=16,
    epochs=4,
    min_epochs=2,
    train_size=400,
    validation_size=200,
)
RUNS = configurations(TABLE2, 1, SHORT)
FEW = RUNS[:3]


class Here(Executor):
    """Does everything at once, in this process; some submissions fail first."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append(args[1])
        future = Future()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def quiet(configs, where, executor=None, **options):
    return sweep(EXPERIMENT, configs, where, executor=executor or Here(), progress=False, **options)


def content(where):
    return {p.name: p.read_bytes() for p in (where / "records").iterdir()}


def without_clock(record):
    record = dataclasses.replace(
        record, selection=dataclasses.replace(record.selection, seconds=0.0), versions={}
    )
    return numbers(record), record.selection, record.data


def test_the_table_has_24_cells_and_the_figure_six_of_them():
    assert len(TABLE2) == len({cell.name for cell in TABLE2}) == 24
    assert len(GEODESIC) == 8
    assert [cell.name for cell in FIGURE3] == [
        *(f"arch1-4-{update}-exponential" for update in ("b-sgd", "sm", "un")),
        *(f"arch2-4-{update}-bold-driver" for update in ("b-sgd", "sm", "un")),
    ]
    assert named(["arch1-2-un-*"]) == [
        Cell("arch1", 2, "un", "exponential"),
        Cell("arch1", 2, "un", "bold-driver"),
    ]


def test_the_protocol_is_the_papers():
    runs = configurations(TABLE2, 10)
    assert len({run.identity() for run in runs}) == 240
    assert (PROTOCOL.epochs, PROTOCOL.min_epochs, PROTOCOL.decay) == (60, 25, 0.95)
    assert (PROTOCOL.train_size, PROTOCOL.validation_size, PROTOCOL.batch_size) == (
        50000,
        10000,
        100,
    )
    assert PROTOCOL.lr is None
    assert PROTOCOL.lr_candidates == (1e-2, 1e-3, 1e-4, 1e-5)
    sizes = (PROTOCOL.selection_epochs, PROTOCOL.selection_train_size)
    assert (*sizes, PROTOCOL.selection_validation_size) == (50, 1000, 500)
    assert (PROTOCOL.stop_train_error, PROTOCOL.stop_validation_change) == (1e-5, 1e-5)
    assert PROTOCOL.stop_validation_epochs == 5
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)  # seed by seed


def test_a_second_call_does_what_is_missing(tmp_path):
    first = Here()
    made = quiet(FEW, tmp_path, first)
    assert first.calls == FEW
    assert [record.config for record in made] == FEW
    assert set(content(tmp_path)) == {f"{config.identity()}.jsonl" for config in FEW}
    folder.path_of(tmp_path, FEW[1]).unlink()
    kept = content(tmp_path)
    second = Here()
    again = quiet(FEW, tmp_path, second)
    assert second.calls == [FEW[1]]
    assert kept.items() <= content(tmp_path).items()
    assert list(map(without_clock, again)) == list(map(without_clock, made))
    third = Here()
    assert quiet(FEW, tmp_path, third) == again
    assert not third.calls


def test_processes_give_the_records_of_one_process(tmp_path, capfd):
    here = quiet(FEW, tmp_path / "here")
    there = sweep(EXPERIMENT, FEW, tmp_path / "there", jobs=2)
    assert list(map(without_clock, here)) == list(map(without_clock, there))
    assert "3/3 runs" in capfd.readouterr().err


SWEEP = """
import sys

if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from test_sweep import RUNS, AXES, sweep

    sweep(EXPERIMENT, RUNS, sys.argv[1], axes=AXES, jobs=2, progress=False)
"""


def start(script, where):
    return subprocess.Popen(
        [sys.executable, str(script), str(where)],
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")  # a process belongs to a thread
    return [int(child) for path in tasks for child in path.read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(tests=str(Path(__file__).parent)))
    chance = random.Random(0)
    where = tmp_path / "killed"
    parents = 0
    for kill in range(3):
        before = len(list((where / "records").glob("*.jsonl"))) if where.exists() else 0
        process = start(script, where)
        deadline = time.monotonic() + 120
        while len(list((where / "records").glob("*.jsonl"))) < before + 2:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        family = children(process.pid)
        if kill == 1:  # a worker first: its run is tried again
            os.kill(max(family), signal.SIGKILL)
            time.sleep(0.3)
        process.kill()
        process.communicate(timeout=60)
        parents += process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while any(map(is_alive, family)):  # workers go with their parent
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kept = content(where)
    assert parents == 3
    killed = quiet(RUNS, where)
    finished = {name: text for name, text in kept.items() if name.endswith(".jsonl")}
    assert finished.items() <= content(where).items()  # none trained twice
    assert set(content(where)) == {f"{config.identity()}.jsonl" for config in RUNS}
    whole = quiet(RUNS, tmp_path / "whole")
    assert list(map(without_clock, killed)) == list(map(without_clock, whole))


def die_once(mark):
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def rest(seconds):
    time.sleep(seconds)
    return os.getpid()


def test_a_worker_that_dies_takes_down_its_own_call_only(tmp_path):
    with Processes(2) as pool:
        slow = pool.submit(rest, 1.0)
        dying = pool.submit(die_once, tmp_path / "mark")
        with pytest.raises(BrokenExecutor):
            dying.result(timeout=60)
        assert slow.result(timeout=60) != pool.submit(die_once, tmp_path / "mark").result(
            timeout=60
        )


def test_leaving_by_an_exception_kills_the_workers():
    began = time.monotonic()

    def interrupted():
        with Processes(1) as pool:
            pool.submit(rest, 0).result(timeout=60)
            pool.submit(rest, 600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()


def test_a_run_whose_worker_died_is_tried_once_more(tmp_path):
    once = Here(BrokenExecutor("died"))
    quiet(FEW, tmp_path / "once", once)
    assert sorted(map(str, once.calls)) == sorted(map(str, [*FEW, FEW[0]]))
    twice = Here(BrokenExecutor("died"), None, None, BrokenExecutor("died again"))
    with pytest.raises(SweepError, match=r"1 of 3 runs failed.*arch1-2-b-sgd-exponential, seed 0"):
        quiet(FEW, tmp_path / "twice", twice)
    assert len(content(tmp_path / "twice")) == 2  # the others went on
    assert len(quiet(FEW, tmp_path / "twice")) == 3


def test_a_request_that_is_wrong_is_not_tried_again(tmp_path):
    wrong = Here(DataError("a worker has other data"))
    with pytest.raises(SweepError, match="a worker has other data"):
        quiet(FEW, tmp_path, wrong)
    assert wrong.calls == FEW


def test_a_worker_with_other_data_is_refused():
    with pytest.raises(DataError, match="a worker has other data named 'digits'"):
        sweeping.run_one(EXPERIMENT, FEW[0], None, "00000000")


def test_two_parents_do_not_share_a_folder(tmp_path):
    with folder.lock(tmp_path), pytest.raises(RecordError, match="another process is at work in"):
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
    folder.path_of(tmp_path, FEW[0]).parent.mkdir()
    folder.keep(tmp_path, one_run)
    return tmp_path


def test_foreign_files_are_named(started):
    (started / "records" / "notes.txt").write_text("mine")
    assert "notes.txt is none of the records of a sweep" in refused(FEW, started)


def test_a_damaged_record_is_named(started):
    path = folder.path_of(started, FEW[0])
    path.write_text(path.read_text()[:-9])
    message = refused(FEW, started)
    assert "is damaged: it is cut off; move it away, and the same command trains" in message


def test_a_renamed_record_is_named(started):
    path = folder.path_of(started, FEW[0])
    path.rename(path.with_name("0" * 16 + ".jsonl"))
    assert "does not hold the run that its name promises" in refused(FEW, started)


def test_a_record_of_another_version_is_named(started, one_run):
    folder.keep(started, dataclasses.replace(one_run, versions={"manifoldnet": "0.0.1"}))
    assert "is of manifoldnet 0.0.1, this is " in refused(FEW, started)


def test_a_record_that_has_not_ended_is_named(started, one_run):
    folder.keep(started, dataclasses.replace(one_run, result=None))
    assert "is of a run that has not ended" in refused(FEW, started)


def test_records_of_another_protocol_are_named_and_those_of_other_cells_are_not(started):
    longer = [dataclasses.replace(config, epochs=5) for config in FEW]
    message = refused(longer, started, axes=AXES)
    assert "belongs to another sweep (epochs 4 there, 5 here)" in message
    quiet(FEW[1:2], started, axes=AXES)
    assert len(content(started)) == 2


def test_records_of_other_data_are_named(started, one_run):
    folder.keep(started, dataclasses.replace(one_run, data="00000000"))
    assert "was trained on other data" in refused(FEW, started)


def test_data_that_are_too_small_are_refused_before_anything_starts(tmp_path):
    large = [dataclasses.replace(config, train_size=9999) for config in FEW]
    assert "does not leave room for 9999 training" in refused(large, tmp_path)
    greedy = [dataclasses.replace(config, selection_train_size=390) for config in FEW]
    assert "takes 390 and 100 of the training images" in refused(greedy, tmp_path)


def test_what_is_no_sweep_is_refused(tmp_path):
    assert "each of them once" in refused([], tmp_path)
    assert "each of them once" in refused([FEW[0], FEW[0]], tmp_path)
    other = dataclasses.replace(FEW[0], dataset="mnist")
    assert "of one data set" in refused([FEW[0], other], tmp_path)
    assert "jobs is 0" in refused(FEW, tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="repetitions is 0"):
        configurations(TABLE2, 0)
    with pytest.raises(ConfigError, match="there are no cells"):
        configurations([], 1)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file is a file; records need a folder" in refused(FEW, tmp_path / "file")
    (tmp_path / "records").write_text("mine")
    assert "records is a file; records need a folder" in refused(FEW, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "cannot be written (Read-only file system)" in refused(FEW, tmp_path / "new")


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


def test_half_written_files_of_a_killed_parent_go_away(started):
    name = f".{FEW[0].identity()}.jsonl.abc.tmp"
    (started / "records" / name).write_text("half")
    quiet(FEW[:1], started)
    assert list(content(started)) == [f"{FEW[0].identity()}.jsonl"]


def test_the_command_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        cli, "cells_configurations", lambda cells, n: configurations(cells, n, SHORT)
    )
    command = ["reproduce", "table2", "--out", str(tmp_path / "o"), "--repetitions", "1"]
    command += ["--jobs", "1", "--quiet", "--cells", "arch1-2-un-*"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert f"2 runs of 2 cells are in {tmp_path / 'o'}" in out
    assert err == ""
    kept = content(tmp_path / "o")
    assert len(kept) == 2
    assert cli.main(command) == 0
    assert content(tmp_path / "o") == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2", "--cells", "arch3-2-un-exponential"], "there is no cell 'arch3-2-un-exp"),
        (["table2", "--repetitions", "0"], "repetitions is 0"),
        (["table2", "--jobs", "0"], "jobs is 0"),
        (["figure3", "--data-dir", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path, capsys, arguments, message):
    assert cli.main(["reproduce", *arguments, "--out", str(tmp_path / "o"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", interrupted)
    assert cli.main(["reproduce", "table2", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        "\nmanifoldnet: interrupted; finished runs are kept. Go on with the same command\n"
    )
