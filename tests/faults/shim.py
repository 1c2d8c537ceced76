"""The write-side calls of a process as something to count, to trace, and to break at one of them.

`calls.c` does it inside the process; here it is compiled, armed and its trace read.
"""

import ctypes
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("calls.c")

COUNT, KILL, TORN, FAIL = range(4)  # what happens at a call, as in calls.c
WRITE, MAKE, SYNC, MOVE, REMOVE, OPEN = (1 << bit for bit in range(6))  # kinds of calls
ALL = WRITE | MAKE | SYNC | MOVE | REMOVE | OPEN
NEEDS_ROOM = WRITE | MAKE  # what a full disk refuses
FOR_GOOD = 0


@dataclass(frozen=True)
class Fault:
    """What happens, and at which calls: `first` to `last`, counted from 1."""

    action: int = COUNT
    first: int = 0
    last: int = FOR_GOOD
    error: int = 0
    kinds: int = ALL

    def to_json(self) -> dict[str, int]:
        """As a child is told of it."""
        return asdict(self)


def killed_before(number: int) -> Fault:
    """SIGKILL just before a call."""
    return Fault(KILL, number)


def torn_at(number: int) -> Fault:
    """SIGKILL in the middle of a call: half of its bytes are written."""
    return Fault(TORN, number)


def fails_at(number: int, error: int) -> Fault:
    """One call is refused, whatever it does."""
    return Fault(FAIL, number, number, error)


def full_from(number: int, error: int) -> Fault:
    """From a call on, nothing that needs room on the disk is done."""
    return Fault(FAIL, number, FOR_GOOD, error, NEEDS_ROOM)


@dataclass(frozen=True)
class Call:
    """One line of a trace. `other` is the new name where the call has two."""

    number: int
    name: str
    size: int
    path: Path
    other: Path | None

    @property
    def writes(self) -> bool:
        """Whether it moves bytes into a file: such a call can be torn."""
        return "write" in self.name or self.name.startswith(("sendfile", "copy_file_range"))

    @property
    def syncs(self) -> bool:
        """Whether it makes something durable."""
        return self.name in ("fsync", "fdatasync")

    @property
    def commits(self) -> bool:
        """Whether it puts something under a name that is seen; hidden ones are not."""
        return self.other is not None and not self.other.name.startswith(".")

    @property
    def removes(self) -> bool:
        """Whether a name that was seen, or anything hidden, goes."""
        hides = self.other is not None and not self.commits
        return hides or self.name in ("unlink", "unlinkat", "rmdir")


def build(folder: Path) -> Path:
    """Compile `calls.c`; returns the library to preload."""
    library = folder / "calls.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def arm(folder: Path, fault: Mapping[str, Any], trace: int) -> None:
    """From now on count the calls of this process below `folder`, which must have been preloaded.

    Each is noted in the file `trace`, then what `fault` says happens.
    """
    what = Fault(**fault)
    ctypes.CDLL(None).arm(
        bytes(folder.resolve()),
        ctypes.c_int(what.action),
        ctypes.c_long(what.first),
        ctypes.c_long(what.last),
        ctypes.c_int(what.error),
        ctypes.c_int(what.kinds),
        ctypes.c_int(trace),
    )


def disarm() -> None:
    """Count no further calls."""
    ctypes.CDLL(None).disarm()


def counted() -> int:
    """Calls counted since the last `arm`."""
    library = ctypes.CDLL(None)
    library.counted.restype = ctypes.c_long
    return int(library.counted())


def read_trace(path: Path) -> list[Call]:
    """The calls of a trace, in their order."""
    found = []
    for line in path.read_text().splitlines():
        number, name, size, place, other = line.split("\t")
        found.append(
            Call(int(number), name, int(size), Path(place), Path(other) if other else None)
        )
    return found
