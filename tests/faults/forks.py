"""The test's side of the zygote: start a child, watch its files, send signals, wait for its end."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.shim import Call, Fault, read_trace

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds after which a child hangs

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a fork wants one thread
}


def text_of(path: Path) -> str:
    """The text of a file; none where there is no file."""
    return path.read_text() if path.exists() else ""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal, and what it left."""

    code: int
    out: str
    err: str
    calls: list[Call]

    @property
    def messages(self) -> list[str]:
        """Log lines, which are JSON where nobody watches."""
        lines = [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if "message" in line]

    @property
    def errors(self) -> list[str]:
        """Lines that are no log lines: what the command answers with."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]

    @property
    def resumed(self) -> int | None:
        """The step that it said it resumed from."""
        said = [text for text in self.messages if ": resumed from step " in text]
        return int(said[-1].rpartition(" ")[2]) if said else None


@dataclass
class Child:
    """A running child."""

    pid: int
    log: Path
    zygote: "Zygote"
    ended: Ended | None = field(default=None, repr=False)

    def send(self, number: int) -> None:
        """A signal to the child alone."""
        os.kill(self.pid, number)

    def send_heeded(self, number: int) -> None:
        """A signal to a child that is held; comes back when its Python handler has run."""
        self.send(number)
        heard = self.beats()
        assert self.wait_until(lambda: self.beats() > heard + 2)

    def beats(self) -> int:
        """Heartbeats of a held child so far."""
        beat = self.log / "beat"
        return beat.stat().st_size if beat.exists() else 0

    def held(self) -> bool:
        """Wait until it is held; False where it ended first."""
        return self.wait_until(lambda: self.beats() > 0)

    def let_go(self) -> Ended:
        """Let a held child go on, and wait for its end."""
        (self.log / "go").touch()
        return self.wait()

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Look again and again; False where the child ended first."""
        handle = os.pidfd_open(self.pid)
        try:
            last = time.monotonic() + PATIENCE
            while not happened():
                if select.select([handle], [], [], 0.001)[0]:
                    return happened()
                assert time.monotonic() < last, "the child hangs"
            return True
        finally:
            os.close(handle)

    def wait(self) -> Ended:
        """Its end. A child that does not end is killed, and that is a failure."""
        if self.ended is None:
            code = self.zygote.ask({"wait": self.pid}, child=self.pid)["code"]
            trace = self.log / "trace"
            calls = read_trace(trace) if trace.exists() else []
            out, err = text_of(self.log / "out"), text_of(self.log / "err")
            self.ended = Ended(code, out, err, calls)
        return self.ended


class Zygote:
    """The process that forks; `folder` gets the files of its children."""

    def __init__(self, library: Path, folder: Path) -> None:
        environment = os.environ | ENVIRONMENT | {"LD_PRELOAD": str(library)}
        self.folder, self.jobs = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.answer() == {"ready": True}

    def answer(self, child: int = 0) -> dict[str, Any]:
        """The next line of the zygote."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            if child:
                os.kill(child, signal.SIGKILL)
                self.process.stdout.readline()
            raise AssertionError("the child hangs" if child else "the zygote hangs")
        line = self.process.stdout.readline()
        assert line, "the zygote is gone"
        return json.loads(line)

    def ask(self, request: dict[str, Any], child: int = 0) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        return self.answer(child)

    def start(
        self, scene: str, folder: Path, *, fault: Fault | None = None, **arguments: Any
    ) -> Child:
        """Fork a child that plays a scene in `folder`."""
        self.jobs += 1
        log = self.folder / f"{self.jobs:05d}"
        log.mkdir()
        request = {
            "scene": scene,
            "folder": str(folder),
            "log": str(log),
            "fault": fault.to_json() if fault else None,
            "arguments": arguments,
        }
        return Child(self.ask(request)["pid"], log, self)

    def run(
        self, scene: str, folder: Path, *, fault: Fault | None = None, **arguments: Any
    ) -> Ended:
        """Fork a child and wait for its end."""
        return self.start(scene, folder, fault=fault, **arguments).wait()

    def close(self) -> None:
        """End the zygote, and with it every child that is left."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()
