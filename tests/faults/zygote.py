"""A process that has imported everything and forks a child for each job: 0.1 s instead of 3.

Started by `tests.faults.forks` with the shim preloaded. A request is one JSON object a line on
stdin, an answer one on stdout: `{"scene": …}` starts a child and answers its pid, `{"wait": pid}`
answers how it ended. It never computes anything itself, so that a fork finds one thread only.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from tests.faults import scenes

PR_SET_PDEATHSIG = 1
ROOMS = ("models", "interop", "pipeline")  # whose modules are imported when they are needed


def import_once() -> None:
    """Everything that a run imports late, so that no child has to."""
    for room in ROOMS:
        package = importlib.import_module(f"stemma.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"stemma.{room}."):
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # by the first optimizer: a second
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # reports without pictures


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def require_one_thread() -> None:
    """A fork copies one thread: locks that another one held would stay locked in the child."""
    threads = os.listdir("/proc/self/task")
    names = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads]
    if len(threads) != 1:
        raise RuntimeError(f"the zygote has {len(threads)} threads: {names}")


def become_child(job: dict[str, Any]) -> None:
    """A process group of its own, signals as a shell would hand them on, its own files."""
    os.setpgid(0, 0)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, name in ((1, "out"), (2, "err")):
        path = Path(job["log"]) / name
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])


def answer(value: dict[str, Any]) -> None:
    """One line to who asks."""
    os.write(1, (json.dumps(value) + "\n").encode())


def serve() -> dict[str, Any] | None:
    """Answer requests until they end; in a child, return the job that it is for."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer({"code": os.waitstatus_to_exitcode(status)})
            continue
        pid = os.fork()
        if pid == 0:
            become_child(request)
            return request
        answer({"pid": pid})
    return None


def leave(code: object) -> None:
    """End as the interpreter ends, but for taking 2,000 modules apart, which lasts 0.1 s."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def play(job: dict[str, Any]) -> None:
    """Play a job's scene to the end of the process."""
    code: object = 0
    try:
        scenes.play(job)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def main() -> None:
    """Serve; a child leaves the loop and plays its scene, so that little is on its stack."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_once()
    require_one_thread()
    gc.freeze()
    answer({"ready": True})
    job = serve()
    if job is not None:
        play(job)


if __name__ == "__main__":
    main()
