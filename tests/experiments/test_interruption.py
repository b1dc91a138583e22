"""Real processes, really stopped: by kill -9 and by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_training import equal, numbers, states

from manifoldnet import cli
from manifoldnet.experiments import TrainConfig, records, train
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION

pytestmark = pytest.mark.thorough

CONFIG = TrainConfig(train_size=200, epochs=40, update="un", momentum=0.5)
ARGUMENTS = ["train", "--update", "un", "--train-size", "200", "--epochs", "40"]
ARGUMENTS += ["--momentum", "0.5", "--quiet", "--out"]


def start(directory):
    """The command in a process of its own, some epochs on."""
    command = [sys.executable, "-m", "manifoldnet.cli", *ARGUMENTS, str(directory)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and hands that down to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    record = directory / "record.jsonl"
    deadline = time.monotonic() + 60
    while not record.exists() or record.read_text().count("\n") < 4:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, train(CONFIG, directory, digits)


def goes_on_to_the_same_end(directory, whole):
    trained = records.read(directory / "record.jsonl", CLASSIFICATION).epochs
    assert 3 <= len(trained) < CONFIG.epochs
    assert cli.main([*ARGUMENTS, str(directory), "--resume"]) == 0
    assert numbers(records.read(directory / "record.jsonl", CLASSIFICATION)) == numbers(whole[1])
    assert equal(states(directory), states(whole[0]))
    assert sorted(p.name for p in directory.iterdir()) == ["checkpoint.pt", "record.jsonl"]


def test_a_run_resumes_bit_for_bit_after_kill_9(tmp_path, whole):
    process = start(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    # It may have been killed while it wrote; here it surely was.
    (tmp_path / ".checkpoint.pt.half.tmp").write_bytes(b"half a file")
    goes_on_to_the_same_end(tmp_path, whole)


def test_ctrl_c_keeps_finished_epochs_and_prints_how_to_resume(tmp_path, whole):
    process = start(tmp_path)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (line,) = stderr.strip().splitlines()
    assert line.startswith("manifoldnet: interrupted; finished epochs are kept. Go on with: ")
    assert line.endswith(f"--out {tmp_path} --resume")
    goes_on_to_the_same_end(tmp_path, whole)
