"""Files that are whole or absent: written beside their place, synced, then renamed.

The order data fsync, rename, folder fsync is what survives a power cut; a crash at any point
leaves the old file. Operating-system refusals become a `ResourceError` that names the path.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from stemma.core.errors import ResourceError

if sys.platform != "win32":
    import fcntl

REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EFBIG: ("the file is larger than the limit set for it", "raise `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "choose another place with out=FOLDER"),
    errno.EACCES: ("permission denied", "choose another place or change its permissions"),
    errno.EPERM: ("permission denied", "choose another place or change its permissions"),
    errno.EMFILE: ("too many open files", "raise `ulimit -n`"),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
}

OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANYTHING = "check this path, then run the same command again"  # the way out of a rare refusal


def resource_error(error: OSError, path: object, *, written: int = 0) -> ResourceError:
    """The one-line error for an operating-system refusal at `path`.

    `written` are the bytes that had been written there when the disk was full: more are needed.
    """
    what, fix = REASONS.get(error.errno or 0, (error.strerror or str(error), ANYTHING))
    if error.errno in FULL:
        sizes = [f"more than {written} bytes needed"] if written else []
        if error.errno != errno.EFBIG:
            sizes.append(f"{free_bytes(Path(str(path)))} bytes free")
        what += f" ({', '.join(sizes)})" if sizes else ""
    return ResourceError(what, place=path, fix=fix)


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of `path`, or of its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows has no handle for it and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, each durable: files in it could else be lost with it."""
    new = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    if new:
        folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync_folder(path.parent)


def hold(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where another process holds it.

    The lock ends with its process, however that ends. Windows has none of this kind: there it is
    the user's care.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only if the block ends well.

    Raises ResourceError where the machine refuses; the old file, if any, is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        make_folder(path.parent)
        encoding = None if "b" in mode else "utf-8"
        with open(partial, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        written = discard(partial)  # before the free bytes are counted
        raise resource_error(error, path, written=written) from error
    finally:
        discard(partial)


def install_folder(fresh: Path, final: Path, *, whole: Callable[[Path], bool]) -> None:
    """Rename into place. A whole folder that another process put there first stays; else it goes.

    What is in the way is moved beside `fresh`. Raises OSError where the machine refuses.
    """
    for attempt in range(5):
        try:
            os.rename(fresh, final)
            break
        except OSError as error:
            if error.errno not in OCCUPIED:
                raise
        if whole(final):
            break
        with suppress(FileNotFoundError):  # the other process moved it first
            os.rename(final, fresh.with_name(f"damaged-{attempt}"))
    else:
        raise ResourceError("other processes keep replacing it", place=final, fix="try again")
    sync_folder(final.parent)


def discard(partial: Path) -> int:
    """Remove a file that was not finished, if it is there; returns how many bytes it had."""
    try:
        written = partial.stat().st_size
        partial.unlink()
    except OSError:  # it was never made: what refused it has its own error
        return 0
    return written


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read once in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a JSON value in one canonical spelling (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_writable(folder: Path) -> None:
    """Create `folder` and prove that a file can be written there, before any work starts."""
    folder = Path(folder)
    probe = folder / f".probe.{os.getpid()}"
    try:
        make_folder(folder)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another run in this folder may have cleared it away
    except OSError as error:
        raise resource_error(error, folder) from error
