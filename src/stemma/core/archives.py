"""Chosen files out of a zip, tar, wheel, Debian package or folder, and nothing else.

Only plain files are written, by us, to paths that we have checked: no path leads out of the
target, no link is made, no mode or owner is taken over, and an archive that unpacks to an absurd
size stops on the way. Every complaint about an archive is a ValueError with one sentence.
"""

import hashlib
import lzma
import os
import posixpath
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from stemma.core.files import sha256_file, sha256_json

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
MAX_EXPANSION = 200  # unpacked bytes per archive byte; text compresses 5 to 50 times
PIECE = 1 << 20


@dataclass(frozen=True)
class Member:
    """One entry of an archive; `regular` is false for links and devices."""

    path: str
    regular: bool
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Extracted:
    """One file written: its path below the target folder, its size and its sha256."""

    path: str
    bytes: int
    sha256: str


def extract(archive: Path, patterns: Sequence[str], target: Path) -> list[Extracted]:
    """Copy the members that the patterns name to `target`, less the folders they all share.

    A pattern is matched from the end of the path, `*` also over folders: `texts/*.txt` names
    `p-1/texts/a.txt`, which becomes `target`/a.txt. `target` must not exist.
    Raises ValueError for an archive that is broken or hostile, or a pattern that names nothing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened(archive, target.parent) as members:
            return copy_all(choose(members, patterns), target, size_limit(archive))
    except BROKEN as error:
        raise ValueError(f"{archive.name} cannot be read ({error})") from error


def fingerprint(archive: Path) -> str:
    """The sha256 of a file; of a folder, that of the listing {path: sha256} of its files."""
    if archive.is_file():
        return sha256_file(archive)
    return sha256_json({path: sha256_file(archive / path) for path in folder_listing(archive)})


def folder_listing(folder: Path) -> list[str]:
    """Relative paths of the regular files below a folder, sorted; links are not followed."""
    paths = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                paths.append(path.relative_to(folder).as_posix())
    return sorted(paths)


def size_limit(archive: Path) -> int:
    """The most bytes an archive may unpack to; a small one may hold a well-packed file."""
    if archive.is_dir():
        return sys.maxsize
    return MAX_EXPANSION * max(archive.stat().st_size, PIECE // 8)


def choose(members: list[Member], patterns: Sequence[str]) -> dict[str, Member]:
    """The members that a pattern names, by clean path, in the archive's order."""
    by_path = {safe_path(member.path): member for member in members}
    named = set()
    for pattern in patterns:
        found = {path for path in by_path if fnmatchcase(f"/{path}", f"*/{pattern}")}
        if not found:
            raise ValueError(f"no file in it matches {pattern}")
        named |= found
    chosen = {path: member for path, member in by_path.items() if path in named}
    for path, member in chosen.items():
        if not member.regular:
            raise ValueError(f"{path} in it is a link or a device")
    return chosen


def safe_path(path: str) -> str:
    """The path without `./`; refused where it is absolute, climbs, or is not text."""
    path.encode()  # undecodable bytes stand as surrogates: UnicodeEncodeError, a ValueError
    climbs = ".." in PurePosixPath(path).parts or "\\" in path
    if climbs or path.startswith("/") or re.match("[A-Za-z]:", path):
        raise ValueError(f"it holds the path {path}, which leads out of it")
    return PurePosixPath(path).as_posix()


def copy_all(chosen: dict[str, Member], target: Path, limit: int) -> list[Extracted]:
    """Write the members below `target`, at most `limit` bytes in all."""
    shared = posixpath.commonpath([posixpath.dirname(path) for path in chosen])
    files: list[Extracted] = []
    for path, member in chosen.items():
        files.append(copy(member, target, posixpath.relpath(path, shared or "."), limit))
        limit -= files[-1].bytes
    return files


def copy(member: Member, target: Path, path: str, limit: int) -> Extracted:
    """Write one member, hashed and counted on the way: what a header says of sizes is not used."""
    place, digest, size = target / path, hashlib.sha256(), 0
    place.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, open(place, "wb") as file:
        while piece := source.read(PIECE):
            size += len(piece)
            if size > limit:
                raise ValueError(f"it unpacks to more than {MAX_EXPANSION} times its size")
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Extracted(path=path, bytes=size, sha256=digest.hexdigest())


@contextmanager
def opened(archive: Path, scratch: Path) -> Iterator[list[Member]]:
    """The members of a folder or an archive; a plain file is its own one member."""
    name = archive.name.lower()
    if archive.is_dir():
        yield [Member(path, True, reader(archive / path)) for path in folder_listing(archive)]
    elif name.endswith((".zip", ".whl")):
        with zipfile.ZipFile(archive) as zipped:
            yield [zip_member(zipped, entry) for entry in zipped.infolist() if not entry.is_dir()]
    elif name.endswith(".deb"):
        with package_tar(archive, scratch) as tar:
            yield [tar_member(tar, entry) for entry in tar if not entry.isdir()]
    elif name.endswith(TARS):
        with tarfile.open(archive) as tar:
            yield [tar_member(tar, entry) for entry in tar if not entry.isdir()]
    else:
        yield [Member(archive.name, True, reader(archive))]


def reader(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: open(path, "rb")


def zip_member(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was not made on Unix
    return Member(entry.filename, kind in (0, stat.S_IFREG), partial(zipped.open, entry))


def tar_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Member:
    def read() -> IO[bytes]:
        file = tar.extractfile(entry)
        if file is None:
            raise tarfile.ReadError(f"{entry.name} has no content")
        return file

    return Member(entry.name, entry.isreg(), read)


@contextmanager
def package_tar(archive: Path, scratch: Path) -> Iterator[tarfile.TarFile]:
    """The files of a Debian package as a tar, spooled to the disk of `scratch`; not unpacked."""
    command = [shutil.which("dpkg-deb") or "dpkg-deb", "--fsys-tarfile", str(archive)]
    with tempfile.TemporaryFile(dir=scratch) as spool:
        done = subprocess.run(command, stdout=spool, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise tarfile.ReadError(done.stderr.decode(errors="replace").strip())
        spool.seek(0)
        with tarfile.open(fileobj=spool) as tar:
            yield tar
