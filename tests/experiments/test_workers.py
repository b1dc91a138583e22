"""Worker processes: what dies takes down nothing else, and a killed sweep is gone on with."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from sweeps import RUNS, content, quiet, without_clock

from manifoldnet.experiments.workers import Processes

pytestmark = pytest.mark.thorough

ROOT = str(Path(__file__).parents[2])
SOME = RUNS[:12]

SWEEP = """
import sys

if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from sweeps import EXPERIMENT, sweep
    from test_workers import SOME

    sweep(EXPERIMENT, SOME, sys.argv[1], jobs=2, progress=False)
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
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_sweep_killed_repeatedly_gives_the_same_records(tmp_path, kills):
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(tests=str(Path(__file__).parent)))
    chance = random.Random(0)
    where = tmp_path / "killed"
    kept = {}
    for kill in range(kills):
        process = start(script, where)
        wanted = len(kept) + chance.choice([0, 1])
        deadline = time.monotonic() + 120
        while len(list((where / "records").glob("*.jsonl"))) < wanted:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        family = children(process.pid)
        if kill % 3 == 1 and family:  # a worker first: its run is tried again
            os.kill(max(family), signal.SIGKILL)
            time.sleep(0.3)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL  # it was not done yet
        deadline = time.monotonic() + 20
        while any(map(is_alive, family)):  # workers go with their parent
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before, kept = kept, finished(where)
        assert before.items() <= kept.items()  # none lost, none trained twice
    killed = quiet(SOME, where)
    assert kept.items() <= content(where).items()
    assert set(content(where)) == {f"{config.identity()}.jsonl" for config in SOME}
    whole = quiet(SOME, tmp_path / "whole")
    assert list(map(without_clock, killed)) == list(map(without_clock, whole))


def finished(where):
    if not (where / "records").is_dir():
        return {}
    return {name: text for name, text in content(where).items() if name.endswith(".jsonl")}


def die_once(mark):
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def rest(seconds):
    time.sleep(seconds)
    return os.getpid()


def test_the_death_of_a_worker_fails_its_own_call_only(tmp_path):
    with Processes(2) as pool:
        slow = pool.submit(rest, 1.0)
        dying = pool.submit(die_once, tmp_path / "mark")
        with pytest.raises(BrokenExecutor):
            dying.result(timeout=60)
        assert slow.result(timeout=60)
        assert pool.submit(die_once, tmp_path / "mark").result(timeout=60)


def test_an_exception_in_the_block_kills_the_workers():
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


def test_ctrl_c_reaches_the_parent_only():
    with Processes(1) as pool:
        pid = pool.submit(rest, 0).result(timeout=60)
        os.kill(pid, signal.SIGINT)
        assert pool.submit(rest, 0).result(timeout=60) == pid
