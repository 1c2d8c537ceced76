"""Bytes of a file, block by block, whether plain, gzip or Zstandard, in constant memory.

Notable: the first bytes must agree with the name; a compressed file may not grow beyond a
ratio (a bomb is stopped while it is read, nothing is unpacked to disk); a file that ends early
still gives every byte before its end; and a file that changes while it is read is noticed,
because half of one version and half of another is no corpus.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import pyarrow as pa

from stemma.core.files import resource_error
from stemma.data.flaws import Flaw
from stemma.data.sources import Compression, require_regular

BLOCK = 1 << 16  # bytes in one read
HARMLESS = 16 << 20  # unpacked bytes below which no ratio is judged: tiny files pack extremely well
LARGEST = 1 << 40  # unpacked bytes of one file, whatever its ratio

MAGIC = {  # first bytes -> what the file then is
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"%PDF-": "PDF",
    b"SQLite format 3": "an SQLite database",
}
PACKED = ("gzip", "Zstandard", "a zip archive", "xz")  # never the beginning of a text


def sniff(head: bytes) -> str:
    """What a file is by its first bytes: a name from `MAGIC`, "text", or "unknown"."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "Zstandard"  # a skippable frame, RFC 8878 section 3.1.2
    return "unknown" if b"\0" in head or not head else "text"


@contextmanager
def open_unchanged(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a regular file to read; a Flaw at the end tells if it was changed or removed meanwhile.

    Raises UsageError where `path` is no regular file, ResourceError where the machine refuses.
    """
    require_regular(path, name)
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            yield file
        after = path.stat()
    except FileNotFoundError as error:
        raise Flaw("was removed while it was read", ends_file=True) from error
    except OSError as error:
        raise resource_error(error, name) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        sizes = f"{before.st_size} bytes before, {after.st_size} after"
        what = f"changed while it was read ({sizes})"
        raise Flaw(what, fix="read a finished copy of it", ends_file=True)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, 0 where it cannot be asked: for messages only."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_blocks(
    path: Path, compression: Compression, *, max_expansion: int, name: str
) -> Iterator[bytes]:
    """The unpacked bytes of a file in blocks of at most `BLOCK` bytes.

    Raises Flaw where the content is not what the name promises, ends early, is damaged, or
    unpacks to more than `max_expansion` times its size.
    """
    with open_unchanged(path, name) as file:
        _check_magic(file, compression)
        produced = 0
        with closing(UNPACK[compression](file)) as blocks:
            for block in blocks:
                produced += len(block)
                if compression != "none":
                    _check_expansion(produced, file.tell(), max_expansion)
                yield block


def _check_magic(file: BinaryIO, compression: Compression) -> None:
    head = file.read(64)
    file.seek(0)
    found = sniff(head)
    wanted = {"none": "", "gzip": "gzip", "zstd": "Zstandard"}[compression]
    if wanted and found != wanted:
        what = f"is not {wanted} (it is {found if head else 'empty'})"
        fix = "pack it again, or rename it to what it is"
        raise Flaw(what, fix=fix, ends_file=True)
    binary = found == "Parquet" and min(head) < 9  # four letters alone may begin a text
    if not wanted and (found in PACKED or binary):
        fix = "rename it (.gz, .zst) or unpack it"
        raise Flaw(f"is {found}, not plain text", fix=fix, ends_file=True)


def _check_expansion(produced: int, consumed: int, max_expansion: int) -> None:
    if produced > LARGEST or (produced > HARMLESS and produced > max_expansion * consumed):
        what = f"unpacks to more than {max_expansion} times its size ({produced} bytes and going on"
        fix = "raise max_expansion if you trust the file"
        raise Flaw(f"{what} from {consumed})", fix=fix, ends_file=True)


def _plain(file: BinaryIO) -> Generator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _gzip(file: BinaryIO) -> Generator[bytes]:
    """Unpack gzip; `read1` hands over all that is unpacked before an early end is reported."""
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            while block := unpacked.read1(BLOCK):
                yield block
    except EOFError as error:
        raise _early_end() from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(error) from error


def _zstd(file: BinaryIO) -> Generator[bytes]:
    """Unpack Zstandard; after an early end the bytes of the read that failed are fetched again.

    A failing read loses the bytes it had already unpacked. One second pass, byte by byte over
    that last block, brings them back, so that no complete line is lost.
    """
    done = 0
    try:
        with _unpack_zstd(file) as unpacked:
            while block := unpacked.read(BLOCK):
                done += len(block)
                yield block
    except OSError as error:
        if error.errno is not None:
            raise
        file.seek(0)
        if tail := _zstd_tail(file, done):
            yield tail
        raise (_early_end() if "Truncated" in str(error) else _damaged(error)) from error


def _zstd_tail(file: BinaryIO, done: int) -> bytes:
    """The bytes after position `done` that can be unpacked before the read error comes again."""
    tail = bytearray()
    with _unpack_zstd(file) as unpacked:
        while done:
            done -= len(unpacked.read(min(done, BLOCK)))
        try:
            while byte := unpacked.read(1):
                tail += byte
        except OSError:
            return bytes(tail)
    return bytes(tail)


def _unpack_zstd(file: BinaryIO) -> IO[bytes]:
    # The wrapper keeps `file` open when the unpacker is closed: its position is still needed.
    stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(_Borrowed(file), "r"), "zstd")
    return stream


class _Borrowed:
    """A file that somebody else will close."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        """Leave the file open for its owner."""


def _early_end() -> Flaw:
    return Flaw("ends early", fix="fetch or pack it again", ends_file=True)


def _damaged(error: Exception) -> Flaw:
    return Flaw(f"is damaged ({error})", fix="fetch or pack it again", ends_file=True)


UNPACK: dict[Compression, Callable[[BinaryIO], Generator[bytes]]] = {
    "none": _plain,
    "gzip": _gzip,
    "zstd": _zstd,
}


def as_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Drop a UTF-8 byte order mark; refuse UTF-16 and UTF-32 with the way to convert them."""
    head, ended = b"", None
    try:
        while len(head) < 64 and (block := next(blocks, b"")):  # enough to know UTF-16 by
            head += block
    except Flaw as flaw:
        ended = flaw
    encoding = _wide_encoding(head)
    if encoding:
        fix = f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
        raise Flaw(f"looks like {encoding}, not UTF-8", fix=fix, ends_file=True)
    yield head.removeprefix(b"\xef\xbb\xbf")
    if ended:
        raise ended
    yield from blocks


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 by byte order mark, or UTF-16 by its NUL in every second byte."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd = head[0:64:2], head[1:64:2]
    if len(head) >= 8 and min(even.count(0), odd.count(0)) == 0:
        if even.count(0) > 0.8 * len(even):
            return "UTF-16BE"
        if odd.count(0) > 0.8 * len(odd):
            return "UTF-16LE"
    return ""
