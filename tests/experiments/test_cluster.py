"""A sweep on a real Dask scheduler with two workers on loopback, one of which is killed."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sweeps import RUNS, content, quiet, without_clock

from manifoldnet import cli
from manifoldnet.experiments import ConfigError, MissingExtraError
from manifoldnet.experiments.papers.symmetry.cells import AXES
from manifoldnet.experiments.workers import cluster

pytestmark = pytest.mark.thorough

SHORT_OF_TIME = RUNS[:8]


@pytest.fixture
def dask(tmp_path):
    """Starts parts of a cluster: `dask("worker", …)` is a process that is gone after the test."""
    pytest.importorskip("distributed")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            process = subprocess.Popen(
                command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.filterwarnings("ignore")  # distributed's own
def test_a_cluster_that_loses_a_worker_gives_the_records_of_one_process(tmp_path, dask):
    address = f"tcp://127.0.0.1:{free_port()}"
    dask("scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
    options = ["--nthreads", "1", "--no-nanny"]
    lost, _ = (dask("worker", address, *options) for _ in range(2))
    where = tmp_path / "runs"

    def kill_one():
        deadline = time.monotonic() + 120
        while not list((where / "records").glob("*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        lost.kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with cluster(address, timeout=60) as executor:
        made = quiet(SHORT_OF_TIME, where, executor, axes=AXES)
    killer.join()
    assert lost.wait() != 0
    assert len(content(where)) == len(SHORT_OF_TIME)
    whole = quiet(SHORT_OF_TIME, tmp_path / "whole")
    assert list(map(without_clock, made)) == list(map(without_clock, whole))


@pytest.mark.filterwarnings("ignore")
def test_an_address_without_a_scheduler_is_an_error():
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match="no Dask scheduler answers at"), cluster(address, 1):
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_without_workers_is_an_error(dask):
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    dask("scheduler", "--host", "127.0.0.1", "--port", port)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            break
        time.sleep(0.1)
    with pytest.raises(ConfigError, match="has no workers: start some with"), cluster(address, 5):
        pass


def test_without_the_package_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'manifoldnet\[cluster\]'"),
        cluster("tcp://127.0.0.1:1"),
    ):
        pass
    where = str(tmp_path / "runs")
    assert (
        cli.main(["reproduce", "symmetry", "table2", "--cluster", "tcp://x:1", "--out", where]) == 2
    )
    assert "manifoldnet[cluster]" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
