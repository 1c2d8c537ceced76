"""Groups of processes that live as long as the tests, one for each size."""

import json
import os
import socket
import subprocess
import sys


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, size, port):
    """What a launcher sets."""
    launched = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    numbers = {name: str(value) for name, value in launched.items()}
    return {**os.environ, **numbers, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


class Pool:
    """A group of `size` processes that run cases together."""

    def __init__(self, size):
        port = free_port()
        self.members = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.member"],
                env=environment(rank, size, port),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        assert [self.read(m) for m in self.members] == [{"ready": rank} for rank in range(size)]

    def read(self, member):
        """The next answer of one process."""
        line = member.stdout.readline()
        assert line, f"a member of the pool has ended with {member.wait()}"
        return json.loads(line)

    def run(self, case, **given):
        """What each process found, by rank."""
        request = json.dumps({"case": case, "given": given}) + "\n"
        for member in self.members:
            member.stdin.write(request)
            member.stdin.flush()
        answers = [self.read(member) for member in self.members]
        failed = [answer["trace"] for answer in answers if "error" in answer]
        assert not failed, "\n".join(failed)
        return [answer["found"] for answer in answers]

    def close(self):
        """End the processes."""
        for member in self.members:
            member.stdin.close()
        for member in self.members:
            member.wait(timeout=30)
            member.stdout.close()
