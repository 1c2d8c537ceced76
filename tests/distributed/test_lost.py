"""Processes that are lost, or never come: the others leave with one line that says whose fault."""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from stemma.core.distributed import joined, remade, spelled
from stemma.core.errors import DataError, UsageError
from stemma.train.checkpoint import checkpoints
from tests.distributed.pool import environment, free_port
from tests.faults.trainers import TRAINERS


def started(folder, rank, size, port):
    """A process of a group that runs the recipe of a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "stemma", "run", "tiny.yaml"],
        cwd=folder,
        env=environment(rank, size, port),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def errors(process):
    """The lines of a process that are no progress."""
    return [line for line in process.stderr.read().splitlines() if line.startswith("error: ")]


@pytest.fixture
def group(tmp_path):
    """Two processes that have saved once; what still lives at the end is killed."""
    TRAINERS["pretrain"].lay_out(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text().replace("steps: 24", "steps: 100000")
    (tmp_path / "tiny.yaml").write_text(text)
    port = free_port()
    processes = [started(tmp_path, rank, 2, port) for rank in range(2)]
    while not checkpoints(tmp_path / "out" / "base" / "steps"):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.05)
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_death_of_one_ends_the_other_by_name(group, lost):
    group[lost].send_signal(signal.SIGKILL)
    other = group[1 - lost]
    assert other.wait(timeout=30) == 5
    [line] = errors(other)
    who = rf"rank {lost} \(.+, process {group[lost].pid}\) is gone"
    assert re.search(f"{who}|the store of the group is gone", line), line
    assert "run the same command again" in line


@pytest.mark.slow
def test_one_that_hangs_ends_the_other_by_name(group):
    group[1].send_signal(signal.SIGSTOP)
    assert group[0].wait(timeout=30) == 5
    [line] = errors(group[0])
    assert f"process {group[1].pid}) has given no sign of life for 15 s" in line


def test_a_signal_to_one_stops_both_with_the_state_saved(group):
    group[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=30) for process in group] == [75, 75]
    said = [process.stderr.read() for process in group]
    assert "stopped: after step" in said[0] and "stopped" not in said[1]


def test_a_port_that_is_taken_is_named(tmp_path):
    TRAINERS["pretrain"].lay_out(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = started(tmp_path, 0, 2, port)
        assert process.wait(timeout=60) == 5
    [line] = errors(process)
    process.stderr.close()
    assert re.search(rf"rank 0: 127\.0\.0\.1:{port}: the port is in use; .*--master-port", line)


@pytest.mark.slow
def test_who_waits_in_vain_says_who_did_not_come(tmp_path):
    TRAINERS["pretrain"].lay_out(tmp_path)
    process = started(tmp_path, 0, 2, free_port())
    assert process.wait(timeout=60) == 5
    [line] = errors(process)
    process.stderr.close()
    assert "of 2 processes these did not come within 25 s: ranks 1" in line


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, r"RANK: not a number \(one\); start the processes by"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK: no such rank \(2 of 2\); ranks of 2 processes"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"MASTER_PORT: not a number \(nothing\)"),
    ],
)
def test_what_a_launcher_sets_wrong_is_named(given, words):
    with pytest.raises(UsageError, match=words), joined(given):
        pass


def test_errors_are_told_from_process_to_process():
    told = remade(spelled(DataError("no text", place="a.txt:3", fix="write some")))
    assert isinstance(told, DataError) and str(told) == "a.txt:3: no text; write some"
