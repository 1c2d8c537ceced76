"""The machine: which device, how many threads, how much memory was needed.

Torch is imported by the functions that need it, so that `stemma --help` does not pay for it.
"""

import contextlib
import importlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.core.errors import UsageError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "pydantic", "pyarrow")


def pick(name: str) -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, `mps` into a device that is really there."""
    import torch  # noqa: PLC0415

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fix = "use device=cpu or device=auto"
        raise UsageError(f"no such device here ({name})", place="device", fix=fix) from error
    return device


def forget_peak_memory() -> None:
    """Start the measure of `peak_memory_bytes` anew, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory this process has held at once, since `forget_peak_memory` where it works."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows keeps this elsewhere
        return 0
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a result depends on and a reader wants to know: no host name, no user, no path."""
    import torch  # noqa: PLC0415

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # a bound main thread (OMP_PROC_BIND) tells of its own core alone
    cores = max(usable or 1, torch.get_num_threads())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 0
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"stemma": metadata.version("stemma-lm"), "python": platform.python_version()} | found
